"""``poise compare-search`` as a user runs it: real arms, one baseline, and nothing done twice."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from poise_core.run_directory import RunDirectory

pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(1800)]


def test_two_arms(poise: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path) -> None:
    given = (
        "compare-search",
        "--preset",
        "smoke",
        "--run-dir",
        "arms",
        "--arm",
        "evolution",
        "--arm",
        "random",
        "--json",
    )
    done = poise(*given, timeout=1500)
    assert done.returncode == 0, done.stderr
    curves = {curve["arm"]: curve for curve in json.loads(done.stdout)}
    assert set(curves) == {"evolution", "random"}
    for curve in curves.values():
        assert {(one["seeds"], one["low"], one["high"]) for one in curve["best"]} == {(1, None, None)}
    assert json.loads((tmp_path / "arms" / "comparison.json").read_text()) == list(curves.values())
    assert (tmp_path / "arms" / "comparison.svg").stat().st_size > 1000

    folders = [tmp_path / "arms" / f"{arm}-seed-0" for arm in ("evolution", "random")]
    runs = [RunDirectory.read(folder) for folder in folders]
    assert [run.archive.check() for run in runs] == [[], []]
    roots = [run.archive.lineage().roots() for run in runs]
    assert set(roots[0]) == set(roots[1])
    trained = [sorted(path.parent.name for path in folder.glob("candidates/*/train")) for folder in folders]
    assert set(roots[0]) & set(trained[0])
    assert not set(roots[1]) & set(trained[1]), "the second arm was given the baseline"

    again = poise(*given, timeout=1500)
    assert again.returncode == 0, again.stderr
    assert again.stdout == done.stdout
    assert [sorted(p.parent.name for p in folder.glob("candidates/*/train")) for folder in folders] == trained
