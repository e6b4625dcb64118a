"""An executor for tests, whose gate, training and evaluation return at once, with numbers that depend on the source alone.

All other parts (search, agents, archive, records) are real. Inside ``with Laboratory():`` evolutions use this executor
instead of child processes.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from poise_core.agents.roles import Attempt, Proposal, ProposalContext
from poise_core.archive import TABLES, Archive
from poise_core.candidate.identity import program_digest
from poise_core.candidate.loading import source_digest
from poise_core.config import Preset
from poise_core.config.protocol import BenchmarkSpec
from poise_core.evaluation.job import EvaluationJob
from poise_core.evaluation.kept import TRAINING, KeptCompletion
from poise_core.evaluation.results import BenchmarkResult, SeedEvaluation
from poise_core.evaluation.scoring import benchmark_score, overall
from poise_core.evolution import CandidateRef, Evolution, Roles, default_roles
from poise_core.evolution import generation as in_order
from poise_core.evolution.executor import executed_by
from poise_core.evolution.generation import establish_baseline, measure
from poise_core.failures import Cancelled, CandidateFailure, FailureKind
from poise_core.run_directory import RunDirectory
from poise_core.training.job import TrainingJob
from poise_core.training.launcher import PAUSED_POLICY, SeedTraining, unfinished_trajectory
from poise_core.training.results import COMPLETIONS
from poise_core.verification import CheckResult, VerificationReport

STEPS = 12
CHILDREN = 5


def make_preset(
    resources: dict[str, Any] | None = None,
    ladder: dict[str, Any] | None = None,
    health: dict[str, Any] | None = None,
    examination: dict[str, Any] | None = None,
    **search: Any,
) -> Preset:
    # only where reward is what is scored may it end a training
    k = 1 if "proxy_stop_below" in (ladder or {}) or health else 2
    benchmarks = [
        {
            "name": "chain",
            "kinds": ["chain4"],
            "problems": 20,
            "metric": "pass",
            "k": k,
            "samples": 4,
            "weight": 0.5,
        },
        {"name": "sums", "kinds": ["add2"], "problems": 20, "metric": "accuracy", "weight": 0.5},
    ]
    protocol = {
        "policy": "made-up",
        "policy_digest": "f00d",
        "environment": {"mixture": {"add2": 1.0}},
        "training": {
            "steps": STEPS, "prompts_per_step": 4, "group_size": 4, "learning_rate": 1e-4, "max_completion_length": 8,
        },
        "benchmarks": benchmarks,
        "seeds": [0, 1],
    }  # fmt: skip
    given = {"generations": 2, "parents": 2, "proposals": 3, "seeds_per_candidate": 2, **search}
    document: dict[str, Any] = {"name": "made-up", "protocol": protocol, "search": given, "resources": resources or {}}
    document["ladder"] = {"proxy_steps": 6, "proxy_window": 3, **(ladder or {})}
    document["health"] = {"enabled": False, **(health or {})}  # the made-up dynamics are noise
    # what an examination costs here is for the tests of it to say: three fresh seeds, and nothing else is trained
    document["examination"] = {"seeds": 3, "rates": (), **(examination or {})}
    return Preset.model_validate(document)


def noise(*parts: object) -> random.Random:
    return random.Random(hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest())


@dataclass
class Laboratory:
    """What it was asked to do, and what it shall refuse."""

    refuse: Callable[[str, str], str | None] = lambda name, source: None  # name, source -> the gate's sentence
    fail: dict[str, BaseException] = field(default_factory=dict)  # name of a candidate -> what its training raises
    skills: dict[str, float] = field(
        default_factory=dict
    )  # candidate id -> chance to solve a problem, where it matters
    # candidate id, job, seed, benchmark -> correct completions of every problem; None: drawn with the skill
    counts: Callable[[str, EvaluationJob, int, BenchmarkSpec], Sequence[int] | None] = lambda *_: None
    fail_under: Callable[[TrainingJob], BaseException | None] = lambda job: (
        None
    )  # what a training raises at its beginning
    keeps: bool = False  # whether trainings and evaluations keep a completion to be read
    before_training: Callable[[str], None] = lambda name: None
    trained: list[str] = field(default_factory=list)  # name/seed, when its first step begins
    steps: list[str] = field(default_factory=list)  # name/seed/step, every step that was done
    evaluated: list[str] = field(default_factory=list)
    splits: set[str] = field(default_factory=set)
    sealed_sets: set[int] = field(default_factory=set)

    def step(self, name: str, digest: str, seed: int, step: int) -> dict[str, float]:
        """One row of a trajectory; tests may put another function here."""
        return self._noise_step(name, digest, seed, step)

    def __enter__(self) -> Laboratory:
        self._block = executed_by(self)
        self._block.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._block.__exit__(*error)

    def verify(
        self,
        path: Path,
        *,
        name: str,
        known_fingerprints: dict[str, str],
        known_programs: dict[str, str] | None = None,
        **_: Any,
    ) -> VerificationReport:
        source = path.read_text()
        fingerprint = source_digest(source)[:16]
        message = self.refuse(name, source)
        failure = FailureKind.REJECTED if message else None
        twin = known_fingerprints.get(fingerprint) or (known_programs or {}).get(program_digest(source))
        if twin is not None:
            failure, message = FailureKind.DUPLICATE, f"trains exactly as {twin}"
        check = CheckResult("made-up", "nothing", failure is None, message or "", 0.0)
        return VerificationReport(name, source_digest(source), failure is None, (check,), fingerprint, failure=failure)

    def unfinished_trajectory(self, job: TrainingJob, seed: int) -> tuple[list[dict[str, float]], dict[str, str]]:
        return unfinished_trajectory(job, seed)

    def train(self, job: TrainingJob, *, on_step: Any = None, should_stop: Any = None) -> list[SeedTraining]:
        if (failure := self.fail_under(job)) is not None:
            raise failure
        last = job.pause_after or STEPS
        if any(self._steps_done(job.folder / f"seed-{seed}") < last for seed in job.seeds):
            self.before_training(job.candidate_name)
        return [self._train_seed(job, seed, last, on_step, should_stop) for seed in job.seeds]

    @staticmethod
    def _steps_done(folder: Path) -> int:
        path = folder / "trajectory.jsonl"
        return path.read_text().count("\n") if path.exists() else 0

    @staticmethod
    def _drop_torn_line(path: Path) -> None:
        """Cut what a full disk left of a line, as the trainer does, which goes on from its last checkpoint."""
        if path.exists():
            os.truncate(path, path.read_bytes().rfind(b"\n") + 1)

    def _train_seed(self, job: TrainingJob, seed: int, last: int, on_step: Any, should_stop: Any) -> SeedTraining:
        """Every step is written when it is done, and is never done again: each stands for a checkpoint."""
        folder = job.folder / f"seed-{seed}"
        digest = source_digest(job.candidate_path.read_text())
        first = self._steps_done(folder)
        self._drop_torn_line(folder / "trajectory.jsonl")
        if first == 0:
            self.trained.append(f"{job.candidate_name}/{seed}")
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "trajectory.jsonl").open("a") as stream:
            for step in range(first, last):
                if should_stop is not None and should_stop():
                    raise Cancelled("stopped")
                if step == STEPS // 2 and job.candidate_name in self.fail:
                    raise self.fail[job.candidate_name]
                row = self.step(job.candidate_name, digest, seed, step)
                self.steps.append(f"{job.candidate_name}/{seed}/{step}")
                if self.keeps and step == 0:
                    one = KeptCompletion(TRAINING, step, "wrong", "1+1=", "3", 0.0, True, False, 1)
                    (folder / COMPLETIONS).write_text(json.dumps(asdict(one)) + "\n")
                stream.write(json.dumps(row) + "\n")
                stream.flush()
                if on_step is not None:
                    on_step(seed, row)
        (folder / (PAUSED_POLICY if last < STEPS else "policy")).mkdir(exist_ok=True)
        return SeedTraining(seed, folder / "policy", folder / "trajectory.jsonl", 1.0, 100)

    @staticmethod
    def _noise_step(name: str, digest: str, seed: int, step: int) -> dict[str, float]:
        draw = noise(digest, seed, step)
        names = ("reward_mean", "format_valid", "truncated", "entropy", "kl", "clip_fraction", "grad_norm", "loss",
                 "all_fail_fraction", "all_pass_fraction", "learning_rate", "completion_length")  # fmt: skip
        return {"step": step, "tokens": 100, **{name: draw.random() for name in names}}

    def evaluate(self, job: EvaluationJob, *, should_stop: Any = None) -> list[SeedEvaluation]:
        results = []
        for seed, policy in job.policies:
            owner = _owner(job.folder)
            self.evaluated.append(f"{owner}/{seed}")
            self.splits.add(job.split)
            self.sealed_sets.add(job.examination)
            skill = self.skills.get(owner, noise(owner).uniform(0.3, 0.7))
            given = {spec.name: self.counts(owner, job, seed, spec) for spec in job.protocol.benchmarks}
            benchmarks = tuple(
                self._benchmark(spec, skill, policy, seed, given[spec.name], self.keeps)
                for spec in job.protocol.benchmarks
            )
            results.append(SeedEvaluation(seed, job.split, overall(benchmarks, job.protocol), benchmarks, 1.0))
        return results

    @staticmethod
    def _benchmark(
        spec: Any, skill: float, policy: Path, seed: int, given: Sequence[int] | None, keeps: bool
    ) -> BenchmarkResult:
        draw = noise(_owner(policy), seed, spec.name)
        drawn = (sum(draw.random() < skill for _ in range(spec.samples)) for _ in range(spec.problems))
        correct = tuple(drawn if given is None else given)
        score = benchmark_score(correct, spec.samples, spec.k)
        kept = (KeptCompletion(spec.name, -1, "right", "1+1=", "2", 1.0, True, False, 1),) if keeps else ()
        return BenchmarkResult(spec.name, spec.metric_name, score, correct, spec.samples, 0.9, 6.0, kept=kept)


def _owner(path: Path) -> str:
    """The candidate whose file or folder this is, or the path itself."""
    parts = path.parts
    return parts[parts.index("candidates") + 1] if "candidates" in parts else str(path)


def open_evolution(folder: Path, preset: Preset | None = None, roles: Roles | None = None, **options: Any) -> Evolution:
    return Evolution(RunDirectory.open(folder, preset or make_preset()), roles=roles, **options)


def admit(evolution: Evolution, generation: int) -> list[CandidateRef]:
    """Children of every slot, one after the other; slots without an admissible one are left out."""
    slots = evolution.select_parents(generation)
    return [child for slot in slots if (child := in_order.admit(evolution, slot)) is not None]


def evolve(evolution: Evolution) -> None:
    """The order of the flow, without the flow."""
    establish_baseline(evolution)
    for number in evolution.generations():
        in_order.generation(evolution, number)
        assert evolution.finished(number)


def with_problems_of(run: Path, folder: Path) -> None:
    """Make the folder of a run that is still to begin, with the problems of another one, so that their rows can be compared."""
    folder.mkdir()
    shutil.copy(run / "secret", folder)


def contents(archive: Archive) -> dict[str, dict[str, str]]:
    """Every row of every table: its key and the digest over what counts, times and durations aside."""
    found = {}
    for table in TABLES:
        data = archive.read(table, ["row_key", "content_digest"], unsealed=True)
        found[table] = dict(zip(data["row_key"].to_pylist(), data["content_digest"].to_pylist(), strict=True))
    return found


def preset_with(seeds: tuple[int, ...]) -> Preset:
    preset = make_preset(generations=1, parents=CHILDREN)
    return preset.model_copy(update={"protocol": preset.protocol.model_copy(update={"seeds": seeds})})


@dataclass(frozen=True)
class Finished:
    """A run directory to copy, and what its laboratory had been asked."""

    folder: tempfile.TemporaryDirectory[str]
    candidates: list[str]
    asked: dict[str, Any]  # of the laboratory's records


_FINISHED: dict[tuple[int, ...], Finished] = {}


def evolved(
    tmp_path: Path, laboratory: Laboratory, seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
) -> tuple[Evolution, list[str]]:
    """A baseline that solves three problems in ten, one child that solves nine, and others like the baseline.

    The first test evolves it, the others get copies.
    """
    preset = preset_with(seeds)
    if seeds not in _FINISHED:
        _FINISHED[seeds] = _evolved(tempfile.TemporaryDirectory(), laboratory, preset)
    found = _FINISHED[seeds]
    shutil.copytree(Path(found.folder.name) / "run", tmp_path / "run")
    for name, record in found.asked.items():
        setattr(laboratory, name, copy.copy(record))
    return open_evolution(tmp_path / "run", preset), list(found.candidates)


def one_at_a_time(run: RunDirectory) -> None:
    """From now on no two candidates of this run train at the same time."""
    resources = run.preset.resources.model_copy(update={"parallel_candidates": 1})
    run.preset = run.preset.model_copy(update={"resources": resources})


def _evolved(folder: tempfile.TemporaryDirectory[str], laboratory: Laboratory, preset: Preset) -> Finished:
    evolution = open_evolution(Path(folder.name) / "run", preset)
    with evolution.run:
        baseline = evolution.register_baseline()
        laboratory.skills[baseline.candidate_id] = 0.3
        establish_baseline(evolution)
        children = admit(evolution, 1)
        for number, child in enumerate(children):
            laboratory.skills[child.candidate_id] = 0.3 if number else 0.9
            measure(evolution, child)
    names = ("skills", "trained", "steps", "evaluated", "splits")
    asked = {name: copy.copy(getattr(laboratory, name)) for name in names}
    return Finished(folder, [baseline.candidate_id, *(child.candidate_id for child in children)], asked)


PROXY = 6


LADDER = {"enabled": True, "proxy_steps": PROXY, "proxy_window": 3, "proxy_stop_below": 0.05}


def rewards(level: dict[str, float]) -> Any:
    """Trajectories whose reward is ``level`` of the candidate's name, by default the baseline's 0.6."""

    def step(name: str, digest: str, seed: int, step: int) -> dict[str, float]:
        row = Laboratory._noise_step(name, digest, seed, step)
        return {**row, "reward_mean": level.get(name, 0.6), "kl": 0.1, "entropy": 0.3, "clip_fraction": 0.0,
                "truncated": 0.0, "completion_length": 10.0}  # fmt: skip

    return step


def drops(every: int) -> Any:
    """One in ``every`` children has hardly any reward; which ones follows from their source."""

    def step(name: str, digest: str, seed: int, step: int) -> dict[str, float]:
        low = name != "GRPO" and int(hashlib.sha256(digest.encode()).hexdigest(), 16) % every == 0
        return rewards({name: 0.1} if low else {})(name, digest, seed, step)

    return step


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def dies_after_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every durable write of a run ends in a link or a rename; the first of them is the last thing that is done."""

    def last(write: Callable[..., Any]) -> Callable[..., Any]:
        def write_and_die(source: Any, target: Any, **options: Any) -> None:
            write(source, target, **options)
            raise Killed(str(target))

        return write_and_die

    monkeypatch.setattr(os, "link", last(os.link))
    monkeypatch.setattr(os, "replace", last(os.replace))


