"""A tiny policy with every part of a real one that is right now and then, and a process group of one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from loopback import free_port
from training_samples import TINY_RECIPE

from poise_core.testbed.recipes import build_policy


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers a fifth of the ``mod`` problems, so that most groups hold right and wrong completions."""
    folder = tmp_path_factory.mktemp("policy")
    build_policy(TINY_RECIPE, folder)
    return folder


@pytest.fixture(scope="session")
def device() -> Iterator[torch.device]:
    """The device of a process group that holds this process alone, as torchrun would describe it."""
    from poise_core.training.engine import start_processes

    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_PORT": free_port()}.items():
            patch.setenv(name, str(value))
        patch.setenv("MASTER_ADDR", "127.0.0.1")
        yield start_processes()[2]
