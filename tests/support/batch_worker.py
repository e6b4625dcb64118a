"""The verification worker for many candidates: torch is imported once, then every candidate runs in a fork of its own.

Runs inside the sandbox, started by ``corpus_runner``. Reads jobs as JSON from stdin and writes for each one line: index,
wait status in the shell's convention or null at the time limit, and the worker's output. What is measured is the process
layer, so a fork takes the same limits as the real worker.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

from poise_core.sandbox.seccomp import forbid_new_processes
from poise_core.verification.checks.novelty import known_behaviours
from poise_core.verification.gate import run_checks
from poise_core.verification.report import CheckResult

SECONDS = 2.0  # of CPU time per candidate
OUTPUT_BYTES = 1 << 20


def _child(job: dict, writing: int) -> None:
    os.setsid()
    quiet = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(quiet, number)
    resource.setrlimit(resource.RLIMIT_CPU, (int(SECONDS) + 3, int(SECONDS) + 3))
    channel = os.fdopen(writing, "w", buffering=1)

    def on_check(event: CheckResult | str) -> None:
        kind, value = ("started", event) if isinstance(event, str) else ("finished", asdict(event))
        channel.write(f"{job['nonce']} {json.dumps([kind, value])}\n")

    forbid_new_processes()
    report = run_checks(job["source"], job["name"], static=job["static"], on_check=on_check)
    channel.write(f"{job['nonce']} {json.dumps(['report', report.to_json()])}\n")
    channel.flush()
    os._exit(0)


def _activity(pid: int) -> tuple[str, float]:
    """State letter and CPU seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _is_over(child: int, started: float, idle_since: list[float], used: list[float]) -> bool:
    """Whether a child has had its CPU time, or has waited for a second; a busy machine alone ends nothing."""
    state, cpu = _activity(child)
    now = time.monotonic()
    if state == "R" or cpu > used[0]:
        used[0], idle_since[0] = cpu, now
    return cpu >= SECONDS or now - idle_since[0] > 1.0 or now - started > 30 * SECONDS


def _run(job: dict) -> tuple[int | None, str]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            _child(job, writing)
        finally:
            os._exit(1)
    os.close(writing)
    output, over, started = bytearray(), False, time.monotonic()
    idle_since, used = [started], [0.0]
    while not over:
        ready, _, _ = select.select([reading], [], [], 0.1)
        if ready:
            chunk = os.read(reading, 65536)
            if not chunk:
                break
            output += chunk[: OUTPUT_BYTES - len(output)]
        else:
            over = _is_over(child, started, idle_since, used)
    os.close(reading)
    if over:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    text = output.decode("utf-8", "replace")
    if over:
        return None, text
    return (os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)), text


def main() -> None:
    """Run all jobs, one after the other."""
    jobs = json.load(sys.stdin)
    torch.set_num_threads(1)
    known_behaviours()
    run_checks(jobs[0]["warm_up"])
    for index, job in enumerate(jobs):
        status, output = _run(job)
        print(json.dumps([index, status, output]), flush=True)


if __name__ == "__main__":
    main()
