"""Each term of the acquisition: numbers by hand, and what must hold for any tree."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, Matern
from trees import node

from poise_core.config.search import AcquisitionSpec
from poise_core.search.acquisition import judge, on_common_scale, performance
from poise_core.search.diversity import distances, novelty
from poise_core.search.nodes import NodeRecord, NodeTable
from poise_core.search.pareto import hypervolume_shares, pareto_strength, unit_positions
from poise_core.search.potential import (
    JITTER,
    LENGTHS,
    VARIANCES,
    NodeFeatures,
    Process,
    correlation,
    descendant_gain,
    descendant_potential,
    falling_slope,
    top_descendants,
)
from poise_core.search.sketches import behaviour_sketch

SPEC = AcquisitionSpec()

# ---- U_pareto


def test_shares_of_one_benchmark_are_those_of_the_airport_game() -> None:
    """Scores 0, 50, 100 lie at 10, 60, 110 over a reference of -10: positions 1/11, 6/11, 1.

    The lowest gets a third of the first stretch; the middle that and half of the second; the best that and all of the third.
    """
    low = 1 / 33
    middle = low + (5 / 11) / 2
    best = middle + 5 / 11
    assert pareto_strength(np.array([[0.0], [50.0], [100.0]])) == pytest.approx([low / best, middle / best, 1.0])


def test_equal_nodes_share_and_a_specialist_is_above_what_it_dominates() -> None:
    strength = pareto_strength(np.array([[90.0, 10.0], [10.0, 90.0], [45.0, 10.0], [45.0, 10.0]]))
    assert strength[2] == strength[3]
    assert strength[2] < strength[0]
    assert np.all(pareto_strength(np.full((3, 4), 7.0)) == 1.0)
    assert np.all(pareto_strength(np.zeros((3, 0))) == 1.0)
    assert pareto_strength(np.zeros((0, 3))).shape == (0,)


def test_shares_add_up_to_the_dominated_volume() -> None:
    """Boxes 1 x 0.2 and 0.2 x 1 overlap in 0.2 x 0.2: 0.36 together; a cube of side 0.5 beside them changes 0.36 to 0.45."""
    specialists = np.array([[1.0, 0.2], [0.2, 1.0]])
    assert hypervolume_shares(specialists).sum() == pytest.approx(0.36, rel=0.1)
    balanced = hypervolume_shares(np.array([[1.0, 0.2], [0.2, 1.0], [0.5, 0.5]]))
    assert balanced.sum() == pytest.approx(0.45, rel=0.1)
    assert balanced[2] > 0.09  # what it alone dominates, and part of what it shares


def test_a_collapse_does_not_level_the_others() -> None:
    benchmarks = np.array([[50.0], [51.0], [52.0], [53.0], [54.0], [0.0]])
    assert unit_positions(benchmarks)[0, 0] < 0.7  # 55.4 / 59.4 without the rule


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 20)] * 3), min_size=2, max_size=25))
def test_dominance_is_never_reversed(vectors: list[tuple[int, ...]]) -> None:
    benchmarks = np.array(vectors, float)
    strength = pareto_strength(benchmarks)
    assert np.all((strength >= 0) & (strength <= 1 + 1e-12))
    for a in range(len(vectors)):
        for b in range(len(vectors)):
            if (benchmarks[a] >= benchmarks[b]).all():
                assert strength[a] >= strength[b] - 1e-12


# ---- U_perf


def test_performance_by_hand() -> None:
    table = NodeTable.of([node("a", 40.0), node("b", 45.0), node("c", 50.0), node("failed")])
    assert performance(table)[:3].tolist() == [0.0, 0.5, 1.0]
    assert math.isnan(performance(table)[3])
    assert performance(NodeTable.of([node("a", 40.0)])).tolist() == [0.5]


# ---- U_div


def test_distance_is_the_mean_of_structure_and_behaviour_where_both_are_known() -> None:
    nodes = [
        node("a", 1.0, mechanisms={"x": "1", "y": "2"}, sketch=(3.0, 4.0)),
        node("b", 1.0, mechanisms={"x": "1", "z": "3"}, sketch=(3.0, 0.0)),
        node("c", 1.0, sketch=(3.0, 4.0)),
        node("d", 1.0),
    ]
    table = NodeTable.of(nodes)
    rows = np.arange(4)
    found = distances(table, rows, rows)
    assert found[0, 1] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert found[0, 2] == pytest.approx(0.0, abs=1e-7)  # c is outside the catalogue: behaviour alone
    assert found[1, 2] == pytest.approx(4 / 5)
    assert found[0, 3] == 0.0  # nothing to compare
    assert np.allclose(found, found.T)


def test_novelty_is_relative_to_the_most_novel_and_only_scored_nodes_count() -> None:
    mechanisms = [{"x": "1", "y": "1"}, {"x": "1", "y": "1"}, {"x": "2", "y": "2"}]
    nodes = [node(str(i), 1.0, mechanisms=m) for i, m in enumerate(mechanisms)]
    nodes.append(node("failed", None, mechanisms={"x": "2", "y": "2"}))
    values = novelty(NodeTable.of(nodes), neighbours=2)
    assert values[:3] == pytest.approx([0.5, 0.5, 1.0])
    assert math.isnan(values[3])
    assert novelty(NodeTable.of(nodes[:2]), 5).tolist() == [0.0, 0.0]
    assert novelty(NodeTable.of(nodes[:1]), 5).tolist() == [0.0]


def test_novelty_of_many_nodes_is_measured_against_a_sample() -> None:
    nodes = [node(str(i), 1.0, mechanisms={"x": str(i % 7), "y": "odd" if i == 3 else "plain"}) for i in range(700)]
    values = novelty(NodeTable.of(nodes), 5)
    assert values[3] == 1.0
    assert np.delete(values, 3).max() < 1.0


def test_the_sketch_is_read_from_a_fingerprint_as_the_gate_writes_it() -> None:
    from poise_core.algorithms import algorithm_path
    from poise_core.candidate.loading import load_candidate
    from poise_core.verification.fingerprint import _sketch, fingerprint, observe

    text = fingerprint(observe(load_candidate(algorithm_path("grpo"))))
    expected = _sketch(text)
    assert expected is not None
    assert behaviour_sketch(text) == tuple(expected.tolist())
    assert (
        behaviour_sketch(None)
        == behaviour_sketch("0123")
        == behaviour_sketch("ab.!!")
        == behaviour_sketch("a.QUFB")
        == ()
    )


# ---- alpha_GP


def family() -> list[NodeRecord]:
    """root 40 -> a 43 -> b 49, c (failed); root -> d 37."""
    return [
        node("root", 40.0),
        node("a", 43.0, ("root",)),
        node("b", 49.0, ("a",)),
        node("c", None, ("a",)),
        node("d", 37.0, ("root",)),
    ]


def test_descendant_gain_by_hand() -> None:
    """K = 2, gamma = 0.5, beta = 3: the root's best two are b (+9, two steps) and a (+3, one step)."""
    spec = AcquisitionSpec(top_descendants=2, discount=0.5, gain_scale=3.0)
    gain, support = descendant_gain(NodeTable.of(family()), spec)
    assert gain[0] == pytest.approx((0.25 * math.tanh(3.0) + 0.5 * math.tanh(1.0)) / 2)
    assert gain[1] == pytest.approx(0.5 * math.tanh(2.0))  # the failed child is no gain and no loss
    assert np.isnan(gain[2:]).all()
    assert support.tolist() == [2, 1, 0, 0, 0]


