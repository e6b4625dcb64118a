"""The ladder of a child's measurements: the proxy, one whole training, all seeds; and what is decided between them.

The proxy is the beginning of the first seed's training, paused at a checkpoint and resumed exactly, so nothing is trained twice.
A decision compares the child with its parent and the baseline, after a whole training with the best so far too, against noise
learned from earlier generations: like every role, the ladder sees measurements of generations before the child's only, so no
decision depends on which child is faster. Every decision is a row of the ``rungs`` table; a child that is stopped keeps what was
measured of it and is neither failed nor zero.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from poise_core.archive import EVOLUTION_ARM
from poise_core.archive.typed import RungRow
from poise_core.config import LadderSpec
from poise_core.config.protocol import Protocol
from poise_core.evidence.format import counted_seeds
from poise_core.evidence.racing import Decision
from poise_core.evidence.stopping import Measurement, Referee, Rung
from poise_core.evolution.health import HealthWatch
from poise_core.evolution.records import CandidateRef
from poise_core.evolution.stages.train import keep_trajectory
from poise_core.evolution.trials import Trials


class Ladder:
    """Trains, measures and judges the children of one run, rung by rung."""

    def __init__(self, trials: Trials, seeds: Sequence[int]) -> None:
        """``seeds`` are those of the last rung; the first of them is that of the rungs below."""
        self.trials, self.archive, self.seeds = trials, trials.archive, tuple(seeds)
        preset = trials.run.preset
        self.protocol, self.baseline = preset.protocol, preset.search.baseline
        self.spec, self.health = judged_by(preset.ladder, self.protocol), preset.health
        self._referees: dict[int, Referee] = {}
        self._lock = threading.Lock()

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """The rungs in order; the last one alone where the ladder is switched off."""
        if not self.spec.enabled:
            return ("all",)
        lower: tuple[Rung, ...] = ("proxy",) if self.spec.proxy_steps else ()
        return (*lower, *(("first",) if len(self.seeds) > 1 else ()), "all")

    def stopped(self, candidate: CandidateRef) -> RungRow | None:
        """The row of the rung at which the candidate was stopped."""
        rows = self.archive.rows(
            "rungs", protocol=self.protocol.digest, candidate_id=candidate.candidate_id, decision="stopped"
        )
        return rows[0] if rows else None

    def settled(self, candidate: CandidateRef) -> bool:
        """Whether the ladder has nothing left to do or to record of a child that has not failed."""
        if self.spec.enabled and candidate.generation:
            return self.stopped(candidate) is not None or self._decided(candidate, self.rungs[-1])
        return len(self.trials.evaluations(candidate, self.seeds)) == len(self.seeds)

    def trained(self, candidate: CandidateRef, rung: Rung) -> bool:
        """Whether a candidate that has not failed was trained as far as the rung asks, or was stopped before."""
        if self.stopped(candidate):
            return True
        steps = self.archive.trajectory(candidate.candidate_id, self.protocol.digest)
        if rung != "proxy":
            return all(seed in steps for seed in self._rung_seeds(rung))
        first = self.seeds[0]
        done = steps.get(first) or self.trials.unfinished_trajectory(candidate, first)[0]
        return len(done) >= self.spec.proxy_steps

    def train(self, candidate: CandidateRef, rung: Rung) -> None:
        """Train as far as the rung asks; nothing where the candidate was stopped below it.

        Raises:
            CandidateFailure, InfrastructureError, Cancelled: see ``Trials.train``.
        """
        if self.stopped(candidate) or self._decided(candidate, rung):
            return
        pause = self.spec.proxy_steps if rung == "proxy" else None
        loss = self.trials.train(candidate, self._rung_seeds(rung), pause_after=pause, watch=self._watch(candidate))
        if loss is not None:
            self._record_loss(candidate, rung, loss)

    def judge(self, candidate: CandidateRef, rung: Rung) -> None:
        """Measure what was trained for the rung, and decide whether the candidate goes on.

        Raises:
            CandidateFailure: the candidate failed in training.
            InfrastructureError, Cancelled: see ``Trials.evaluate``.
        """
        if self.stopped(candidate):
            return
        if rung != "proxy":
            self.trials.evaluate(candidate, self._rung_seeds(rung))
        if not self.spec.enabled or not candidate.generation or self._decided(candidate, rung):
            return
        if failure := self.trials.failure(candidate):
            raise failure
        if rung == self.rungs[-1]:
            measured = self.measure(candidate, rung)
            self._record(candidate, rung, measured, "finished", f"measured with {counted_seeds(len(self.seeds))}")
            return
        with self.trials.announced("race", candidate.name, candidate.generation) as say:
            measured = self.measure(candidate, rung)
            decision = self._decide(candidate, rung, measured)
            outcome: Literal["stopped", "promoted"] = "stopped" if decision.stop else "promoted"
            say(f"{outcome} after {_NAMES[rung]}: {decision.message}")
        cause, at_stop = "race" if decision.stop else None, None
        if decision.stop and rung == "proxy":
            keep_trajectory(self.trials, candidate, self.seeds[0], self.spec.proxy_steps)
            at_stop = self._at_stop(candidate, self.seeds[0], self.spec.proxy_steps)
        self._record(
            candidate, rung, measured, outcome, decision.message, cause=cause, judged=decision, at_stop=at_stop
        )

    # the decision

    def measure(self, candidate: CandidateRef, rung: Rung) -> Measurement:
        """Everything that was measured of the candidate with the seeds of this rung, and of those below it."""
        seeds, first = self._rung_seeds(rung), self.seeds[0]
        steps = self.archive.trajectory(candidate.candidate_id, self.protocol.digest)
        if rung == "proxy" and not steps.get(first):  # not archived while its training may go on
            steps[first] = self.trials.unfinished_trajectory(candidate, first)[0][: self.spec.proxy_steps]
        overalls = {one.seed: one.overall for one in self.trials.evaluations(candidate, seeds)}
        return Measurement.of({seed: rows for seed, rows in steps.items() if seed in seeds}, overalls, self.spec)

    def _decide(self, candidate: CandidateRef, rung: Rung, measured: Measurement) -> Decision:
        names = {row["candidate_id"]: row["name"] for row in self.archive.rows("candidates")}
        references = dict.fromkeys(one for one in (candidate.parent_id, self._baseline()) if one)
        decision = self._referee(candidate.generation).decide(measured, rung, references)
        if decision.reference:
            named = names[decision.reference]
            if decision.reference not in references:  # neither parent nor baseline
                named = f"the best so far ({named})"
            text = decision.message.replace(decision.reference, named)
            decision = replace(decision, message=text)
        return decision

    def _referee(self, generation: int) -> Referee:
        """The referee, learned from every measurement of candidates of earlier generations."""
        with self._lock:
            if generation not in self._referees:
                rows = sorted(self.archive.rows("candidates", arm=EVOLUTION_ARM), key=lambda row: row["generation"])
                known = [row["candidate_id"] for row in rows if row["generation"] < generation]
                roots = [row["candidate_id"] for row in rows if not row["generation"]]
                found = self.archive.evaluations(protocol=self.protocol.digest)
                overalls = {name: {one.seed: one.overall for one in found.get(name, [])} for name in known}
                measured = {name: Measurement.of({}, overalls[name], self.spec) for name in known}
                for name, steps in self.archive.trajectories(known, self.protocol.digest):
                    measured[name] = Measurement.of(steps, overalls[name], self.spec)
                self._referees[generation] = Referee.learn(self.spec, self.seeds, roots, measured)
            return self._referees[generation]

    # records

    def _record_loss(self, candidate: CandidateRef, rung: Rung, loss: str) -> None:
        """Record a certain loss. Seeds that had finished before it are evaluated; the policy of the one that was ended is, too."""
        steps = self.archive.trajectory(candidate.candidate_id, self.protocol.digest)
        own = [seed for seed in self._rung_seeds(rung) if seed in steps]
        finished = [seed for seed in own if len(steps[seed]) == self.protocol.training.steps]
        if finished:
            self.trials.evaluate(candidate, finished)
        ended = [seed for seed in own if seed not in finished]
        at_stop = self._at_stop(candidate, ended[-1], len(steps[ended[-1]])) if ended else None
        measured = self.measure(candidate, rung)
        self._record(candidate, rung, measured, "stopped", loss, cause="certain_loss", at_stop=at_stop)

    def _at_stop(self, candidate: CandidateRef, seed: int, steps: int) -> tuple[float, int] | None:
        """Overall and step of the policy at which a training is stopped."""
        return self.trials.evaluate_stopped(candidate, seed, steps) if self.spec.evaluate_stopped else None

    def _watch(self, candidate: CandidateRef) -> HealthWatch | None:
        """The health rules of a training; None for a root, since the baseline has to be measured in any case."""
        if not candidate.generation or not self.health.enabled:
            return None
        parent = candidate.parent_id
        steps = self.archive.trajectory(parent, self.protocol.digest) if parent else {}
        return HealthWatch(self.health, steps, self.protocol.scored_by_reward, self.protocol.training.steps)

    def _record(
        self,
        candidate: CandidateRef,
        rung: Rung,
        measured: Measurement,
        decision: Literal["promoted", "stopped", "finished"],
        message: str,
        *,
        cause: str | None = None,
        judged: Decision | None = None,
        at_stop: tuple[float, int] | None = None,
    ) -> None:
        value = measured.mean_overall if decision == "finished" else measured.value(rung, self.seeds[0])
        gap = judged.difference if judged else None
        row = {
            **self._keys(candidate),
            "rung": rung,
            "generation": candidate.generation,
            "seeds": sorted(measured.steps),
            "steps": max(measured.steps.values(), default=0),
            "tokens": sum(measured.tokens.values()),
            "decision": decision,
            "cause": cause,
            "value": value if math.isfinite(value) else None,
            "reference": judged.reference if judged else None,
            "difference": gap.estimate if gap else None,
            "probability": judged.probability if judged else None,
            "noise_std": gap.noise.std if gap else None,
            "noise_freedom": gap.noise.freedom if gap else None,
            "message": message,
            "stopped_overall": at_stop[0] if at_stop else None,
            "stopped_step": at_stop[1] if at_stop else None,
            "written_by": "poise",
        }
        self.archive.append("rungs", [row])

    def _rung_seeds(self, rung: Rung) -> tuple[int, ...]:
        return self.seeds if rung == "all" else self.seeds[:1]

    def _decided(self, candidate: CandidateRef, rung: Rung) -> bool:
        return self.archive.contains("rungs", **self._keys(candidate), rung=rung)

    def _keys(self, candidate: CandidateRef) -> dict[str, str]:
        return {"protocol": self.protocol.digest, "candidate_id": candidate.candidate_id}

    def _baseline(self) -> str | None:
        roots = [row["candidate_id"] for row in self.archive.rows("candidates", arm=EVOLUTION_ARM, generation=0)]
        return roots[0] if roots else None


def judged_by(ladder: LadderSpec, protocol: Protocol) -> LadderSpec:
    """The ladder that a run climbs: no race on reward where reward is not what is scored."""
    return ladder if protocol.scored_by_reward else ladder.model_copy(update={"proxy_stop_below": 0.0})


_NAMES = {"proxy": "the proxy", "first": "one seed", "all": "all seeds"}
