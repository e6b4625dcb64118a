"""Choosing parents: spread, ties, repeats, faults; control arms; reference tiers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import lucky, node

from poise_core.config.search import AcquisitionSpec
from poise_core.evidence.intervals import Interval
from poise_core.search.acquisition import AcquisitionSelector
from poise_core.search.arms import GreedySelector, RootSelector
from poise_core.search.nodes import NodeRecord, NodeTable
from poise_core.search.references import mechanism_distance, non_dominated, reference_set
from poise_core.search.selection import pick_spread


def weighing(**weights: float) -> AcquisitionSelector:
    plain = {"pareto": 0.0, "performance": 0.0, "diversity": 0.0, "potential": 0.0, "lineage_penalty": 0.0}
    return AcquisitionSelector(AcquisitionSpec(**{**plain, **weights}))


def test_parents_are_distinct_while_there_are_enough_and_repeat_from_the_best() -> None:
    nodes = [node("a", 40.0), node("b", 50.0), node("c", None), node("d", 45.0)]
    selector = weighing(performance=1.0)
    assert [s.candidate_id for s in selector.select(nodes, 3, seed=1)] == ["b", "d", "a"]
    five = selector.select(nodes, 5, seed=1)
    assert [(s.candidate_id, s.slot, s.repeat) for s in five] == [
        ("b", 0, 0), ("d", 1, 0), ("a", 2, 0), ("b", 3, 1), ("d", 4, 1),
    ]  # fmt: skip
    assert "repeat 1" in five[3].reason
    assert (
        "B ranks 1 of 3: 0.81 = 0 x pareto 0.50 + 1 x performance 0.81 (shrunken Overall 50.00, 3 seeds)"
        in five[0].reason  # 0, 0.5 and 1 have the standard deviation 0.408: 0.5 + (0.5 / 0.408) / 4
    )
    assert [score.candidate_id for score in five[0].scores] == ["a", "b", "c", "d"]
    assert all(s.scores is five[0].scores for s in five)


def test_slots_of_immigrants_come_last_and_go_to_the_baseline() -> None:
    children = [node(f"c{i}", 50.0 + i, ("root",), generation=1) for i in range(3)]
    nodes = [node("root", 40.0), *children]
    plain = weighing(performance=1.0)
    mixed = replace(plain, immigrants=2)
    chosen = mixed.select(nodes, 5, seed=1)
    assert chosen[:3] == plain.select(nodes, 3, seed=1)
    assert [(one.candidate_id, one.slot, one.repeat) for one in chosen[3:]] == [("root", 3, 0), ("root", 4, 1)]
    assert chosen[4].reason == "ROOT is the baseline, of which immigrants from the whole catalogue are children."
    everyone = mixed.select(nodes, 1, seed=1)
    assert [one.candidate_id for one in everyone] == ["root"], "more immigrants than slots leave none for others"
    repeated = mixed.select(nodes, 6, seed=1)
    assert [(one.candidate_id, one.repeat) for one in repeated[3:]] == [("root", 0), ("root", 1), ("root", 2)]
    opening = replace(mixed, opening=5).select(nodes, 3, seed=1)
    assert [(one.candidate_id, one.repeat) for one in opening] == [("root", 0), ("root", 1), ("root", 2)]
    assert replace(mixed, opening=4).select(nodes, 5, seed=1) == chosen, "four were tried"
    unscored = [*nodes[:3], replace(nodes[3], overall=None)]
    bred = replace(mixed, opening=4).select(unscored, 5, seed=1)[:3]
    assert {one.candidate_id for one in bred} == {"root", "c0", "c1"}, (
        "who was stopped was tried, or an opening might not end"
    )
    stuck = [*nodes, *(node(f"d{g}", 50.0, ("c2",), generation=g) for g in (2, 3, 4, 5))]
    last = mixed.select(stuck, 4, seed=1)
    assert "unexplored branch" in last[1].reason, "of those that are no immigrants' the last"
    assert [one.candidate_id for one in last[2:]] == ["root", "root"]


def test_terms_of_every_node_go_to_the_archive_and_missing_is_not_zero() -> None:
    nodes = [node("root", 40.0), node("good", 50.0, ("root",)), node("failed", None, ("root",))]
    scores = {s.candidate_id: s for s in AcquisitionSelector().select(nodes, 1, seed=0)[0].scores}
    assert scores["failed"].total is None
    assert scores["failed"].terms == {"children": 0.0}
    assert set(scores["good"].terms) == {
        "pareto", "performance", "diversity", "potential", "shrunken_overall", "seeds", "gain_mean", "gain_std",
        "gain_mechanical", "children",
        "contribution_pareto", "contribution_performance", "contribution_diversity", "contribution_potential",
    }  # fmt: skip
    assert "gain_observed" in scores["root"].terms
    spec = AcquisitionSpec()
    weights = {name: getattr(spec, name) for name in ("pareto", "performance", "diversity", "potential")}
    for score in (scores["root"], scores["good"]):
        assert score.total == pytest.approx(sum(score.terms[f"contribution_{name}"] for name in weights))
    plain = AcquisitionSelector(AcquisitionSpec(scale="none")).select(nodes, 1, seed=0)[0].scores
    for one in (score for score in plain if score.total is not None):
        assert one.total == pytest.approx(sum(w * one.terms[name] for name, w in weights.items()))


def test_the_second_parent_comes_from_another_lineage_unless_it_is_much_worse() -> None:
    """a1 shares root and a with the first pick a2: 2/4 of their ancestry; b1 shares the root only: 1/5."""
    nodes = [
        node("root", 40.0), node("a", 44.0, ("root",)), node("a1", 49.5, ("a",)), node("a2", 50.0, ("a",)),
        node("b", 44.0, ("root",)), node("b1", 49.0, ("b",)),
    ]  # fmt: skip
    table = NodeTable.of(nodes)
    totals = np.array([0.0, 0.4, 0.95, 1.0, 0.4, 0.9])
    assert [table.ids[p.row] for p in pick_spread(table, totals, 3, 0.0, seed=0)] == ["a2", "a1", "b1"]
    spread = pick_spread(table, totals, 3, 0.3, seed=0)
    assert [table.ids[p.row] for p in spread] == ["a2", "b1", "a1"]  # 0.9 - 0.06 before 0.95 - 0.15
    assert [p.penalty for p in spread] == pytest.approx([0.0, 0.3 / 5, 0.3 * 2 / 4])
    assert [p.rank for p in spread] == [1, 3, 2]
    totals[5] = 0.7
    assert [table.ids[p.row] for p in pick_spread(table, totals, 2, 0.3, seed=0)] == ["a2", "a1"]


def test_one_node_gets_every_slot_and_no_node_gets_none() -> None:
    for selector in (AcquisitionSelector(), GreedySelector(), RootSelector()):
        only = selector.select([node("root", 47.8)], 3, seed=0)
        assert [(s.candidate_id, s.repeat) for s in only] == [("root", 0), ("root", 1), ("root", 2)]
        assert selector.select([], 3, seed=0) == []
        assert selector.select([node("failed")], 3, seed=0) == []
        broken = NodeRecord("nan", "NAN", (), 0, Interval(float("nan"), 0.0, 1.0, 3))
        assert selector.select([broken], 2, seed=0) == []
        assert [s.candidate_id for s in selector.select([broken, node("ok", 1.0)], 1, seed=0)] == ["ok"]


def test_ties_are_deterministic_and_depend_on_the_seed_not_on_the_order() -> None:
    nodes = [node(name, 50.0) for name in "abcdefgh"]
    selector = AcquisitionSelector()
    first = [s.candidate_id for s in selector.select(nodes, 3, seed=4)]
    assert [s.candidate_id for s in selector.select(nodes[::-1], 3, seed=4)] == first
    orders = {tuple(s.candidate_id for s in selector.select(nodes, 3, seed=seed)) for seed in range(10)}
    assert len(orders) > 5


def test_all_nodes_dominated_by_one_are_still_ranked() -> None:
    ideal = node("best", 90.0, benchmarks={"x": 90.0, "y": 90.0})
    rest = [node(n, v, ("best",), benchmarks={"x": v, "y": v}) for n, v in (("a", 10.0), ("b", 20.0), ("c", 30.0))]
    assert [s.candidate_id for s in weighing(pareto=1.0).select([ideal, *rest], 4, seed=0)] == ["best", "c", "b", "a"]


def test_one_lucky_seed_does_not_lead() -> None:
    """56 of one seed against 52 of three, in a tree whose seeds differ by 10."""
    seeds = (-10.0, 0.0, 10.0)
    nodes = [
        node(n, x, ("root",) if n != "root" else (), seed_overalls=tuple(x + s for s in seeds))
        for n, x in (("root", 40.0), ("a", 52.0), ("b", 46.0), ("c", 34.0), ("d", 28.0))
    ]
    nodes.append(lucky("lucky", 56.0, ("root",), seed_overalls=(56.0,)))
    assert weighing(performance=1.0).select(nodes, 1, seed=0)[0].candidate_id == "a"
    assert GreedySelector().select(nodes, 1, seed=0)[0].candidate_id == "lucky"


def test_missing_benchmarks_and_nan_metrics_are_no_zero() -> None:
    whole = {"x": 50.0, "y": 50.0}
    nodes = [
        node("root", 50.0, benchmarks=whole), node("half", 50.0, ("root",), benchmarks={"x": 50.0}),
        node("nan", 50.0, ("root",), benchmarks={"x": 50.0, "y": math.nan}), node("none", 50.0, ("root",)),
        node("poor", 30.0, ("root",), benchmarks={"x": 30.0, "y": 30.0}),
    ]  # fmt: skip
    scores = {s.candidate_id: s.terms["pareto"] for s in AcquisitionSelector().select(nodes, 1, seed=0)[0].scores}
    assert min(scores["half"], scores["nan"], scores["none"]) > scores["poor"]


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_tree_gives_as_many_parents_as_asked_all_scored(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 25))
    score = st.one_of(st.none(), st.floats(0, 100), st.just(math.nan))
    values = [data.draw(score) for _ in range(size)]
    nodes = [
        node(str(i), v, (str(data.draw(st.integers(0, 30))),) if i else (), seeds=data.draw(st.integers(1, 3)),
             benchmarks={"x": data.draw(st.floats(0, 100))} if data.draw(st.booleans()) else {})
        for i, v in enumerate(values)
    ]  # fmt: skip
    usable = {n.candidate_id for n in nodes if n.scored}
    chosen = AcquisitionSelector().select(nodes, 3, seed=0)
    assert len(chosen) == (3 if usable else 0)
    assert {s.candidate_id for s in chosen} <= usable
    assert len({s.candidate_id for s in chosen}) == min(3, len(usable))


# ---- control arms


def test_control_arms_take_every_child_from_one_node() -> None:
    nodes = [node("root", 40.0), node("a", 50.0, ("root",)), node("b", 49.0, ("a",)), node("c", None, ("a",))]
    greedy, root = (arm.select(nodes, 3, seed=0) for arm in (GreedySelector(), RootSelector()))
    assert [(s.candidate_id, s.repeat) for s in greedy] == [("a", 0), ("a", 1), ("a", 2)]
    assert [s.candidate_id for s in root] == ["root"] * 3
    assert [s.total for s in root[0].scores] == [1.0, None, None, None]
    assert "best Overall so far" in greedy[0].reason


# ---- references


def test_domination() -> None:
    vectors = np.array([[3.0, 1.0], [1.0, 3.0], [1.0, 1.0], [3.0, 1.0]])
    assert [non_dominated(vectors, row) for row in range(4)] == [True, True, False, True]


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
