"""What the display of a running evolution prints."""

import io

from rich.console import Console

from poise_core.cli.progress import ProgressDisplay
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
