"""Storage under a prefix of an object store.

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

import os
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import pyarrow as pa
from pyarrow import fs

from poise_core.archive.errors import ArchiveError
from poise_core.archive.storage import Storage, one_line, temporary_name

SCHEMES = ("s3", "gs", "abfs", "abfss")
"""Object stores that pyarrow opens by URI."""

_REQUESTS = 16  # at a time, where every removal is one
_CHUNK = 8 << 20


class ObjectStorage(Storage):
    """A prefix of an object store, or a path behind any other pyarrow file system.

    An interrupted put leaves nothing visible. Files above 5 MB are put in several requests, of which the store may keep
    the finished ones, invisibly; a lifecycle rule for incomplete uploads removes them.
    """

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
        return "/".join(part for part in (plain_location(self.location), *parts) if part)

    def _create(self, table: str, name: str, data: memoryview) -> bool:
        self._put(table, name, data)
        with self.filesystem.open_input_stream(self.path(table, name)) as stream:
            return bool(stream.read() == data)

    def _replace(self, table: str, name: str, data: memoryview) -> None:
        self._put(table, name, data)

    def _scratch_file(self, table: str) -> Path:
        return temporary_name(Path(tempfile.gettempdir()))

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
        """Write an object, whole or not at all.

        Closing a stream publishes what it has got so far, also when an exception closes it. So nothing may be raised between its
        opening and its end: a thread of its own hears no Ctrl-C, and one that has begun is waited for. The executor waits for
        those threads only that it has seen begin, so the upload is not what its thread begins with.
        """

        def upload() -> None:
            with self.filesystem.open_output_stream(self.path(table, name)) as stream:
                stream.write(pa.py_buffer(data))

        with ThreadPoolExecutor(1) as thread:
            thread.submit(lambda: None).result()
            thread.submit(upload).result()


def plain_location(location: str) -> str:
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
