"""The interface to the storage of an archive's files, which writes every file once.

``disk_storage`` is a folder on a disk, ``object_storage`` a prefix of an object store; ``locations`` opens either.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pyarrow import fs

from poise_core.archive.errors import ArchiveError, ArchiveMissingError, ArchiveOwnedError

OWNER_FILE = "owner.txt"
TEMPORARY = ".tmp-"
"""Begins the hidden names of files that are being written."""

STALE_SECONDS = 3600.0


class Storage:
    """The files of one archive, ``<root>/<table>/<name>``."""

    location: str  # opens the same storage again

    @property
    def filesystem(self) -> fs.FileSystem:
        """Return the file system through which Parquet files are read.

        Raises:
            ArchiveError: the store cannot be reached.
        """
        raise NotImplementedError

    def path(self, *parts: str) -> str:
        """Return the path of a table's folder, or of a file in it, within the file system."""
        raise NotImplementedError

    def shown(self, *parts: str) -> str:
        """Return the same path for messages."""
        return self.path(*parts)

    def write_once(self, table: str, name: str, data: memoryview) -> bool:
        """Write the file unless it exists; the folder is made where it is missing.

        Returns:
            Whether the file was written; ``False`` if it exists already, and then it stays unchanged.

        Raises:
            ArchiveError: the file could not be written; no part of it is visible.
        """
        if self.exists(table, name):
            return False
        try:
            return self._create(table, name, data)
        except OSError as error:
            raise ArchiveError(f"{self.shown(table, name)}: not written: {one_line(error)}") from error

    def replace(self, table: str, name: str, data: memoryview) -> None:
        """Write a derived file in place of an existing one; readers see the old file or the new one, whole.

        Raises:
            ArchiveError: the file could not be written; the old one stays.
        """
        try:
            self._replace(table, name, data)
        except OSError as error:
            raise ArchiveError(f"{self.shown(table, name)}: not written: {one_line(error)}") from error

    @contextmanager
    def scratch(self, table: str) -> Iterator[Path]:
        """Yield the path of a local file, to be written in the block and then published; the file is removed afterwards.

        Raises:
            ArchiveError: the disk is full, or fails.
        """
        try:
            temporary = self._scratch_file(table)
            try:
                yield temporary
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise ArchiveError(f"{self.shown(table)}: not written: {one_line(error)}") from error

    def publish_once(self, scratch: Path, table: str, name: str) -> bool:
        """Do the same as ``write_once``, for a file that may be too large for the memory.

        Raises:
            ArchiveError: the file could not be written.
        """
        try:
            return self._publish(scratch, table, name)
        except OSError as error:
            raise ArchiveError(f"{self.shown(table, name)}: not written: {one_line(error)}") from error

    def remove(self, table: str, names: Iterable[str]) -> None:
        """Remove files whose rows are in another file; files that no longer exist are ignored.

        Raises:
            ArchiveError: a file cannot be removed.
        """
        try:
            self._remove(table, names)
        except OSError as error:
            raise ArchiveError(f"{self.shown(table)}: cannot be tidied: {one_line(error)}") from error

    @contextmanager
    def compacting(self) -> Iterator[None]:
        """Hold the lock that allows one compaction at a time on a disk; an object store has no lock and needs none.

        Raises:
            ArchiveError: another process is compacting, or there is no such archive.
        """
        yield

    def _create(self, table: str, name: str, data: memoryview) -> bool:
        raise NotImplementedError

    def _replace(self, table: str, name: str, data: memoryview) -> None:
        raise NotImplementedError

    def _scratch_file(self, table: str) -> Path:
        raise NotImplementedError

    def _publish(self, scratch: Path, table: str, name: str) -> bool:
        raise NotImplementedError

    def _remove(self, table: str, names: Iterable[str]) -> None:
        raise NotImplementedError

    def sweep(self, table: str, older_than: float = STALE_SECONDS) -> None:
        """Remove the temporary files of writers that were killed at least this many seconds ago."""

    def claim(self, owner: str) -> None:
        """Record the owner of this archive, or check that the recorded one is the same; it may be called repeatedly.

        Raises:
            ArchiveOwnedError: another run owns the archive; the message names the owner and tells how to take it over.
        """
        self.write_once("", OWNER_FILE, memoryview(owner.encode()))
        try:
            with self.filesystem.open_input_stream(self.path("", OWNER_FILE)) as stream:
                found = stream.read().decode(errors="replace")
        except OSError as error:
            raise ArchiveError(f"{self.shown('', OWNER_FILE)}: not readable: {one_line(error)}") from error
        if found != owner:
            raise ArchiveOwnedError(
                f"{self.shown()}: belongs to {found.strip()}; take another prefix, or delete {OWNER_FILE} there to take it "
                "over once that run has ended for good"
            )

    def list(self, table: str) -> list[str]:
        """Return the sorted file names in the table's folder, without hidden ones.

        Raises:
            ArchiveError: the folder is missing or cannot be read.
        """
        return sorted(self.sizes(table))

    def sizes(self, table: str) -> dict[str, int]:
        """Return the same files with their sizes in bytes.

        Raises:
            ArchiveError: the folder is missing or cannot be read.
        """
        return {name: size for name, (size, _) in self.stamps(table).items()}

    def stamps(self, table: str) -> dict[str, tuple[int, int]]:
        """Return the same files with their sizes in bytes and when they were written, in nanoseconds since 1970.

        Raises:
            ArchiveError: the folder is missing or cannot be read.
        """
        try:
            # a table without compacted files has no such folder, which is no error
            selector = fs.FileSelector(self.path(table), allow_not_found="/" in table)
            found = self.filesystem.get_file_info(selector)
        except FileNotFoundError:
            raise ArchiveMissingError(
                f"{self.shown(table)}: no such folder; this is not an archive, or it is incomplete"
            ) from None
        except OSError as error:
            raise ArchiveError(f"{self.shown(table)}: cannot be listed: {one_line(error)}") from error
        files = ((info.base_name, (info.size, info.mtime_ns)) for info in found if info.type == fs.FileType.File)
        return {name: stamp for name, stamp in files if not name.startswith(".")}

    def exists(self, table: str, name: str) -> bool:
        """Whether the file exists.

        Raises:
            ArchiveError: the file system does not answer.
        """
        try:
            return bool(self.filesystem.get_file_info(self.path(table, name)).type != fs.FileType.NotFound)
        except OSError as error:
            raise ArchiveError(f"{self.shown(table, name)}: cannot be looked up: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """Return the error's text without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def temporary_name(folder: Path) -> Path:
    """Return a hidden name that no other writer uses."""
    return folder / f"{TEMPORARY}{os.getpid()}-{uuid.uuid4().hex}"
