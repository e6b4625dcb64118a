"""Running an evaluation in a child process; a seed whose result file exists is read and not evaluated again.

The job file holds the key of the problems that are asked. Its owner alone may read it, and no process with candidate code sees it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from poise_core.environments.sources import prepared_protocol
from poise_core.evaluation.job import EvaluationJob
from poise_core.evaluation.problems import problem_set
from poise_core.evaluation.results import SeedEvaluation
from poise_core.failures import InfrastructureError
from poise_core.files import write_atomically
from poise_core.policies.locate import policy_files, resolve_policy
from poise_core.sandbox.command import Limits
from poise_core.sandbox.run import TimeLimitReached, log_tail, quiet_environment, run_confined


def evaluate_policies(job: EvaluationJob, *, should_stop: Callable[[], bool] | None = None) -> list[SeedEvaluation]:
    """Score every policy of the job, in the job's order.

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
    job: EvaluationJob, key: bytes, folder: Path, results: list[Path], should_stop: Callable[[], bool] | None
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
                "split": job.split,
                "key": key.hex(),
                "base": str(base),
                "policies": policies,
            }
        ),
        private=True,
    )
    try:
        status = run_confined(
            [sys.executable, "-I", "-m", "poise_core.evaluation.worker", str(job_file)],
            log=log,
            writable=[folder],
            readable=[
                *job.protocol.problem_files,
                *(file for policy in (base, *(Path(path) for _, path, _ in policies)) for file in policy_files(policy)),
            ],
            limits=Limits(wall_seconds=job.resources.evaluate_timeout_seconds * len(policies)),
            env=quiet_environment(job.resources.threads_per_process),
            should_stop=should_stop,
        )
    except TimeLimitReached as error:
        raise InfrastructureError(f"evaluation: {error}; see {log}") from error
    if status != 0:
        raise InfrastructureError(f"evaluation ended with status {status}; see {log}\n{log_tail(log)}")
