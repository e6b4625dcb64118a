"""Writing small files atomically, and reading files that an untrusted process wrote."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

UNTRUSTED_BYTES = 256 << 20

UNUSABLE_IN_PATHS = "?"
"""In the address of a SQLite database it ends the path, so that MLflow and Prefect would write elsewhere."""


class UntrustedFileError(Exception):
    """A file is not one that the program itself would have written; the message names the file and the difference."""


def expanded(path: str | Path) -> Path:
    """The path that a text means, with the user's home for a leading ``~``, which the shell replaces in some places only.

    What is a path already stays as it is: its ``~`` is a folder's name.
    """
    return Path(os.path.expanduser(path)) if isinstance(path, str) else path


def fault_of_place(folder: Path) -> str:
    """Why no run can live in this folder, whatever is there; "" where one can."""
    text = str(folder)
    for character in UNUSABLE_IN_PATHS:
        if character in text:
            return f"a run's path cannot hold {character!r}, at which addresses of databases end; give another name"
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        return "a run's path cannot hold a line end or another control character; give another name"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "a run's path has to be UTF-8; give another name"
    return ""


def write_atomically(path: Path, content: str | bytes, *, private: bool = False) -> None:
    """Write a temporary file, flush it to disk and rename it, so that the file is whole even if the process is killed.

    The folder is flushed too, so that files reach the disk in the order in which they were written, also at a power failure.

    Args:
        path: the file; an existing one is replaced, and a process that is reading it keeps the old content.
        content: text, written as UTF-8, or bytes.
        private: only the file's owner may read it.

    Raises:
        OSError: the file could not be written; the previous file stays, and no temporary file is left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        if private:
            temporary.unlink(missing_ok=True)
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's names, to the disk, so that they survive a power failure.

    Raises:
        OSError: the disk does not confirm it.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def open_untrusted(path: Path) -> TextIO:
    """Open a file that an untrusted process wrote, without following a link or blocking on a pipe.

    Only the last part of the path is checked; the untrusted process must not be able to replace the folder itself.

    Raises:
        FileNotFoundError: there is no such file.
        UntrustedFileError: it is a link, a folder, a pipe or a device.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UntrustedFileError(f"{path.name} is not a regular file ({error.strerror})") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UntrustedFileError(f"{path.name} is not a regular file")
    return os.fdopen(handle, encoding="utf-8", errors="replace")


def read_untrusted(path: Path, limit: int = UNTRUSTED_BYTES) -> str:
    """Read the text of a file that an untrusted process wrote.

    Raises:
        FileNotFoundError: there is no such file.
        UntrustedFileError: it is no regular file, or has more than ``limit`` bytes.
    """
    with open_untrusted(path) as stream:
        if os.fstat(stream.fileno()).st_size > limit:
            raise UntrustedFileError(f"{path.name} has more than {limit} bytes")
        return stream.read(limit)


def json_lines(text: str) -> Iterator[tuple[int, str]]:
    """Number and text of every line of JSONL that is not blank.

    Lines end at a newline alone: ``str.splitlines`` would also break at what JSON allows within a text, such as U+2028.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line


def require_plain_folder(folder: Path) -> None:
    """Refuse a folder that is missing or a link, or that holds anything but regular files.

    Raises:
        UntrustedFileError: the folder is one of these.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise UntrustedFileError(f"{folder.name} is not a folder")
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_file(follow_symlinks=False):
                raise UntrustedFileError(f"{folder.name}/{entry.name} is not a regular file")
