"""Variations and immigrants apart, by hand, in a replay and in a run."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from made_up_tables import compositions_that_pay

from poise_core.config import load_preset
from poise_core.experiments.contest import Contest, arms_on
from poise_core.experiments.world import World
from poise_core.run_directory import RunDirectory
from poise_core.views import leaderboard
from studies.kinds import of_replay, of_run, row, summary

LAPTOP_64 = Path(__file__).parents[2] / "docs" / "results" / "laptop-64"


def test_late_children_with_a_score_count() -> None:
    children = [(4, False, 99.0), (5, False, 80.0), (6, False, 90.0), (6, False, math.nan), (7, True, 70.0)]
    found = summary(children)
    assert found.tolist() == [2, 85.0, 90.0, 1, 70.0, 70.0]
    none = summary(children[:-1])
    assert none[3] == 0
    assert np.isnan(none[4:]).all(), "no immigrant has a score"


def test_a_row_by_hand() -> None:
    """Medians differ by 2 and by 4; the third search has no immigrants."""
    two = np.array([[3, 82.0, 90.0, 2, 80.0, 84.0], [5, 84.0, 88.0, 4, 80.0, 88.0]])
    third = [[6, 86.0, 92.0, 0, np.nan, np.nan]]
    shown = row("x", np.vstack([two, third]))
    assert shown[:-1] == ("x", "5", "84.0", "90.0", "2", "80.0", "86.0")
    assert shown[-1] == "+3.0 (+2.0 to +4.0)", "2.05 to 3.95"
    assert row("x", np.array(third))[3:] == ("92.0", "0", "-", "-", "-")


def test_children_of_a_replay_and_of_a_run() -> None:
    preset = load_preset("laptop-64")
    contest = Contest.of(World.build(compositions_that_pay(120)), preset.search, 40.0)
    arms = arms_on(preset, contest.world.cells)
    search = contest.search_of(arms["immigrants alone"], 0)
    children = of_replay(search)
    assert len(children) == len(search.nodes) - 1
    assert all(immigrant for _, immigrant, _ in children)
    kinds = {immigrant for _, immigrant, _ in of_replay(contest.search_of(arms["evolution"], 0))}
    assert kinds == {False, True}
    evidence = RunDirectory.read(LAPTOP_64).evidence()
    run = of_run(evidence)
    assert 0 < sum(immigrant for _, immigrant, _ in run) < len(run), "few vary the baseline"
    best = max(node.overall.estimate for node in leaderboard(evidence) if node.overall is not None)
    assert max(overall for *_, overall in run if overall == overall) == best
