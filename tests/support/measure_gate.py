"""Measuring the time of the gate: ``python tests/support/measure_gate.py`` prints the tables of docs/verification.md.

It measures processor time, which depends little on other load. Each check runs in this process on every
known algorithm, best of five; the whole gate runs as its users call it, with all processes that it starts.
"""

from __future__ import annotations

import os
import resource
import statistics
import time

import torch

from poise_core.algorithms import algorithm_path, list_algorithms
from poise_core.verification import CheckResult, verify_file
from poise_core.verification.gate import CHECKS, run_checks

REPEATS = 5


def main() -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    names = list_algorithms()
    sources = {name: algorithm_path(name).read_text() for name in names}
    run_checks(sources["grpo"])
    best: dict[str, dict[str, float]] = {check.name: {} for check in CHECKS}
    for name, source in sources.items():
        for _ in range(REPEATS):
            began = [0.0]

            def on_check(event: CheckResult | str, began: list[float] = began, name: str = name) -> None:
                if isinstance(event, CheckResult):
                    best[event.name][name] = min(
                        time.process_time() - began[0], best[event.name].get(name, float("inf"))
                    )
                began[0] = time.process_time()

            run_checks(source, name, on_check=on_check)
    print("| check | median ms | slowest ms |")
    print("|---|---|---|")
    for check, seconds in best.items():
        values = sorted(1000 * value for value in seconds.values())
        slowest = max(seconds, key=lambda name: seconds[name])
        print(f"| {check} | {statistics.median(values):.0f} | {values[-1]:.0f} ({slowest}) |")
    totals = [1000 * sum(best[check][name] for check in best) for name in names]
    print(f"| all | {statistics.median(totals):.0f} | {max(totals):.0f} |")
    for how, warm in (("as a program of its own", "0"), ("forked", "1")):
        os.environ["POISE_WARM"] = warm
        walls, used = [], []
        assert verify_file(algorithm_path(names[0])).admitted  # what forks has imported its libraries afterwards
        for name in names[:REPEATS]:
            started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
            assert verify_file(algorithm_path(name)).admitted, name
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            walls.append(time.monotonic() - started)
            used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        # a fork is no child of ours, so its processor time is not counted
        spent = f"{statistics.median(used):.1f} s of processor time, " if warm == "0" else ""
        print(f"the whole gate {how}: {spent}{min(walls):.2f} s on the clock at best")


if __name__ == "__main__":
    main()
