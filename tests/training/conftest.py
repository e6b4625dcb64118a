"""A policy with random weights, big enough to have every part of a real one."""

from pathlib import Path

import pytest

from poise_core.training.base_policy import Recipe, build_policy


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = Recipe(
        hidden_size=16,
        layers=2,
        heads=2,
        intermediate_size=32,
        mixture={"mod": 1.0, "add3": 1.0},
        skills={"direct": 1.0},
        habits={"direct": 1.0},
        habit_steps=0,
        slip=0.0,
        steps=30,
        batch_size=32,
        learning_rate=1e-2,
        seed=3,
        max_completion_length=8,
    )
    folder = tmp_path_factory.mktemp("policy")
    build_policy(recipe, folder)
    return folder
