"""The history of a run, read from its archive in the form that each role takes.

One rule makes a run repeatable although its children train side by side: for generation g the roles see every candidate
admitted or refused so far, but measurements, failures of training and reflections only of generations before g. So no
result depends on which sibling was faster.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from poise_core.agents.catalogue.compositions import known_composition
from poise_core.agents.digest import run_metric
from poise_core.agents.roles import (
    CandidateRecord,
    Measured,
    Proposal,
    Reference,
    Reflection,
    ReflectionEvidence,
    ScoredComposition,
    Tried,
)
from poise_core.agents.steering import steering_bonus
from poise_core.archive import EVOLUTION_ARM, Archive, proposal_slot
from poise_core.archive.typed import AblationRow
from poise_core.candidate.identity import source_digest
from poise_core.config import LadderSpec
from poise_core.config.agents import Steering
from poise_core.config.protocol import BenchmarkSpec, Protocol
from poise_core.evaluation.kept import KINDS, cut
from poise_core.evaluation.results import SeedEvaluation, benchmark_means, benchmark_seeds
from poise_core.evidence.forecast import Dynamics, forecast_each, proxy_dynamics
from poise_core.evidence.intervals import Interval, delta_between, overall_interval, paired_delta
from poise_core.evidence.noise import Floors, NoiseFloor
from poise_core.evolution.records import CandidateRef, failure_to_dict
from poise_core.failures import CandidateFailure, FailureKind
from poise_core.mechanisms.render import composition_of
from poise_core.search.nodes import NodeRecord
from poise_core.search.references import ReferenceChoice
from poise_core.search.sketches import behaviour_sketch
from poise_core.trajectory import RUN_METRICS

SETTLED_AT_ADMISSION = ("propose", "screen", "implement", "verify")
"""Stages whose failures are known before the next slot of the same generation begins."""

SHOWN, MOST_SAMPLES = 300, 16
"""Characters of a prompt or a completion that a reflector reads, and how many of them."""

Row = Mapping[str, Any]


class History:
    """Reads the archive of a run under one protocol; writes nothing."""

    def __init__(self, archive: Archive, protocol: Protocol, ladder: LadderSpec | None = None) -> None:
        self.archive = archive
        self.protocol = protocol
        self.ladder = ladder or LadderSpec()  # its guess of the noise is the prior of what agents are told
        self._floors: dict[int, Floors] = {}

    def candidates(self) -> list[Row]:
        """The rows of the candidates that this search made, in an order that does not depend on timing."""
        rows = self.archive.rows("candidates", arm=EVOLUTION_ARM)
        return sorted(rows, key=lambda row: (row["generation"], row["proposal_id"] or "", row["candidate_id"]))

    def nodes(self, generation: float = math.inf) -> list[NodeRecord]:
        """The tree as the selection of ``generation`` sees it, by default the whole; of several files of one proposal, the last. A
        duplicate (``duplicates``) has no score in it, as if the gate had refused it."""
        rows = [row for row in self.candidates() if row["generation"] < generation]
        superseded, duplicates = {row["revises"] for row in rows}, self.duplicates(rows)
        evaluations = {name: found for name, found in self.evaluations().items() if name not in duplicates}
        fingerprints = {name: found for name, found in self._fingerprints().items() if name not in duplicates}
        return [
            NodeRecord(
                candidate_id=row["candidate_id"],
                name=row["name"],
                parent_ids=tuple(row["parent_ids"]),
                generation=row["generation"],
                overall=self._overall(evaluations.get(row["candidate_id"])),
                benchmarks=benchmark_means(evaluations.get(row["candidate_id"], [])),
                mechanisms=_choices(row),
                seed_overalls=tuple(one.overall for one in evaluations.get(row["candidate_id"], [])),
                seed_benchmarks=benchmark_seeds(evaluations.get(row["candidate_id"], [])),
                sketch=behaviour_sketch(fingerprints.get(row["candidate_id"])),
            )
            for row in rows
            if row["candidate_id"] not in superseded
        ]

    def scored(self, nodes: Sequence[NodeRecord]) -> tuple[ScoredComposition, ...]:
        """What the nodes with a score and a composition have scored.

        Args:
            nodes: of ``nodes``.
        """
        rows = {row["candidate_id"]: row for row in self.candidates()}
        found = []
        for node in nodes:
            if node.overall is None or not node.scored:
                continue
            known = known_composition(rows[node.candidate_id])
            if known is not None and not known.left_out:
                seeds = max(node.overall.seeds, 1)
                found.append(ScoredComposition(known.composition, node.overall.estimate, seeds))
        return tuple(found)

    def with_stopped(self, nodes: Sequence[NodeRecord], ladder: LadderSpec) -> list[NodeRecord]:
        """The nodes, those marked that the ladder stopped before they had a score, with the forecast of their Overall.

        A forecast is learned from generations before the node's own (``poise_core.evidence.forecast.forecast_each``); where too
        little was known then, or the node's first steps are not all archived, there is none.

        Args:
            nodes: of ``nodes``.
            ladder: says what the proxy is.
        """
        rows = self.archive.rows("rungs", protocol=self.protocol.digest, decision="stopped")
        ended = {row["candidate_id"] for row in rows}
        marked = {node.candidate_id for node in nodes if node.candidate_id in ended and not node.scored}
        if not marked:
            return list(nodes)
        first = self.protocol.seeds[0]
        dynamics: dict[str, Dynamics] = {}
        overalls = {
            name: one.overall
            for name, evaluations in self.evaluations().items()
            for one in evaluations
            if one.seed == first
        }
        names = [node.candidate_id for node in nodes]
        for name, seeds in self.archive.trajectories(names, self.protocol.digest, seed=first):
            found = proxy_dynamics(seeds[first], ladder.proxy_steps, ladder.proxy_window)
            if found is not None:
                dynamics[name] = found
        forecasts = forecast_each({node.candidate_id: node.generation for node in nodes}, dynamics, overalls)
        return [
            replace(node, stopped=True, forecast=forecasts.get(node.candidate_id))
            if node.candidate_id in marked
            else node
            for node in nodes
        ]

    def duplicates(self, rows: Sequence[Row]) -> dict[str, str]:
        """Candidates that train exactly as one before them, with the name of that one. The gate refuses most of them; a file
        that was repaired beside its siblings is compared with theirs here, in the next generation.

        Args:
            rows: of candidates, in the order of ``candidates``.
        """
        fingerprints = self._fingerprints()
        first: dict[str, str] = {}
        found: dict[str, str] = {}
        superseded = {row["revises"] for row in rows}
        for name in [row["candidate_id"] for row in rows if row["candidate_id"] not in superseded]:
            known = first.setdefault(fingerprints.get(name) or name, name)
            if known != name:
                found[name] = known
        return found

    def _fingerprints(self) -> dict[str, str]:
        """Of the admitted candidates that have one."""
        admitted = self.archive.read("verifications", ["candidate_id", "fingerprint"], admitted=True)
        pairs = zip(*(admitted[name].to_pylist() for name in ("candidate_id", "fingerprint")), strict=True)
        return {name: fingerprint for name, fingerprint in pairs if fingerprint}

    def steering_bonuses(self, nodes: Sequence[NodeRecord], steering: Steering) -> dict[str, float]:
        """Points of utility that the user's secondary aims add to each scored node's Overall; empty where there are none."""
        scored = [node for node in nodes if node.overall is not None]
        root = next((node for node in scored if not node.parent_ids), None)
        if not steering.secondary or root is None or root.overall is None:
            return {}
        names = [aim.metric for aim in steering.secondary]
        base = self._run_metrics(root.candidate_id, names)
        return {
            node.candidate_id: steering_bonus(
                steering,
                node.overall.estimate,
                self._run_metrics(node.candidate_id, names),
                root.overall.estimate,
                base,
            )
            for node in scored
            if node.overall is not None
        }

    def _run_metrics(self, candidate_id: str, names: Sequence[str]) -> dict[str, float | None]:
        """Means over seeds of metrics of ``poise_core.trajectory.RUN_METRICS``."""
        trajectories = self.archive.trajectory(candidate_id, self.protocol.digest).values()
        values = {name: [run_metric(rows, name) for rows in trajectories] for name in names}
        return {
            name: statistics.fmean(known) if (known := [one for one in given if one is not None]) else None
            for name, given in values.items()
        }

    def floors(self, generation: int, candidate_id: str | None = None) -> Floors:
        """The noise between seeds as far as ``generation`` may know it: that of earlier generations' candidates, and of one more.

        Siblings may still be training, so they are no part of it. What earlier generations measured does not change any more.
        """
        if candidate_id is None and generation in self._floors:
            return self._floors[generation]
        known = {row["candidate_id"] for row in self.candidates() if row["generation"] < generation} | {candidate_id}
        evaluations = {name: found for name, found in self.evaluations().items() if name in known}
        runs: dict[str, dict[str, dict[int, float]]] = {name: {} for name in RUN_METRICS}
        for name, trajectories in self.archive.trajectories(evaluations, self.protocol.digest):
            for metric, found in runs.items():
                values = {seed: run_metric(rows, metric) for seed, rows in trajectories.items()}
                found[name] = {seed: value for seed, value in values.items() if value is not None}
        weights = {one.name: one.weight for one in self.protocol.benchmarks}
        guess = {"overall_noise": self.ladder.overall_noise, "freedom": self.ladder.noise_weight}
        floors = Floors.learn(weights, evaluations, runs, **guess)
        if candidate_id is None and known != {None}:
            self._floors[generation] = floors
        return floors

    def record(self, candidate_id: str, generation: int | None = None) -> CandidateRecord:
        """A candidate of an earlier generation as a proposer of ``generation`` sees it, by default of the one after its own."""
        (row,) = self.archive.rows("candidates", candidate_id=candidate_id)
        evaluations = self.evaluations(candidate_id).get(candidate_id, [])
        floors = self.floors(row["generation"] + 1 if generation is None else generation)
        return CandidateRecord(
            candidate_id=candidate_id,
            name=row["name"],
            source=row["source"],
            generation=row["generation"],
            parent_ids=tuple(row["parent_ids"]),
            composition=_composition(row),
            proposal=self.proposal(row),
            overall=self._overall(evaluations, floors.overall),
            benchmarks=benchmark_means(evaluations),
            benchmark_intervals=self._benchmark_intervals(evaluations, floors),
            reflection=self.reflection(candidate_id),
        )

    def ancestors(self, candidate_id: str, generation: int | None = None) -> tuple[CandidateRecord, ...]:
        """The records of the primary parent, its primary parent and so on, up to the root, as ``record`` gives them."""
        rows = {row["candidate_id"]: row for row in self.candidates()}
        found: list[CandidateRecord] = []
        parents = rows[candidate_id]["parent_ids"] if candidate_id in rows else []
        while parents and parents[0] in rows:
            found.append(self.record(parents[0], generation))
            parents = rows[parents[0]]["parent_ids"]
        return tuple(found)

    def references(self, choices: Sequence[ReferenceChoice], generation: int | None = None) -> tuple[Reference, ...]:
        """The chosen candidates with their records, as ``record`` gives them."""
        return tuple(Reference(self.record(one.candidate_id, generation), one.tier, one.reason) for one in choices)

    def tried(self, generation: int, slot: int) -> tuple[Tried, ...]:
        """Every idea and every candidate before this slot, for its proposer to avoid; of an idea, its last file."""
        unseen = self.unseen(generation, slot)
        seen = [row for row in self.candidates() if row["candidate_id"] not in unseen]
        duplicates = {
            name: {"kind": FailureKind.DUPLICATE, "message": f"trains exactly as {first}"}
            for name, first in self.duplicates(seen).items()
        }
        failures = {**duplicates, **self._failures(generation)}
        superseded = {row["revises"] for row in seen}
        implemented = {row["proposal_id"]: row for row in seen if row["candidate_id"] not in superseded}
        ends = self._ends(generation)
        roots = [_tried(row, failures, ends) for row in implemented.values() if row["proposal_id"] is None]
        ideas = []
        for row in self.archive.rows("proposals", arm=EVOLUTION_ARM):
            if row["generation"] == generation and row["slot"] >= slot:
                continue
            content = json.loads(row["content"])
            if candidate := implemented.get(row["proposal_id"]):
                ideas.append(_tried(candidate, failures, ends))
                continue
            failure = failures.get(row["proposal_id"])
            ideas.append(
                Tried(
                    name=row["name"],
                    outcome=failure["kind"] if failure else "not_taken",
                    composition=content.get("composition"),
                    parent_ids=tuple(row["parent_ids"]),
                    reason=failure["message"] if failure else "",
                    change=row["change"],
                )
            )
        versions = [
            Tried(
                name=row["name"],
                outcome="evaluated",
                source_digest=source_digest(row["source"]),
                composition=_rendered(row["source"]),
                reason=row["message"],
            )
            for row in self.ablations(generation)
        ]
        return (*roots, *ideas, *versions)

    def ablations(self, generation: int) -> list[AblationRow]:
        """Versions of candidates' files that ablations have measured before this generation began, by candidate and version."""
        rows = self.archive.rows("ablations", protocol=self.protocol.digest)
        known = [row for row in rows if row["generation"] < generation]
        return sorted(known, key=lambda row: (row["candidate_id"], row["version"]))

    def _ends(self, generation: int) -> dict[str, tuple[str, str, tuple[str, ...]]]:
        """Candidates of earlier generations -> how their measurement ended, why, and what their reflections say to avoid."""
        earlier = {row["candidate_id"] for row in self.candidates() if row["generation"] < generation}
        ends = {name: ("evaluated", "") for name in self.evaluations() if name in earlier}
        for row in self.archive.rows("rungs", protocol=self.protocol.digest, decision="stopped"):
            if row["candidate_id"] in earlier:
                where = {"proxy": "at the proxy", "first": "after one seed"}.get(row["rung"], "in training")
                scored = row.get("stopped_overall")
                last = f"; its last policy scored Overall {scored:.1f}" if scored is not None else ""
                ends[row["candidate_id"]] = (f"stopped {where}", f"{row['message']}{last}")
        avoid = {
            row["candidate_id"]: tuple(json.loads(row["content"]).get("avoid", ()))
            for row in self.archive.rows("reflections", protocol=self.protocol.digest)
            if row["candidate_id"] in earlier
        }
        return {name: (*ends.get(name, ("in_work", "")), avoid.get(name, ())) for name in earlier}

    def unseen(self, generation: int, slot: int) -> frozenset[str]:
        """Candidates of this generation that came to exist beside this slot: children of later slots, and repairs of
        other slots' children. What a slot sees may not depend on how far those are."""
        own = [row for row in self.candidates() if row["generation"] == generation and row["proposal_id"]]
        admitted = set(self.archive.read("verifications", ["candidate_id"], admitted=True)["candidate_id"].to_pylist())
        before = {row["candidate_id"]: row["revises"] for row in own}
        found = set()
        for row in own:
            theirs = proposal_slot(row["proposal_id"])
            earlier = row["revises"]
            while earlier is not None and earlier not in admitted:
                earlier = before.get(earlier)
            repair = earlier is not None
            if theirs is not None and (theirs > slot or (theirs < slot and repair)):
                found.add(row["candidate_id"])
        return frozenset(found)

    def proposal(self, candidate: Row) -> Proposal | None:
        """The proposal that a candidate implements."""
        if candidate["proposal_id"] is None:
            return None
        rows = self.archive.rows("proposals", proposal_id=candidate["proposal_id"])
        return Proposal.model_validate_json(rows[0]["content"]) if rows else None

    def reflection(self, candidate_id: str) -> Reflection | None:
        """The archived reflection on a candidate; None where there is none."""
        rows = self.archive.rows("reflections", protocol=self.protocol.digest, candidate_id=candidate_id)
        return Reflection.model_validate_json(rows[0]["content"]) if rows else None

    def evidence(
        self, candidate: CandidateRef, failure: CandidateFailure | None, stopped: Row | None = None
    ) -> ReflectionEvidence:
        """Everything that a reflector may use for this candidate; ``stopped`` is its row of ``rungs``, if it ended there."""
        evaluations = self.evaluations()
        mine = evaluations.get(candidate.candidate_id, [])
        base = evaluations.get(candidate.parent_id or "", [])
        floors = self.floors(candidate.generation, candidate.candidate_id)
        pair = (candidate.candidate_id, candidate.parent_id or "")
        delta = delta_between(*pair, evaluations, self.protocol, floors.overall)
        ended = failure_to_dict(failure) if failure else None
        if stopped and not mine:
            ended = {"kind": "stopped", "stage": f"rung {stopped['rung']}", "message": stopped["message"]}
        return ReflectionEvidence(
            candidate=self._measured(candidate.candidate_id, mine, floors),
            parent=self._measured(candidate.parent_id, base, floors) if candidate.parent_id else None,
            overall_delta=delta,
            benchmark_deltas=self._benchmark_deltas(pair, mine, base, floors) if delta else {},
            run_noise={name: floor.of_difference(*pair) for name, floor in floors.runs.items()},
            failure=ended,
            stopped_overall=stopped["stopped_overall"] if stopped else None,
            samples=self.samples(candidate.candidate_id),
        )

    def samples(self, candidate_id: str) -> tuple[str, ...]:
        """Shortened completions of a candidate: of the first seed the end of training, and of every benchmark on ``search``."""
        rows = self.archive.rows("completions", protocol=self.protocol.digest, candidate_id=candidate_id)
        seeds = {row["seed"] for row in rows}
        own = [row for row in rows if row["seed"] == min(seeds)]
        last = max((row["step"] for row in own), default=-1)
        own = [row for row in own if row["step"] in (-1, last)]
        own.sort(key=lambda row: (row["origin"], row["benchmark"], KINDS.index(row["kind"])))
        return tuple(
            f"{row['kind']}, {row['benchmark']}, {row['tokens']} tokens{', cut off' if row['truncated'] else ''}\n"
            f"prompt: {cut(row['prompt'], SHOWN)}\ncompletion: {cut(row['completion'], SHOWN)}"
            for row in own[:MOST_SAMPLES]
        )

    def _measured(self, candidate_id: str, evaluations: Sequence[SeedEvaluation], floors: Floors) -> Measured:
        (row,) = self.archive.rows("candidates", candidate_id=candidate_id)
        return Measured(
            candidate_id=candidate_id,
            name=row["name"],
            trajectories=self.archive.trajectory(candidate_id, self.protocol.digest),
            overall=self._overall(evaluations, floors.overall),
            composition=_composition(row),
            proposal=self.proposal(row),
            source=row["source"],
            levels=self._benchmark_intervals(evaluations, floors),
        )

    def _benchmark_intervals(self, evaluations: Sequence[SeedEvaluation], floors: Floors) -> dict[str, Interval]:
        return {
            benchmark.name: overall_interval(
                evaluations, self.alone(benchmark), noise=floors.benchmarks[benchmark.name].total
            ).within(0.0, 100.0)
            for benchmark in self.protocol.benchmarks
            if evaluations
        }

    def alone(self, benchmark: BenchmarkSpec) -> Protocol:
        """The protocol as if this were its only benchmark: Overall is then the benchmark's score."""
        return self.protocol.model_copy(update={"benchmarks": (benchmark.model_copy(update={"weight": 1.0}),)})

    def _benchmark_deltas(
        self, pair: tuple[str, str], mine: Sequence[SeedEvaluation], base: Sequence[SeedEvaluation], floors: Floors
    ) -> dict[str, Interval]:
        """Paired difference of ``pair``, child and base, on each benchmark alone."""
        return {
            one.name: paired_delta(mine, base, self.alone(one), noise=floors.benchmarks[one.name].of_difference(*pair))
            for one in self.protocol.benchmarks
        }

    def evaluations(self, candidate_id: str | None = None) -> dict[str, list[SeedEvaluation]]:
        """Of candidates that have not failed: one that failed at its second seed has no score, although its first seed has."""
        found = self.archive.evaluations(protocol=self.protocol.digest, candidate_id=candidate_id)
        only: dict[str, Any] = {} if candidate_id is None else {"candidate_id": candidate_id}
        rows = self.archive.rows("failures", protocol=self.protocol.digest, **only)
        failed = {row["candidate_id"] for row in rows}
        return {name: evaluations for name, evaluations in found.items() if name not in failed}

    def _overall(
        self, evaluations: Sequence[SeedEvaluation] | None, floor: NoiseFloor | None = None
    ) -> Interval | None:
        """Without ``floor`` by the candidate's own seeds alone, as the search sees its nodes."""
        if not evaluations:
            return None
        if floor is None:
            return overall_interval(evaluations, self.protocol)
        return overall_interval(evaluations, self.protocol, noise=floor.total).within(0.0, 100.0)

    def _failures(self, generation: int) -> dict[str, Row]:
        """The last failure of each candidate or idea, as far as ``generation`` may know it."""
        rows = self.archive.rows("failures", protocol=self.protocol.digest)
        return {
            row["candidate_id"]: row
            for row in rows
            if row["stage"] in SETTLED_AT_ADMISSION or (row["generation"] or 0) < generation
        }


