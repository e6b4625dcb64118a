"""Reports to the author of a file: everything to mend it by, and nothing that another folder or a slower machine changes."""

import dataclasses
import json

import pytest

from poise_core.agents.reports import STEPS_SHOWN, gate_report, training_report, without_folders
from poise_core.failures import CandidateFailure, FailureKind
from poise_core.verification import CheckResult, VerificationReport


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('File "/home/me/runs/a/candidates/x/candidate.py", line 3', 'File "candidate.py", line 3'),
        ("see /tmp/run/train.log: killed", "see train.log: killed"),
        ("a ratio of 3/4 and log/exp", "a ratio of 3/4 and log/exp"),
        ("https://arxiv.org/abs/1707.06347", "https://arxiv.org/abs/1707.06347"),
        ("divide by /, then go on", "divide by /, then go on"),
    ],
)
def test_folders_are_cut_off(text: str, told: str) -> None:
    assert without_folders(text) == told


def test_the_gates_sentences_stand_word_for_word_and_its_durations_do_not() -> None:
    checks = (CheckResult("language", "it is plain", False, "line 3: no <lambda>", 1.25),)
    report = VerificationReport("X", "0" * 64, False, checks, seconds=7.5, failure=FailureKind.REJECTED)
    slower = dataclasses.replace(report, seconds=99.0, confinement={"network": "refused"})

    def told(one: VerificationReport) -> str:
        return gate_report(CandidateFailure(FailureKind.REJECTED, "verify", one.message, one.to_json()))

    assert told(report) == told(slower)
    (check,) = json.loads(told(report))["checks"]
    assert check == {"name": "language", "proves": "it is plain", "passed": False, "message": "line 3: no <lambda>"}


def test_without_a_report_the_failure_itself_is_told() -> None:
    for detail, told in (("", "it hung"), ("Traceback: x", "Traceback: x"), ("[1]", "[1]")):
        assert gate_report(CandidateFailure(FailureKind.TIMED_OUT, "verify", "it hung", detail)) == told


def test_a_failed_training_is_told_with_its_last_steps_and_digest() -> None:
    steps = [{"step": float(n), "kl": 0.1 * n, "entropy": 0.3, "tokens": 100.0, "seconds_update": n} for n in range(15)]
    failure = CandidateFailure(FailureKind.KL_BLOWUP, "train", "KL is 1.4 nats per token", 'File "/a/b/candidate.py"')
    report = training_report(failure, {0: steps})
    lines = report.splitlines()
    assert lines[0] == "kl_blowup in train: KL is 1.4 nats per token"
    assert 'File "candidate.py"' in report
    assert "step entropy kl" in lines
    assert "14 0.3 1.4" in lines
    assert f"{14 - STEPS_SHOWN} 0.3 {0.1 * (14 - STEPS_SHOWN):.4g}" not in lines  # the last ones only
    assert "kl_peak = 1.4" in lines
    assert "seconds" not in report


def test_a_training_that_did_no_step_says_so() -> None:
    report = training_report(CandidateFailure(FailureKind.CRASHED, "train", "boom"), {})
    assert report == "crashed in train: boom\n\nNo step was finished."
