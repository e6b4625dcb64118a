"""Failures by type: what a candidate did wrong is evidence, what the machine did wrong is not.

A ``CandidateFailure`` becomes a row of the archive's ``failures`` table and is never turned into a score. An
``InfrastructureError`` belongs to nobody: it is retried, and if it persists the run stops and can be resumed.
"""

from __future__ import annotations

import unicodedata
from enum import StrEnum


class FailureKind(StrEnum):
    """What went wrong, as stored in the archive."""

    REJECTED = "rejected"  # the admission gate said no
    DUPLICATE = "duplicate"  # behaves as a candidate that is already archived
    CRASHED = "crashed"  # the candidate's code raised during training
    DIVERGED = "diverged"  # loss, gradient or parameters left the finite numbers
    TIMED_OUT = "timed_out"  # a limit on time was reached
    OUT_OF_MEMORY = "out_of_memory"  # a limit on memory was reached
    # training stopped early, see poise_core.evolution.health
    KL_BLOWUP = "kl_blowup"  # the policy left the initial one behind
    ENTROPY_COLLAPSE = "entropy_collapse"  # nothing is explored any more
    LENGTH_DRIFT = "length_drift"  # completions run into the limit, or far from the parent's length
    CLIP_SATURATION = "clip_saturation"  # most tokens are clipped: updates are thrown away
    NO_ANSWER = "no_answer"  # the language model gave nothing usable, and the preset lets nobody else answer


_UNPRINTABLE = ("Cc", "Cf", "Cs")  # control characters, invisible formats, halves of surrogate pairs


def printable(text: str) -> str:
    """The text with U+FFFD for each character that an archive refuses or a terminal obeys; ends of lines and tabs stay."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in _UNPRINTABLE else "\ufffd" for c in text)


class CandidateFailure(Exception):
    """The candidate failed; ``message`` is one sentence, ``detail`` may hold a traceback or a report as JSON.

    Both may quote the candidate, so that neither keeps a character that is not for reading.
    """

    def __init__(self, kind: FailureKind, stage: str, message: str, detail: str = "") -> None:
        message, detail = printable(message), printable(detail)
        super().__init__(message)
        self.kind, self.stage, self.message, self.detail = kind, stage, message, detail

    def __reduce__(self) -> tuple[type, tuple[FailureKind, str, str, str]]:
        """Survive pickling between processes."""
        return type(self), (self.kind, self.stage, self.message, self.detail)


class InfrastructureError(Exception):
    """Something outside the candidate failed (a process was killed, a disk is full); worth a retry."""


class Cancelled(Exception):
    """The user or the orchestrator asked to stop; finished work is kept and the run can be resumed."""
