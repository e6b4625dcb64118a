"""Tokens a second, MFU and peak memory of rollout and update with a real model on this machine, as a Markdown table.

    make gpu-check MODEL=FOLDER_OR_FETCHED_NAME
    python tests/benchmarks/bench_gpu.py --model FOLDER [--prompts 16 --group 8 --length 512 --steps 4] [--out gpu-check.md]

Sides, each in processes of its own and one after the other, on the same prompts: POISE with its own sampler; POISE with vLLM, where
'poise sampler install' has made its environment; TRL's GRPOTrainer, where it is installed here, with vLLM where that is importable
beside it and otherwise with its own generation. The first step of each is left out.

Rollout is what a step spends until completions are graded, update the rest of it. Tokens of the rollout are completion tokens,
those of the update prompts and completions. MFU counts a forward pass for each token of the rollout and three for each of the
update, by the shape of the model, over the operations on the data sheet; the reference policy and activations that are computed
anew are not counted, so that saving them shows. Peak memory is that of the GPU, or of all processes together where there is none.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

WARM_UP_STEPS = 1
SIDES = ("poise", "poise+vllm", "trl")
HEAD = ("side", "rollout tokens/s", "MFU", "update tokens/s", "MFU", "peak memory", "s/step", "mean completion")


@dataclass(frozen=True)
class Step:
    """One measured step."""

    rollout_seconds: float
    update_seconds: float
    completion_tokens: float
    prompt_tokens: float


class Watch:
    """The most memory that was taken while it was open: of the GPU, or of this process's descendants."""

    def __init__(self) -> None:
        self.peak, self._over = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.2):
            self.peak = max(self.peak, gpu_memory() if has_gpu() else tree_memory())


def has_gpu() -> bool:
    return shutil.which("nvidia-smi") is not None


def asked(what: str) -> list[str]:
    command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()


def gpu_memory() -> float:
    return max((float(line) * 2**20 for line in asked("memory.used") if line.strip().isdecimal()), default=0.0)


def tree_memory() -> float:
    import psutil

    total = 0.0
    for process in psutil.Process().children(recursive=True):
        try:
            total += process.memory_full_info().pss
        except (psutil.Error, AttributeError):
            continue
    return total


def preset_of(options: argparse.Namespace, *, vllm: bool):
    from poise_core.config import load_preset
    from poise_core.policies.locate import resolve_policy
    from poise_core.policies.model import load_tokenizer

    training = {
        "steps": options.steps + WARM_UP_STEPS,
        "prompts_per_step": options.prompts,
        "group_size": options.group,
    }
    training |= {"max_completion_length": options.length, "minibatches": 1, "inner_epochs": 1, "learning_rate": 1e-6}
    chat = bool(load_tokenizer(resolve_policy(options.model)).chat_template)
    protocol: dict[str, Any] = {f"training.{key}": value for key, value in training.items()}
    protocol |= {"policy": options.model, "model": {"dtype": options.dtype}}
    protocol |= {"prompt": {"chat": True, "template": "{problem} Reason step by step."}} if chat else {}
    protocol |= {"sampler": {"name": "vllm", "dtype": options.dtype}} if vllm else {}
    resources = {"micro_batch_tokens": options.tokens, "gradient_checkpointing": options.checkpointing}
    resources |= {"train_timeout_seconds": 3600, "checkpoint_steps": 0, "parallel_candidates": 1}
    resources |= {"allow_shared_network": True, "threads_per_process": os.cpu_count() if not has_gpu() else 1}
    said = [f"protocol.{key}={json.dumps(value)}" for key, value in protocol.items()]
    return load_preset("smoke", said + [f"resources.{key}={json.dumps(value)}" for key, value in resources.items()])


def run_poise(options: argparse.Namespace, *, vllm: bool = False) -> list[Step]:
    from poise_core.algorithms import algorithm_path
    from poise_core.environments.prompts import training_problems
    from poise_core.policies.locate import resolve_policy
    from poise_core.policies.model import PromptCodec
    from poise_core.training.launcher import TrainingJob, train_candidate

    preset = preset_of(options, vllm=vllm)
    with tempfile.TemporaryDirectory() as folder:
        job = TrainingJob(algorithm_path("grpo"), "grpo", Path(folder), preset.protocol, preset.resources, (0,))
        (found,) = train_candidate(job)
        rows = found.trajectory()
    codec = PromptCodec.load(resolve_policy(options.model), preset.protocol.prompt)
    some = [problem.prompt for problem in training_problems(preset.protocol.environment, 0)[:64]]
    prompt = float(codec.encode(some)[1].sum(-1).float().mean()) * options.prompts * options.group
    return [Step(row["seconds_rollout"], row["seconds_update"], row["tokens"], prompt) for row in rows]


