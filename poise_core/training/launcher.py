"""Training as a child process: started by torchrun's agent, confined, watched, resumable.

Finished seeds are read back, not redone; an unfinished seed goes on from its last checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from poise_core.config import ResourceSpec
from poise_core.evaluation.protocol import Protocol
from poise_core.failures import CandidateFailure, FailureKind, InfrastructureError
from poise_core.processes import TimeLimitReached, log_tail, quiet_environment, run_confined
from poise_core.training.policy import resolve_policy
from poise_core.verification.sandbox import Limits


@dataclass(frozen=True)
class TrainingJob:
    """One candidate, trained with some of the protocol's seeds."""

    candidate_path: Path  # the .py file
    candidate_name: str
    folder: Path  # gets seed-<s>/ for every seed
    protocol: Protocol
    resources: ResourceSpec
    seeds: tuple[int, ...]
    pause_after: int | None = None  # steps after which every seed stops at a checkpoint; None: it trains to its end


@dataclass(frozen=True)
class SeedTraining:
    """A training of one seed, finished or at its pause."""

    seed: int
    policy_folder: Path  # there is no policy in it before the training has finished
    trajectory_path: Path  # one JSON object per step
    seconds: float
    tokens: int  # completion tokens sampled

    def trajectory(self) -> list[dict[str, float]]:
        """The rows of the trajectory, one per step."""
        return [json.loads(line) for line in self.trajectory_path.read_text().splitlines()]


def train_candidate(
    job: TrainingJob,
    *,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[SeedTraining]:
    """Train every seed of the job that is not finished (or not at its pause) yet; all of them, in the job's order.

    A paused seed goes on from its checkpoint when a job without a pause, or with a later one, is given: every step is
    drawn from (seed, step), so what comes out is what a training without the pause gives.

    Args:
        job: what to train.
        on_step: called with (seed, trajectory row) as the rows appear; where a seed goes on from a checkpoint, with the
            rows before it too, but never twice with the same step. What it raises ends the training, and is raised here.
        should_stop: polled; when it says True the training is ended and can be resumed later.

    Raises:
        CandidateFailure: the candidate raised, diverged, or took longer than ``resources.train_timeout_seconds``.
        InfrastructureError: the process died for another reason.
        Cancelled: ``should_stop`` said so.
    """
    open_seeds = [seed for seed in job.seeds if _record(job, seed) is None]
    if open_seeds:
        _run(job, open_seeds, on_step, should_stop)
    missing = [seed for seed in job.seeds if _record(job, seed) is None]
    if missing:
        raise InfrastructureError(
            f"training ended without an error, but seeds {missing} have no result; see {job.folder}"
        )
    return [_read(job, seed) for seed in job.seeds]


def _record(job: TrainingJob, seed: int) -> dict[str, Any] | None:
    """What the worker wrote at the end of this seed or, where the job has a pause, at that one or a later one."""
    folder = job.folder / f"seed-{seed}"
    if (folder / "result.json").exists():
        finished: dict[str, Any] = json.loads((folder / "result.json").read_text())
        return finished
    if job.pause_after is None or not (folder / "paused.json").exists():
        return None
    paused: dict[str, Any] = json.loads((folder / "paused.json").read_text())
    return paused if paused["steps"] >= job.pause_after else None


def _read(job: TrainingJob, seed: int) -> SeedTraining:
    folder = job.folder / f"seed-{seed}"
    record = _record(job, seed)
    assert record is not None
    if (folder / "result.json").exists():
        # left where the worker was killed at its very end
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        (folder / "paused.json").unlink(missing_ok=True)
    return SeedTraining(
        seed=seed,
        policy_folder=folder / "policy",
        trajectory_path=folder / "trajectory.jsonl",
        seconds=float(record["seconds"]),
        tokens=int(record["tokens"]),
    )


def _run(
    job: TrainingJob,
    seeds: list[int],
    on_step: Callable[[int, dict[str, float]], None] | None,
    should_stop: Callable[[], bool] | None,
) -> None:
    folder = job.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    outcome, log, job_file = folder / "outcome.json", folder / "train.log", folder / "job.json"
    outcome.unlink(missing_ok=True)
    candidate_path = job.candidate_path.resolve()
    policy = resolve_policy(job.protocol.policy).resolve()
    # no benchmarks: the process that runs candidate code is not told what it will be examined on
    job_file.write_text(
        json.dumps(
            {
                "policy": str(policy),
                "environment": job.protocol.environment.model_dump(mode="json"),
                "training": job.protocol.training.model_dump(mode="json"),
                "resources": job.resources.model_dump(mode="json"),
                "folder": str(folder),
                "seeds": seeds,
                "candidate_path": str(candidate_path),
                "candidate_name": job.candidate_name,
                "pause_after": job.pause_after,
            }
        )
    )
    processes = str(job.resources.processes_per_training)
    follower = _Follower(folder, seeds, on_step)
    try:
        status = run_confined(
            [sys.executable, "-m", "poise_core.training.startup", processes, str(job_file)],
            log=log,
            writable=[folder],
            readable=[candidate_path, policy],
            limits=Limits(wall_seconds=job.resources.train_timeout_seconds * len(seeds)),
            env=quiet_environment(job.resources.threads_per_process),
            on_poll=follower.poll,
            should_stop=should_stop,
        )
    except TimeLimitReached as error:
        raise CandidateFailure(FailureKind.TIMED_OUT, "train", str(error), log_tail(log)) from error
    follower.poll()
    if outcome.exists():
        document = json.loads(outcome.read_text())
        raise CandidateFailure(FailureKind(document["kind"]), "train", document["message"], document["detail"])
    if status != 0:
        raise InfrastructureError(f"training ended with status {status}; see {log}\n{log_tail(log)}")


class _Follower:
    """Reads the trajectories of the running seeds as they grow; every step is reported once.

    A resumed worker puts a new file, cut at its checkpoint, in the place of the old one: reading then starts over.
    """

    def __init__(self, folder: Path, seeds: list[int], on_step: Callable[[int, dict[str, float]], None] | None) -> None:
        self._on_step = on_step
        self._paths = {seed: folder / f"seed-{seed}" / "trajectory.jsonl" for seed in seeds}
        self._places = dict.fromkeys(seeds, (0, 0))  # inode, position
        self._next_step = dict.fromkeys(seeds, 0)

    def poll(self) -> None:
        """Report the whole lines that have come since the last call."""
        if self._on_step is None:
            return
        for seed, path in self._paths.items():
            if path.exists():
                with path.open() as stream:
                    self._read(seed, stream)

    def _read(self, seed: int, stream: TextIO) -> None:
        inode, position = self._places[seed]
        if os.fstat(stream.fileno()).st_ino == inode:
            stream.seek(position)
        while (line := stream.readline()).endswith("\n"):
            self._places[seed] = (os.fstat(stream.fileno()).st_ino, stream.tell())
            row = json.loads(line)
            if row["step"] >= self._next_step[seed] and self._on_step is not None:
                self._next_step[seed] = int(row["step"]) + 1
                self._on_step(seed, row)
