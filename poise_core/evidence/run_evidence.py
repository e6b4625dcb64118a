"""What a run may say of its candidates under one protocol, read from the archive once and handed to every view.

A command, a page or a sync loads one ``RunEvidence`` and shows that, so all its numbers are of the same moment. What is
expensive (the noise floor, the declarations, every interval) is computed when it is first needed and then kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from poise_core.archive import ABLATED, EVOLUTION_ARM, UNTRAINED_ARM, Archive, Lineage
from poise_core.archive.typed import AblationRow, CandidateRow, ExaminationRow, FailureRow, ReplicationRow, RungRow
from poise_core.config.protocol import Protocol
from poise_core.evaluation.results import SeedEvaluation
from poise_core.evidence.intervals import Interval, delta_between, overall_interval
from poise_core.evidence.noise import NoiseFloor, noise_floor
from poise_core.evidence.promotion import Declaration, Stability, declare

Row = Mapping[str, Any]

RUNGS = ("proxy", "first", "all")
"""Of the ladder, from below."""

STOPPED_AT = {"proxy": "stopped at the proxy", "first": "stopped at one seed", "all": "stopped in training"}


@dataclass(frozen=True, eq=False)
class RunEvidence:
    """The evidence of one protocol, as of the moment of ``load``; the sealed split stays closed."""

    archive: Archive  # for what only one view asks for: curves, proposals, reflections
    protocol: Protocol
    candidates: Mapping[str, CandidateRow]  # of every protocol, since a candidate belongs to none
    evaluations: Mapping[str, Sequence[SeedEvaluation]]  # of candidates that have not failed in training
    failures: Sequence[FailureRow]  # in the order in which they happened
    rungs: Sequence[RungRow]  # of the ladder, whatever was decided on it
    replications: Mapping[str, ReplicationRow]  # candidate -> row
    trained_seeds: Mapping[str, frozenset[int]]  # candidate -> seeds of which a training lies in the archive
    examinations: Mapping[str, Sequence[ExaminationRow]] = field(default_factory=dict)  # candidate -> rows, as planned
    ablations: Mapping[str, Sequence[AblationRow]] = field(default_factory=dict)  # candidate -> versions of its file
    versions: Mapping[str, Sequence[SeedEvaluation]] = field(default_factory=dict)  # version -> its evaluations
    untuned: str = ""  # why the baseline does not count as tuned, as a sentence; see Preset.untuned
    planned: int = 0  # children that the experiment is going to measure; 0 where nobody says
    _intervals: dict[tuple[str, str, float], Interval | None] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, archive: Archive, protocol: Protocol, *, planned: int = 0, untuned: str = "") -> RunEvidence:
        """Read it; nothing is computed yet.

        Args:
            archive: of the run.
            protocol: whose numbers count.
            planned: ``SearchSpec.planned`` of the run, for which declarations are corrected.
            untuned: of the run's preset, for the views to repeat.

        Raises:
            poise_core.archive.ArchiveError: a file cannot be read.
        """
        digest = protocol.digest
        # tables that are written later are read first, so that beside a live run no row names a candidate that was not read
        ablations = archive.rows("ablations", protocol=digest) if archive.has("ablations") else []
        answers = archive.rows("examinations", protocol=digest) if archive.has("examinations") else []
        answers.sort(key=lambda row: row["planned"].index(row["condition"]))
        replications = archive.rows("replications", protocol=digest) if archive.has("replications") else []
        rungs = archive.rows("rungs", protocol=digest) if archive.has("rungs") else []
        failures = archive.rows("failures", protocol=digest)
        failed = {row["candidate_id"] for row in failures if row["stage"] in ("train", "evaluate")}
        found = archive.evaluations(protocol=digest)
        trained: dict[str, set[int]] = {}
        for part in archive.parts("trajectories"):
            if part["protocol"] == digest:
                trained.setdefault(part["candidate_id"], set()).add(int(part["seed"]))
        return cls(
            archive=archive,
            protocol=protocol,
            candidates={row["candidate_id"]: row for row in archive.rows("candidates")},
            evaluations={name: evals for name, evals in found.items() if name not in failed},
            failures=sorted(failures, key=lambda row: (row["created_at"], row["attempt"])),
            rungs=rungs,
            replications={row["candidate_id"]: row for row in replications},
            trained_seeds={name: frozenset(seeds) for name, seeds in trained.items()},
            examinations={
                name: [row for row in answers if row["candidate_id"] == name]
                for name in sorted({row["candidate_id"] for row in answers})
            },
            ablations={
                name: [row for row in ablations if row["candidate_id"] == name]
                for name in sorted({row["candidate_id"] for row in ablations})
            },
            versions=archive.evaluations(protocol=f"{ABLATED}{digest}") if ablations else {},
            untuned=untuned,
            planned=planned,
        )

    # the candidates

    @cached_property
    def lineage(self) -> Lineage:
        """Parent links of all candidates.

        Raises:
            poise_core.archive.ArchiveError: a candidate's parent is missing.
        """
        return Lineage.of_rows(self.candidates.values())

    @cached_property
    def baseline(self) -> str | None:
        """The candidate that others are compared with: the first one of the evolution that has no parent."""
        roots = self.lineage.roots()
        return next((root for root in roots if self.candidates[root]["arm"] == EVOLUTION_ARM), None)

    @cached_property
    def last_failures(self) -> Mapping[str, FailureRow]:
        """The last failure of each candidate, and of each idea that never became one, that has any."""
        return {row["candidate_id"]: row for row in self.failures}

    @cached_property
    def revised(self) -> frozenset[str]:
        """Candidates whose failure a later file of the same proposal answers."""
        return frozenset(row["revises"] for row in self.candidates.values() if row["revises"])

    @cached_property
    def highest_rungs(self) -> Mapping[str, RungRow]:
        """For each candidate that has reached a rung, the row of the highest one."""
        return {row["candidate_id"]: row for row in sorted(self.rungs, key=lambda row: RUNGS.index(row["rung"]))}

    @cached_property
    def training_tokens(self) -> Mapping[str, int]:
        """Completion tokens that each candidate's trainings have sampled, all seeds."""
        return {candidate: int(tokens) for candidate, (tokens, _) in self._trainings.items()}

    @cached_property
    def measuring_seconds(self) -> Mapping[str, tuple[float, float]]:
        """Seconds that each candidate's trainings and evaluations have taken by the clock, without starts; all seeds."""
        spent = {candidate: (seconds, 0.0) for candidate, (_, seconds) in self._trainings.items()}
        for candidate, evaluations in self.evaluations.items():
            trained, _ = spent.get(candidate, (0.0, 0.0))
            known = [one.seconds for one in evaluations if not math.isnan(one.seconds)]
            row = self.candidates.get(candidate)
            if row is not None and row["arm"] == UNTRAINED_ARM:  # one evaluation, which is kept under every seed
                known = known[:1]
            spent[candidate] = (trained, sum(known))
        return spent

    @cached_property
    def _trainings(self) -> Mapping[str, tuple[float, ...]]:
        """Candidate -> completion tokens and seconds of all steps of its trainings."""
        seconds = ("seconds_rollout", "seconds_update")
        return self.archive.totals("trajectories", "candidate_id", ("tokens",), seconds, protocol=self.protocol.digest)

    # the statistics

    @cached_property
    def noise(self) -> NoiseFloor | None:
        """The noise floor of all candidates that were trained; None where they are too few."""
        return noise_floor(self._trained)

    @cached_property
    def tried(self) -> frozenset[str]:
        """Candidates on which anything was measured, the baseline aside."""
        failed = {row["candidate_id"] for row in self.failures if row["stage"] in ("train", "evaluate")}
        measured = self.trained_seeds.keys() | self._trained.keys() | failed | self.highest_rungs.keys()
        return frozenset(measured & self.candidates.keys()) - {self.baseline or ""}

    @property
    def family(self) -> int:
        """The candidates for which a declaration is corrected: those planned, or those tried where they are more."""
        return max(self.planned, len(self.tried))

    def counted(self) -> str:
        """For people: ``12 tried of 63 planned``."""
        tried = len(self.tried)
        return f"{tried} tried of {self.planned} planned" if self.planned > tried else f"{tried} tried"

    def stability(self, candidate: str) -> Stability | None:
        """The worst seed of a candidate, and how likely a worse one is."""
        return Stability.of(self.evaluations.get(candidate, ()))

    @cached_property
    def declarations(self) -> Mapping[str, Declaration]:
        """Candidate -> its comparison with the baseline, corrected for all that are planned or tried; the best first."""
        if self.baseline is None or self.baseline not in self._trained:
            return {}
        declared = declare(
            self._trained, self.baseline, self.tried, self.protocol, noise=self.noise, planned=self.planned
        )
        return {one.candidate_id: one for one in declared}

    @cached_property
    def champions(self) -> Sequence[Declaration]:
        """The champion candidates, the best first."""
        return [one for one in self.declarations.values() if one.champion]

    @cached_property
    def _trained(self) -> Mapping[str, Sequence[SeedEvaluation]]:
        """The evaluations without the base policy's: one evaluation of it is kept under every seed, so it shows no noise."""
        untrained = {name for name, row in self.candidates.items() if row["arm"] == UNTRAINED_ARM}
        return {name: evals for name, evals in self.evaluations.items() if name not in untrained}

    def overall(self, candidate: str, level: float = 0.95) -> Interval | None:
        """Overall with limits; one seed's come from the noise of all candidates, where that is known."""
        key = (candidate, "", level)
        if key not in self._intervals:
            evals = self.evaluations.get(candidate)
            noise = self.noise.total if evals and len(evals) == 1 and self.noise else None
            found = overall_interval(evals, self.protocol, level, noise) if evals else None
            self._intervals[key] = found.within(0.0, 100.0) if found else None  # no score lies beyond
        return self._intervals[key]

    def delta(self, child: str, base: str, level: float = 0.95) -> Interval | None:
        """Paired difference over shared seeds; None where there is none."""
        key = (child, base, level)
        if key not in self._intervals:
            noise = self.noise if child in self.evaluations and base in self.evaluations else None
            self._intervals[key] = delta_between(child, base, self.evaluations, self.protocol, noise, level)
        return self._intervals[key]

    def state(self, candidate: str) -> str:
        """``champion candidate``, ``replicated``, ``refuted``, ``stopped at ...``, or nothing.

        Only a candidate that was declared and then replicated is a champion. One that is ``replicated, undeclared`` has passed
        the second test alone, which one in forty candidates that are no better than the baseline passes.
        """
        if replication := self.replications.get(candidate):
            if replication["outcome"] != "replicated":
                return "refuted"
            return "replicated" if replication["declared"] else "replicated, undeclared"
        if candidate in self.declarations and self.declarations[candidate].champion:
            return "champion candidate"
        rung = self.highest_rungs.get(candidate)
        if not rung or rung["decision"] != "stopped":
            return ""
        return STOPPED_AT["all" if rung["cause"] == "certain_loss" else rung["rung"]]
