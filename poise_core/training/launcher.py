"""Runs a training in a confined child process; a training can be resumed.

Finished seeds are read back and not trained again; an unfinished seed goes on from its last checkpoint.

The process runs candidate code and is not trusted. It may write the folders of its unfinished seeds and one for its outcome,
and it sees nothing else of the job's folder. Its files are read as those of an untrusted process: no link is
followed, no pipe or device is opened, and only weights in safetensors are used.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO

from poise_core.candidate.identity import name_fault
from poise_core.environments.sources import prepared_environment
from poise_core.evaluation.kept import COMPLETION_CHARACTERS, KINDS, PROMPT_CHARACTERS, TRAINING, KeptCompletion, cut
from poise_core.evaluation.slots import RefusedRollout, Slot, require_identity, slot_for
from poise_core.failures import CandidateFailure, FailureKind, FaultKind, InfrastructureError, SamplerFault
from poise_core.files import (
    UntrustedFileError,
    json_lines,
    open_untrusted,
    read_untrusted,
    require_plain_folder,
    write_atomically,
)
from poise_core.policies.locate import policy_files, resolve_policy
from poise_core.sandbox.command import GRANTED, Limits
from poise_core.sandbox.kernel import memory_bytes
from poise_core.sandbox.run import (
    TimeLimitReached,
    log_tail,
    quiet_environment,
    require_own_network,
    run_confined,
)
from poise_core.training.job import TrainingJob
from poise_core.trajectory import CANDIDATE, CONTROLLER

EXCHANGE, ASKED, ANSWERED = "exchange", "asked", "answered"  # folders in which weights and completions are handed over
LINE_CHARACTERS = 1 << 20  # limit for a line of a trajectory; the trainer writes a few hundred
OUTCOME_BYTES = 1 << 20
MESSAGE_CHARACTERS, DETAIL_CHARACTERS = 2_000, 100_000  # of a failure; those of an honest worker are shorter
CHANGED_FILE = "changed file"  # the outcome of a worker that was not given the text which the gate admitted
SAMPLER_FAULT = "sampler fault"  # the outcome of a worker that could not hand over its weights, or was answered wrongly
COMPLETIONS = (
    "completions.jsonl"  # in a seed's folder: a few completions to read; a step that was repeated stands twice
)
COMPLETIONS_BYTES, MOST_COMPLETIONS = 1 << 20, 64
PAUSED_POLICY = "paused-policy"  # in a seed's folder until its training has finished
HELPER_THREADS = 3  # beside those that compute: autograd's, the collectives', the runtime's
PROCESSES = 4096  # and threads; gloo, NCCL and OpenMP make some hundred on a large machine


@dataclass(frozen=True)
class SeedTraining:
    """A training of one seed that is finished or paused."""

    seed: int
    policy_folder: Path  # holds no policy before the training has finished
    trajectory_path: Path  # one JSON object per step
    seconds: float
    tokens: int  # completion tokens sampled
    confinement: Mapping[str, str] = field(default_factory=dict)  # measure -> "granted" or why it was not

    @property
    def last_policy(self) -> Path | None:
        """The trained policy, or that of the pause; None where an earlier version paused and kept none."""
        paused = self.policy_folder.with_name(PAUSED_POLICY)
        return next((folder for folder in (self.policy_folder, paused) if folder.is_dir()), None)

    def trajectory(self) -> list[dict[str, float]]:
        """Read the rows of the trajectory, one per step.

        Raises:
            CandidateFailure: the file is not as the trainer writes it.
        """
        with _suspected():
            return [_step_of(line) for _, line in json_lines(read_untrusted(self.trajectory_path))]


def train_candidate(
    job: TrainingJob,
    *,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[SeedTraining]:
    """Train every seed of the job that is not yet finished or paused; return all seeds in the job's order.

    A paused seed goes on from its checkpoint when the job has no pause, or a later one. Every step is drawn from
    (seed, step), so the result equals that of a training without the pause.

    Args:
        job: the candidate, the seeds and the settings.
        on_step: called with (seed, trajectory row) as the rows appear; where a seed goes on from a checkpoint, with the
            rows before it too, but never twice with the same step. An exception of it ends the training and is raised here.
        should_stop: polled; when it returns True, the training is ended and can be resumed later.

    Raises:
        CandidateFailure: the candidate raised, diverged, or took longer than ``resources.train_timeout_seconds``.
        InfrastructureError: the process died for another reason, the file is not the one that the gate admitted, or candidate code
            would share the machine's network and nobody has allowed it.
        Cancelled: ``should_stop`` returned True.
    """
    open_seeds = [seed for seed in job.seeds if _record_path(job, seed) is None]
    if open_seeds:
        _run(job, open_seeds, on_step, should_stop)
    missing = [seed for seed in job.seeds if _record_path(job, seed) is None]
    if missing:
        raise InfrastructureError(
            f"training ended without an error, but seeds {missing} have no result; see {job.folder}"
        )
    return [_read(job, seed) for seed in job.seeds]


def unfinished_trajectory(job: TrainingJob, seed: int) -> tuple[list[dict[str, float]], dict[str, str]]:
    """Return the steps of a failed training as far as its file can be read, and the confinement of the process."""
    steps: list[dict[str, float]] = []
    with contextlib.suppress(FileNotFoundError, CandidateFailure), _suspected():
        text = read_untrusted(job.folder / f"seed-{seed}" / "trajectory.jsonl")
        whole = text.rpartition("\n")[0]  # the last line may be incomplete
        steps.extend(_step_of(line) for _, line in json_lines(whole))
    return steps, _recorded_confinement(job.folder)


def kept_completions(folder: Path) -> list[KeptCompletion]:
    """A few completions of a training, from the folder of its seed; none where the file is not as the trainer writes it.

    They are for reading and decide nothing, so what is wrong with them is no failure of the candidate.
    """
    found: dict[tuple[int, str], KeptCompletion] = {}
    try:
        lines = list(json_lines(read_untrusted(folder / COMPLETIONS, COMPLETIONS_BYTES)))
    except (OSError, UntrustedFileError, UnicodeDecodeError):
        return []
    for _, line in lines:
        with contextlib.suppress(CandidateFailure), _suspected():
            one = _completion_of(line)
            if len(found) < MOST_COMPLETIONS or (one.step, one.kind) in found:
                found[one.step, one.kind] = one
    return list(found.values())


def _completion_of(line: str) -> KeptCompletion:
    """Parse one line of kept completions."""
    one = json.loads(line)
    step, kind, tokens, correctness = int(one["step"]), str(one["kind"]), int(one["tokens"]), float(one["correctness"])
    if kind not in KINDS or not (0 <= step < 2**31 and 0 <= tokens < 2**31 and 0.0 <= correctness <= 1.0):
        raise ValueError(f"{kind} at step {step}")
    prompt, text = cut(str(one["prompt"]), PROMPT_CHARACTERS), cut(str(one["completion"]), COMPLETION_CHARACTERS)
    valid, truncated = bool(one["format_valid"]), bool(one["truncated"])
    return KeptCompletion(TRAINING, step, kind, prompt, text, correctness, valid, truncated, tokens)


def _record_path(job: TrainingJob, seed: int) -> Path | None:
    """Return the file that the worker wrote at the end of this seed or, where the job has a pause, at that or a later pause.

    Raises:
        CandidateFailure: the record of a pause is not as the worker writes it.
    """
    folder = job.folder / f"seed-{seed}"
    finished, paused = folder / "result.json", folder / "paused.json"
    if finished.exists():
        return finished
    if job.pause_after is None or not paused.exists():
        return None
    with _suspected():
        steps = int(json.loads(read_untrusted(paused))["steps"])
    return paused if steps >= job.pause_after else None


@contextmanager
def _suspected() -> Iterator[None]:
    """Turn the errors of a file that the trainer itself would not have written into a failure of the candidate."""
    try:
        yield
    except (
        UntrustedFileError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        message = f"the training left files that the trainer does not write: {error or type(error).__name__}"
        raise CandidateFailure(FailureKind.CRASHED, "train", message) from error


def _step_of(line: str) -> dict[str, float]:
    """Parse one line of a trajectory: metric -> number, ``step`` among them."""
    row = {str(name): float(value) for name, value in json.loads(line).items()}
    for name, value in (("step", row["step"]), ("tokens", row.get("tokens", 0.0))):
        if not (value.is_integer() and 0 <= value < 2**53):
            raise ValueError(f"{name} is {value}")
    own = [[name.removeprefix(prefix) for name in row if name.startswith(prefix)] for prefix in (CANDIDATE, CONTROLLER)]
    for names in (*own, [name for name in row if not name.startswith((CANDIDATE, CONTROLLER))]):
        if fault := name_fault("metric", names):
            raise ValueError(fault)
    return row


def _read(job: TrainingJob, seed: int) -> SeedTraining:
    folder = job.folder / f"seed-{seed}"
    record = _record_path(job, seed)
    assert record is not None
    with _suspected():
        document = json.loads(read_untrusted(record))
        seconds, tokens = float(document["seconds"]), int(document["tokens"])
        if record.name == "result.json":
            require_plain_folder(folder / "policy")
            # they are still there where the worker was killed after its last step
            for name in ("checkpoints", PAUSED_POLICY):
                shutil.rmtree(folder / name, ignore_errors=True)
            (folder / "paused.json").unlink(missing_ok=True)
        elif (folder / PAUSED_POLICY).exists():
            require_plain_folder(folder / PAUSED_POLICY)
    return SeedTraining(
        seed=seed,
        policy_folder=folder / "policy",
        trajectory_path=folder / "trajectory.jsonl",
        seconds=seconds,
        tokens=tokens,
        confinement=_recorded_confinement(job.folder),
    )


def _confinement_path(folder: Path) -> Path:
    return folder / "confinement.json"


def _recorded_confinement(folder: Path) -> dict[str, str]:
    path = _confinement_path(folder)
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _record_confinement(folder: Path, granted: Mapping[str, str]) -> None:
    """Record the measures that were missing at any start, because a training may be resumed on another machine."""
    missing = {name: text for name, text in _recorded_confinement(folder).items() if text != GRANTED}
    write_atomically(_confinement_path(folder), json.dumps({**granted, **missing}))


def _limits(job: TrainingJob, seeds: list[int], policy: Path) -> Limits:
    resources = job.resources
    wall_seconds = resources.train_timeout_seconds * len(seeds)
    shares = resources.parallel_candidates * resources.processes_per_training
    memory = resources.memory_gib * 2**30 if resources.memory_gib else memory_bytes() / shares
    weights = sum(path.stat().st_size for path in policy.glob("*.safetensors"))
    return Limits(
        wall_seconds=wall_seconds,
        cpu_seconds=wall_seconds * (resources.threads_per_process + HELPER_THREADS),
        memory_bytes=int(memory),
        file_bytes=16 * weights
        + (256 << 20),  # a checkpoint's optimizer state takes up to eight times bfloat16 weights
        processes=PROCESSES,
    )


def _run(
    job: TrainingJob,
    seeds: list[int],
    on_step: Callable[[int, dict[str, float]], None] | None,
    should_stop: Callable[[], bool] | None,
) -> None:
    try:
        environment = prepared_environment(job.protocol.environment)
    except ValueError as error:
        raise InfrastructureError(str(error)) from error
    job = replace(job, protocol=job.protocol.model_copy(update={"environment": environment}))
    folder = job.folder.resolve()
    outcome, log, job_file = folder / "outcome" / "outcome.json", folder / "train.log", folder / "job.json"
    writable = [outcome.parent, *(folder / f"seed-{seed}" for seed in seeds)]
    for path in writable:
        path.mkdir(parents=True, exist_ok=True)
    outcome.unlink(missing_ok=True)
    policy = resolve_policy(job.protocol.policy).resolve()
    _write_job(job, seeds, job_file, outcome, policy)
    follower = _Follower(folder, seeds, on_step)
    with _served(job, seeds, folder, policy, should_stop) as sampler:
        status = _confined(job, seeds, folder, policy, writable, follower, sampler, should_stop)
    follower.poll()
    with _suspected(), contextlib.suppress(FileNotFoundError):
        document = json.loads(read_untrusted(outcome, OUTCOME_BYTES))
        if document["kind"] == CHANGED_FILE:
            raise InfrastructureError(str(document["message"]))
        if document["kind"] == SAMPLER_FAULT:
            raise SamplerFault(FaultKind(document["fault"]), str(document["message"])[:MESSAGE_CHARACTERS])
        kind, message = FailureKind(document["kind"]), str(document["message"])[:MESSAGE_CHARACTERS]
        detail = str(document["detail"])[-DETAIL_CHARACTERS:]
        raise CandidateFailure(kind, "train", message, detail)
    if status == 128 + signal.SIGXCPU:
        raise CandidateFailure(FailureKind.TIMED_OUT, "train", "the limit of processor time was reached", log_tail(log))
    if status != 0:
        raise InfrastructureError(f"training ended with status {status}; see {log}\n{log_tail(log)}")


def _confined(
    job: TrainingJob,
    seeds: list[int],
    folder: Path,
    policy: Path,
    writable: list[Path],
    follower: _Follower,
    sampler: Slot | None,
    should_stop: Callable[[], bool] | None,
) -> int:
    """Run the training's process to its end and return its status."""
    log, job_file = folder / "train.log", folder / "job.json"
    processes = str(job.resources.processes_per_training)

    def start(granted: Mapping[str, str]) -> None:
        allowed = job.resources.allow_shared_network
        _record_confinement(folder, require_own_network(granted, "training", allowed=allowed))

    def poll() -> None:
        follower.poll()
        if sampler is not None:
            _look_at(sampler, folder)

    answers = [] if sampler is None else [folder / EXCHANGE / ANSWERED]
    own_files = job.protocol.environment.files if sampler is None else []  # whoever grades needs them, and nobody else
    try:
        return run_confined(
            [sys.executable, "-I", "-m", "poise_core.training.startup", processes, str(job_file)],
            log=log,
            writable=writable if sampler is None else [*writable, folder / EXCHANGE / ASKED],
            readable=[job_file, job.candidate_path.resolve(), *policy_files(policy), *own_files, *answers],
            limits=_limits(job, seeds, policy),
            env=quiet_environment(job.resources.threads_per_process),
            on_start=start,
            on_poll=poll,
            should_stop=should_stop,
        )
    except TimeLimitReached as error:
        if sampler is not None and sampler.stuck:
            raise SamplerFault(FaultKind.HUNG, f"{error} while the training waited for a rollout") from error
        raise CandidateFailure(FailureKind.TIMED_OUT, "train", str(error), log_tail(log)) from error


