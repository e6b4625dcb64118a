"""Early faults: failures of training that go back to the author of the candidate's file.

An early fault is of a kind that the file decides: it raised, its numbers were not finite, it took the memory or the time of the
whole training for its first steps, it behaved otherwise than in the gate, or its policy broke a health rule. And it happened
within the first steps of the first seed. A later failure, or one with a later seed, is a property of the algorithm: it is
measured and reflected on, not repaired.
A certain loss to the parent (``poise_core.evolution.health``) is no failure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from poise_core.failures import CandidateFailure, FailureKind

REPAIRABLE = frozenset(
    {
        FailureKind.CRASHED,
        FailureKind.DIVERGED,
        FailureKind.TIMED_OUT,
        FailureKind.OUT_OF_MEMORY,
        FailureKind.INCONSISTENT,
        FailureKind.KL_BLOWUP,
        FailureKind.ENTROPY_COLLAPSE,
        FailureKind.LENGTH_DRIFT,
        FailureKind.CLIP_SATURATION,
    }
)
"""Kinds of failure in training that go back to the author."""


def clear_fault(
    failure: CandidateFailure,
    trajectories: Mapping[int, Sequence[object]],
    *,
    first_seed: int,
    within_steps: int,
    training_steps: int,
) -> bool:
    """Whether the failure goes back to the author of the file.

    Args:
        failure: as recorded.
        trajectories: seed -> rows of the steps that were done before it, one per step.
        first_seed: the seed that is trained first.
        within_steps: the first steps that count as early.
        training_steps: of a whole training; a first seed that went through is no early failure, however short it is.
    """
    done = len(trajectories.get(first_seed, ()))
    alone = not any(rows for seed, rows in trajectories.items() if seed != first_seed)
    early = alone and done <= within_steps and done < training_steps
    return failure.stage == "train" and failure.kind in REPAIRABLE and early
