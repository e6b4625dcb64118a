"""The order of the stages, one after the other in this process; ``flows/evolve.py`` gives the same order to Prefect.

A failure of a candidate ends the stages of that candidate only; every other exception ends the run.
"""

from __future__ import annotations

import contextlib

from poise_core.agents.roles import Reflection
from poise_core.evolution.evolution import Evolution
from poise_core.evolution.records import CandidateRef, ChildSlot
from poise_core.failures import CandidateFailure


def establish_baseline(evolution: Evolution) -> CandidateRef:
    """Measure what candidates are compared with: the policy before training, and the baseline algorithm."""
    evolution.measure_base_policy()
    baseline = evolution.verify_baseline(evolution.register_baseline())
    evolution.train(baseline)
    evolution.evaluate(baseline)
    evolution.reflect(baseline)
    return baseline


def generation(evolution: Evolution, number: int) -> list[Reflection]:
    """A child of every selected parent, measured as far as the ladder lets it."""
    slots = evolution.select_parents(number)
    children = [child for slot in slots if (child := admit(evolution, slot)) is not None]
    return [measure(evolution, child) for child in children]


def admit(evolution: Evolution, slot: ChildSlot) -> CandidateRef | None:
    """The child of a slot; None where no idea for it was admissible."""
    try:
        evolution.propose(slot)
        evolution.screen(slot)
        draft = evolution.implement(slot)
        return evolution.verify(slot, draft)
    except CandidateFailure:
        return None


def measure(evolution: Evolution, child: CandidateRef) -> Reflection:
    """Repair the child where its first steps show an early fault, train and score it rung by rung, and reflect on it."""
    with contextlib.suppress(CandidateFailure):
        version = repaired(evolution, child)
        for rung in evolution.rungs:
            evolution.train(version, rung)
            evolution.evaluate(version, rung)
    return evolution.reflect(child)


def repaired(evolution: Evolution, child: CandidateRef) -> CandidateRef:
    """The file to go on with once the first steps of training show no fault that its author could repair.

    Raises:
        CandidateFailure: it failed, and not of an early fault, or its repairs are used up.
    """
    version = child
    for _ in range(evolution.repair_rounds(child.generation)):
        with contextlib.suppress(CandidateFailure):
            evolution.train(version, evolution.rungs[0])
        version = evolution.repair(version)
    return version
