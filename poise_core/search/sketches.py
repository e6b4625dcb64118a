"""The behaviour sketch within a stored fingerprint, read without the library that made it.

``poise_core.verification.fingerprint`` writes ``<16 hex digits>.<base64 of 32 little-endian float32>``; a test compares
the two.
"""

from __future__ import annotations

import base64
import binascii

import numpy as np

NUMBERS = 32


def behaviour_sketch(fingerprint: str | None) -> tuple[float, ...]:
    """The sketch's 32 numbers, or nothing where the text holds none."""
    _, _, text = (fingerprint or "").partition(".")
    try:
        raw = base64.urlsafe_b64decode(text.encode())
    except (binascii.Error, ValueError):
        return ()
    return tuple(np.frombuffer(raw, "<f4").astype(float).tolist()) if len(raw) == 4 * NUMBERS else ()
