"""The executor: what runs the gate, a training or an evaluation, each of which takes a process of its own.

An evolution runs all of them through one executor. ``ChildProcesses`` starts confined processes on this machine; the work
pool (``tasks/work_pool.py``) hands whole candidates to other machines, whose workers use child processes again; the tests'
laboratory returns made-up results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from poise_core.evaluation.job import EvaluationJob
from poise_core.evaluation.results import SeedEvaluation
from poise_core.training.job import TrainingJob
from poise_core.verification import Conditions, VerificationReport, verify_file

Steps = list[dict[str, float]]
"""Rows of a trajectory, one per step."""


class SeedTraining(Protocol):
    """One seed, trained to its end or to its pause; see ``poise_core.training.launcher.SeedTraining``."""

    @property
    def seed(self) -> int:
        """The training seed."""

    @property
    def policy_folder(self) -> Path:
        """Where the trained policy is, once the training has finished."""

    @property
    def last_policy(self) -> Path | None:
        """The trained policy, or that of the pause; None where there is none."""

    @property
    def confinement(self) -> Mapping[str, str]:
        """Measure -> "granted", or why it was not."""

    def trajectory(self) -> Steps:
        """The rows of the trajectory."""


class Executor(Protocol):
    """Carries out single pieces of work; each may be asked for again, and what has finished is then read back."""

    def verify(
        self,
        path: Path,
        *,
        name: str,
        timeout_seconds: float,
        known_fingerprints: Mapping[str, str],
        folder: Path,
        should_stop: Callable[[], bool],
        probe_seed: int | None,
        conditions: Conditions,
        known_programs: Mapping[str, str] | None = None,
    ) -> VerificationReport:
        """Put a file through the gate; see ``poise_core.verification.verify_file``."""

    def train(
        self,
        job: TrainingJob,
        *,
        on_step: Callable[[int, dict[str, float]], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Sequence[SeedTraining]:
        """Train every seed of the job; see ``poise_core.training.launcher.train_candidate``."""

    def unfinished_trajectory(self, job: TrainingJob, seed: int) -> tuple[Steps, dict[str, str]]:
        """The steps that a training has written so far, and how its process was confined."""

    def evaluate(self, job: EvaluationJob, *, should_stop: Callable[[], bool] | None = None) -> list[SeedEvaluation]:
        """Score the policies of the job; see ``poise_core.evaluation.launcher.evaluate_policies``."""


class ChildProcesses:
    """The executor of a run on this machine. The launchers, and torch with them, are imported when they are needed."""

    def verify(
        self,
        path: Path,
        *,
        name: str,
        timeout_seconds: float,
        known_fingerprints: Mapping[str, str],
        folder: Path,
        should_stop: Callable[[], bool],
        probe_seed: int | None,
        conditions: Conditions,
        known_programs: Mapping[str, str] | None = None,
    ) -> VerificationReport:
        """See ``Executor.verify``."""
        return verify_file(
            path,
            name=name,
            timeout_seconds=timeout_seconds,
            known_fingerprints=known_fingerprints,
            folder=folder,
            should_stop=should_stop,
            probe_seed=probe_seed,
            conditions=conditions,
            known_programs=known_programs,
        )

    def train(
        self,
        job: TrainingJob,
        *,
        on_step: Callable[[int, dict[str, float]], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Sequence[SeedTraining]:
        """See ``Executor.train``."""
        from poise_core.training.launcher import train_candidate

        return train_candidate(job, on_step=on_step, should_stop=should_stop)

    def unfinished_trajectory(self, job: TrainingJob, seed: int) -> tuple[Steps, dict[str, str]]:
        """See ``Executor.unfinished_trajectory``."""
        from poise_core.training.launcher import unfinished_trajectory

        return unfinished_trajectory(job, seed)

    def evaluate(self, job: EvaluationJob, *, should_stop: Callable[[], bool] | None = None) -> list[SeedEvaluation]:
        """See ``Executor.evaluate``."""
        from poise_core.evaluation.launcher import evaluate_policies

        return evaluate_policies(job, should_stop=should_stop)


_given: list[Executor] = []  # of the open blocks of executed_by, the innermost last


@contextmanager
def executed_by(executor: Executor) -> Iterator[None]:
    """Make this executor the default of the process, in every thread, for the length of the block: for runs with made-up
    results, and for commands that make their own evolution."""
    _given.append(executor)
    try:
        yield
    finally:
        _given.remove(executor)


def default_executor(otherwise: Callable[[], Executor] = ChildProcesses) -> Executor:
    """The executor of the innermost open block of ``executed_by``; ``otherwise()`` where no block is open."""
    return _given[-1] if _given else otherwise()
