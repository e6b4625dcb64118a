"""Seconds per GRPO step and rewards beside TRL's ``GRPOTrainer``: same policy, prompts, group size, loss and number of steps.

    pip install -e '.[bench]' -c constraints.txt
    python tests/benchmarks/bench_trl.py [--rounds 3] [--steps 40] [--plot docs/images/trl_rewards.svg]
    python tests/benchmarks/bench_trl.py --model FOLDER --steps 12 --keep KEPT [--plot PLOT] [--prompts 8 --group 4 --length 16]

Without ``--model`` three regimes of a shipped policy, 32 prompts x 8 completions per step, one update per step, on all cores:

    fixed     every completion has 32 tokens; the reward is the share of "7" among them
    natural   completions end where the policy ends them, 32 tokens at most; the reward is correctness
    roomy     the same with a limit of 128 tokens, which few completions come near

With ``--model`` a real instruction model in float32, with its chat template, on problems of reasoning-gym (``--gym``).

Each side runs in a process of its own, in turn. Both take the prompts in the same order. Timed is a whole step, from the end of the
one before, without the first fifth; printed are medians, the ratio of every pair of runs, and mean rewards. With ``--keep`` the
result of a side and a seed is kept as JSON in that folder, and what is there is not run again.
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
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

Record = dict[str, list[float]]
"""Of every step of a run: seconds and processor seconds (cpu), mean reward, mean length; of TRL's also seconds of the rollout."""

KL_COEF = 0.01
MOMENTS = 0.95  # decay of Adam's second moment in POISE's trainer
REGIMES = {"fixed": 32, "natural": 32, "roomy": 128}  # name -> longest completion, tokens
MIXTURE = {"add2": 1.0, "sub2": 1.0, "mul1": 1.0, "chain4": 1.0}
TINY = {"prompts": 32, "group": 8, "rate": 3e-4}
GYM = {"letter_counting": {"min_words": 1, "max_words": 2}}
THRESHOLD = 0.01
"""Score of reasoning-gym from which a completion is right: it says the answer, also in a sentence, and ends within the limit."""


def share_of_sevens(completion: str) -> float:
    return completion.count("7") / REGIMES["fixed"]


@dataclasses.dataclass(frozen=True)
class Setting:
    """What both sides are given."""

    regime: str  # one of REGIMES, or "model"
    policy: str
    steps: int
    prompts: int
    group: int
    length: int  # of the longest completion, tokens
    rate: float
    temperature: float = 1.0
    template: str = "{problem}"
    gym: dict[str, Any] | None = None

    def problem_set(self) -> tuple[Any, Any]:
        """Return the specification of the problems, and how they become prompts."""
        from poise_core.config.protocol import EnvironmentSpec
        from poise_core.policies.prompt import PromptSpec

        if self.gym is None:
            return EnvironmentSpec(mixture=MIXTURE, train_problems=4096), None
        source = {"reasoning_gym": self.gym, "grader": {"threshold": THRESHOLD}}
        return EnvironmentSpec(source=source, train_problems=512), PromptSpec(chat=True, template=self.template)


def setting_of(options: argparse.Namespace, regime: str) -> Setting:
    given = {"prompts": options.prompts, "group": options.group, "length": options.length, "rate": options.rate}
    given = {name: value for name, value in given.items() if value is not None}
    if options.model:
        given = {"prompts": 8, "group": 4, "length": 16, "rate": 1e-5, **given}
        given |= {"temperature": options.temperature, "template": options.template, "gym": json.loads(options.gym)}
        return Setting(regime, str(options.model.resolve()), options.steps, **given)
    return Setting(regime, "arithmetic-a", options.steps, **{**TINY, "length": REGIMES[regime], **given})


