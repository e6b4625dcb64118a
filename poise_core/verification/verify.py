"""Verifying a file in a confined child process; the caller's process never executes candidate code."""

from __future__ import annotations

import json
import os
import secrets
import selectors
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from poise_core.failures import FailureKind, InfrastructureError
from poise_core.verification.report import CheckResult, VerificationReport
from poise_core.verification.sandbox import Limits, confined_command, end_process_tree

MEMORY_BYTES = 4 << 30
OUTPUT_BYTES = 1 << 20  # of what the worker writes, more is dropped
READ_BYTES = 1 << 20  # of the file, more is not read: check 1 refuses it anyway


def verify_file(
    path: Path,
    *,
    name: str | None = None,
    timeout_seconds: float = 60,
    known_fingerprints: Mapping[str, str] = {},
    folder: Path | None = None,
    static: bool = True,
) -> VerificationReport:
    """Run the gate on a candidate file in a confined child process; never raises for a bad candidate.

    Args:
        path: the candidate.
        name: how the report calls it; the file's stem by default.
        timeout_seconds: wall time of the whole gate, process start included.
        known_fingerprints: fingerprint -> id of the candidates that are archived already.
        folder: where ``verification.json`` is written, if given.
        static: False leaves the language check out, for tests of the process layer.

    Raises:
        InfrastructureError: the machine failed: the file cannot be read, or the worker did not start.
    """
    started = time.monotonic()
    name = name or path.stem
    try:
        with path.open("rb") as handle:
            source = handle.read(READ_BYTES).decode("utf-8", "replace")
    except OSError as error:
        raise InfrastructureError(f"{path} cannot be read: {error}") from error
    nonce = secrets.token_hex(16)
    job = {
        "nonce": nonce,
        "source": source,
        "name": name,
        "known_fingerprints": dict(known_fingerprints),
        "static": static,
    }
    confined = confined_command(
        [sys.executable, "-I", "-m", "poise_core.verification.worker"],
        env={"OMP_NUM_THREADS": "1"},
        limits=Limits(wall_seconds=timeout_seconds, memory_bytes=MEMORY_BYTES, file_bytes=1 << 20),
        loopback=False,
    )
    ended = _run_worker(confined.argv, confined.env, json.dumps(job).encode(), started + timeout_seconds)
    report = _read_report(ended, nonce, name, source, timeout_seconds)
    report = replace(report, confinement=confined.granted, seconds=time.monotonic() - started)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / "verification.json.partial"
        partial.write_text(report.to_json() + "\n")
        os.replace(partial, folder / "verification.json")
    return report


class _Ended:
    """What is left of a worker process."""

    def __init__(self, output: bytes, errors: bytes, code: int | None) -> None:
        self.output, self.errors, self.code = output, errors, code  # code None: ended by the time limit


def _run_worker(argv: list[str], env: dict[str, str], job: bytes, deadline: float) -> _Ended:
    try:
        process = subprocess.Popen(
            argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
    except OSError as error:
        raise InfrastructureError(f"the verification process did not start: {error}") from error
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    kept = {process.stdout: bytearray(), process.stderr: bytearray()}
    pending = memoryview(job)
    timed_out = False
    try:
        with selectors.DefaultSelector() as selector:
            for stream in (process.stdin, *kept):
                os.set_blocking(stream.fileno(), False)
            selector.register(process.stdin, selectors.EVENT_WRITE)
            for stream in kept:
                selector.register(stream, selectors.EVENT_READ)
            while selector.get_map():
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    timed_out = True
                    break
                for key, _ in selector.select(min(remaining, 0.5)):
                    if key.fileobj is process.stdin:
                        try:
                            pending = pending[os.write(key.fd, pending[:65536]) :]
                        except BrokenPipeError:
                            pending = pending[:0]
                        if not pending:
                            selector.unregister(process.stdin)
                            process.stdin.close()
                        continue
                    chunk = os.read(key.fd, 65536)
                    stored = kept[key.fileobj]  # type: ignore[index]
                    stored += chunk[: OUTPUT_BYTES - len(stored)]
                    if not chunk:
                        selector.unregister(key.fileobj)
        if not timed_out:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                timed_out = True
    finally:
        end_process_tree(process.pid, grace_seconds=0.0)
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()
    return _Ended(bytes(kept[process.stdout]), bytes(kept[process.stderr]), None if timed_out else process.returncode)


def _read_report(ended: _Ended, nonce: str, name: str, source: str, timeout_seconds: float) -> VerificationReport:
    checks: list[CheckResult] = []
    running = ""
    for line in ended.output.decode("utf-8", "replace").splitlines():
        if not line.startswith(nonce + " "):
            continue
        kind, value = json.loads(line[len(nonce) :])
        if kind == "report":
            return VerificationReport.from_json(value)
        if kind == "started":
            running = value
        else:
            checks.append(CheckResult(**value))
            running = ""
    if not running and not checks:
        detail = ended.errors.decode("utf-8", "replace").strip().splitlines()
        raise InfrastructureError(
            f"the verification process ended before its first check: {detail[-1] if detail else ended.code}"
        )
    failure, message = _why_ended(ended, timeout_seconds)
    return _incomplete(name, source, [*checks, _ended_check(running, message)], failure)


def _why_ended(ended: _Ended, timeout_seconds: float) -> tuple[FailureKind, str]:
    if ended.code is None:
        return FailureKind.TIMED_OUT, (
            f"the candidate did not finish within {timeout_seconds:g} s; use torch operations instead of loops and "
            "bound their sizes"
        )
    return FailureKind.REJECTED, (
        f"the process that ran the candidate ended with status {ended.code}; remove whatever ends or kills the process"
    )


def _ended_check(name: str, message: str) -> CheckResult:
    return CheckResult(name or "report", "The check runs to its end within the limits.", False, message, 0.0)


def _incomplete(name: str, source: str, checks: list[CheckResult], failure: FailureKind) -> VerificationReport:
    from poise_core.candidate import source_digest

    digest: Any = source_digest(source)
    return VerificationReport(name, digest, False, tuple(checks), failure=failure)
