"""Parent selection by score and exploration, and reference tiers."""

from __future__ import annotations

import math

import pytest

from poise_core.evaluation.statistics import Interval
from poise_core.search.selection import (
    NodeRecord,
    ScoreExplorationSelector,
    dominates,
    expansions,
    mechanism_distance,
    pareto_front,
    reference_set,
    shrunken_scores,
)


def node(
    name: str,
    overall: float | None = None,
    parents: tuple[str, ...] = (),
    half: float = 0.0,
    seeds: int = 3,
    **extra: dict[str, float] | dict[str, str] | tuple[float, ...],
) -> NodeRecord:
    interval = None if overall is None else Interval(overall, overall - half, overall + half, seeds)
    return NodeRecord(name, name.upper(), parents, 1 if parents else 0, interval, **extra)  # type: ignore[arg-type]


def test_shrinkage_by_hand() -> None:
    """Two seeds: t = 12.706, so a half-width of 12.706 is a standard error of 1 and a seed variance of 2.

    var(x) of 40, 44, 48 is 16; noise v/n = 1; tau^2 = 15; weight 15/16.
    """
    nodes = [node(n, x, half=12.7062, seeds=2) for n, x in (("a", 40.0), ("b", 44.0), ("c", 48.0))]
    assert shrunken_scores(nodes) == pytest.approx({"a": 44 - 4 * 15 / 16, "b": 44.0, "c": 44 + 4 * 15 / 16}, rel=1e-4)


def test_seed_scores_outrank_intervals_which_hold_the_problems_noise_too() -> None:
    """Variances 2 and 8 pool to 5 with one degree of freedom each; v/n = 2.5, var(x) = 12.5, tau^2 = 10, weight 0.8."""
    nodes = [
        node("a", 40.0, half=50.0, seeds=2, seed_overalls=(39.0, 41.0)),
        node("b", 45.0, half=50.0, seeds=2, seed_overalls=(43.0, 47.0)),
    ]
    assert shrunken_scores(nodes) == pytest.approx({"a": 42.5 - 2.5 * 0.8, "b": 42.5 + 2.5 * 0.8})


def test_pure_noise_is_shrunk_to_the_mean_and_exploration_decides() -> None:
    noisy = [node("a", 50.0, half=30.0), node("b", 51.0, half=30.0), node("c", 49.0, ("b",), half=30.0)]
    assert set(shrunken_scores(noisy).values()) == {50.0}
    chosen = ScoreExplorationSelector().select(noisy, 1, seed=0)[0]
    assert chosen.candidate_id != "b"  # the best raw number, but the only one that was expanded


def test_a_single_seed_borrows_the_variance_of_the_others() -> None:
    nodes = [node("a", 40.0, half=4.3027, seeds=3), node("b", 44.0, half=4.3027, seeds=3)]
    lucky = NodeRecord("lucky", "LUCKY", (), 0, Interval(60.0, -math.inf, math.inf, 1))
    shrunk = shrunken_scores([*nodes, lucky])
    # se 1 with three seeds is a variance of 3; one seed has noise 3, the others 1
    assert (60.0 - shrunk["lucky"]) / (60.0 - 48.0) > (shrunk["a"] - 40.0) / (48.0 - 40.0)
    alone = shrunken_scores([lucky])
    assert alone == {"lucky": 60.0}


def test_terms_by_hand() -> None:
    """Root with two children (one failed): N = 2; root n = 2, child n = 0."""
    nodes = [node("root", 40.0), node("good", 50.0, ("root",)), node("failed", None, ("root", "good"))]
    by_id = {score.candidate_id: score for score in ScoreExplorationSelector(exploration=0.5).score(nodes)}
    assert by_id["root"].terms["exploration"] == pytest.approx(0.5 * math.sqrt(math.log(3) / 3))
    assert by_id["good"].total == pytest.approx(1.0 + 0.5 * math.sqrt(math.log(3)))
    assert by_id["failed"].total is None
    assert "score" not in by_id["failed"].terms  # missing is not zero
    assert expansions(nodes) == {"root": 2, "good": 0, "failed": 0}  # lending a mechanism is no expansion


def test_parents_are_distinct_while_there_are_enough_and_repeat_from_the_best() -> None:
    nodes = [node("a", 40.0), node("b", 50.0), node("c", None), node("d", 45.0)]
    selector = ScoreExplorationSelector(exploration=0.0)
    assert [s.candidate_id for s in selector.select(nodes, 3, seed=1)] == ["b", "d", "a"]
    five = selector.select(nodes, 5, seed=1)
    assert [(s.candidate_id, s.slot, s.repeat) for s in five] == [
        ("b", 0, 0), ("d", 1, 0), ("a", 2, 0), ("b", 3, 1), ("d", 4, 1),
    ]  # fmt: skip
    assert "repeat 1" in five[3].reason
    assert "B ranks 1 of 3: score 1.00 (shrunken Overall 50.00)" in five[0].reason
    assert {score.candidate_id for score in five[0].scores} == {"a", "b", "c", "d"}
    assert all(s.scores is five[0].scores for s in five)