@contextmanager
def _served(
    job: TrainingJob, seeds: list[int], folder: Path, policy: Path, should_stop: Callable[[], bool] | None
) -> Iterator[Slot | None]:
    """Have the sampler of the protocol serve a folder of this training; None where the trainer samples itself."""
    spec = job.protocol.sampler
    if spec is None:
        yield None
        return
    exchange = folder / EXCHANGE
    shutil.rmtree(exchange, ignore_errors=True)  # what an earlier process asked is asked again
    for name in (ASKED, ANSWERED):
        (exchange / name).mkdir(parents=True)
    environment = job.protocol.environment.absolute()
    with slot_for(spec, job.resources, policy) as slot:
        slot.take(
            {
                "do": "open",
                "exchange": str(exchange),
                "policy": str(policy),
                "prompt": job.protocol.prompt.model_dump(mode="json") if job.protocol.prompt else None,
                "environment": environment.model_dump(mode="json"),
                "training": job.protocol.training.model_dump(mode="json"),
                "seeds": seeds,
            }
        )
        slot.await_ready(should_stop)
        yield slot
    shutil.rmtree(exchange, ignore_errors=True)


def _look_at(sampler: Slot, folder: Path) -> None:
    """Raise what the sampler has told; its faults are the machine's, weights that are none of the policy the candidate's."""
    try:
        sampler.poll()
    except RefusedRollout as error:
        kind = FailureKind.CRASHED if error.finite else FailureKind.DIVERGED
        raise CandidateFailure(kind, "train", f"the sampler refused what was handed over: {error}") from error
    if sampler.identity:
        require_identity(folder / "sampler.json", sampler.identity)


