"""Variation of compositions: mutation of choices and of numbers, crossover and random sampling, all seeded and free of conflicts.

Numbers move on a log scale within the span that the catalogue states for each, rounded to two digits. A composition with the same
choices and other numbers is another candidate.
A change that conflicts with the rest is repaired by the smallest step that leaves the changed slots alone (a neutral choice,
or the one that the change needs); the description names repairs too.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from poise_core.mechanisms.catalogue import CORE_SLOTS, SLOTS
from poise_core.mechanisms.composition import Composition, changed_slots, differ
from poise_core.mechanisms.conflicts import choice_conflicts, conflicts, number_conflicts
from poise_core.mechanisms.model import Choice, Parameter

NUMBER_SHARE = 0.2  # of mutations change a number instead of a choice, where the choice has one
BLEND_SHARE = 0.5  # of crossovers mix a number that both parents have, instead of taking it over
LEAST_FACTOR, LARGEST_FACTOR = 1.25, 4.0  # by which a mutation moves a number
_TRIES = 500


class Variation(NamedTuple):
    """A new composition, and the one from which it was made."""

    composition: Composition
    origin: Composition

    @property
    def change(self) -> str:
        """The sentence that says how it differs, see ``describe_change``."""
        return describe_change(self.origin, self.composition)


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
        choices, numbers = {}, dict[str, float]()
        for slot in slots:
            choices[slot], own = _change(composition, slot, rng, choice_weights or {})
            numbers |= own
        child = _repair(composition.with_choices(choices, numbers), slots)
        if child is not None and all(differ(composition, child, slot) for slot in slots):
            return Variation(child, composition)
    raise ValueError("the weights leave no change without a conflict")


def mutate_numbers(
    composition: Composition, rng: random.Random, most: int = 2, *, slot_weights: Mapping[str, float] | None = None
) -> Variation | None:
    """The same choices with 1 to ``most`` numbers moved by ``LEAST_FACTOR`` to ``LARGEST_FACTOR``; None where none can be.

    Args:
        composition: the parent.
        rng: source of all randomness.
        most: numbers that are moved at once.
        slot_weights: relative chance of the numbers of each slot, 1 where not given.
    """
    weights = slot_weights or {}
    found = {
        p.name: (p, weights.get(slot, 1.0)) for slot in SLOTS for p in composition.choice(slot).parameters if p.movable
    }
    chances = {name: weight for name, (_, weight) in found.items() if weight > 0}
    if not chances:
        return None
    for _ in range(_TRIES):
        names = _weighted_sample(list(chances), rng.randint(1, min(most, len(chances))), chances, rng)
        moved = {name: _moved(found[name][0], composition.parameters[name], rng) for name in names}
        child = composition.with_choices({}, moved)
        if child != composition and not conflicts(child):
            return Variation(child, composition)
    return None


def random_numbers(
    composition: Composition, rng: random.Random, *, optional: Mapping[str, str] | None = None
) -> Variation:
    """The same algorithm with random numbers: what tuning by random search tries.

    Args:
        composition: the algorithm.
        rng: source of all randomness.
        optional: slot -> the choice that a coin adds to it or takes from it, such as an entropy bonus; other choices there stay.
    """
    while True:
        choices = dict(composition.choices)
        for slot, choice in (optional or {}).items():
            if choices[slot] in (choice, SLOTS[slot].neutral.name):
                choices[slot] = rng.choice((choice, SLOTS[slot].neutral.name))
        numbers: dict[str, float] = {}
        for slot in SLOTS:
            numbers.update(_draw_numbers(SLOTS[slot].choice(choices[slot]), rng))
        child = Composition(choices=choices, parameters=numbers)
        if not conflicts(child):
            return Variation(child, composition)


def crossover(parent: Composition, reference: Composition, rng: random.Random, most: int = 3) -> Variation | None:
    """The parent with 1 to ``most`` slots taken from ``reference``, numbers included; None where nothing can be taken.

    Numbers of a slot that both answer alike are taken over, or mixed: their geometric mean, in ``BLEND_SHARE`` of the cases.
    """
    differing = changed_slots(parent, reference)
    if not differing or (len(differing) == 1 and parent.choices[differing[0]] != reference.choices[differing[0]]):
        return None  # all that could be taken is the reference itself
    for _ in range(_TRIES):
        slots = rng.sample(differing, rng.randint(1, min(most, len(differing))))
        numbers = {name: value for slot in slots for name, value in reference.numbers(slot).items()}
        if rng.random() < BLEND_SHARE:
            alike = [slot for slot in slots if parent.choices[slot] == reference.choices[slot]]
            numbers |= {
                name: _between(parent.parameters[name], value)
                for slot in alike
                for name, value in reference.numbers(slot).items()
            }
        taken = parent.with_choices({slot: reference.choices[slot] for slot in slots}, numbers)
        child = _repair(taken, slots)
        if child is not None and child not in (parent, reference):
            return Variation(child, parent)
    return None


def random_composition(rng: random.Random) -> Composition:
    """Core slots uniformly; every other slot neutral with probability 1/2, else uniformly; numbers within their spans."""
    while True:
        choices, luck = {}, list[tuple[Parameter, float]]()
        for name, slot in SLOTS.items():
            neutral = name not in CORE_SLOTS and rng.random() < 0.5
            choice = slot.neutral if neutral else rng.choice(slot.choices)
            choices[name] = choice.name
            luck += _luck(choice, rng)
        if choice_conflicts(choices):  # four of five draws; numbers are worked out for the others
            continue
        composition = Composition(choices=choices, parameters={one.name: _drawn(one, share) for one, share in luck})
        if not number_conflicts(composition):
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
) -> tuple[str, dict[str, float]]:
    """Another choice in a slot, or the same with one number moved, with its numbers; as it is where no choice has a weight."""
    current, numbers = composition.choice(slot), composition.numbers(slot)
    movable = [parameter for parameter in current.parameters if parameter.movable]
    if movable and rng.random() < NUMBER_SHARE:
        parameter = rng.choice(movable)
        return current.name, {**numbers, parameter.name: _moved(parameter, numbers[parameter.name], rng)}
    others_here = [choice for choice in SLOTS[slot].choices if choice.name != current.name]
    chances = [weights.get((slot, choice.name), 1.0) for choice in others_here]
    if not sum(chances):
        return current.name, numbers
    chosen = rng.choices(others_here, chances)[0]
    return chosen.name, _draw_numbers(chosen, rng)


def _draw_numbers(choice: Choice, rng: random.Random) -> dict[str, float]:
    """A value of every number: its default where it stands still, else uniform in the logarithm over its span."""
    return {one.name: _drawn(one, share) for one, share in _luck(choice, rng)}


def _luck(choice: Choice, rng: random.Random) -> list[tuple[Parameter, float]]:
    """Every number of a choice with a random place in its span; one that stands still takes nothing of the source."""
    return [(one, rng.random() if one.movable else 0.0) for one in choice.parameters]


def _drawn(parameter: Parameter, share: float) -> float:
    """The number so far up its span in the logarithm, 0 to 1; its default where it stands still."""
    if not parameter.movable:
        return parameter.default
    low, high = parameter.log_span
    return _rounded(math.copysign(math.exp(low + (high - low) * share), parameter.default), parameter.span)


def _moved(parameter: Parameter, value: float, rng: random.Random) -> float:
    """The number times a factor, upwards or downwards, within its span; a value outside it may stay outside and moves inwards."""
    if not value:
        return _drawn(parameter, rng.random())
    low, high = min(parameter.span[0], abs(value)), max(parameter.span[1], abs(value))
    for _ in range(_TRIES):
        factor = math.exp(rng.uniform(math.log(LEAST_FACTOR), math.log(LARGEST_FACTOR)))
        size = abs(value) * factor if rng.random() < 0.5 else abs(value) / factor
        moved = _rounded(math.copysign(size, value), (low, high))
        if low <= size <= high and moved != value:
            return moved
    return _drawn(parameter, rng.random())  # the span is narrower than the least factor


def _between(one: float, other: float) -> float:
    """The geometric mean, to two digits; the first where they have no sign in common."""
    product = one * other
    return math.copysign(float(f"{math.sqrt(product):.2g}"), one) if product > 0 else one


def _rounded(value: float, span: tuple[float, float]) -> float:
    """To two digits, and not beyond the ends of the span."""
    return math.copysign(min(max(float(f"{abs(value):.2g}"), span[0]), span[1]), value)


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
