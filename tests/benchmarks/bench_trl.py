"""Seconds per GRPO step against TRL's ``GRPOTrainer``: same policy, prompts, group size, loss and number of steps.

    pip install -e '.[bench]' -c constraints.txt
    python tests/benchmarks/bench_trl.py [--rounds 3] [--steps 40] [--plot docs/images/trl_rewards.svg]

Three regimes, 32 prompts x 8 completions per step, one update per step, on all cores:

    fixed     every completion has 32 tokens; the reward is the share of "7" among them
    natural   completions end where the policy ends them, 32 tokens at most; the reward is correctness
    roomy     the same with a limit of 128 tokens, which few completions come near

Each side runs in a process of its own, in turn. Timed is a whole step, from the end of the one before, without the first
five; printed are medians and the ratio of every pair of runs, and the mean reward over the first and last five steps.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

PROMPTS, GROUP_SIZE = 32, 8
LEARNING_RATE, KL_COEF = 3e-4, 0.01
WARM_UP_STEPS = 5
REGIMES = {"fixed": 32, "natural": 32, "roomy": 128}  # name -> longest completion, tokens
POLICY = "arithmetic-a"
MIXTURE = {"add2": 1.0, "sub2": 1.0, "mul1": 1.0, "chain4": 1.0}


def share_of_sevens(completion: str) -> float:
    return completion.count("7") / REGIMES["fixed"]


def problems(seed: int):
    from poise_core.config.protocol import EnvironmentSpec
    from poise_core.environments.prompts import training_problems

    return training_problems(EnvironmentSpec(mixture=MIXTURE, train_problems=4096), seed)


def run_poise(regime: str, steps: int, seed: int) -> dict[str, list[float]]:
    from poise_core.algorithms import algorithm_path
    from poise_core.candidate.loading import load_candidate
    from poise_core.config import ResourceSpec
    from poise_core.config.protocol import TrainingSpec
    from poise_core.environments import get_environment
    from poise_core.environments.base import Outcome
    from poise_core.policies.locate import resolve_policy
    from poise_core.policies.model import PromptCodec, load_model
    from poise_core.training import trainer as module
    from poise_core.training.engine import Engine, start_processes

    policy = resolve_policy(POLICY)
    training = TrainingSpec(
        steps=steps,
        prompts_per_step=PROMPTS,
        group_size=GROUP_SIZE,
        minibatches=1,
        inner_epochs=1,
        learning_rate=LEARNING_RATE,
        max_completion_length=REGIMES[regime],
    )
    codec, environment = PromptCodec.load(policy), get_environment("arithmetic")
    if regime == "fixed":
        codec = dataclasses.replace(codec, eos_ids=())  # nothing ends a completion, and reaching the limit is no fault
        sample = module.sample_completions

        def untruncated(*args, **kwargs):
            found = sample(*args, **kwargs)
            return dataclasses.replace(found, truncated=found.truncated & False)

        module.sample_completions = untruncated
        environment.verify = lambda _, completion: Outcome(share_of_sevens(completion), True)
    _, _, device = start_processes()
    # where lengths vary, micro-batches of like lengths save padding; TRL pads to the longest whatever its micro-batches are
    resources = ResourceSpec(micro_batch_size=256 if regime == "fixed" else 64)
    trainer = module.Trainer(
        load_candidate(algorithm_path("grpo")).with_overrides(kl_coef=KL_COEF),
        Engine(load_model(policy).to(device), training, resources),
        load_model(policy).to(device).requires_grad_(False),
        codec,
        environment,
        problems(seed),
        training,
        resources,
        seed,
        rank=0,
        device=device,
    )
    ends, rewards, lengths = [time.perf_counter()], [], []
    for row in trainer.steps():
        ends.append(time.perf_counter())
        rewards.append(row["reward_mean"])
        lengths.append(row["completion_length"])
    return {"seconds": differences(ends), "rewards": rewards, "lengths": lengths}


def run_trl(regime: str, steps: int, seed: int) -> dict[str, list[float]]:
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from poise_core.environments import get_environment
    from poise_core.environments.base import Problem
    from poise_core.policies.locate import resolve_policy
    from poise_core.policies.model import load_model, load_tokenizer

    policy = resolve_policy(POLICY)
    environment = get_environment("arithmetic")
    rows = problems(seed)

    def reward(completions, answer, kind, prompts, **_):
        if regime == "fixed":
            return [share_of_sevens(text) for text in completions]
        asked = [Problem(*fields) for fields in zip(prompts, answer, kind, strict=True)]
        return [environment.verify(*pair).correctness for pair in zip(asked, completions, strict=True)]

    class Clock(TrainerCallback):
        ends: ClassVar[list[float]] = []

        def on_train_begin(self, *args, **kwargs):
            self.ends.append(time.perf_counter())

        def on_step_end(self, *args, **kwargs):
            self.ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=load_model(policy),
            processing_class=load_tokenizer(policy),
            reward_funcs=reward,
            train_dataset=Dataset.from_list([dataclasses.asdict(row) for row in rows]),
            callbacks=[Clock()],
            args=GRPOConfig(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=PROMPTS * GROUP_SIZE,
                num_generations=GROUP_SIZE,
                max_completion_length=REGIMES[regime],
                generation_kwargs={"min_new_tokens": REGIMES[regime]} if regime == "fixed" else None,
                learning_rate=LEARNING_RATE,
                lr_scheduler_type="constant",
                beta=KL_COEF,
                loss_type="grpo",
                gradient_checkpointing=False,
                bf16=False,
                logging_steps=1,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                seed=seed,
            ),
        )
        trainer.train()
    logged = [entry for entry in trainer.state.log_history if "reward" in entry]
    return {
        "seconds": differences(Clock.ends),
        "rewards": [entry["reward"] for entry in logged],
        "lengths": [entry["completions/mean_length"] for entry in logged],
    }


SIDES = {"poise": run_poise, "trl": run_trl}


def differences(times: list[float]) -> list[float]:
    return [b - a for a, b in pairwise(times)]


def in_a_process(side: str, regime: str, steps: int, seed: int) -> dict[str, list[float]]:
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        command = [sys.executable, __file__, "--side", side, "--regime", regime, "--out", out.name]
        environment = {**os.environ, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        environment |= {"MASTER_PORT": "29541", "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
        command += ["--steps", str(steps), "--seed", str(seed)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{side} failed:\n{done.stderr[-3000:]}")
        return json.loads(Path(out.name).read_text())


def compare(regime: str, rounds: int, steps: int) -> dict[str, list[dict[str, list[float]]]]:
    runs: dict[str, list[dict[str, list[float]]]] = {side: [] for side in SIDES}
    for seed in range(rounds):
        for side in SIDES:
            runs[side].append(in_a_process(side, regime, steps, seed))
    step = {side: [statistics.median(run["seconds"][WARM_UP_STEPS:]) for run in runs[side]] for side in SIDES}
    ratios = [trl / poise for trl, poise in zip(step["trl"], step["poise"], strict=True)]
    print(f"{regime}: TRL / POISE = {statistics.median(ratios):.2f}, pairs {', '.join(f'{r:.2f}' for r in ratios)}")
    for side in SIDES:
        first, last = (
            statistics.fmean(x for run in runs[side] for x in run["rewards"][part])
            for part in (slice(0, 5), slice(-5, None))
        )
        length = statistics.fmean(x for run in runs[side] for x in run["lengths"])
        seconds = statistics.median(step[side])
        print(
            f"  {side:5} {seconds:.3f} s/step, reward {first:.3f} -> {last:.3f}, mean length {length:.1f}", flush=True
        )
    return runs


def plot(found: dict[str, dict[str, list[dict[str, list[float]]]]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    for axes, (regime, runs) in zip(figure.subplots(1, len(found)), found.items(), strict=True):
        for side, colour in zip(SIDES, ("tab:blue", "tab:orange"), strict=True):
            for number, run in enumerate(runs[side]):
                axes.plot(run["rewards"], color=colour, alpha=0.7, label=None if number else side)
        axes.set(title=regime, xlabel="step", ylabel="mean reward")
        axes.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--regime", choices=REGIMES, action="append")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        result = SIDES[options.side](options.regime[0], options.steps, options.seed)
        options.out.write_text(json.dumps(result))
        return
    found = {regime: compare(regime, options.rounds, options.steps) for regime in options.regime or REGIMES}
    if options.plot:
        plot(found, options.plot)


if __name__ == "__main__":
    main()
