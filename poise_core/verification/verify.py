"""Verifying a file in a confined child process; the caller's process never executes candidate code."""

from __future__ import annotations

import contextlib
import json
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from poise_core.candidate.identity import UnreadableCandidate, read_candidate, source_digest
from poise_core.failures import FailureKind, InfrastructureError
from poise_core.files import write_atomically
from poise_core.sandbox.command import GRANTED, Limits, confined_command, has_private_scratch
from poise_core.sandbox.confine import SETUP_FAILED, WALL_TIME_OVER
from poise_core.sandbox.pipes import Finished, run_until
from poise_core.sandbox.run import require_own_network
from poise_core.verification.report import ANY_TRAINING, PROBE_SEED_BITS, CheckResult, Conditions, VerificationReport

MEMORY_BYTES = 2 << 30  # importing torch takes 0.2 GiB of it
ADDRESS_BYTES = 32 << 30  # a CUDA build of torch maps several GiB that it never touches
FILE_BYTES = 1 << 20
SCRATCH_BYTES = 16 << 20
OUTPUT_BYTES = 1 << 20  # kept of what the worker writes
MACHINE_SHARE = 0.25  # of the time limit; with less processor time than that, a timeout is the machine's fault

KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)
"""Statuses of a killed process. Another process may have killed it, so it is tried again; a candidate's own fault recurs."""


def verify_file(
    path: Path,
    *,
    name: str | None = None,
    timeout_seconds: float = 60,
    known_fingerprints: Mapping[str, str] | None = None,
    probe_seed: int | None = None,
    conditions: Conditions = ANY_TRAINING,
    folder: Path | None = None,
    static: bool = True,
    keep_going: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    known_programs: Mapping[str, str] | None = None,
) -> VerificationReport:
    """Run the gate on a candidate file in a confined child process; never raises for a bad candidate.

    Args:
        path: the candidate.
        name: the candidate's name in the report; by default the file's stem.
        timeout_seconds: wall time of the whole gate, process start included.
        known_fingerprints: fingerprint -> candidate id, for archived candidates.
        probe_seed: of the probes that are drawn, to repeat a verdict; by default the operating system draws it.
        conditions: of the training that it is for; by default any group size, length and number of steps.
        folder: where ``verification.json`` is written, if given.
        static: False leaves out the check `language` and gives the candidate all built-ins, for tests of the process layer.
        keep_going: run the checks after a decisive one that failed, too, for an author who wants all findings at once.
        should_stop: polled; the process is ended when it returns True.
        known_programs: ``program_digest`` -> candidate id, for archived candidates; the same program is refused even where
            its mechanisms do not show in its fingerprint.

    Raises:
        Cancelled: ``should_stop`` returned True.
        InfrastructureError: the file cannot be read, the worker does not start, or the machine fails in another way.
    """
    started = time.monotonic()
    name = name or path.stem
    try:
        source = read_candidate(path)
    except OSError as error:
        raise InfrastructureError(f"{path} cannot be read: {error.strerror}") from error
    except UnreadableCandidate as error:
        text = error.content.decode("utf-8", "replace")
        report = _incomplete(name, text, [], "language", str(error), FailureKind.REJECTED)
    else:
        seed = secrets.randbits(PROBE_SEED_BITS) if probe_seed is None else probe_seed
        known = dict(known_fingerprints or {}), dict(known_programs or {})
        job = _Job(source, name, timeout_seconds, *known, static, seed, conditions, keep_going)
        report = _verify_source(job, started + timeout_seconds, should_stop)
    report = replace(report, seconds=time.monotonic() - started)
    if folder is not None:
        _store(report, folder)
    return report


@dataclass(frozen=True)
class _Job:
    """The candidate's text and the settings of its verification."""

    source: str
    name: str
    timeout_seconds: float
    known_fingerprints: Mapping[str, str]
    known_programs: Mapping[str, str]
    static: bool
    probe_seed: int
    conditions: Conditions = ANY_TRAINING
    keep_going: bool = False
    numbers: bool = False  # measure the candidate instead of judging it
    nonce: str = field(default_factory=lambda: secrets.token_hex(16))  # begins every line that the worker writes


def _verify_source(job: _Job, deadline: float, should_stop: Callable[[], bool]) -> VerificationReport:
    if has_private_scratch():
        return _verify_with(job, deadline, should_stop, [])
    with tempfile.TemporaryDirectory(prefix="poise-gate-", ignore_cleanup_errors=True) as scratch:
        return _verify_with(job, deadline, should_stop, [Path(scratch)])


def measure_source(
    source: str, *, name: str, timeout_seconds: float = 60, should_stop: Callable[[], bool] = lambda: False
) -> str:
    """What ``poise_core.verification.harness.numbers`` measures of a candidate, in a confined child process; never raises for a bad
    candidate, whose fault is then the text.

    Raises:
        Cancelled: ``should_stop`` returned True.
        InfrastructureError: the process cannot be started or confined.
    """
    job = _Job(source, name, timeout_seconds, {}, {}, True, 0, numbers=True)
    deadline = time.monotonic() + timeout_seconds
    if has_private_scratch():
        finished, _ = _run(job, deadline, should_stop, [])
    else:
        with tempfile.TemporaryDirectory(prefix="poise-gate-", ignore_cleanup_errors=True) as scratch:
            finished, _ = _run(job, deadline, should_stop, [Path(scratch)])
    for line in finished.output.decode("utf-8", "replace").splitlines():
        if line.startswith(job.nonce + " "):
            with contextlib.suppress(ValueError):
                kind, value = json.loads(line[len(job.nonce) :])
                if kind == "numbers":
                    return str(value)
    return _why_it_ended(finished.status, timeout_seconds)[1]


