"""What happens in a stage: lines in the log of its task run, and the sentence that its final state shows."""

from __future__ import annotations

from contextvars import ContextVar

from poise_core.escaping import one_line, printable
from poise_core.evolution import Event

STEPS_BETWEEN_LINES = 10

_outcome: ContextVar[str] = ContextVar("outcome", default="")


def log_event(event: Event) -> None:
    """An observer: one line for every end of a stage, and for every tenth step of a training."""
    from prefect.context import TaskRunContext
    from prefect.logging import get_run_logger

    if TaskRunContext.get() is None:
        return
    if event.kind == "step":
        if event.row["step"] % STEPS_BETWEEN_LINES == 0:
            shown = {key: round(event.row[key], 4) for key in ("reward_mean", "entropy", "kl") if key in event.row}
            get_run_logger().info("seed %s step %d %s", event.seed, event.row["step"], shown)
    elif event.message:
        _outcome.set(printable(event.message))
        log = get_run_logger().warning if event.kind == "failed" else get_run_logger().info
        log("%s of %s: %s", event.stage, one_line(event.subject), printable(event.message))


def forget_outcome() -> None:
    """Begin a stage of which nothing is known yet."""
    _outcome.set("")


def last_outcome() -> str:
    """The last message of the stage that runs in this context; empty where the stage was finished before."""
    return _outcome.get()
