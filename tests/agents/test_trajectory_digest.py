"""The digest of a trajectory, by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest

from poise_core.agents.digest import TrajectoryDigest, make_digest, paired_run_delta, run_metric
from poise_core.trajectory import RUN_METRICS


def rows(**curves: list[float]) -> list[Mapping[str, float]]:
    length = max(len(values) for values in curves.values())
    return [
        {"step": step, **{name: values[step] for name, values in curves.items() if step < len(values)}}
        for step in range(length)
    ]


def digest(**curves: list[float]) -> TrajectoryDigest:
    found = make_digest({0: rows(**curves)})
    assert found is not None
    return found


def test_start_and_end_are_means_over_a_tenth_of_the_steps() -> None:
    found = digest(entropy=[1.0, 0.8] + [0.5] * 16 + [0.1, 0.3], format_valid=[0.5] * 20)
    assert found.entropy_start == pytest.approx(0.9)  # two of twenty steps
    assert found.entropy_end == pytest.approx(0.2)
    assert found.format_valid_start == found.format_valid_end == 0.5
    assert found.steps == 20
    assert found.complete


def test_slope_is_that_of_the_line() -> None:
    found = digest(entropy=[1.0 - 0.01 * step for step in range(30)])
    assert found.entropy_slope == pytest.approx(-0.01)
    assert digest(entropy=[0.4]).entropy_slope == 0.0


def test_absent_metrics_are_none_not_zero() -> None:
    found = digest(reward_mean=[0.1, 0.2])
    assert found.entropy_end is None
    assert found.kl_spike is None
    assert found.grad_norm_median is None
    assert make_digest({}) is None
    assert make_digest({0: []}) is None


def test_seeds_are_averaged_step_by_step_and_gaps_do_not_pull_to_zero() -> None:
    nan = float("nan")
    found = make_digest({0: rows(kl=[0.0, nan, 0.4]), 1: rows(kl=[0.2, 0.3])})
    assert found is not None
    assert found.kl_peak == pytest.approx(0.4)  # means: 0.1, 0.3, 0.4
    assert found.kl_end == pytest.approx(0.4)
    assert found.seeds == 2
    assert found.steps == 3
    assert not found.complete
    assert found.non_finite_steps == 1


def test_missing_values_of_the_archive_are_gaps() -> None:
    found = make_digest({0: [{"step": 1, "kl": None}, {"step": 0, "kl": 0.5}]})  # type: ignore[dict-item]
    assert found is not None
    assert found.kl_peak == 0.5


def test_a_spike_stands_out_from_its_surroundings_a_trend_does_not() -> None:
    steps = 40
    trend = [0.01 * step for step in range(steps)]
    calm = digest(kl=trend).kl_spike
    assert calm is not None
    assert calm.ratio < 1.5
    spiky = list(trend)
    spiky[20] = 1.0
    spike = digest(kl=spiky).kl_spike
    assert spike is not None
    assert (spike.step, spike.seed, spike.value) == (20, 0, 1.0)
    assert spike.ratio == pytest.approx(1.0 / 0.21, rel=0.1)  # the median of steps 16 to 24 is near 0.2


def test_a_jump_between_numbers_near_zero_is_no_spike() -> None:
    """KL begins at almost 0, where one step is easily a thousand times the next; the run's median sets the scale."""
    found = digest(kl=[1e-6, 1e-3, 1e-6, 1e-6, 1e-6] + [0.1] * 30).kl_spike
    assert found is not None
    assert found.ratio < 2.5


def test_the_spike_is_looked_for_in_every_seed() -> None:
    flat, spiky = [1.0] * 20, [1.0] * 20
    spiky[5] = 9.0
    found = make_digest({3: rows(grad_norm=flat), 8: rows(grad_norm=spiky)})
    assert found is not None
    assert found.grad_norm_spike is not None
    assert (found.grad_norm_spike.seed, found.grad_norm_spike.step, found.grad_norm_spike.ratio) == (8, 5, 9.0)
    assert found.grad_norm_median == 1.0


def test_plateau_is_where_the_smoothed_reward_is_nearly_at_its_best() -> None:
    rising = [0.1 + 0.08 * min(step, 10) for step in range(40)]  # reaches 0.9 at step 10
    found = digest(reward_mean=rising)
    assert found.reward_best == pytest.approx(0.9)
    assert found.reward_plateau_step is not None
    assert 9 <= found.reward_plateau_step <= 13
    climbing = digest(reward_mean=[0.01 * step for step in range(40)]).reward_plateau_step
    assert climbing is not None
    assert climbing >= 34


def test_paired_delta_by_hand() -> None:
    """Differences 0.1 and 0.3: mean 0.2, std 0.1414, standard error 0.1, t of one degree of freedom 12.706."""
    child = {0: rows(entropy=[0.4] * 10), 1: rows(entropy=[0.8] * 10), 2: rows(entropy=[9.0] * 10)}
    parent = {0: rows(entropy=[0.3] * 10), 1: rows(entropy=[0.5] * 10)}
    delta = paired_run_delta(child, parent, "entropy_end")
    assert delta is not None
    assert delta.estimate == pytest.approx(0.2)
    assert delta.high - delta.estimate == pytest.approx(12.7062 * 0.1, rel=1e-4)
    assert delta.seeds == 2
    one = paired_run_delta({0: child[0]}, parent, "entropy_end")
    assert one is not None
    assert (one.low, one.high) == (-math.inf, math.inf)
    assert paired_run_delta({7: child[0]}, parent, "entropy_end") is None
    assert paired_run_delta(child, parent, "kl_end") is None


def test_every_run_metric_reads_one_number() -> None:
    columns = {column for column, _ in RUN_METRICS.values()}
    run = rows(**{column: [1.0, 3.0] for column in columns})
    assert {run_metric(run, name) for name in RUN_METRICS} == {2.0, 3.0}  # mean or median, and the last step
    with pytest.raises(KeyError):
        run_metric(run, "luck")
