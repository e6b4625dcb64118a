"""What the leaderboard says of the search's prospects."""

import datetime as dt
import math
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import archive_samples as samples
from rich.console import Console

from poise_core.archive import Archive, candidate_row, evaluation_rows, trajectory_rows
from poise_core.config import ResourceSpec
from poise_core.evidence.run_evidence import RunEvidence
from poise_core.render.lines import compute_note, outlook_note
from poise_core.render.terminal import render_leaderboard
from poise_core.views import leaderboard
from poise_core.views.outlook import computed, outlook
from tasks.budget import Budget


def run_of(folder: Path, skills: list[float]) -> Archive:
    """One child per generation, each of the one before it; 1000 tokens each."""
    archive, protocol = Archive(folder).initialise(), samples.make_protocol()
    for generation, skill in enumerate(skills):
        identity, parents = f"c-{generation}", [f"c-{generation - 1}"] if generation else []
        row = candidate_row(
            candidate_id=identity, name=f"C{generation}", source=f"x = {generation}", source_digest="d",
            written_by="human", generation=generation, parent_ids=parents,
        )  # fmt: skip
        archive.append("candidates", [row])
        archive.append("trajectories", trajectory_rows(identity, protocol.digest, 0, [{"step": 0, "tokens": 1000}]))
        for seed in samples.SEEDS:
            evaluation = samples.make_evaluation(protocol, skill, seed)
            archive.append("evaluations", evaluation_rows(identity, protocol.digest, evaluation))
    return archive


def test_a_run_that_stands_still_says_so_with_its_cost(tmp_path: Path) -> None:
    preset = samples.make_preset(generations=5, parents=1)
    archive = run_of(tmp_path, [0.5, 0.3, 0.31, 0.3, 0.31, 0.3])
    evidence = RunEvidence.load(archive, preset.protocol)
    state = outlook(evidence, preset)
    assert state.stalled
    assert state.tokens == 1000
    note = outlook_note(state)
    assert note.startswith("Plateau: over the last 3 generations")
    assert note.endswith("not worth its cost.")
    console = Console(record=True, width=200)
    rows = leaderboard(evidence)
    console.print(render_leaderboard(rows, preset.protocol, outlook=note))
    assert "not worth its cost" in console.export_text()


def test_a_run_that_rises_and_one_that_has_just_begun(tmp_path: Path) -> None:
    preset = samples.make_preset(generations=5, parents=1)

    def note(archive: Archive) -> str:
        return outlook_note(outlook(RunEvidence.load(archive, preset.protocol), preset))

    assert note(run_of(tmp_path / "a", [0.3, 0.4, 0.5, 0.6, 0.7])).startswith("No plateau")
    assert note(run_of(tmp_path / "b", [0.3, 0.4])) == ""


def test_gpu_hours_are_those_of_all_processes_of_trainings_and_evaluations(tmp_path: Path) -> None:
    preset = samples.make_preset(generations=5, parents=1)
    archive = run_of(tmp_path, [0.3, 0.4])
    steps = [{"step": step, "tokens": 500, "seconds_rollout": 30.0, "seconds_update": 60.0} for step in (0, 1)]
    archive.append("trajectories", trajectory_rows("c-1", preset.protocol.digest, 1, steps))
    evidence = RunEvidence.load(archive, preset.protocol)
    first, second = computed(evidence, 4)
    scored = sum(one.seconds for one in evidence.evaluations["c-1"])  # once a seed, however many benchmarks
    assert (first.name, first.tokens, first.train_seconds) == ("C0", 1000, 0.0)
    assert (second.name, second.tokens, second.train_seconds, second.evaluate_seconds) == ("C1", 2000, 180.0, scored)
    assert math.isclose(second.gpu_hours, 4 * (180.0 + scored) / 3600)
    note = compute_note([first, second])
    assert note.startswith(
        f"Measured with 0.00 million training tokens in {first.gpu_hours + second.gpu_hours:.3g} GPU-hours"
    )
    console = Console(record=True, width=200)
    console.print(render_leaderboard(leaderboard(evidence), preset.protocol, compute=note))
    assert note[:40] in console.export_text()
    assert compute_note([]) == ""
    untrained = replace(first, name="base policy", tokens=0)
    assert compute_note([first, second, untrained]).partition(" for a candidate")[0].rpartition(", ")[2] == (
        f"{1e-6 * (first.tokens + second.tokens) / 2:.2f} million and {(first.gpu_hours + second.gpu_hours) / 2:.3g}"
    )


def test_gpus_that_are_handed_out_are_held_whether_or_not_there_is_a_process_for_each() -> None:
    assert ResourceSpec(processes_per_training=2).gpus_held == 2
    assert ResourceSpec(processes_per_training=1, gpus_per_candidate=2).gpus_held == 2
    assert ResourceSpec(processes_per_training=8, nodes=2, parallel_candidates=1).gpus_held == 16
    resources = ResourceSpec(processes_per_training=1, gpus_per_candidate=2, parallel_candidates=4)
    budget, stopped = Budget(8.0, None, dt.datetime.now(dt.UTC), gpu_hours=16.0), []
    run = SimpleNamespace(current_preset=SimpleNamespace(resources=resources))
    with patch.object(threading, "Timer") as timer, budget.kept(SimpleNamespace(run=run, stop=stopped.append)):
        assert timer.call_args.args[0] == 3600 * 16.0 / 8


def test_the_smaller_of_the_time_and_the_gpu_hours_ends_a_night() -> None:
    budget = Budget(8.0, None, dt.datetime.now(dt.UTC), gpu_hours=16.0)
    assert budget.limit(1) == (8.0, "time budget of 8 h")
    assert budget.limit(2) == (8.0, "time budget of 8 h")
    assert budget.limit(4) == (4.0, "budget of 16 GPU-hours, 4 at a time,")
    assert Budget(8.0, None, dt.datetime.now(dt.UTC)).limit(64) == (8.0, "time budget of 8 h")
