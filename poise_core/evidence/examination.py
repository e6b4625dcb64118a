"""What an examination asks, condition by condition, and what the answers say together.

A champion candidate is compared with the baseline under conditions that the preset lists (``ExaminationSpec``):

    primary      the protocol as it is
    rates        each side at its best of several learning rates
    policy:NAME  the protocol on another base policy
    pass@K       the sampled benchmarks alone, at this k: from the counts of the primary condition, as is greedy
    greedy       the greedy benchmarks alone
    procedural   problems drawn for this examination alone, answered by the policies of the primary condition
    collapse     no training of the candidate collapsed, and so many were seen that it can hardly happen often

All comparisons read the same fresh seeds on the same sealed problems. The primary interval is at 95 %. The m other comparisons have
1 - 0.05 / m each (Bonferroni), so that together they name a condition wrongly in at most 2.5 % of examinations, since only errors
upward count. m is what was planned, also where a part is run. "Robust" needs all of them and would need no correction (Berger 1982,
Technometrics 24); the correction is for reading single ones.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Literal

from poise_core.archive.typed import ExaminationRow
from poise_core.config.preset import ExaminationSpec
from poise_core.config.protocol import BenchmarkSpec, Protocol
from poise_core.evaluation.results import SeedEvaluation
from poise_core.evaluation.scoring import benchmark_score
from poise_core.evidence.intervals import Interval, paired_delta
from poise_core.evidence.noise import SeedNoise

LEVEL = 0.95
PRIMARY, RATES, GREEDY, PROCEDURAL, COLLAPSE = "primary", "rates", "greedy", "procedural", "collapse"
HOLDS, FAILS, OPEN, UNMEASURED = "holds", "does not hold", "not distinguishable", "not measured"
Standing = Literal["robust", "champion", "no champion", "unfinished"]


@dataclass(frozen=True)
class Condition:
    """One condition of an examination."""

    name: str
    kind: Literal["primary", "rates", "policy", "pass", "greedy", "procedural", "collapse"]
    policy: str = ""  # of the kind ``policy``
    k: int = 0  # of the kind ``pass``

    @property
    def trains(self) -> bool:
        """Whether it has trainings of its own; the others are computed from those of the primary one."""
        return self.kind in ("primary", "rates", "policy")

    def measure(self, protocol: Protocol) -> Protocol:
        """The protocol whose Overall is what this condition compares, of the one that was asked."""
        if self.kind == "pass":
            return _of_benchmarks(
                protocol, [one.model_copy(update={"k": self.k}) for one in _drawing(protocol, self.k)]
            )
        if self.kind == "greedy":
            return _of_benchmarks(protocol, _greedy(protocol))
        return protocol


def conditions_of(settings: ExaminationSpec, protocol: Protocol) -> list[Condition]:
    """The conditions that a run can be examined under; those without trainings of their own come before those with.

    A k of which no benchmark draws so many completions is left out, and so is the protocol's own policy.
    """
    found = [Condition(PRIMARY, "primary")]
    found += [Condition(f"pass@{k}", "pass", k=k) for k in settings.passes if _drawing(protocol, k)]
    if settings.greedy and _greedy(protocol):
        found.append(Condition(GREEDY, "greedy"))
    if settings.procedural:
        found.append(Condition(PROCEDURAL, "procedural"))
    found.append(Condition(COLLAPSE, "collapse"))
    if settings.rates:
        found.append(Condition(RATES, "rates"))
    others = [name for name in settings.policies if name != protocol.policy]
    return found + [Condition(f"policy:{PurePath(name).name}", "policy", policy=name) for name in others]


@dataclass(frozen=True)
class Work:
    """What a condition needs of both sides, candidate and baseline, once for every seed: a training and its evaluation."""

    rates: tuple[float, ...] = (1.0,)  # factors on the learning rate, of which the choice takes one
    policy: str = ""  # "": that of the protocol
    choice: bool = False  # with the seeds of the choice, on the search split
    procedural: bool = False  # an evaluation alone, of the policies of the primary condition

    @property
    def certain(self) -> bool:
        """Whether it is needed whatever the choice; the best of several rates may be that of the primary condition."""
        return len(self.rates) == 1

    def seeds(self, settings: ExaminationSpec) -> int:
        """How many seeds it is done with."""
        return settings.choice_seeds if self.choice else settings.seeds


def work_of(condition: Condition, settings: ExaminationSpec) -> list[Work]:
    """The work of a condition in its order; empty for one that is computed from what others have measured."""
    match condition.kind:
        case "primary":
            return [Work()]
        case "procedural":
            return [Work(procedural=True)]
        case "rates":
            return [*(Work((rate,), choice=True) for rate in settings.rates), Work(settings.rates)]
        case "policy":
            return [Work(policy=condition.policy)]
    return []


def level_of(condition: Condition | str, planned: Sequence[str]) -> float:
    """Confidence level of a condition's interval, among all that were planned."""
    name = condition if isinstance(condition, str) else condition.name
    others = [one for one in planned if one not in (PRIMARY, COLLAPSE)]
    return LEVEL if name == PRIMARY else 1.0 - (1.0 - LEVEL) / max(len(others), 1)


