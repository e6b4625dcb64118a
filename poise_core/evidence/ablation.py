"""What a candidate's mechanisms and numbers do for its score: an ablation, as a plan and as what follows from its measurements.

Versions of the candidate's own file are trained with the candidate's own seeds, so all differences are paired by seed and problem.
With F(S) for Overall with the mechanisms S switched off,

    contribution of a            F() - F(a)
    a alone, over the baseline   F(all but a) - F(baseline)
    interaction of a and b       F() - F(a) - F(b) + F(a, b)      above zero: together they do more than each for itself

What a candidate left out of the baseline is no mechanism of its file. Where the catalogue expresses both, every change to the
baseline is undone in the candidate and made alone in the baseline, too (``poise_core.evidence.changes``).

Intervals are at 95 % each and rest on the noise floor of the run, moderated by the version's own seeds. They are not corrected for
how many there are: of twenty mechanisms that do nothing, one is expected to look as if it did something.

A simplified version leaves out what was not shown to help: every mechanism whose contribution is not above zero. Where it is
measurably worse than the candidate, what contributes most of what was left out is put back, and so on. The version was chosen by
the same seeds that measure it, so a claim about it wants a replication.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from poise_core.archive.typed import AblationRow
from poise_core.candidate.switches import Switches
from poise_core.config.protocol import Protocol
from poise_core.evaluation.results import SeedEvaluation
from poise_core.evidence.changes import SlotChange, source_changes
from poise_core.evidence.format import format_interval
from poise_core.evidence.intervals import Interval, paired_contrast
from poise_core.evidence.noise import NoiseFloor, SeedNoise, moderated
from poise_core.evidence.run_evidence import RunEvidence
from poise_core.mechanisms.composition import Composition
from poise_core.mechanisms.render import render

NEAR, WIDE = (0.5, 2.0), (0.25, 4.0)
"""Factors by which a number is moved: the first are measured before pairs of mechanisms, the others after them."""


@dataclass(frozen=True)
class Version:
    """One version of a candidate's file that an ablation measures.

    The key of its row is ``without:a+b``, ``number:kl_coef=0.02``, ``undone:kl=k3(kl_coef=0.01)`` or ``alone:kl=none``.
    """

    key: str
    source: str
    dropped: tuple[str, ...] = ()
    numbers: Mapping[str, object] | None = None

    @property
    def label(self) -> str:
        """For people; see ``label_of``."""
        return label_of(self.key, self.dropped)


def label_of(key: str, dropped: Sequence[str]) -> str:
    """A version for people: ``without a, b``, ``kl_coef = 0.02``, ``with kl=k3(kl_coef=0.01)`` or ``baseline with kl=none``.

    Args:
        key: of its row.
        dropped: mechanisms that it lacks.
    """
    kind, _, rest = key.partition(":")
    if kind == "without":
        return f"without {', '.join(dropped)}"
    return {"undone": f"with {rest}", "alone": f"baseline with {rest}"}.get(kind, rest.replace("=", " = "))


def without(switches: Switches, names: Sequence[str]) -> Version | None:
    """The version with these mechanisms switched off; None where their overrides contradict each other."""
    found = switches.without(names)
    if found is None or not found.numbers:
        return None
    return Version(key_of(found.dropped), found.source, found.dropped, found.numbers)


def key_of(dropped: Sequence[str]) -> str:
    """Of the version without these mechanisms, which are in the order of the file."""
    return "without:" + "+".join(dropped)


def each_off(switches: Switches) -> list[Version]:
    """Every mechanism switched off alone."""
    return _distinct([without(switches, [name]) for name in switches.switchable])


def each_alone(switches: Switches) -> list[Version]:
    """Every mechanism as the only one; of a single one, nothing is left to switch off."""
    names = switches.switchable
    return _distinct([without(switches, [other for other in names if other != name]) for name in names if names[1:]])


def pairs(switches: Switches) -> list[Version]:
    """Every two mechanisms switched off together."""
    return _distinct([without(switches, pair) for pair in itertools.combinations(switches.switchable, 2)])


def moved_numbers(switches: Switches, factors: Sequence[float]) -> list[Version]:
    """Every number of the file multiplied by each factor, one at a time; whole numbers stay whole and above zero.

    Tuples are left alone: a number of one may mean nothing, or be out of order, without the others.
    """
    found = []
    for name, value in switches.defaults.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or value == 0:
            continue
        for factor in factors:
            moved = float(f"{value * factor:.6g}") if isinstance(value, float) else max(1, round(value * factor))
            if moved != value and not switches.switches_off(name, moved):
                source = switches.with_number(name, moved)
                found.append(Version(f"number:{name}={moved:g}", source, numbers={name: moved}))
    return _distinct(found)


def changes_undone(changes: Sequence[SlotChange]) -> list[Version]:
    """The candidate with each of its changes to the baseline undone alone."""
    return _distinct([_composed(_undone_key(one), one.undone) for one in changes])


def changes_alone(changes: Sequence[SlotChange]) -> list[Version]:
    """The baseline with each change made alone."""
    return _distinct([_composed(_alone_key(one), one.alone) for one in changes])


def _undone_key(change: SlotChange) -> str:
    return f"undone:{change.before}"


def _alone_key(change: SlotChange) -> str:
    return f"alone:{change.after}"


def _composed(key: str, composition: Composition | None) -> Version | None:
    return None if composition is None else Version(key, render(composition, label_of(key, ())))


def _distinct(found: Sequence[Version | None]) -> list[Version]:
    return list({one.key: one for one in found if one is not None}.values())


def limits(said: Switches) -> str:
    """What an ablation of this file cannot do, as a sentence; "" where it can do all."""
    fixed = [name for name in said.mechanisms if name not in said.switchable]
    tuples = [name for name, value in said.defaults.items() if isinstance(value, tuple)]
    alone = f"numbers within the tuples {', '.join(tuples)} are left alone" if tuples else ""
    none = "it has no numbers outside tuples, which are left alone" if tuples else "it has no numbers"
    numbers = "its numbers are moved one at a time all the same" if moved_numbers(said, NEAR) else none
    if not said.mechanisms:
        return (
            f"MECHANISMS of this file is empty, so no mechanism can be switched off; {numbers}. To ablate one, give it a "
            "hyperparameter that switches it off and name that in MECHANISMS"
        )
    if fixed:
        return (
            f"{', '.join(fixed)} cannot be switched off, since the defaults that MECHANISMS overrides are no plain values; "
            f"{numbers}. Write these defaults as literals"
        )
    return alone


# what follows from the measurements


@dataclass(frozen=True)
class Contribution:
    """What one mechanism, or one change to the baseline, does."""

    name: str  # of the mechanism; of a change ``kl: k3(kl_coef=0.01) -> none``
    gone: tuple[str, ...]  # what its overrides switch off, itself included; the slots of a change
    contribution: Interval | None  # of the candidate minus the version without it
    alone: Interval | None  # of the version with it alone minus the baseline
    outcome: str  # of the version without it: measured, refused, failed, or "" where there is none yet
    message: str = ""

    @property
    def verdict(self) -> str:
        """``helps``, ``harms``, ``not distinguishable``, ``needed`` (the file is refused or fails without) or ``not measured``."""
        if self.contribution is None:
            return "needed" if self.outcome in ("refused", "failed") else "not measured"
        if self.contribution.low > 0.0:
            return "helps"
        return "harms" if self.contribution.high < 0.0 else "not distinguishable"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "gone": list(self.gone),
            "contribution": _plain(self.contribution),
            "alone": _plain(self.alone),
            "verdict": self.verdict,
            "message": self.message,
        }


@dataclass(frozen=True)
class Interaction:
    """How two mechanisms act together."""

    pair: tuple[str, str]
    effect: Interval


@dataclass(frozen=True)
class Point:
    """One value of a number."""

    value: float
    delta: Interval | None  # to the candidate; None where this version was refused or failed
    outcome: str


@dataclass(frozen=True)
class Simplified:
    """A version with fewer mechanisms."""

    key: str
    dropped: tuple[str, ...]
    kept: int  # mechanisms that are left
    of: int  # mechanisms of the candidate
    delta: Interval  # to the candidate
    source: str
    over_baseline: Interval | None

    @property
    def no_loss(self) -> bool:
        """Whether it is not measurably worse than the candidate."""
        return self.delta.high >= 0.0

    @property
    def sentence(self) -> str:
        """What was measured of it."""
        at_most = f"; at most {-self.delta.low:.1f} points are lost" if -math.inf < self.delta.low < 0.0 else ""
        told = "no loss was measured" if self.no_loss else "it is worse"
        over = f"; to the baseline {format_interval(self.over_baseline, signed=True)}" if self.over_baseline else ""
        return (
            f"{self.kept} of {self.of} mechanisms, without {', '.join(self.dropped)}: "
            f"{format_interval(self.delta, signed=True)} points to the candidate, {told}{at_most}{over}"
        )


@dataclass(frozen=True)
class Ablation:
    """All that is known of one candidate."""

    candidate_id: str
    name: str
    contributions: tuple[Contribution, ...]
    interactions: tuple[Interaction, ...]  # the strongest first
    curves: Mapping[str, tuple[Point, ...]]  # number -> by value, the candidate's own among them
    simplified: Simplified | None
    seeds: int
    versions: int  # that were measured
    limits: str = ""
    changes: tuple[Contribution, ...] = ()  # to the baseline, slot by slot, where the catalogue expresses both

    @property
    def beyond_noise(self) -> tuple[Interaction, ...]:
        """Interactions whose interval excludes zero."""
        return tuple(one for one in self.interactions if one.effect.excludes_zero)

    @property
    def sentence(self) -> str:
        """The result in one line."""
        by_verdict = {
            verdict: [one.name for one in self.contributions if one.verdict == verdict]
            for verdict in ("helps", "needed", "harms", "not distinguishable")
        }
        carries = by_verdict["helps"] + by_verdict["needed"]
        parts = [f"{', '.join(carries)} carr{'y' if len(carries) > 1 else 'ies'} {self.name}"] if carries else []
        parts += [f"{', '.join(by_verdict['harms'])} harm it"] if by_verdict["harms"] else []
        if idle := by_verdict["not distinguishable"]:
            parts.append(f"no effect was measured of {', '.join(idle)}")
        pairs = [f"{' with '.join(one.pair)} {one.effect.estimate:+.1f}" for one in self.beyond_noise]
        parts += [f"beyond their sum: {', '.join(pairs)}"] if pairs else []
        parts += [said] if (said := self._of_changes()) else []
        parts += [f"simplified: {self.simplified.sentence}"] if self.simplified else []
        return "; ".join(parts) or self.limits or "nothing was measured yet"

    def _of_changes(self) -> str:
        """What undoing changes to the baseline has shown; "" where none was undone."""
        undone = [one for one in self.changes if one.verdict != "not measured"]
        shown = [one for one in undone if one.verdict != "not distinguishable"]
        if not undone:
            return ""
        told = "; ".join(f"{one.name} {one.verdict}{_by(one.contribution)}" for one in shown)
        return f"of {len(undone)} changes to the baseline: {told or 'none is told apart from its undoing'}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON; open limits are null."""
        return {
            "says": self.sentence,
            "seeds": self.seeds,
            "versions": self.versions,
            "limits": self.limits,
            "mechanisms": [one.to_dict() for one in self.contributions],
            "changes": [one.to_dict() for one in self.changes],
            "interactions": [
                {"pair": list(one.pair), "effect": _plain(one.effect), "beyond_noise": one.effect.excludes_zero}
                for one in self.interactions
            ],
            "numbers": {
                name: [{"value": one.value, "delta": _plain(one.delta), "outcome": one.outcome} for one in points]
                for name, points in self.curves.items()
            },
            "simplified": self.simplified
            and {
                "says": self.simplified.sentence,
                "dropped": list(self.simplified.dropped),
                "delta": _plain(self.simplified.delta),
                "over_baseline": _plain(self.simplified.over_baseline),
                "no_loss": self.simplified.no_loss,
                "source": self.simplified.source,
            },
        }


