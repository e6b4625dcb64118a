"""pass@k, Overall and intervals: numbers by hand, exact combinatorics, and coverage by simulation."""

from __future__ import annotations

import itertools
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats
from scipy.special import stdtrit

from poise_core.config.protocol import BenchmarkSpec, EnvironmentSpec, Protocol, TrainingSpec
from poise_core.evaluation.results import BenchmarkResult, SeedEvaluation
from poise_core.evaluation.scoring import benchmark_score, overall, pass_at_k
from poise_core.evidence.collapse import collapse_bound, collapsed_seeds, describe_collapses
from poise_core.evidence.intervals import (
    Interval,
    VarianceParts,
    distinguishable,
    overall_interval,
    paired_delta,
    variance_parts,
)
from poise_core.render.lines import spending_note
from poise_core.testbed.calibration import _tiers, games_howell
from poise_core.views.outlook import Spending

PROBLEMS = 60


@pytest.fixture
def protocol() -> Protocol:
    return Protocol(
        policy="tiny",
        environment=EnvironmentSpec(mixture={"add": 1.0}),
        training=TrainingSpec(
            steps=1, prompts_per_step=2, group_size=2, learning_rate=1e-4, max_completion_length=8
        ),
        benchmarks=(
            BenchmarkSpec(name="many", kinds=("add",), problems=2, metric="pass", k=2, samples=4, weight=0.25),
            BenchmarkSpec(name="one", kinds=("add",), problems=4, metric="accuracy", weight=0.75),
        ),
        seeds=(0, 1, 2),
    )  # fmt: skip


def evaluation(protocol: Protocol, seed: int, many: tuple, one: tuple, split: str = "search") -> SeedEvaluation:
    results = (
        BenchmarkResult("many", "pass@2", benchmark_score(many, 4, 2), many, 4, 1.0, 5.0),
        BenchmarkResult("one", "acc@1", benchmark_score(one, 1, 1), one, 1, 0.5, 7.0),
    )
    return SeedEvaluation(seed, split, overall(results, protocol), results, 1.0)


# ---- tiers of the testbed


def test_games_howell_by_hand() -> None:
    # of two groups it is Welch's t-test: means 12 and 2, variances 4 and 1, three each: sqrt(2) * 10 / sqrt(4/3 + 1/3) = 10.95
    # with (5/3)^2 / ((4/3)^2 / 2 + (1/3)^2 / 2) = 2.94 degrees of freedom
    one, other = np.array([10.0, 12.0, 14.0]), np.array([1.0, 2.0, 3.0])
    assert games_howell(one, other, 2) == pytest.approx(stats.ttest_ind(one, other, equal_var=False).pvalue, rel=1e-6)
    # six each with equal variances: 10 degrees of freedom; the 5 % point of the studentized range of three means is 3.877
    steps = np.array([-2.0, -1.0, 0.0, 0.0, 1.0, 2.0])  # variance 2
    gap = 3.877 * math.sqrt(2.0 / 6.0)
    assert games_howell(steps, steps + gap, 3) == pytest.approx(0.05, abs=1e-4)
    assert games_howell(steps, steps, 3) == pytest.approx(1.0)
    assert (games_howell(np.ones(3), np.ones(3), 3), games_howell(np.ones(3), np.zeros(3), 3)) == (1.0, 0.0)


def test_an_unstable_algorithm_makes_no_tier_of_its_own_and_spoils_none() -> None:
    """Means 80, 79.9, 70, 60; the third varies by 15 points, so that 10 below the best are nothing, and the fourth is far below."""
    wave = np.array([-1.0, 0.0, 1.0, 0.5, -0.5])
    overalls = {"best": 80 + wave, "same": 79.9 + wave, "wild": 70 + 15 * wave, "low": 60 + wave}
    assert _tiers(list(overalls), overalls) == {"best": 1, "same": 1, "wild": 1, "low": 2}


# ---- what to buy next


