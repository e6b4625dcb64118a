"""GRPO on a real instruction model through the real command, beside a few lines of torch that know nothing of the trainer.

The model is SmolLM2-135M-Instruct, from a package. It cannot add, so the reward is one that some of its answers get: an even number
of characters.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
import yaml
from real_policy import smollm2
from safetensors.torch import load_file
from torch import Tensor

from poise_core.algorithms import algorithm_path
from poise_core.config.protocol import EnvironmentSpec
from poise_core.config.resources import SamplerResources
from poise_core.environments.prompts import training_problems
from poise_core.failures import SamplerFault
from poise_core.randomness import uniforms
from poise_core.sampling.vllm import environment_python

pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(3000), pytest.mark.xdist_group("real-model")]

POISE = Path(sys.executable).parent / "poise"
PROMPTS, GROUP, LENGTH, RATE = 2, 4, 12, 1e-5
TEMPLATE = "{problem} Answer with the number only."

ENVIRONMENT = """
import random
from poise_core.environments import Outcome, Problem, split_of

class Sums:
    name = "sums-in-words"

    def problems(self, split, kinds, count, seed):
        deck = [Problem(prompt=f"What is {a} + {b}?", answer=str(a + b), kind="sums") for a in range(9) for b in range(9)]
        deck = [problem for problem in deck if split_of(problem.prompt) == split]
        random.Random(str(seed)).shuffle(deck)
        return deck[:count]

    def pool_size(self, kind):
        return 20

    def verify(self, problem, completion):
        return Outcome(float(len(completion) % 2 == 0), True)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the environment's file."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "sums.py").write_text(ENVIRONMENT)
    return folder


def command(
    made: Path, name: str, steps: int, protocol: Mapping[str, Any] = MappingProxyType({}), **resources: Any
) -> list[str]:
    document = {
        "name": name,
        "protocol": {
            "policy": str(smollm2()),
            "prompt": {"chat": True, "template": TEMPLATE},
            "environment": {"name": f"{made / 'sums.py'}:Sums", "mixture": {"sums": 1.0}, "train_problems": 16},
            "training": {
                "steps": steps,
                "prompts_per_step": PROMPTS,
                "group_size": GROUP,
                "learning_rate": RATE,
                "max_completion_length": LENGTH,
            },
            "benchmarks": [{"name": "sums", "kinds": ["sums"], "problems": 2, "metric": "accuracy", "weight": 1.0}],
            "seeds": [0],
            **protocol,
        },
        "search": {"seeds_per_candidate": 1},
        "resources": {
            "memory_gib": 8,
            "checkpoint_steps": 1,
            "train_timeout_seconds": 1500,
            "evaluate_timeout_seconds": 1500,
            "verify_timeout_seconds": 300,
            **resources,
        },
    }
    (made / f"{name}.yaml").write_text(yaml.safe_dump(document))
    preset, run = made / f"{name}.yaml", made / name
    return [
        str(POISE),
        "evaluate",
        str(algorithm_path("grpo")),
        "--preset",
        str(preset),
        "--run-dir",
        str(run),
        "--json",
    ]


def seed_folder(made: Path, name: str) -> Path:
    (folder,) = (made / name / "candidates").glob("grpo-*/train/seed-0")
    return folder


