"""Exported algorithms through the methods of TRL's trainer: the advantages, losses and gradients of POISE, and real trainings.

Where TRL is not installed, this file is not collected; ``test_trl_itself_trains_as_poise`` runs it in a process that has TRL.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import pytest
import torch
import transformers
import trl
from exported import champion, load, source_of

from poise_core.algorithms import list_algorithms
from poise_core.candidate import calls
from poise_core.candidate.loading import load_candidate_source
from poise_core.contract import Dynamics, LossInputs, RolloutBatch
from poise_core.export import export_candidate


def trl_trainer(
    module: types.ModuleType, folder: Path, *, steps: int = 2, rewards: Sequence[Callable] = (), **settings: object
):
    """A trainer with the shipped toy policy: eight completions of two prompts a generation, two micro-batches."""
    policy = str(Path(__file__).parents[1] / "poise_core" / "policies" / "arithmetic-a")

    def correct(completions, **_):
        return [float(len(text) % 2) for text in completions]

    def format_valid(completions, **_):
        return [float(len(text) % 5 != 0) for text in completions]

    options = {
        "output_dir": str(folder), "per_device_train_batch_size": 4, "num_generations": 4, "gradient_accumulation_steps": 2,
        "steps_per_generation": 2, "max_completion_length": 8, "beta": 1e-3, "max_steps": steps, "logging_steps": 1,
        "use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "steps", "save_steps": steps, "seed": 3,
        "gradient_checkpointing": False, "disable_tqdm": True, "disable_dropout": True,
    }  # fmt: skip
    return module.PoiseGRPOTrainer(
        transformers.AutoModelForCausalLM.from_pretrained(policy),
        reward_funcs=list(rewards) or [correct, format_valid],
        args=trl.GRPOConfig(**{**options, **settings}),
        train_dataset=datasets.Dataset.from_dict({"prompt": [f"{i}+{i + 1}=" for i in range(8)]}),
        processing_class=transformers.AutoTokenizer.from_pretrained(policy, padding_side="left"),
    )


def gradients(model: torch.nn.Module) -> list[torch.Tensor]:
    return [one.grad.clone() for one in model.parameters() if one.grad is not None]


@pytest.mark.parametrize("name", list_algorithms())
def test_trl_trains_with_the_advantages_losses_and_gradients_of_poise(name: str, tmp_path: Path) -> None:
    source = source_of(name)
    candidate = load_candidate_source(source, name)
    module = load(export_candidate(source, name, "trl").text)
    trainer = trl_trainer(module, tmp_path)
    seen, original = [], module.poise_advantages
    module.poise_advantages = lambda batch, now: seen.append((batch, now, original(batch, now))) or seen[-1][2]
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 2
    generation = next(iter(trainer.get_train_dataloader()))
    parts = []
    for step in (0, 1):
        trainer._step = step
        inputs = trainer._prepare_inputs(generation)
        with torch.no_grad():
            logprobs, _, _ = trainer._poise_score(trainer.model, inputs)
        noise = torch.randn(logprobs.shape, generator=torch.Generator().manual_seed(step))
        parts.append({**inputs, "old_per_token_logps": logprobs + 0.3 * noise})

    batch, now, (values, trained, _) = seen[0]
    ours = RolloutBatch(**{one.name: getattr(batch, one.name) for one in dataclasses.fields(batch)})
    dynamics = Dynamics(**{one.name: getattr(now, one.name) for one in dataclasses.fields(now)})
    expected = calls.call_advantages(candidate, ours, dynamics)
    mask = calls.train_mask(expected, ours.completion_mask)
    assert torch.equal(trained, mask)
    assert torch.equal(values, torch.where(mask, expected.values, 0.0))
    assert sorted(ours.group_ids.tolist()) == [0] * 4 + [1] * 4
    sums = sorted(float(row.sum()) for part in parts for row in part["advantages"])
    assert sums == pytest.approx(sorted(values.sum(-1).tolist()), abs=1e-5)

    losses = [trainer._compute_loss(trainer.model, part) for part in parts]
    sum(losses).backward()
    found = gradients(trainer.model)
    trainer.model.zero_grad()
    tokens, sequences = float(mask.sum()), float(mask.any(-1).sum())
    for part, loss in zip(parts, losses, strict=True):
        logprobs, entropies, _ = trainer._poise_score(trainer.model, part)
        carry = {key.partition("/")[2]: value for key, value in part.items() if key.startswith("poise_carry/")}
        inputs = LossInputs(
            logprobs=logprobs, entropies=entropies, old_logprobs=part["old_per_token_logps"],
            ref_logprobs=part["ref_per_token_logps"], advantages=part["advantages"], mask=part["poise_mask"], carry=carry,
            correctness=part["poise_correctness"], format_valid=part["poise_format_valid"],
        )  # fmt: skip
        inputs = calls.handed_inputs(candidate, inputs, part["completion_mask"].bool())
        call = calls.call_loss(candidate, inputs, dynamics, token_count=tokens, sequence_count=sequences, max_length=8)
        torch.testing.assert_close(loss.detach(), call.total, rtol=1e-6, atol=1e-7)
        through = (logprobs * call.grad_logprobs).sum()
        if candidate.reads_entropies:
            through = through + (entropies * call.grad_entropies).sum()
        through.backward()
    for one, other in zip(found, gradients(trainer.model), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["grpo", "vm_av", "champion"])
def test_trl_trains_with_an_exported_algorithm_and_goes_on_from_its_checkpoint(name: str, tmp_path: Path) -> None:
    text = champion(tmp_path) if name == "champion" else export_candidate(source_of(name), name, "trl").text
    module = load(text)
    trainer = trl_trainer(module, tmp_path, steps=4, save_steps=3)
    before = [one.detach().clone() for one in trainer.model.parameters()]
    trainer.train()
    assert trainer.state.global_step == 4
    assert any(not torch.equal(one, other) for one, other in zip(before, trainer.model.parameters(), strict=True))
    assert all(torch.isfinite(one).all() for one in trainer.model.parameters())
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    if name == "vm_av":  # its controller has been called after each generation but the last
        assert trainer._poise_state["controller"]["initial_entropy"] > 0
    again = trl_trainer(module, tmp_path, steps=4)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert again.state.global_step == 4
    assert again._poise_state["controller"] == pytest.approx(trainer._poise_state["controller"])
    assert again._poise_state["running"] == pytest.approx(trainer._poise_state["running"])


def test_a_right_answer_that_is_cut_off_earns_nothing(tmp_path: Path) -> None:
    def right(completions, **_):
        return [1.0] * len(completions)

    module = load(export_candidate(source_of("grpo"), "GRPO", "trl").text)
    trainer = trl_trainer(module, tmp_path, rewards=[right], max_completion_length=2)
    seen, original = [], module.poise_advantages
    module.poise_advantages = lambda batch, now: seen.append(batch) or original(batch, now)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 2
    trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    assert seen[0].truncated.any()
    assert seen[0].correctness.tolist() == (~seen[0].truncated).float().tolist()


def test_trl_settings_that_would_change_the_algorithm_are_refused(tmp_path: Path) -> None:
    module = load(export_candidate(source_of("grpo"), "GRPO", "trl").text)
    with pytest.raises(ValueError, match="beta must not be 0"):
        trl_trainer(module, tmp_path, beta=0.0)
