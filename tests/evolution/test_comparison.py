"""Arms of search side by side: separate runs, one baseline, curves over tokens."""

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from laboratory import Killed, Laboratory, evolve, make_preset, open_evolution

from poise_core.archive import Archive
from poise_core.cli import compare
from poise_core.config import load_preset
from poise_core.evidence.intervals import Interval
from poise_core.evidence.run_evidence import RunEvidence
from poise_core.evolution.generation import establish_baseline
from poise_core.experiments.arms import ARMS, ArmRun, arm_runs, share_baseline
from poise_core.experiments.picks import measure_again
from poise_core.render.svg import draw_comparison
from poise_core.render.terminal import render_comparison, render_picks
from poise_core.run_directory import RunDirectory, RunDirectoryError
from poise_core.views.arms import (
    NOT_MEASURED,
    Pick,
    Step,
    best_so_far,
    common_budget,
    compare_arms,
    compare_picks,
    pick_at,
    pick_of,
)


@pytest.mark.exhaustive
def test_arms_run_apart_and_train_the_baseline_once(tmp_path: Path, laboratory: Laboratory) -> None:
    runs = arm_runs(make_preset(), tmp_path, seeds=(0, 1))
    assert len({run.folder for run in runs}) == 2 * len(ARMS)
    for number, run in enumerate(runs[: len(ARMS) + 1]):
        assert share_baseline(run, runs) is (number > 0)
        opened = open_evolution(run.folder, run.preset)
        evolve(opened)
        assert opened.run.archive.check() == []
        opened.run.close()
        assert not share_baseline(run, runs)  # it has begun
    assert sorted(name for name in laboratory.trained if name.startswith("GRPO/")) == ["GRPO/0", "GRPO/1"]
    first, second = (RunDirectory.read(runs[n].folder).archive for n in (0, 1))
    assert first.rows("evaluations", candidate_id=_root(first)) == second.rows(
        "evaluations", candidate_id=_root(second)
    )

    curves = {}
    for run in runs[: len(ARMS) + 1]:
        archive = RunDirectory.read(run.folder).archive
        evidence = RunEvidence.load(archive, run.preset.protocol)
        steps = best_so_far(evidence)
        curves.setdefault(run.arm, []).append(steps)
        spent = evidence.training_tokens
        assert set(spent.values()) == {2 * 12 * 100}  # seeds x steps x tokens of the made-up laboratory
        assert [step.tokens for step in steps] == [2400, 2400 * 3, 2400 * 5]
    compared = {curve.arm: curve for curve in compare_arms(curves)}
    assert compared["evolution"].best[-1].seeds == 2
    assert compared["random"].best[-1].seeds == 1
    assert math.isinf(compared["random"].best[-1].low)
    assert json.loads(json.dumps([curve.to_dict() for curve in compared.values()], allow_nan=False))


def _root(archive: object) -> str:
    return next(r["candidate_id"] for r in archive.rows("candidates", arm="evolution") if not r["parent_ids"])


def test_every_arm_is_corrected_for_the_children_of_all(tmp_path: Path) -> None:
    """Two generations of two children each, two arms, three search seeds: 24 chances to be lucky, whichever run is looked at."""
    runs = arm_runs(make_preset(generations=2, parents=2), tmp_path, arms=("evolution", "random"), seeds=(0, 1, 2))
    assert {run.preset.search.planned for run in runs} == {24}
    assert make_preset(generations=2, parents=2).search.planned == 4


@pytest.mark.slow
def test_tokens_of_a_file_that_was_repaired_are_spent(tmp_path: Path, laboratory: Laboratory) -> None:
    """A child's first file was trained, failed, and went back to its author: both files' tokens are the arm's."""
    opened = open_evolution(tmp_path / "run", make_preset(generations=1))
    base = establish_baseline(opened)
    parent = [base.candidate_id]
    first = opened.trials.register("A", "a = 1\n", written_by="llm", generation=1, parent_ids=parent)
    opened.trials.measure(first, (0, 1))
    again = opened.trials.register(
        "A", "a = 2\n", written_by="llm", generation=1, parent_ids=parent, revises=first.candidate_id
    )
    opened.trials.measure(again, (0, 1))
    evidence = RunEvidence.load(opened.run.archive, opened.run.preset.protocol)
    assert sum(evidence.training_tokens.values()) == 3 * 2400
    assert [step.tokens for step in best_so_far(evidence)] == [2400, 3 * 2400]