class Author:
    """An implementer that answers every report: the nth file of an idea says in its text that it is the nth."""

    revises = True

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[Attempt]]] = []

    def implement(self, proposal: Proposal, context: ProposalContext, attempts: Sequence[Attempt] = ()) -> str:
        self.asked.append((proposal.name, list(attempts)))
        return file_of(proposal.name, len(attempts))


def file_of(name: str, number: int) -> str:
    return f'"""{name}, file {number}."""\n\nFILE = "{name}", {number}\n'


class Faults:
    """Trainings that go wrong: (file's number, seed, step) -> the kind of failure."""

    def __init__(self, laboratory: Laboratory) -> None:
        self.at: dict[tuple[int, int, int], FailureKind] = {}
        laboratory.step = self.step

    def step(self, name: str, digest: str, seed: int, step: int) -> dict[str, float]:
        number = next((n for n in range(9) if source_digest(file_of(name, n)) == digest), None)
        kind = self.at.get((number, seed, step)) if number is not None else None
        if kind is not None:
            raise CandidateFailure(kind, "train", f"it went wrong at step {step}", "Traceback: boom")
        return Laboratory._noise_step(name, digest, seed, step)


def with_author(preset: Preset, author: Author | None = None) -> Roles:
    roles = default_roles(preset)
    return Roles(roles.selector, roles.proposer, roles.screener, author or Author(), roles.reflector)
