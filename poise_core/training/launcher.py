"""Runs a training in a confined child process; a training can be resumed.

Finished seeds are read back and not trained again; an unfinished seed goes on from its last checkpoint.

The process runs candidate code and is not trusted. It may write the folders of its unfinished seeds and one for its outcome,
and it sees nothing else of the job's folder. Its files are read as those of an untrusted process: no link is
followed, no pipe or device is opened, and only weights in safetensors are used.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from poise_core.config import ResourceSpec
from poise_core.environments.sources import prepared_environment
from poise_core.evaluation.slots import RefusedRollout, Slot, require_identity, slot_for
from poise_core.failures import (
    CandidateFailure,
    FailureKind,
    FaultKind,
    InfrastructureError,
    NodeFault,
    NodeFaultKind,
    SamplerFault,
)
from poise_core.files import read_untrusted, write_atomically
from poise_core.policies.locate import policy_files, resolve_policy
from poise_core.sandbox.command import Limits
from poise_core.sandbox.gpus import held_gpus
from poise_core.sandbox.kernel import memory_bytes
from poise_core.sandbox.run import (
    TimeLimitReached,
    log_tail,
    quiet_environment,
    require_own_network,
    run_confined,
)
from poise_core.training.job import NO_RENDEZVOUS, Meeting, TrainingJob
from poise_core.training.nodes import STARTUP, Leader, Part, PartEnded, current_leader, endpoint
from poise_core.training.results import (
    COMPLETIONS,
    PAUSED_POLICY,
    Follower,
    SeedTraining,
    kept_completions,
    read_training,
    record_confinement,
    record_path,
    suspected,
    unfinished_trajectory,
)

__all__ = [
    "COMPLETIONS",
    "PAUSED_POLICY",
    "SeedTraining",
    "TrainingJob",
    "kept_completions",
    "train_candidate",
    "unfinished_trajectory",
]

EXCHANGE, ASKED, ANSWERED = "exchange", "asked", "answered"  # folders in which weights and completions are handed over
OUTCOME_BYTES = 1 << 20
MESSAGE_CHARACTERS, DETAIL_CHARACTERS = 2_000, 100_000  # of a failure; those of an honest worker are shorter
CHANGED_FILE = "changed file"  # the outcome of a worker that was not given the text which the gate admitted
SAMPLER_FAULT = "sampler fault"  # the outcome of a worker that could not hand over its weights, or was answered wrongly
HELPER_THREADS = 3  # beside those that compute: autograd's, the collectives', the runtime's
PROCESSES = 4096  # and threads; gloo, NCCL and OpenMP make some hundred on a large machine


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
    open_seeds = [seed for seed in job.seeds if record_path(job, seed) is None]
    if open_seeds:
        _run(job, open_seeds, on_step, should_stop)
    missing = [seed for seed in job.seeds if record_path(job, seed) is None]
    if missing:
        raise InfrastructureError(
            f"training ended without an error, but seeds {missing} have no result; see {job.folder}"
        )
    return [read_training(job, seed) for seed in job.seeds]


def _limits(job: TrainingJob, seeds: list[int], policy: Path) -> Limits:
    resources = job.resources
    wall_seconds = resources.train_timeout_seconds * len(seeds)
    if resources.nodes > 1:  # the machines' time, before the candidate's begins
        wall_seconds += resources.rendezvous_seconds
    shares = resources.parallel_candidates * resources.processes_per_training  # on this machine
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
    follower = Follower(folder, seeds, on_step)
    leader = current_leader(job.resources)
    with (
        held_gpus(job.resources.gpus_per_candidate, should_stop) as gpus,
        _served(job, seeds, folder, policy, gpus, should_stop) as sampler,
    ):
        if leader is not None:
            leader.await_nodes(should_stop)
        status, others = _confined(job, seeds, folder, policy, writable, follower, sampler, leader, gpus, should_stop)
    follower.poll()
    with suspected(), contextlib.suppress(FileNotFoundError):
        document = json.loads(read_untrusted(outcome, OUTCOME_BYTES))
        if document["kind"] == CHANGED_FILE:
            raise InfrastructureError(str(document["message"]))
        if document["kind"] == SAMPLER_FAULT:
            raise SamplerFault(FaultKind(document["fault"]), str(document["message"])[:MESSAGE_CHARACTERS])
        kind, message = FailureKind(document["kind"]), str(document["message"])[:MESSAGE_CHARACTERS]
        detail = str(document["detail"])[-DETAIL_CHARACTERS:]
        raise CandidateFailure(kind, "train", message, detail)
    if 128 + signal.SIGXCPU in (status, *others.values()):
        raise CandidateFailure(FailureKind.TIMED_OUT, "train", "the limit of processor time was reached", log_tail(log))
    _require_success(status, others, log)


def _require_success(status: int, others: Mapping[int, int | None], log: Path) -> None:
    """Tell what ended a training that has left no word of its own.

    Args:
        status: of this machine's process.
        others: of the other nodes, by rank; None where one has reported none.
        log: of this machine's process.

    Raises:
        InfrastructureError: it did not end well; a ``NodeFault`` where it had several nodes.
    """
    if status == 0:
        return
    ended = f"training ended with status {status}; see {log}"
    if not others:
        raise InfrastructureError(f"{ended}\n{log_tail(log)}")
    if status == NO_RENDEZVOUS:
        raise NodeFault(NodeFaultKind.NO_RENDEZVOUS, f"the nodes see the run directory, but not each other; see {log}")
    told = "; ".join(
        f"node {rank} {'gave no more sign of life' if one is None else f'ended with status {one}'}"
        for rank, one in others.items()
    )
    raise NodeFault(NodeFaultKind.DIED, f"{ended}; {told}\n{log_tail(log)}")


def _confined(
    job: TrainingJob,
    seeds: list[int],
    folder: Path,
    policy: Path,
    writable: list[Path],
    follower: Follower,
    sampler: Slot | None,
    leader: Leader | None,
    gpus: Mapping[str, str],
    should_stop: Callable[[], bool] | None,
) -> tuple[int, dict[int, int | None]]:
    """Run the training's process to its end; return its status and those of the other nodes by rank."""
    log, resources = folder / "train.log", job.resources
    granted_here: dict[str, str] = {}
    answers = [] if sampler is None else [folder / EXCHANGE / ANSWERED]
    own_files = job.protocol.environment.files if sampler is None else []  # whoever grades needs them, and nobody else
    readable = [folder / "job.json", job.candidate_path.resolve(), *policy_files(policy), *own_files, *answers]
    writable = writable if sampler is None else [*writable, folder / EXCHANGE / ASKED]
    limits = _limits(job, seeds, policy)
    part = _part(resources, log, readable, writable, limits)

    def start(granted: Mapping[str, str]) -> None:
        granted_here.update(require_own_network(granted, "training", allowed=resources.allow_shared_network))
        record_confinement(folder, granted_here)
        if leader is not None:
            leader.begin(part)

    def poll() -> None:
        follower.poll()
        if sampler is not None:
            _look_at(sampler, folder)
        if leader is not None:
            leader.look(part)

    status, reached = 1, False
    try:
        status = run_confined(
            part.argv() if leader is not None else [*STARTUP, *part.command],
            log=log,
            writable=writable,
            readable=readable,
            limits=limits,
            env={**quiet_environment(resources.threads_per_process), **gpus},
            network=leader is not None,
            on_start=start,
            on_poll=poll,
            should_stop=should_stop,
        )
        reached = True
    except PartEnded:
        reached = True  # the statuses tell
    except TimeLimitReached as error:
        if sampler is not None and sampler.stuck:
            raise SamplerFault(FaultKind.HUNG, f"{error} while the training waited for a rollout") from error
        raise CandidateFailure(FailureKind.TIMED_OUT, "train", str(error), log_tail(log)) from error
    finally:
        others, missing = ({}, {}) if leader is None else leader.finish(part, wait=reached)
    if missing:
        record_confinement(folder, {**granted_here, **missing})
    return status, others


def _part(
    resources: ResourceSpec, log: Path, readable: Sequence[Path], writable: Sequence[Path], limits: Limits
) -> Part:
    """What each node runs; a training on one node is its only part."""
    name, place = uuid.uuid4().hex, endpoint(resources) if resources.nodes > 1 else ""
    return Part(
        number=name,
        command=[str(resources.processes_per_training), str(log.with_name("job.json"))],
        meeting=Meeting(resources.nodes, place, name, resources.rendezvous_seconds, hosts=True),
        log=str(log),
        readable=[str(path) for path in readable],
        writable=[str(path) for path in writable],
        limits=asdict(limits),
        memory_gib=resources.memory_gib,
        processes=resources.processes_per_training,
        threads=resources.threads_per_process,
        shared_network=resources.allow_shared_network,
    )


@contextmanager
def _served(
    job: TrainingJob,
    seeds: list[int],
    folder: Path,
    policy: Path,
    gpus: Mapping[str, str],
    should_stop: Callable[[], bool] | None,
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
    with slot_for(spec, job.resources, policy, stops=job.protocol.stops_sampling, gpus=gpus) as slot:
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
