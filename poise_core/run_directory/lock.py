"""Locks on folders of a run."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from pathlib import Path

from poise_core.run_directory.records import RunDirectoryError


class LockedError(RunDirectoryError):
    """Another process has the lock; the message names it."""


class Lock:
    """An exclusive flock, which the system releases when the process ends."""

    def __init__(self, path: Path) -> None:
        """Take the lock, and write who has it.

        Raises:
            LockedError: another process has it.
            RunDirectoryError: the file cannot be written.
        """
        self._file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise LockedError(
                f"{path.parent}: in use by {holder}; wait for it, end it, or take another directory"
            ) from None
        try:
            self._file.seek(0)
            self._file.truncate()
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            self._file.flush()
        except OSError as error:  # a full disk; whoever keeps the error must not keep the lock with it
            with contextlib.suppress(OSError):
                self._file.close()
            raise RunDirectoryError(f"{path}: cannot be used: {error.strerror or error}") from error
        # a forked child shares the lock and would hold it after this process's end
        os.register_at_fork(after_in_child=self._file.close)

    def release(self) -> None:
        """Release the lock."""
        self._file.close()
