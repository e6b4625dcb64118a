"""When a failed training is a clear fault of the candidate's file, which its author can mend.

Clear means two things. The kind is one that the file decides: it raised, its numbers left the finite ones, it took the memory
or the time of the whole training for its first steps, or the policy that it makes breaks a health rule. And it is early:
within the first steps of the first seed. What goes wrong later, or with a later seed when the first one went through, is what
the algorithm does; that is measured, reflected on, and not mended away. A certain loss to the parent is no failure at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from poise_core.failures import CandidateFailure, FailureKind

MENDABLE = frozenset(
    {
        FailureKind.CRASHED,
        FailureKind.DIVERGED,
        FailureKind.TIMED_OUT,
        FailureKind.OUT_OF_MEMORY,
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
    return failure.stage == "train" and failure.kind in MENDABLE and early