def _by(interval: Interval | None) -> str:
    return f" ({interval.estimate:+.1f})" if interval else ""


def _plain(interval: Interval | None) -> dict[str, Any] | None:
    return interval.to_dict() if interval else None


class Measurements:
    """Evaluations of a candidate, of the baseline, and of versions of its file, with the noise of the run."""

    def __init__(self, evidence: RunEvidence, candidate_id: str) -> None:
        """Read them from the evidence of a run."""
        self.protocol: Protocol = evidence.protocol
        self.noise: NoiseFloor | None = evidence.noise
        self.candidate_id = candidate_id
        self.rows: dict[str, AblationRow] = {row["version"]: row for row in evidence.ablations.get(candidate_id, ())}
        self._own = evidence.evaluations.get(candidate_id, ())
        self._base = evidence.evaluations.get(evidence.baseline or "", ())
        self._known = {**evidence.evaluations, **evidence.versions}
        if self.rows:  # the seeds with which it was begun, should the candidate have got more since
            seeds = next(iter(self.rows.values()))["seeds"]
            self._own = [one for one in self._own if one.seed in seeds]

    def of(self, key: str) -> Sequence[SeedEvaluation]:
        """Of a version; empty where it has no score."""
        row = self.rows.get(key)
        return self._known.get(row["measured"] or "", ()) if row and row["outcome"] == "measured" else ()

    def to_candidate(self, key: str) -> Interval | None:
        """Version minus candidate."""
        return self.contrast([(1.0, self.of(key)), (-1.0, self._own)])

    def to_baseline(self, key: str) -> Interval | None:
        """Version minus baseline."""
        return self.contrast([(1.0, self.of(key)), (-1.0, self._base)])

    def interaction(self, first: str, second: str, both: str) -> Interval | None:
        """Of what the first two versions lack, the third lacks both."""
        terms = [(1.0, self._own), (-1.0, self.of(first)), (-1.0, self.of(second)), (1.0, self.of(both))]
        return self.contrast(terms)

    def contrast(self, terms: Sequence[tuple[float, Sequence[SeedEvaluation]]]) -> Interval | None:
        """``paired_contrast`` with the noise floor, moderated by the contrast's own seeds."""
        return paired_contrast(terms, self.protocol, noise=contrast_noise(terms, self.noise))