@pytest.mark.parametrize(
    ("right", "seed", "problem", "rest"),
    [
        # points per problem 100 100 / 0 0: means of seeds 100 and 0, variance 5000 over 2 seeds; nothing else
        (((1, 1), (0, 0)), 2500.0, 0.0, 0.0),
        (((1, 0), (1, 0)), 0.0, 2500.0, 0.0),
        # 100 0 / 0 100: all means are 50; what is left over is +-50: 4 * 2500 over 1 degree of freedom and 4 cells. Seeds and
        # problems differ less than that would make them, so their parts come out below zero
        (((1, 0), (0, 1)), -2500.0, -2500.0, 2500.0),
    ],
)
def test_parts_of_the_variance_by_hand(
    protocol: Protocol, right: tuple, seed: float, problem: float, rest: float
) -> None:
    alone = protocol.model_copy(
        update={"benchmarks": (protocol.benchmarks[1].model_copy(update={"weight": 1.0, "problems": 2}),)}
    )

    def of(number: int, counts: tuple) -> SeedEvaluation:
        results = (BenchmarkResult("one", "acc@1", 50.0 * sum(counts), counts, 1, 1.0, 5.0),)
        return SeedEvaluation(number, "search", 50.0 * sum(counts), results, 1.0)

    child = [of(number, counts) for number, counts in enumerate(right)]
    base = [of(number, (0, 0)) for number in range(2)]
    assert variance_parts(child, base, alone) == VarianceParts(seed, problem, rest, 2)
    assert variance_parts(child[:1], base[:1], alone) is None


def test_what_to_buy_next_by_hand() -> None:
    # V = 1 + 3 + 4 = 8; problems doubled: 1 + 1.5 + 2 = 4.5; seeds doubled: 0.5 + 3 + 2 = 5.5
    parts = VarianceParts(1.0, 3.0, 4.0, 6)
    assert (parts.total, parts.scaled(problems=2), parts.scaled(seeds=2)) == (8.0, 4.5, 5.5)
    # an evaluation of 10 s beside a training of 30 s: twice the problems take 50 s for 40 s
    found = Spending(parts, 17, 30.0, 10.0)
    assert found.problem_cost == pytest.approx(1.25)
    assert found.advice == "problems"  # 4.5 * 1.25 against 5.5 * 2
    assert spending_note(found) == (
        "Variance of a delta with 6 seeds (mean of 17): seeds 12%, problems 38%, seed x problem 50%. "
        "Twice the problems: -44% for +25% time; twice the seeds: -31% for +100% time. Buy problems next."
    )
    assert Spending(VarianceParts(8.0, 0.0, 0.0, 6), 17, 1.0, 1e9).advice == "seeds"
    assert Spending(parts, 17, None, 10.0).advice == ""
    assert spending_note(None) == ""


# ---- pass@k


def test_pass_at_k_by_hand() -> None:
    # n = 4, k = 2: 1 - C(4-c, 2)/C(4, 2) = 1 - {6, 3, 1, 0, 0}/6
    assert pass_at_k(4, [0, 1, 2, 3, 4], 2) == pytest.approx([0.0, 1 / 2, 5 / 6, 1.0, 1.0])
    assert pass_at_k(4, [[0, 4], [1, 3]], 1) == pytest.approx(np.array([[0.0, 1.0], [0.25, 0.75]]))


@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 3), (8, 8), (64, 32), (1000, 32)])
def test_pass_at_k_equals_exact_binomials(n: int, k: int) -> None:
    exact = [float(1 - Fraction(math.comb(n - c, k), math.comb(n, k))) for c in range(n + 1)]
    found = pass_at_k(n, range(n + 1), k)
    np.testing.assert_allclose(found, exact, rtol=1e-12, atol=1e-15)
    assert (np.diff(found) >= 0).all()


def test_pass_at_k_is_the_mean_over_all_ways_to_draw_k() -> None:
    outcomes = [1, 0, 0, 1, 0, 0]  # n = 6, c = 2
    draws = [any(draw) for draw in itertools.combinations(outcomes, 3)]
    assert pass_at_k(6, 2, 3) == pytest.approx(sum(draws) / len(draws))


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 5), (4, 1, 0), (4, 5, 2), (4, -1, 2)])
def test_pass_at_k_refuses_impossible_counts(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match=r"pass@k needs|lies outside"):
        pass_at_k(n, c, k)


# ---- Overall and results


def test_overall_by_hand(protocol: Protocol) -> None:
    given = evaluation(protocol, 0, (1, 2), (1, 1, 0, 0))
    # many: mean(1/2, 5/6) = 2/3; one: 1/2; Overall = 100 * (0.25 * 2/3 + 0.75 * 1/2) = 54.1667
    assert given.benchmarks[0].score == pytest.approx(100 * 2 / 3)
    assert given.overall == pytest.approx(54.16666667)
    assert (given.format_valid, given.completion_length) == (0.75, 6.0)
    with pytest.raises(ValueError, match="expected one result for each of many, one; got many"):
        overall(given.benchmarks[:1], protocol)
    with pytest.raises(ValueError, match="expected one result"):
        overall((*given.benchmarks, given.benchmarks[0]), protocol)


