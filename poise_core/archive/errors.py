"""Errors of an archive; every message is one line and names the file or the table."""

from __future__ import annotations

from poise_core.failures import InfrastructureError


class ArchiveError(InfrastructureError):
    """The archive cannot be read or written; its content was not changed."""


class ArchiveMissingError(ArchiveError):
    """A file was listed and no longer exists: it was deleted, or a compaction has moved its rows."""


class ArchiveConflictError(ArchiveError):
    """A row with the same key and other content exists already, and stays."""


class ArchiveRowError(ArchiveError, ValueError):
    """A row does not fit its table; nothing was written."""


class ArchiveLocationError(ArchiveError, ValueError):
    """The given location cannot be that of an archive; nothing was changed."""


class ArchiveOwnedError(ArchiveError):
    """The archive belongs to another run; nothing was written into it."""
