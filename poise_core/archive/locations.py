"""Where an archive lies: a folder, or the URI of a prefix of an object store."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from pyarrow import fs

from poise_core.archive.disk_storage import DiskStorage
from poise_core.archive.errors import ArchiveLocationError
from poise_core.archive.object_storage import SCHEMES, ObjectStorage, plain_location
from poise_core.archive.storage import Storage


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
        raise ArchiveLocationError(f"{plain_location(location)}: not a folder or one of {known}, file://")
    if parts.password is not None or {"access_key", "secret_key"} & dict(parse_qsl(parts.query)).keys():
        raise ArchiveLocationError(
            f"{plain_location(location)}: leave keys out of the URI; they are taken from the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or the store's own configuration"
        )
    if not parts.netloc or not parts.path.strip("/"):
        raise ArchiveLocationError(
            f"{plain_location(location)}: name a bucket and a prefix, as in s3://bucket/runs/laptop"
        )


def location_below(location: str, name: str) -> str:
    """Return the URI of a prefix below this one, with the same options."""
    parts = urlsplit(location)
    return urlunsplit((parts.scheme, parts.netloc, f"{parts.path.rstrip('/')}/{name}", parts.query, ""))
