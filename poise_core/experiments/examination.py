"""The examination of a champion candidate: its replication, and the same comparison under the further conditions of the preset.

What each condition asks is in ``poise_core.evidence.examination``; here they are carried out, one after the other, and every
answer is a row of ``examinations``. Seeds, sealed problems and settings are those of the plan that was written before anything was
trained, so an examination that was killed goes on where it stopped, with the same seeds, and one that is asked for again shows
its rows.

Where each side gets its best learning rate, the rate is chosen on the search split with seeds of their own, and the comparison is
made on the sealed problems with the seeds of the other comparisons: the choice cannot make it look better than it is.

Conditions that train are left out where the candidate was not replicated, unless they are asked for by name: they are costly, and
there is no champion to examine.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from poise_core.archive.typed import ExaminationRow, ReplicationRow
from poise_core.config.protocol import BenchmarkSpec
from poise_core.evaluation.results import SeedEvaluation
from poise_core.evidence.collapse import collapse_bound, collapsed_seeds, describe_collapses
from poise_core.evidence.examination import (
    FAILS,
    HOLDS,
    LEVEL,
    OPEN,
    PRIMARY,
    UNMEASURED,
    Comparison,
    Condition,
    Plan,
    at_the_edge,
    best_rate,
    compare,
    conditions_of,
    level_of,
    work_of,
)
from poise_core.evidence.format import format_duration, format_interval
from poise_core.evolution.records import CandidateRef
from poise_core.experiments.replication import Replication, ReplicationRefused, Variant, delta_columns
from poise_core.failures import CandidateFailure

Fields = dict[str, Any]


@dataclass(frozen=True)
class ExaminationRecord:
    """What the archive holds of one candidate's examination."""

    replication: ReplicationRow
    rows: Sequence[ExaminationRow]  # in the order of the plan; none where an earlier version has replicated it


class _SideFailed(Exception):
    """A training of one side failed under a condition."""

    def __init__(self, side: CandidateRef, failure: CandidateFailure) -> None:
        super().__init__(f"{failure.kind} in {failure.stage}: {failure.message}")
        self.side = side


