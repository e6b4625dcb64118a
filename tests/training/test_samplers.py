"""Samplers in another process: what they hand over, what they keep to themselves, and what happens when they fail."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_jobs import files_of, job_of
from training_samples import REINFORCE

from poise_core.config.protocol import SamplerSpec
from poise_core.evaluation.slots import end_slots
from poise_core.sampling.scripted import SCRIPT
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


def own_sampling(job: TrainingJob) -> TrainingJob:
    return replace(job, protocol=job.protocol.model_copy(update={"sampler": None}))


# ---- the same training, sampled here or there


@pytest.mark.slow
def test_a_sampler_elsewhere_gives_the_training_that_the_trainer_gives_itself(
    tiny_policy: Path, tmp_path: Path
) -> None:
    """The scripted sampler decodes as the trainer does, in float32: what differs is rounding."""
    job = scripted(tiny_policy, tmp_path / "there")
    (there,) = train_candidate(job)
    (here,) = train_candidate(replace(own_sampling(job), folder=tmp_path / "here"))
    (weights, rows), (own_weights, own_rows) = files_of(there), files_of(here)
    for row, own in zip(rows, own_rows, strict=True):
        assert {k: row[k] for k in ("tokens", "reward_mean", "truncated")} == {
            k: own[k] for k in ("tokens", "reward_mean", "truncated")
        }
        assert row["entropy"] == pytest.approx(own["entropy"], abs=1e-5)
        assert (own["sampler_kl"], own["sampler_ess"], own["sampler_gap"]) == (0.0, 1.0, 0.0), "exactly neutral"
        assert 0 < row["sampler_gap"] < 1e-4
        assert row["sampler_kl"] < 1e-8
        assert row["sampler_ess"] == pytest.approx(1.0, abs=1e-6)
    for name, value in own_weights.items():
        if not name.endswith("k_proj.bias"):  # its gradient is rounding, see training_samples.assert_weights_close
            torch.testing.assert_close(weights[name], value, atol=2e-5, rtol=0)
    assert json.loads((job.folder / "sampler.json").read_text())["engine"] == "scripted"
    document = json.loads((job.folder / "job.json").read_text())
    assert document["environment"] is None, "the training's process is told no problem and no answer"
    assert not (job.folder / "exchange").exists()
