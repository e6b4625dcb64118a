"""Reads from a run what ``poise_core.agents.briefing`` puts into words: the task card, the archive as a table, calibration.

As everywhere in the history of a run, measurements are those of generations before the one that is told.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from poise_core.agents.briefing import Calibration, Line, TaskCard, table_order
from poise_core.agents.digest import paired_run_delta, run_metric
from poise_core.agents.roles import Reflection
from poise_core.archive import UNTRAINED_ARM
from poise_core.archive.typed import AblationRow
from poise_core.config import Preset
from poise_core.config.protocol import Protocol
from poise_core.escaping import one_line
from poise_core.evaluation.results import SeedEvaluation, benchmark_means
from poise_core.evidence.ablation import label_of
from poise_core.evidence.credit import credit, credit_lines, mechanisms_of
from poise_core.evidence.format import counted_seeds, format_interval, spell_interval
from poise_core.evidence.intervals import Interval, delta_between, distinguishable, paired_delta
from poise_core.evidence.noise import Floors
from poise_core.evolution.history import History
from poise_core.mechanisms.catalogue import SLOTS
from poise_core.trajectory import RUN_METRICS

_SHORT = {name: name.removesuffix("_end").removesuffix("_mean").removesuffix("_median") for name in RUN_METRICS}


class Briefs:
    """Of one run; what a generation is told is read once."""

    def __init__(self, history: History, preset: Preset) -> None:
        self.history, self.preset = history, preset
        self.archive, self.protocol = history.archive, preset.protocol
        self._cards: dict[int, TaskCard] = {}
        self._measured: dict[int, dict[str, Line]] = {}

    def task_card(self, generation: int) -> TaskCard:
        """What is trained and scored, as ``generation`` may know it."""
        if generation not in self._cards:
            self._cards[generation] = self._task_card(generation)
        return self._cards[generation]

    def _task_card(self, generation: int) -> TaskCard:
        floors, root = self.history.floors(generation), self._root()
        search, untrained = self.preset.search, self._untrained()
        problems, form = _described(self.protocol, self._kinds())
        record = (
            self.history.record(root["candidate_id"], generation) if root and root["generation"] < generation else None
        )
        baseline: dict[str, Interval] = {}
        if record is not None and record.overall is not None:
            baseline = {"Overall": record.overall, **record.benchmark_intervals}
        noise = {"Overall": floors.overall.total}
        noise |= {name: floor.total for name, floor in floors.benchmarks.items()}
        noise |= {name: floor.total for name, floor in floors.runs.items()}
        return TaskCard(
            self.protocol,
            search.seeds_per_candidate,
            problems,
            form,
            {"Overall": untrained.overall, **benchmark_means([untrained])} if untrained else {},
            baseline,
            root["name"] if root and baseline else "",
            self._run_levels(root["candidate_id"]) if root and baseline else {},
            noise,
            floors.overall.candidates,
            generation,
            max(search.generations, generation),
            (max(search.generations, generation) - generation + 1) * search.parents,
            self._calls_left(generation),
            {one.name: len(one.correct) for one in untrained.benchmarks} if untrained else {},
        )

    def _kinds(self) -> list[str]:
        kinds = dict.fromkeys(self.protocol.environment.mixture)
        return list(kinds | dict.fromkeys(kind for one in self.protocol.benchmarks for kind in one.kinds))

    def _root(self) -> Mapping[str, Any] | None:
        return next((row for row in self.history.candidates() if not row["parent_ids"]), None)

    def _untrained(self) -> SeedEvaluation | None:
        """The untrained policy's evaluation, where there is one."""
        for row in self.archive.rows("candidates", arm=UNTRAINED_ARM):
            found = self.archive.evaluations(protocol=self.protocol.digest, candidate_id=row["candidate_id"])
            if evaluations := found.get(row["candidate_id"]):
                return evaluations[0]
        return None

    def _run_levels(self, candidate_id: str) -> dict[str, float]:
        trajectories = self.archive.trajectory(candidate_id, self.protocol.digest).values()
        found = {name: [run_metric(rows, name) for rows in trajectories] for name in RUN_METRICS}
        known = {name: [one for one in values if one is not None] for name, values in found.items()}
        return {name: statistics.fmean(values) for name, values in known.items() if values}

    def _calls_left(self, generation: int) -> str:
        """What the caps of language models leave, before this generation's own calls."""
        cap = self.preset.agents.caps.run
        limits = {"dollars": cap.dollars, "calls": cap.calls, "tokens": cap.tokens}
        if not any(limit is not None for limit in limits.values()):
            return ""
        rows = [row for row in self.archive.rows("calls") if row["generation"] < generation]
        spent = {
            "dollars": sum(row["dollars"] or 0.0 for row in rows),
            "calls": len(rows),
            "tokens": sum(row["input_tokens"] + row["output_tokens"] for row in rows),
        }
        left = [f"{max(0.0, limit - spent[unit]):.4g} {unit}" for unit, limit in limits.items() if limit is not None]
        return f"Of the language models' budget {', '.join(left)} are left."

    # the archive as a table

    def table(self, generation: int, slot: int) -> tuple[Line, ...]:
        """Every candidate and idea that this slot may know, in the order in which they came to exist."""
        measured = self._lines(generation)
        lines = []
        for tried in self.history.tried(generation, slot):
            if tried.name in measured and tried.outcome != "not_taken":
                lines.append(measured[tried.name])
                continue
            change = tried.change
            if tried.outcome == "evaluated":
                continue  # the baseline, which all are compared with
            if tried.outcome == "not_taken":
                lines.append(Line(tried.name, change, "not taken"))
            elif tried.outcome == "in_work":
                lines.append(Line(tried.name, change, "in work"))
            else:
                fate = tried.outcome if tried.outcome.startswith("stopped") else f"failed: {tried.outcome}"
                reason = tried.reason.splitlines()[0] if tried.reason else ""
                lines.append(Line(tried.name, change, fate, reason=reason[:60]))
        return tuple(lines)

    def _lines(self, generation: int) -> dict[str, Line]:
        """Lines of the measured candidates of earlier generations, by name."""
        if generation in self._measured:
            return self._measured[generation]
        root, floors = self._root(), self.history.floors(generation)
        evaluations = self.history.evaluations()
        rows = [row for row in self.history.candidates() if row["generation"] < generation]
        found: dict[str, Line] = {}
        for row in rows:
            name = row["candidate_id"]
            if root is None or name == root["candidate_id"] or name not in evaluations:
                continue
            delta = delta_between(name, root["candidate_id"], evaluations, self.protocol, floors.overall)
            if delta is None:
                continue
            reflection = self.history.reflection(name)
            found[row["name"]] = Line(
                row["name"],
                row["change"] or "",
                "evaluated",
                delta,
                self._telling(name, root["candidate_id"], evaluations, floors),
                diagnoses=_codes(reflection),
            )
        self._measured[generation] = found
        return found

    def _telling(
        self, name: str, root: str, evaluations: Mapping[str, Sequence[SeedEvaluation]], floors: Floors
    ) -> tuple[str, ...]:
        """The benchmark and the metric of training that differ most from the baseline's, in units of their noise."""
        benchmarks: list[tuple[float, str]] = []
        for one in self.protocol.benchmarks:
            alone = self.history.alone(one)
            noise = floors.benchmarks[one.name].of_difference(name, root)
            delta = paired_delta(evaluations[name], evaluations[root], alone, noise=noise)
            benchmarks.append((_strength(delta), f"{one.name} {delta.estimate:+.1f}"))
        mine, theirs = (self.archive.trajectory(one, self.protocol.digest) for one in (name, root))
        runs: list[tuple[float, str]] = []
        for metric in RUN_METRICS:
            noise = floors.runs[metric].of_difference(name, root)
            moved = paired_run_delta(mine, theirs, metric, noise=noise)
            if moved is not None:
                runs.append((_strength(moved), f"{_SHORT[metric]} {moved.estimate:+.2g}"))
        return tuple(max(one)[1] for one in (benchmarks, runs) if one)

    # what mechanisms do

    def ablations(self, generation: int, candidates: Sequence[str]) -> str:
        """What the ablations of these candidates have measured, as their rows say, most of it first; "" without any.

        Args:
            generation: that is told; of what was measured before it began.
            candidates: ids, in the order in which they are told of.
        """
        rows = self.history.ablations(generation)
        names = {row["candidate_id"]: row["name"] for row in self.history.candidates()}
        parts = []
        for candidate in dict.fromkeys(candidates):
            own = [row for row in rows if row["candidate_id"] == candidate]
            if own:
                own.sort(key=lambda row: (not row["dropped"], len(row["dropped"]), -abs(row["delta"] or 0.0)))
                name = names.get(candidate, candidate)
                seeds = counted_seeds(len(own[0]["seeds"]))
                head = f"{name}, each version trained with the same {seeds}; Overall to {name}'s:"
                parts.append("\n".join([head, *(f"- {_version(row)}" for row in own[:VERSIONS])]))
        return "\n\n".join(parts)

    def credit(self, generation: int) -> str:
        """Which mechanisms pay over the candidates of earlier generations; "" where too few are scored."""
        root, lines = self._root(), self._lines(generation)
        if root is None:
            return ""
        sources = {row["name"]: row["source"] for row in self.history.candidates() if row["generation"] < generation}
        gains = {
            name: (mechanisms_of(sources[name]), line.delta) for name, line in lines.items() if line.delta is not None
        }
        found = credit(gains, mechanisms_of(root["source"]))
        told = credit_lines(found)
        head = (
            f"Points of Overall that having a mechanism is worth, by a regression over {found.candidates} candidates:"
        )
        return "\n".join([head, *(f"- {line}" for line in told)]) if told else ""

    def calibration(self, generation: int) -> Calibration:
        """Forecasts of proposals of earlier generations beside what came of them."""
        earlier = {row["candidate_id"] for row in self.history.candidates() if row["generation"] < generation}
        pairs = []
        rows = self.archive.rows("reflections", protocol=self.protocol.digest)
        for row in sorted(rows, key=lambda one: str(one["candidate_id"])):
            if row["candidate_id"] in earlier:
                for one in json.loads(row["content"]).get("expectations", ()):
                    said, chance = one["expectation"].get("probability"), one.get("chance")
                    if said is not None and chance is not None:
                        pairs.append((float(said), float(chance)))
        return Calibration(tuple(pairs))