def test_descendants_of_a_failed_node_count_for_its_ancestors() -> None:
    nodes = [node("root", 40.0), node("failed", None, ("root",)), node("child", 46.0, ("failed",))]
    gain, _ = descendant_gain(NodeTable.of(nodes), AcquisitionSpec(top_descendants=1, discount=0.5))
    assert gain[0] == pytest.approx(0.25 * math.tanh(2.0))
    assert math.isnan(gain[1])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.one_of(st.none(), st.integers(0, 9))), min_size=1, max_size=40))
def test_top_descendants_agree_with_a_naive_search(drawn: list[tuple[int, int | None]]) -> None:
    nodes = []
    for row, (link, score) in enumerate(drawn):
        parents = (str(min(link, row - 1)),) if row else ()
        nodes.append(node(str(row), None if score is None else float(score), parents))
    table = NodeTable.of(nodes)
    values, depths = top_descendants(table, 3)
    for row in range(table.size):
        below = [r for r in range(table.size) if r != row and table.ancestry(r)[row] and table.scored[r]]
        expected = sorted((-table.shrunken[r], table.depth[r]) for r in below)[:3]
        found = [(-v, d) for v, d in zip(values[row], depths[row], strict=True) if not math.isnan(v)]
        assert found == expected


def test_a_young_tree_has_the_prior_and_children_wear_it_off() -> None:
    table = NodeTable.of(family())
    potential = descendant_potential(table, SPEC)
    assert not potential.fitted
    gain, _ = descendant_gain(table, SPEC)
    assert potential.mean[[0, 1, 2, 4]] == pytest.approx([np.nansum(gain) / 3] * 4)
    assert potential.std[[0, 1, 2]] == pytest.approx(0.5 / np.sqrt([3, 3, 1]))
    assert math.isnan(potential.upper[3])


