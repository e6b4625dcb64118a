"""How far each training is, as progress artifacts that the UI redraws: one per candidate and seed."""

from __future__ import annotations

import logging
import re
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from poise_core.escaping import markdown
from poise_core.evolution import Event

INTERVAL_SECONDS = 2.0

logger = logging.getLogger(__name__)


@dataclass
class _Bar:
    """One training of one seed."""

    label: str  # gen-03/VM-AV/seed-1
    flow_run: UUID | None
    task_run: UUID
    percent: float
    shown: float = -1.0
    artifact: UUID | None = None


class ProgressArtifacts:
    """An observer; artifacts are made and moved by a thread of its own, so that a slow server slows no training."""

    def __init__(self, steps: int) -> None:
        """``steps`` is the length of a whole training."""
        self._steps = steps
        self._bars: dict[tuple[UUID, str], _Bar] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join(2 * INTERVAL_SECONDS)

    def __call__(self, event: Event) -> None:
        """Record the step of a training, to be drawn later."""
        from prefect.context import TaskRunContext

        context = TaskRunContext.get()
        if event.kind != "step" or context is None:
            return
        label = f"gen-{event.generation:02d}/{event.subject}/seed-{event.seed}"
        run = context.task_run
        percent = 100.0 * (event.row["step"] + 1) / self._steps
        with self._lock:
            bar = self._bars.setdefault((run.id, label), _Bar(label, run.flow_run_id, run.id, percent))
            bar.percent = min(100.0, percent)
            if self._thread is None:
                self._thread = threading.Thread(target=self._draw, name="progress", daemon=True)
                self._thread.start()

    def _draw(self) -> None:
        while True:
            last = self._over.wait(INTERVAL_SECONDS)
            with self._lock:
                moved = [bar for bar in self._bars.values() if bar.percent != bar.shown]
            try:
                self._send(moved)
            except Exception as error:  # no fault of the server or the network may end a training
                logger.debug("progress is not shown: %s", error)
            if last:
                return

    @staticmethod
    def _send(bars: list[_Bar]) -> None:
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate

        if not bars:
            return
        with get_client(sync_client=True) as client:
            for bar in bars:
                percent = bar.percent
                if bar.artifact is None:
                    given: dict[str, Any] = {"flow_run_id": bar.flow_run, "task_run_id": bar.task_run}
                    key = artifact_key(bar.label)
                    new = ArtifactCreate(
                        key=key, type="progress", description=markdown(bar.label), data=percent, **given
                    )
                    bar.artifact = client.create_artifact(new).id
                else:
                    client.update_artifact(bar.artifact, ArtifactUpdate(data=percent))
                bar.shown = percent


def artifact_key(label: str) -> str:
    """The label in the characters that keys of artifacts may have."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