def run_trl(options: argparse.Namespace) -> list[Step]:
    from bench_trl import texts_of, train_with_trl

    from poise_core.environments import get_environment, verify_all
    from poise_core.environments.prompts import training_problems
    from poise_core.policies.locate import resolve_policy
    from poise_core.policies.model import PromptCodec, load_model
    from poise_core.policies.prompt import ModelSpec

    protocol = preset_of(options, vllm=False).protocol
    policy = resolve_policy(options.model)
    codec, environment = PromptCodec.load(policy, protocol.prompt), get_environment(protocol.environment)
    problems = training_problems(protocol.environment, 0)

    def graded(rows, completions):
        asked = [problems[row] for row in rows]
        return [one.correctness for one in verify_all(environment, asked, texts_of(codec, completions))]

    own = {"use_vllm": True, "vllm_mode": "colocate"} if importlib.util.find_spec("vllm") else {}
    batch = options.prompts * options.group
    found = train_with_trl(
        load_model(policy, ModelSpec(dtype=options.dtype)),
        codec.tokenizer,
        [codec.render(problem.prompt) for problem in problems],
        graded,
        max_steps=options.steps + WARM_UP_STEPS,
        per_device_train_batch_size=min(batch, options.trl_batch),
        gradient_accumulation_steps=max(1, batch // options.trl_batch),
        num_generations=options.group,
        max_completion_length=options.length,
        learning_rate=1e-6,
        beta=0.01,
        gradient_checkpointing=options.checkpointing,
        bf16=options.dtype == "bfloat16",
        **own,
    )
    prompt = float(codec.encode([problem.prompt for problem in problems[:64]])[1].sum(-1).float().mean()) * batch
    return [
        Step(rollout, total - rollout, length * batch, prompt)
        for rollout, total, length in zip(found["rollouts"], found["seconds"], found["lengths"], strict=False)
    ]


def measured(side: str, options: argparse.Namespace) -> tuple[list[Step], float] | str:
    """Steps and peak bytes of a side in a process of its own, or why it has none."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out, Watch() as watch:
        command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--result", out.name]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            return (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1][:200]
        steps = [Step(**one) for one in json.loads(Path(out.name).read_text())]
    return steps[WARM_UP_STEPS:], watch.peak


def missing(side: str, options: argparse.Namespace) -> str:
    """Why a side cannot run here; empty where it can."""
    if side == "trl" and importlib.util.find_spec("trl") is None:
        return "TRL is not installed: pip install -e '.[bench]'"
    if side == "poise+vllm":
        from poise_core.config.resources import SamplerResources
        from poise_core.failures import SamplerFault
        from poise_core.sampling.vllm import environment_python

        try:
            environment_python(SamplerResources())
        except SamplerFault as fault:
            return fault.message
    return ""


def peak_operations(dtype: str) -> tuple[str, float]:
    """The device as the plan knows it, and its operations a second in this type."""
    from poise_core.experiments.rates import GPUS

    name = "".join(asked("name")[:1]) if has_gpu() else "cpu"
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    known = next((one for one in sorted(GPUS, key=len, reverse=True) if one in plain), "cpu")
    return name, GPUS[known].half if dtype == "bfloat16" else GPUS[known].single


def row_of(side: str, steps: list[Step], peak: float, options: argparse.Namespace) -> list[str]:
    from poise_core.experiments.rates import shape_of

    shape, (_, operations) = shape_of(options.model), peak_operations(options.dtype)
    rows = options.prompts * options.group
    completion = statistics.fmean(step.completion_tokens for step in steps)
    trained = completion + statistics.fmean(step.prompt_tokens for step in steps)
    context = trained / rows / 2
    rollout = statistics.median(step.rollout_seconds for step in steps)
    update = statistics.median(step.update_seconds for step in steps)
    return [
        side,
        f"{completion / rollout:,.0f}",
        f"{completion * shape.forward(context) / rollout / operations:.1%}",
        f"{trained / update:,.0f}",
        f"{3 * trained * shape.forward(context) / update / operations:.1%}",
        f"{peak / 2**30:.1f} GiB",
        f"{rollout + update:.2f}",
        f"{completion / rows:.0f}",
    ]


def table(options: argparse.Namespace) -> str:
    import torch

    from poise_core.experiments.rates import shape_of

    device, operations = peak_operations(options.dtype)
    lines = [
        f"{options.model}, {shape_of(options.model).parameters / 1e6:.3g} M parameters, {options.dtype}, on {device} "
        f"({operations / 1e12:g} TFLOP/s on its data sheet), torch {torch.__version__}; {options.prompts} prompts x "
        f"{options.group} completions of at most {options.length} tokens, medians of {options.steps} steps.",
        "",
        f"| {' | '.join(HEAD)} |",
        f"|{'---|' * len(HEAD)}",
    ]
    notes = []
    for side in options.sides or SIDES:
        if why := missing(side, options):
            notes.append(f"{side}: not measured, {why}")
            continue
        found = measured(side, options)
        if isinstance(found, str):
            notes.append(f"{side}: failed, {found}")
        else:
            lines.append(f"| {' | '.join(row_of(side, *found, options))} |")
    return "\n".join([*lines, *([""] if notes else []), *(f"- {note}" for note in notes)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder, a shipped policy, or a hub name that was fetched")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--length", type=int, default=512, help="longest completion, tokens")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16" if has_gpu() else "float32")
    parser.add_argument("--tokens", type=int, default=16384, help="of a forward pass of the update")
    parser.add_argument("--trl-batch", type=int, default=16, help="completions of a forward pass of TRL's update")
    parser.add_argument("--checkpointing", action="store_true", help="compute activations anew in the backward pass")
    parser.add_argument("--sides", choices=SIDES, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("gpu-check.md"))
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        steps = run_trl(options) if options.side == "trl" else run_poise(options, vllm=options.side == "poise+vllm")
        options.result.write_text(json.dumps([asdict(step) for step in steps]))
        return
    text = table(options)
    options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