def with_bonus(node: NodeRecord, points: float) -> NodeRecord:
    """The node with Overall, its limits and its seeds' values moved by the points."""
    if node.overall is None or points == 0.0:
        return node
    low, high = node.overall.low + points, node.overall.high + points
    moved = Interval(node.overall.estimate + points, low, high, node.overall.seeds)
    return replace(node, overall=moved, seed_overalls=tuple(one + points for one in node.seed_overalls))


def _tried(candidate: Row, failures: Mapping[str, Row], ends: Mapping[str, tuple[str, str, tuple[str, ...]]]) -> Tried:
    failure = failures.get(candidate["candidate_id"])
    outcome, reason, avoid = ends.get(candidate["candidate_id"], ("in_work", "", ()))
    return Tried(
        name=candidate["name"],
        outcome=failure["kind"] if failure else outcome,
        composition=_composition(candidate),
        source_digest=candidate["source_digest"],
        parent_ids=tuple(candidate["parent_ids"]),
        reason=failure["message"] if failure else reason,
        change=candidate["change"] or "",
        avoid=avoid,
    )


def tokens_of_generations(candidates: Iterable[Row], spent: Mapping[str, int], count: int) -> list[int]:
    """What the search's candidates of each of the first generations have sampled in training, files that were repaired included.

    Args:
        candidates: rows.
        spent: candidate -> tokens.
        count: how many generations, the baseline's among them.
    """
    own = [0] * count
    for row in candidates:
        if row["arm"] == EVOLUTION_ARM and row["generation"] < count:
            own[row["generation"]] += spent.get(row["candidate_id"], 0)
    return own


def _rendered(source: str) -> dict[str, Any] | None:
    composition = composition_of(source)
    return composition.model_dump(mode="json") if composition else None


def _composition(candidate: Row) -> dict[str, Any] | None:
    text = candidate["composition"]
    composition: dict[str, Any] | None = None if text is None else json.loads(text)
    return composition


def _choices(candidate: Row) -> dict[str, str]:
    """Slot -> choice, where the catalogue can express the candidate."""
    composition = _composition(candidate)
    return dict(composition["choices"]) if composition else {}
