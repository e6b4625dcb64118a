"""A few completions of every training and evaluation that are kept to be read: which ones, and how long.

Light, because the archive reads and writes them without an environment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

KINDS = ("right", "wrong", "malformed", "longest")
"""Which completions are kept, at most one of each: solved, with an answer that is wrong, without one that parses, the longest."""

TRAINING = "training"
"""Stands where a benchmark has its name."""

PROMPT_CHARACTERS, COMPLETION_CHARACTERS = 800, 1600
"""Of a kept prompt and a kept completion, at most; of a longer one the beginning and the end."""


@dataclass(frozen=True, slots=True)
class KeptCompletion:
    """One completion that is kept to be read, with its verdict."""

    benchmark: str  # ``TRAINING`` in training
    step: int  # of the training; -1 in an evaluation
    kind: str  # of ``KINDS``
    prompt: str
    completion: str
    correctness: float
    format_valid: bool
    truncated: bool
    tokens: int


def kept_rows(correctness: Sequence[float], format_valid: Sequence[bool], lengths: Sequence[int]) -> dict[str, int]:
    """Kind -> row of the completion that is kept: the first of its kind, and the first of the longest."""
    found: dict[str, int] = {}
    for row, (score, valid) in enumerate(zip(correctness, format_valid, strict=True)):
        found.setdefault("malformed" if not valid else "right" if score > 0 else "wrong", row)
    if lengths:
        found["longest"] = max(range(len(lengths)), key=lambda row: (lengths[row], -row))
    return {kind: found[kind] for kind in KINDS if kind in found}


def cut(text: str, limit: int) -> str:
    """The text in at most about ``limit`` characters, encodable as UTF-8: of a longer one the beginning and the end."""
    text = text.encode("utf-8", "replace").decode()
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]} [... {len(text) - limit} characters left out ...] {text[-(limit - limit // 2) :]}"
