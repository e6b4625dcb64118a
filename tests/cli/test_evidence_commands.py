"""``poise rungs`` and ``poise replicate`` as a user types them: what they print, and their exit status."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from laboratory import Laboratory, evolved
from typer.testing import CliRunner, Result

from poise_core.cli import app
from poise_core.run_directory import RunDirectory


@pytest.fixture
def poise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def laboratory() -> Iterator[Laboratory]:
    with Laboratory() as made:
        yield made


@pytest.mark.exhaustive
def test_a_champion_candidate_is_replicated_and_shown(
    tmp_path: Path, poise: Callable[..., Result], laboratory: Laboratory
) -> None:
    evolution, (_, best, ordinary, *_) = evolved(tmp_path, laboratory)
    evolution.run.close()
    shown = poise("leaderboard", "run")
    assert "champion candidate" in shown.output
    assert "excludes zero (5 tried): 1" in " ".join(shown.output.split())

    result = poise("replicate", "run", best, "--json")
    assert result.exit_code == 0, result.output
    row = json.loads(result.stdout)
    assert (row["outcome"], row["seeds"]) == ("replicated", [2, 3, 4])
    assert "examination 1 of this run: 6 trainings (primary 6); so many take about 3 s" in result.stderr
    assert row["examination"]["standing"] == "champion"
    answers = {one["condition"]: one["verdict"] for one in row["examination"]["conditions"]}
    assert answers == {"primary": "holds", "pass@1": "holds", "greedy": "holds", "collapse": "not distinguishable"}
    again = poise("replicate", "run", best)
    assert again.exit_code == 0
    assert row["message"] in again.output
    assert "examination 1" not in again.stderr, "nothing is trained"
    assert row["examination"]["says"] in " ".join(again.output.split())
    assert f"Examination of {best}" in again.output
    assert "replicated" in poise("leaderboard", "run").output
    shown = poise("show", "run", best).output
    assert "report split" in shown
    assert "Worst seed" in shown
    assert RunDirectory.read("run").settings_changes == []
    from mlflow import MlflowClient  # takes seconds, which the other tests here need not pay

    client = MlflowClient(RunDirectory.read("run").tracking_uri)
    (model,) = client.search_registered_models()
    version = client.get_model_version(model.name, model.aliases["champion"])
    assert version.tags["candidate"] == row["candidate_id"], "the alias moves with the replication, not a night later"
    assert version.tags["examined"] == "champion"
    assert "| pass@1 |" in Path(client.download_artifacts(version.run_id, "examination.md")).read_text()

    refused = poise("replicate", "run", ordinary)
    assert refused.exit_code == 2
    (line,) = refused.stderr.strip().splitlines()
    assert "no champion candidate" in line


@pytest.mark.exhaustive
def test_what_is_refuted_has_its_own_exit_status(
    tmp_path: Path, poise: Callable[..., Result], laboratory: Laboratory
) -> None:
    evolution, (_, best, *_) = evolved(tmp_path, laboratory)
    evolution.run.close()
    laboratory.skills[best] = 0.3
    result = poise("replicate", "run", best)
    assert (result.exit_code, "refuted" in result.output) == (1, True)


@pytest.mark.slow
def test_what_cannot_be_replicated_is_one_line(
    tmp_path: Path, poise: Callable[..., Result], laboratory: Laboratory
) -> None:
    assert poise("replicate", "nowhere", "x").exit_code == 2
    evolution, (_, best, *_) = evolved(tmp_path, laboratory)
    busy = poise("replicate", "run", best)
    assert (busy.exit_code, "in use by" in busy.stderr) == (2, True)
    evolution.run.close()
    for arguments, part in (
        (["nobody"], "no candidate 'nobody'"),
        ([best, "--conditions", "luck"], "no condition 'luck'"),
    ):
        result = poise("replicate", "run", *arguments)
        assert result.exit_code == 2
        (line,) = result.stderr.strip().splitlines()
        assert part in line


@pytest.mark.slow
def test_rungs_of_a_run_without_a_ladder(tmp_path: Path, poise: Callable[..., Result], laboratory: Laboratory) -> None:
    evolved(tmp_path, laboratory)[0].run.close()
    result = poise("rungs", "run")
    assert result.exit_code == 0, result.output
    assert "No candidate was measured on the rungs here" in " ".join(result.output.split())
    document = json.loads(poise("rungs", "run", "--json").stdout)
    assert set(document["correlations"]) == {
        f"{rung} -> {of}" for rung in ("proxy", "forecast") for of in ("first", "others")
    } | {"first -> others", "parent -> others", "forecast -> Overall at the stop"}