def test_results_survive_json(protocol: Protocol) -> None:
    given = evaluation(protocol, 3, (1, 2), (1, 1, 0, 0))
    assert SeedEvaluation.from_json(given.to_json()) == given
    assert isinstance(SeedEvaluation.from_json(given.to_json()).benchmarks[0].correct, tuple)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"correct": (5,)}, "outside 0..4"), ({"correct": ()}, "no problems"), ({"samples": 0}, "at least 1")],
)
def test_results_that_contradict_themselves_are_refused(change: dict, message: str) -> None:
    fields = {"name": "b", "metric": "pass@2", "score": 1.0, "correct": (1,), "samples": 4, "format_valid": 1.0}
    with pytest.raises(ValueError, match=message):
        BenchmarkResult(**{**fields, "completion_length": 1.0, **change})
    with pytest.raises(ValueError, match="use 'search' or 'report'"):
        SeedEvaluation(0, "test", 1.0, (), 1.0)


# ---- intervals


def test_the_interval_by_hand() -> None:
    """Two seeds, one benchmark of two problems at weight 1: every term of the variance is small enough to write down."""
    protocol = Protocol(
        policy="tiny", environment=EnvironmentSpec(mixture={"add": 1.0}), seeds=(0, 1),
        training=TrainingSpec(steps=1, prompts_per_step=2, group_size=2, learning_rate=1e-4, max_completion_length=8),
        benchmarks=(BenchmarkSpec(name="b", kinds=("add",), problems=2, metric="pass", k=1, samples=10, weight=1.0),),
    )  # fmt: skip

    def evals(seed: int, counts: tuple[int, int]) -> SeedEvaluation:
        result = BenchmarkResult("b", "pass@1", benchmark_score(counts, 10, 1), counts, 10, 1.0, 5.0)
        return SeedEvaluation(seed, "search", result.score, (result,), 1.0)

    # percent: seed 0 -> (20, 60), seed 1 -> (40, 60); means of seeds 40, 50; of problems 30, 60; of all 45
    # V_seed = var(40, 50)/2 = 50/2 = 25; V_problem = var(30, 60)/2 = 450/2 = 225
    # rest = (20-30-40+45, 60-60-40+45, ...) = (-5, 5, 5, -5): sum of squares 100 / 1 / (2*2) = 25 = V_rest
    # V = 25 + 225 - 25 = 225; freedom = 225^2 / (25^2/1 + 225^2/1) = 0.98780, not below n - 1 = 1
    # t(0.975, 1) = 12.7062; half = 12.7062 * 15 = 190.593
    found = overall_interval([evals(0, (2, 6)), evals(1, (4, 6))], protocol)
    assert found.estimate == pytest.approx(45.0)
    assert found.high - found.estimate == pytest.approx(190.593, abs=1e-3)
    assert found.estimate - found.low == pytest.approx(190.593, abs=1e-3)
    assert found.seeds == 2
    # t(0.75, 1) = 1
    assert overall_interval([evals(0, (2, 6)), evals(1, (4, 6))], protocol, 0.5).high == pytest.approx(60.0)


def test_the_estimate_is_the_mean_difference_over_shared_seeds(protocol: Protocol) -> None:
    child = [evaluation(protocol, s, (4, 4), (1, 1, 1, s % 2)) for s in (0, 1, 5)]
    base = [evaluation(protocol, s, (0, 2), (1, 0, 0, 0)) for s in (1, 0, 9)]
    expected = sum(child[s].overall for s in (0, 1)) / 2 - sum(b.overall for b in base[:2]) / 2
    delta = paired_delta(child, base, protocol)
    assert delta.estimate == pytest.approx(expected)
    assert delta.seeds == 2
    back = paired_delta(base, child, protocol)
    assert (back.estimate, back.low, back.high) == pytest.approx((-delta.estimate, -delta.high, -delta.low))


def test_pairing_removes_what_both_share(protocol: Protocol) -> None:
    """Seeds differ wildly, the child is always better by the same problem: paired, the seeds do not blur it."""
    base = [evaluation(protocol, s, (s, s), (s > 1, s > 1, 0, 0)) for s in (0, 1, 2)]
    child = [evaluation(protocol, s, (s, s), (s > 1, s > 1, 1, 0)) for s in (0, 1, 2)]
    delta = paired_delta(child, base, protocol)
    assert delta.estimate == pytest.approx(75 / 4)
    unpaired = math.hypot(
        *(found.high - found.estimate for found in (overall_interval(e, protocol) for e in (base, child)))
    )
    assert delta.high - delta.estimate < 0.7 * unpaired


