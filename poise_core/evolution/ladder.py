"""The ladder that a child climbs: the proxy, one whole training, all seeds; and what is decided between them.

The proxy is the beginning of the first seed's training, held at a checkpoint and gone on with exactly, so nothing is trained twice.
A decision compares the child with its parent and the baseline, after a whole training with the best so far too, against noise
learned from earlier generations: like every role, the ladder sees measurements of generations before the child's only, so who is
faster decides nothing. Every decision is a row of the ``rungs`` table; a child that is stopped keeps what was measured of it and
is neither failed nor zero.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from poise_core.archive import EVOLUTION_ARM
from poise_core.archive.typed import RungRow
from poise_core.evidence.forecast import Dynamics, proxy_dynamics
from poise_core.evidence.racing import Decision, proxy_reward
from poise_core.evidence.stopping import Referee
from poise_core.evolution.events import announced
from poise_core.evolution.health import HealthWatch
from poise_core.evolution.trials import Subject, Trials

Rung = Literal["proxy", "first", "all"]

Trajectory = Sequence[Mapping[str, Any]]
"""Rows of metrics, one per step."""


class Ladder:
    """Trains, measures and judges the children of one run, rung by rung."""

    def __init__(self, trials: Trials, seeds: Sequence[int]) -> None:
        """``seeds`` are those of the last rung; the first of them is that of the rungs below."""
        self.trials, self.archive, self.seeds = trials, trials.archive, tuple(seeds)
        preset = trials.run.preset
        self.spec, self.health = preset.ladder, preset.health
        self.protocol, self.baseline = preset.protocol, preset.search.baseline
        self._referees: dict[int, Referee] = {}
        self._lock = threading.Lock()

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """The rungs in order; the last one alone where the ladder is switched off."""
        if not self.spec.enabled:
            return ("all",)
        lower: tuple[Rung, ...] = ("proxy",) if self.spec.proxy_steps else ()
        return (*lower, *(("first",) if len(self.seeds) > 1 else ()), "all")

    def stopped(self, subject: Subject) -> RungRow | None:
        """The row of the rung at which the candidate was stopped."""
        rows = self.archive.rows(
            "rungs", protocol=self.protocol.digest, candidate_id=subject.candidate_id, decision="stopped"
        )
        return rows[0] if rows else None

    def trained(self, subject: Subject, rung: Rung) -> bool:
        """Whether a candidate that has not failed was trained as far as the rung asks, or was stopped before."""
        if self.stopped(subject):
            return True
        steps = self.archive.trajectory(subject.candidate_id, self.protocol.digest)
        if rung != "proxy":
            return all(seed in steps for seed in self._rung_seeds(rung))
        first = self.seeds[0]
        done = steps.get(first) or self.trials.unfinished_trajectory(subject, first)[0]
        return len(done) >= self.spec.proxy_steps

    def train(self, subject: Subject, rung: Rung) -> None:
        """Train as far as the rung asks; nothing where the candidate was stopped below it.

        Raises:
            CandidateFailure, InfrastructureError, Cancelled: see :meth:`Trials.train`.
        """
        if self.stopped(subject) or self._decided(subject, rung):
            return
        pause = self.spec.proxy_steps if rung == "proxy" else None
        loss = self.trials.train(subject, self._rung_seeds(rung), pause_after=pause, watch=self._watch(subject))
        if loss is not None:
            self._record(subject, rung, "stopped", loss, cause="certain_loss")

    def judge(self, subject: Subject, rung: Rung) -> None:
        """Measure what was trained for the rung, and decide whether the candidate goes on.

        Raises:
            CandidateFailure: the candidate failed in training.
            InfrastructureError, Cancelled: see :meth:`Trials.evaluate`.
        """
        if self.stopped(subject):
            return
        if rung != "proxy":
            self.trials.evaluate(subject, self._rung_seeds(rung))
        if not self.spec.enabled or not subject.generation or self._decided(subject, rung):
            return
        if failure := self.trials.failure(subject):
            raise failure
        if rung == self.rungs[-1]:
            self._record(subject, rung, "finished", f"measured with {len(self.seeds)} seeds")
            return
        trials = self.trials
        with announced(trials.observer, "race", subject.name, subject.generation, trials.should_stop) as say:
            decision = self._decide(subject, rung)
            if decision.stop and rung == "proxy":
                trials.keep_trajectory(subject, self.seeds[0], self.spec.proxy_steps)
            outcome: Literal["stopped", "promoted"] = "stopped" if decision.stop else "promoted"
            cause = "race" if decision.stop else None
            self._record(subject, rung, outcome, decision.message, cause=cause, judged=decision)
            say(f"{outcome} after {_NAMES[rung]}: {decision.message}")

    # the decision

    def _decide(self, subject: Subject, rung: Rung) -> Decision:
        referee = self._referee(subject.generation)
        mine = self._value(subject, rung)
        names = {row["candidate_id"]: row["name"] for row in self.archive.rows("candidates")}
        references = dict.fromkeys(one for one in (subject.parent_id, self._baseline()) if one)
        if rung == "proxy":
            dynamics = self._dynamics(self._first_steps(subject))
            decision = referee.after_proxy(mine, dynamics, references)
        else:
            decision = referee.after_first(mine, references)
        if decision.reference:
            named = names[decision.reference]
            if decision.reference not in references:  # neither parent nor baseline
                named = f"the best so far ({named})"
            text = decision.message.replace(decision.reference, named)
            decision = replace(decision, message=text)
        return decision

    def _value(self, subject: Subject, rung: Rung) -> float:
        """Reward of the proxy or Overall of the first seed, percent; NaN where it is not finite or not there."""
        seed = self.seeds[0]
        if rung == "proxy":
            return proxy_reward(self._first_steps(subject), self.spec.proxy_steps, self.spec.proxy_window)
        evaluations = self.trials.evaluations(subject, (seed,))
        return evaluations[0].overall if evaluations else math.nan

    def _first_steps(self, subject: Subject) -> Trajectory:
        """Of the first seed, as far as it has come."""
        stored = self.archive.trajectory(subject.candidate_id, self.protocol.digest).get(self.seeds[0])
        return stored or self.trials.unfinished_trajectory(subject, self.seeds[0])[0]

    def _dynamics(self, steps: Trajectory) -> Dynamics | None:
        return proxy_dynamics(steps, self.spec.proxy_steps, self.spec.proxy_window)

    def _referee(self, generation: int) -> Referee:
        """Who knows what candidates of earlier generations measured, with every seed they have."""
        with self._lock:
            if generation not in self._referees:
                rows = self.archive.rows("candidates", arm=EVOLUTION_ARM)
                known = [row["candidate_id"] for row in rows if row["generation"] < generation]
                found = self.archive.evaluations(protocol=self.protocol.digest)
                overalls = {name: {one.seed: one.overall for one in found.get(name, [])} for name in known}
                rewards: dict[str, dict[int, float]] = {}
                dynamics: dict[str, Dynamics] = {}
                for name in known:
                    proxies = self.archive.trajectory(name, self.protocol.digest)
                    rewards[name] = {
                        seed: proxy_reward(steps, self.spec.proxy_steps, self.spec.proxy_window)
                        for seed, steps in proxies.items()
                    }
                    if (own := self._dynamics(proxies.get(self.seeds[0], []))) is not None:
                        dynamics[name] = own
                roots = [row["candidate_id"] for row in rows if not row["generation"]]
                self._referees[generation] = Referee.learn(self.spec, self.seeds, roots, rewards, overalls, dynamics)
            return self._referees[generation]

    # records

    def _watch(self, subject: Subject) -> HealthWatch | None:
        """None for a root: the baseline has to be measured whatever it does."""
        if not subject.generation or not self.health.enabled:
            return None
        parent = subject.parent_id
        return HealthWatch(self.health, self.archive.trajectory(parent, self.protocol.digest) if parent else {})

    def _record(
        self,
        subject: Subject,
        rung: Rung,
        decision: Literal["promoted", "stopped", "finished"],
        message: str,
        *,
        cause: str | None = None,
        judged: Decision | None = None,
    ) -> None:
        steps = self._spent(subject, rung)
        value = self._value(subject, rung) if decision != "finished" else self._mean_overall(subject)
        gap = judged.difference if judged else None
        row = {
            **self._keys(subject),
            "rung": rung,
            "generation": subject.generation,
            "seeds": sorted(steps),
            "steps": max((len(rows) for rows in steps.values()), default=0),
            "tokens": sum(int(row["tokens"]) for rows in steps.values() for row in rows),
            "decision": decision,
            "cause": cause,
            "value": value if math.isfinite(value) else None,
            "reference": judged.reference if judged else None,
            "difference": gap.estimate if gap else None,
            "probability": judged.probability if judged else None,
            "noise_std": gap.noise.std if gap else None,
            "noise_freedom": gap.noise.freedom if gap else None,
            "message": message,
            "written_by": "poise",
        }
        self.archive.append("rungs", [row])

    def _spent(self, subject: Subject, rung: Rung) -> dict[int, list[dict[str, Any]]]:
        """Seed -> the steps trained for this rung and those below it."""
        steps = self.archive.trajectory(subject.candidate_id, self.protocol.digest)
        first = self.seeds[0]
        if rung == "proxy" and first not in steps:
            steps[first] = self.trials.unfinished_trajectory(subject, first)[0][: self.spec.proxy_steps]
        return {seed: rows for seed, rows in steps.items() if seed in self._rung_seeds(rung)}

    def _mean_overall(self, subject: Subject) -> float:
        overalls = [one.overall for one in self.trials.evaluations(subject, self.seeds)]
        return sum(overalls) / len(overalls) if overalls else math.nan

    def _rung_seeds(self, rung: Rung) -> tuple[int, ...]:
        return self.seeds if rung == "all" else self.seeds[:1]

    def _decided(self, subject: Subject, rung: Rung) -> bool:
        return self.archive.contains("rungs", **self._keys(subject), rung=rung)

    def _keys(self, subject: Subject) -> dict[str, str]:
        return {"protocol": self.protocol.digest, "candidate_id": subject.candidate_id}

    def _baseline(self) -> str | None:
        roots = [row["candidate_id"] for row in self.archive.rows("candidates", arm=EVOLUTION_ARM, generation=0)]
        return roots[0] if roots else None


_NAMES = {"proxy": "the proxy", "first": "one seed", "all": "all seeds"}
