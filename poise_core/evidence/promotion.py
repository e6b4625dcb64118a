"""Which candidates are declared better than the baseline, corrected for the number of all that were tried.

The best of m noisy numbers is high by chance, so the level of every interval is 1 - alpha / m (Bonferroni): over all candidates
tried together, the chance that one which is no better is declared is at most alpha / 2, since only errors upward count. m is the
number of children that are planned, of all searches of the experiment, so that whoever looks after every generation is corrected
from the first one on as after the last; with the number tried so far instead, a null run of 21 generations declares somebody at
some time in 4.7 % and has somebody declared at its end in 1.5 %. Where more were tried than planned, m is that. It counts every
candidate of the protocol on which anything was measured, the baseline aside, including those stopped on the ladder and those that
failed in training, since each of them could have become the champion. Ideas that the gate refused were never measured and do not
count. Stopping a candidate early can only take declarations away, so the ladder needs no correction of its own. A candidate needs
two seeds to be declared.

All of it holds for algorithms whose trainings do not collapse. One that loses thirty points in one training of ten, and gains three
in the others, looks better in a handful of seeds and is not (``docs/evidence.md``), so ``Stability`` stands beside every champion.

What is declared is a *champion candidate*: the search chose it, and its estimate is biased upward by that. Only a replication with
fresh seeds on the sealed split (``poise_core.experiments.replication``) makes it a champion.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from poise_core.config.protocol import Protocol
from poise_core.evaluation.results import SeedEvaluation
from poise_core.evidence.collapse import collapse_bound
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


@dataclass(frozen=True)
class Stability:
    """How badly a training may end, as far as the trainings of one candidate tell."""

    worst: float  # Overall of the worst seed, percent
    seeds: int

    @classmethod
    def of(cls, evaluations: Sequence[SeedEvaluation]) -> Stability | None:
        """Of one candidate's seeds; None without any."""
        return cls(min(one.overall for one in evaluations), len(evaluations)) if evaluations else None

    @property
    def bound(self) -> float:
        """Upper 95 % limit of the probability that a further training ends below the worst: p with (1 - p)^n = 0.05."""
        return collapse_bound(0, self.seeds)

    def sentence(self) -> str:
        """For people."""
        seeds = "one seed" if self.seeds == 1 else f"worst of {self.seeds} seeds"
        return f"{seeds} {self.worst:.1f}; P(a training ends below) <= {self.bound:.0%}"


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
    planned: int = 0,
) -> list[Declaration]:
    """Compare every candidate with the baseline; the best estimate first.

    Args:
        evaluations: candidate -> its evaluations on the search split; those without any are absent.
        baseline: its key in ``evaluations``.
        tried: every candidate on which anything was measured, with or without evaluations.
        protocol: of all evaluations.
        alpha: error over all candidates together.
        noise: the noise floor, None where there is none; by default it is fitted to ``evaluations``.
        planned: children that the experiment is going to measure; fewer than were tried, and those count.
    """
    floor = noise_floor(evaluations) if isinstance(noise, str) else noise
    compared = sorted(name for name in evaluations if name != baseline and name in tried)
    level = corrected_level(max(len(set(tried) - {baseline}), planned), alpha)
    found = []
    for name in compared:
        delta = delta_between(name, baseline, evaluations, protocol, floor, level)
        if delta is not None:
            found.append(Declaration(name, delta, level, delta.seeds >= FEWEST_SEEDS and delta.low > 0.0))
    return sorted(found, key=lambda one: (-one.delta.estimate, one.candidate_id))
