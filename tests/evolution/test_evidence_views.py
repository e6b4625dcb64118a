"""What the views say of evidence: rungs, noise, seeds, champions; with other protocols, NaN and missing numbers beside it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from laboratory import LADDER, PROXY, STEPS, Laboratory, drops, evolve, make_preset, noise, open_evolution
from rich.console import Console, RenderableType

from poise_core.archive import TABLES, evaluation_rows, trajectory_rows
from poise_core.evidence.intervals import paired_delta
from poise_core.evidence.run_evidence import RunEvidence
from poise_core.evolution import CandidateRef, Evolution
from poise_core.render.terminal import render_candidate, render_leaderboard, render_lineage, render_rungs
from poise_core.views import leaderboard, lineage, view_candidate
from poise_core.views.rungs import rung_report


def text(renderable: RenderableType, width: int = 80) -> str:
    console = Console(width=width, no_color=True, force_terminal=False)
    with console.capture() as capture:
        console.print(renderable)
    assert max(map(len, capture.get().splitlines())) <= width
    return capture.get()


def plain(renderable: RenderableType) -> str:
    return " ".join(text(renderable, 100).split())


PRESET = make_preset(ladder={**LADDER, "first_stop_below": 0.3}, generations=3)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of three generations of two, some of which end at the proxy or after one seed; to copy."""
    folder = tmp_path_factory.mktemp("climbed") / "run"
    with Laboratory() as made:
        made.step = drops(3)
        evolution = open_evolution(folder, PRESET)
        with evolution.run:
            evolve(evolution)
    return folder


@pytest.fixture
def laddered(tmp_path: Path, laboratory: Laboratory, finished: Path) -> Iterator[Evolution]:
    """That evolution in a directory of the test's own."""
    laboratory.step = drops(3)
    shutil.copytree(finished, tmp_path / "run")
    evolution = open_evolution(tmp_path / "run", PRESET)
    with evolution.run:
        yield evolution


@pytest.mark.slow
def test_every_rung_is_counted_with_its_tokens(laddered: Evolution) -> None:
    archive, protocol = laddered.run.archive, laddered.preset.protocol
    report = rung_report(RunEvidence.load(archive, protocol), laddered.preset.ladder)
    rungs = {row["rung"]: row for row in report.rungs}
    stopped = {rung: rungs[rung]["stopped"] for rung in rungs}
    assert rungs["proxy"]["candidates"] == 6
    assert rungs["first"]["candidates"] == 6 - stopped["proxy"]
    assert rungs["all"]["finished"] == 6 - stopped["proxy"] - stopped["first"]
    assert stopped["proxy"] > 0
    # 100 tokens a step: the baseline and the finished ones two whole trainings, the others one or a proxy
    expected = 100 * (STEPS * (2 + 2 * rungs["all"]["finished"] + stopped["first"]) + PROXY * stopped["proxy"])
    assert report.tokens == expected
    if rungs["all"]["finished"]:
        assert report.tokens_without == 100 * STEPS * 2 * 7
    shown = plain(render_rungs(report))
    assert "Rank correlation proxy -> first" in shown
    assert f"Training tokens sampled: {expected:,}" in shown
    json.dumps(report.to_dict(), allow_nan=False)
    text(render_rungs(report))


@pytest.mark.slow
def test_a_stopped_candidate_is_listed_as_such_in_every_view(laddered: Evolution) -> None:
    archive, protocol = laddered.run.archive, laddered.preset.protocol
    rows = leaderboard(RunEvidence.load(archive, protocol))
    stopped = next(row for row in rows if row.state == "stopped at the proxy")
    assert (stopped.status, stopped.rank, stopped.overall, stopped.failure) == ("stopped", None, None, None)
    assert stopped.rung is not None
    shown = plain(render_leaderboard(rows, protocol, evidence=RunEvidence.load(archive, protocol)))
    assert "Stopped on the ladder: neither failed nor zero" in shown
    assert "Not finished" not in shown
    text(render_leaderboard(rows, protocol, evidence=RunEvidence.load(archive, protocol), width=80))
    view = view_candidate(RunEvidence.load(archive, protocol), stopped.candidate_id)
    assert "stopped at the proxy" in plain(render_candidate(view, code=False))
    json.dumps(view.to_dict())
    tree = plain(render_lineage(lineage(RunEvidence.load(archive, protocol))))
    assert "stopped at the proxy" in tree
    assert "not finished" not in tree