def contrast_noise(
    terms: Sequence[tuple[float, Sequence[SeedEvaluation]]], floor: NoiseFloor | None
) -> SeedNoise | None:
    """Noise between seeds of a contrast: sum of weight^2 times the typical variance, moderated by its own seeds' variance."""
    if floor is None or not all(found for _, found in terms):
        return None
    prior = SeedNoise(sum(weight**2 for weight, _ in terms) * floor.typical.variance, floor.typical.freedom)
    tables = [(weight, {one.seed: one.overall for one in found}) for weight, found in terms]
    common = set.intersection(*(set(table) for _, table in tables))
    values = [sum(weight * table[seed] for weight, table in tables) for seed in sorted(common)]
    return moderated(prior, SeedNoise(statistics.variance(values), len(values) - 1.0)) if len(values) > 1 else prior


def conclude_ablation(evidence: RunEvidence, candidate_id: str) -> Ablation | None:
    """What the ablation of a candidate says; None where there is none."""
    record, rows = evidence.candidates.get(candidate_id), evidence.ablations.get(candidate_id, ())
    if record is None or not rows:
        return None
    switches = Switches.of(record["source"])
    measured = Measurements(evidence, candidate_id)
    contributions = tuple(contributions_of(switches, measured))
    return Ablation(
        candidate_id=candidate_id,
        name=record["name"],
        contributions=contributions,
        interactions=tuple(_interactions(switches, measured)),
        curves=_curves(switches, measured),
        simplified=_simplified(switches, measured, contributions),
        seeds=len(rows[0]["seeds"]),
        versions=sum(row["outcome"] == "measured" for row in rows),
        limits=limits(switches),
        changes=tuple(_changes(changes_of(evidence, candidate_id), measured)),
    )


