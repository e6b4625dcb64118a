"""The gate as its users call it: a file in, a report out, whatever the file does."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from confinement_levels import LEVELS
from gate_fixtures import BASE, FOREVER, edited, written

from poise_core.algorithms import algorithm_path
from poise_core.candidate.identity import MAX_BYTES
from poise_core.candidate.loading import source_digest
from poise_core.failures import Cancelled, FailureKind, InfrastructureError
from poise_core.sandbox import command as sandbox
from poise_core.sandbox.command import GRANTED
from poise_core.sandbox.pipes import Finished
from poise_core.verification import CheckResult, VerificationReport, verify, verify_file
from poise_core.verification.gate import CHECKS

WEAKER = [level for level in LEVELS if level not in ("namespaces", "bubblewrap")]


@pytest.mark.slow
def test_a_sound_candidate_gets_a_full_report(tmp_path: Path) -> None:
    report = verify_file(written(tmp_path, BASE), name="child-1", folder=tmp_path / "out")
    assert report.admitted, report.message
    assert report.candidate_name == "child-1"
    assert report.source_digest == source_digest(BASE)
    assert [check.name for check in report.checks] == [check.name for check in CHECKS]
    assert all(check.proves and check.seconds >= 0 and check.message == "" for check in report.checks)
    assert report.failure is None
    assert report.duplicate_of is None
    assert report.fingerprint
    assert len(report.nearest) >= 19
    assert report.confinement["environment"] == GRANTED
    assert report.seconds > 0
    stored = (tmp_path / "out" / "verification.json").read_text()
    assert VerificationReport.from_json(stored) == report


@pytest.mark.slow
def test_an_archived_behaviour_is_a_duplicate(tmp_path: Path) -> None:
    grpo = algorithm_path("grpo")
    first = verify_file(grpo)
    assert first.admitted
    assert first.duplicate_of is None
    again = verify_file(grpo, known_fingerprints={first.fingerprint: "grpo-0123456789"})
    assert not again.admitted
    assert again.failure is FailureKind.DUPLICATE
    assert again.duplicate_of == "grpo-0123456789"
    assert (
        again.message
        == "novelty: it trains exactly as grpo-0123456789, which is archived already; change what it computes"
    )


@pytest.mark.slow
def test_a_rejected_candidate_names_line_and_remedy(tmp_path: Path) -> None:
    report = verify_file(written(tmp_path, edited(("import torch\n", "import os\n\nimport torch\n"))), folder=tmp_path)
    assert not report.admitted
    assert report.failure is FailureKind.REJECTED
    assert report.message.startswith(
        "language: line 5: importing os is not allowed; importable are collections.abc, dataclasses, math"
    )
    assert VerificationReport.from_json((tmp_path / "verification.json").read_text()) == report


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\xfe\x00", "not UTF-8 text (byte 0)"), (b"#" * (MAX_BYTES + 1), "more than 1048576 bytes")],
)
def test_what_is_no_text_is_refused_without_running_anything(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "child.py").write_bytes(content)
    report = verify_file(tmp_path / "child.py", folder=tmp_path)
    assert report.failure is FailureKind.REJECTED
    assert message in report.message
    assert report.confinement == {}


def test_a_missing_file_and_an_unwritable_folder_are_nobodys_failure(tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match=r"absent.py cannot be read: No such file"):
        verify_file(tmp_path / "absent.py")
    (tmp_path / "child.py").write_bytes(b"\xff")
    (tmp_path / "file").touch()
    with pytest.raises(InfrastructureError, match="the verification report cannot be written"):
        verify_file(tmp_path / "child.py", folder=tmp_path / "file" / "below")


NONCE = "0123"


def report_of(
    status: int | None, output: str = f'{NONCE} ["started", "finite"]\n', cpu: float = 60.0
) -> VerificationReport:
    """The report on a worker that ended with ``status`` in the finite check."""
    finished = Finished(output.encode(), b"", status, cpu)
    return verify._read_report(finished, NONCE, "child", BASE, 60.0, static=True)


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (None, FailureKind.TIMED_OUT, "did not finish within 60 s"),
        (124, FailureKind.TIMED_OUT, "did not finish within 60 s"),
        (152, FailureKind.TIMED_OUT, "did not finish within 60 s"),
        (137, FailureKind.OUT_OF_MEMORY, "the kernel killed the process"),
        (139, FailureKind.REJECTED, "ended with status 139"),
        (0, FailureKind.REJECTED, "ended with status 0"),
    ],
)
def test_how_the_worker_ended_decides_the_kind_of_failure(status: int | None, kind: FailureKind, message: str) -> None:
    report = report_of(status)
    assert not report.admitted
    assert report.failure is kind
    assert report.message.startswith("finite: ")
    assert message in report.message


@pytest.mark.slow
def test_a_worker_that_somebody_killed_is_asked_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever ends processes, the kernel or a person, a sound candidate must not be the one to pay for it."""
    run, kills = verify.run_until, [137, -9]

    def killed_once(*arguments: object) -> Finished:
        given = json.loads(arguments[1])  # type: ignore[call-overload]
        return (
            Finished(f'{given["nonce"]} ["started", "purity"]\n'.encode(), b"", kills.pop())
            if kills
            else run(*arguments)
        )  # type: ignore[arg-type]

    monkeypatch.setattr(verify, "run_until", killed_once)
    kills.pop()
    assert verify_file(written(tmp_path, BASE)).admitted
    kills[:] = [137, -9]
    report = verify_file(written(tmp_path, BASE))  # killed again: it needs too much memory
    assert (report.admitted, report.checks[-1].name) == (False, "purity")
    assert report.failure is FailureKind.OUT_OF_MEMORY