def run_poise(setting: Setting, seed: int) -> Record:
    from poise_core.algorithms import algorithm_path
    from poise_core.candidate.loading import load_candidate
    from poise_core.config import ResourceSpec
    from poise_core.config.protocol import TrainingSpec
    from poise_core.environments import get_environment
    from poise_core.environments.base import Outcome
    from poise_core.environments.prompts import training_problems
    from poise_core.policies.locate import resolve_policy
    from poise_core.policies.model import PromptCodec, load_model
    from poise_core.training import trainer as module
    from poise_core.training.engine import Engine, start_processes

    policy = resolve_policy(setting.policy)
    training = TrainingSpec(
        steps=setting.steps,
        prompts_per_step=setting.prompts,
        group_size=setting.group,
        minibatches=1,
        inner_epochs=1,
        learning_rate=setting.rate,
        max_completion_length=setting.length,
        temperature=setting.temperature,
    )
    spec, prompt = setting.problem_set()
    codec, environment = PromptCodec.load(policy, prompt), get_environment(spec)
    if setting.regime == "fixed":
        codec = dataclasses.replace(codec, eos_ids=())  # nothing ends a completion, and reaching the limit is no fault
        sample = module.sample_in_batches

        def untruncated(*args, **kwargs):
            found = sample(*args, **kwargs)
            return dataclasses.replace(found, truncated=found.truncated & False)

        module.sample_in_batches = untruncated
        environment.verify = lambda _, completion: Outcome(share_of_sevens(completion), True)
    _, _, device = start_processes()
    # where lengths vary, micro-batches of like lengths save padding; TRL pads to the longest whatever its micro-batches are
    resources = ResourceSpec(micro_batch_size=256 if setting.regime == "fixed" else 64)
    trainer = module.Trainer(
        load_candidate(algorithm_path("grpo")).with_overrides(kl_coef=KL_COEF),
        Engine(load_model(policy).to(device), training, resources),
        load_model(policy).to(device).requires_grad_(False),
        codec,
        environment,
        training_problems(spec, seed),
        training,
        resources,
        seed,
        rank=0,
        device=device,
    )
    ends, rows = [clocks()], []
    for row in trainer.steps():
        ends.append(clocks())
        rows.append(row)
        print(f"step {len(rows)}: reward {row['reward_mean']:.3f}, {ends[-1][0] - ends[-2][0]:.1f} s", file=sys.stderr)
    lengths = [row["completion_length"] for row in rows]
    return {**differences(ends), "rewards": [row["reward_mean"] for row in rows], "lengths": lengths}


def run_trl(setting: Setting, seed: int) -> Record:
    from poise_core.environments import get_environment, verify_all
    from poise_core.environments.prompts import training_problems
    from poise_core.policies.locate import resolve_policy
    from poise_core.policies.model import PromptCodec, load_model

    policy = resolve_policy(setting.policy)
    spec, prompt = setting.problem_set()
    codec, environment = PromptCodec.load(policy, prompt), get_environment(spec)
    problems = training_problems(spec, seed)

    def graded(rows: Sequence[int], completions: Sequence[Sequence[int]]) -> list[float]:
        texts = texts_of(codec, completions)
        if setting.regime == "fixed":
            return [share_of_sevens(text) for text in texts]
        found = verify_all(environment, [problems[row] for row in rows], texts)
        ended = [ids[-1] in codec.eos_ids for ids in completions]  # what reaches the limit earns nothing on either side
        return [one.correctness * whole for one, whole in zip(found, ended, strict=True)]

    return train_with_trl(
        load_model(policy),
        codec.tokenizer,
        [codec.render(problem.prompt) for problem in problems],
        graded,
        max_steps=setting.steps,
        per_device_train_batch_size=setting.prompts * setting.group,
        num_generations=setting.group,
        max_completion_length=setting.length,
        generation_kwargs={"min_new_tokens": setting.length} if setting.regime == "fixed" else None,
        learning_rate=setting.rate,
        temperature=setting.temperature,
        beta=KL_COEF,
        gradient_checkpointing=False,
        bf16=False,
        seed=seed,
    )


