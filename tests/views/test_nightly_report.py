"""The nightly report: what it says of a run that ended well, and of one that came to the end of its budget."""

import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import pytest
from laboratory import Laboratory, admit, establish_baseline, evolve, make_preset, measure, open_evolution

from poise_core.archive import trajectory_rows
from poise_core.evidence.run_evidence import RunEvidence
from poise_core.evolution import Evolution
from poise_core.failures import CandidateFailure, FailureKind
from poise_core.render.lines import candidate_headline, generation_headline, run_headline
from poise_core.render.markdown import render_nightly_report
from poise_core.views import leaderboard
from poise_core.views.nightly import NightlyRun, nightly_report

BEGAN = dt.datetime(2026, 11, 24, 22, 30, tzinfo=dt.UTC)


@pytest.fixture
def laboratory() -> Iterator[Laboratory]:
    with Laboratory() as made:
        yield made


def report(evolution: Evolution, **nightly: object) -> str:
    given = {
        "generation": 1,
        "began": BEGAN,
        "ended": BEGAN + dt.timedelta(hours=2, minutes=5),
        "finished": True,
        **nightly,
    }
    return render_nightly_report(nightly_report(evidence_of(evolution), evolution.preset, NightlyRun(**given)))


def evidence_of(evolution: Evolution) -> RunEvidence:
    return RunEvidence.load(evolution.run.archive, evolution.preset.protocol, untuned=evolution.preset.untuned)


@pytest.mark.slow
def test_a_whole_night(tmp_path: Path, laboratory: Laboratory) -> None:
    evolution = open_evolution(tmp_path / "run", make_preset(generations=1))
    evolve(evolution)
    text = report(evolution, hours=7.5, dollars=5.0, gpu_hours=8.0)
    archive = evolution.run.archive
    children = archive.rows("candidates", generation=1)
    assert len(children) == 2
    for child in children:
        assert f"| {child['name']} | GRPO |" in text
    for row in archive.rows("reflections", candidate_id=[child["candidate_id"] for child in children]):
        assert " ".join(row["summary"].split()) in text
    assert "Children: 2 evaluated. The generation is complete." in text
    assert "- Time: 2 h 05 min of 7 h 30 min." in text
    # 2 children, 2 seeds each, 12 steps of 100 tokens
    assert f"- Training: {2 * 2 * 12 * 100:,} completion tokens" in text
    assert "GPU-hours, of a budget of 8." in text
    assert "none asked, 0 of 5 dollars" in text
    assert "The baseline grpo was never tuned under this protocol" in text
    for row in leaderboard(evidence_of(evolution)):
        if row.rank is not None:
            shown = f"{row.overall.estimate:.1f} [{row.overall.low:.1f}, {row.overall.high:.1f}]"
            assert f"| {row.rank} | {row.name} | {row.generation} | {shown} | 2 |" in text
            assert row.generation == 0 or f"| Overall {shown}, 2 seeds, " in text


@pytest.mark.slow
def test_a_night_on_a_shared_network(tmp_path: Path, laboratory: Laboratory) -> None:
    evolution = open_evolution(tmp_path / "run", make_preset(generations=1))
    establish_baseline(evolution)
    shared, alone = admit(evolution, 1)
    assert "network" not in report(evolution)
    for candidate, network in ((shared, "not granted: no; sharing the machine's was allowed"), (alone, "granted")):
        rows = trajectory_rows(
            candidate.candidate_id,
            evolution.preset.protocol.digest,
            0,
            [{"step": 0.0}],
            confinement={"network": network},
        )
        evolution.run.archive.append("trajectories", rows)
    said = f"Trained on the machine's network, without one of their own, as was allowed: {shared.name}."
    assert said in report(evolution)


@pytest.mark.slow
def test_a_night_at_the_end_of_its_budget(tmp_path: Path, laboratory: Laboratory) -> None:
    evolution = open_evolution(tmp_path / "run", make_preset(generations=1))
    establish_baseline(evolution)
    failing, other = admit(evolution, 1)
    laboratory.fail[failing.name] = CandidateFailure(FailureKind.DIVERGED, "train", "loss is not finite")
    measure(evolution, failing)
    text = report(evolution, finished=False, stopped="the time budget of 2 h is used up")
    assert "the next nightly run goes on with it (the time budget of 2 h is used up)" in text
    assert "Children: 1 unfinished, 1 failed." in text
    assert f"| {failing.name} | GRPO |" in text
    assert "failed in train (diverged) |" in text
    assert f"**{failing.name}**" in text
    assert f"**{other.name}**" not in text


@pytest.mark.slow
def test_single_lines(tmp_path: Path, laboratory: Laboratory) -> None:
    evolution = open_evolution(tmp_path / "run", make_preset(generations=1))
    rows = leaderboard(evidence_of(evolution))
    assert run_headline(rows) == "0 generations; nothing is scored yet"
    assert generation_headline(rows, 1) == "no child"
    evolve(evolution)
    rows = leaderboard(evidence_of(evolution))
    assert run_headline(rows).startswith("1 generation; best is ")
    for child in evolution.run.archive.rows("candidates", generation=1):
        line = candidate_headline(rows, child["candidate_id"])
        assert line.startswith(f"{child['name']}: Overall ")
        assert line in generation_headline(rows, 1)
