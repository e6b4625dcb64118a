"""Signs of life between processes of several machines that share nothing but storage.

Who lives rewrites a file of its own, with a count that grows; who listens judges by its own clock whether it still does. So the
clocks of the machines need not agree, and a file that a dead process has left is no sign of life.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from poise_core.files import write_atomically

BEAT_SECONDS = 1.0


class Heartbeat:
    """A process's own file, which is written anew every second for as long as the process lives."""

    def __init__(self, path: Path, **state: Any) -> None:
        """Begin.

        Args:
            path: of the file, in a folder that is there.
            **state: what else stands in it, for JSON.
        """
        self._path, self._state, self._beat = path, state, 0
        self._lock, self._over = threading.Lock(), threading.Event()
        self.say()
        threading.Thread(target=self._go_on, daemon=True).start()

    def say(self, **changes: Any) -> None:
        """Change the state and write it."""
        self._write(changes, last=False)

    def _write(self, changes: Mapping[str, Any], *, last: bool) -> None:
        with self._lock:
            if self._over.is_set():
                return  # the file may be another's by now
            if last:
                self._over.set()
            self._state.update(changes)
            self._beat += 1
            with contextlib.suppress(OSError):  # whoever listens hears that nothing comes
                write_atomically(self._path, json.dumps({**self._state, "beat": self._beat}))

    def end(self, **changes: Any) -> None:
        """Write a last state."""
        self._write(changes, last=True)

    def _go_on(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            self.say()


class Listener:
    """The heartbeat of another process, listened to. What lay there before is no sign of life; the count must grow meanwhile."""

    def __init__(self, path: Path) -> None:
        self._path, self._beat = path, None
        self._since = time.monotonic()
        self.alive = False

    def hear(self) -> dict[str, Any]:
        """Return the state of the process; empty where it has not spoken since one listens."""
        document: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            document = json.loads(self._path.read_text(encoding="utf-8"))
        beat = document.get("beat")
        if beat is not None and beat != self._beat:
            self.alive = self.alive or self._beat is not None
            self._beat, self._since = beat, time.monotonic()
        return document if self.alive else {}

    @property
    def silent_seconds(self) -> float:
        """Seconds since the count has grown, or since one listens."""
        return time.monotonic() - self._since
