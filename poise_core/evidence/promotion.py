"""Which candidates are declared better than the baseline, corrected for the number of all that were tried.

The best of m noisy numbers is high by chance, so the level of every interval is 1 - alpha / m (Bonferroni): over all candidates
tried together, the chance that one which is no better is declared is at most alpha / 2, since only errors upward count. m counts
every candidate of the protocol on which anything was measured, the baseline aside, including those stopped on the ladder and those
that failed in training, since each of them could have become the champion. Ideas that the gate refused were never measured and do
not count. Stopping a candidate early can only take declarations away, so the ladder needs no correction
of its own. A candidate needs two seeds to be declared.

What is declared is a *champion candidate*: the search chose it, and its estimate is biased upward by that. Only a replication with
fresh seeds on the sealed split (``poise_core.experiments.replication``) makes it a champion.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from poise_core.config.protocol import Protocol
from poise_core.evaluation.results import SeedEvaluation
from poise_core.evidence.intervals import Interval, delta_between
from poise_core.evidence.noise import NoiseFloor, noise_floor

ALPHA = 0.05
"""Error over all candidates of a run together."""

FEWEST_SEEDS = 2


@dataclass(frozen=True)
class Declaration:
    """The comparison of one candidate with the baseline at the corrected level, and whether it makes a champion candidate."""

    candidate_id: str
    delta: Interval  # at ``level``, percent points
    level: float
    champion: bool


def corrected_level(tried: int, alpha: float = ALPHA) -> float:
    """Confidence level of each of ``tried`` intervals for an error of ``alpha`` over all of them."""
    return 1.0 - alpha / max(tried, 1)


def declare(
    evaluations: Mapping[str, Sequence[SeedEvaluation]],
    baseline: str,
    tried: Collection[str],
    protocol: Protocol,
    alpha: float = ALPHA,
    noise: NoiseFloor | Literal["own"] | None = "own",
) -> list[Declaration]:
    """Compare every candidate with the baseline; the best estimate first.

    Args:
        evaluations: candidate -> its evaluations on the search split; those without any are absent.
        baseline: its key in ``evaluations``.
        tried: every candidate on which anything was measured, with or without evaluations.
        protocol: of all evaluations.
        alpha: error over all candidates together.
        noise: the noise floor, None where there is none; by default it is fitted to ``evaluations``.
    """
    floor = noise_floor(evaluations) if isinstance(noise, str) else noise
    compared = sorted(name for name in evaluations if name != baseline and name in tried)
    level = corrected_level(len(set(tried) - {baseline}), alpha)
    found = []
    for name in compared:
        delta = delta_between(name, baseline, evaluations, protocol, floor, level)
        if delta is not None:
            found.append(Declaration(name, delta, level, delta.seeds >= FEWEST_SEEDS and delta.low > 0.0))
    return sorted(found, key=lambda one: (-one.delta.estimate, one.candidate_id))