def test_a_baseline_that_is_not_finished_is_not_given_away(tmp_path: Path, laboratory: Laboratory) -> None:
    first, second = arm_runs(make_preset(), tmp_path, arms=("evolution", "random"))
    opened = open_evolution(first.folder, first.preset)
    opened.measure_base_policy()
    opened.verify_baseline(opened.register_baseline())
    opened.run.close()
    assert not share_baseline(second, [first, second])


def test_a_baseline_whose_copying_was_killed_is_copied_whole(
    tmp_path: Path, laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = arm_runs(make_preset(generations=1), tmp_path, arms=("evolution", "random"))
    opened = open_evolution(first.folder, first.preset)
    establish_baseline(opened)
    opened.run.close()
    append = Archive.append
    for left in range(8):
        budget = iter(range(left))

        def dying(self: Archive, *given: object, budget: Iterator[int] = budget, **options: object) -> int:
            if next(budget, None) is None:
                raise Killed
            return append(self, *given, **options)  # type: ignore[arg-type]

        with monkeypatch.context() as patched, contextlib.suppress(Killed):
            patched.setattr(Archive, "append", dying)
            share_baseline(second, [first, second])
    measured = list(laboratory.trained), list(laboratory.evaluated)
    opened = open_evolution(second.folder, second.preset)
    establish_baseline(opened)
    opened.run.close()
    assert (laboratory.trained, laboratory.evaluated) == measured
    theirs, mine = (RunDirectory.read(run.folder).archive for run in (first, second))
    for table in ("candidates", "verifications", "trajectories", "evaluations", "reflections"):
        contents = [[row["content_digest"] for row in archive.rows(table)] for archive in (mine, theirs)]
        assert contents[0] == contents[1], table


def test_an_arm_is_started_with_its_own_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child makes the arm's preset of its arguments, and a run stays where its archive was begun."""
    overrides = [f"archive=file://{tmp_path}/bucket?x=1", "search.generations=1"]
    started: list[list[str]] = []

    class Started:
        def __init__(self, command: list[str], **_: object) -> None:
            started.append(command)

        def wait(self) -> int:
            return 0

    monkeypatch.setattr(compare.subprocess, "Popen", Started)
    for run in arm_runs(load_preset("smoke", overrides), tmp_path / "arms", arms=("evolution", "random")):
        compare._evolve(run, "smoke", overrides)
        command = started[-1]
        given = [command[place + 1] for place, word in enumerate(command) if word == "--set"]
        assert load_preset("smoke", given) == run.preset


@pytest.mark.slow
def test_a_budget_ends_a_search_between_generations(tmp_path: Path, laboratory: Laboratory) -> None:
    """A training has 12 steps of 100 tokens, so a generation of two children costs four of the baseline's."""
    for budget, made in ((4, 1), (5, 2), (8, 2), (8.1, 3)):
        preset = make_preset(generations=3, trainings=budget)
        opened = open_evolution(tmp_path / f"run-{budget}", preset)
        evolve(opened)
        steps = best_so_far(opened.run.evidence())
        assert [step.generation for step in steps] == list(range(made + 1)), budget
        assert list(opened.generations()) == list(range(1, made + 1))
        opened.run.close()


@pytest.mark.slow
def test_a_generation_that_was_killed_is_made_whole_however_much_it_has_spent(
    tmp_path: Path, laboratory: Laboratory
) -> None:
    opened = open_evolution(tmp_path / "run", make_preset(generations=3, trainings=1))
    base = establish_baseline(opened)
    child = opened.trials.register("A", "a = 1\n", written_by="llm", generation=1, parent_ids=[base.candidate_id])
    opened.trials.measure(child, (0, 1))
    assert list(opened.generations()) == [1]


def _searched(run: ArmRun, others: list[ArmRun]) -> list[str]:
    """A baseline and two children, measured, without a search; the children's ids."""
    share_baseline(run, others)
    opened = open_evolution(run.folder, run.preset)
    base = establish_baseline(opened)
    parent = [base.candidate_id]
    children = [
        opened.trials.register(
            name, f"{name} = '{run.folder.name}'\n", written_by="llm", generation=1, parent_ids=parent
        )
        for name in ("A", "B")
    ]
    for child in children:
        opened.trials.measure(child, (0, 1))
    opened.run.close()
    return [child.candidate_id for child in children]


@pytest.mark.slow
def test_picks_are_measured_again_and_the_baseline_once(tmp_path: Path, laboratory: Laboratory) -> None:
    runs = arm_runs(make_preset(), tmp_path, arms=("evolution", "random"), seeds=(0, 1))
    picked = {run.folder: _searched(run, runs)[0] for run in runs}
    evidence = {run.folder: RunDirectory.read(run.folder).evidence() for run in runs}
    laboratory.trained.clear()
    laboratory.sealed_sets.clear()
    rows = [measure_again(run, picked[run.folder], 3, picked, executor=laboratory) for run in runs]
    assert {tuple(row["seeds"]) for row in rows} == {(2, 3, 4)}
    assert sorted(name for name in laboratory.trained if name.startswith("GRPO/")) == ["GRPO/2", "GRPO/3", "GRPO/4"]
    assert laboratory.sealed_sets == {1}
    assert len({row["baseline_overall"] for row in rows}) == 1
    assert not any(row["declared"] for row in rows)
    trained = list(laboratory.trained)
    assert [measure_again(run, picked[run.folder], 3, picked, executor=laboratory) for run in runs] == rows
    assert laboratory.trained == trained, "what is there is read back"
    baseline = evidence[runs[0].folder].baseline
    assert measure_again(runs[0], baseline, 3, {}, executor=laboratory) is None

    step = dataclasses.replace(best_so_far(evidence[runs[0].folder])[-1], pick=picked[runs[0].folder])
    pick = pick_of("evolution", 0, step, RunDirectory.read(runs[0].folder).evidence())
    assert (pick.delta.estimate, pick.delta.seeds, pick.outcome) == (rows[0]["delta"], 3, rows[0]["outcome"])
    own = dataclasses.replace(step, pick=baseline)
    assert pick_of("evolution", 0, own, evidence[runs[0].folder]).delta.estimate == 0.0
    assert pick_of("evolution", 0, step, evidence[runs[0].folder]).outcome == NOT_MEASURED


@pytest.mark.slow
def test_scores_of_other_problems_or_other_seeds_are_not_shared(tmp_path: Path, laboratory: Laboratory) -> None:
    """One run asks other problems, since it was made alone; one has given out the first fresh seeds before."""
    first, second = runs = arm_runs(make_preset(), tmp_path, arms=("evolution",), seeds=(0, 1))
    (alone,) = arm_runs(make_preset(), tmp_path / "alone", arms=("evolution",))
    children = {run.folder: _searched(run, runs) for run in runs} | {alone.folder: _searched(alone, [alone])}
    measure_again(
        second, children[second.folder][1], 3, {}, executor=laboratory
    )  # its seeds and its set of problems are used
    picked = {folder: names[0] for folder, names in children.items()}
    laboratory.trained.clear()
    for run in (first, second, alone):
        measure_again(run, picked[run.folder], 3, picked, executor=laboratory)
    own = sorted(name for name in laboratory.trained if name.startswith("GRPO/"))
    assert own == sorted(["GRPO/2", "GRPO/3", "GRPO/4"] * 2 + ["GRPO/5", "GRPO/6", "GRPO/7"])


def test_picks_by_hand() -> None:
    """Means 3 and 1, both with standard deviation sqrt 2 over two searches: Welch has 2 degrees of freedom, t = 4.3027,
    and the standard error of the difference is sqrt(2/2 + 2/2) = sqrt 2."""

    def pick(arm: str, seed: int, delta: float | None) -> Pick:
        found = None if delta is None else Interval(delta, delta - 1, delta + 1, 6)
        return Pick(arm, seed, f"{arm}-{seed}", arm, 80.0, "refuted", found)

    picks = [pick("evolution", 0, 2.0), pick("evolution", 1, 4.0), pick("random", 0, 0.0), pick("random", 1, 2.0)]
    evolution, random, tune = compare_picks([*picks, pick("tune", 0, 1.0), pick("tune", 1, None)])
    assert evolution.delta.estimate == 3.0
    assert evolution.delta.high - 3.0 == pytest.approx(12.7062, abs=1e-3)
    assert evolution.gap.estimate == 2.0
    assert evolution.gap.high - 2.0 == pytest.approx(4.3027 * math.sqrt(2), abs=1e-3)
    assert (random.gap, tune.delta, tune.gap) == (None, None, None)  # the reference; a pick that was not measured
    single, _ = compare_picks([picks[0], picks[2]])
    assert (single.gap.estimate, single.gap.low) == (2.0, -math.inf)
    nothing, _ = compare_picks([pick(arm, seed, 0.0) for arm in ("evolution", "random") for seed in (0, 1)])
    assert (nothing.gap.low, nothing.gap.high) == (
        0.0,
        0.0,
    )  # all name the baseline: no spread, and no lack of searches
    assert json.loads(json.dumps([one.to_dict() for one in (evolution, random, tune, single)], allow_nan=False))
    table = render_picks([evolution, random, tune], 12e6)
    assert [*table.columns[1].cells] == ["0", "1", "mean", "0", "1", "mean", "0", "1"]


def test_picks_are_those_of_the_common_budget() -> None:
    steps = [Step(0, 100, 45.0, "base"), Step(1, 200, 52.0, "a"), Step(2, 400, 60.0, "b")]
    assert common_budget([steps, steps[:2], []]) == 200
    assert common_budget([steps, [Step(0, 900, 45.0, "base")]]) == 900  # a dear baseline
    assert common_budget([]) == 0.0
    assert [pick_at(steps, budget).pick for budget in (100, 399, 400, 1e9)] == ["base", "a", "b", "b"]
    with pytest.raises(ValueError, match="99 tokens"):
        pick_at(steps, 99)


def test_a_run_directory_is_no_folder_for_a_comparison(tmp_path: Path) -> None:
    RunDirectory.open(tmp_path / "run", make_preset()).close()
    with pytest.raises(RunDirectoryError, match="several runs"):
        arm_runs(make_preset(), tmp_path / "run")


@pytest.mark.slow
def test_curves_by_hand(tmp_path: Path) -> None:
    """Seeds end at 52 and 50: mean 51, std sqrt 2, t(1) = 12.706, half-width 12.706 sqrt(2) / sqrt(2)."""
    a = [[Step(0, 100, 45.0), Step(1, 200, 52.0)], [Step(0, 100, 45.0), Step(1, 180, 50.0), Step(2, 300, 60.0)]]
    b = [[Step(0, 100, 45.0), Step(1, 250, 48.0)]]
    curves = {curve.arm: curve for curve in compare_arms({"a": a, "b": b, "unfinished": [[]]})}
    assert set(curves) == {"a", "b"}
    assert (curves["a"].tokens[0], curves["a"].tokens[-1]) == (100.0, 200.0)  # the shortest run ends the comparison
    last = curves["a"].best[-1]
    assert last.estimate == 51.0
    assert last.high - last.estimate == pytest.approx(12.7062, abs=1e-3)
    assert curves["b"].best[-1].estimate == 45.0  # its first generation lies beyond the budget
    assert compare_arms({}) == []
    for name in ("arms.svg", "arms.png"):
        draw_comparison(list(curves.values()), tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000
    table = render_comparison(list(curves.values()))
    assert list(table.columns[0].cells) == ["a", "b"]
    alone = dataclasses.replace(curves["b"])
    assert "no interval" in str(render_comparison([alone]).caption)