@pytest.mark.slow
def test_every_overall_comes_with_its_seeds_and_limits_or_says_that_it_has_none(laddered: Evolution) -> None:
    archive, protocol = laddered.run.archive, laddered.preset.protocol
    for row in leaderboard(RunEvidence.load(archive, protocol)):
        if row.overall is not None:
            shown = f"{row.overall.estimate:.1f} "
            line = next(one for one in text(render_leaderboard([row], protocol), 100).splitlines() if shown in one)
            assert f" {row.overall.seeds} " in line
            assert ("[" in line) or ("(one seed)" in line)
    for view in (
        view_candidate(RunEvidence.load(archive, protocol), row["candidate_id"]) for row in archive.rows("candidates")
    ):
        if view.overall is not None:
            assert f"Overall {view.overall.estimate:.1f}" in plain(render_candidate(view, code=False))


@pytest.mark.slow
def test_the_reflection_and_the_page_give_the_same_difference(tmp_path: Path, laboratory: Laboratory) -> None:
    """Both rest on the noise floor; of the last child of all, on that of the same candidates."""
    evolution = open_evolution(tmp_path / "run", make_preset(generations=6, parents=1))
    evolve(evolution)
    archive, protocol = evolution.run.archive, evolution.preset.protocol
    (row,) = archive.rows("candidates", generation=6)
    evidence = evolution.history.evidence(CandidateRef.of_row(row), None)
    assert evidence.parent is not None
    view = view_candidate(RunEvidence.load(archive, protocol), row["candidate_id"])
    assert evidence.overall_delta == view.deltas[evidence.parent.name]
    known = RunEvidence.load(archive, protocol)
    own, theirs = (known.evaluations[one] for one in (row["candidate_id"], row["parent_ids"][0]))
    assert evidence.overall_delta != paired_delta(own, theirs, protocol)


@pytest.mark.slow
def test_a_rung_that_does_not_predict_is_reported(tmp_path: Path, laboratory: Laboratory) -> None:
    class Wide(dict[str, float]):
        """Skills that differ far more than seeds do."""

        def get(self, owner: str, default: Any = None) -> float:
            return noise(owner).uniform(0.05, 0.95)

    laboratory.skills = Wide()
    evolution = open_evolution(tmp_path / "run", make_preset(generations=3))  # no ladder: all have everything
    laboratory.step = lambda name, digest, seed, step: Laboratory._noise_step(name, digest, seed, step)
    evolve(evolution)
    report = rung_report(RunEvidence.load(evolution.run.archive, evolution.preset.protocol), evolution.preset.ladder)
    one = report.correlations["proxy -> first"]
    assert one.pairs == 7
    assert not one.predicts  # rewards are noise here
    assert "not shown to predict" in plain(render_rungs(report))
    assert report.correlations["first -> others"].predicts
    assert "No candidate was measured on the rungs here" in plain(render_rungs(report))


def test_another_protocol_in_the_directory_and_nan_change_nothing(laddered: Evolution) -> None:
    archive, protocol = laddered.run.archive, laddered.preset.protocol
    before = RunEvidence.load(archive, protocol)
    shown = plain(render_rungs(rung_report(RunEvidence.load(archive, protocol), laddered.preset.ladder)))
    some = next(name for name in before.evaluations if name.startswith("grpo"))
    (evaluation, *_) = before.evaluations[some]
    archive.append("evaluations", evaluation_rows(some, "another", evaluation))
    steps: list[dict[str, Any]] = [{"step": step, "reward_mean": math.nan, "tokens": 5} for step in range(STEPS)]
    archive.append("trajectories", trajectory_rows(some, "another", 0, steps))
    archive.append("trajectories", trajectory_rows(some, protocol.digest, 99, steps))  # a seed of NaN
    after = RunEvidence.load(archive, protocol)
    assert after.evaluations == before.evaluations
    assert (after.tried, after.noise, after.declarations) == (before.tried, before.noise, before.declarations)
    again = plain(render_rungs(rung_report(RunEvidence.load(archive, protocol), laddered.preset.ladder)))
    assert again.split("Training tokens")[0] == shown.split("Training tokens")[0]
    # the next generation is decided beside the NaN
    assert laddered.ladder._referee(4).rewards.noise.variance > 0
    assert set(TABLES) >= {"rungs", "replications"}


def test_an_archive_of_an_earlier_version_without_the_new_tables_is_read(laddered: Evolution) -> None:

    for table in ("rungs", "replications"):
        shutil.rmtree(Path(laddered.run.archive.root) / table)
    from poise_core.archive import Archive

    archive, protocol = Archive(laddered.run.archive.root), laddered.preset.protocol
    assert leaderboard(RunEvidence.load(archive, protocol))
    assert lineage(RunEvidence.load(archive, protocol))
    assert rung_report(RunEvidence.load(archive, protocol), laddered.preset.ladder).stopped == []
    assert view_candidate(RunEvidence.load(archive, protocol), "GRPO").rungs == []
