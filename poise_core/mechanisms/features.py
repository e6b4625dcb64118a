"""Compositions as arrays, and how alike two of them are, for regressions of scores on mechanisms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from poise_core.mechanisms.catalogue import SLOTS
from poise_core.mechanisms.composition import Composition
from poise_core.mechanisms.model import Parameter

Array = npt.NDArray[np.float64]
Codes = np.ndarray[Any, np.dtype[np.int64]]

LEVEL = {(s, c.name): n for n, (s, c) in enumerate((s, c) for s in SLOTS for c in SLOTS[s].choices)}
"""(slot, choice) -> its number through all slots."""

LEVELS = len(LEVEL)
"""Choices of all slots together."""

NUMBERS: dict[tuple[str, str, str], tuple[int, Parameter]] = {}
"""(slot, choice, parameter) -> its column, and what it may be."""
for _slot in SLOTS:
    for _choice in SLOTS[_slot].choices:
        for _one in _choice.parameters:
            NUMBERS[_slot, _choice.name, _one.name] = (len(NUMBERS), _one)

_COLUMNS: list[list[tuple[int, Parameter]]] = [
    [own for (s, c, _), own in NUMBERS.items() if (s, c) == level] for level in LEVEL
]


def encode_all(compositions: Sequence[Composition]) -> tuple[Codes, Array]:
    """Of at least one composition, (n, S) one level per slot, numbered through all slots; (n, P) the place of every number within
    its span, -1 to 1.

    Places are on a log scale, as variation moves numbers. A number that a composition does not have is 0, as one in the middle of
    its span; what lies beyond the span is cut at 1.5.
    """
    codes = [[LEVEL[chosen] for chosen in one.choices.items()] for one in compositions]
    numbers = np.zeros((len(codes), len(NUMBERS)))
    for row, (composition, levels) in enumerate(zip(compositions, codes, strict=True)):
        if composition.parameters:
            for level in levels:
                for column, spec in _COLUMNS[level]:
                    numbers[row, column] = place(spec, composition.parameters[spec.name])
    return np.array(codes, np.int64), numbers


def one_hot(codes: Codes) -> Array:
    """(n, L) of the levels of ``encode_all``: 1 for that of every slot, 0 for the others."""
    hot = np.zeros((len(codes), LEVELS))
    np.put_along_axis(hot, codes, 1.0, axis=1)
    return hot


def indicators(codes: Codes, numbers: Array) -> Array:
    """(n, L + P) ``one_hot``, then the numbers: what a regression on main effects or a tree reads."""
    return np.hstack([one_hot(codes), numbers])


def place(spec: Parameter, value: float) -> float:
    """Where a number lies within its span, -1 to 1 on a log scale; 0 where it cannot move or is 0."""
    if not spec.movable or not value:
        return 0.0
    low, high = spec.log_span
    return min(max(2.0 * (math.log(abs(value)) - low) / (high - low) - 1.0, -1.5), 1.5)


def kinship(codes: Codes, numbers: Array, others: Codes, other_numbers: Array, pair_share: float) -> Array:
    """(n, m) covariance of two sets of compositions, when main effects of choices and numbers and effects of pairs of choices are
    normal and independent; with m of S slots on which two agree and a share p of pairs,

        k = (1 - p) (m + agreement of numbers) / S + p m (m - 1) / (S (S - 1))

    Args:
        codes: (n, S) of ``encode_all``.
        numbers: (n, P) of ``encode_all``.
        others: (m, S).
        other_numbers: (m, P).
        pair_share: p, 0 to 1.
    """
    slots = len(SLOTS)
    same = (codes[:, None, :] == others[None, :, :]).sum(axis=2).astype(np.float64)
    main = (same + numbers @ other_numbers.T) / slots
    found: Array = (1.0 - pair_share) * main + pair_share * same * (same - 1.0) / (slots * (slots - 1))
    return found
