"""Shared parts of the tests of training: a small protocol, trainers in this process, candidates from text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from poise_core.algorithms import algorithm_path
from poise_core.candidate.loading import Candidate, load_candidate, load_candidate_source
from poise_core.config import ResourceSpec
from poise_core.config.protocol import BenchmarkSpec, EnvironmentSpec, Protocol, TrainingSpec
from poise_core.environments import get_environment
from poise_core.environments.prompts import training_problems
from poise_core.policies.model import PromptCodec, load_model
from poise_core.policies.prompt import ModelSpec
from poise_core.testbed.recipes import Recipe
from poise_core.training.engine import Engine
from poise_core.training.trainer import Trainer

ENVIRONMENT = EnvironmentSpec(mixture={"mod": 1.0}, train_problems=64)

TRAINING = TrainingSpec(
    steps=3,
    prompts_per_step=3,
    group_size=4,
    minibatches=2,
    inner_epochs=2,
    learning_rate=1e-3,
    max_completion_length=8,
    weight_decay=0.01,
)

TINY_RECIPE = Recipe(
    hidden_size=16,
    layers=2,
    heads=2,
    intermediate_size=32,
    mixture={"mod": 1.0},
    skills={"direct": 1.0},
    habits={"direct": 1.0},
    habit_steps=0,
    slip=0.0,
    steps=150,
    batch_size=32,
    learning_rate=1e-2,
    seed=3,
    max_completion_length=8,
)
"""Of a policy that answers a fifth of the ``mod`` problems, so that most groups hold right and wrong completions."""

REINFORCE = '''"""REINFORCE with the group's mean as baseline; the tests replace parts of it."""
from dataclasses import dataclass
import torch
from poise_core.contract import Advantages, LossOutputs
from poise_core.reductions import group_mean, to_tokens

LOSS_AGGREGATION = "token-mean"
MECHANISMS = {}

@dataclass(frozen=True)
class Hyperparameters:
    scale: float = 1.0

def compute_advantages(batch, hp, dynamics):
    advantage = hp.scale * (batch.correctness - group_mean(batch.correctness, batch.group_ids))
    return Advantages(values=to_tokens(advantage, batch.completion_mask))

def compute_loss(inputs, hp, dynamics):
    return LossOutputs(token_loss=-inputs.advantages * inputs.logprobs)
'''


def candidate_with(*changes: tuple[str, str], extra: str = "") -> Candidate:
    """``REINFORCE`` with parts of its text replaced, and more text at its end."""
    source = REINFORCE
    for old, new in changes:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    return load_candidate_source(source + extra, "written-in-the-test")


def make_trainer(
    policy: Path,
    candidate: Candidate | str,
    device: torch.device,
    *,
    training: TrainingSpec = TRAINING,
    resources: ResourceSpec | None = None,
    seed: int = 0,
    rank: int = 0,
    fingerprint: str | None = None,
    model: ModelSpec | None = None,
) -> Trainer:
    """A trainer in this process; ``trainer.engine`` is its engine."""
    if isinstance(candidate, str):
        candidate = load_candidate(algorithm_path(candidate))
    resources = resources or ResourceSpec()
    return Trainer(
        candidate,
        Engine(load_model(policy, model).to(device), training, resources),
        load_model(policy, model).to(device).requires_grad_(False),
        PromptCodec.load(policy),
        get_environment(ENVIRONMENT.name),
        training_problems(ENVIRONMENT, seed),
        training,
        resources,
        seed,
        rank=rank,
        device=device,
        fingerprint=fingerprint,
    )


def weights_of(trainer: Trainer) -> dict[str, Tensor]:
    """Copies of the policy's weights by name, the tied output layer once."""
    with trainer.engine.whole_model() as model:
        weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    weights.pop("lm_head.weight", None)
    return weights


def assert_weights_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], atol: float) -> None:
    """Equal but for round-off.

    A key's bias shifts all scores of a query alike: its gradient is zero but for round-off, which Adam scales up to
    updates of full size. It is left out.
    """
    assert found.keys() == expected.keys()
    for name in (name for name in expected if not name.endswith("k_proj.bias")):
        torch.testing.assert_close(
            found[name], expected[name], atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


def largest_move(weights: Mapping[str, Tensor], policy: Path) -> float:
    """The largest change of a weight since the policy was loaded."""
    start: dict[str, Any] = load_model(policy).state_dict()
    return max(float((value - start[name]).abs().max()) for name, value in weights.items())


def protocol_of(policy: Path, training: TrainingSpec = TRAINING) -> Protocol:
    """A protocol in miniature around a policy."""
    benchmarks = (
        BenchmarkSpec(name="sampled", kinds=("mod",), problems=12, metric="pass", k=2, samples=4, weight=0.5),
        BenchmarkSpec(name="greedy", kinds=("mod", "mul1"), problems=12, metric="accuracy", weight=0.5),
    )
    return Protocol(
        policy=str(policy),
        environment=ENVIRONMENT,
        training=training,
        benchmarks=benchmarks,
        seeds=(0, 1, 2),
    )
