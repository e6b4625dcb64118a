"""A user's own environment, named in a preset by its file: ``prompts.py:MyEnvironment``; selectors for replays are named alike.

The loader of presets appends a digest of the file, ``prompts.py:MyEnvironment#0123456789abcdef``, because the problems belong to
the protocol: a changed file makes another protocol.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class EnvironmentFile:
    """The file and the name of a class in it."""

    path: Path  # as it was given; a relative one starts at the working directory, as a policy's folder does
    class_name: str
    digest: str = ""  # 16 hex digits of SHA-256 over the file; empty before the file has been read

    @classmethod
    def parse(cls, name: str) -> EnvironmentFile | None:
        """Read ``FILE.py:CLASS`` or ``FILE.py:CLASS#DIGEST``; None for the name of a shipped environment."""
        found = re.fullmatch(r"(?P<path>.+):(?P<class>\w+)(?:#(?P<digest>[0-9a-f]*))?", name, re.DOTALL)
        if found is None:
            return None
        path, class_name, digest = found["path"], found["class"], found["digest"] or ""
        return cls(Path(path), class_name, digest) if path.endswith(".py") and class_name.isidentifier() else None

    @property
    def name(self) -> str:
        """Undo ``parse``."""
        return f"{self.path}:{self.class_name}" + (f"#{self.digest}" if self.digest else "")

    def instance(self, module: str) -> Any:
        """Import the file under a module's name and call its class without arguments.

        Raises:
            ValueError: the file or the class fails; the message is one line.
        """
        spec = importlib.util.spec_from_file_location(module, self.path.absolute())
        assert spec is not None
        assert spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        sys.modules[module] = loaded  # dataclasses look up their module there
        try:
            spec.loader.exec_module(loaded)
            return getattr(loaded, self.class_name)()
        except Exception as error:
            sys.modules.pop(module, None)
            raise ValueError(
                f"{self.path}: {self.class_name} cannot be made: {type(error).__name__}: {error}"
            ) from error

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
