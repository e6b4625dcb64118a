"""Whether the search still gets anywhere, and whether another generation is worth its cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from poise_core.search.nodes import NodeRecord, overalls
from poise_core.search.shrinkage import shrink, winsorized
from poise_core.search.spec import PlateauSpec


@dataclass(frozen=True)
class Plateau:
    """The state of the search after its last generation; points are percent points of Overall."""

    generations: int  # made so far
    window: int
    gain: float | None  # best shrunken Overall now, minus that of the nodes of ``window`` generations ago
    noise_floor: float | None  # standard deviation of a difference of two candidates that are equally good
    stalled: bool
    expected_gain: float | None  # of the best, by one more generation, in points
    tokens: float | None  # training tokens of a generation
    worth: bool

    def describe(self) -> str:
        """One or two sentences; empty where there is nothing to say yet."""
        if self.gain is None or self.noise_floor is None:
            return ""
        within = "is within" if self.gain <= self.noise_floor else "exceeds"
        text = (
            f"over the last {self.window} generations the best shrunken Overall rose by {self.gain:.2f} points, which "
            f"{within} the noise floor of {self.noise_floor:.2f}."
        )
        if self.expected_gain is not None:
            cost = f" for about {self.tokens / 1e6:.2f} million training tokens" if self.tokens else ""
            verdict = "worth its cost" if self.worth else "not worth its cost"
            text += f" Another generation is expected to raise it by {self.expected_gain:.2f} points{cost}: {verdict}."
        return text


def assess_plateau(
    nodes: Sequence[NodeRecord], spec: PlateauSpec, *, parents: int = 3, tokens: float | None = None
) -> Plateau:
    """Judge the nodes so far.

    Stalled: the best shrunken Overall of all nodes exceeds that of the nodes which are at least ``window`` generations old
    by no more than the noise floor sqrt(2 v / n) (v the variance between seeds, n the median number of seeds). Both are
    read off today's estimates, so that a lucky number that was shrunken since then does not count as a loss.

    Another generation's expected gain: its children are taken to be normal with the mean and the standard deviation of the
    shrunken scores of the last ``window`` generations (collapses raised, they cost nothing); E[max(best of ``parents``
    children - best so far, 0)] by quadrature. It is worth its cost while that is at least ``spec.worth`` noise floors:
    a smaller gain could not be told from none.

    Args:
        nodes: all, failed ones included.
        spec: window and thresholds.
        parents: children per generation.
        tokens: training tokens that a generation costs, for the sentence.
    """
    raw, seeds, variance = overalls(nodes)
    generation = np.array([node.generation for node in nodes], np.int64)
    scored, shrunken = np.isfinite(raw), shrink(raw, seeds, variance)
    made = int(generation.max(initial=0))
    silent = Plateau(made, spec.window, None, None, False, None, tokens, True)
    old = scored & (generation <= made - spec.window)
    if variance is None or not old.any():
        return silent
    floor = math.sqrt(2.0 * variance / float(np.median(seeds[scored])))
    best = float(shrunken[scored].max())
    gain = best - float(shrunken[old].max())
    recent = shrunken[scored & (generation > made - spec.window)]
    expected = None
    if len(recent) >= 2:
        typical = winsorized(recent)
        expected = expected_improvement(float(typical.mean()), float(typical.std(ddof=1)), best, parents)
    worth = expected is None or expected >= spec.worth * floor
    return Plateau(made, spec.window, gain, floor, gain <= floor, expected, tokens, worth)


def expected_improvement(mean: float, std: float, best: float, draws: int) -> float:
    """E[max(max of ``draws`` normal numbers - best, 0)] = integral from best to infinity of 1 - Phi((x - mean) / std)^draws."""
    if std <= 0.0:
        return max(mean - best, 0.0)
    upper = max(best, mean) + 8.0 * std
    grid = np.linspace(best, upper, 2001)
    return float(np.trapezoid(1.0 - ndtr((grid - mean) / std) ** draws, grid))
