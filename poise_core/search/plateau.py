"""Whether the search is on a plateau, and whether another generation is worth its cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from poise_core.config.search import PlateauSpec
from poise_core.evidence.noise import winsorized
from poise_core.search.nodes import Array, NodeRecord, overalls
from poise_core.search.shrinkage import Posterior, posterior


@dataclass(frozen=True)
class Plateau:
    """The state of the search after its last generation; points are percent points of Overall."""

    generations: int  # made so far
    window: int
    gain: float | None  # best shrunken Overall now, minus that of the nodes of ``window`` generations ago
    noise_floor: float | None  # standard deviation of the difference of the two bests, were they equally good
    stalled: bool
    expected_gain: float | None  # in true Overall of the best, by one more generation
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
    by no more than the noise floor sqrt(v / n_now + v / n_old), with v the variance between seeds and n_now, n_old the seeds
    of these two nodes. Both are taken from today's estimates, so that a score that was shrunken since then does not count as
    a loss. Where both are the same node the gain is 0, and the floor sqrt(2 v / n) is what another node with as many seeds
    would have to exceed.

    Another generation's expected gain in true Overall: E[max(best of its children - best so far, 0)], see
    ``expected_improvement``, with its children like those of the last ``window`` generations, see ``true_scores``. It
    is worth its cost while that is at least ``spec.worth`` noise floors: a smaller gain could not be told from none. Nothing
    is said of it where fewer than two recent children have a score, or where the spread tau^2 of all nodes is estimated as
    0, which does not show that all children are alike.

    A child without a score (stopped at the proxy, failed) is one of the children that a generation makes and pays for but
    can never be the best. So each of the ``parents`` children gets a score with the share p of recent children that got one;
    they do not count as low scores, since none was measured.

    Args:
        nodes: all, failed ones included.
        spec: window and thresholds.
        parents: children per generation.
        tokens: training tokens that a generation costs, for the sentence.
    """
    generation = np.array([node.generation for node in nodes], np.int64)
    return assess_scores(*overalls(nodes), generation, spec, parents=parents, tokens=tokens)


def assess_scores(
    raw: Array,
    seeds: Array,
    variance: float | None,
    generation: npt.NDArray[np.int64],
    spec: PlateauSpec,
    *,
    parents: int = 3,
    tokens: float | None = None,
) -> Plateau:
    """As ``assess_plateau``, from the numbers of n nodes: (n,) Overall, NaN where there is none, seeds and generations."""
    scored, belief = np.isfinite(raw), posterior(raw, seeds, variance)
    made = int(generation.max(initial=0))
    silent = Plateau(made, spec.window, None, None, False, None, tokens, True)
    old, late = scored & (generation <= made - spec.window), generation > made - spec.window
    if variance is None or not old.any():
        return silent
    now, then = _best(belief, scored), _best(belief, old)
    floor = math.sqrt(variance / seeds[now] + variance / seeds[then])
    best = float(belief.mean[now])
    gain = best - float(belief.mean[then])
    recent = scored & late
    expected = None
    if recent.sum() >= 2 and belief.spread > 0.0:
        share = float(recent.sum() / late.sum())
        expected = expected_improvement(*true_scores(belief, recent), best, parents, share)
    worth = expected is None or expected >= spec.worth * floor
    return Plateau(made, spec.window, gain, floor, gain <= floor, expected, tokens, worth)


def true_scores(belief: Posterior, rows: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Mean and standard deviation of the true scores of some nodes, at least two.

    By the law of total variance that is the variance of the posterior means plus the mean of the posterior variances:
    sd^2 = var(s) + mean(tau^2 (v / n) / (tau^2 + v / n)), s the shrunken scores (collapses raised, they cost nothing). With
    one seed each, var(s) alone is tau^4 / (tau^2 + v), too small by the factor tau^2 / (tau^2 + v). tau^2 is that of all
    nodes: a few children's own tau^2 is often 0 by chance, and the best so far is shrunken by the same one, so that both
    sides of the comparison are estimates under one model. (A ladder gives more seeds to children that began well. With m and
    tau^2 known that would not matter; it lowers their estimates by moments a little, on both sides of the comparison.)
    """
    typical = winsorized(belief.mean[rows])
    return float(typical.mean()), math.sqrt(float(typical.var(ddof=1)) + float(belief.variance[rows].mean()))


def expected_improvement(mean: float, std: float, best: float, draws: int, share: float = 1.0) -> float:
    """E[max(largest of ``draws`` numbers - best, 0)], each normal with the probability ``share`` and else below all others.

    The integral from best to infinity of 1 - (1 - share + share Phi((x - mean) / std))^draws, by quadrature.
    """
    if std <= 0.0:
        return max(mean - best, 0.0) * (1.0 - (1.0 - share) ** draws)
    upper = max(best, mean) + 8.0 * std
    grid = np.linspace(best, upper, 2001)
    return float(np.trapezoid(1.0 - (1.0 - share + share * ndtr((grid - mean) / std)) ** draws, grid))


def _best(belief: Posterior, rows: npt.NDArray[np.bool_]) -> int:
    return int(np.argmax(np.where(rows, belief.mean, -np.inf)))
