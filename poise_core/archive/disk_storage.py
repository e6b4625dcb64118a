"""Storage in a folder on a disk.

A file appears whole or not at all and never replaces another: it is written under a hidden name, synced, and linked to its
final name, which fails if that exists.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from pyarrow import fs

from poise_core.archive.errors import ArchiveError
from poise_core.archive.storage import STALE_SECONDS, TEMPORARY, Storage, temporary_name
from poise_core.files import sync


class DiskStorage(Storage):
    """A folder on a disk."""

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder).absolute()
        self.location = str(self._folder)

    @cached_property
    def filesystem(self) -> fs.FileSystem:
        """The local one."""
        return fs.LocalFileSystem()

    def path(self, *parts: str) -> str:
        """See ``Storage.path``."""
        return str(self._folder.joinpath(*parts))

    def _create(self, table: str, name: str, data: memoryview) -> bool:
        folder = self._folder / table
        folder.mkdir(parents=True, exist_ok=True)
        temporary = _write_temporary(folder, data)
        try:
            return _link(temporary, folder / name)
        finally:
            temporary.unlink(missing_ok=True)

    def _replace(self, table: str, name: str, data: memoryview) -> None:
        temporary = _write_temporary(self._folder / table, data)
        try:
            os.replace(temporary, self.path(table, name))
        finally:
            temporary.unlink(missing_ok=True)

    def _scratch_file(self, table: str) -> Path:
        folder = self._folder / table
        folder.mkdir(parents=True, exist_ok=True)
        return temporary_name(folder)

    def _publish(self, scratch: Path, table: str, name: str) -> bool:
        sync(scratch)
        written = _link(scratch, self._folder / table / name)
        sync((self._folder / table).parent)  # the folder itself may be new
        return written

    def _remove(self, table: str, names: Iterable[str]) -> None:
        for name in names:
            (self._folder / table / name).unlink(missing_ok=True)

    @contextmanager
    def compacting(self) -> Iterator[None]:
        """Hold a lock on the archive's folder, which the system releases when the process ends, and which needs no file."""
        try:
            handle = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise ArchiveError(f"{self.shown()}: no archive there: {error.strerror}") from None
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ArchiveError(f"{self.shown()}: another process is compacting it; wait for that one") from None
            yield
        finally:
            os.close(handle)

    def sweep(self, table: str, older_than: float = STALE_SECONDS) -> None:
        """Remove hidden files that are older than this many seconds."""
        for path in (self._folder / table).glob(f"{TEMPORARY}*"):
            try:
                if time.time() - path.stat().st_mtime >= older_than:
                    path.unlink()
            except FileNotFoundError:  # another process swept it
                continue


def _write_temporary(folder: Path, data: memoryview) -> Path:
    """Write a synced file under a unique hidden name; nothing is left where writing fails."""
    temporary = temporary_name(folder)
    try:
        temporary.write_bytes(data)
        sync(temporary)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _link(temporary: Path, target: Path) -> bool:
    """Give a synced file its final name; return False if the name is taken."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        if target.exists():  # on a file system without links, rename would replace the file
            return False
        temporary.rename(target)
    sync(target.parent)
    return True