class Examination(Replication):
    """One examination in one run, whose lock is held; its arguments are those of ``Replication``."""

    def examine(
        self,
        count: int | None = None,
        *,
        undeclared: bool = False,
        conditions: Sequence[str] | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> ExaminationRecord:
        """Examine the candidate, go on with its examination, or read back what it has found.

        Args:
            count: how many fresh seeds a comparison has; by default ``examination.seeds`` of the preset.
            undeclared: also a candidate that is no champion candidate; the record says so.
            conditions: names of those to carry out, after the primary one; by default all that were planned.
            say: called with the cost, one line, before anything is trained; not called where nothing is.

        Raises:
            ReplicationRefused: not a champion candidate, or a condition that is not planned.
            InfrastructureError: a process failed, or the baseline did under the primary condition; the same call goes on.
            Cancelled: ``should_stop`` returned true.
        """
        stored, rows = self.stored(), self.rows()
        if (
            stored and not self.has_plan()
        ):  # of before there were examinations, or without the folder that holds its seeds
            return ExaminationRecord(stored, rows)
        if stored and rows and set(rows[0]["planned"]) <= {row["condition"] for row in rows}:
            return ExaminationRecord(stored, rows)
        planned = conditions_of(self.settings(), self.protocol)
        wanted = _selected(planned, conditions)
        plan = self.begin(count, undeclared=undeclared)
        asked = conditions is not None
        paid = [one for one in wanted if asked or stored is None or _replicated(stored) or not one.trains]
        cost = self.cost(plan, paid, perhaps=not asked and stored is None)
        if cost:
            say(cost)
        stored = stored or self.replicate(plan)
        for condition in wanted:
            if condition.trains and condition.name != PRIMARY and not (asked or _replicated(stored)):
                continue
            if not self._contains(condition):
                self._file(plan, planned, condition, self._answer(plan, planned, condition, stored))
        return ExaminationRecord(stored, self.rows())

    def rows(self) -> list[ExaminationRow]:
        """Of ``examinations``, in the order of the plan."""
        found = self.archive.rows("examinations", protocol=self.protocol.digest, candidate_id=self.candidate_id)
        return sorted(found, key=lambda row: row["planned"].index(row["condition"]))

    def _contains(self, condition: Condition) -> bool:
        keys = {"protocol": self.protocol.digest, "candidate_id": self.candidate_id, "condition": condition.name}
        return self.archive.contains("examinations", **keys)

    # the cost

    def cost(self, plan: Plan, conditions: Sequence[Condition], *, perhaps: bool = False) -> str:
        """One line on the trainings that these conditions still need, and how long they take; empty where they need none.

        Args:
            plan: of the examination.
            conditions: that are to be carried out.
            perhaps: whether the primary one decides if the others are carried out.
        """
        sides = [self.candidate_ref(plan.baseline), self.candidate_ref()]
        certain, possible, parts = 0, 0, []
        for condition in conditions:
            if not condition.trains or self._contains(condition):
                continue
            needed = {True: 0, False: 0}
            for work in work_of(condition, plan.settings):
                variants = [self.variant(plan, rate=rate, policy=work.policy) for rate in work.rates]
                needed[work.certain] += sum(
                    max(self.to_train(side, plan, one, choice=work.choice) for one in variants) for side in sides
                )
            certain, possible = certain + needed[True], possible + needed[False]
            more = f" and up to {needed[False]} more" if condition.kind == "rates" else ""
            parts.append(f"{condition.name} {needed[True]}{more}")
        if not certain + possible:
            return ""
        seconds = self._seconds_per_training(plan.baseline)
        most = certain + possible
        together = min(2, self.run.preset.resources.parallel_candidates)
        time = f"; so many take about {format_duration(seconds * most / together)}" if seconds else ""
        up_to = "up to " if possible or (perhaps and len(parts) > 1) else ""
        return f"examination {plan.sealed_set} of this run: {up_to}{most} trainings ({', '.join(parts)}){time}"

    def _seconds_per_training(self, baseline: str) -> float | None:
        """Median of the baseline's trainings in the search, with their evaluation; None where none was timed."""
        digest = self.protocol.digest
        spent: dict[int, float] = {}
        for row in self.archive.rows("trajectories", protocol=digest, candidate_id=baseline):
            seconds = (row["seconds_rollout"] or 0.0) + (row["seconds_update"] or 0.0)
            spent[row["seed"]] = spent.get(row["seed"], 0.0) + seconds
        scored = self.archive.evaluations(protocol=digest, candidate_id=baseline).get(baseline, [])
        timed = [one.seconds for one in scored if math.isfinite(one.seconds)]
        if not spent:
            return None
        return statistics.median(spent.values()) + (statistics.median(timed) if timed else 0.0)

    # the answers

    def _file(self, plan: Plan, planned: Sequence[Condition], condition: Condition, fields: Fields) -> None:
        detail = {"settings": plan.settings.model_dump(mode="json"), **fields.pop("detail", {})}
        row = {
            "protocol": self.protocol.digest,
            "candidate_id": self.candidate_id,
            "condition": condition.name,
            "baseline_id": plan.baseline,
            "declared": plan.declared,
            "seeds": list(plan.seeds),
            "choice_seeds": list(plan.choice_seeds),
            "sealed_set": plan.sealed_set,
            "planned": [one.name for one in planned],
            "examination": plan.digest(self.protocol, self.candidate_id),
            "detail": json.dumps(detail, sort_keys=True),
            "written_by": "poise",
            **fields,
        }
        self.archive.append("examinations", [row])

    def _answer(self, plan: Plan, planned: Sequence[Condition], condition: Condition, stored: ReplicationRow) -> Fields:
        """The columns of one condition's row that are its own."""
        level = level_of(condition, [one.name for one in planned])
        try:
            if stored["outcome"] == "failed" and condition.kind not in ("rates", "policy"):
                return {"verdict": FAILS, "message": stored["message"]}
            if condition.kind == "primary":
                return self._primary(plan, stored)
            if condition.kind == "rates":
                return self._at_best_rates(plan, level)
            if condition.kind == "collapse":
                return self._collapse(plan)
            variant = self.variant(plan, policy=condition.policy, procedural=condition.kind == "procedural")
            mine, theirs = self._both(plan, variant, variant)
            fields = _fields(compare(mine, theirs, condition.measure(variant.asked), level), level)
            own = self._collapses(plan, mine, theirs) if condition.trains else {}
            if variant.procedural:
                own = {"message": f"{fields['message']}, {_drawn(variant.procedural)}"}
            return {**fields, **own, "detail": {"protocols": [variant.asked.digest]}}
        except _SideFailed as failed:
            if failed.side.candidate_id == self.candidate_id:
                return {"verdict": FAILS, "message": f"{FAILS}: {failed.side.name} failed, {failed}"}
            return {"verdict": UNMEASURED, "message": f"{UNMEASURED}: the baseline {failed.side.name} failed, {failed}"}

    def _both(self, plan: Plan, mine: Variant, theirs: Variant) -> tuple[list[SeedEvaluation], list[SeedEvaluation]]:
        """Candidate and baseline on the sealed problems.

        Raises:
            _SideFailed: a training of one of them failed.
        """
        base, me = self.candidate_ref(plan.baseline), self.candidate_ref()
        their, my = self.side_by_side(lambda: self.sealed(base, plan, theirs), lambda: self.sealed(me, plan, mine))
        if isinstance(their, CandidateFailure):
            raise _SideFailed(base, their)
        if isinstance(my, CandidateFailure):
            raise _SideFailed(me, my)
        return my, their

    def _primary(self, plan: Plan, stored: ReplicationRow) -> Fields:
        """The replication's numbers, which were computed once, with the collapses beside them."""
        variant = self.variant(plan)
        mine, theirs = self._both(plan, variant, variant)
        names = ("overall", "baseline_overall", "delta", "low", "high")
        high = stored["high"]
        worse = FAILS if high is not None and high < 0.0 else OPEN
        return {
            **{name: stored.get(name) for name in names},
            "verdict": HOLDS if _replicated(stored) else worse,
            "level": LEVEL,
            "worst": min(one.overall for one in mine),
            "baseline_worst": min(one.overall for one in theirs),
            "message": stored["message"],
            **self._collapses(plan, mine, theirs),
            "detail": {"protocols": [variant.protocol.digest]},
        }

    def _at_best_rates(self, plan: Plan, level: float) -> Fields:
        """Each side at the best of its learning rates."""
        me, base = self.candidate_ref(), self.candidate_ref(plan.baseline)
        scores: dict[str, dict[float, float | None]] = {}

        def choose(side: CandidateRef) -> None:
            scores[side.candidate_id] = self._rate_scores(side, plan)

        self.side_by_side(lambda: choose(base), lambda: choose(me))
        theirs, mine = (best_rate(scores[side.candidate_id]) for side in (base, me))
        rates = {"rate": mine, "baseline_rate": theirs}
        tried = {title: scores[side.candidate_id] for title, side in (("baseline", base), ("candidate", me))}
        detail: Fields = {"rates": {title: {f"{r:.6g}": x for r, x in one.items()} for title, one in tried.items()}}
        said = "; ".join(f"{side.name} {_listed(scores[side.candidate_id])}" for side in (base, me))
        if mine is None or theirs is None:
            side, verdict = (base.name, UNMEASURED) if theirs is None else (me.name, FAILS)
            return {**rates, "verdict": verdict, "message": f"{verdict}: {side} failed at every rate", "detail": detail}
        variants = self.variant(plan, rate=mine), self.variant(plan, rate=theirs)
        detail["protocols"] = sorted({one.protocol.digest for one in variants})
        results = self._both(plan, *variants)
        fields = _fields(compare(*results, self.protocol, level), level)
        better = "is better than" if fields["verdict"] == HOLDS else "is not told apart from"
        sentence = f"{me.name} at x{mine:.3g} {better} {base.name} at x{theirs:.3g}"
        if fields["verdict"] == FAILS:
            sentence = f"{base.name} at x{theirs:.3g} is better than {me.name} at x{mine:.3g}"
        edges = [
            name for name, rate in ((me.name, mine), (base.name, theirs)) if at_the_edge(rate, plan.settings.rates)
        ]
        beyond = f"; a better rate of {' and '.join(edges)} may lie beyond those that were tried" if edges else ""
        fields["message"] = f"{fields['message']}: {sentence} (chosen by {said}){beyond}"
        return {**fields, **rates, **self._collapses(plan, *results), "detail": detail}

    def _rate_scores(self, side: CandidateRef, plan: Plan) -> dict[float, float | None]:
        """Factor -> mean Overall over the seeds of the choice, on the search split; None where a training failed."""
        scores: dict[float, float | None] = {}
        for rate in plan.settings.rates:
            try:
                found = self.chosen(side, plan, self.variant(plan, rate=rate))
                scores[rate] = statistics.fmean(one.overall for one in found)
            except CandidateFailure:
                scores[rate] = None
        return scores

    def _collapse(self, plan: Plan) -> Fields:
        variant = self.variant(plan)
        mine, theirs = self._both(plan, variant, variant)
        fields = self._collapses(plan, mine, theirs)
        collapsed, bound, limit = fields["collapsed"], fields["collapse_bound"], plan.settings.collapse_limit
        verdict = FAILS if collapsed else HOLDS if bound <= limit else OPEN
        meaning = "" if verdict == FAILS else f"; {limit:.0%} is allowed".replace("%", " %")
        worst = min(one.overall for one in mine)
        said = f"{verdict}: {describe_collapses(collapsed, len(mine))}{meaning}; the worst has {worst:.1f}"
        return {
            **fields,
            "verdict": verdict,
            "worst": worst,
            "baseline_worst": min(one.overall for one in theirs),
            "message": said,
            "detail": {"protocols": [variant.protocol.digest]},
        }

    @staticmethod
    def _collapses(plan: Plan, mine: Sequence[SeedEvaluation], theirs: Sequence[SeedEvaluation]) -> Fields:
        reference = statistics.fmean(one.overall for one in theirs)
        overalls = {one.seed: one.overall for one in mine}
        collapsed = len(collapsed_seeds(overalls, reference, plan.settings.collapse_points))
        return {"collapsed": collapsed, "collapse_bound": collapse_bound(collapsed, len(overalls))}


def _selected(planned: Sequence[Condition], names: Sequence[str] | None) -> list[Condition]:
    """The conditions of these names, and the primary one, which all others rest on; ``policy`` stands for all policies."""
    if names is None:
        return list(planned)
    known = {one.name for one in planned} | {one.kind for one in planned if one.kind == "policy"}
    for name in names:
        if name not in known:
            listed = ", ".join(one.name for one in planned)
            raise ReplicationRefused(f"no condition {name!r} in this examination; it has {listed}")
    wanted = {*names, PRIMARY}
    return [one for one in planned if one.name in wanted or (one.kind == "policy" and "policy" in wanted)]


def _replicated(row: ReplicationRow) -> bool:
    return row["outcome"] == "replicated"


def _fields(found: Comparison, level: float) -> Fields:
    delta = found.delta
    return {
        "verdict": found.verdict,
        "overall": statistics.fmean(found.mine.values()),
        "baseline_overall": statistics.fmean(found.theirs.values()),
        **delta_columns(delta),
        "level": level,
        "worst": min(found.mine.values()),
        "baseline_worst": min(found.theirs.values()),
        "message": f"{found.verdict}: {format_interval(delta, signed=True)} points to the baseline over {delta.seeds} fresh seeds",
    }


def _drawn(benchmarks: Sequence[BenchmarkSpec]) -> str:
    sets = [name for one in benchmarks if one.source for name in one.source.reasoning_gym or ()]
    count = sum(one.problems for one in benchmarks)
    return f"on {count} problems that were drawn for this examination ({', '.join(sets)})"


def _listed(scores: Mapping[float, float | None]) -> str:
    return ", ".join(f"x{rate:.3g} {'failed' if score is None else f'{score:.1f}'}" for rate, score in scores.items())
