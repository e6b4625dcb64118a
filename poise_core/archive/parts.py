"""Part files: their names, and putting them where they belong exactly once.

A part's name is its keys, percent-encoded: ``part-<key>,<key>.parquet``. On a local disk a part appears whole or not at
all and never replaces another: it is written under a hidden name, synced, and linked to its own name, which fails if
that exists. On an object store the same part is a plain put of the same name, which is atomic there.
"""

from __future__ import annotations

import errno
import os
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from pyarrow import fs

from poise_core.archive.errors import ArchiveError, ArchiveRowError

SCHEMA_FILE = "schema.parquet"
_PREFIX, _SUFFIX, _TEMPORARY = "part-", ".parquet", ".tmp-"
_LONGEST_NAME = 240
_STALE_SECONDS = 3600.0


def encode_key(values: Sequence[Any], separator: str) -> str:
    """Key values as one text from which they can be told apart again."""
    return separator.join(quote(str(value), safe="") for value in values)


def part_name(values: Sequence[Any]) -> str:
    """File name of the part with these key values.

    Raises:
        ArchiveRowError: the name would be too long for a file system.
    """
    name = f"{_PREFIX}{encode_key(values, ',')}{_SUFFIX}"
    if len(name) > _LONGEST_NAME:
        raise ArchiveRowError(f"the key {encode_key(values, '/')} is too long for a file name; shorten it")
    return name


def part_values(name: str) -> tuple[str, ...] | None:
    """Key values, as text, of a part's file name; ``None`` for any other file."""
    if not (name.startswith(_PREFIX) and name.endswith(_SUFFIX)):
        return None
    return tuple(unquote(text) for text in name[len(_PREFIX) : -len(_SUFFIX)].split(","))


class PartStore:
    """The folder of one archive, on a local disk or behind a pyarrow file system."""

    def __init__(self, root: str | Path, filesystem: fs.FileSystem | None = None) -> None:
        self.local = filesystem is None
        self.root = str(Path(root).absolute()) if self.local else str(root).rstrip("/")
        self.filesystem = filesystem or fs.LocalFileSystem()

    def path(self, table: str, name: str = "") -> str:
        """Path of a table's folder or of a file in it."""
        return f"{self.root}/{table}/{name}" if name else f"{self.root}/{table}"

    def list(self, table: str) -> list[str]:
        """Sorted file names in the table's folder, hidden ones left out.

        Raises:
            ArchiveError: the folder is missing or cannot be read.
        """
        return sorted(self.sizes(table))

    def sizes(self, table: str) -> dict[str, int]:
        """The same files with their bytes.

        Raises:
            ArchiveError: the folder is missing or cannot be read.
        """
        try:
            found = self.filesystem.get_file_info(fs.FileSelector(self.path(table)))
        except FileNotFoundError:
            raise ArchiveError(
                f"{self.path(table)}: no such folder; this is not an archive, or it is incomplete"
            ) from None
        except OSError as error:
            raise ArchiveError(f"{self.path(table)}: cannot be listed: {one_line(error)}") from error
        files = ((info.base_name, info.size) for info in found if info.type == fs.FileType.File)
        return {name: size for name, size in files if not name.startswith(".")}

    def exists(self, table: str, name: str) -> bool:
        """Whether the file is there.

        Raises:
            ArchiveError: the file system does not answer.
        """
        try:
            return bool(self.filesystem.get_file_info(self.path(table, name)).type != fs.FileType.NotFound)
        except OSError as error:
            raise ArchiveError(f"{self.path(table, name)}: cannot be looked up: {one_line(error)}") from error

    def write_once(self, table: str, name: str, data: memoryview) -> bool:
        """Put the file there unless it exists; the folder is made where it is missing.

        Returns:
            Whether it was written; ``False`` if the file was there already, which is then left as it is.

        Raises:
            ArchiveError: it could not be written; no part of it is visible.
        """
        if self.exists(table, name):
            return False
        try:
            if self.local:
                return _write_local(Path(self.path(table)), name, data)
            self.filesystem.create_dir(self.path(table), recursive=True)
            with self.filesystem.open_output_stream(self.path(table, name)) as stream:
                stream.write(data)
            return True
        except OSError as error:
            raise ArchiveError(f"{self.path(table, name)}: not written: {one_line(error)}") from error

    def replace(self, table: str, name: str, data: memoryview) -> None:
        """Put a derived file there whatever was there before; readers see the old one or the new one, whole.

        Raises:
            ArchiveError: it could not be written; the old one stays.
        """
        try:
            if self.local:
                temporary = _write_temporary(Path(self.path(table)), data)
                try:
                    temporary.replace(self.path(table, name))
                finally:
                    temporary.unlink(missing_ok=True)
                return
            with self.filesystem.open_output_stream(self.path(table, name)) as stream:
                stream.write(data)
        except OSError as error:
            raise ArchiveError(f"{self.path(table, name)}: not written: {one_line(error)}") from error

    def sweep(self, table: str) -> None:
        """Remove what writers that were killed left behind; local disks only."""
        if not self.local:
            return
        for path in Path(self.path(table)).glob(f"{_TEMPORARY}*"):
            try:
                if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    path.unlink()
            except FileNotFoundError:  # another process swept it
                continue


def one_line(error: BaseException) -> str:
    """The error's text without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def _write_temporary(folder: Path, data: memoryview) -> Path:
    """A synced file under a hidden name of its own; nothing is left where writing fails."""
    temporary = folder / f"{_TEMPORARY}{os.getpid()}-{uuid.uuid4().hex}"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _write_local(folder: Path, name: str, data: memoryview) -> bool:
    folder.mkdir(parents=True, exist_ok=True)
    temporary = _write_temporary(folder, data)
    try:
        try:
            os.link(temporary, folder / name)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            if (folder / name).exists():  # a file system without links: rename cannot refuse, so look first
                return False
            temporary.rename(folder / name)
    finally:
        temporary.unlink(missing_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)  # the new name survives a power cut only when the folder is synced too
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return True
