"""A user's own environment, named in a preset by its file: ``prompts.py:MyEnvironment``.

The preset's loader appends a digest of the file, ``prompts.py:MyEnvironment#0123456789abcdef``, as it fills in the digest of the
policy: the problems belong to the protocol, so a file that was changed makes another protocol.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class EnvironmentFile:
    """Where the class of an environment stands."""

    path: Path  # as it was given; a relative one starts at the working directory, as a policy's folder does
    class_name: str
    digest: str = ""  # 16 hex digits of SHA-256 over the file; empty where nobody has looked yet

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
        """The digest of the file as it is now.

        Raises:
            OSError: it cannot be read.
        """
        return hashlib.sha256(self.path.read_bytes()).hexdigest()[:16]


def pinned(name: str) -> str:
    """The name of an environment with the digest that its file has now; a shipped environment's name as it is.

    Raises:
        OSError: the file cannot be read.
    """
    file = EnvironmentFile.parse(name)
    return EnvironmentFile(file.path, file.class_name, file.present_digest()).name if file else name