def changes_of(evidence: RunEvidence, candidate_id: str) -> list[SlotChange]:
    """What a candidate of a run changes in its baseline; none of the baseline itself, or where the catalogue lacks words."""
    if evidence.baseline is None or candidate_id == evidence.baseline:
        return []
    return source_changes(evidence.candidates[candidate_id]["source"], evidence.candidates[evidence.baseline]["source"])


def _changes(changes: Sequence[SlotChange], measured: Measurements) -> list[Contribution]:
    """Of every change of which something was measured, the largest contribution first."""
    found = []
    for change in changes:
        undone, alone = _undone_key(change), _alone_key(change)
        row = measured.rows.get(undone)
        if row is None and alone not in measured.rows:
            continue
        outcome, message = (row["outcome"], row["message"]) if row else ("", "")
        delta, over = measured.to_candidate(undone), measured.to_baseline(alone)
        found.append(Contribution(change.says, change.slots, _negative(delta), over, outcome, message))
    return sorted(found, key=lambda one: -one.contribution.estimate if one.contribution else math.inf)


def contributions_of(switches: Switches, measured: Measurements) -> list[Contribution]:
    """Of every mechanism that can be switched off, in the order of the file."""
    found = []
    for name in switches.switchable:
        gone = switches.closure([name])
        row = measured.rows.get(key_of(gone))
        delta = measured.to_candidate(key_of(gone))
        others = without(switches, [other for other in switches.switchable if other != name])
        alone = measured.to_baseline(others.key) if others is not None and name not in others.dropped else None
        outcome, message = (row["outcome"], row["message"]) if row else ("", "")
        found.append(Contribution(name, gone, _negative(delta), alone, outcome, message))
    return found