VERSIONS = 16
"""Versions of one candidate's file that a proposer is told of at most."""


def _version(row: AblationRow) -> str:
    """One row of ``ablations`` in words."""
    what = label_of(row["version"], row["dropped"])
    if row["delta"] is None:
        return f"{what}: {row['outcome']}: {row['message'][:120]}"
    measured = {"estimate": row["delta"], "low": row["low"], "high": row["high"], "seeds": len(row["seeds"])}
    return f"{what}: {format_interval(Interval.from_dict(measured), signed=True)}"


def _codes(reflection: Reflection | None) -> tuple[str, ...]:
    return tuple(one.code for one in reflection.diagnoses) if reflection else ()


def _strength(delta: Interval) -> float:
    width = delta.high - delta.low
    return abs(delta.estimate) / width if width > 0 else 0.0


def _described(protocol: Protocol, kinds: Sequence[str]) -> tuple[dict[str, str], str]:
    """Descriptions of the kinds of problems and of the form of an answer, of an environment or of where its problems come from."""
    from poise_core.environments.registry import described_problems

    return described_problems(protocol, kinds)


LESSONS = 40
"""Lessons that a notes file holds at most."""


def lessons(briefs: Briefs, *, run: str, today: dt.date, days: int) -> str:
    """A file of literature notes on what a run has measured, for ``agents.literature_folder`` of a later run.

    Each note is a claim with its evidence rows, the protocol under which it holds, its date and when it expires. A claim about a
    candidate that an examination or a replication on sealed problems refuted says so; no number of the sealed split is quoted.

    Args:
        briefs: of the run.
        run: its name, for the source of the notes.
        today: date of the notes.
        days: after which a reader should no longer rely on them.
    """
    history = briefs.history
    candidates = history.candidates()
    last = 1 + max((row["generation"] for row in candidates), default=0)
    refuted = _refuted(briefs)
    rows = {row["name"]: row for row in candidates}
    by_id = {row["candidate_id"]: row for row in candidates}
    notes = []
    for line in table_order(briefs.table(last, 0))[:LESSONS]:
        row = rows.get(line.name)
        identity = row["candidate_id"] if row else ""
        reflection = history.reflection(identity) if identity else None
        claim, rests_on = _claim(line), f"rungs of {identity}" if not line.measured else f"evaluations of {identity}"
        if identity in refuted:
            claim = f"REFUTED on sealed problems with fresh seeds; what the search measured was: {claim}"
        taught = [f"Avoid: {one}" for one in (reflection.avoid if reflection else ())][:2]
        answers, slots = _remedy(row, by_id) if row else ("", "")
        name = re.sub(r"\W+", "_", f"lesson_{line.name}".lower()).strip("_")
        notes.append(
            "\n".join(
                [
                    f"# {name}",
                    f"title: {one_line(line.name)}, {'refuted after' if identity in refuted else 'measured in'} an earlier run",
                    f"source: run {one_line(run)}, protocol {briefs.protocol.digest}, {today.isoformat()}",
                    f"answers: {answers}",
                    f"slots: {slots}",
                    f"expires: {(today + dt.timedelta(days=days)).isoformat()}",
                    f"protocol: {briefs.protocol.digest}",
                    "",
                    f"Mechanism: {one_line(line.change) or 'not told'}",
                    "",
                    f"Claim: {one_line(claim)}",
                    "",
                    f"Evidence: {rests_on}, protocol {briefs.protocol.digest}; holds until "
                    f"{(today + dt.timedelta(days=days)).isoformat()}.",
                    *(f"\n{one_line(one)}" for one in taught),
                ]
            )
        )
    return "\n\n".join(notes) + "\n" if notes else ""