def texts_of(codec: Any, completions: Sequence[Sequence[int]]) -> list[str]:
    """Return the texts of TRL's completions as POISE decodes them."""
    import torch

    codes = [torch.tensor([ids]) for ids in completions]
    return [codec.decode(ids, torch.ones_like(ids, dtype=torch.bool))[0] for ids in codes]


def train_with_trl(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    graded: Callable[[Sequence[int], Sequence[Sequence[int]]], list[float]],
    **settings: Any,
) -> Record:
    """Train by TRL's GRPOTrainer with GRPO's loss, on the prompts in their order.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        prompts: texts.
        graded: called with the numbers of the prompts and the tokens of their completions, returns the rewards.
        settings: further fields of ``GRPOConfig``.
    """
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    ends: list[tuple[float, float]] = []
    rollouts: list[float] = []

    def reward(completion_ids, row, **_):
        return graded(row, completion_ids)

    class Clock(TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            ends.append(clocks())

        def on_step_end(self, *args, **kwargs):
            ends.append(clocks())

    class Timed(GRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            started = time.perf_counter()
            found = super()._generate_and_score_completions(inputs)
            rollouts.append(time.perf_counter() - started)
            return found

    with tempfile.TemporaryDirectory() as folder:
        trainer = Timed(
            model=model,
            processing_class=tokenizer,
            reward_funcs=reward,
            train_dataset=Dataset.from_list([{"prompt": text, "row": row} for row, text in enumerate(prompts)]),
            callbacks=[Clock()],
            args=GRPOConfig(
                output_dir=folder,
                lr_scheduler_type="constant",
                adam_beta2=MOMENTS,
                loss_type="grpo",
                shuffle_dataset=False,
                logging_steps=1,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                **settings,
            ),
        )
        trainer.train()
    logged = [entry for entry in trainer.state.log_history if "reward" in entry]
    return {
        **differences(ends),
        "rollouts": rollouts,
        "rewards": [entry["reward"] for entry in logged],
        "lengths": [entry["completions/mean_length"] for entry in logged],
    }


SIDES = {"poise": run_poise, "trl": run_trl}


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def differences(times: Sequence[tuple[float, float]]) -> Record:
    """Wall and processor seconds between readings."""
    return {
        "seconds": [b[0] - a[0] for a, b in pairwise(times)],
        "cpu": [b[1] - a[1] for a, b in pairwise(times)],
    }


def in_a_process(side: str, setting: Setting, seed: int, keep: Path) -> Record:
    """Run a side with a seed, unless its result is kept already."""
    kept = keep / f"{setting.regime}-{side}-seed-{seed}.json"
    about = dataclasses.asdict(setting)
    if kept.exists():
        document = json.loads(kept.read_text())
        if document["setting"] != about:
            sys.exit(f"{kept} is of other settings: give another --keep")
        return document["record"]
    out = keep / f"{kept.stem}.part"
    command = [sys.executable, __file__, "--side", side, "--setting", json.dumps(about)]
    command += ["--seed", str(seed), "--out", str(out)]
    environment = {**os.environ, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    environment |= {"MASTER_PORT": "29541", "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    with (keep / f"{kept.stem}.log").open("w") as log:
        done = subprocess.run(command, env=environment, stdout=log, stderr=log, check=False)
    if done.returncode:
        sys.exit(f"{side} failed:\n{Path(log.name).read_text()[-3000:]}")
    out.replace(kept)
    return json.loads(kept.read_text())["record"]


def compare(setting: Setting, rounds: int, keep: Path) -> dict[str, list[Record]]:
    """Run both sides with every seed in turn, and print what came out."""
    runs: dict[str, list[Record]] = {side: [] for side in SIDES}
    for seed in range(rounds):
        for side in SIDES:
            runs[side].append(in_a_process(side, setting, seed, keep))
    first = min(5, setting.steps // 4)  # steps of warming up
    for clock in ("seconds", "cpu"):
        step = {side: [statistics.median(run[clock][first:]) for run in runs[side]] for side in SIDES}
        ratios = [trl / poise for trl, poise in zip(step["trl"], step["poise"], strict=True)]
        each = ", ".join(f"{side} {statistics.median(step[side]):.3f}" for side in SIDES)
        print(f"{setting.regime}: {'' if clock == 'seconds' else 'processor '}s/step: {each};", end=" ")
        print(f"TRL / POISE = {statistics.median(ratios):.2f}, pairs {', '.join(f'{r:.2f}' for r in ratios)}")
    for side in SIDES:
        before, after = (
            statistics.fmean(x for run in runs[side] for x in run["rewards"][part])
            for part in (slice(0, max(1, first)), slice(-max(1, first), None))
        )
        length = statistics.fmean(x for run in runs[side] for x in run["lengths"])
        print(f"  {side:5} reward {before:.3f} -> {after:.3f}, mean length {length:.1f}", flush=True)
    if setting.gym is not None:
        print_rewards(runs)
    return runs


def print_rewards(runs: dict[str, list[Record]]) -> None:
    """Print the mean reward of every step, and its standard deviation over the seeds."""
    print(f"| step | {' | '.join(SIDES)} |\n|{'---|' * (len(SIDES) + 1)}")
    for step in range(len(runs["trl"][0]["rewards"])):
        cells = []
        for side in SIDES:
            values = [run["rewards"][step] for run in runs[side]]
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.3f}{spread}")
        print(f"| {step + 1} | {' | '.join(cells)} |")


def plot(found: dict[str, dict[str, list[Record]]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(5.0, 10 / 3 * len(found)), 3.2), layout="constrained")
    for axes, (regime, runs) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        for side, colour in zip(SIDES, ("tab:blue", "tab:orange"), strict=True):
            curves = [run["rewards"] for run in runs[side]]
            steps = range(1, len(curves[0]) + 1)
            for curve in curves:
                axes.plot(steps, curve, color=colour, alpha=0.3, linewidth=0.8)
            means = [statistics.fmean(values) for values in zip(*curves, strict=True)]
            axes.plot(steps, means, color=colour, label=f"{side}, mean of {len(curves)} seeds")
        axes.set(title=regime, xlabel="step", ylabel="mean reward")
        axes.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="seeds")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--regime", choices=REGIMES, action="append")
    parser.add_argument("--model", type=Path, help="a folder with a real instruction model, in place of the regimes")
    parser.add_argument(
        "--gym", default=json.dumps(GYM), help="sets of reasoning-gym for it, with their options, as JSON"
    )
    parser.add_argument("--prompts", type=int, help="per step")
    parser.add_argument("--group", type=int, help="completions of a prompt")
    parser.add_argument("--length", type=int, help="longest completion, tokens")
    parser.add_argument("--temperature", type=float, default=1.0, help="of a real model")
    parser.add_argument("--template", default="{problem}", help="the user's message, for a real model")
    parser.add_argument("--rate", type=float, help="learning rate")
    parser.add_argument(
        "--keep", type=Path, help="folder with the results of every side and seed; the same command goes on"
    )
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--setting", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        from poise_core.policies.libraries import leave

        setting = Setting(**json.loads(options.setting))
        record = SIDES[options.side](setting, options.seed)
        options.out.write_text(json.dumps({"setting": dataclasses.asdict(setting), "record": record}))
        leave(0)
    regimes = ["model"] if options.model else options.regime or list(REGIMES)
    with tempfile.TemporaryDirectory() as folder:
        keep = options.keep or Path(folder)
        keep.mkdir(parents=True, exist_ok=True)
        found = {regime: compare(setting_of(options, regime), options.rounds, keep) for regime in regimes}
    if options.plot:
        plot(found, options.plot)


if __name__ == "__main__":
    main()
