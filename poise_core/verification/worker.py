"""The process in which candidate code runs during verification, with a job on stdin and one JSON line per event on stdout.

``poise_core.verification.verify.verify_file`` starts it inside the sandbox. Every line begins with the job's
nonce, so that text which a candidate prints is not taken for a result.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import NoReturn

from poise_core.sandbox.seccomp import forbid_new_processes
from poise_core.verification.report import CheckResult, Conditions


def warm_up() -> None:
    """Import the libraries of the gate, and observe the known algorithms."""
    import torch

    torch.set_num_threads(1)
    import poise_core.verification.gate  # noqa: F401
    from poise_core.verification.checks.novelty import known_behaviours

    known_behaviours()


def run(arguments: Sequence[str] = ()) -> NoReturn:
    """Read the job, run the gate, and write the events."""
    job = json.loads(sys.stdin.buffer.read())
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # text that a candidate prints goes to stderr
    nonce = job["nonce"]

    def emit(kind: str, value: object) -> None:
        channel.write(f"{nonce} {json.dumps([kind, value])}\n")

    def on_check(event: CheckResult | str) -> None:
        emit("started", event) if isinstance(event, str) else emit("finished", asdict(event))

    warm_up()
    from poise_core.verification.gate import run_checks

    with contextlib.suppress(OSError):  # a machine without seccomp, which the report records
        forbid_new_processes()

    if job.get("numbers"):
        from poise_core.verification.harness import measured_text

        emit("numbers", measured_text(job["source"], job["name"]))
        channel.flush()
        os._exit(0)

    report = run_checks(
        job["source"],
        job["name"],
        known_fingerprints=job["known_fingerprints"],
        known_programs=job["known_programs"],
        probe_seed=job["probe_seed"],
        conditions=Conditions(**job["conditions"]),
        static=job["static"],
        keep_going=bool(job.get("keep_going")),
        on_check=on_check,
    )
    emit("report", report.to_json())
    channel.flush()
    os._exit(0)  # without the exit handlers that a candidate may have registered


if __name__ == "__main__":
    run()
