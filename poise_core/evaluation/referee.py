"""All decisions of the ladder on the children of one generation, from what earlier generations measured.

After the proxy: its reward against parent and baseline, then, where ``forecast_stop_below`` asks for it and enough is known, the
Overall that its dynamics forecast. After one whole training: Overall against both, then, where ``leader_stop_below`` asks for it,
against the leader: whoever seeks the best alone need not measure what is better than its parent and still behind. A forecast is not
compared with the leader: drawn towards the mean, it says of nobody that it will be far above it. The first comparison that ends a
child decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from poise_core.config import LadderSpec
from poise_core.evaluation.forecast import Dynamics, Forecast
from poise_core.evaluation.racing import Decision, SeedModel, race

PerSeed = Mapping[str, Mapping[int, float]]
"""Candidate -> seed -> percent."""


@dataclass(frozen=True)
class Referee:
    """Knows the generations before one."""

    ladder: LadderSpec
    rewards: SeedModel
    overalls: SeedModel
    forecast: Forecast | None  # None: too little is known yet
    leader: str | None

    @classmethod
    def learn(
        cls,
        ladder: LadderSpec,
        seeds: Sequence[int],
        rewards: PerSeed,
        overalls: PerSeed,
        dynamics: Mapping[str, Mapping[int, Dynamics]],
    ) -> Referee:
        """From all candidates of earlier generations, the baseline among them.

        Args:
            ladder: thresholds and guesses.
            seeds: of the last rung.
            rewards: of proxies.
            overalls: of whole trainings.
            dynamics: of proxies; see :func:`poise_core.evaluation.forecast.proxy_dynamics`.
        """
        settings = ladder.noise_weight, ladder.shared_noise
        scored = SeedModel.learn(overalls, ladder.overall_noise, *settings)
        return cls(
            ladder,
            SeedModel.learn(rewards, ladder.reward_noise, *settings),
            scored,
            Forecast.learn(dynamics, scored) if ladder.forecast_stop_below else None,
            scored.leader(seeds) if ladder.leader_stop_below else None,
        )

    def after_proxy(self, reward: float, dynamics: Dynamics | None, seed: int, references: Iterable[str]) -> Decision:
        """Whether a child goes on to a whole training.

        Args:
            reward: of its proxy, percent.
            dynamics: of its proxy; None where something is not finite.
            seed: that it was trained with.
            references: its parent and the baseline.
        """
        references = tuple(references)
        decision = race(self.rewards.differences(reward, seed, references), self.ladder.proxy_stop_below)
        forecast = self.forecast
        if decision.stop or forecast is None or dynamics is None:
            return decision
        below = self.ladder.forecast_stop_below
        decision = race(forecast.differences(dynamics, self.overalls, references), below)
        return replace(decision, message=f"forecast Overall {forecast.predict(dynamics):.1f}, {decision.message}")

    def after_first(self, overall: float, seed: int, references: Iterable[str]) -> Decision:
        """Whether a child goes on to all seeds; arguments as for :meth:`after_proxy`."""
        decision = race(self.overalls.differences(overall, seed, references), self.ladder.first_stop_below)
        if decision.stop or self.leader is None:
            return decision
        behind = race(self.overalls.differences(overall, seed, [self.leader]), self.ladder.leader_stop_below)
        return behind if behind.stop else decision
