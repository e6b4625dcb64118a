"""The training set: problems of the protocol's mixture as a ``datasets.Dataset``, shuffled by the training seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from poise_core.config.protocol import EnvironmentSpec, TrainingSpec
from poise_core.environments import Problem, get_environment

if TYPE_CHECKING:
    from datasets import Dataset


def warm_up() -> None:
    """Import the libraries that make a training set, which takes seconds the first time in a process."""
    import datasets  # noqa: F401


def training_set(spec: EnvironmentSpec, seed: int) -> Dataset:
    """Return rows of prompt, answer and kind, with kinds in the shares of ``spec.mixture``; prompts may repeat.

    Equal arguments give equal rows in the same order.
    """
    from datasets import Dataset, interleave_datasets

    environment = get_environment(spec)
    total = sum(spec.shares.values())
    kinds = sorted(spec.shares)
    shares = [spec.shares[kind] / total for kind in kinds]
    parts = []
    for kind in kinds:
        size = min(environment.pool_size(kind), spec.train_problems)
        rows = environment.problems("train", [kind], size, "training")
        columns = {
            "prompt": [p.prompt for p in rows],
            "answer": [p.answer for p in rows],
            "kind": [p.kind for p in rows],
        }
        if any(p.data for p in rows):
            columns["data"] = [p.data for p in rows]
        parts.append(Dataset.from_dict(columns).shuffle(seed=seed))
    mixed = interleave_datasets(parts, probabilities=shares, seed=seed, stopping_strategy="all_exhausted")
    return mixed.select(range(min(spec.train_problems, len(mixed))))


def training_problems(spec: EnvironmentSpec, seed: int) -> list[Problem]:
    """Return the training set as problems, in the order in which the trainer uses them."""
    return [Problem(**row) for row in training_set(spec, seed).to_list()]


def step_problems(problems: Sequence[Problem], training: TrainingSpec, step: int) -> list[Problem]:
    """Return the problems of one step out of the training set, which repeats after one pass."""
    first = step * training.prompts_per_step
    return [problems[i % len(problems)] for i in range(first, first + training.prompts_per_step)]
