"""The pace of requests to a model, where its provider limits them per minute."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from poise_core.agents.llm.faults import CallFailed, Outcome


class Pace:
    """Spaces the requests to each model evenly."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: dict[str, float] = {}

    def wait(self, model: str, per_minute: float | None, wait: Callable[[float], None], deadline: float) -> None:
        """Wait for this request's turn.

        Args:
            model: whose turn.
            per_minute: requests at most; None for no limit.
            wait: sleeps for some seconds; what it raises is raised here.
            deadline: of the answer, on the monotonic clock.

        Raises:
            CallFailed: the turn comes after the deadline.
        """
        if per_minute is None:
            return
        with self._lock:
            start = max(time.monotonic(), self._free.get(model, 0.0))
            if start >= deadline:
                raise CallFailed(Outcome.RATE_LIMITED, f"{model}: its turn comes after the answer's time limit")
            self._free[model] = start + 60.0 / per_minute
        wait(max(0.0, start - time.monotonic()))
