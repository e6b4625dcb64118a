"""The storage of an archive's files, a folder on a disk or a prefix of an object store, which writes every file once.

On a disk, a file appears whole or not at all and never replaces another: it is written under a hidden name, synced, and
linked to its final name, which fails if that exists.

An object store has no rename, no link and no lock, and pyarrow cannot put an object on the condition that none exists. Names of
parts follow from their keys, and the following is therefore enough:

- A put is atomic, so a part is whole or absent, and every reader sees it once the put has returned.
- A writer looks first, and does not put a part that exists.
- A writer reads back after a put, so that of two concurrent writers the one whose part was replaced notices it.

Where two writers put the same part at the same time, the columns that are not compared (times, durations) are those of the later
one. An object store alone cannot detect two writers with *different* content for one key; ``Storage.claim`` prevents a second
run from writing into an archive.
"""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import pyarrow as pa
from pyarrow import fs

from poise_core.archive.errors import ArchiveError, ArchiveLocationError, ArchiveMissingError, ArchiveOwnedError
from poise_core.files import sync

SCHEMES = ("s3", "gs", "abfs", "abfss")
"""Object stores that pyarrow opens by URI."""

OWNER_FILE = "owner.txt"
_TEMPORARY = ".tmp-"
_STALE_SECONDS = 3600.0
_REQUESTS = 16  # at a time, where every removal is one
_CHUNK = 8 << 20


def open_storage(location: str | Path, filesystem: fs.FileSystem | None = None) -> Storage:
    """Return the storage for a folder's path, a URI, or a path within a pyarrow file system, without accessing it.

    Raises:
        ArchiveLocationError: the URI cannot be used.
    """
    if filesystem is not None:
        return ObjectStorage(str(location).rstrip("/"), filesystem)
    if isinstance(location, str) and "://" in location:
        check_location(location)
        if location.startswith("file://"):
            return DiskStorage(urlsplit(location).path)
        return ObjectStorage(location)
    return DiskStorage(location)


def check_location(location: str) -> None:
    """Refuse a URI that names no object store, or that holds a secret.

    Raises:
        ArchiveLocationError: the URI is one of these; the message is one line.
    """
    parts = urlsplit(location)
    if parts.scheme == "file" and parts.path:
        return
    if parts.scheme not in SCHEMES:
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise ArchiveLocationError(f"{_plain(location)}: not a folder or one of {known}, file://")
    if parts.password is not None or {"access_key", "secret_key"} & dict(parse_qsl(parts.query)).keys():
        raise ArchiveLocationError(
            f"{_plain(location)}: leave keys out of the URI; they are taken from the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or the store's own configuration"
        )
    if not parts.netloc or not parts.path.strip("/"):
        raise ArchiveLocationError(f"{_plain(location)}: name a bucket and a prefix, as in s3://bucket/runs/laptop")


def location_below(location: str, name: str) -> str:
    """Return the URI of a prefix below this one, with the same options."""
    parts = urlsplit(location)
    return urlunsplit((parts.scheme, parts.netloc, f"{parts.path.rstrip('/')}/{name}", parts.query, ""))


class Storage:
    """The files of one archive, ``<root>/<table>/<name>``."""

    local: bool
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

    def sweep(self, table: str, older_than: float = _STALE_SECONDS) -> None:
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
        files = ((info.base_name, info.size) for info in found if info.type == fs.FileType.File)
        return {name: size for name, size in files if not name.startswith(".")}

    def exists(self, table: str, name: str) -> bool:
        """Whether the file exists.

        Raises:
            ArchiveError: the file system does not answer.
        """
        try:
            return bool(self.filesystem.get_file_info(self.path(table, name)).type != fs.FileType.NotFound)
        except OSError as error:
            raise ArchiveError(f"{self.shown(table, name)}: cannot be looked up: {one_line(error)}") from error


class DiskStorage(Storage):
    """A folder on a disk."""

    local = True

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
        return _temporary(folder)

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

    def sweep(self, table: str, older_than: float = _STALE_SECONDS) -> None:
        """Remove hidden files that are older than this many seconds."""
        for path in (self._folder / table).glob(f"{_TEMPORARY}*"):
            try:
                if time.time() - path.stat().st_mtime >= older_than:
                    path.unlink()
            except FileNotFoundError:  # another process swept it
                continue


