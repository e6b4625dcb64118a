"""Training and evaluating several algorithms under one protocol, each at its best learning rate, outside of an evolution.

The report split is evaluated here for known algorithms, to assess the testbed; it selects nothing. No candidate is among
them, so the problems are the public ones, and two calibrations ask the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

import numpy as np

from poise_core.algorithms import algorithm_path
from poise_core.archive.measured import Measured, Trainings
from poise_core.candidate.identity import source_digest
from poise_core.config import Preset
from poise_core.config.protocol import Protocol
from poise_core.environments import Split
from poise_core.evaluation.launcher import EvaluationJob, evaluate_policies
from poise_core.evaluation.results import SeedEvaluation
from poise_core.failures import CandidateFailure
from poise_core.files import write_atomically
from poise_core.mechanisms.known import with_numbers
from poise_core.policies.locate import resolve_policy
from poise_core.training.launcher import TrainingJob, train_candidate

TUNED_BASELINE = "tuned"
"""The name in a panel of the preset's baseline with the numbers that ``poise tune`` has found; its file has the defaults."""

UNTRAINED = "untrained"
"""The name of the base policy in the record of a panel."""

MOST_FACTORS = 7
"""Learning rates at which one algorithm is tried at most."""


@dataclass(frozen=True)
class Panel:
    """The evaluations of each algorithm that finished and of the untrained policy, and the failures."""

    search: dict[str, list[SeedEvaluation]]
    report: dict[str, list[SeedEvaluation]]
    untrained: SeedEvaluation
    failed: tuple[tuple[str, str], ...]
    rates: dict[str, Rates] = field(default_factory=dict)


@dataclass(frozen=True)
class Rates:
    """What one algorithm scored at each learning rate, by the seeds that choose."""

    overalls: dict[
        float, list[float]
    ]  # factor on the preset's learning rate -> Overall of each seed; only those that finished
    tried: tuple[float, ...]

    @property
    def best(self) -> float:
        """The factor with the highest mean Overall."""
        return max(self.overalls, key=lambda factor: float(np.mean(self.overalls[factor])))

    @property
    def bracketed(self) -> bool:
        """Whether a lower and a higher rate were tried as well, both of which are then worse."""
        return min(self.tried) < self.best < max(self.tried)

    def next(self) -> float | None:
        """The factor to try next, beyond the best one where that is the lowest or the highest; None where there is none."""
        if not self.overalls or self.bracketed or len(self.tried) >= MOST_FACTORS:
            return None
        return min(self.tried) / 2 if self.best == min(self.tried) else max(self.tried) * 2


def training_place(folder: Path, trainings: Trainings) -> Path:
    """Where trainings lie in the folder of a panel.

    What lies in a place is read back and not trained again, so another text of the algorithm's file, such as the baseline with
    other tuned numbers, has another place.
    """
    first, last = trainings.seeds[0], trainings.seeds[-1]
    place = folder / trainings.protocol / trainings.algorithm / f"seeds-{first}-{last}"
    file, own = place / f"{trainings.algorithm}.py", source_digest(trainings.source)
    if not file.exists() or source_digest(file.read_text(encoding="utf-8")) == own:
        return place
    return place.with_name(f"{place.name}-{own[:8]}")


