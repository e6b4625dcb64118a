"""Where one ``poise evolve`` spends its time, and how much memory its processes take together.

    python tests/benchmarks/bench_evolve.py [--preset laptop] [--run-dir DIR]

Runs an evolution in a new directory and reads what it recorded: Prefect's task runs, the trajectories' seconds, the
evaluations' seconds. Two candidates are in work side by side, so what stages take adds up to more than the wall clock;
the last column is the share of that sum. Orchestration is the time in which no task runs, the command's start and end
included. The archive's time is measured by appending the run's rows to an empty one.
"""

from __future__ import annotations

import argparse
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from datetime import datetime
from pathlib import Path

import psutil

from poise_core.archive import TABLES, Archive

POISE = Path(sys.executable).parent / "poise"
Span = tuple[float, float]  # seconds since the epoch


class MemoryWatch(threading.Thread):
    """Samples what a process and its descendants hold, pages they share counted once; ``peak`` in bytes."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._process, self.peak = psutil.Process(pid), 0

    def run(self) -> None:
        while self._process.is_running():
            total = 0
            try:
                for process in [self._process, *self._process.children(recursive=True)]:
                    try:
                        total += process.memory_full_info().pss
                    except psutil.Error:
                        continue
            except psutil.Error:
                return
            self.peak = max(self.peak, total)
            time.sleep(0.5)


def evolve(preset: str, folder: Path) -> tuple[float, int]:
    started = time.monotonic()
    process = subprocess.Popen([POISE, "evolve", "--preset", preset, "--run-dir", folder])
    watch = MemoryWatch(process.pid)
    watch.start()
    status = process.wait()
    if status:
        sys.exit(f"poise evolve ended with status {status}")
    return time.monotonic() - started, watch.peak


def task_spans(folder: Path) -> dict[str, list[Span]]:
    """Stage -> when its task runs ran."""
    stages = {
        "verify": "gate",
        "train": "training",
        "evaluate": "evaluation",
        "update": "MLflow",
        "reflect": "reflection",
        "select": "selection and proposals",
        "propose": "selection and proposals",
        "screen": "selection and proposals",
        "implement": "selection and proposals",
        "show": "reports",
    }
    spans: dict[str, list[Span]] = defaultdict(list)
    with sqlite3.connect(f"file:{folder}/prefect/prefect.db?mode=ro", uri=True) as database:
        for name, *times in database.execute("select name, start_time, end_time from task_run"):
            if stage := stages.get(name.split()[0]):
                start, end = (datetime.fromisoformat(moment).timestamp() for moment in times)
                spans[stage].append((start, end))
    return spans


def covered(spans: list[Span]) -> float:
    """Seconds in which at least one span runs."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def seconds_of_appends(archive: Archive, folder: Path) -> float:
    """How long the archive takes to store all that it holds, part by part."""
    copy, total = Archive(folder), 0.0
    for name, table in TABLES.items():
        parts: dict[tuple[str, ...], list[dict[str, object]]] = defaultdict(list)
        for row in archive.rows(name):
            own = {key: value for key, value in row.items() if key not in ("row_key", "content_digest")}
            parts[tuple(str(row[key]) for key in table.part_keys)].append(own)
        for rows in parts.values():
            started = time.perf_counter()
            copy.append(name, rows)
            total += time.perf_counter() - started
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="laptop")
    parser.add_argument("--run-dir", type=Path, help="new; by default a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.run_dir or Path(temporary) / "run"
        if folder.exists():
            sys.exit(f"{folder} exists; the benchmark needs a new run directory")
        wall, peak = evolve(options.preset, folder)
        archive = Archive(folder / "archive")
        steps = archive.read("trajectories", ["seconds_rollout", "seconds_update"])
        rollout, update = (sum(steps[name].to_pylist()) for name in steps.column_names)
        spans = task_spans(folder)
        busy = {stage: sum(end - start for start, end in spans[stage]) for stage in spans}
        busy["training: rollout"], busy["training: update"] = rollout, update
        busy["training: start, checkpoints, policies"] = busy.pop("training") - rollout - update
        busy["orchestration"] = wall - covered([span for all_of_stage in spans.values() for span in all_of_stage])
        stored = seconds_of_appends(archive, Path(temporary) / "copy")
    total = sum(busy.values())
    print(f"\nwall {wall:.0f} s, peak memory {peak / 2**30:.2f} GB; of it in stages, side by side:\n")
    print("| stage | seconds | share |\n|---|---|---|")
    for stage, seconds in sorted(busy.items(), key=lambda item: -item[1]):
        print(f"| {stage} | {seconds:.1f} | {seconds / total:.0%} |")
    print(f"\nthe archive's appends, part of the stages above: {stored:.2f} s")


if __name__ == "__main__":
    main()