def trained(
    made: Path, name: str, steps: int, protocol: Mapping[str, Any] = MappingProxyType({}), **resources: Any
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    asked = command(made, name, steps, protocol, **resources)
    done = subprocess.run(asked, capture_output=True, text=True, timeout=2500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert 0 <= json.loads(done.stdout)["overall"]["estimate"] <= 100
    return result(made, name)


def result(made: Path, name: str) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    folder = seed_folder(made, name)
    rows = [json.loads(line) for line in (folder / "trajectory.jsonl").read_text().splitlines()]
    weights = load_file(folder / "policy" / "model.safetensors")
    return weights, [{key: value for key, value in row.items() if "seconds" not in key} for row in rows]


@pytest.fixture(scope="module")
def one_step(made: Path) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    return trained(made, "one", 1)


def test_the_first_update_is_that_of_a_plain_loop(
    one_step: tuple[dict[str, Tensor], list[dict[str, float]]], made: Path
) -> None:
    """Sampling by the inverse CDF one completion at a time, GRPO and Adam spelled out, float32 throughout."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(smollm2(), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(smollm2())
    spec = EnvironmentSpec(name=f"{made / 'sums.py'}:Sums", mixture={"sums": 1.0}, train_problems=16)
    noise = uniforms(PROMPTS * GROUP, LENGTH, 0, 0, 1)
    problems = training_problems(spec, 0)
    rows, rewards, entropies = [], [], []
    for i in range(PROMPTS * GROUP):
        text = TEMPLATE.replace("{problem}", problems[i // GROUP].prompt)
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        prompt = tokenizer(chat, add_special_tokens=False)["input_ids"]
        completion: list[int] = []
        with torch.no_grad():
            seen = model(torch.tensor([prompt]), use_cache=True)
            while True:
                p = seen.logits[0, -1].double().softmax(-1)
                entropies.append(float(-(p * p.clamp(min=1e-300).log()).sum()))
                completion.append(int(torch.searchsorted(p.cumsum(-1), noise[i, len(completion)] * p.sum())))
                if len(completion) == LENGTH or completion[-1] == tokenizer.eos_token_id:
                    break
                seen = model(torch.tensor([completion[-1:]]), past_key_values=seen.past_key_values, use_cache=True)
        ended = completion[-1] == tokenizer.eos_token_id
        words = tokenizer.decode([token for token in completion if token != tokenizer.eos_token_id])
        rewards.append(float(ended and len(words) % 2 == 0))
        rows.append((prompt, completion))
    _, (row,) = one_step
    assert row["tokens"] == len(entropies)  # the same completions
    assert row["reward_mean"] == pytest.approx(sum(rewards) / len(rewards))
    # float32 against double precision in a model of 30 layers: 1e-5 a token at most
    assert row["entropy"] == pytest.approx(sum(entropies) / len(entropies), abs=1e-4)

    loss = torch.zeros(())
    for i, (prompt, completion) in enumerate(rows):
        own = rewards[i // GROUP * GROUP :][:GROUP]
        mean = sum(own) / GROUP
        std = (sum((value - mean) ** 2 for value in own) / (GROUP - 1)) ** 0.5
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        logprobs = logits.log_softmax(-1).gather(-1, torch.tensor(completion).unsqueeze(-1))
        # the ratio to the policy that sampled is 1, and the KL to the initial policy has value and gradient 0
        ratio = (logprobs - logprobs.detach()).exp()
        loss = loss - (rewards[i] - mean) / (std + 1e-4) * ratio.mean() / len(rows)
    loss.backward()
    gradients = {name: value.grad for name, value in model.named_parameters()}
    norm = torch.stack([g.double().norm() for g in gradients.values() if g is not None]).norm()
    assert row["loss"] == pytest.approx(float(loss.detach()), abs=1e-5)
    # rounding of float32 through 30 layers, in another order of sums
    assert row["grad_norm"] == pytest.approx(float(norm), rel=1e-3)
    assert norm > 1e-2  # rewards differ within a group, so that there is something to compare

    weights, _ = one_step
    scale = min(1.0, 1.0 / float(norm))
    agreed = total = 0
    for name, value in model.named_parameters():
        gradient = gradients[name]
        assert gradient is not None
        # Adam's first step: learning rate x g / (|g| + 1e-8), so it is the gradient's sign but for the smallest
        expected = value.detach() - RATE * scale * gradient / (scale * gradient.abs() + 1e-8)
        clear = gradient.abs() > 1e-3 * gradient.abs().max()  # others may have the other sign by rounding
        agreed += int(((weights[name] - expected).abs()[clear] < RATE * 0.05).sum())
        total += int(clear.sum())
    assert total > 1_000_000
    assert agreed / total > 0.999


@pytest.mark.parametrize(("processes", "stage"), [(2, 0), (2, 3)])
def test_processes_and_stages_train_alike(
    one_step: tuple[dict[str, Tensor], list[dict[str, float]]], made: Path, processes: int, stage: int
) -> None:
    resources = {"processes_per_training": processes, "zero_stage": stage, "micro_batch_tokens": 200, "memory_gib": 12}
    weights, (row,) = trained(made, f"{processes}-{stage}", 1, **resources)
    expected, (one,) = one_step
    assert row["tokens"] == one["tokens"]
    for name in ("loss", "entropy", "reward_mean", "grad_norm"):
        assert row[name] == pytest.approx(one[name], rel=1e-3, abs=1e-5), name
    moved = [(weights[name] - value).abs() for name, value in expected.items()]
    # a first update of Adam is +-RATE: where a gradient is zero but for rounding its sign, and 2 RATE, may differ
    assert max(float(difference.max()) for difference in moved) <= 2.1 * RATE
    assert float(torch.cat([difference.flatten() for difference in moved]).mean()) < 0.05 * RATE


def test_vllm_samples_it_and_ends_completions_by_texts(made: Path) -> None:
    """Its words hold the stop texts within them; the trainer's own pass over the completions agrees with the engine."""
    limits = SamplerResources(
        environment=os.environ.get("POISE_SAMPLER_ENVIRONMENT"),
        memory_gib=0.5,
        context=128,
        start_seconds=1500,
        timeout_seconds=1500,
    )
    try:
        environment_python(limits)
    except SamplerFault as fault:
        pytest.skip(fault.message)
    protocol = {
        "sampler": {"name": "vllm", "version": "0.32.0", "dtype": "float32", "head": "float32"},
        "prompt": {"chat": True, "template": TEMPLATE, "stop": [" the", ","], "stopping": "sampling"},
    }
    _, (row,) = trained(made, "vllm", 1, protocol, sampler=limits.model_dump(mode="json"))
    assert 0 < row["sampler_gap"] < 1e-3, "float32 through 30 layers on both sides, sums in other orders"
    assert row["sampler_ess"] == pytest.approx(1.0, abs=1e-6)
    assert row["truncated"] < 1
    folder = seed_folder(made, "vllm")
    identity = json.loads((folder.parent / "sampler.json").read_text())
    assert (identity["engine"], identity["version"].partition("+")[0], identity["head"]) == (
        "vllm",
        "0.32.0",
        "float32",
    )


def test_a_killed_training_goes_on_to_the_same_weights(made: Path) -> None:
    undisturbed, rows = trained(made, "whole", 2)
    process = subprocess.Popen(command(made, "killed", 2), start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 1500
    while not list((made / "killed" / "candidates").glob("*/train/seed-0/checkpoints/latest.json")):
        assert process.poll() is None, "it ended before its first checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (seed_folder(made, "killed") / "result.json").exists()
    weights, again = trained(made, "killed", 2)
    assert again == rows
    assert all(torch.equal(weights[name], value) for name, value in undisturbed.items())
