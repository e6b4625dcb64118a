"""What a candidate costs beside its gate, training and evaluation: archive and search, Prefect, MLflow.

    python tests/benchmarks/bench_orchestration.py

Gate, trainings and evaluations are made up and take no time; all else is real: flow, server, archive on this disk, MLflow on
SQLite. Evolutions of two lengths give a slope, which is the cost of one more candidate, and an intercept, which is what a start
costs. Wall-clock seconds, and processor seconds of all processes together: the latter do not depend on what else the
machine does. Every trajectory has 60 steps, as on the first testbed, and every candidate two seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

VARIANTS = ("stages", "flow", "flow and MLflow")
PARENTS = 2
STEPS = 60


def run(variant: str, generations: int, folder: Path) -> None:
    """One evolution in this process."""
    import laboratory
    from laboratory import Laboratory, evolve, make_preset, open_evolution

    laboratory.STEPS = STEPS
    preset = make_preset(generations=generations, parents=PARENTS)
    with pytest.MonkeyPatch.context() as patch, Laboratory():
        if variant == "stages":
            evolve(open_evolution(folder, preset))
            return
        from flows.local import evolve_here
        from poise_core.tracking.sync import SyncReport, Tracker

        if variant == "flow":
            patch.setattr(Tracker, "sync_archive", lambda *_, **__: SyncReport())
        evolve_here(preset, folder, observer=lambda event: None, say=lambda text: None)


def measure(variant: str, generations: int) -> tuple[float, float, int]:
    """Wall-clock and processor seconds of one evolution in a process of its own, and its candidates."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        before, started = os.times(), time.monotonic()
        subprocess.run(
            [sys.executable, __file__, "--one", variant, "--generations", str(generations), "--folder", str(folder)],
            check=True,
        )
        wall, after = time.monotonic() - started, os.times()
        processor = sum(after[2:4]) - sum(before[2:4])  # of children that have ended, and of theirs
        from poise_core.archive import Archive

        candidates = len(Archive(folder / "archive").rows("candidates")) - 1  # the base policy is none
    return wall, processor, candidates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs=2, default=(1, 6), help="generations of the two evolutions")
    parser.add_argument("--one", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--generations", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        run(options.one, options.generations, options.folder)
        return
    print(f"load average {psutil.getloadavg()[0]:.1f} on {psutil.cpu_count()} cores")
    print("| | wall s per candidate | processor s per candidate | wall s per start |")
    print("|---|---|---|---|")
    results = {}
    for variant in VARIANTS:
        (wall, processor, few), (longer, more, many) = (measure(variant, length) for length in options.lengths)
        slope = (longer - wall) / (many - few)
        results[variant] = {"wall": slope, "processor": (more - processor) / (many - few), "start": wall - slope * few}
        values = " | ".join(f"{results[variant][key]:.2f}" for key in ("wall", "processor", "start"))
        print(f"| {variant} | {values} |", flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