def _write_job(job: TrainingJob, seeds: list[int], job_file: Path, outcome: Path, policy: Path) -> None:
    """Write the job file without benchmarks, so that candidate code cannot learn on what its policy is evaluated.

    Where another process samples and grades, it names no environment either.
    """
    sampler = job.protocol.sampler
    document = {
        "policy": str(policy),
        "environment": None if sampler else job.protocol.environment.absolute().model_dump(mode="json"),
        "sampler": sampler.model_dump(mode="json") if sampler else None,
        "exchange": str(job_file.parent / EXCHANGE),
        "prompt": job.protocol.prompt.model_dump(mode="json") if job.protocol.prompt else None,
        "model": job.protocol.model.model_dump(mode="json") if job.protocol.model else None,
        "training": job.protocol.training.model_dump(mode="json"),
        "resources": job.resources.model_dump(mode="json"),
        "folder": str(job_file.parent),
        "outcome": str(outcome),
        "seeds": seeds,
        "candidate_path": str(job.candidate_path.resolve()),
        "candidate_name": job.candidate_name,
        "source_digest": job.source_digest,
        "fingerprint": job.fingerprint,
        "pause_after": job.pause_after,
    }
    write_atomically(job_file, json.dumps(document))


class _Follower:
    """A reader of the growing trajectories of the running seeds, which reports every step once.

    A resumed worker replaces the file by a new one that ends at its checkpoint; reading then starts again.
    """

    def __init__(self, folder: Path, seeds: list[int], on_step: Callable[[int, dict[str, float]], None] | None) -> None:
        self._on_step = on_step
        self._paths = {seed: folder / f"seed-{seed}" / "trajectory.jsonl" for seed in seeds}
        self._places = dict.fromkeys(seeds, (0, 0))  # inode, position
        self._next_step = dict.fromkeys(seeds, 0)

    def poll(self) -> None:
        """Report the complete lines that were written since the last call."""
        if self._on_step is None:
            return
        for seed, path in self._paths.items():
            with _suspected(), contextlib.suppress(FileNotFoundError), open_untrusted(path) as stream:
                self._read(seed, stream)

    def _read(self, seed: int, stream: TextIO) -> None:
        inode, position = self._places[seed]
        if os.fstat(stream.fileno()).st_ino == inode:
            stream.seek(position)
        while (line := stream.readline(LINE_CHARACTERS)).endswith("\n"):
            self._places[seed] = (os.fstat(stream.fileno()).st_ino, stream.tell())
            row = _step_of(line)
            if row["step"] >= self._next_step[seed] and self._on_step is not None:
                self._next_step[seed] = int(row["step"]) + 1
                self._on_step(seed, row)
        if len(line) == LINE_CHARACTERS:
            raise UntrustedFileError(f"a line of trajectory.jsonl has more than {LINE_CHARACTERS} characters")