class PanelRun:
    """The trainings of a panel in a folder; what is finished there is not redone."""

    def __init__(
        self,
        preset: Preset,
        folder: Path,
        pool: Executor,
        on_training: Callable[[], None] | None = None,
        measured: Measured | None = None,
    ) -> None:
        """Prepare.

        Args:
            preset: the protocol and the resources.
            folder: where the trainings lie, by protocol and algorithm.
            pool: runs one algorithm per worker.
            on_training: called after each training.
            measured: what is known already, and where to put what is measured.
        """
        self._measured = measured or Measured()
        self._preset, self._folder, self._pool = preset, folder, pool
        self._on_training = on_training or (lambda: None)
        self._stop = Event()
        self._sources: dict[str, str] = {}

    def run(self, algorithms: Sequence[str], seeds: int, factors: Sequence[float] = (), choosing: int = 3) -> Panel:
        """Train and evaluate every algorithm.

        With several ``factors`` each algorithm is trained at these multiples of the preset's learning rate with the protocol's
        first ``choosing`` seeds; while its best rate is the lowest or the highest, one half or twice of it is tried as well.
        What is returned was trained at the best rate with the ``seeds`` seeds that follow, which have chosen nothing. With
        one factor it is that multiple and the first seeds, without any the preset's rate.

        Raises:
            ValueError: the protocol lists fewer seeds, or an algorithm is not shipped.
            InfrastructureError: a process failed for a reason that is not the algorithm's.
        """
        listed, chosen_by = self._preset.protocol.seeds, choosing if len(factors) > 1 else 0
        if chosen_by + seeds > len(listed):
            raise ValueError(
                f"the protocol lists {len(listed)} seeds, {chosen_by + seeds} are asked for"
                + (f": {chosen_by} to choose the learning rate and {seeds} others to measure" if chosen_by else "")
            )
        self._sources = {name: self._source(name) for name in algorithms}
        search: dict[str, list[SeedEvaluation]] = {}
        report: dict[str, list[SeedEvaluation]] = {}
        rates: dict[str, Rates] = {}
        failed: dict[str, str] = {}
        try:
            if chosen_by:
                rates, failed = self._choose(algorithms, tuple(listed[:chosen_by]), factors)
            only = factors[0] if factors else 1.0
            best = {name: rates[name].best if chosen_by else only for name in algorithms if name not in failed}
            found = self._all(list(best.items()), tuple(listed[chosen_by : chosen_by + seeds]), sealed=True)
            untrained = self._untrained()
        except BaseException:
            self._stop.set()
            raise
        for (name, _), outcome in found.items():
            if isinstance(outcome, str):
                failed[name] = outcome
            else:
                search[name], report[name] = outcome["search"], outcome["report"]
        return Panel(search, report, untrained, tuple(failed.items()), rates)

    def _choose(
        self, algorithms: Sequence[str], seeds: tuple[int, ...], factors: Sequence[float]
    ) -> tuple[dict[str, Rates], dict[str, str]]:
        """Return the scores of every algorithm by learning rate, and those that finished at none."""
        scores: dict[str, dict[float, list[float]]] = {name: {} for name in algorithms}
        tried: dict[str, list[float]] = {name: [] for name in algorithms}
        reasons: dict[str, str] = {}
        wanted = [
            (name, factor) for factor in sorted(set(factors), key=lambda f: abs(math.log(f))) for name in algorithms
        ]
        while wanted:
            for (name, factor), outcome in self._all(wanted, seeds, sealed=False).items():
                tried[name].append(factor)
                if isinstance(outcome, str):
                    reasons[name] = outcome
                else:
                    scores[name][factor] = [evaluation.overall for evaluation in outcome["search"]]
            rates = {name: Rates(scores[name], tuple(sorted(tried[name]))) for name in algorithms}
            wanted = [(name, further) for name in algorithms if (further := rates[name].next()) is not None]
        return rates, {name: reasons[name] for name in algorithms if not scores[name]}

    def _all(
        self, cells: Sequence[tuple[str, float]], seeds: tuple[int, ...], sealed: bool
    ) -> dict[tuple[str, float], dict[Split, list[SeedEvaluation]] | str]:
        """Return the evaluations of algorithms at factors of the learning rate, by split, or why there are none."""
        futures = {cell: self._pool.submit(self._one, *cell, seeds, sealed) for cell in cells}
        return {cell: future.result() for cell, future in futures.items()}

    def _one(
        self, name: str, factor: float, seeds: tuple[int, ...], sealed: bool
    ) -> dict[Split, list[SeedEvaluation]] | str:
        preset = self._preset
        training = preset.protocol.training
        training = training.model_copy(update={"learning_rate": training.learning_rate * factor})
        protocol = preset.protocol.model_copy(update={"training": training})
        trainings = Trainings(protocol.digest, name, self._sources[name], seeds)
        known = self._measured.get(trainings, ("search", "report") if sealed else ("search",))
        if known is not None:
            return known
        place = training_place(self._folder, trainings)
        file = place / f"{name}.py"
        place.mkdir(parents=True, exist_ok=True)
        write_atomically(file, trainings.source)

        def finished(_: int, row: dict[str, float]) -> None:
            if row["step"] == training.steps - 1:
                self._on_training()

        job = TrainingJob(file, name, place / "train", protocol, preset.resources, seeds)
        try:
            done = train_candidate(job, on_step=finished, should_stop=self._stop.is_set)
        except CandidateFailure as failure:
            message = f"{failure.kind}: {failure.message}"
            self._measured.put(trainings, message)
            return message
        policies = tuple((one.seed, one.policy_folder) for one in done)
        found: dict[Split, list[SeedEvaluation]] = {
            "search": self.evaluate(place / "evaluate", protocol, "search", policies)
        }
        if sealed:
            found["report"] = self.evaluate(place / "evaluate", protocol, "report", policies)
        self._measured.put(trainings, found)
        return found

    def _source(self, name: str) -> str:
        """The algorithm's file, of the tuned baseline with its tuned numbers."""
        if name == TUNED_BASELINE and self._preset.baseline_numbers:
            return with_numbers(self._preset.search.baseline, self._preset.baseline_numbers).source
        return algorithm_path(name).read_text(encoding="utf-8")

    def _untrained(self) -> SeedEvaluation:
        protocol = self._preset.protocol
        none = Trainings(protocol.digest, UNTRAINED, "", (0,))
        found = self._measured.get(none, ("search",))
        if not isinstance(found, dict):
            where = self._folder / protocol.digest / "base"
            found = {"search": self.evaluate(where, protocol, "search", ((0, resolve_policy(protocol.policy)),))}
            self._measured.put(none, found)
        return found["search"][0]

    def evaluate(
        self, where: Path, protocol: Protocol, split: Split, policies: tuple[tuple[int, Path], ...]
    ) -> list[SeedEvaluation]:
        """Score policies on a split."""
        job = EvaluationJob(where, protocol, self._preset.resources, split, policies, secret=None)
        return evaluate_policies(job, should_stop=self._stop.is_set)