def test_one_node_gets_every_slot_and_no_node_gets_none() -> None:
    selector = ScoreExplorationSelector()
    only = selector.select([node("root", 47.8)], 3, seed=0)
    assert [(s.candidate_id, s.repeat) for s in only] == [("root", 0), ("root", 1), ("root", 2)]
    assert selector.select([], 3, seed=0) == []
    assert selector.select([node("failed")], 3, seed=0) == []
    broken = NodeRecord("nan", "NAN", (), 0, Interval(float("nan"), 0.0, 1.0, 3))
    assert selector.select([broken], 2, seed=0) == []
    assert [s.candidate_id for s in selector.select([broken, node("ok", 1.0)], 1, seed=0)] == ["ok"]


def test_ties_are_deterministic_and_depend_on_the_seed_not_on_the_order() -> None:
    nodes = [node(name, 50.0) for name in "abcdefgh"]
    selector = ScoreExplorationSelector()
    first = [s.candidate_id for s in selector.select(nodes, 3, seed=4)]
    assert [s.candidate_id for s in selector.select(nodes[::-1], 3, seed=4)] == first
    orders = {tuple(s.candidate_id for s in selector.select(nodes, 3, seed=seed)) for seed in range(10)}
    assert len(orders) > 5


def test_exploration_moves_on_from_a_node_that_was_expanded_often() -> None:
    children = [node(f"x{i}", None, ("best",)) for i in range(12)]
    nodes = [node("best", 50.0), node("near", 49.0), node("poor", 30.0), *children]
    assert ScoreExplorationSelector(exploration=0.5).select(nodes, 1, seed=0)[0].candidate_id == "near"
    assert ScoreExplorationSelector(exploration=0.0).select(nodes, 1, seed=0)[0].candidate_id == "best"


def test_dominance_needs_the_same_finite_benchmarks() -> None:
    assert dominates({"x": 2.0, "y": 1.0}, {"x": 1.0, "y": 1.0})
    assert not dominates({"x": 1.0}, {"x": 1.0})
    assert not dominates({"x": 2.0, "y": 1.0}, {"x": 1.0})
    assert not dominates({"x": float("nan")}, {"x": 1.0})
    front = pareto_front(
        [
            node("a", 1.0, benchmarks={"x": 3.0, "y": 1.0}),
            node("b", 1.0, benchmarks={"x": 1.0, "y": 3.0}),
            node("c", 1.0, benchmarks={"x": 1.0, "y": 1.0}),
            node("d", None, benchmarks={"x": 9.0, "y": 9.0}),
            node("e", 1.0),
        ]
    )
    assert [n.candidate_id for n in front] == ["a", "b"]


def test_reference_tiers() -> None:
    plain = {"scale": "std", "kl": "k3"}
    nodes = [
        node("root", 40.0, benchmarks={"x": 40.0}, mechanisms=plain),
        node("parent", 45.0, ("root",), benchmarks={"x": 45.0}, mechanisms=plain),
        node("child", 46.0, ("parent",), benchmarks={"x": 46.0}, mechanisms={"scale": "none", "kl": "k3"}),
        node("best", 50.0, ("root",), benchmarks={"x": 50.0}, mechanisms=plain),
        node("odd", 30.0, ("root",), benchmarks={"x": 30.0}, mechanisms={"scale": "none", "kl": "none"}),
        node("fresh", 41.0, ("root",), benchmarks={"x": 41.0}, mechanisms=plain),
        node("failed", None, ("root",), mechanisms={"scale": "a", "kl": "b"}),
    ]
    found = {choice.tier: choice for choice in reference_set(nodes, "parent")}
    assert found["pareto"].candidate_id == "best"
    assert found["complementary"].candidate_id == "odd"
    assert found["exploratory"].candidate_id == "fresh"  # root and child are family, best and odd are taken
    assert "100% of the slots" in found["complementary"].reason
    assert reference_set(nodes[:1], "root") == []
    with pytest.raises(KeyError):
        reference_set(nodes, "nobody")


def test_lineage_survives_missing_parents_and_cycles() -> None:
    nodes = [node("a", 1.0, ("b",)), node("b", 2.0, ("a", "gone")), node("c", 3.0)]
    assert [c.candidate_id for c in reference_set(nodes, "a", per_tier=3) if c.tier == "exploratory"] == ["c"]


def test_mechanism_distance_counts_slots_that_only_one_names() -> None:
    a = node("a", mechanisms={"x": "1", "y": "2"})
    b = node("b", mechanisms={"x": "1", "z": "3"})
    assert mechanism_distance(a, b) == pytest.approx(2 / 3)
    assert mechanism_distance(node("c"), node("d")) == 0.0
