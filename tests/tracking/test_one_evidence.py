"""What a run says is read once per report: one noise floor, one interval per candidate, numbers of one moment everywhere."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from pathlib import Path
from typing import Any

import archive_samples as samples
import pytest
from archive_samples import runs
from rich.console import Console

from poise_core.archive import Archive, evaluation_rows
from poise_core.config import LadderSpec, Preset
from poise_core.evidence import noise, run_evidence
from poise_core.evidence.run_evidence import RunEvidence
from poise_core.render.lines import outlook_note, run_headline
from poise_core.render.markdown import render_nightly_report
from poise_core.render.terminal import render_candidate, render_leaderboard, render_lineage, render_rungs
from poise_core.tracking.sync import Tracker
from poise_core.views import leaderboard, lineage, view_candidate
from poise_core.views.nightly import NightlyRun, nightly_report
from poise_core.views.outlook import outlook
from poise_core.views.rungs import rung_report

SKILLS = (0.30, 0.34, 0.38, 0.31, 0.45, 0.52)


def run_of(folder: Path, skills: tuple[float, ...]) -> tuple[Archive, Preset]:
    """The baseline and its children in generation 1, each with three seeds."""
    preset = samples.make_preset()
    archive = Archive(folder).initialise()
    for number, skill in enumerate(skills):
        parents = ("c-0",) if number else ()
        samples.add_candidate(archive, preset.protocol, f"c-{number}", f"C{number}", min(number, 1), parents, skill)
    return archive, preset


def whole_report(evidence: RunEvidence, preset: Preset, tracker: Tracker) -> str:
    """Leaderboard, lineage, rungs, every candidate, the report of a night and MLflow; the text of all but the last."""
    console = Console(record=True, width=120)
    rows = leaderboard(evidence)
    note = outlook_note(outlook(evidence, preset))
    console.print(render_leaderboard(rows, preset.protocol, evidence=evidence, outlook=note))
    console.print(render_lineage(lineage(evidence)))
    console.print(render_rungs(rung_report(evidence, LadderSpec())))
    for row in rows:
        console.print(render_candidate(view_candidate(evidence, row.candidate_id)))
    began = dt.datetime(2026, 11, 24, 22, 30, tzinfo=dt.UTC)
    console.print(render_nightly_report(nightly_report(evidence, preset, NightlyRun(1, began, began, finished=True))))
    console.print(run_headline(rows))
    report = tracker.sync_archive(evidence.archive, preset.protocol, evidence=evidence)
    assert not report.error, report.error
    assert report.created == 2 + len(rows) * 4  # two generations; a run per candidate and three seeds each
    return console.export_text()


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many candidates each fit of a noise floor was asked about."""
    asked: list[int] = []
    real = noise.noise_of

    def counted(values: Any) -> Any:
        asked.append(len(values))
        return real(values)

    monkeypatch.setattr(noise, "noise_of", counted)
    return asked


@pytest.mark.exhaustive
def test_a_whole_report_fits_the_noise_floor_once(
    tracker: Tracker, tmp_path: Path, fits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, preset = run_of(tmp_path / "archive", SKILLS)
    intervals: Counter[float] = Counter()
    real = run_evidence.overall_interval

    def counted(evals: Any, *rest: Any) -> Any:
        intervals[evals[0].overall] += 1
        return real(evals, *rest)

    monkeypatch.setattr(run_evidence, "overall_interval", counted)
    evidence = RunEvidence.load(archive, preset.protocol)
    assert fits == [], "reading computes nothing"
    shown = whole_report(evidence, preset, tracker)
    assert fits == [len(SKILLS)]
    assert evidence.noise is not None
    assert f"Noise floor: {evidence.noise.typical.std:.2f} points per seed" in shown
    assert len(intervals) == len(SKILLS)
    assert set(intervals.values()) == {1}, "every Overall gets its limits once"


@pytest.mark.exhaustive
def test_that_there_is_no_noise_floor_is_found_out_once(tracker: Tracker, tmp_path: Path, fits: list[int]) -> None:
    """Declarations once took its absence for not having been asked, and fitted again."""
    archive, preset = run_of(tmp_path / "archive", SKILLS[:4])
    evidence = RunEvidence.load(archive, preset.protocol)
    whole_report(evidence, preset, tracker)
    assert fits == [4]
    assert evidence.noise is None
    assert evidence.declarations.keys() == {"c-1", "c-2", "c-3"}


@pytest.mark.slow
def test_all_numbers_of_a_report_are_of_one_moment(tmp_path: Path) -> None:
    archive, preset = run_of(tmp_path / "archive", SKILLS)
    evidence = RunEvidence.load(archive, preset.protocol)
    before = [row.to_dict() for row in leaderboard(RunEvidence.load(archive, preset.protocol))]
    samples.add_candidate(archive, preset.protocol, "c-9", "C9", 2, ("c-5",), 0.6)
    assert [row.to_dict() for row in leaderboard(evidence)] == before
    assert [node.name for node in lineage(evidence)[0].children] == ["C1", "C2", "C3", "C4", "C5"]
    assert view_candidate(evidence, "C5").children == {}
    assert evidence.tried == {"c-1", "c-2", "c-3", "c-4", "c-5"}
    later = RunEvidence.load(archive, preset.protocol)
    assert leaderboard(later)[0].name == "C9"
    assert view_candidate(later, "C5").children == {"c-9": "C9"}


@pytest.mark.exhaustive
def test_a_sync_that_is_asked_for_beside_another_one_reads_the_archive_anew(
    tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hands its work to the one that runs, whose evidence is of an earlier moment."""
    archive, preset = run_of(tmp_path / "archive", SKILLS)
    protocol = preset.protocol
    evidence = RunEvidence.load(archive, protocol)
    inner: list[Any] = []
    import mlflow

    real = mlflow.MlflowClient.create_run

    def interrupted(self: Any, *given: Any, **named: Any) -> Any:
        if not inner:
            evaluation = samples.make_evaluation(protocol, 0.6, 0)
            samples.add_candidate(archive, protocol, "c-9", "C9", 2, ("c-5",))
            archive.append("evaluations", evaluation_rows("c-9", protocol.digest, evaluation))
            inner.append(tracker.sync_archive(archive, protocol))
        return real(self, *given, **named)

    monkeypatch.setattr(mlflow.MlflowClient, "create_run", interrupted)
    tracker.sync_archive(archive, protocol, evidence=evidence)
    assert inner[0].deferred
    assert {"candidate/c-9", "seed/c-9/0", "generation/2"} <= runs(tracker).keys()
