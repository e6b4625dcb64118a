"""One process of a training, which trains a candidate with each seed of a job, one after the other.

``poise_core.training.startup`` calls it, so that libraries are imported once per candidate;
``torchrun -m poise_core.training.worker JOB_FILE`` runs it as well. Every seed writes ``seed-<s>/`` with the trajectory,
checkpoints while it runs, and at its end the policy and ``result.json``. The result is written last, so a folder with a result is
finished. A job may have a pause: the seed then stops at a checkpoint and writes its policy and ``paused.json``, and a later job
goes on from there. A failure of the candidate is written to ``outcome.json``.
"""

from __future__ import annotations

import json
import shutil
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from poise_core.candidate.identity import UnreadableCandidate, read_candidate, source_digest
from poise_core.candidate.loading import CallTimedOut, Candidate, CandidateError, load_candidate_source
from poise_core.config import ResourceSpec
from poise_core.config.protocol import EnvironmentSpec, SamplerSpec, TrainingSpec
from poise_core.environments import get_environment
from poise_core.environments.prompts import training_problems
from poise_core.failures import CandidateFailure, FailureKind, SamplerFault
from poise_core.files import write_atomically
from poise_core.policies.libraries import leave, skipped_imports
from poise_core.policies.model import PromptCodec, load_model, save_policy
from poise_core.policies.prompt import ModelSpec, PromptSpec
from poise_core.randomness import hash_key
from poise_core.sampling.handover import policy_tensors
from poise_core.training.batches import Rendezvous
from poise_core.training.engine import Engine, start_processes
from poise_core.training.launcher import CHANGED_FILE, COMPLETIONS, PAUSED_POLICY, SAMPLER_FAULT
from poise_core.training.trainer import Trainer, TrainerState

Row = dict[str, float]


class _Job:
    """The parsed job file and this process's place in the group."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.policy_folder = Path(document["policy"])
        environment, sampler = document["environment"], document.get("sampler")
        self.environment = EnvironmentSpec.model_validate(environment) if environment else None
        self.rendezvous: Rendezvous | None = None
        if sampler:
            spec = SamplerSpec.model_validate(sampler)
            names = tuple(policy_tensors(self.policy_folder, spec.dtype))
            self.rendezvous = Rendezvous(Path(document["exchange"]), spec, names)
        self.prompt = PromptSpec.model_validate(document["prompt"]) if document["prompt"] else None
        model = document.get("model")
        self.model = ModelSpec.model_validate(model) if model else None
        self.training = TrainingSpec.model_validate(document["training"])
        self.resources = ResourceSpec.model_validate(document["resources"])
        self.folder = Path(document["folder"])
        self.seeds: list[int] = document["seeds"]
        self.fingerprint: str | None = document.get("fingerprint")
        pause: int | None = document.get("pause_after")
        self.last_step = min(pause or self.training.steps, self.training.steps)
        self.rank, self.world_size, self.device = start_processes(self.resources.group_timeout_seconds)


def _train_seed(job: _Job, candidate: Candidate, seed: int) -> None:
    folder = job.folder / f"seed-{seed}"
    if (folder / "result.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(hash_key(seed, 0))
    codec = PromptCodec.load(job.policy_folder, job.prompt)
    with skipped_imports("scipy"):  # transformers imports it for a loss of object detection
        reference = load_model(job.policy_folder, job.model).to(job.device).requires_grad_(False)
    engine = Engine(load_model(job.policy_folder, job.model).to(job.device), job.training, job.resources)
    trainer = Trainer(
        candidate,
        engine,
        reference,
        codec,
        get_environment(job.environment)
        if job.environment
        else None,  # a sampler elsewhere grades and keeps the answers
        training_problems(job.environment, seed) if job.environment else [],
        job.training,
        job.resources,
        seed,
        rank=job.rank,
        device=job.device,
        fingerprint=job.fingerprint,
        rendezvous=job.rendezvous,
    )
    rows = _run_steps(job, folder, engine, trainer)
    if trainer.state.step < job.training.steps:
        _pause(job, folder, engine, codec, rows)
    else:
        _finish(job, folder, engine, codec, rows)


def _run_steps(job: _Job, folder: Path, engine: Engine, trainer: Trainer) -> list[Row]:
    """Run the remaining steps, from the newest checkpoint if there is one, and return the whole trajectory."""
    rows: list[Row] = []
    if (state := engine.load_checkpoint(folder / "checkpoints")) is not None:
        trainer.state, rows = TrainerState(**state["trainer"]), state["rows"]
    trajectory = folder / "trajectory.jsonl"
    if job.rank == 0:  # a new file tells the reader of the old one that steps are repeated
        write_atomically(trajectory, "".join(json.dumps(row) + "\n" for row in rows))
    every = job.resources.checkpoint_steps
    while trainer.state.step < job.last_step:
        row = next(trainer.steps())
        rows.append(row)
        if job.rank == 0:
            with trajectory.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
            if trainer.kept:
                with (folder / COMPLETIONS).open("a", encoding="utf-8") as stream:
                    stream.write("\n")  # what a killed process has written of its last line ends here
                    stream.writelines(json.dumps(asdict(one)) + "\n" for one in trainer.kept)
        step = trainer.state.step
        due = bool(every and step % every == 0) or step == job.last_step
        if due and step < job.training.steps:
            engine.save_checkpoint(folder / "checkpoints", step, {"trainer": asdict(trainer.state), "rows": rows})
    return rows


def _pause(job: _Job, folder: Path, engine: Engine, codec: PromptCodec, rows: list[Row]) -> None:
    """Record that the newest checkpoint is at the pause of the job; the policy is kept, in case that it goes no further."""
    with engine.whole_model() as model:
        if job.rank == 0:
            save_policy(model, codec, folder / PAUSED_POLICY)
    engine.close()
    if job.rank == 0:
        write_atomically(folder / "paused.json", json.dumps({"steps": len(rows), **_totals(rows)}))


def _totals(rows: list[Row]) -> dict[str, float]:
    seconds = sum(row["seconds_rollout"] + row["seconds_update"] for row in rows)
    return {"seconds": seconds, "tokens": int(sum(row["tokens"] for row in rows))}


def _finish(job: _Job, folder: Path, engine: Engine, codec: PromptCodec, rows: list[Row]) -> None:
    with engine.whole_model() as model:
        if job.rank == 0:
            save_policy(model, codec, folder / "policy")
    engine.close()
    if job.rank == 0:
        result = {"seed": int(folder.name.removeprefix("seed-")), **_totals(rows)}
        write_atomically(folder / "result.json", json.dumps(result))
        (folder / "paused.json").unlink(missing_ok=True)
        for name in ("checkpoints", PAUSED_POLICY):
            shutil.rmtree(folder / name, ignore_errors=True)


class _ChangedFileError(Exception):
    """The candidate's file is not the text that the gate admitted."""


