"""Small files that are either whole or absent, and files that a process which is not trusted has left."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from typing import TextIO

UNTRUSTED_BYTES = 256 << 20


class UntrustedFileError(Exception):
    """A file is not what an honest process writes; the message names it and says what it is."""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write beside the target, flush to disk, rename: a file that exists is whole, whatever was killed when.

    The folder is flushed too: what was written before another file is there if that one is, also after a power cut.

    Args:
        path: the file; one that is there is replaced, whoever reads it at that moment keeps the old one.
        content: text, written as UTF-8, or bytes.

    Raises:
        OSError: it could not be written; what was there before stays, and nothing is left beside it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Have a file's content, or a folder's names, on the disk when this returns: they survive a power cut then.

    Raises:
        OSError: the disk does not confirm it.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
