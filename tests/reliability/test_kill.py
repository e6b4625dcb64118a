"""The kill test in short: a few random kills of a real evolution, and of one whose roles a language model carries."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from kill import PATIENT, Storm, differences, language_model, told_twice


def exertion(test: Callable[[Path], None]) -> Callable[[Path], None]:
    """Marks a test that evolves for real, again and again."""
    return pytest.mark.exhaustive(pytest.mark.timeout(3600)(test))


SMOKE: list[object] = ["--preset", "smoke", "--generations", 1, *PATIENT]


@exertion
def test_after_random_kills_the_archive_is_that_of_an_undisturbed_run(tmp_path: Path) -> None:
    storm = Storm(tmp_path, SMOKE, kills=5, seed=random.randrange(10**6))
    report = storm.run()
    print(report.summary())  # shown, with the seed, when the test fails
    assert report.faults == []
    assert len(report.kills) == 5
    assert report.equal == report.evolutions > 0


@exertion
def test_no_answer_of_a_language_model_is_paid_twice(tmp_path: Path) -> None:
    storm = Storm(tmp_path, list(SMOKE), kills=3, seed=random.randrange(10**6))
    with language_model(lambda: storm.report) as options:
        storm.arguments += options
        storm.run()
    print(storm.report.summary())
    assert storm.report.faults == []
    assert storm.report.questions > 0
    assert storm.report.equal == storm.report.evolutions > 0


def test_the_harness_sees_what_it_looks_for() -> None:
    expected = {"candidates": {"a": "1", "b": "2"}}
    assert differences(expected, {"candidates": {"a": "1", "b": "3", "c": "4"}}) == [
        "candidates has c, which nobody expected",
        "candidates: other content in b",
    ]
    assert differences(expected, {"candidates": {"a": "1"}}) == ["candidates lacks b"]
    once = "0:12  verify    GRPO  admitted after 11 checks  7.4 s\n0:20  train     GRPO  2 seeds in 21 s  20.7 s\n"
    failed = "0:20  train     GRPO  training ended with status 137; see train.log  3.0 s\n"
    assert told_twice([once, failed]) == []
    assert told_twice([once, failed, once]) == ["verify of GRPO: 2 times", "train of GRPO: 2 times"]
