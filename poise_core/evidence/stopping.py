"""All decisions of the ladder on the children of one generation, from what earlier generations measured.

After the proxy: its reward against parent and baseline, then, where ``forecast_stop_below`` asks for it and enough is known, the
Overall that its dynamics forecast. After one whole training: Overall against both, then, where ``leader_stop_below`` asks for it,
against the leader: a search for the best candidate alone need not measure one that is better than its parent but behind the leader.
A forecast is not compared with the leader: it is drawn towards the mean, so it puts no child far above it. The first comparison
that stops a child decides. The run, the simulations and the replays all decide from one record, the candidate's ``Measurement``.

A forecast learns only from children that it lets pass, so a mistaken one that stopped all would never be found out. It stops none
while it explains nothing, and none of a generation before which the last ``FEWEST`` children all ended without an Overall.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from poise_core.config import LadderSpec
from poise_core.evidence.forecast import FEWEST, Dynamics, Forecast, proxy_dynamics
from poise_core.evidence.racing import Decision, Difference, Population, SeedModel, proxy_reward, race

Rung = Literal["proxy", "first", "all"]

PerSeed = Mapping[str, Mapping[int, float]]
"""Candidate -> seed -> percent."""


@dataclass(frozen=True)
class Measurement:
    """What was measured of one candidate, computed once: everything that a decision uses, and what it has cost."""

    overalls: Mapping[int, float] = field(default_factory=dict)  # seed -> percent
    rewards: Mapping[int, float] = field(
        default_factory=dict
    )  # seed -> of the proxy, percent; NaN where steps are missing
    dynamics: Mapping[int, Dynamics] = field(default_factory=dict)  # seed -> of the proxy, where all of them are finite
    steps: Mapping[int, int] = field(default_factory=dict)  # seed -> steps trained
    tokens: Mapping[int, int] = field(default_factory=dict)  # seed -> completion tokens sampled in training

    @classmethod
    def of(
        cls,
        trajectories: Mapping[int, Sequence[Mapping[str, Any]]],
        overalls: Mapping[int, float],
        ladder: LadderSpec,
    ) -> Measurement:
        """From what is recorded.

        Args:
            trajectories: seed -> rows of metrics, one per step.
            overalls: seed -> percent.
            ladder: says what the proxy is.
        """
        proxy = ladder.proxy_steps, ladder.proxy_window
        found = {seed: proxy_dynamics(rows, *proxy) for seed, rows in trajectories.items()}
        return cls(
            overalls,
            {seed: proxy_reward(rows, *proxy) for seed, rows in trajectories.items()},
            {seed: one for seed, one in found.items() if one is not None},
            {seed: len(rows) for seed, rows in trajectories.items()},
            {seed: int(sum(row.get("tokens") or 0 for row in rows)) for seed, rows in trajectories.items()},
        )

    def value(self, rung: Rung, seed: int) -> float:
        """What a decision after this rung is about, percent: the proxy's reward, otherwise Overall; NaN where there is none."""
        return (self.rewards if rung == "proxy" else self.overalls).get(seed, math.nan)

    @property
    def mean_overall(self) -> float:
        """Over its seeds, percent; NaN without any."""
        return sum(self.overalls.values()) / len(self.overalls) if self.overalls else math.nan


@dataclass(frozen=True)
class Referee:
    """Decides whether a child goes on, from the measurements of the generations before it."""

    ladder: LadderSpec
    first: int  # the seed that children are judged by
    roots: frozenset[str]
    rewards: SeedModel
    overalls: SeedModel
    population: Population | None
    forecast: Forecast | None  # None: not asked for, too little is known yet, or it has to be found out if it is right
    leader: str | None

    @classmethod
    def learn(
        cls, ladder: LadderSpec, seeds: Sequence[int], roots: Iterable[str], measured: Mapping[str, Measurement]
    ) -> Referee:
        """From all candidates of earlier generations, the roots among them.

        The first seed has decided which children have further ones. So a child with further seeds counts by those alone, and
        what the first seed does to all is learned from the roots, which have all seeds whatever they score.

        Args:
            ladder: thresholds and guesses.
            seeds: of the last rung; the first one is that of the rungs below.
            roots: candidates that nothing was decided on.
            measured: candidate -> everything known of it, in the order in which they were made.
        """
        first, roots, settings = seeds[0], frozenset(roots), (ladder.noise_weight, ladder.shared_noise)
        overalls = {name: one.overalls for name, one in measured.items()}
        rewards = {name: one.rewards for name, one in measured.items()}
        dynamics = {name: one.dynamics[first] for name, one in measured.items() if first in one.dynamics}
        scored = SeedModel.learn(_unselected(overalls, first, roots), ladder.overall_noise, *settings)
        firsts = {name: row[first] for name, row in overalls.items() if first in row}
        forecast = Forecast.learn(dynamics, firsts) if ladder.forecast_stop_below else None
        latest = [name for name in dynamics if name not in roots][-FEWEST:]
        if forecast is not None and (forecast.explained <= 0.0 or not any(name in firsts for name in latest)):
            forecast = None
        return cls(
            ladder,
            first,
            roots,
            SeedModel.learn(_unselected(rewards, first, roots), ladder.reward_noise, *settings),
            scored,
            Population.learn((one for name, one in firsts.items() if name not in roots), scored.noise),
            forecast,
            scored.leader(seeds[1:] or seeds) if ladder.leader_stop_below else None,
        )

    def decide(self, measured: Measurement, rung: Rung, references: Iterable[str]) -> Decision:
        """Whether a child goes on to the next rung.

        Args:
            measured: of the child, as far as it has come.
            rung: after which it is decided: ``proxy`` or ``first``.
            references: its parent and the baseline.
        """
        references = tuple(references)
        return (self._after_proxy if rung == "proxy" else self._after_first)(measured, references)

    def _after_proxy(self, measured: Measurement, references: Sequence[str]) -> Decision:
        reward, dynamics = measured.value("proxy", self.first), measured.dynamics.get(self.first)
        decision = race(self.rewards.differences(reward, self.first, references), self.ladder.proxy_stop_below)
        if decision.stop or self.forecast is None or dynamics is None:
            return decision
        gaps = self._gaps(partial(self.forecast.differences, dynamics, self.first, self.overalls), references)
        decision = race(gaps, self.ladder.forecast_stop_below)
        return replace(decision, message=f"forecast Overall {self.forecast.predict(dynamics):.1f}, {decision.message}")

    def _after_first(self, measured: Measurement, references: Sequence[str]) -> Decision:
        gaps = partial(self._gaps, partial(self.overalls.differences, measured.value("first", self.first), self.first))
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
        """Differences to the references: to roots as measured, to selected candidates corrected by the population."""
        references = dict.fromkeys(references)
        chosen = [name for name in references if name not in self.roots]
        known = differences([name for name in references if name in self.roots], None)
        return known | differences(chosen, self.population)


def _unselected(values: PerSeed, first: int, roots: frozenset[str]) -> PerSeed:
    return {
        name: row if name in roots or len(row) < 2 else {seed: one for seed, one in row.items() if seed != first}
        for name, row in values.items()
    }
