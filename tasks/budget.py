"""The budget of one nightly run: hours of time, GPU-hours, and dollars for language models."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from poise_core.agents.llm.ledger import Allowance
from poise_core.evolution import Evolution


class Budget:
    """A time budget, at whose end the evolution is stopped, and a cost budget of its language models (``allowance``)."""

    def __init__(self, hours: float, dollars: float | None, since: dt.datetime, gpu_hours: float | None = None) -> None:
        """Set the limits.

        Args:
            hours: from when ``kept`` is entered.
            dollars: None for no limit.
            since: with a time zone; calls made earlier are not counted.
            gpu_hours: of the GPUs that the preset may use at a time, busy or not, since they are held; None for no limit.
        """
        self.hours, self.dollars, self.since, self.gpu_hours = hours, dollars, since, gpu_hours
        self.allowance = Allowance(dollars, since) if dollars is not None else None
        self._late = threading.Event()

    @property
    def used_up(self) -> bool:
        """Whether a limit of this budget has stopped the evolution."""
        return self._late.is_set() or (self.allowance is not None and self.allowance.refused)

    def limit(self, gpus: int) -> tuple[float, str]:
        """Return the hours after which the evolution is stopped, and the name of the budget that says so.

        Args:
            gpus: that are held at a time, by all candidates.
        """
        if self.gpu_hours is not None and self.gpu_hours / gpus < self.hours:
            return self.gpu_hours / gpus, f"budget of {self.gpu_hours:g} GPU-hours, {gpus} at a time,"
        return self.hours, f"time budget of {self.hours:g} h"

    @contextmanager
    def kept(self, evolution: Evolution) -> Iterator[None]:
        """Stop the evolution when its time or its GPU-hours are up."""
        resources = evolution.run.current_preset.resources
        hours, what = self.limit(resources.parallel_candidates * resources.gpus_held)

        def stop() -> None:
            self._late.set()
            evolution.stop(f"the {what} is used up")

        timer = threading.Timer(hours * 3600.0, stop)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