def test_one_seed_leaves_the_limits_open(protocol: Protocol) -> None:
    given = [evaluation(protocol, 0, (1, 2), (1, 1, 0, 0))]
    found = overall_interval(given, protocol)
    assert (found.low, found.high, found.seeds) == (-math.inf, math.inf, 1)
    assert not found.excludes_zero
    assert json.loads(json.dumps(found.to_dict())) == {
        "estimate": found.estimate, "low": None, "high": None, "seeds": 1,
    }  # fmt: skip
    assert distinguishable(found) == "not distinguishable"


def test_a_candidate_against_itself_is_exactly_zero(protocol: Protocol) -> None:
    given = [evaluation(protocol, s, (s, 2), (1, s % 2, 0, 0)) for s in (0, 1, 2)]
    assert paired_delta(given, given, protocol) == Interval(0.0, 0.0, 0.0, 3)
    assert distinguishable(paired_delta(given, given, protocol)) == "not distinguishable"


def test_the_verdict_follows_the_limits() -> None:
    assert distinguishable(Interval(2.0, 0.1, 3.9, 3)) == "better"
    assert distinguishable(Interval(-2.0, -3.9, -0.1, 3)) == "worse"
    assert distinguishable(Interval(2.0, 0.0, 4.0, 3)) == "not distinguishable"


def test_what_cannot_be_compared_is_refused(protocol: Protocol) -> None:
    def one(seed: int, split: str = "search", many: tuple = (1, 2)) -> SeedEvaluation:
        return evaluation(protocol, seed, many, (1, 1, 0, 0), split)

    for child, base, message in (
        ([one(0)], [one(1)], "no seed in common"),
        ([one(0)], [one(0, "report")], "different splits"),
        ([one(0), one(1, "report")], [one(0)], "both splits are mixed"),
        ([one(0), one(0)], [one(0)], "same seed"),
        ([], [one(0)], "no evaluation"),
        ([one(0)], [one(0, many=(1, 2, 3))], "not the same benchmark"),
    ):
        with pytest.raises(ValueError, match=message):
            paired_delta(child, base, protocol)
    with pytest.raises(ValueError, match="level must lie"):
        overall_interval([one(0)], protocol, 1.0)
    lacking = SeedEvaluation(0, "search", 1.0, one(0).benchmarks[:1], 1.0)
    with pytest.raises(ValueError, match="no result for benchmark one"):
        overall_interval([lacking], protocol)


# ---- coverage


def simulate(protocol: Protocol, seeds: int, seed_sd: float, problem_sd: float, rng: np.random.Generator) -> list:
    """Child and base of equal expected skill on problems of mixed difficulty; the true delta is 0 by symmetry.

    In logits: a problem has difficulty N(0, 2^2) and favours either candidate by N(0, problem_sd^2); a trained policy
    is off by N(0, seed_sd^2).
    """
    ease = {spec.name: rng.normal(0, 2.0, PROBLEMS) for spec in protocol.benchmarks}
    favour = {spec.name: rng.normal(0, problem_sd, PROBLEMS) for spec in protocol.benchmarks}
    sides: list[list[SeedEvaluation]] = [[], []]
    for seed, (side, sign) in itertools.product(range(seeds), enumerate((1, -1))):
        shift, results = rng.normal(0, seed_sd), []
        for spec in protocol.benchmarks:
            rate = 1 / (1 + np.exp(-(ease[spec.name] + sign * favour[spec.name] + shift)))
            correct = tuple(int(c) for c in rng.binomial(spec.samples, rate / spec.samples**0.5))
            results.append(BenchmarkResult(spec.name, spec.metric_name, 0.0, correct, spec.samples, 1.0, 5.0))
        sides[side].append(SeedEvaluation(seed, "search", 0.0, tuple(results), 1.0))
    return sides


