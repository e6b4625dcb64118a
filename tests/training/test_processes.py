"""One process and two train to the same weights, under every ZeRO stage, with a group split between the processes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_jobs import assert_same, job_of
from training_samples import assert_weights_close, largest_move

from poise_core.algorithms import algorithm_path
from poise_core.config import ResourceSpec
from poise_core.training import nodes
from poise_core.training.launcher import train_candidate

ALGORITHMS = ("grpo", "dapo", "gspo")  # sequence-mean, token-mean, sequence-level ratio
STAGES = (0, 1, 2, 3)


def run(
    processes: int, policy: Path, out: Path, stages: tuple[int, ...], algorithms: tuple[str, ...], *extra: str
) -> None:
    script = Path(__file__).parents[1] / "support" / "train_combinations.py"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    arguments = [str(policy), str(out), ",".join(algorithms), ",".join(map(str, stages)), *extra]
    done = subprocess.run([*torchrun, str(script), *arguments], capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def results(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("weights")
    run(1, tiny_policy, out, (0,), ALGORITHMS)
    run(2, tiny_policy, out, STAGES, ALGORITHMS)
    run(2, tiny_policy, out, STAGES, ("dapo",), "30")  # 30 tokens a forward pass: two or three sequences
    run(1, tiny_policy, out, (1,), ("grpo",), "bfloat16")
    run(2, tiny_policy, out, (1, 2, 3), ("grpo",), "bfloat16")
    return out


@pytest.mark.exhaustive
@pytest.mark.timeout(600)
@pytest.mark.xdist_group("processes")  # one run of each kind for all
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_two_processes_train_to_the_weights_of_one(
    results: Path, tiny_policy: Path, algorithm: str, stage: int
) -> None:
    one = load_file(results / f"{algorithm}-zero0-1.safetensors")
    two = load_file(results / f"{algorithm}-zero{stage}-2.safetensors")
    assert torch.equal(one.pop("trajectory/tokens"), two.pop("trajectory/tokens"))
    for name in [name for name in one if name.startswith("trajectory/")]:
        torch.testing.assert_close(two.pop(name), one.pop(name), atol=1e-6, rtol=1e-4)
    # sums run in another order: float32 round-off, grown by three steps of four updates of about 1e-3 each
    assert_weights_close(two, one, atol=2e-5)
    assert largest_move(one, tiny_policy) > 2e-3  # these are no policies that stood still


@pytest.mark.exhaustive
@pytest.mark.timeout(600)
@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("stage", STAGES)
def test_a_budget_of_tokens_changes_no_weight(results: Path, tiny_policy: Path, stage: int) -> None:
    """The processes have different numbers of parts before they are made equal; with ZeRO they would wait for ever."""
    one = load_file(results / "dapo-zero0-1.safetensors")
    two = load_file(results / f"dapo-zero{stage}-2-30.safetensors")
    assert torch.equal(one.pop("trajectory/tokens"), two.pop("trajectory/tokens"))
    for name in [name for name in one if name.startswith("trajectory/")]:
        torch.testing.assert_close(two.pop(name), one.pop(name), atol=1e-6, rtol=1e-4)
    assert_weights_close(two, one, atol=2e-5)


@pytest.mark.exhaustive
@pytest.mark.timeout(600)
@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("stage", STAGES[1:])
def test_bfloat16_trains_alike_under_every_stage(results: Path, stage: int) -> None:
    """Weights in bfloat16 are rounded float32 originals; by the order of sums they may differ in their last digit, 2^-8 of them."""
    one = load_file(results / "grpo-zero1-1-bfloat16.safetensors")
    two = load_file(results / f"grpo-zero{stage}-2-bfloat16.safetensors")
    first = [name for name in one if name.startswith("trajectory/")]
    for name in first:  # of the first step, before weights differ
        torch.testing.assert_close(two.pop(name)[0], one.pop(name)[0], atol=1e-4, rtol=2e-2, msg=name)
    moved = {name: value.float() for name, value in two.items()}
    assert_weights_close(moved, {name: value.float() for name, value in one.items()}, atol=2e-2)


# --- several nodes


RESOURCES = {"nodes": 2, "parallel_candidates": 1, "rendezvous": "127.0.0.1", "allow_shared_network": True}


def node(run: Path, rank: int, **resources: Any) -> subprocess.Popen[str]:
    """A node that serves: a process group of its own, as another machine would have."""
    code = (
        "import json, sys\nfrom pathlib import Path\nfrom poise_core.cli.common import plain_errors\n"
        "from poise_core.config import ResourceSpec\nfrom poise_core.training.nodes import take_part\n"
        "with plain_errors(): take_part(Path(sys.argv[1]), ResourceSpec(**json.loads(sys.argv[2])))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(run), json.dumps({**RESOURCES, **resources})],
        env={**os.environ, "POISE_NODE_RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@contextmanager
def leading(run: Path, monkeypatch: pytest.MonkeyPatch, **resources: Any) -> Iterator[ResourceSpec]:
    spec = ResourceSpec(**{**RESOURCES, **resources})
    monkeypatch.setenv("POISE_NODE_RANK", "0")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert not nodes.take_part(run, spec)
    try:
        yield spec
    finally:
        nodes.end_leading()


@pytest.mark.exhaustive
@pytest.mark.timeout(600)
def test_two_nodes_train_to_the_weights_of_two_processes_on_one(
    tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 may be on either node, and all files of the training pass through the folder that they share."""
    algorithm = algorithm_path("vm_av")
    (one,) = train_candidate(job_of(tiny_policy, tmp_path / "one", algorithm, processes_per_training=2))
    run = tmp_path / "run"
    other = node(run, 1)
    with leading(run, monkeypatch):
        rows: list[float] = []
        job = job_of(tiny_policy, run / "first", algorithm, **RESOURCES)
        (two,) = train_candidate(job, on_step=lambda _, row: rows.append(row["step"]))
        (again,) = train_candidate(
            job_of(tiny_policy, run / "second", algorithm, **RESOURCES)
        )  # the same nodes serve on
    assert other.wait(60) == 0, other.communicate()[1]
    assert rows == [0, 1, 2, 3, 4, 5]
    assert_same([two], [one])
    assert_same([again], [one])
    assert (job.folder / "train-node-1.log").exists()
    assert "sharing the machine's was allowed" in two.confinement["network"]