class ObjectStorage(Storage):
    """A prefix of an object store, or a path behind any other pyarrow file system.

    An interrupted put leaves nothing visible. Files above 5 MB are put in several requests, of which the store may keep
    the finished ones, invisibly; a lifecycle rule for incomplete uploads removes them.
    """

    local = False

    def __init__(self, location: str, filesystem: fs.FileSystem | None = None) -> None:
        self.location = location.rstrip("/")
        self._given = filesystem

    @cached_property
    def _opened(self) -> tuple[fs.FileSystem, str]:
        if self._given is not None:
            return self._given, self.location
        try:
            filesystem, root = fs.FileSystem.from_uri(_with_environment(self.location))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ArchiveError(f"{self.shown()}: cannot be opened: {one_line(error)}") from error
        return filesystem, root.rstrip("/")

    @property
    def filesystem(self) -> fs.FileSystem:
        """Return the store's file system, opened once with the keys of the environment.

        Raises:
            ArchiveError: the store cannot be reached.
        """
        return self._opened[0]

    def path(self, *parts: str) -> str:
        """See ``Storage.path``."""
        return "/".join(part for part in (self._opened[1], *parts) if part)

    def shown(self, *parts: str) -> str:
        """Return the URI without its options."""
        return "/".join(part for part in (_plain(self.location), *parts) if part)

    def _create(self, table: str, name: str, data: memoryview) -> bool:
        self._put(table, name, data)
        with self.filesystem.open_input_stream(self.path(table, name)) as stream:
            return bool(stream.read() == data)

    def _replace(self, table: str, name: str, data: memoryview) -> None:
        self._put(table, name, data)

    def _scratch_file(self, table: str) -> Path:
        return _temporary(Path(tempfile.gettempdir()))

    def _publish(self, scratch: Path, table: str, name: str) -> bool:
        if self.exists(table, name):
            return False
        with pa.memory_map(str(scratch)) as mapped:  # mapped, so that the file is not read into memory at once
            data = memoryview(mapped.read_buffer()).cast("B")
            self._put(table, name, data)
            with self.filesystem.open_input_stream(self.path(table, name)) as stream:
                pieces = (data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK))
                same = all(stream.read(len(piece)) == piece for piece in pieces) and not stream.read(1)
            data.release()
        return same

    def _remove(self, table: str, names: Iterable[str]) -> None:
        with ThreadPoolExecutor(_REQUESTS) as pool:
            for _ in pool.map(self._delete, (self.path(table, name) for name in names)):
                pass

    def _delete(self, path: str) -> None:
        try:
            self.filesystem.delete_file(path)
        except FileNotFoundError:  # another compaction removed it
            return

    def _put(self, table: str, name: str, data: memoryview) -> None:
        try:
            self._write(table, name, data)
        except FileNotFoundError:  # a file system with real folders; an object store needs none
            self.filesystem.create_dir(self.path(table), recursive=True)
            self._write(table, name, data)

    def _write(self, table: str, name: str, data: memoryview) -> None:
        with self.filesystem.open_output_stream(self.path(table, name)) as stream:
            for start in range(0, len(data), _CHUNK):
                stream.write(data[start : start + _CHUNK])


def one_line(error: BaseException) -> str:
    """Return the error's text without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def _plain(location: str) -> str:
    """Return a URI for messages, without its options and without the part before an ``@``."""
    if "://" not in location:
        return location
    parts = urlsplit(location)
    host = parts.netloc if parts.password is None else parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", "")).rstrip("/")


def _with_environment(location: str) -> str:
    """Return an S3 URI with the endpoint and the region of the environment, as AWS's own tools take them.

    Options in the URI take precedence. Small files are put in one request instead of three.
    """
    parts = urlsplit(location)
    if parts.scheme != "s3":
        return location
    query = dict(parse_qsl(parts.query))
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint and "endpoint_override" not in query:
        given = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}")
        query["endpoint_override"] = given.netloc
        query.setdefault("scheme", given.scheme)
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region or "endpoint_override" in query:
        query.setdefault("region", region or "us-east-1")
    query.setdefault("allow_delayed_open", "true")
    return urlunsplit(("s3", parts.netloc, parts.path, urlencode(query, quote_via=quote), ""))


def _write_temporary(folder: Path, data: memoryview) -> Path:
    """Write a synced file under a unique hidden name; nothing is left where writing fails."""
    temporary = _temporary(folder)
    try:
        temporary.write_bytes(data)
        sync(temporary)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _temporary(folder: Path) -> Path:
    """Return a hidden name that no other writer uses."""
    return folder / f"{_TEMPORARY}{os.getpid()}-{uuid.uuid4().hex}"


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
