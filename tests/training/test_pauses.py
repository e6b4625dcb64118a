"""A training that pauses and goes on, and one that a rule stops: in real worker processes, on a tiny policy."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_samples import REINFORCE, TRAINING, protocol_of

from poise_core.config import HealthSpec, ResourceSpec
from poise_core.evolution.health import CertainLoss, HealthWatch
from poise_core.failures import CandidateFailure, FailureKind
from poise_core.training.launcher import PAUSED_POLICY, SeedTraining, TrainingJob, train_candidate

pytestmark = pytest.mark.slow

LONG = TRAINING.model_copy(update={"steps": 6, "warmup_steps": 3})
WITH_CONTROLLER = REINFORCE + (
    '\ndef update_controller(state, dynamics, hp):\n    return {"sum": state.get("sum", 0.0) + dynamics.kl + dynamics.progress}\n'
)


def job_of(policy: Path, folder: Path, source: str, steps: int = 6, seeds: tuple[int, ...] = (0,)) -> TrainingJob:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "candidate.py").write_text(source)
    limits = ResourceSpec(checkpoint_steps=0, train_timeout_seconds=280)
    protocol = protocol_of(policy, LONG.model_copy(update={"steps": steps}))
    return TrainingJob(folder / "candidate.py", "tested", folder / "train", protocol, limits, seeds)


def rows_of(training: SeedTraining) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in training.trajectory()]


def test_a_pause_is_the_beginning_of_the_whole_training_to_the_last_bit(tiny_policy: Path, tmp_path: Path) -> None:
    (whole,) = train_candidate(job_of(tiny_policy, tmp_path / "whole", WITH_CONTROLLER))
    job = job_of(tiny_policy, tmp_path / "paused", WITH_CONTROLLER)
    proxy = dataclasses.replace(job, pause_after=2)
    (first,) = train_candidate(proxy)
    assert rows_of(first) == rows_of(whole)[:2]
    assert first.tokens == sum(row["tokens"] for row in rows_of(whole)[:2])
    assert not (first.policy_folder / "model.safetensors").exists()
    untrained, paused = load_file(tiny_policy / "model.safetensors"), load_file(first.last_policy / "model.safetensors")
    seconds = [row["seconds_update"] for row in first.trajectory()]
    log = tmp_path / "paused" / "train" / "train.log"
    written = log.stat().st_mtime_ns
    train_candidate(proxy)  # at its pause already: no process is started
    assert log.stat().st_mtime_ns == written

    (second,) = train_candidate(job)
    assert rows_of(second) == rows_of(whole)
    assert second.tokens == whole.tokens
    weights = load_file(second.policy_folder / "model.safetensors")
    for name, value in load_file(whole.policy_folder / "model.safetensors").items():
        assert torch.equal(weights[name], value), name
        assert not torch.equal(paused[name], value)  # of the second step, not of the last one
    assert any(not torch.equal(paused[name], untrained[name]) for name in untrained)
    assert second.last_policy == second.policy_folder
    assert not first.policy_folder.with_name(PAUSED_POLICY).exists()  # nobody needs it any more
    # the first two steps were read back, not done again: their wall times are those of the first process
    assert [row["seconds_update"] for row in second.trajectory()[:2]] == seconds
    assert json.loads((tmp_path / "paused" / "train" / "seed-0" / "result.json").read_text())["tokens"] == whole.tokens
    assert not (tmp_path / "paused" / "train" / "seed-0" / "paused.json").exists()
    assert rows_of(*train_candidate(proxy)) == rows_of(whole)  # past its pause: nothing is cut


COLLAPSE = REINFORCE.replace(
    "token_loss=-inputs.advantages * inputs.logprobs", "token_loss=-(inputs.advantages * 0 + 50) * inputs.logprobs"
)
"""Makes everything it samples likelier, right or wrong: entropy falls to nothing within a few steps."""


@pytest.mark.exhaustive
def test_a_rule_ends_a_real_training_early_and_names_the_cause(tiny_policy: Path, tmp_path: Path) -> None:
    training = job_of(tiny_policy, tmp_path, COLLAPSE, steps=400)
    watch = HealthWatch(HealthSpec(grace_steps=2, patience=3, entropy_floor=0.2, kl_limit=1e6, truncated_limit=2.0))
    with pytest.raises(CandidateFailure) as caught:
        train_candidate(training, on_step=watch.observe)
    assert caught.value.kind is FailureKind.ENTROPY_COLLAPSE
    lines = (tmp_path / "train" / "seed-0" / "trajectory.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    stop = int(str(caught.value).split("at step ")[1].split()[0])
    assert [row["entropy"] < 0.2 for row in rows[stop - 2 : stop + 1]] == [True] * 3  # patience
    assert len(rows) < 400  # the worker did not get to the end
    assert watch.stopped


def test_a_certain_loss_to_the_parent_ends_a_real_training_and_is_no_failure(tiny_policy: Path, tmp_path: Path) -> None:
    perfect = [{"step": step, "reward_mean": 1.0} for step in range(400)]
    watch = HealthWatch(
        HealthSpec(grace_steps=0, loss_window=4, loss_margin=0.1, entropy_floor=0.0, kl_limit=1e6),
        {0: perfect},
        by_reward=True,
    )
    with pytest.raises(CertainLoss, match="below the parent's on the same prompts"):
        train_candidate(job_of(tiny_policy, tmp_path, REINFORCE, steps=400), on_step=watch.observe)
    assert not (tmp_path / "train" / "seed-0" / "result.json").exists()
