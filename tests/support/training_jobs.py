"""Small trainings in child processes, and a check that none of their processes and files remain."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file
from training_samples import TRAINING, protocol_of

from poise_core.config import ResourceSpec
from poise_core.sandbox import warm
from poise_core.training.launcher import SeedTraining, TrainingJob

LONG = TRAINING.model_copy(update={"steps": 6})


def command_of(process: psutil.Process) -> str:
    """Its command line; empty where it has ended meanwhile, also where nobody has waited for it yet."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def job_of(
    policy: Path, folder: Path, source: Path | str, seeds: tuple[int, ...] = (0,), **resources: float
) -> TrainingJob:
    if isinstance(source, str):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "candidate.py"
        path.write_text(source)
    else:
        path = source
    limits = ResourceSpec(**{"checkpoint_steps": 2, "train_timeout_seconds": 280, **resources})  # type: ignore[arg-type]
    return TrainingJob(path, "tested", folder / "train", protocol_of(policy, LONG), limits, seeds)


def children() -> set[psutil.Process]:
    """All processes below this one, but for the fork server, which stays."""
    return {p for p in psutil.Process().children(recursive=True) if p.pid != warm.server_pid()}


@contextmanager
def nothing_stays(marker: str) -> Iterator[None]:
    """Afterwards no process lives below this one or with ``marker`` in its command line."""
    before = children()
    yield
    assert children() <= before
    assert [p.pid for p in psutil.process_iter(["cmdline"]) if marker in " ".join(p.info["cmdline"] or [])] == []


def files_of(training: SeedTraining) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """Weights, and the trajectory without wall times."""
    rows = [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in training.trajectory()]
    return load_file(training.policy_folder / "model.safetensors"), rows


def assert_same(found: list[SeedTraining], expected: list[SeedTraining]) -> None:
    for one, other in zip(found, expected, strict=True):
        (weights, rows), (expected_weights, expected_rows) = files_of(one), files_of(other)
        assert rows == expected_rows
        assert (one.seed, one.tokens) == (other.seed, other.tokens)
        for name, value in expected_weights.items():
            assert torch.equal(weights[name], value), name
