"""What the display of a running evolution prints."""

import io
import logging

from rich.console import Console

from poise_core.cli.progress import ProgressDisplay, Troubles
from poise_core.config import load_preset
from poise_core.evolution import Event


def test_a_fault_of_the_machine_is_one_line_without_the_log_that_it_names() -> None:
    """A killed training's log was printed with it, and its traceback looked like one of the command."""
    console = Console(file=io.StringIO(), width=400)
    with ProgressDisplay(load_preset("smoke"), 1, console) as display:
        display(Event("started", "train", "SQ", 1))
        display(
            Event("failed", "train", "SQ", 1, "ended with status 137; see /r/train.log\nTraceback (most recent call")
        )
    (line,) = console.file.getvalue().splitlines()
    assert "train     SQ  ended with status 137; see /r/train.log  0.0 s" in line


def test_what_fails_beside_the_stages_is_said_at_once_and_then_counted() -> None:
    said: list[str] = []
    calls, tracking = (logging.getLogger(name) for name in Troubles.SOURCES)
    with Troubles(said.append):
        for number in range(100):
            reason = "bad_request" if number != 4 else "quota"
            calls.warning("proposer for gen-01/slot-0: %s: no such field", reason, extra={"reason": reason})
        calls.info("asked otherwise")
        tracking.warning("tracking at http://x is behind")
    calls.warning("after the end")
    assert [line.partition(":")[2].partition(":")[0] for line in said] == [
        " the language model failed", " the language model failed for the 5th time", " the language model failed for the 6th time",
        " the language model failed for the 10th time", " the language model failed for the 20th time",
        *(f" the language model failed for the {number}th time" for number in range(30, 101, 10)), " MLflow is behind",
    ]  # fmt: skip
    assert "bad_request: no such field; it is asked again" in said[0]
    assert "quota" in said[1]
