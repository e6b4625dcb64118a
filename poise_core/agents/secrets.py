"""Keeping keys out of everything that is sent, stored, logged or raised."""

from __future__ import annotations

import os
import re

_NAMES = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|AUTH", re.IGNORECASE)
_SHAPES = re.compile(r"\b(sk|pk|rk|xoxb|ghp|gho|hf|AIza)[-_][A-Za-z0-9_\-*]{8,}|(?<=Bearer )[A-Za-z0-9._\-]{8,}")
_SHORTEST = 8  # shorter values occur in ordinary text


def redact(text: str, *more: str) -> str:
    """The text with every secret of the environment, and whatever looks like a key, replaced by a mark.

    Args:
        text: anything on its way out of the process.
        *more: further values to hide, for example a key that was read from elsewhere.
    """
    held = [value for name, value in os.environ.items() if _NAMES.search(name)]
    for value in sorted({*held, *more}, key=len, reverse=True):
        if len(value) >= _SHORTEST:
            text = text.replace(value, "[secret]")
    return _SHAPES.sub("[secret]", text)