def fertile_and_barren() -> list[NodeRecord]:
    """Nodes with mechanism good have children that gain, those with bad have children that lose; two leaves are undecided."""
    nodes = [node("root", 45.0)]
    for i in range(8):
        kind = "good" if i % 2 else "bad"
        nodes.append(node(f"p{i}", 45.0, ("root",), mechanisms={"m": kind}))
        nodes.append(node(f"c{i}", 49.0 if kind == "good" else 41.0, (f"p{i}",), mechanisms={"m": "other"}))
    nodes += [node(f"leaf-{kind}", 45.0, ("root",), mechanisms={"m": kind}) for kind in ("good", "bad")]
    return nodes


def test_leaves_inherit_what_their_kind_has_shown() -> None:
    nodes = fertile_and_barren()
    rows = {n.candidate_id: row for row, n in enumerate(nodes)}
    potential = descendant_potential(NodeTable.of(nodes), SPEC)
    assert potential.fitted
    assert potential.mean[rows["leaf-good"]] > 0.1 > -0.1 > potential.mean[rows["leaf-bad"]]
    assert np.isnan(potential.target[rows["leaf-good"]])
    assert potential.std[rows["p1"]] <= potential.std[rows["leaf-good"]] + 1e-9
    assert potential.upper == pytest.approx(potential.mean + potential.std, nan_ok=True)


@pytest.mark.parametrize("kernel", ["matern", "rbf"])
def test_equal_features_with_unequal_targets_do_not_break_the_process(kernel: str) -> None:
    nodes = [node("root", 45.0)]
    for i in range(12):
        nodes.append(node(f"p{i}", 45.0, ("root",)))
        nodes.append(node(f"c{i}", 45.0 + (-1) ** i, (f"p{i}",)))
    table = NodeTable.of(nodes)
    features = NodeFeatures.of(table).rows(np.arange(table.size))
    assert np.array_equal(features[1], features[3])
    potential = descendant_potential(table, AcquisitionSpec(kernel=kernel))
    assert potential.fitted
    assert np.isfinite(potential.upper).all()
    assert potential.mean[1] == pytest.approx(potential.mean[3])


def test_more_targets_than_the_process_takes() -> None:
    rng = np.random.default_rng(0)
    nodes = [node("0", 45.0)]
    nodes += [node(str(i), 45.0 + rng.normal(), (str(rng.integers(0, i)),)) for i in range(1, 120)]
    potential = descendant_potential(NodeTable.of(nodes), AcquisitionSpec(max_targets=20))
    assert potential.fitted
    assert np.isfinite(potential.upper).all()


def test_the_total_is_the_weighted_sum_and_failures_have_none() -> None:
    table = NodeTable.of(family())
    judgement = judge(table, AcquisitionSpec(scale="none"))
    expected = (
        0.2 * judgement.pareto + 0.4 * judgement.performance + 0.1 * judgement.diversity
        + 0.3 * (judgement.potential.upper + 1) / 2
    )  # fmt: skip
    assert judgement.total == pytest.approx(expected, nan_ok=True)
    assert np.isnan(judgement.total).tolist() == [False, False, False, True, False]
    scaled = judge(table, SPEC)
    weights = {"pareto": 0.2, "performance": 0.4, "diversity": 0.1, "potential": 0.3}
    for name, values in judgement.raw.items():
        expected = weights[name] * on_common_scale(values, "deviation")
        assert scaled.contributions[name] == pytest.approx(expected, nan_ok=True)


