"""The outlook of a run: whether its search is on a plateau, whether another generation is worth its cost, and what would sharpen
its differences: where their variance comes from, and what more seeds or more problems would take off it."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

from poise_core.archive import UNTRAINED_ARM
from poise_core.config import Preset
from poise_core.evidence.intervals import VarianceParts, variance_parts
from poise_core.evidence.run_evidence import RunEvidence
from poise_core.evolution.history import History
from poise_core.search.plateau import Plateau, assess_plateau


def outlook(evidence: RunEvidence, preset: Preset) -> Plateau:
    """The plateau state of the search after its last generation, with the mean training tokens of a generation.

    Raises:
        poise_core.archive.ArchiveError: a file cannot be read.
    """
    nodes = History(evidence.archive, evidence.protocol).nodes()
    made = max((node.generation for node in nodes), default=0)
    spent = evidence.training_tokens
    children = sum(spent.get(node.candidate_id, 0) for node in nodes if node.generation > 0)
    tokens = children / made if made and children else None
    return assess_plateau(nodes, preset.search.plateau, parents=preset.search.parents, tokens=tokens)


@dataclass(frozen=True)
class Spending:
    """Parts of the variance of a difference to the baseline, and the price of a seed."""

    parts: VarianceParts  # means over the candidates, at their number of seeds
    candidates: int  # with as many seeds as the baseline
    train_seconds: float | None  # of one seed, median; None where the archive does not say
    evaluate_seconds: float  # of one seed, median

    @property
    def problem_cost(self) -> float | None:
        """Time with twice the problems over the time now: evaluation alone takes longer."""
        if self.train_seconds is None or self.train_seconds + self.evaluate_seconds <= 0:
            return None
        return 1.0 + self.evaluate_seconds / (self.train_seconds + self.evaluate_seconds)

    @property
    def advice(self) -> str:
        """``problems`` or ``seeds``: twice of which leaves the smaller product of variance and time; empty without times."""
        if self.problem_cost is None or self.parts.total <= 0:
            return ""
        by_problems, by_seeds = self.parts.scaled(problems=2) * self.problem_cost, self.parts.scaled(seeds=2) * 2.0
        return "problems" if by_problems < by_seeds else "seeds"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "parts": vars(self.parts), "problem_cost": self.problem_cost, "advice": self.advice}


def spending(evidence: RunEvidence) -> Spending | None:
    """Of the candidates that have as many seeds as the baseline; None where no such candidate has two, or none was timed.

    Raises:
        poise_core.archive.ArchiveError: a file cannot be read.
    """
    base = evidence.evaluations.get(evidence.baseline or "")
    if not base:
        return None
    whole = {
        name: evals
        for name, evals in evidence.evaluations.items()
        if len(evals) >= len(base) and evidence.candidates[name]["arm"] != UNTRAINED_ARM
    }
    others = [evals for name, evals in whole.items() if name != evidence.baseline]
    found = [parts for evals in others if (parts := variance_parts(evals, base, evidence.protocol)) is not None]
    found = [parts for parts in found if parts.seeds == len(base)]
    seconds = [one.seconds for evals in whole.values() for one in evals if math.isfinite(one.seconds)]
    if not found or not seconds:
        return None
    seed, problem = (
        max(statistics.fmean(values), 0.0) for values in zip(*((one.seed, one.problem) for one in found), strict=True)
    )
    return Spending(
        VarianceParts(seed, problem, statistics.fmean(parts.rest for parts in found), len(base)),
        len(found),
        _train_seconds(evidence),
        statistics.median(seconds),
    )


def _train_seconds(evidence: RunEvidence) -> float | None:
    """Of one seed of the baseline, median."""
    steps = evidence.archive.trajectory(evidence.baseline or "", evidence.protocol.digest)
    totals = []
    for rows in steps.values():
        taken = [row.get(name) for row in rows for name in ("seconds_rollout", "seconds_update")]
        known = [one for one in taken if one is not None]
        if known and len(known) == len(taken):
            totals.append(sum(known))
    return statistics.median(totals) if totals else None


@dataclass(frozen=True)
class Compute:
    """What the measurement of a candidate has cost, derived from the rows of its trainings and evaluations."""

    candidate_id: str
    name: str
    generation: int
    tokens: int  # completion tokens sampled in training
    train_seconds: float  # by the clock, all seeds, without starts
    evaluate_seconds: float
    gpu_hours: float  # of all GPUs of a training, which are held while it is scored, too

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dict(vars(self))


def computed(evidence: RunEvidence, gpus: int) -> list[Compute]:
    """Return the compute of every candidate that was trained or scored, in the order of generations.

    Args:
        evidence: of the run.
        gpus: that a candidate holds while it is measured.

    Raises:
        poise_core.archive.ArchiveError: a file cannot be read.
    """
    found = []
    for identity, (trained, evaluated) in evidence.measuring_seconds.items():
        row = evidence.candidates.get(identity)
        if row is None:
            continue
        tokens, hours = evidence.training_tokens.get(identity, 0), gpus * (trained + evaluated) / 3600
        found.append(Compute(identity, row["name"], row["generation"], tokens, trained, evaluated, hours))
    return sorted(found, key=lambda one: (one.generation, one.name))