def _remedy(row: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """The diagnoses that a candidate's change answers, by the catalogue, and the slots in which it differs from its parent."""
    own = json.loads(row["mechanisms"])
    parent: dict[str, str] = next((json.loads(rows[one]["mechanisms"]) for one in row["parent_ids"] if one in rows), {})
    changed = [slot for slot in own if slot in SLOTS and own[slot] != parent.get(slot)]
    made = [one for slot in changed for one in SLOTS[slot].choices if one.name == own[slot]]
    return " ".join(dict.fromkeys(code for one in made for code in one.answers)), " ".join(changed)


def _claim(line: Line) -> str:
    if line.delta is None:
        return f"{line.fate}: {line.reason}" if line.reason else line.fate
    verdict = {"better": "better than the baseline", "worse": "worse than the baseline"}.get(
        distinguishable(line.delta), "not told apart from the baseline"
    )
    return f"{verdict}: Overall {spell_interval(line.delta)}; moved most: {', '.join(line.telling) or 'nothing'}"


def _refuted(briefs: Briefs) -> set[str]:
    digest = briefs.protocol.digest
    examined = briefs.archive.rows("examinations", protocol=digest)
    replicated = briefs.archive.rows("replications", protocol=digest)
    return {row["candidate_id"] for row in replicated if row["outcome"] == "refuted"} | {
        row["candidate_id"] for row in examined if row["verdict"] == "does not hold"
    }
