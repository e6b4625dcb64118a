"""The replay of the published tree shows no rule what is not yet visible."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poise_core.config.search import AcquisitionSpec
from poise_core.search.nodes import NodeRecord, NodeTable
from studies import paper_tree
from studies.paper_tree import (
    BENCHMARKS,
    ORDERS,
    RULES,
    Outcomes,
    draw_order,
    interval,
    published_tree,
    replay,
)

SPEC = AcquisitionSpec()


def test_the_published_tree_is_whole() -> None:
    """Overall = 0.2 (AIME24 + AIME25) + 0.15 (the other four), as the paper defines it, to its rounding."""
    nodes = published_tree()
    assert len(nodes) == 63
    table = NodeTable.of(nodes)
    assert table.depth.tolist() == [node.generation for node in nodes]
    assert (table.depth == 0).sum() == 1
    for node in nodes:
        assert node.overall is not None
        weighted = sum(w * node.benchmarks[b] for b, w in zip(BENCHMARKS, (0.2, 0.2, *[0.15] * 4), strict=True))
        assert weighted == pytest.approx(node.overall.estimate, abs=0.11)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(ORDERS))
def test_parents_come_first_in_every_order(seed: int, order: paper_tree.Order) -> None:
    nodes = published_tree()
    rows = draw_order(nodes, order, np.random.default_rng(seed))
    assert sorted(rows) == list(range(len(nodes)))
    place = {nodes[row].candidate_id: position for position, row in enumerate(rows)}
    assert all(place[p] < place[node.candidate_id] for node in nodes for p in node.parent_ids)
    if order == "by depth":
        assert [nodes[row].generation for row in rows] == sorted(node.generation for node in nodes)


def test_outcomes_by_hand() -> None:
    """root -> a -> b; root -> c. Visible: root and a. Unseen below root: b, c; below a: b. K = 3, gamma 0.8, beta 3."""

    def node(name: str, overall: float, *parents: str) -> NodeRecord:
        return NodeRecord(name, name, parents, 0, paper_tree.Interval(overall, -math.inf, math.inf, 1))

    nodes = [node("root", 48.0), node("a", 45.0, "root"), node("b", 51.0, "a"), node("c", 45.0, "root")]
    found = Outcomes.of(NodeTable.of(nodes), [0, 1], SPEC)
    assert found.descendant.tolist() == [51.0, 51.0]
    assert found.child.tolist() == [45.0, 51.0]
    root = 100 * (0.64 * math.tanh(1.0) + 0.8 * math.tanh(-1.0)) / 2
    assert found.gain == pytest.approx([root, 100 * 0.8 * math.tanh(2.0)])
    assert found.of_round([0, 1]) == pytest.approx((51.0, 51.0, (root + 80 * math.tanh(2.0)) / 2))
    assert np.isnan(Outcomes.of(NodeTable.of(nodes), [0, 1, 2, 3], SPEC).descendant).all()


def test_rules_see_only_visible_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[NodeTable] = []
    original = paper_tree.judge

    def spy(table: NodeTable, spec: AcquisitionSpec) -> object:
        seen.append(table)
        return original(table, spec)

    monkeypatch.setattr(paper_tree, "judge", spy)
    nodes = published_tree()
    found = replay(nodes, "any", 0, SPEC)
    order = [nodes[row].candidate_id for row in draw_order(nodes, "any", np.random.default_rng([0, 0]))]
    assert set(found) == set(RULES)
    assert all(values.shape == (len(seen), 3) for values in found.values())
    for table in seen:
        assert list(table.ids) == order[: table.size]
    assert replay(nodes, "any", 0, SPEC)["acquisition"] == pytest.approx(found["acquisition"], nan_ok=True)


def test_interval_covers_its_mean_and_drops_rounds_without_value() -> None:
    mean, low, high = interval([np.array([1.0, 3.0, math.nan]), np.array([2.0, 2.0]), np.array([math.nan])])
    assert mean == 2.0
    assert low <= mean <= high


@pytest.mark.exhaustive
def test_the_page_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    few = published_tree()[:40]
    monkeypatch.setattr(paper_tree, "published_tree", lambda: few)
    paper_tree.main(["--orders", "2", "--out", str(tmp_path)], said.append)
    text = (tmp_path / "paper_tree.md").read_text()
    assert said[0].splitlines()[0] in text
    assert (tmp_path / "paper_tree.svg").stat().st_size > 1000
