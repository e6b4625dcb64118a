"""What starting a process costs: forked from the server that has imported the libraries, against an interpreter of its own.

``OMP_NUM_THREADS=1 python tests/benchmarks/bench_start.py [REPEATS]`` verifies GRPO and trains the preset ``smoke`` for one step
and prints, in turn for each way, the seconds from the request to the gate's verdict and to the start of the first step, with
the processor time that the processes used, and what the server holds in memory while it waits.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from poise_core.algorithms import algorithm_path
from poise_core.config import load_preset
from poise_core.sandbox import warm
from poise_core.training.launcher import TrainingJob, train_candidate
from poise_core.verification import verify_file

PRESET = load_preset("smoke", ["protocol.training.steps=1"])


def processor_seconds() -> float:
    """Of this process, of what it has waited for, and of its fork server with what that has collected."""
    own = time.process_time() + sum(psutil.Process().cpu_times()[2:4])
    pid = warm.server_pid()
    if pid is None:
        return own
    server = psutil.Process(pid)
    while server.children():  # what has ended counts once the server has collected it
        time.sleep(0.01)
    return own + sum(server.cpu_times()[:4])


def gate() -> float:
    """Seconds to the verdict."""
    began = time.monotonic()
    report = verify_file(algorithm_path("grpo"))
    assert report.admitted, report.message
    return time.monotonic() - began


def training() -> float:
    """Seconds to the start of the first step; one seed of one step."""
    steps: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        job = TrainingJob(
            algorithm_path("grpo"), "grpo", Path(folder), PRESET.protocol, PRESET.resources, (PRESET.protocol.seeds[0],)
        )
        began = time.monotonic()

        def on_step(seed: int, row: dict[str, float]) -> None:
            steps.append(time.monotonic() - began - row["seconds_rollout"] - row["seconds_update"])

        train_candidate(job, on_step=on_step)
    return steps[0]


def measured(what: Callable[[], float], repeats: int) -> dict[str, list[tuple[float, float]]]:
    """Way -> (wall seconds, processor seconds) of every repeat; the ways take turns."""
    found: dict[str, list[tuple[float, float]]] = {"first fork": [], "fork": [], "program": []}
    for number in range(repeats + 1):
        for way in ("fork", "program") if number else ("fork",):
            os.environ["POISE_WARM"] = str(int(way == "fork"))
            before = processor_seconds()
            seconds = what()
            found[way if number else "first fork"].append((seconds, processor_seconds() - before))
    return found


def main() -> None:
    """Measure and print a table."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    print("| from the request to | way | wall s, median | least | processor s, median |")
    print("|---|---|---|---|---|")
    for name, what in (("the verdict of the gate", gate), ("the start of the first step of a training", training)):
        for way, pairs in measured(what, repeats).items():
            wall, processor = zip(*pairs, strict=True)
            print(
                f"| {name} | {way} | {statistics.median(wall):.2f} | {min(wall):.2f} | {statistics.median(processor):.2f} |"
            )
        memory = psutil.Process(warm.server_pid()).memory_full_info()
        print(f"| the server then: {memory.pss >> 20} MiB (PSS), {memory.rss >> 20} MiB resident | | | | |")
    print(f"\nload average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
