"""The numbers of the trainer, to the last digit: three steps of GRPO on the shipped policy, and a small evaluation of it.

Where they change on purpose, raise ``poise_core.config.protocol.TRAINER_REVISION``, empty ``GOLDEN`` and put in what
``python -m tests.training.test_golden`` prints. Digits depend on the kernels that a processor gets, so there is one record for each
build of torch and kind of processor. A machine without a record compares the first step within ``ROUNDING`` and says that it skips
the digits; before numbers are changed, what the unchanged program prints there can be added.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from poise_core.algorithms import algorithm_path
from poise_core.config import ResourceSpec, load_preset
from poise_core.config.protocol import TRAINER_REVISION, Protocol
from poise_core.evaluation.job import EvaluationJob
from poise_core.evaluation.launcher import evaluate_policies
from poise_core.training.job import TrainingJob
from poise_core.training.launcher import train_candidate
from studies.simulation import FIRST_TESTBED

METRICS = ("loss", "grad_norm", "reward_mean", "entropy", "kl", "tokens", "completion_length", "clip_fraction")
ROUNDING = 1e-3  # relative; the recorded machines differ by 1e-5

REVISION = 2
GOLDEN: dict[str, dict[str, Any]] = {  # machine -> what it measures
    "2.13.0 AVX2 AuthenticAMD 23 1": {
        "steps": {
            "loss": [-0.006771903485059738, -0.008227632381021976, -0.006737333722412586],
            "grad_norm": [2.1877079010009766, 1.6975141167640686, 1.6673926562070847],
            "reward_mean": [0.4375, 0.40625, 0.25],
            "entropy": [0.3388737738132477, 0.5336011052131653, 0.35873568058013916],
            "kl": [0.0, 0.0003670166479423642, 0.002209687838330865],
            "tokens": [303.0, 257.0, 278.0],
            "completion_length": [9.46875, 8.03125, 8.6875],
            "clip_fraction": [0.002016128972172737, 0.008169935084879398, 0.01049578096717596],
        },
        "weights": "bc7304cba1cf875dfcff8ceb521f765624355905bc981e9754dc1c1d3e0e1c05",
        "correct": {
            "products": "2 1 0 0 1 0 1 0 1 1 0 3 0 0 3 1 2 0 3 0",
            "long-chains": "0 0 0 0 1 1 0 0 0 0 0 1 0 0 0 0 0 0 0 0",
            "remainders": "0 3 1 3 0 0 0 1 0 0 0 0 0 0 1 0 0 0 0 0",
            "sums": "0 0 0 0 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0",
            "differences": "1 0 0 1 1 1 0 0 0 0 0 0 1 0 0 0 0 0 1 1",
            "chains": "0 0 0 1 0 0 0 0 0 0 1 0 0 0 0 0 0 0 1 0",
        },
        "overall": 26.0,
    },
    "2.13.0 AVX512 AuthenticAMD 25 17": {
        "steps": {
            "loss": [-0.006771976128220558, -0.008227626793086529, -0.006737333722412586],
            "grad_norm": [2.1877075135707855, 1.6975146532058716, 1.6673918515443802],
            "reward_mean": [0.4375, 0.40625, 0.25],
            "entropy": [0.3388737738132477, 0.5336011648178101, 0.3587356507778168],
            "kl": [0.0, 0.0003670203441288322, 0.0022096869070082903],
            "tokens": [303.0, 257.0, 278.0],
            "completion_length": [9.46875, 8.03125, 8.6875],
            "clip_fraction": [0.002016128972172737, 0.008169935084879398, 0.01049578096717596],
        },
        "weights": "31533c6f6307a77119bd3ff4651802b21673647b9ddb73cbe7a7bab5b5ec42e2",
        "correct": {
            "products": "2 1 0 0 1 0 1 0 1 1 0 3 0 0 3 1 2 0 3 0",
            "long-chains": "0 0 0 0 1 1 0 0 0 0 0 1 0 0 0 0 0 0 0 0",
            "remainders": "0 3 1 3 0 0 0 1 0 0 0 0 0 0 1 0 0 0 0 0",
            "sums": "0 0 0 0 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0",
            "differences": "1 0 0 1 1 1 0 0 0 0 0 0 1 0 0 0 0 0 1 1",
            "chains": "0 0 0 1 0 0 0 0 0 0 1 0 0 0 0 0 0 0 1 0",
        },
        "overall": 26.0,
    },
}


def protocol() -> Protocol:
    """That of the testbed of the published run, made small: 8 prompts of 4 completions, 20 problems per benchmark."""
    whole = load_preset(FIRST_TESTBED).protocol
    given = {"steps": 3, "prompts_per_step": 8, "group_size": 4}
    training = whole.training.model_copy(update=given)
    benchmarks = tuple(
        one.model_copy(update={"problems": 20, "samples": min(one.samples, 4), "k": min(one.k, 4)})
        for one in whole.benchmarks
    )
    return whole.model_copy(update={"training": training, "benchmarks": benchmarks})


def machine() -> str:
    """What decides the order in which numbers are added: the build of torch and the processor that its kernels are chosen for."""
    about = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    processor = [re.search(rf"^{name}\s*: (.*)$", about, re.MULTILINE) for name in ("vendor_id", "cpu family", "model")]
    names = [found.group(1) if found else "?" for found in processor]
    return " ".join([torch.__version__.partition("+")[0], torch.backends.cpu.get_cpu_capability(), *names])


def measured(folder: Path) -> dict[str, Any]:
    """Train and evaluate with one thread in one process."""
    resources = ResourceSpec(threads_per_process=1)
    job = TrainingJob(algorithm_path("grpo"), "GRPO", folder / "train", protocol(), resources, (0,))
    (trained,) = train_candidate(job)
    policies = ((0, trained.policy_folder),)
    asked = EvaluationJob(folder / "evaluate", protocol(), resources, "search", policies, secret=None)
    (scored,) = evaluate_policies(asked)
    weights = (trained.policy_folder / "model.safetensors").read_bytes()
    return {
        "steps": {name: [row[name] for row in trained.trajectory()] for name in METRICS},
        "weights": hashlib.sha256(weights).hexdigest(),
        "correct": {one.name: " ".join(map(str, one.correct)) for one in scored.benchmarks},
        "overall": scored.overall,
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    assert TRAINER_REVISION == REVISION, (
        "empty GOLDEN, run python -m tests.training.test_golden and put in what it prints"
    )
    return measured(tmp_path_factory.mktemp("golden"))


@pytest.mark.slow
@pytest.mark.xdist_group("golden")
def test_numbers_change_only_with_the_revision_of_the_trainer(found: dict[str, Any]) -> None:
    if machine() not in GOLDEN:
        pytest.skip(f"the digits were NOT compared: none are recorded for this machine, {machine()}")
    assert found == GOLDEN[machine()], "numerics have changed: raise TRAINER_REVISION, then record them anew"


@pytest.mark.slow
@pytest.mark.xdist_group("golden")
@pytest.mark.parametrize("recorded", GOLDEN)
def test_the_first_step_is_the_same_on_every_machine(found: dict[str, Any], recorded: str) -> None:
    """Rollout, advantages, loss and gradient; later steps carry the rounding of the weights on."""
    for name in ("tokens", "reward_mean", "completion_length", "entropy", "loss", "grad_norm"):
        before = GOLDEN[recorded]["steps"][name][0]
        assert math.isclose(found["steps"][name][0], before, rel_tol=ROUNDING), name


def test_the_digest_tells_the_revision() -> None:
    now = protocol()
    assert now.digest  # computed, and not copied with the rest
    before = now.model_copy(update={"trainer_revision": 1})
    assert now.digest != before.digest
    document = now.model_dump(mode="json", exclude={"trainer_revision"})
    assert Protocol.stored(document).digest == before.digest
    assert Protocol.model_validate(document).digest == now.digest


def entry(name: str, record: dict[str, Any]) -> str:
    """A machine's record as it stands in ``GOLDEN``."""
    lines = [f'    "{name}": {{']
    for key, value in record.items():
        if isinstance(value, dict):
            inner = [f'            "{one}": {json.dumps(found)},' for one, found in value.items()]
            lines += [f'        "{key}": {{', *inner, "        },"]
        else:
            lines.append(f'        "{key}": {json.dumps(value)},')
    return "\n".join([*lines, "    },"])


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as made:
        print(entry(machine(), measured(Path(made))))
