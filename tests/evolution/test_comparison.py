"""Arms of search side by side: separate runs, one baseline, curves over tokens."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
from laboratory import Laboratory, evolve, make_preset, open_evolution

from poise_core.evidence.run_evidence import RunEvidence
from poise_core.experiments.arms import ARMS, arm_runs, share_baseline
from poise_core.render.svg import draw_comparison
from poise_core.render.terminal import render_comparison
from poise_core.run_directory import RunDirectory, RunDirectoryError
from poise_core.views.arms import Step, best_so_far, compare_arms


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


def test_a_baseline_that_is_not_finished_is_not_given_away(tmp_path: Path, laboratory: Laboratory) -> None:
    first, second = arm_runs(make_preset(), tmp_path, arms=("evolution", "random"))
    opened = open_evolution(first.folder, first.preset)
    opened.measure_base_policy()
    opened.verify_baseline(opened.register_baseline())
    opened.run.close()
    assert not share_baseline(second, [first, second])


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
