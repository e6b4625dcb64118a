"""Nights on a real Prefect server: each goes on where the last one ended, be it at its end or at its budget."""

import time
from pathlib import Path
from typing import Any

import pytest
from laboratory import Laboratory, contents, evolved, make_preset, open_evolution
from laboratory import evolve as evolve_in_order

from poise_core.config import Preset
from poise_core.failures import InfrastructureError
from poise_core.run_directory import RunDirectory
from poise_core.tracking.sync import SyncReport, Tracker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.xdist_group("prefect")]


@pytest.fixture(autouse=True)
def made_up_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poise_core.config.loading.policy_digest", lambda policy: "f00d")


def night(folder: Path, preset: Preset, **parameters: Any) -> Any:
    """The final state of a night on this directory."""
    from flows.nightly import nightly_generation

    if not folder.exists():
        RunDirectory.open(folder, preset).close()
    return nightly_generation(str(folder), return_state=True, **parameters)


@pytest.mark.exhaustive
def test_every_night_makes_one_generation(tmp_path: Path, laboratory: Laboratory) -> None:
    preset, folder = make_preset(), tmp_path / "run"
    for number in (1, 2):
        state = night(folder, preset, hours=1.0, replicate_champion=False)
        assert state.is_completed(), state
        assert state.message.startswith(f"gen-{number:02d}: ")
    in_order = open_evolution(tmp_path / "in order", preset)
    evolve_in_order(in_order)
    run = RunDirectory.read(folder)
    assert contents(run.archive) == contents(in_order.run.archive)
    assert run.current_preset.search.generations == 2
    summaries = [path.read_text() for path in (folder / "nights").iterdir()]
    assert len(summaries) == 2
    assert all("The generation is complete." in text for text in summaries)


@pytest.mark.exhaustive
def test_a_night_stops_at_its_time_and_the_next_one_goes_on(tmp_path: Path, laboratory: Laboratory) -> None:
    from tasks.session import current_evolution

    preset, folder = make_preset(generations=1), tmp_path / "run"

    def wait_for_the_end(name: str) -> None:
        while not current_evolution(folder).stopped:
            time.sleep(0.05)

    laboratory.before_training = wait_for_the_end
    state = night(folder, preset, hours=5 / 3600)
    assert (state.is_completed(), state.name) == (True, "BudgetUsedUp")
    assert "the time budget of 0.00138889 h is used up" in state.message
    (path,) = (folder / "nights").iterdir()
    assert "the next nightly run goes on with it" in path.read_text()

    laboratory.before_training = lambda name: None
    state = night(folder, preset, hours=1.0)
    assert (state.is_completed(), state.name) == (True, "Completed")
    in_order = open_evolution(tmp_path / "in order", preset)
    evolve_in_order(in_order)
    assert contents(RunDirectory.read(folder).archive) == contents(in_order.run.archive)


def test_a_night_that_fails_leaves_a_summary_too(
    tmp_path: Path, laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And MLflow gets what there is: what has stopped the stages must not stop the reports."""
    from tasks.session import current_evolution

    cut_short: list[bool] = []

    def fail(name: str) -> None:
        current_evolution(tmp_path / "run").stop("the disk is full")
        raise InfrastructureError("the disk is full")

    def note(*_: Any, run_dir: Path, **__: Any) -> SyncReport:
        cut_short.append(current_evolution(run_dir).stopped)
        return SyncReport()

    monkeypatch.setattr(Tracker, "sync_archive", note)
    laboratory.before_training = fail
    state = night(tmp_path / "run", make_preset({"infrastructure_retries": 0}), hours=1.0)
    assert state.is_failed()
    (path,) = (tmp_path / "run" / "nights").iterdir()
    assert "the disk is full" in path.read_text()
    assert cut_short[-1:] == [False]


def test_a_champion_candidate_is_replicated_or_the_summary_says_why_not(
    tmp_path: Path, laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    preset, folder = make_preset(generations=1), tmp_path / "run"  # both seeds are used up by the search
    monkeypatch.setattr("flows.nightly.champion_candidate", lambda run_dir: _first_child(folder))
    state = night(folder, preset, hours=1.0)
    assert state.is_completed(), state
    (path,) = (folder / "nights").iterdir()
    assert "is a champion candidate and was not replicated: " in path.read_text()


@pytest.mark.exhaustive
def test_a_champion_candidate_is_examined_and_the_summary_has_its_table(tmp_path: Path, laboratory: Laboratory) -> None:
    from flows.replicate import replicate_champion

    evolution, (_, best, *_) = evolved(tmp_path, laboratory)
    evolution.run.close()
    state = night(tmp_path / "run", evolution.preset, hours=1.0)
    assert state.is_completed(), state
    (path,) = (tmp_path / "run" / "nights").iterdir()
    text = path.read_text()
    named = RunDirectory.read(tmp_path / "run").archive.rows("candidates", candidate_id=best)[0]["name"]
    assert f"Replication: {named}: replicated: " in text
    assert "## What was examined" in text
    assert "| greedy |" in text
    assert f"**{named}**: champion: holds under primary, pass@1, greedy" in text
    laboratory.trained.clear()
    again = replicate_champion(str(tmp_path / "run"), best, conditions=["primary"], return_state=True)
    assert (again.name, laboratory.trained) == ("Replicated", [])
    assert "champion: holds under primary" in again.message


def _first_child(folder: Path) -> tuple[str, str]:
    row = RunDirectory.read(folder).archive.rows("candidates", generation=1)[0]
    return row["candidate_id"], row["name"]