@dataclass(frozen=True)
class Plan:
    """What is settled before an examination trains anything; it never changes afterwards."""

    baseline: str
    declared: bool  # whether the candidate was a champion candidate then
    seeds: tuple[int, ...]  # of every comparison
    settings: ExaminationSpec
    choice_seeds: tuple[int, ...] = ()  # of the choice of learning rates
    sealed_set: int = 0  # 0 is what earlier versions of the program read
    policies: Mapping[str, str] = field(default_factory=dict)  # name -> digest of its weights

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Plan:
        """Undo ``to_dict``; a plan of an earlier version has the primary condition and what follows from its counts."""
        settings = ExaminationSpec.model_validate(plain.get("settings", {"rates": (), "policies": ()}))
        return cls(
            plain["baseline"],
            plain["declared"],
            tuple(plain["seeds"]),
            settings,
            tuple(plain.get("choice_seeds", ())),
            plain.get("sealed_set", 0),
            plain.get("policies", {}),
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "settings": self.settings.model_dump(mode="json"), "policies": dict(self.policies)}

    def digest(self, protocol: Protocol, candidate: str) -> str:
        """Sixteen hex digits that identify this examination."""
        text = json.dumps({**self.to_dict(), "protocol": protocol.digest, "candidate": candidate}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def fresh_seeds(listed: Sequence[int], used: set[int], count: int) -> tuple[int, ...]:
    """The first ``count`` seeds that nothing was trained with: those of the list, then the integers after its highest."""
    candidates = itertools.chain(listed, itertools.count(max(listed) + 1))
    return tuple(itertools.islice((seed for seed in candidates if seed not in used), count))


@dataclass(frozen=True)
class Comparison:
    """Candidate and baseline under one condition, percent."""

    delta: Interval  # percent points
    mine: Mapping[int, float]  # seed -> what the condition compares
    theirs: Mapping[int, float]

    @property
    def verdict(self) -> str:
        """``holds`` where the limits lie above zero, ``does not hold`` where they lie below it."""
        if self.delta.low > 0.0:
            return HOLDS
        return FAILS if self.delta.high < 0.0 else OPEN


def compare(
    mine: Sequence[SeedEvaluation],
    theirs: Sequence[SeedEvaluation],
    measure: Protocol,
    level: float,
    noise: SeedNoise | None = None,
) -> Comparison:
    """Compare two sides that were scored on the same problems with the same seeds.

    Args:
        mine: of the candidate.
        theirs: of the baseline.
        measure: from ``Condition.measure``.
        level: confidence of the limits.
        noise: of the difference between seeds, where it is known better than from these.

    Raises:
        ValueError: no seed in common, or other benchmarks.
    """
    delta = paired_delta(mine, theirs, measure, level, noise)
    return Comparison(delta, *({one.seed: _value(one, measure) for one in side} for side in (mine, theirs)))


def best_rate(scores: Mapping[float, float | None]) -> float | None:
    """The factor with the highest score; of equal ones the nearest to 1. None where no training has come to its end."""
    ended = {rate: score for rate, score in scores.items() if score is not None}
    return max(ended, key=lambda rate: (ended[rate], -abs(math.log(rate)))) if ended else None


def at_the_edge(rate: float, rates: Sequence[float]) -> bool:
    """Whether a better rate may lie beyond those that were tried."""
    return rate in (min(rates), max(rates))


@dataclass(frozen=True)
class Conclusion:
    """What the conditions say together."""

    standing: Standing
    sentence: str


def conclude(rows: Sequence[ExaminationRow]) -> Conclusion:
    """``champion`` needs the primary condition and a declaration before it, ``robust`` every planned condition.

    Args:
        rows: of ``examinations``, of one candidate; at least one.
    """
    by_name = {row["condition"]: row for row in rows}
    planned = rows[0]["planned"]
    groups = {verdict: [one for one in planned if one in by_name and by_name[one]["verdict"] == verdict] for verdict in
              (HOLDS, FAILS, OPEN, UNMEASURED)}  # fmt: skip
    left = [one for one in planned if one not in by_name]
    if PRIMARY not in by_name:
        standing: Standing = "unfinished"
    elif by_name[PRIMARY]["verdict"] != HOLDS or not rows[0]["declared"]:
        standing = "no champion"
    else:
        standing = "robust" if len(groups[HOLDS]) == len(planned) else "champion"
    if standing == "robust":
        return Conclusion(standing, f"robust: holds under all {len(planned)} conditions ({', '.join(planned)})")
    parts = [f"{verdict} under {', '.join(names)}" for verdict, names in groups.items() if names]
    parts += [f"not examined under {', '.join(left)}"] if left else []
    undeclared = "" if rows[0]["declared"] else ", as it had not been declared"
    return Conclusion(standing, f"{standing}{undeclared}: {'; '.join(parts)}")


def unfinished(rows: Sequence[ExaminationRow]) -> bool:
    """Whether the primary condition holds and others wait to be examined."""
    names = {row["condition"]: row["verdict"] for row in rows}
    return bool(rows) and names.get(PRIMARY, HOLDS) == HOLDS and not set(rows[0]["planned"]) <= names.keys()


def multiplicity(planned: Sequence[str]) -> str:
    """One sentence on the levels of the intervals."""
    others = [one for one in planned if one not in (PRIMARY, COLLAPSE)]
    if not others:
        return "The interval is at 95 %."
    level = 100 * level_of(others[0], planned)
    return (
        f"Intervals are at 95 % for {PRIMARY} and at {level:.4g} % for each of the {len(others)} other comparisons, which "
        "together name a condition wrongly in at most 2.5 % of examinations."
    )


def _drawing(protocol: Protocol, k: int) -> list[BenchmarkSpec]:
    return [one for one in protocol.benchmarks if one.metric == "pass" and one.samples >= k]


def _greedy(protocol: Protocol) -> list[BenchmarkSpec]:
    return [one for one in protocol.benchmarks if one.metric == "accuracy"]


def _of_benchmarks(protocol: Protocol, chosen: Sequence[BenchmarkSpec]) -> Protocol:
    """The protocol with these benchmarks alone, their weights in the same proportions."""
    total = sum(one.weight for one in chosen)
    scaled = tuple(one.model_copy(update={"weight": one.weight / total}) for one in chosen)
    return protocol.model_copy(update={"benchmarks": scaled})


def _value(evaluation: SeedEvaluation, measure: Protocol) -> float:
    results = {result.name: result for result in evaluation.benchmarks}
    return sum(
        one.weight * benchmark_score(results[one.name].correct, results[one.name].samples, one.k)
        for one in measure.benchmarks
    )