@pytest.mark.parametrize("namespace", [GRANTED, "not granted: refused"])
def test_a_launcher_that_is_killed_is_the_candidates_fault_only_where_it_could_be(
    namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process namespace of its own a candidate sees no launcher, so it was somebody else twice."""

    def killed(confined: object, given: bytes, *_: object) -> Finished:
        return Finished(f'{json.loads(given)["nonce"]} ["started", "purity"]\n'.encode(), b"", -9)

    monkeypatch.setattr(verify, "run_until", killed)
    granted = {"process namespace": namespace, "system calls": "not granted"}
    monkeypatch.setattr(verify, "require_own_network", lambda *_: granted)
    if namespace == GRANTED:
        for ask in (verify_file, lambda path: verify.measure_source(path.read_text(), name="child")):
            with pytest.raises(InfrastructureError, match="killed twice, which no candidate can do"):
                ask(written(tmp_path, BASE))
    else:
        assert verify_file(written(tmp_path, BASE)).failure is FailureKind.REJECTED


def test_checks_that_finished_before_the_end_are_kept() -> None:
    passed = '{"name": "interface", "proves": "p", "passed": true, "message": "", "seconds": 0.5}'
    output = f'{NONCE} ["started", "interface"]\n{NONCE} ["finished", {passed}]\n{NONCE} ["started", "finite"]\n'
    report = report_of(None, output)
    assert report.checks[0] == CheckResult("interface", "p", True, "", 0.5)
    assert [check.name for check in report.checks] == ["interface", "finite"]


def test_lines_without_the_nonce_are_not_results() -> None:
    forged = json.dumps(["report", VerificationReport("child", "0", True, ()).to_json()])
    assert report_of(0, f"{NONCE} {forged}\n").admitted
    assert not report_of(0, f'{NONCE} ["started", "finite"]\n9999 {forged}\n{forged}\n').admitted


@pytest.mark.parametrize(
    ("status", "output", "cpu", "message"),
    [
        (None, "", 60.0, "ended before its first check: status None"),
        (125, f'{NONCE} ["started", "finite"]\n', 60.0, "could not be confined"),
        (None, f'{NONCE} ["started", "finite"]\n', 3.0, "the machine is too busy: the verification got 3.0 s"),
    ],
)
def test_what_the_machine_did_is_an_infrastructure_error(
    status: int | None, output: str, cpu: float, message: str
) -> None:
    with pytest.raises(InfrastructureError, match=message):
        report_of(status, output, cpu)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"checks": 3}', '{"checks": [{"name": 1}], "nearest": [], "failure": null}']
)
def test_what_is_no_report_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  json's own error or ours
        VerificationReport.from_json(text)


@pytest.mark.slow
def test_a_worker_that_prints_does_not_confuse_the_report(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    shouting = edited(
        (
            "    return LossOutputs(token_loss=-surrogate)\n",
            "    print('x' * 100000)\n    return LossOutputs(token_loss=-surrogate)\n",
        )
    )
    report = verify_file(written(tmp_path, shouting), static=False)
    assert report.admitted, report.message


@pytest.mark.slow
@pytest.mark.parametrize("level", WEAKER)
def test_the_gate_works_at_every_level_of_confinement(
    level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a private /tmp torch found no folder for temporary files, and did not import."""
    monkeypatch.setattr(sandbox, "best_level", lambda: level)
    own = tmp_path / "tmp"  # other tests run gates at the same time
    own.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(own))
    report = verify_file(written(tmp_path, BASE))
    assert report.admitted, report.message
    assert report.confinement["process namespace"] != GRANTED
    assert list(own.glob("poise-gate-*")) == []


