"""All decisions of the ladder on the children of one generation, from what earlier generations measured.

After the proxy: its reward against parent and baseline, then, where ``forecast_stop_below`` asks for it and enough is known, the
Overall that its dynamics forecast. After one whole training: Overall against both, then, where ``leader_stop_below`` asks for it,
against the leader: whoever seeks the best alone need not measure what is better than its parent and still behind. A forecast is not
compared with the leader: drawn towards the mean, it says of nobody that it will be far above it. The first comparison that ends a
child decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from poise_core.config import LadderSpec
from poise_core.evidence.forecast import Dynamics, Forecast
from poise_core.evidence.racing import Decision, Difference, Population, SeedModel, race

PerSeed = Mapping[str, Mapping[int, float]]
"""Candidate -> seed -> percent."""


@dataclass(frozen=True)
class Referee:
    """Knows the generations before one."""

    ladder: LadderSpec
    first: int  # the seed that children are judged by
    roots: frozenset[str]
    rewards: SeedModel
    overalls: SeedModel
    population: Population | None
    forecast: Forecast | None  # None: not asked for, or too little is known yet
    leader: str | None

    @classmethod
    def learn(
        cls,
        ladder: LadderSpec,
        seeds: Sequence[int],
        roots: Iterable[str],
        rewards: PerSeed,
        overalls: PerSeed,
        dynamics: Mapping[str, Dynamics],
    ) -> Referee:
        """From all candidates of earlier generations, the roots among them.

        Who has more seeds than the first was decided by the first. So a child that has more is known by the others alone, and
        what the first seed does to all is learned from the roots, which have all seeds whatever they score.

        Args:
            ladder: thresholds and guesses.
            seeds: of the last rung; the first one is that of the rungs below.
            roots: candidates that nothing was decided on.
            rewards: of proxies.
            overalls: of whole trainings.
            dynamics: candidate -> of its proxy with the first seed; see :func:`poise_core.evidence.forecast.proxy_dynamics`.
        """
        first, roots, settings = seeds[0], frozenset(roots), (ladder.noise_weight, ladder.shared_noise)
        scored = SeedModel.learn(_unselected(overalls, first, roots), ladder.overall_noise, *settings)
        firsts = {name: row[first] for name, row in overalls.items() if first in row}
        return cls(
            ladder,
            first,
            roots,
            SeedModel.learn(_unselected(rewards, first, roots), ladder.reward_noise, *settings),
            scored,
            Population.learn((one for name, one in firsts.items() if name not in roots), scored.noise),
            Forecast.learn(dynamics, firsts) if ladder.forecast_stop_below else None,
            scored.leader(seeds[1:] or seeds) if ladder.leader_stop_below else None,
        )

    def after_proxy(self, reward: float, dynamics: Dynamics | None, references: Iterable[str]) -> Decision:
        """Whether a child goes on to a whole training.

        Args:
            reward: of its proxy with the first seed, percent.
            dynamics: of the same; None where something is not finite.
            references: its parent and the baseline.
        """
        references = tuple(references)
        decision = race(self.rewards.differences(reward, self.first, references), self.ladder.proxy_stop_below)
        if decision.stop or self.forecast is None or dynamics is None:
            return decision
        gaps = self._gaps(partial(self.forecast.differences, dynamics, self.first, self.overalls), references)
        decision = race(gaps, self.ladder.forecast_stop_below)
        return replace(decision, message=f"forecast Overall {self.forecast.predict(dynamics):.1f}, {decision.message}")

    def after_first(self, overall: float, references: Iterable[str]) -> Decision:
        """Whether a child goes on to all seeds.

        Args:
            overall: with the first seed, percent.
            references: its parent and the baseline.
        """
        gaps = partial(self._gaps, partial(self.overalls.differences, overall, self.first))
        decision = race(gaps(references), self.ladder.first_stop_below)
        if decision.stop or self.leader is None:
            return decision
        behind = race(gaps([self.leader]), self.ladder.leader_stop_below)
        return behind if behind.stop else decision

    def _gaps(
        self,
        differences: Callable[[Iterable[str], Population | None], dict[str, Difference]],
        references: Iterable[str],
    ) -> dict[str, Difference]:
        """To the roots as measured, to those that were chosen as far as they are to be trusted."""
        references = dict.fromkeys(references)
        chosen = [name for name in references if name not in self.roots]
        known = differences([name for name in references if name in self.roots], None)
        return known | differences(chosen, self.population)


def _unselected(values: PerSeed, first: int, roots: frozenset[str]) -> PerSeed:
    return {
        name: row if name in roots or len(row) < 2 else {seed: one for seed, one in row.items() if seed != first}
        for name, row in values.items()
    }
