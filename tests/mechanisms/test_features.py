"""Compositions as arrays, and how alike two of them are."""

from __future__ import annotations

import random

import numpy as np
import pytest

from poise_core.mechanisms.catalogue import SLOTS
from poise_core.mechanisms.composition import GRPO, compose
from poise_core.mechanisms.features import LEVEL, LEVELS, NUMBERS, encode_all, indicators, kinship, place
from poise_core.mechanisms.model import Parameter
from poise_core.mechanisms.operators import random_composition


def test_a_composition_as_a_row_by_hand() -> None:
    """One 1 for every slot, then the places of its numbers; a number that it does not have is 0, as one in the middle."""
    some = [GRPO, *(random_composition(random.Random(number)) for number in range(9))]
    codes, numbers = encode_all(some)
    rows = indicators(codes, numbers)
    assert (rows.shape, rows[:, :LEVELS].sum()) == ((10, LEVELS + len(NUMBERS)), 10 * len(SLOTS))
    assert np.array_equal(rows[:, LEVELS:], numbers)
    for row, composition in enumerate(some):
        ones = {level for level, column in LEVEL.items() if rows[row, column] == 1.0}
        assert ones == set(composition.choices.items())
        for (slot, choice, name), (column, spec) in NUMBERS.items():
            own = composition.choices[slot] == choice
            assert numbers[row, column] == (place(spec, composition.parameters[name]) if own else 0.0)


def test_places_by_hand() -> None:
    """From 0.01 to 1 the middle in the logarithm is 0.1; beyond the ends a place goes on to 1.5."""
    spec = Parameter("one", 0.1, (0.01, 0.1, 1.0), high=1000.0)
    for value, expected in (
        (0.01, -1.0),
        (0.1, 0.0),
        (1.0, 1.0),
        (-0.01, -1.0),
        (3.0, 1.47712),
        (100.0, 1.5),
        (1e-6, -1.5),
        (0.0, 0.0),
    ):
        assert place(spec, value) == pytest.approx(expected, abs=1e-5)
    assert place(Parameter("still", 2.0, (2.0,)), 2.0) == 0.0


def test_kinship_by_hand() -> None:
    """Of S slots, one differs: (1 - p) (S - 1) / S + p (S - 1) (S - 2) / (S (S - 1)), and equal numbers agree by their squares."""
    other = compose(GRPO, kl="none")
    codes, numbers = encode_all([GRPO, other])
    slots = codes.shape[1]
    kept = float(numbers[0] @ numbers[1])
    for pairs in (0.0, 0.3, 1.0):
        found = kinship(codes, numbers, codes, numbers, pairs)
        agree = slots - 1
        by_hand = (1 - pairs) * (agree + kept) / slots + pairs * agree * (agree - 1) / (slots * (slots - 1))
        assert found[0, 1] == pytest.approx(by_hand, rel=1e-12)
        assert found[0, 0] == pytest.approx(
            (1 - pairs) * (slots + float(numbers[0] @ numbers[0])) / slots + pairs, rel=1e-12
        )