def test_the_common_scale_by_hand() -> None:
    """40, 45, 50 and nothing: mean 45, standard deviation sqrt(50 / 3) = 4.08, so +-1.22 quarters around 0.5."""
    values = np.array([40.0, 45.0, 50.0, math.nan])
    step = 5.0 / math.sqrt(50.0 / 3.0) / 4.0
    assert on_common_scale(values, "deviation") == pytest.approx([0.5 - step, 0.5, 0.5 + step, math.nan], nan_ok=True)
    assert on_common_scale(values, "rank") == pytest.approx([1 / 6, 3 / 6, 5 / 6, math.nan], nan_ok=True)
    assert on_common_scale(values, "none")[:3].tolist() == [40.0, 45.0, 50.0]
    assert on_common_scale(np.array([7.0, 7.0]), "deviation").tolist() == [0.5, 0.5]
    assert on_common_scale(np.array([1.0, 3.0, 3.0]), "rank") == pytest.approx([1 / 6, 4 / 6, 4 / 6])


@pytest.mark.parametrize("scale", ["deviation", "rank"])
def test_terms_of_equal_weight_move_the_total_equally_whatever_their_range(scale: str) -> None:
    rng = np.random.default_rng(0)
    wide, narrow = rng.normal(0.0, 50.0, 200), rng.normal(0.4, 0.001, 200)
    spreads = [on_common_scale(values, scale).std() for values in (wide, narrow)]
    assert spreads[0] == pytest.approx(spreads[1], rel=0.02)
    collapsed = np.append(wide, -1e6)
    assert on_common_scale(collapsed, scale)[:-1].std() == pytest.approx(spreads[0], rel=0.1)


# ---- children that the ladder stopped


def test_a_stopped_child_counts_with_its_forecast_or_conservatively() -> None:
    """Scored: root 40, a 44, b 48, c 46; lower quartile 43. The forecast of one stopped child is 41; the other has none."""
    nodes = [
        node("root", 40.0), node("a", 44.0, ("root",)), node("b", 48.0, ("a",)), node("c", 46.0, ("root",)),
        node("said", None, ("c",), stopped=True, forecast=41.0), node("unsaid", None, ("b",), stopped=True),
        node("of-root", None, ("root",), stopped=True), node("failed", None, ("c",)),
    ]  # fmt: skip
    table = NodeTable.of(nodes)
    assert table.presumed[4:7].tolist() == [41.0, 43.0, 40.0]  # the last: its parent is lower than the quartile
    assert math.isnan(table.presumed[7])
    assert not table.scored[4:].any(), "it is still no parent"
    spec = AcquisitionSpec(top_descendants=1, discount=1.0, gain_scale=3.0)
    gain, support = descendant_gain(table, spec)
    assert gain[3] == pytest.approx(
        math.tanh(-5.0 / 3.0)
    )  # c: 41 - 46; it had no target while stopped children were left out
    assert gain[2] == pytest.approx(math.tanh(-5.0 / 3.0))  # b: 43 - 48
    assert support[[2, 3]].tolist() == [1, 1]
    assert np.isnan(judge(table, AcquisitionSpec(impute=False)).potential.target[[2, 3]]).all()
    assert judge(table, spec).potential.target[3] == gain[3]


# ---- regression to the mean


def noisy_tree(rng: np.random.Generator, parents: int = 40) -> list[NodeRecord]:
    """True scores are all 45: what differs is noise, so every child is at 45 on average and gains fall with the parent's score."""
    nodes = [node("root", 45.0)]
    for i in range(parents):
        nodes.append(node(f"p{i}", 45.0 + 3.0 * float(rng.normal()), ("root",)))
        nodes.append(node(f"c{i}", 45.0 + 3.0 * float(rng.normal()), (f"p{i}",)))
    return nodes


