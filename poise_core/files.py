"""Small files that are either whole or absent, and files that a process which is not trusted has left."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TextIO

UNTRUSTED_BYTES = 256 << 20


class UntrustedFileError(Exception):
    """A file is not what an honest process writes; the message names it and says what it is."""


def write_atomically(path: Path, text: str) -> None:
    """Write beside the target, flush to disk, rename: a file that exists is whole, whatever was killed when.

    The folder is flushed too: what was written before another file is there if that one is, also after a power cut.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def open_untrusted(path: Path) -> TextIO:
    """Open a file in a folder that a confined process may write: never a link out of it, and nothing that would wait.

    Only the last part of the path is looked at; the folder itself must be out of that process's reach.

    Raises:
        FileNotFoundError: there is none.
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
    """The text of such a file.

    Raises:
        FileNotFoundError: there is none.
        UntrustedFileError: it is no regular file, or has more than ``limit`` bytes.
    """
    with open_untrusted(path) as stream:
        if os.fstat(stream.fileno()).st_size > limit:
            raise UntrustedFileError(f"{path.name} has more than {limit} bytes")
        return stream.read(limit)


def require_plain_folder(folder: Path) -> None:
    """Refuse a folder that is missing or a link, or that holds anything but regular files.

    Raises:
        UntrustedFileError: so it is.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise UntrustedFileError(f"{folder.name} is not a folder")
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_file(follow_symlinks=False):
                raise UntrustedFileError(f"{folder.name}/{entry.name} is not a regular file")
