"""What can go wrong with an archive; every message is one line and names the file or the table."""

from __future__ import annotations

from poise_core.failures import InfrastructureError


class ArchiveError(InfrastructureError):
    """The archive cannot be read or written; what it holds was left as it is."""


class ArchiveMissingError(ArchiveError):
    """A file was listed and is gone: somebody took it away, or a compaction has put its rows elsewhere."""


class ArchiveConflictError(ArchiveError):
    """A row with the same key and other content is already there; the old one stays."""


class ArchiveRowError(ArchiveError, ValueError):
    """A row does not fit its table; nothing was written."""


class ArchiveLocationError(ArchiveError, ValueError):
    """What was given as the archive's place cannot be one; nothing was touched."""


class ArchiveOwnedError(ArchiveError):
    """The archive is another run's; nothing was written into it."""