def test_two_seeds_are_never_narrower_than_their_t_interval(protocol: Protocol) -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        child, base = simulate(protocol, 2, 0.4, 0.1, rng)
        one, other = (paired_delta([c], [b], protocol).estimate for c, b in zip(child, base, strict=True))
        delta = paired_delta(child, base, protocol)
        # t(0.975, 1) * sd / sqrt(2) = 12.7062 * |difference| / 2
        assert delta.high - delta.estimate >= 12.7062 * abs(one - other) / 2 - 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize(
    ("seed_sd", "problem_sd"), [(0.0, 0.0), (0.05, 0.1), (0.2, 0.1), (0.2, 0.5), (0.6, 0.1)], ids=str
)
def test_nominal_95_percent_covers_at_least_90(
    protocol: Protocol, seeds: int, seed_sd: float, problem_sd: float
) -> None:
    """Whether seeds, problems or mere sampling dominate."""
    rng = np.random.default_rng([seeds, round(100 * seed_sd), round(100 * problem_sd)])
    trials = 400
    deltas = [paired_delta(*simulate(protocol, seeds, seed_sd, problem_sd, rng), protocol) for _ in range(trials)]
    covered = sum(not delta.excludes_zero for delta in deltas) / trials
    width = float(np.mean([delta.high - delta.low for delta in deltas]))
    print(f"{seeds} seeds, sd {seed_sd}, {problem_sd}: covered {covered:.3f}, mean width {width:.1f} points")
    assert covered >= 0.90


def bootstrap_width(child: list, base: list, protocol: Protocol, rng: np.random.Generator) -> tuple[bool, float]:
    """The alternative that was not taken: seeds and problems drawn with replacement, percentiles, hull with the t-interval.

    Returns whether it covers 0, and its width.
    """
    blocks = [
        100 * spec.weight * np.stack([
            pass_at_k(spec.samples, c.benchmarks[i].correct, spec.k) - pass_at_k(spec.samples, b.benchmarks[i].correct, spec.k)
            for c, b in zip(child, base, strict=True)
        ])
        for i, spec in enumerate(protocol.benchmarks)
    ]  # fmt: skip
    seeds, resamples = len(child), 1000
    weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), resamples) / seeds
    drawn = np.zeros(resamples)
    for block in blocks:
        problems = block.shape[1]
        counts = rng.multinomial(problems, np.full(problems, 1 / problems), resamples) / problems
        drawn += np.einsum("rs,rs->r", weights, counts @ block.T)
    per_seed = np.sum([block.mean(axis=1) for block in blocks], axis=0)
    half = stdtrit(seeds - 1, 0.975) * per_seed.std(ddof=1) / math.sqrt(seeds)
    low = min(float(np.quantile(drawn, 0.025)), per_seed.mean() - half)
    high = max(float(np.quantile(drawn, 0.975)), per_seed.mean() + half)
    return low <= 0 <= high, high - low


@pytest.mark.exhaustive
@pytest.mark.parametrize("seeds", [3, 5])
def test_the_interval_is_narrower_than_a_bootstrap_at_honest_coverage(protocol: Protocol, seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    trials = [simulate(protocol, seeds, 0.05, 0.1, rng) for _ in range(400)]
    ours = [paired_delta(child, base, protocol) for child, base in trials]
    theirs = [bootstrap_width(child, base, protocol, rng) for child, base in trials]
    width, other = np.mean([d.high - d.low for d in ours]), np.mean([width for _, width in theirs])
    covered, over = np.mean([not d.excludes_zero for d in ours]), np.mean([hit for hit, _ in theirs])
    print(f"{seeds} seeds: width {width:.1f} covers {covered:.3f}; bootstrap {other:.1f} covers {over:.3f}")
    assert width < 0.95 * other
    assert 0.93 <= covered <= over


def test_the_chance_of_a_collapse_is_bounded_by_what_was_not_seen() -> None:
    assert collapse_bound(0, 10) == pytest.approx(1 - 0.05**0.1)  # 0.2589
    assert collapse_bound(0, 16) == pytest.approx(0.1707, abs=5e-5)
    assert (collapse_bound(0, 0), collapse_bound(3, 3)) == (1.0, 1.0)
    for collapsed, trainings in ((1, 10), (4, 7)):  # by its definition: as few or fewer are seen in one case of twenty
        p = collapse_bound(collapsed, trainings)
        seen = sum(math.comb(trainings, k) * p**k * (1 - p) ** (trainings - k) for k in range(collapsed + 1))
        assert seen == pytest.approx(0.05)
    with pytest.raises(ValueError, match="3 of 2"):
        collapse_bound(3, 2)
    assert collapsed_seeds({3: 61.9, 1: 62.0, 2: 80.0}, 72.0, 10.0) == [3]  # ten points below do not count, more do
    assert describe_collapses(0, 10) == "0 of 10 trainings collapsed, so the chance is at most 26 %"
