"""The live display of a running evolution: the running stages, and above them the results of those that have ended."""

from __future__ import annotations

import logging
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import ClassVar, Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from poise_core.config import Preset
from poise_core.escaping import one_line, without_credentials
from poise_core.evolution.events import Event
from poise_core.render import ViewConsole

_BAR = 16
_RECENT = 8
"""Steps over which the shown reward is averaged: one step of a small batch says little."""


@dataclass
class _Running:
    """One stage that has begun and not ended."""

    event: Event
    began: float
    seed: int | None = None
    steps: dict[int, int] = field(default_factory=dict)  # seed -> steps done
    rewards: list[float] = field(default_factory=list)


class Troubles(logging.Handler):
    """Says what fails beside the stages while it happens: calls of a language model, and pushes to MLflow.

    The first failure of each kind is a line that stays; so are the tenth, the hundredth and any with another reason than the last.
    """

    SOURCES: ClassVar[Mapping[str, tuple[str, str]]] = {
        "poise_core.agents.llm.call": (
            "the language model failed",
            "it is asked again where that may help; otherwise the catalogue and the rules work in its place",
        ),
        "poise_core.tracking.sync": ("MLflow is behind", "the run goes on, and the next push catches up"),
    }

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell
        self._counts: dict[str, int] = {}
        self._reasons: dict[str, str] = {}

    def __enter__(self) -> Self:
        for source in self.SOURCES:
            logging.getLogger(source).addHandler(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for source in self.SOURCES:
            logging.getLogger(source).removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Show a warning, or count it."""
        what, then = self.SOURCES[record.name]
        reason = str(getattr(record, "reason", "")) or record.getMessage()
        count = self._counts[record.name] = self._counts.get(record.name, 0) + 1
        known = self._reasons.get(record.name) == reason
        self._reasons[record.name] = reason
        if count == 1:
            self._tell(f"poise: {what}: {record.getMessage()}; {then}")
        elif not known or set(str(count)[1:]) == {"0"}:
            self._tell(f"poise: {what} for the {count}th time: {record.getMessage()}")


class ProgressDisplay:
    """An observer of ``poise_core.evolution.Evolution``; a context manager that draws while it is open.

    On a terminal one line per running stage is redrawn four times a second; elsewhere only what begins and ends is
    printed, a line each.
    """

    def __init__(self, preset: Preset, seeds: int, console: Console | None = None) -> None:
        self._console = console or ViewConsole(stderr=True)
        self._total = preset.protocol.training.steps * seeds
        self._lock = threading.Lock()
        self._running: dict[tuple[str, str], _Running] = {}
        self._began = time.monotonic()
        self._status = "starting"
        self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def say(self, status: str) -> None:
        """Set the text of the line below the stages."""
        self._status = status
        if not self._console.is_terminal:
            self._console.print(Text(status, "dim"))

    def note(self, line: str) -> None:
        """Print a line that stays."""
        self._console.print(Text(without_credentials(one_line(line))), soft_wrap=True)

    def __call__(self, event: Event) -> None:
        """Show an event; called from any thread."""
        key = (event.stage, event.subject)
        with self._lock:
            if event.kind == "started":
                self._running[key] = _Running(event, time.monotonic())
                return
            running = self._running.get(key)
            if event.kind == "step":
                if running is not None and event.seed is not None:
                    running.seed = event.seed
                    running.steps[event.seed] = int(event.row["step"]) + 1
                    running.rewards.append(event.row["reward_mean"])
                return
            self._running.pop(key, None)
        if event.kind == "failed" or event.message:  # what was finished before this process is not shown again
            self._console.print(self._line(event, running))

    def _line(self, event: Event, running: _Running | None) -> Text:
        seconds = time.monotonic() - running.began if running else 0.0
        style = "red" if event.kind == "failed" else "green"
        head = f"{_clock(time.monotonic() - self._began)}  {event.stage:<9} "
        message = event.message.partition("\n")[0]  # below it there may be the end of a log, which it names
        return Text.assemble(
            (head, "dim"), (event.subject, "bold"), "  ", (message, style), (f"  {seconds:.1f} s", "dim")
        )

    def _render(self) -> RenderableType:
        table = Table(box=None, pad_edge=False, show_header=False)
        with self._lock:
            for running in self._running.values():
                event = running.event
                elapsed = f"{time.monotonic() - running.began:.0f} s"
                table.add_row(event.stage, Text(event.subject, "bold"), self._training(running), Text(elapsed, "dim"))
        clock = _clock(time.monotonic() - self._began)
        table.add_row(Text(clock, "dim"), Text(self._status, "dim"), "", "")
        return table

    def _training(self, running: _Running) -> Text:
        if running.seed is None:
            return Text()
        done = sum(running.steps.values())
        filled = round(_BAR * min(1.0, done / self._total))
        reward = statistics.fmean(running.rewards[-_RECENT:])
        bar = "━" * filled + "╌" * (_BAR - filled)
        return Text.assemble(
            (bar, "cyan"), f" seed {running.seed} step {running.steps[running.seed]} reward {reward:.2f}"
        )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
