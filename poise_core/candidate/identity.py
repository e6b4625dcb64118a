"""The identity of a candidate's text; kept apart from the loader so that naming a candidate needs no torch."""

from __future__ import annotations

import hashlib


def source_digest(source: str) -> str:
    """Hex digest that names a candidate's text; line endings and trailing blanks do not count."""
    normalized = "\n".join(line.rstrip() for line in source.strip().splitlines()) + "\n"
    return hashlib.sha256(normalized.encode("utf-8", "replace")).hexdigest()
