"""Where the time of one seed of a preset goes, and by how much two checkouts differ.

    python tests/benchmarks/bench_step.py [--preset laptop] [--algorithm grpo] [--steps 20]
    python tests/benchmarks/bench_step.py --against PATH_TO_OTHER_CHECKOUT [--rounds 3]
    python tests/benchmarks/bench_step.py --operators [--steps 3]

Trains one seed in a process of its own with one thread and evaluates the policy that comes of it. Timed are the steps after
the first two, without start-up, and one evaluation. Printed are user seconds of the processor, which other work on the machine
stretches less than the clock. With ``--against`` both checkouts run in turn, and medians and ratios are printed, of every
part and of a whole seed: all steps of the preset and one evaluation. With ``--operators`` torch's profiler tells how the
steps and the evaluation divide over groups of operators.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WARM_UP_STEPS = 2
PARTS = ("rollout", "update", "evaluation")
GROUPS = {  # group -> beginnings of operators' names; the first that fits
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "attention": ("aten::_scaled_dot_product", "aten::_flash_attention", "aten::_softmax"),
    "optimizer and gradients' norm": (
        "aten::_fused_adam",
        "Optimizer",
        "aten::linalg_vector_norm",
        "c10d",
        "aten::_foreach",
    ),
    "copies and cache": ("aten::cat", "aten::copy_", "aten::index", "aten::fill_", "aten::gather", "aten::masked"),
    "elementwise": (
        *("aten::mul", "aten::add", "aten::silu", "aten::neg", "aten::pow", "aten::mean", "aten::sum", "aten::div"),
        *("aten::rsqrt", "aten::exp", "aten::where", "aten::sub", "aten::sin", "aten::cos", "aten::_log_softmax"),
    ),
    "other operators": ("",),
}


def _user_seconds() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime


def _make_trainer(preset, algorithm: str, seed: int):
    from poise_core.algorithms import algorithm_path
    from poise_core.candidate.loading import load_candidate
    from poise_core.environments import get_environment
    from poise_core.environments.prompts import training_problems
    from poise_core.policies.locate import resolve_policy
    from poise_core.policies.model import PromptCodec, load_model
    from poise_core.training.engine import Engine, start_processes
    from poise_core.training.trainer import Trainer

    protocol = preset.protocol
    rank, _, device = start_processes()
    policy = resolve_policy(protocol.policy)
    return Trainer(
        load_candidate(algorithm_path(algorithm)),
        Engine(load_model(policy, protocol.model).to(device), protocol.training, preset.resources),
        load_model(policy, protocol.model).to(device).requires_grad_(False),
        PromptCodec.load(policy, protocol.prompt),
        get_environment(protocol.environment),
        training_problems(protocol.environment, seed),
        protocol.training,
        preset.resources,
        seed,
        rank=rank,
        device=device,
    )


def measure(preset_name: str, algorithm: str, steps: int, seed: int, operators: bool) -> dict[str, float]:
    """User and wall seconds of a step's parts and of one evaluation, in this process; prints the operators if asked to."""
    import torch

    from poise_core.config import load_preset
    from poise_core.evaluation.evaluate import evaluate_policy
    from poise_core.policies.model import save_policy

    torch.set_num_threads(1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_PORT": port, "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({name: str(value) for name, value in group.items()})
    preset = load_preset(preset_name)
    trainer = _make_trainer(preset, algorithm, seed)
    rollout, spent = trainer._rollout, [0.0]

    def timed():
        started = _user_seconds()
        batch = rollout()
        spent[0] += _user_seconds() - started
        return batch

    trainer._rollout = timed
    rows = trainer.steps()
    for _ in range(WARM_UP_STEPS):
        next(rows)
    spent[0] = 0.0

    def train() -> list[dict[str, float]]:
        return [next(rows) for _ in range(steps)]

    if operators:
        _print_operators(f"{steps} steps", train)
    started, clock = _user_seconds(), time.perf_counter()
    trajectory = [] if operators else train()
    result = {"step": (_user_seconds() - started) / steps, "step_wall": (time.perf_counter() - clock) / steps}
    result |= {"rollout": spent[0] / steps, "update": result["step"] - spent[0] / steps}
    result["tokens"] = sum(row["tokens"] for row in trajectory)
    result["steps"] = preset.protocol.training.steps
    with tempfile.TemporaryDirectory() as name, trainer.engine.whole_model() as model:
        folder = Path(name)
        save_policy(model, trainer.codec, folder)
        if operators:
            _print_operators("one evaluation", lambda: evaluate_policy(folder, preset.protocol, "search", seed))
            return result
        started, clock = _user_seconds(), time.perf_counter()
        found = evaluate_policy(folder, preset.protocol, "search", seed)
        result |= {"evaluation": _user_seconds() - started, "evaluation_wall": time.perf_counter() - clock}
    return result | {"overall": found.overall}


def _print_operators(what: str, run) -> None:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        run()
    groups: dict[str, float] = dict.fromkeys(GROUPS, 0.0)
    calls = 0
    for event in profiled.key_averages():
        name = next(name for name, starts in GROUPS.items() if event.key.startswith(starts))
        groups[name] += event.self_cpu_time_total
        calls += event.count
    total = sum(groups.values())
    print(f"{what}: {calls} operator calls", flush=True)
    for name, value in sorted(groups.items(), key=lambda pair: -pair[1]):
        print(f"  {name:32s} {value / total:5.0%}", flush=True)


def run_in(checkout: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Measure a checkout in a new process."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", "--preset", arguments.preset]
    command += ["--algorithm", arguments.algorithm, "--steps", str(arguments.steps), "--seed", str(arguments.seed)]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"measuring {checkout} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _seed_seconds(found: dict[str, float]) -> float:
    return found["steps"] * found["step"] + found["evaluation"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="laptop")
    parser.add_argument("--algorithm", default="grpo")
    parser.add_argument("--steps", type=int, default=20, help="timed steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--against", type=Path, help="root of another checkout of this project")
    parser.add_argument("--operators", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child or arguments.operators:
        from poise_core.policies.libraries import leave

        given = (arguments.preset, arguments.algorithm, arguments.steps, arguments.seed)
        found = measure(*given, operators=arguments.operators)
        if arguments.child:
            print(json.dumps(found), flush=True)
        leave(0)
    here = Path(__file__).resolve().parents[2]
    checkouts = [here] if arguments.against is None else [arguments.against.resolve(), here]
    runs: dict[Path, list[dict[str, float]]] = {checkout: [] for checkout in checkouts}
    for _ in range(arguments.rounds):
        for checkout in checkouts:
            found = run_in(checkout, arguments)
            runs[checkout].append(found)
            print(f"{checkout}: " + ", ".join(f"{key} {value:.3f}" for key, value in found.items()), flush=True)
    rows = [("a step", "step"), *((f"{part}", part) for part in PARTS)]
    columns = {name: [[found[key] for found in runs[checkout]] for checkout in checkouts] for name, key in rows}
    columns["a whole seed"] = [[_seed_seconds(found) for found in runs[checkout]] for checkout in checkouts]
    for name, values in columns.items():
        line = f"{name:14s}" + "".join(f"{statistics.median(part):10.3f} s" for part in values)
        if len(values) == 2:
            ratios = [before / after for before, after in zip(*values, strict=True)]
            line += f"   ratio {statistics.median(ratios):.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})"
        print(line)


if __name__ == "__main__":
    main()
