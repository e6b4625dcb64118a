"""One process and two train to the same weights, under every ZeRO stage, with a group split between the processes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_samples import assert_weights_close, largest_move

ALGORITHMS = ("grpo", "dapo", "gspo")  # sequence-mean, token-mean, sequence-level ratio
STAGES = (0, 1, 2, 3)


def run(processes: int, policy: Path, out: Path, stages: tuple[int, ...]) -> None:
    script = Path(__file__).parents[1] / "support" / "train_combinations.py"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    arguments = [str(policy), str(out), ",".join(ALGORITHMS), ",".join(map(str, stages))]
    done = subprocess.run([*torchrun, str(script), *arguments], capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def results(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("weights")
    run(1, tiny_policy, out, (0,))
    run(2, tiny_policy, out, STAGES)
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
