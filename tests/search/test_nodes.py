"""The tree as arrays, and scores without their luck."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import lucky, node

from poise_core.evidence.noise import winsorized
from poise_core.search.nodes import NodeTable, leaders, shrunken_scores
from poise_core.search.shrinkage import posterior, shrink


def test_shrinkage_by_hand() -> None:
    """Two seeds: t = 12.706, so a half-width of 12.706 is a standard error of 1 and a seed variance of 2.

    var(x) of 40, 44, 48 is 16; noise v/n = 1; tau^2 = 15; weight 15/16.
    """
    nodes = [node(n, x, half=12.7062, seeds=2) for n, x in (("a", 40.0), ("b", 44.0), ("c", 48.0))]
    assert shrunken_scores(nodes) == pytest.approx({"a": 44 - 4 * 15 / 16, "b": 44.0, "c": 44 + 4 * 15 / 16}, rel=1e-4)


def test_what_is_not_known_of_a_true_score_by_hand() -> None:
    """v = 4: noise 4, 2, 1; tau^2 = var(40, 44, 48) - 7/3 = 41/3; 1 / (1 / tau^2 + n / v) with n / v = 1/4, 1/2, 1."""
    values, seeds = np.array([40.0, math.nan, 44.0, 48.0]), np.array([1.0, 1.0, 2.0, 4.0])
    belief = posterior(values, seeds, 4.0)
    assert belief.spread == pytest.approx(41 / 3)
    assert belief.variance == pytest.approx(
        np.array([1 / (3 / 41 + 1 / 4), math.nan, 1 / (3 / 41 + 1 / 2), 1 / (3 / 41 + 1)]), nan_ok=True
    )
    assert shrink(values, seeds, 4.0) == pytest.approx(belief.mean, nan_ok=True)
    alone = posterior(values[:2], seeds[:2], 4.0)  # nothing to be shrunken to: it is known as well as it was measured
    assert (alone.mean[0], alone.variance[0], alone.spread) == (40.0, 4.0, math.inf)
    assert np.isnan(posterior(values, seeds, None).variance).all()
    assert posterior(values, seeds, 0.0).variance[[0, 2, 3]].tolist() == [0.0, 0.0, 0.0]


def test_seed_scores_outrank_intervals_which_hold_the_problems_noise_too() -> None:
    """Variances 2 and 8 pool to 5 with one degree of freedom each; v/n = 2.5, var(x) = 12.5, tau^2 = 10, weight 0.8."""
    nodes = [
        node("a", 40.0, half=50.0, seeds=2, seed_overalls=(39.0, 41.0)),
        node("b", 45.0, half=50.0, seeds=2, seed_overalls=(43.0, 47.0)),
    ]
    assert shrunken_scores(nodes) == pytest.approx({"a": 42.5 - 2.5 * 0.8, "b": 42.5 + 2.5 * 0.8})


def test_a_single_seed_borrows_the_variance_of_the_others() -> None:
    nodes = [node("a", 40.0, half=4.3027, seeds=3), node("b", 44.0, half=4.3027, seeds=3), lucky("lucky", 60.0)]
    shrunk = shrunken_scores(nodes)
    # se 1 with three seeds is a variance of 3; one seed has noise 3, the others 1
    assert (60.0 - shrunk["lucky"]) / (60.0 - 48.0) > (shrunk["a"] - 40.0) / (48.0 - 40.0)
    assert shrunken_scores([lucky("lucky", 60.0)]) == {"lucky": 60.0}


@pytest.mark.parametrize("named", [True, False], ids=["seeds are named", "intervals alone"])
def test_the_best_of_the_first_nodes_is_the_best_of_their_shrunken_scores(named: bool) -> None:
    """For every number of first nodes, to the last digit, with unscored ones and single seeds among them."""
    rng = np.random.default_rng(4)
    nodes = []
    for number in range(40):
        seeds = int(rng.integers(0, 4)) if number > 2 else 0
        values = tuple(rng.normal(50.0, 6.0, seeds).tolist())
        mean = float(np.mean(values)) if seeds else None
        half = float(rng.uniform(1.0, 5.0)) if seeds > 1 else math.inf
        nodes.append(node(str(number), mean, half=half, seeds=seeds, seed_overalls=values if named else ()))
    expected = [max(shrunken_scores(nodes[:count]).values(), default=None) for count in range(41)]
    found = leaders(nodes, range(41))
    assert [one and one[1] for one in found] == expected
    own = [one and shrunken_scores(nodes[:count])[one[0].candidate_id] for count, one in enumerate(found)]
    assert own == expected
    assert expected[:4] == [None] * 4
    assert len(set(expected)) > 20


def test_a_collapse_does_not_pass_for_spread() -> None:
    """Nine runs within their noise and one at 0: without winsorizing the spread would be all of them, and nothing shrunk."""
    values = np.array([48.0, 48.5, 49.0, 49.5, 50.0, 50.5, 51.0, 51.5, 52.0, 0.0])
    seeds, variance = np.full(10, 3.0), 12.0
    assert shrink(values, seeds, variance)[8] < 51.0
    assert winsorized(values).min() == pytest.approx(49.75 - 3 * 1.4826 * 1.25)  # |x - 49.75| has the median 1.25


def test_benchmarks_are_shrunken_each_by_its_own_noise_and_absence_is_the_mean() -> None:
    nodes = [
        node("a", 40.0, benchmarks={"noisy": 40.0, "still": 10.0}, seed_benchmarks={"noisy": (30.0, 50.0)}),
        node("b", 44.0, benchmarks={"noisy": 42.0, "still": 20.0}, seed_benchmarks={"noisy": (32.0, 52.0)}),
        node("c", 42.0, benchmarks={"still": 30.0}),
        node("d", 42.0, benchmarks={"noisy": math.nan, "still": math.nan}),
        node("failed", None, benchmarks={"noisy": 99.0, "still": 99.0}),
    ]
    table = NodeTable.of(nodes)
    noisy, still = table.benchmarks.T
    assert noisy == pytest.approx([41.0] * 5)  # var 2 beside a noise of 200 / 2: nothing but noise
    assert still[:4] == pytest.approx([10.0, 20.0, 30.0, 20.0])


def test_depths_levels_kinship_and_children() -> None:
    nodes = [
        node("r", 1.0),
        node("a", 1.0, ("r",)),
        node("b", 1.0, ("a", "r")),
        node("c", None, ("a",)),
        node("s", 1.0),
    ]
    table = NodeTable.of(nodes)
    assert table.depth.tolist() == [0, 1, 2, 2, 0]
    assert [sorted(level.tolist()) for level in table.levels] == [[0, 4], [1], [2, 3]]
    assert table.kinship(2).tolist() == pytest.approx([1 / 3, 2 / 3, 1.0, 2 / 4, 0.0])
    assert table.children.tolist() == [1, 2, 0, 0, 0]  # failed ones included; lending a mechanism makes no child


def test_loops_and_missing_parents_become_roots() -> None:
    nodes = [node("a", 1.0, ("b",)), node("b", 2.0, ("a", "gone")), node("c", 3.0, ("b",)), node("d", 4.0, ("gone",))]
    assert NodeTable.of(nodes).depth.tolist() == [0, 0, 0, 0]
    assert NodeTable.of([]).levels == []


@given(st.lists(st.integers(-1, 30), min_size=1, max_size=60))
def test_depths_agree_with_walking_up(links: list[int]) -> None:
    parents = [min(link, row - 1) if row else -1 for row, link in enumerate(links)]
    nodes = [node(str(row), 1.0, (str(parent),) if parent >= 0 else ()) for row, parent in enumerate(parents)]

    def walk(row: int) -> int:
        return 0 if parents[row] < 0 else 1 + walk(parents[row])

    assert NodeTable.of(nodes).depth.tolist() == [walk(row) for row in range(len(parents))]
