"""The events that a running evolution reports to its observer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from poise_core.failures import Cancelled, CandidateFailure, InfrastructureError


@dataclass(frozen=True)
class Event:
    """One thing that happened in one stage of one candidate."""

    kind: Literal["started", "step", "finished", "failed"]
    stage: str
    subject: str  # name of the candidate, or of its slot in the generation before there is one
    generation: int
    message: str = ""  # the outcome, for "finished" and "failed"
    seed: int | None = None  # for "step"
    row: Mapping[str, float] = field(default_factory=dict)  # the step's row of the trajectory


Observer = Callable[[Event], None]
"""Called from whichever thread runs the stage; must return at once and must not raise."""


def ignore(event: Event) -> None:
    """An observer that does nothing."""


@contextmanager
def announced(
    observer: Observer, stage: str, subject: str, generation: int, should_stop: Callable[[], bool]
) -> Iterator[Callable[[str], None]]:
    """Report to the observer that a stage begins and how it ends; after a stop no stage begins.

    Yields:
        A function to be called with the outcome.

    Raises:
        Cancelled: ``should_stop`` returned true.
        InfrastructureError: the system failed within the stage (the disk is full, a folder is not writable).
    """
    if should_stop():
        raise Cancelled(f"stopped before {stage} of {subject}")
    outcome: list[str] = []
    observer(Event("started", stage, subject, generation))
    try:
        yield outcome.append
    except BaseException as error:
        kind = f"{error.kind}: " if isinstance(error, CandidateFailure) else ""
        observer(Event("failed", stage, subject, generation, f"{kind}{error}" or type(error).__name__))
        if isinstance(error, OSError):
            raise InfrastructureError(f"{stage} of {subject}: {error}") from error
        raise
    observer(Event("finished", stage, subject, generation, outcome[0] if outcome else ""))
