"""Keeping keys out of everything that is sent, stored, logged or raised."""

from __future__ import annotations

import os
import re

_NAMES = re.compile(r"(?:^|_)(?:API)?(?:KEYS?|TOKENS?|SECRETS?|PASSWORD|PASSWD|PASS|CREDENTIALS?|AUTH)(?:$|_)", re.I)
_SHAPES = re.compile(
    r"\b(sk|pk|rk|xoxb|ghp|gho|hf|AIza)[-_][A-Za-z0-9_\-*]{8,}|(?<=Bearer )[A-Za-z0-9._\-]{8,}|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)
_SHORTEST = 8  # shorter values occur in ordinary text


def redact(text: str, *more: str) -> str:
    """The text with every secret of the environment, and whatever looks like a key, replaced by a mark.

    Args:
        text: anything on its way out of the process.
        *more: further values to hide, for example a key that was read from elsewhere.
    """
    # a path (to a file of credentials, to an agent's socket) is no secret
    held = [value for name, value in os.environ.items() if _NAMES.search(name) and not value.startswith("/")]
    for value in sorted({*held, *more}, key=len, reverse=True):
        if len(value) >= _SHORTEST:
            text = text.replace(value, "[secret]")
    return _SHAPES.sub("[secret]", text)
