"""The hostile corpus: refused by the language check, and harmless without it."""

from __future__ import annotations

from pathlib import Path

import pytest
from corpus_runner import outcome, refused_by_language, run_all, run_alone, surroundings
from hostile_corpus import CORPUS, REFUSED, Hostile

# through the real gate; the whole corpus is a slow test
SAMPLE = ("parent_environ", pytest.param("daemon", marks=pytest.mark.slow))


def test_the_corpus_is_large_and_covers_every_family() -> None:
    assert len(CORPUS) >= 60
    assert len({hostile.label for hostile in CORPUS}) == len(CORPUS)
    assert {
        "file", "network", "environment", "builtins", "dunder", "format string", "torch", "memory bomb", "time bomb", "recursion",
        "huge integer", "global state", "monkeypatching", "input mutation", "state", "randomness", "benchmark hunting", "fork bomb",
    } <= {hostile.family for hostile in CORPUS}  # fmt: skip


@pytest.mark.parametrize("hostile", CORPUS, ids=lambda hostile: hostile.label)
def test_the_language_check_refuses_what_it_is_expected_to(hostile: Hostile) -> None:
    message = refused_by_language(hostile)
    assert bool(message) == (hostile.static == REFUSED), message
    assert not message or message.startswith(("line ", "the file "))


@pytest.mark.slow
@pytest.mark.parametrize("forked", [True, False], ids=["forked", "fresh"])
@pytest.mark.parametrize("name", SAMPLE)
def test_the_process_layer_holds_by_itself(name: str, forked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POISE_WARM", str(int(forked)))
    hostile = next(hostile for hostile in CORPUS if hostile.name == name)
    with surroundings() as around:
        report = run_alone(hostile, around, static=False)
        assert outcome(report) in hostile.dynamic, report.message
        assert around.secret not in report.to_json()
        assert around.traces() == []


@pytest.mark.exhaustive
@pytest.mark.timeout(1500)
def test_the_whole_corpus_without_the_language_check() -> None:
    with surroundings() as around:
        reports = run_all(CORPUS, around, static=False)
        unexpected = {
            hostile.label: (outcome(report), report.message)
            for hostile, report in zip(CORPUS, reports, strict=True)
            if outcome(report) not in hostile.dynamic
        }
        assert unexpected == {}
        assert [h.label for h, r in zip(CORPUS, reports, strict=True) if around.secret in r.to_json()] == []
        assert around.traces() == []


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_what_the_language_check_lets_pass_is_caught_later() -> None:
    passing = [hostile for hostile in CORPUS if hostile.static != REFUSED]
    with surroundings() as around:
        reports = run_all(passing, around, static=True)
        assert {h.label: outcome(r) for h, r in zip(passing, reports, strict=True)} == {
            h.label: h.static for h in passing
        }
        assert around.traces() == []


def test_the_surroundings_notice_what_they_look_for(tmp_path: Path) -> None:
    """The traces that the tests above do not find would be found."""
    import socket
    import subprocess
    import time

    with surroundings() as around:
        (around.folder / "written").touch()
        (around.folder / "secret-answers.json").unlink()
        socket.create_connection(("127.0.0.1", around.port)).close()
        with subprocess.Popen(["sleep", str(around.mark)]) as process:
            time.sleep(0.1)
            found = around.traces()
            process.kill()
    assert len(found) == 4, found