def _negative(delta: Interval | None) -> Interval | None:
    return Interval(-delta.estimate, -delta.high, -delta.low, delta.seeds) if delta else None


def _interactions(switches: Switches, measured: Measurements) -> list[Interaction]:
    found = []
    for first, second in itertools.combinations(switches.switchable, 2):
        gone, other = switches.closure([first]), switches.closure([second])
        both = without(switches, [first, second])
        if both is None or set(gone) & set(other):
            continue
        effect = measured.interaction(key_of(gone), key_of(other), both.key)
        if effect is not None:
            found.append(Interaction((first, second), effect))
    return sorted(found, key=lambda one: -abs(one.effect.estimate))


def _curves(switches: Switches, measured: Measurements) -> dict[str, tuple[Point, ...]]:
    found: dict[str, list[Point]] = {}
    for key, row in measured.rows.items():
        if key.startswith("number:"):
            ((name, value),) = json.loads(row["numbers"]).items()
            found.setdefault(name, []).append(Point(float(value), measured.to_candidate(key), row["outcome"]))
    for name, points in found.items():
        own = switches.defaults[name]
        assert isinstance(own, int | float)
        points.append(
            Point(float(own), Interval(0.0, 0.0, 0.0, points[0].delta.seeds if points[0].delta else 0), "own")
        )
    return {name: tuple(sorted(points, key=lambda one: one.value)) for name, points in sorted(found.items())}


def simpler(switches: Switches, measured: Measurements) -> Version | None:
    """The next simplified version to measure; None where there is none, or the one that was measured loses nothing."""
    contributions = contributions_of(switches, measured)
    for version in _simplifications(switches, contributions):
        row = measured.rows.get(version.key)
        if row is None:
            return version
        delta = measured.to_candidate(version.key)
        if delta is not None and delta.high >= 0.0:
            return None
    return None


def _simplifications(switches: Switches, contributions: Sequence[Contribution]) -> list[Version]:
    """Versions without what was not shown to help, the smallest first; each next one has back what contributes most."""
    spare = sorted(
        (one for one in contributions if one.contribution is not None and one.verdict != "helps"),
        key=lambda one: one.contribution.estimate if one.contribution else 0.0,
    )
    needed = {one.name for one in contributions if one.verdict in ("helps", "needed", "not measured")}
    found = []
    for count in range(len(spare), 0, -1):
        version = without(switches, [one.name for one in spare[:count]])
        if version is not None and not needed & set(version.dropped):
            found.append(version)
    return found


def _simplified(switches: Switches, measured: Measurements, contributions: Sequence[Contribution]) -> Simplified | None:
    for version in _simplifications(switches, contributions):
        delta = measured.to_candidate(version.key)
        if delta is None and version.key not in measured.rows:
            return None  # not measured yet
        if delta is not None and delta.high >= 0.0:
            total = len(switches.mechanisms)
            over = measured.to_baseline(version.key)
            return Simplified(
                version.key, version.dropped, total - len(version.dropped), total, delta, version.source, over
            )
    return None
