"""The budget of one nightly run: hours of time, and dollars for language models."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from poise_core.agents.llm.ledger import Allowance
from poise_core.evolution import Evolution


class Budget:
    """A time budget, at whose end the evolution is stopped, and a cost budget of its language models (``allowance``)."""

    def __init__(self, hours: float, dollars: float | None, since: dt.datetime) -> None:
        """Set the limits.

        Args:
            hours: from when ``kept`` is entered.
            dollars: None for no limit.
            since: with a time zone; calls made earlier are not counted.
        """
        self.hours, self.dollars, self.since = hours, dollars, since
        self.allowance = Allowance(dollars, since) if dollars is not None else None
        self._late = threading.Event()

    @property
    def used_up(self) -> bool:
        """Whether a limit of this budget has stopped the evolution."""
        return self._late.is_set() or (self.allowance is not None and self.allowance.refused)

    @contextmanager
    def kept(self, evolution: Evolution) -> Iterator[None]:
        """Stop the evolution when its time is up."""

        def stop() -> None:
            self._late.set()
            evolution.stop(f"the time budget of {self.hours:g} h is used up")

        timer = threading.Timer(self.hours * 3600.0, stop)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
