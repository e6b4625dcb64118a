"""Where an archive's files lie: a folder on a disk, or a prefix of an object store; and how each puts a file once.

On a disk a file appears whole or not at all and never replaces another: it is written under a hidden name, synced, and
linked to its own name, which fails if that exists.

An object store has no rename, no link and no lock, and pyarrow gives no way to put an object only where there is none. What it
does have is enough, because a part's name follows from its keys and its content from what it is about: a put is atomic, so a
part is whole or absent; it is visible to everybody when it has returned; a writer looks first and does not put again what
is there; and whoever has put reads back, so that of two who put side by side the one that lost learns of it. What remains: of two
writers that put the same part in the same moment the later one's columns that are not compared (times, durations) stay. Two
writers with *different* content for one key cannot be told apart by an object store alone; that no second run writes
into an archive is kept by ``Storage.claim``.
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
    """The storage of a folder's path, of a URI, or of a path behind a pyarrow file system; nothing is touched yet.

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
        ArchiveLocationError: so it is; one line.
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
    """The URI of a prefix below this one, with the same options."""
    parts = urlsplit(location)
    return urlunsplit((parts.scheme, parts.netloc, f"{parts.path.rstrip('/')}/{name}", parts.query, ""))


class Storage:
    """Files of one archive: ``<root>/<table>/<name>``."""

    local: bool
    location: str  # what opens the same storage again

    @property
    def filesystem(self) -> fs.FileSystem:
        """What Parquet files are read through.

        Raises:
            ArchiveError: the store cannot be reached.
        """
        raise NotImplementedError

    def path(self, *parts: str) -> str:
        """Path within the file system of a table's folder or of a file in it."""
        raise NotImplementedError

    def shown(self, *parts: str) -> str:
        """The same for people."""
        return self.path(*parts)

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
            return self._create(table, name, data)
        except OSError as error:
            raise ArchiveError(f"{self.shown(table, name)}: not written: {one_line(error)}") from error

    def replace(self, table: str, name: str, data: memoryview) -> None:
        """Put a derived file there whatever was there before; readers see the old one or the new one, whole.

        Raises:
            ArchiveError: it could not be written; the old one stays.
        """
        try:
            self._replace(table, name, data)
        except OSError as error:
            raise ArchiveError(f"{self.shown(table, name)}: not written: {one_line(error)}") from error

    @contextmanager
    def scratch(self, table: str) -> Iterator[Path]:
        """A local file, to be made in the block and then published; gone after it.

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
        """As ``write_once``, for a file that may be too large for the memory.

        Raises:
            ArchiveError: it could not be put there.
        """
        try:
            return self._publish(scratch, table, name)
        except OSError as error:
            raise ArchiveError(f"{self.shown(table, name)}: not written: {one_line(error)}") from error

    def remove(self, table: str, names: Iterable[str]) -> None:
        """Remove files whose rows lie elsewhere; one that is gone already is no matter.

        Raises:
            ArchiveError: one cannot be removed.
        """
        try:
            self._remove(table, names)
        except OSError as error:
            raise ArchiveError(f"{self.shown(table)}: cannot be tidied: {one_line(error)}") from error

    @contextmanager
    def compacting(self) -> Iterator[None]:
        """Held by the one compaction at a time that a disk allows; an object store has no lock and needs none.

        Raises:
            ArchiveError: another process is at it, or there is no such archive.
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
        """Remove what writers that were killed this many seconds ago left behind."""

    def claim(self, owner: str) -> None:
        """Write down whose archive this is, or find that it is the owner's; harmless when repeated.

        Raises:
            ArchiveOwnedError: it is another's; the message says whose and how to take it over.
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
            # a table without compacted files has no folder of that name, and that is no fault
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
        """Whether the file is there.

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
        """A lock on the archive's folder, which the system gives back however the process ends; it leaves no file."""
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

    A put that was cut off leaves nothing that can be seen. Where it had begun in pieces, as those above 5 MB do, the store
    may keep the pieces, out of sight; a lifecycle rule for incomplete uploads removes them.
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
        """The store, reached with the keys of the environment; opened once.

        Raises:
            ArchiveError: it cannot be reached.
        """
        return self._opened[0]

    def path(self, *parts: str) -> str:
        """See ``Storage.path``."""
        return "/".join(part for part in (self._opened[1], *parts) if part)

    def shown(self, *parts: str) -> str:
        """The URI without its options."""
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
        with pa.memory_map(str(scratch)) as mapped:  # what is sent is taken from the file, piece by piece
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
    """The error's text without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def _plain(location: str) -> str:
    """A URI without its options and whatever stands before an ``@``, for messages."""
    if "://" not in location:
        return location
    parts = urlsplit(location)
    host = parts.netloc if parts.password is None else parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", "")).rstrip("/")


def _with_environment(location: str) -> str:
    """The URI of S3 with the endpoint and the region of the environment, as AWS's own tools take them.

    What stands in the URI counts more. Small files are put in one request instead of three.
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
    """A synced file under a hidden name of its own; nothing is left where writing fails."""
    temporary = _temporary(folder)
    try:
        temporary.write_bytes(data)
        sync(temporary)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _temporary(folder: Path) -> Path:
    """A hidden name that no other writer has."""
    return folder / f"{_TEMPORARY}{os.getpid()}-{uuid.uuid4().hex}"


def _link(temporary: Path, target: Path) -> bool:
    """Give a synced file its name, for good; False if the name is taken."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        if target.exists():  # a file system without links: rename cannot refuse, so look first
            return False
        temporary.rename(target)
    sync(target.parent)
    return True