@pytest.mark.parametrize("variable", ["", "0", "1"])
def test_without_namespaces_and_filters_the_gate_runs_only_where_that_is_allowed(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = {**sandbox.probe_machine(), "user and network namespaces": "not here", "seccomp": "nor this"}
    monkeypatch.setattr(sandbox, "probe_machine", lambda: refused)
    monkeypatch.setattr(sandbox, "best_level", lambda: "landlock" if not refused["landlock"] else "plain")
    monkeypatch.setenv("POISE_ALLOW_SHARED_NETWORK", variable)
    if variable == "1":
        report = verify_file(written(tmp_path, BASE))
        assert report.admitted, report.message
        assert report.confinement["network"] == "not granted: not here; sharing the machine's was allowed"
        return
    with pytest.raises(
        InfrastructureError, match=r"^verification is refused.*\(not granted: not here\).*--allow-shared"
    ):
        verify_file(written(tmp_path, BASE))


SILENT = FOREVER.replace(
    "        pass\n", "        __import__('os').closerange(0, 1000)\n"
)  # no pipe says that it lives


@pytest.mark.slow
@pytest.mark.parametrize("source", [FOREVER, SILENT], ids=["loops", "loops with its pipes closed"])
def test_a_cancelled_verification_ends_within_five_seconds(source: str, tmp_path: Path) -> None:
    begun: list[float] = []

    def should_stop() -> bool:
        """Once the candidate's own code has used processor time, as well as can be seen from outside."""
        busy = [child for child in psutil.Process().children(recursive=True) if sum(child.cpu_times()[:2]) > 2.5]
        if busy and not begun:
            begun.append(time.monotonic())
        return bool(begun)

    with pytest.raises(Cancelled, match="stopped while a candidate was verified"):
        verify_file(written(tmp_path, source), static=False, folder=tmp_path, should_stop=should_stop)
    assert time.monotonic() - begun[0] < 5
    assert not (tmp_path / "verification.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "source",
    [FOREVER, pytest.param(SILENT, marks=pytest.mark.exhaustive)],
    ids=["loops", "loops with its pipes closed"],
)
def test_the_gate_takes_no_longer_than_its_limit(source: str, tmp_path: Path) -> None:
    report = verify_file(written(tmp_path, source), static=False, timeout_seconds=8)
    assert report.failure is FailureKind.TIMED_OUT
    assert 8 <= report.seconds < 10
