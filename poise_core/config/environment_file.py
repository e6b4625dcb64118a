"""A user's own environment, named in a preset by its file: ``prompts.py:MyEnvironment``.

The loader of presets appends a digest of the file, ``prompts.py:MyEnvironment#0123456789abcdef``, because the problems belong to
the protocol: a changed file makes another protocol.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class EnvironmentFile:
    """The file and the name of an environment's class."""

    path: Path  # as it was given; a relative one starts at the working directory, as a policy's folder does
    class_name: str
    digest: str = ""  # 16 hex digits of SHA-256 over the file; empty before the file has been read

    @classmethod
    def parse(cls, name: str) -> EnvironmentFile | None:
        """Read ``FILE.py:CLASS`` or ``FILE.py:CLASS#DIGEST``; None for the name of a shipped environment."""
        reference, _, digest = name.partition("#")
        path, _, class_name = reference.rpartition(":")
        return cls(Path(path), class_name, digest) if path.endswith(".py") and class_name.isidentifier() else None

    @property
    def name(self) -> str:
        """Undo ``parse``."""
        return f"{self.path}:{self.class_name}" + (f"#{self.digest}" if self.digest else "")

    def present_digest(self) -> str:
        """Compute the digest of the file as it is now.

        Raises:
            OSError: the file cannot be read.
        """
        return hashlib.sha256(self.path.read_bytes()).hexdigest()[:16]


def pinned(name: str) -> str:
    """Return the name of an environment with the current digest of its file, or a shipped environment's name unchanged.

    Raises:
        OSError: the file cannot be read.
    """
    file = EnvironmentFile.parse(name)
    return EnvironmentFile(file.path, file.class_name, file.present_digest()).name if file else name