def _load(document: dict[str, Any]) -> Candidate:
    """Load the candidate of a job from its file, after comparing the digest of the text with the admitted one.

    Raises:
        CandidateError: the text is no candidate.
        CallTimedOut: loading it takes too long.
        _ChangedFileError: the text is not the admitted one.
    """
    path, admitted = Path(document["candidate_path"]), document.get("source_digest")
    unreadable: UnreadableCandidate | None = None
    try:
        source = read_candidate(path)
    except UnreadableCandidate as error:
        source, unreadable = "", error
    if admitted is not None and (unreadable or source_digest(source) != admitted):
        raise _ChangedFileError(
            f"{path} has changed since the gate admitted it; put the admitted text (SHA-256 {admitted[:12]}...) back, or "
            "register the new text as a candidate of its own"
        )
    if unreadable:
        raise CandidateError(str(unreadable)) from unreadable
    return load_candidate_source(source, document["candidate_name"])


def main(job_file: str) -> int:
    """Train every seed of a job; 0 when all are finished, 1 after a failure described in ``outcome.json``."""
    document = json.loads(Path(job_file).read_text())
    torch.set_num_threads(int(document["resources"]["threads_per_process"]))
    outcome = Path(document["outcome"])
    try:
        try:
            candidate = _load(document)
        except CandidateError as error:
            raise CandidateFailure(FailureKind.CRASHED, "train", str(error)) from error
        except CallTimedOut as error:
            raise CandidateFailure(FailureKind.TIMED_OUT, "train", str(error)) from error
        except MemoryError as error:
            message = f"out of memory while the file is loaded: {error}"
            raise CandidateFailure(FailureKind.OUT_OF_MEMORY, "train", message) from error
        job = _Job(document)
        for seed in job.seeds:
            _train_seed(job, candidate, seed)
    except _ChangedFileError as error:  # not a failure of the candidate: the file was changed after the gate
        write_atomically(outcome, json.dumps({"kind": CHANGED_FILE, "message": str(error), "detail": ""}))
        return 1
    except SamplerFault as fault:
        write_atomically(outcome, json.dumps({"kind": SAMPLER_FAULT, "fault": fault.kind, "message": fault.message}))
        return 1
    except CandidateFailure as failure:
        detail = "".join(traceback.format_exception(failure.__cause__)) if failure.__cause__ else failure.detail
        write_atomically(outcome, json.dumps({"kind": failure.kind, "message": failure.message, "detail": detail}))
        return 1
    return 0


if __name__ == "__main__":
    leave(main(sys.argv[1]))
