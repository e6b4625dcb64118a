"""The numbers of the trainer, to the last digit: three steps of GRPO on the shipped policy, and a small evaluation of it.

Where they change on purpose, raise ``poise_core.config.protocol.TRAINER_REVISION`` and put below what
``python tests/training/test_golden.py`` prints. Digits depend on the kernels that a processor gets, so on another build of torch or
another kind of processor than those of the recording only the first rollout is compared, within rounding.
"""

from __future__ import annotations

import hashlib
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

GOLDEN: dict[str, Any] = {
    "revision": 2,
    "machine": ["2.13.0", "AVX2", "AuthenticAMD", "23", "1"],
    "steps": [
        {
            "loss": -0.006771903485059738,
            "grad_norm": 2.1877079010009766,
            "reward_mean": 0.4375,
            "entropy": 0.3388737738132477,
            "kl": 0.0,
            "tokens": 303.0,
            "completion_length": 9.46875,
            "clip_fraction": 0.002016128972172737,
        },
        {
            "loss": -0.008227632381021976,
            "grad_norm": 1.6975141167640686,
            "reward_mean": 0.40625,
            "entropy": 0.5336011052131653,
            "kl": 0.0003670166479423642,
            "tokens": 257.0,
            "completion_length": 8.03125,
            "clip_fraction": 0.008169935084879398,
        },
        {
            "loss": -0.006737333722412586,
            "grad_norm": 1.6673926562070847,
            "reward_mean": 0.25,
            "entropy": 0.35873568058013916,
            "kl": 0.002209687838330865,
            "tokens": 278.0,
            "completion_length": 8.6875,
            "clip_fraction": 0.01049578096717596,
        },
    ],
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


def machine() -> list[str]:
    """What decides the order in which numbers are added: the build of torch and the processor that its kernels are chosen for."""
    about = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    processor = [re.search(rf"^{name}\s*: (.*)$", about, re.MULTILINE) for name in ("vendor_id", "cpu family", "model")]
    names = [found.group(1) if found else "?" for found in processor]
    return [torch.__version__.partition("+")[0], torch.backends.cpu.get_cpu_capability(), *names]


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
        "revision": TRAINER_REVISION,
        "machine": machine(),
        "steps": [{name: row[name] for name in METRICS} for row in trained.trajectory()],
        "weights": hashlib.sha256(weights).hexdigest(),
        "correct": {one.name: " ".join(map(str, one.correct)) for one in scored.benchmarks},
        "overall": scored.overall,
    }


@pytest.mark.slow
def test_numbers_change_only_with_the_revision_of_the_trainer(tmp_path: Path) -> None:
    found = measured(tmp_path)
    assert found["revision"] == GOLDEN["revision"], "run python tests/training/test_golden.py and put in what it prints"
    if found["machine"] == GOLDEN["machine"]:
        assert found == GOLDEN, "numerics have changed: raise TRAINER_REVISION, then record them anew"
        return
    for name in ("entropy", "tokens", "reward_mean"):  # of the first rollout, in which rounding may flip a draw or two
        assert math.isclose(found["steps"][0][name], GOLDEN["steps"][0][name], rel_tol=0.1), name


def test_the_digest_tells_the_revision() -> None:
    now = protocol()
    assert now.digest  # computed, and not copied with the rest
    before = now.model_copy(update={"trainer_revision": 1})
    assert now.digest != before.digest
    document = now.model_dump(mode="json", exclude={"trainer_revision"})
    assert Protocol.stored(document).digest == before.digest
    assert Protocol.model_validate(document).digest == now.digest


if __name__ == "__main__":
    import pprint
    import tempfile

    with tempfile.TemporaryDirectory() as made:
        print(pprint.pformat(measured(Path(made)), width=110, sort_dicts=False))
