"""Training and evaluating several algorithms under one protocol, outside of an evolution.

The report split is evaluated here for known algorithms, to assess the testbed; it selects nothing. No candidate is among
them, so the problems are the public ones, and two calibrations ask the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from poise_core.algorithms import algorithm_path
from poise_core.config import Preset
from poise_core.environments import Split
from poise_core.evaluation.launcher import EvaluationJob, evaluate_policies
from poise_core.evaluation.results import SeedEvaluation
from poise_core.failures import CandidateFailure
from poise_core.policies.locate import resolve_policy
from poise_core.training.launcher import TrainingJob, train_candidate

PANEL = (
    "grpo",
    "dr_grpo",
    "reinforce_group_baseline",
    "rloo",
    "dapo",
    "gspo",
    "cispo",
    "reinforce_plus_plus",
    "bn",
    "av",
    "vm_av",
    "fa",
    "sa",
    "dace",
    "dcbe",
)
"""Algorithms for assessing the testbed: basic ones, strong variants, and two published failures (SA, DCBE)."""


@dataclass(frozen=True)
class Panel:
    """The evaluations of each algorithm that finished and of the untrained policy, and the failures."""

    search: dict[str, list[SeedEvaluation]]
    report: dict[str, list[SeedEvaluation]]
    untrained: SeedEvaluation
    failed: tuple[tuple[str, str], ...]


def run_panel(
    preset: Preset,
    algorithms: Sequence[str],
    seeds: int,
    folder: Path,
    pool: Executor,
    on_seed: Callable[[], None] | None = None,
) -> Panel:
    """Train and evaluate every algorithm with the protocol's first ``seeds`` seeds; finished work is not redone.

    Raises:
        ValueError: the protocol lists fewer seeds.
        InfrastructureError: a process failed for a reason that is not the algorithm's.
    """
    protocol, resources = preset.protocol, preset.resources
    if seeds > len(protocol.seeds):
        raise ValueError(f"the protocol lists {len(protocol.seeds)} seeds, {seeds} are asked for")
    stop = Event()

    def evaluate(where: Path, split: Split, policies: tuple[tuple[int, Path], ...]) -> list[SeedEvaluation]:
        job = EvaluationJob(where, protocol, resources, split, policies, secret=None)
        return evaluate_policies(job, should_stop=stop.is_set)

    def finished_seed(_: int, row: dict[str, float]) -> None:
        if on_seed is not None and row["step"] == protocol.training.steps - 1:
            on_seed()

    def run(name: str) -> tuple[list[SeedEvaluation], list[SeedEvaluation]] | str:
        place = folder / name
        job = TrainingJob(
            algorithm_path(name), name, place / "train", protocol, resources, tuple(protocol.seeds[:seeds])
        )
        try:
            done = train_candidate(job, on_step=finished_seed, should_stop=stop.is_set)
        except CandidateFailure as failure:
            return f"{failure.kind}: {failure.message}"
        policies = tuple((training.seed, training.policy_folder) for training in done)
        searched = evaluate(place / "evaluate", "search", policies)
        return searched, evaluate(place / "evaluate", "report", policies)

    futures = {name: pool.submit(run, name) for name in algorithms}
    try:
        untrained = evaluate(folder / "base", "search", ((0, resolve_policy(protocol.policy)),))[0]
        outcomes = {name: future.result() for name, future in futures.items()}
    except BaseException:
        stop.set()
        raise
    finished = {name: outcome for name, outcome in outcomes.items() if not isinstance(outcome, str)}
    return Panel(
        search={name: outcome[0] for name, outcome in finished.items()},
        report={name: outcome[1] for name, outcome in finished.items()},
        untrained=untrained,
        failed=tuple((name, outcome) for name, outcome in outcomes.items() if isinstance(outcome, str)),
    )