def test_what_subtracting_the_score_does_by_itself_is_no_potential() -> None:
    rng = np.random.default_rng(3)
    with_it, without = [], []
    for _ in range(5):
        table = NodeTable.of(noisy_tree(rng))
        parents = np.array([name.startswith("p") for name in table.ids])
        score = table.shrunken[parents]
        with_it.append(np.corrcoef(score, judge(table, SPEC).bayes[parents])[0, 1])
        without.append(np.corrcoef(score, judge(table, AcquisitionSpec(regress=False)).bayes[parents])[0, 1])
    assert np.mean(without) < -0.8, "gain falls with the score, and the process learned that"
    assert abs(np.mean(with_it)) < 0.4


def test_the_slope_falls_or_is_zero() -> None:
    """Scores 0, 1, 2 with gains 2, 1, 0: -1. Rising gains are a finding, not an artefact."""
    scores, ones = np.array([0.0, 1.0, 2.0]), np.ones(3)
    assert falling_slope(scores, np.array([2.0, 1.0, 0.0]), ones) == pytest.approx(-1.0)
    assert falling_slope(scores, np.array([0.0, 1.0, 2.0]), ones) == 0.0
    assert falling_slope(ones, scores, ones) == 0.0


# ---- the process against others


def made_up(rng: np.random.Generator, count: int = 14) -> tuple[np.ndarray, ...]:
    features = rng.normal(size=(count, 5))
    scores = rng.normal(45.0, 3.0, count)
    targets = 0.3 * np.tanh(features[:, 0]) - 0.05 * (scores - 45.0) + 0.1 * rng.normal(size=count)
    return features, scores, targets, rng.integers(1, 4, count).astype(float)


@pytest.mark.parametrize("kernel", ["matern", "rbf"])
def test_the_process_agrees_with_the_library(kernel: str) -> None:
    rng = np.random.default_rng(5)
    features, scores, targets, support = made_up(rng)
    spec = AcquisitionSpec(kernel=kernel)
    process = Process.fit(features, scores, targets, support, spec)
    shape = Matern(process.length, nu=2.5) if kernel == "matern" else RBF(process.length)
    noise = spec.target_noise**2 / support + JITTER
    library = GaussianProcessRegressor(ConstantKernel(process.variance) * shape, alpha=noise, optimizer=None)
    rest = targets - process.offset - process.slope * (scores - process.centre)
    library.fit(features, rest)
    others, at = rng.normal(size=(6, 5)), rng.normal(45.0, 3.0, 6)
    mean, std = library.predict(others, return_std=True)
    found = process.predict(others, at)
    assert found[0] == pytest.approx(mean + process.offset + process.slope * (at - process.centre))
    assert found[1] == pytest.approx(std, rel=1e-4)
    chosen = library.log_marginal_likelihood_value_
    for variance in VARIANCES:
        for length in LENGTHS:
            theta = np.log([variance, length])
            assert library.log_marginal_likelihood(theta) <= chosen + 1e-6


@pytest.mark.parametrize("regress", [True, False])
def test_leave_one_out_is_what_leaving_out_gives(regress: bool) -> None:
    """Against fitting line and process 14 times, each without one observation and with the same kernel."""
    features, scores, targets, support = made_up(np.random.default_rng(6))
    spec = AcquisitionSpec(regress=regress)
    process = Process.fit(features, scores, targets, support, spec)
    assert (process.slope < 0.0) == regress
    noise = np.diag(spec.target_noise**2 / support + JITTER)
    distance = np.linalg.norm(features[:, None] - features[None], axis=2)
    covariance = process.variance * correlation(distance / process.length, "matern") + noise
    for i, left_out in enumerate(process.left_out()):
        rest = np.arange(len(targets)) != i
        design = np.column_stack([np.ones(len(targets)), scores] if regress else [np.ones(len(targets))])
        root = np.sqrt(support[rest])
        beta = np.linalg.lstsq(root[:, None] * design[rest], root * targets[rest], rcond=None)[0]
        solved = np.linalg.solve(covariance[np.ix_(rest, rest)], targets[rest] - design[rest] @ beta)
        assert left_out == pytest.approx(design[i] @ beta + covariance[i, rest] @ solved)
