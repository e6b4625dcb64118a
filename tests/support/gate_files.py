"""Candidate files for tests of the gate's process."""

from __future__ import annotations

from pathlib import Path

from gate_fixtures import edited


def written(folder: Path, source: str) -> Path:
    """The source as a file."""
    path = folder / "child.py"
    path.write_text(source, encoding="utf-8")
    return path


FOREVER = edited(("    clipped = ratio", "    while True:\n        pass\n    clipped = ratio"))
