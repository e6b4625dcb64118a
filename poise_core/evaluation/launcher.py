"""Running an evaluation in a child process; a seed whose result file exists is read and not evaluated again.

The job file holds the key of the problems that are asked. Its owner alone may read it, and no process with candidate code sees it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from poise_core.config.protocol import SamplerSpec
from poise_core.environments.sources import prepared_protocol
from poise_core.evaluation.job import EvaluationJob
from poise_core.evaluation.problems import problem_set
from poise_core.evaluation.results import SeedEvaluation
from poise_core.evaluation.slots import RefusedRollout, slot_for
from poise_core.failures import Cancelled, InfrastructureError
from poise_core.files import write_atomically
from poise_core.policies.locate import policy_files, resolve_policy
from poise_core.sandbox.command import Limits
from poise_core.sandbox.gpus import held_gpus
from poise_core.sandbox.run import POLL_SECONDS, TimeLimitReached, log_tail, quiet_environment, run_confined


def evaluate_policies(
    job: EvaluationJob,
    *,
    should_stop: Callable[[], bool] | None = None,
) -> list[SeedEvaluation]:
    """Score every policy of the job, in the job's order.

    An evaluation that did not end goes on with the first benchmark that has no result.

    Args:
        job: the policies and what they are asked.
        should_stop: polled; when it returns True, the evaluation is ended.

    Raises:
        InfrastructureError: the process failed or took longer than ``resources.evaluate_timeout_seconds`` per policy.
        Cancelled: ``should_stop`` returned True.
    """
    try:
        job = replace(job, protocol=prepared_protocol(job.protocol))
    except ValueError as error:
        raise InfrastructureError(str(error)) from error
    folder = job.folder.resolve()
    results = [folder / f"seed-{seed}-{job.split}.json" for seed, _ in job.policies]
    asked = problem_set(job.secret, job.split, job.examination)
    for result in results:  # an answer to other problems, as in a folder that was copied into another run
        if result.exists() and SeedEvaluation.from_json(result.read_text()).problems != asked.fingerprint:
            result.unlink()
    if not all(result.exists() for result in results):
        _run(job, asked.key, folder, results, should_stop)
    return [SeedEvaluation.from_json(result.read_text()) for result in results]


def _run(
    job: EvaluationJob,
    key: bytes,
    folder: Path,
    results: list[Path],
    should_stop: Callable[[], bool] | None,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    job_file, log = folder / f"job-{job.split}.json", folder / "evaluate.log"
    base = resolve_policy(job.protocol.policy).resolve()
    policies = [
        (seed, str(resolve_policy(policy).resolve()), str(result))
        for (seed, policy), result in zip(job.policies, results, strict=True)
    ]
    protocol = job.protocol.absolute()
    write_atomically(
        job_file,
        json.dumps(
            {
                "protocol": protocol.model_dump(mode="json"),
                "threads": job.resources.threads_per_process,
                "memory_gib": job.resources.sampler.memory_gib,
                "split": job.split,
                "key": key.hex(),
                "base": str(base),
                "policies": policies,
            }
        ),
        private=True,
    )
    with held_gpus(job.resources.gpus_per_candidate, should_stop) as gpus:
        if job.protocol.sampler is not None:
            _sampled_elsewhere(job, job.protocol.sampler, base, job_file, gpus, should_stop)
            return
        readable = [
            *job.protocol.problem_files,
            *(file for policy in (base, *(Path(path) for _, path, _ in policies)) for file in policy_files(policy)),
        ]
        _confined(job, job_file, log, readable, gpus, should_stop)


def _confined(
    job: EvaluationJob,
    job_file: Path,
    log: Path,
    readable: list[Path],
    gpus: Mapping[str, str],
    should_stop: Callable[[], bool] | None,
) -> None:
    try:
        status = run_confined(
            [sys.executable, "-I", "-m", "poise_core.evaluation.worker", str(job_file)],
            log=log,
            writable=[job_file.parent],
            readable=readable,
            limits=Limits(wall_seconds=job.resources.evaluate_timeout_seconds * len(job.policies)),
            env={**quiet_environment(job.resources.threads_per_process), **gpus},
            should_stop=should_stop,
        )
    except TimeLimitReached as error:
        raise InfrastructureError(f"evaluation: {error}; see {log}") from error
    if status != 0:
        raise InfrastructureError(f"evaluation ended with status {status}; see {log}\n{log_tail(log)}")


def _sampled_elsewhere(
    job: EvaluationJob,
    spec: SamplerSpec,
    base: Path,
    job_file: Path,
    gpus: Mapping[str, str],
    should_stop: Callable[[], bool] | None,
) -> None:
    """Have the sampler's process carry out the evaluation with the engine that sampled the training."""
    deadline = time.monotonic() + job.resources.evaluate_timeout_seconds * len(job.policies)
    with slot_for(spec, job.resources, base, stops=job.protocol.stops_sampling, gpus=gpus) as slot:
        slot.take({"do": "evaluate", "job": str(job_file)})
        while not slot.evaluated:
            time.sleep(POLL_SECONDS)
            if should_stop is not None and should_stop():
                raise Cancelled("stopped; the benchmarks that are finished are kept")
            if time.monotonic() > deadline:
                raise InfrastructureError(f"evaluation: the limit was reached; see {slot.log}")
            try:
                slot.poll()
            except RefusedRollout as error:
                raise InfrastructureError(f"evaluation: the policy is not one of its protocol: {error}") from error
