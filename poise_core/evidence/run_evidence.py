"""What a run may say of its candidates: the noise floor, who was declared, who was replicated, how far each has climbed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from poise_core.archive import EVOLUTION_ARM, UNTRAINED_ARM, Archive
from poise_core.config.protocol import Protocol
from poise_core.evaluation.results import SeedEvaluation
from poise_core.evidence.intervals import Interval, delta_between, overall_interval
from poise_core.evidence.noise import NoiseFloor, noise_floor
from poise_core.evidence.promotion import Declaration, declare


@dataclass(frozen=True)
class Standing:
    """The evidence of one protocol, as of now."""

    baseline: str | None
    evaluations: Mapping[str, Sequence[SeedEvaluation]]  # of candidates that have not failed in training
    noise: NoiseFloor | None
    tried: frozenset[str]  # candidates on which anything was measured, the baseline aside
    declarations: Mapping[str, Declaration] = field(default_factory=dict)
    replications: Mapping[str, dict[str, Any]] = field(default_factory=dict)  # rows
    rungs: Mapping[str, dict[str, Any]] = field(default_factory=dict)  # candidate -> row of the highest rung

    def overall(self, candidate: str, protocol: Protocol, level: float = 0.95) -> Interval | None:
        """Overall with limits; one seed's come from the noise of all candidates, where that is known."""
        evals = self.evaluations.get(candidate)
        if not evals:
            return None
        noise = self.noise.total if self.noise and len(evals) == 1 else None
        return overall_interval(evals, protocol, level, noise)

    def delta(self, child: str, base: str, protocol: Protocol, level: float = 0.95) -> Interval | None:
        """Paired difference over shared seeds; None where there is none."""
        return delta_between(child, base, self.evaluations, protocol, self.noise, level)

    def state(self, candidate: str) -> str:
        """``champion candidate``, ``replicated``, ``refuted``, ``stopped at ...``, or nothing.

        Only who was declared and then replicated is a champion. ``replicated, undeclared`` has passed the second of these tests
        alone, and of candidates no better than the baseline one in forty does.
        """
        if replication := self.replications.get(candidate):
            if replication["outcome"] != "replicated":
                return "refuted"
            return "replicated" if replication["declared"] else "replicated, undeclared"
        if candidate in self.declarations and self.declarations[candidate].champion:
            return "champion candidate"
        rung = self.rungs.get(candidate)
        if not rung or rung["decision"] != "stopped":
            return ""
        return STOPPED_AT["all" if rung["cause"] == "certain_loss" else rung["rung"]]


STOPPED_AT = {"proxy": "stopped at the proxy", "first": "stopped at one seed", "all": "stopped in training"}


def baseline_of(archive: Archive) -> str | None:
    """The candidate that others are compared with: the first one of the evolution that has no parent."""
    evolved = set(archive.read("candidates", ["candidate_id"], arm=EVOLUTION_ARM)["candidate_id"].to_pylist())
    return next((root for root in archive.lineage().roots() if root in evolved), None)


def standing_of(archive: Archive, protocol: Protocol, baseline: str | None = None) -> Standing:
    """Read it from the archive; the sealed split stays closed.

    Raises:
        poise_core.archive.ArchiveError: a file cannot be read.
    """
    base = baseline or baseline_of(archive)
    failures = archive.rows("failures", protocol=protocol.digest)
    failed = {row["candidate_id"] for row in failures if row["stage"] in ("train", "evaluate")}
    found = archive.evaluations(protocol=protocol.digest)
    evaluations = {name: evals for name, evals in found.items() if name not in failed}
    records = {row["candidate_id"]: row for row in archive.rows("candidates")}
    untrained = {name for name, row in records.items() if row["arm"] == UNTRAINED_ARM}
    # one seed's evaluation of the base policy stands under every seed: it has no noise of its own
    trained = {name: evals for name, evals in evaluations.items() if name not in untrained}
    rungs, replications = (
        archive.rows(table, protocol=protocol.digest) if archive.has(table) else []
        for table in ("rungs", "replications")
    )
    measured = {part["candidate_id"] for part in archive.parts("trajectories") if part["protocol"] == protocol.digest}
    tried = frozenset((measured | trained.keys() | failed | {row["candidate_id"] for row in rungs}) - {base or ""})
    noise = noise_floor(trained)
    declared = declare(trained, base, tried & records.keys(), protocol, noise=noise) if base in trained else []
    order = ("proxy", "first", "all")
    return Standing(
        baseline=base,
        evaluations=evaluations,
        noise=noise,
        tried=tried & records.keys(),
        declarations={one.candidate_id: one for one in declared},
        replications={row["candidate_id"]: row for row in replications},
        rungs={row["candidate_id"]: row for row in sorted(rungs, key=lambda row: order.index(row["rung"]))},
    )
