"""Checkpoints: going on from one changes nothing, and one that was being written is never taken for whole."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from training_samples import TRAINING, candidate_with, make_trainer, weights_of

from poise_core.config import ResourceSpec
from poise_core.training.trainer import Trainer, TrainerState

CONTROLLER = '\ndef update_controller(state, dynamics, hp):\n    return {"sum": state.get("sum", 0.0) + dynamics.kl}\n'
LONG = TRAINING.model_copy(update={"steps": 6, "warmup_steps": 4})


def run_steps(trainer: Trainer, count: int) -> list[dict[str, float]]:
    steps = trainer.steps()
    rows = [next(steps) for _ in range(count)]
    return [{key: value for key, value in row.items() if not key.startswith("seconds")} for row in rows]


@pytest.mark.slow
def test_going_on_from_a_checkpoint_is_exact(tiny_policy: Path, device: torch.device, tmp_path: Path) -> None:
    candidate = candidate_with(extra=CONTROLLER)
    whole = make_trainer(tiny_policy, candidate, device, training=LONG)
    rows = run_steps(whole, 6)
    first = make_trainer(tiny_policy, candidate, device, training=LONG)
    assert run_steps(first, 2) == rows[:2]
    first.engine.save_checkpoint(tmp_path, 2, {"trainer": asdict(first.state)})
    second = make_trainer(tiny_policy, candidate, device, training=LONG)
    state = second.engine.load_checkpoint(tmp_path)
    assert state is not None
    second.state = TrainerState(**state["trainer"])
    assert run_steps(second, 4) == rows[2:]
    for name, value in weights_of(whole).items():
        assert torch.equal(weights_of(second)[name], value)


@pytest.mark.exhaustive
def test_a_checkpoint_that_was_being_written_is_not_used(
    tiny_policy: Path, device: torch.device, tmp_path: Path, monkeypatch
) -> None:
    trainer = make_trainer(tiny_policy, "grpo", device)
    trainer.engine.save_checkpoint(tmp_path, 2, {"at": 2})
    save = torch.save

    def cut_off(content, file, *args, **kwargs) -> None:
        save(content, file, *args, **kwargs)
        path = Path(getattr(file, "name", file))
        path.write_bytes(path.read_bytes()[:100])
        raise KeyboardInterrupt  # the process ends here

    monkeypatch.setattr(torch, "save", cut_off)
    with pytest.raises(KeyboardInterrupt):
        trainer.engine.save_checkpoint(tmp_path, 4, {"at": 4})
    monkeypatch.undo()
    assert (tmp_path / "step-4").exists()  # the torso
    assert trainer.engine.load_checkpoint(tmp_path) == {"at": 2}
    trainer.engine.save_checkpoint(tmp_path, 4, {"at": 4})
    assert trainer.engine.load_checkpoint(tmp_path) == {"at": 4}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest.json", "step-4"]


@pytest.mark.slow
def test_without_a_checkpoint_or_with_that_of_another_layout_training_starts_anew(
    tiny_policy: Path, device: torch.device, tmp_path: Path
) -> None:
    trainer = make_trainer(tiny_policy, "grpo", device)
    assert trainer.engine.load_checkpoint(tmp_path / "none") is None
    trainer.engine.save_checkpoint(tmp_path, 1, {})
    partitioned = make_trainer(tiny_policy, "grpo", device, resources=ResourceSpec(zero_stage=1))
    assert partitioned.engine.load_checkpoint(tmp_path) is None
    latest = tmp_path / "latest.json"
    latest.write_text(json.dumps(json.loads(latest.read_text()) | {"processes": 2}))
    assert trainer.engine.load_checkpoint(tmp_path) is None
