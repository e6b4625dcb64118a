"""Types of failures: a fault of a candidate is evidence about it, a fault of the machine is not.

A ``CandidateFailure`` becomes a row of the archive's ``failures`` table and is never turned into a score. After an
``InfrastructureError`` the work is retried; if the error persists, the run stops and can be resumed.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Generic, TypeVar

from poise_core.escaping import printable


class FailureKind(StrEnum):
    """The kind of a failure, as stored in the archive."""

    REJECTED = "rejected"  # the admission gate refused it
    DUPLICATE = "duplicate"  # behaves as a candidate that is already archived
    CRASHED = "crashed"  # the candidate's code raised during training
    DIVERGED = "diverged"  # loss, gradient or parameters left the finite numbers
    TIMED_OUT = "timed_out"  # a limit on time was reached
    OUT_OF_MEMORY = "out_of_memory"  # a limit on memory was reached
    INCONSISTENT = "inconsistent"  # behaves in training otherwise than in the gate, see poise_core.training.behaviour
    # training stopped early, see poise_core.evolution.health
    KL_BLOWUP = "kl_blowup"  # the policy moved too far from the initial one
    ENTROPY_COLLAPSE = "entropy_collapse"  # the policy explores no more
    LENGTH_DRIFT = "length_drift"  # completions run into the limit, or far from the parent's length
    CLIP_SATURATION = "clip_saturation"  # most tokens are clipped, so updates have little effect
    NO_ANSWER = "no_answer"  # the language model gave no usable answer, and the preset names no replacement


def plain_name(text: str, most: int = 80) -> str:
    """The text as a name on one line, of at most ``most`` characters."""
    return " ".join(printable(text).split())[:most].strip() or "unnamed"


class CandidateFailure(Exception):
    """The candidate failed; ``message`` is one sentence, ``detail`` may hold a traceback or a report as JSON.

    Both may quote the candidate, so that neither keeps a character that is not for reading.
    """

    def __init__(self, kind: FailureKind, stage: str, message: str, detail: str = "") -> None:
        message, detail = printable(message), printable(detail)
        super().__init__(message)
        self.kind, self.stage, self.message, self.detail = kind, stage, message, detail

    def __reduce__(self) -> tuple[type, tuple[FailureKind, str, str, str]]:
        """Support pickling between processes."""
        return type(self), (self.kind, self.stage, self.message, self.detail)


class InfrastructureError(Exception):
    """Something outside the candidate failed (a process was killed, a disk is full), so the work is retried."""


_Kind = TypeVar("_Kind", bound=StrEnum)


class _TypedFault(InfrastructureError, Generic[_Kind]):
    """A fault of a part of the machine, of one of its kinds; the message is one line."""

    part = ""

    def __init__(self, kind: _Kind, message: str) -> None:
        super().__init__(f"{self.part}, {kind}: {message}")
        self.kind, self.message = kind, message

    def __reduce__(self) -> tuple[type, tuple[_Kind, str]]:
        """Support pickling between processes."""
        return type(self), (self.kind, self.message)


class FaultKind(StrEnum):
    """What is wrong with a sampler. None of it is a failure of the candidate that trains."""

    DIED = "died"  # its process has ended
    HUNG = "hung"  # its start or a rollout took longer than resources.sampler allows
    GARBAGE = "garbage"  # what it has loaded computes other numbers than the weights that were handed over
    OUT_OF_MEMORY = "out of memory"
    STALE = "stale"  # another version answered than the one that was asked
    DISK_FULL = "disk full"
    CORRUPT = "corrupt"  # a file has another checksum than its writer computed
    OTHER_ENGINE = "other engine"  # another version than the protocol names, or than this training began with
    SLOT_TAKEN = "slot taken"  # another training or evaluation has it
    NOT_INSTALLED = "not installed"


class SamplerFault(_TypedFault[FaultKind]):
    """The sampler failed, which is a fault of the machine; the message is one line."""

    part = "sampler"


class NodeFaultKind(StrEnum):
    """What is wrong with a node of a training over several. None of it is a failure of the candidate that trains."""

    MISSING = "missing"  # it has not reported in time
    WRONG_COUNT = "wrong count"  # the nodes do not agree on how many they are, or which
    NOT_SHARED = "not shared"  # a folder or file of the run is not there, or elsewhere
    DIED = "died"  # it has fallen silent, or its part has ended for a reason of its own
    NO_RENDEZVOUS = "no rendezvous"  # the processes of a training have not met in time
    REFUSED = "refused"  # it could not start its part


class NodeFault(_TypedFault[NodeFaultKind]):
    """A node of a training failed, which is a fault of the machine; the message is one line."""

    part = "nodes"


class Cancelled(Exception):
    """The user or the orchestrator asked to stop; finished work is kept and the run can be resumed."""
