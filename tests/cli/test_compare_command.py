"""``poise compare-search`` as a user runs it: real arms, one baseline, and nothing done twice."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from poise_core.archive.cells import read_cells
from poise_core.run_directory import RunDirectory

pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(1800)]


def test_two_arms(installed_poise: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path) -> None:
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
        "--trainings",
        "1",
        "--measure-again",
        "2",
        "--json",
    )
    done = installed_poise(*given, timeout=1500)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    curves = {curve["arm"]: curve for curve in found["curves"]}
    assert set(curves) == {"evolution", "random"}
    for curve in curves.values():
        assert {(one["seeds"], one["low"], one["high"]) for one in curve["best"]} == {(1, None, None)}
    assert json.loads((tmp_path / "arms" / "comparison.json").read_text()) == found
    picks = [pick for one in found["picks"] for pick in one["picks"]]
    assert {one["outcome"] for one in picks} <= {"replicated", "refuted", "failed", "the baseline"}
    assert (tmp_path / "arms" / "comparison.svg").stat().st_size > 1000

    folders = [tmp_path / "arms" / f"{arm}-seed-0" for arm in ("evolution", "random")]
    runs = [RunDirectory.read(folder) for folder in folders]
    assert [run.archive.check() for run in runs] == [[], []]
    roots = [run.archive.lineage().roots() for run in runs]
    assert set(roots[0]) == set(roots[1])
    trained = [sorted(path.parent.name for path in folder.glob("candidates/*/train")) for folder in folders]
    assert set(roots[0]) & set(trained[0])
    assert not set(roots[1]) & set(trained[1]), "the second arm was given the baseline"

    again = installed_poise(*given, timeout=1500)
    assert again.returncode == 0, again.stderr
    assert again.stdout == done.stdout
    assert [sorted(p.parent.name for p in folder.glob("candidates/*/train")) for folder in folders] == trained


def test_a_recording_of_six_cells_is_a_table_to_replay_on(
    installed_poise: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path
) -> None:
    given = ("record-table", "--preset", "smoke", "--cells", 6, "--seeds", 2, "--out", "table.parquet")
    done = installed_poise(*given, timeout=900)
    assert done.returncode == 0, done.stderr
    head, rows = read_cells(tmp_path / "table.parquet")
    assert {row.cell for row in rows} == set(range(7))
    assert (head.preset, head.planned, head.baseline) == ("smoke", 6, 0)
    assert all(row.failure or row.overall is not None for row in rows)
    again = installed_poise(*given, timeout=300)
    assert again.stdout == done.stdout
    assert read_cells(tmp_path / "table.parquet") == (head, rows)
    elsewhere = installed_poise(*given, "--run-dir", "runs/another", timeout=300)
    assert elsewhere.stdout == done.stdout, "nothing is left to do for whoever has the table"
    secrets = [(tmp_path / "runs" / name / "secret").read_text() for name in ("smoke-table", "another")]
    assert secrets[0] == secrets[1], "it asks the same problems"
    assert not list((tmp_path / "runs" / "another" / "candidates").glob("*/train"))
    assert read_cells(tmp_path / "table.parquet") == (head, rows)
    replayed = installed_poise(
        "compare-search", "--table", "table.parquet", "--replays", 4, "--trainings", 8, "--json", timeout=300
    )
    assert replayed.returncode == 0, replayed.stderr
    assert "evolution" in {one["arm"] for one in json.loads(replayed.stdout)["arms"]}
