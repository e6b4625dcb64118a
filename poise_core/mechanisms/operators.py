"""Variation of compositions: mutation, crossover and random sampling, all seeded and all free of conflicts.

A change that conflicts with the rest is repaired by the smallest step that leaves the changed slots alone (a neutral choice,
or the one that the change needs); the description names repairs too.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from poise_core.mechanisms.catalogue import CORE_SLOTS, SLOTS
from poise_core.mechanisms.composition import Composition, changed_slots
from poise_core.mechanisms.conflicts import conflicts
from poise_core.mechanisms.model import Choice

NUMBER_SHARE = 0.2  # of mutations change a number instead of a choice, where the choice has one
_TRIES = 500


class Variation(NamedTuple):
    """A new composition and the sentence that says how it differs."""

    composition: Composition
    change: str


def mutate(
    composition: Composition,
    rng: random.Random,
    strength: int = 1,
    *,
    slot_weights: Mapping[str, float] | None = None,
    choice_weights: Mapping[tuple[str, str], float] | None = None,
) -> Variation:
    """Answer ``strength`` slots differently (a repair may touch one more).

    Args:
        composition: the parent.
        rng: source of all randomness.
        strength: number of slots, 1 to 4.
        slot_weights: relative chance of each slot, 1 where not given.
        choice_weights: relative chance of a (slot, choice), 1 where not given.

    Raises:
        ValueError: ``strength`` is not 1 to 4, or the weights leave no possible change.
    """
    if not 1 <= strength <= 4:
        raise ValueError(f"strength is {strength}; use 1 to 4")
    for _ in range(_TRIES):
        slots = _weighted_sample(list(SLOTS), strength, slot_weights or {}, rng)
        changed = composition
        for slot in slots:
            changed = _change(changed, slot, rng, choice_weights or {})
        child = _repair(changed, slots)
        if child is not None and set(slots) <= set(changed_slots(composition, child)):
            return Variation(child, describe_change(composition, child))
    raise ValueError("the weights leave no change without a conflict")


def crossover(parent: Composition, reference: Composition, rng: random.Random, most: int = 3) -> Variation | None:
    """The parent with 1 to ``most`` slots taken from ``reference``, numbers included; None where nothing can be taken."""
    differing = changed_slots(parent, reference)
    if not differing:
        return None
    for _ in range(_TRIES):
        slots = rng.sample(differing, rng.randint(1, min(most, len(differing))))
        numbers = {name: value for slot in slots for name, value in reference.numbers(slot).items()}
        taken = parent.with_choices({slot: reference.choices[slot] for slot in slots}, numbers)
        child = _repair(taken, slots)
        if child is not None and child not in (parent, reference):
            return Variation(child, describe_change(parent, child))
    return None


def random_composition(rng: random.Random) -> Composition:
    """Core slots uniformly; every other slot neutral with probability 1/2, else uniformly; numbers from their grids."""
    while True:
        choices, numbers = {}, {}
        for name, slot in SLOTS.items():
            neutral = name not in CORE_SLOTS and rng.random() < 0.5
            choice = slot.neutral if neutral else rng.choice(slot.choices)
            choices[name] = choice.name
            numbers.update(_draw_numbers(choice, rng))
        composition = Composition(choices=choices, parameters=numbers)
        if not conflicts(composition):
            return composition


def describe_change(before: Composition, after: Composition) -> str:
    """For example ``scale: group_std(std_eps=0.0001) -> none; clip: symmetric -> higher``."""
    parts = []
    for slot in changed_slots(before, after):
        old, new = (one.describe(slot).partition("=")[2] for one in (before, after))
        parts.append(f"{slot}: {old} -> {new}")
    return "; ".join(parts) or "nothing"


def _change(
    composition: Composition, slot: str, rng: random.Random, weights: Mapping[tuple[str, str], float]
) -> Composition:
    current = composition.choice(slot)
    movable = [parameter for parameter in current.parameters if len(parameter.grid) > 1]
    if movable and rng.random() < NUMBER_SHARE:
        parameter = rng.choice(movable)
        others = [value for value in parameter.grid if value != composition.parameters[parameter.name]]
        numbers = {**composition.numbers(slot), parameter.name: rng.choice(others)}
        return composition.with_choices({slot: current.name}, numbers)
    others_here = [choice for choice in SLOTS[slot].choices if choice.name != current.name]
    chances = [weights.get((slot, choice.name), 1.0) for choice in others_here]
    if not sum(chances):
        return composition
    chosen = rng.choices(others_here, chances)[0]
    return composition.with_choices({slot: chosen.name}, _draw_numbers(chosen, rng))


def _draw_numbers(choice: Choice, rng: random.Random) -> dict[str, float]:
    return {parameter.name: rng.choice(parameter.grid) for parameter in choice.parameters}


def _weighted_sample(names: list[str], count: int, weights: Mapping[str, float], rng: random.Random) -> list[str]:
    """``count`` different names, drawn one after the other with the given relative chances."""
    remaining, drawn = list(names), []
    for _ in range(count):
        chances = [weights.get(name, 1.0) for name in remaining]
        if not sum(chances):
            raise ValueError("every slot has weight 0")
        name = rng.choices(remaining, chances)[0]
        remaining.remove(name)
        drawn.append(name)
    return drawn


def _repair(composition: Composition, fixed: Sequence[str]) -> Composition | None:
    """The composition without conflicts, with the ``fixed`` slots as they are; None where that takes too much."""
    for _ in range(3):
        found = conflicts(composition)
        if not found:
            return composition
        neutral = [(slot, SLOTS[slot].neutral.name) for slot in found[0].slots]
        steps = [
            (slot, choice)
            for slot, choice in (*found[0].remedies, *neutral)
            if slot not in fixed and composition.choices[slot] != choice
        ]
        if not steps:
            return None
        composition = composition.with_choices(dict(steps[:1]))
    return None if conflicts(composition) else composition