def _verify_with(
    job: _Job, deadline: float, should_stop: Callable[[], bool], writable: list[Path]
) -> VerificationReport:
    finished, measures = _run(job, deadline, should_stop, writable)
    report = _read_report(finished, job.nonce, job.name, job.source, job.timeout_seconds, job.static)
    granted = dict(measures)
    if granted["system calls"] == "granted":
        granted["process limit"] = "granted"  # the worker refuses itself new processes, also as root
    return replace(
        report,
        candidate_name=job.name,
        source_digest=source_digest(job.source),
        confinement=granted,
        probe_seed=job.probe_seed,
        conditions=job.conditions,
    )


def _run(
    job: _Job, deadline: float, should_stop: Callable[[], bool], writable: list[Path]
) -> tuple[Finished, Mapping[str, str]]:
    """The worker's end, and the measures of confinement that it had."""
    confined = confined_command(
        [sys.executable, "-I", "-m", "poise_core.verification.worker"],
        writable=writable,
        env={"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        limits=Limits(
            wall_seconds=job.timeout_seconds,
            cpu_seconds=job.timeout_seconds + 1,
            memory_bytes=MEMORY_BYTES,
            address_bytes=ADDRESS_BYTES,
            file_bytes=FILE_BYTES,
            processes=64,
            scratch_bytes=SCRATCH_BYTES,
        ),
        loopback=False,
    )
    measures = require_own_network(confined.granted, "verification")
    given = json.dumps(asdict(job)).encode()
    try:
        finished = run_until(confined, given, deadline, OUTPUT_BYTES, should_stop)
        if finished.status in KILLED:
            again = time.monotonic() + job.timeout_seconds
            finished = run_until(confined, given, again, OUTPUT_BYTES, should_stop)
    except OSError as error:
        raise InfrastructureError(f"the verification process does not start: {error}") from error
    if finished.status == -signal.SIGKILL and measures["process namespace"] == GRANTED:
        # the launcher itself, which is outside the namespace that the candidate sees, and takes next to no memory
        raise InfrastructureError("the process that confines the gate was killed twice, which no candidate can do")
    return finished, measures


def _read_report(
    finished: Finished, nonce: str, name: str, source: str, timeout_seconds: float, static: bool = False
) -> VerificationReport:
    checks: list[CheckResult] = []
    running = ""
    for line in finished.output.decode("utf-8", "replace").splitlines():
        if not line.startswith(nonce + " "):
            continue
        try:
            kind, value = json.loads(line[len(nonce) :])
            if kind == "report":
                return VerificationReport.from_json(value)
            if kind == "started":
                running = str(value)
            else:
                checks.append(CheckResult(**value))
                running = ""
        except (ValueError, TypeError):
            break  # the process ended in the middle of a line
    if not running and not checks:
        lines = finished.errors.decode("utf-8", "replace").strip().splitlines()
        detail = lines[-1] if lines else f"status {finished.status}"
        raise InfrastructureError(f"the verification process ended before its first check: {detail}")
    if finished.status is None and static and finished.cpu_seconds < MACHINE_SHARE * timeout_seconds:
        # no code in the candidate language can wait, so the machine did not run the process
        raise InfrastructureError(
            f"the machine is too busy: the verification got {finished.cpu_seconds:.1f} s of processor time in {timeout_seconds:g} s"
        )
    failure, message = _why_it_ended(finished.status, timeout_seconds)
    return _incomplete(name, source, checks, running or "report", message, failure)


def _why_it_ended(status: int | None, timeout_seconds: float) -> tuple[FailureKind, str]:
    if status in (None, WALL_TIME_OVER, 128 + signal.SIGXCPU):
        return FailureKind.TIMED_OUT, (
            f"the candidate did not finish within {timeout_seconds:g} s; use torch operations instead of loops, and bound "
            "their sizes"
        )
    if status == 128 + signal.SIGKILL:
        return FailureKind.OUT_OF_MEMORY, "the kernel killed the process, most likely for memory; use smaller tensors"
    if status == SETUP_FAILED:
        raise InfrastructureError("the verification process could not be confined")
    return FailureKind.REJECTED, (
        f"the process that ran the candidate ended with status {status}; remove what ends or crashes the interpreter"
    )


def _incomplete(
    name: str, source: str, checks: list[CheckResult], stopped_in: str, message: str, failure: FailureKind
) -> VerificationReport:
    last = CheckResult(stopped_in, "The check runs to its end within the limits.", False, message, 0.0)
    return VerificationReport(name, source_digest(source), False, (*checks, last), failure=failure)


def _store(report: VerificationReport, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "verification.json", report.to_json() + "\n")
    except OSError as error:
        raise InfrastructureError(f"{folder}: the verification report cannot be written: {error.strerror}") from error
