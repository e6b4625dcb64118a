"""Which comparison ends a child, in the order of the ladder."""

from __future__ import annotations

import numpy as np
import pytest
from test_forecast import world

from poise_core.config import LadderSpec
from poise_core.evaluation.referee import Referee

PAIR = {name: {0: mean - 1.0, 1: mean + 1.0} for name, mean in {"grpo": 70.0, "best": 80.0}.items()}


def judged(overall: float, seeds: tuple[int, ...] = (0, 1), **ladder: float) -> tuple[bool, str | None]:
    spec = LadderSpec(enabled=True, overall_noise=1.0, **ladder)
    decision = Referee.learn(spec, seeds, {}, PAIR, {}).after_first(overall, 0, ["grpo"])
    return decision.stop, decision.reference


def test_a_child_that_is_better_than_its_parent_ends_behind_the_leader_alone() -> None:
    assert judged(74.0) == (False, "grpo")
    assert judged(74.0, leader_stop_below=0.25) == (True, "best")
    assert judged(78.9, leader_stop_below=0.25) == (False, "grpo")  # as good as the leader at this seed
    assert judged(60.0, leader_stop_below=0.25) == (True, "grpo")  # what it loses to first is named
    assert judged(74.0, (0, 1, 2), leader_stop_below=0.25) == (False, "grpo")  # nobody has all these seeds


@pytest.fixture
def spread() -> tuple[dict, dict]:
    dynamics, overalls = world(40, 3.0, np.random.default_rng(0), noise=0.5)
    return dynamics, overalls


def test_a_forecast_ends_what_its_reward_would_not(spread: tuple[dict, dict]) -> None:
    dynamics, overalls = spread
    rewards = {name: dict.fromkeys(row, 50.0) for name, row in overalls.items()}
    low, high = (0.0, 1.5, -1.5, 0.0), (0.0, -1.5, 1.5, 0.0)  # levels 61 and 79

    def after(features: tuple[float, ...] | None, reward: float = 50.0, **ladder: float) -> tuple[bool, str]:
        spec = LadderSpec(enabled=True, **ladder)
        known = Referee.learn(spec, (0,), rewards, overalls, dynamics)
        decision = known.after_proxy(reward, features, 0, ["c00"])
        return decision.stop, decision.message

    assert after(low)[0] is False  # not asked
    stopped, message = after(low, forecast_stop_below=0.1)
    assert stopped
    assert message.startswith("forecast Overall 6")
    assert after(high, forecast_stop_below=0.1)[0] is False
    assert after(high, forecast_stop_below=0.1, leader_stop_below=0.9)[0] is False  # the leader is not for forecasts
    assert after(None, forecast_stop_below=0.1)[0] is False  # not finite: the reward alone
    assert after(high, reward=0.0, forecast_stop_below=0.1)[0] is True  # the reward still counts


def test_no_forecast_before_enough_is_known(spread: tuple[dict, dict]) -> None:
    dynamics, overalls = spread
    few = sorted(overalls)[:7]
    spec = LadderSpec(enabled=True, forecast_stop_below=0.9)
    known = Referee.learn(spec, (0,), {}, {name: overalls[name] for name in few}, dynamics)
    assert known.forecast is None
    assert not known.after_proxy(50.0, (0.0, 5.0, -5.0, 0.0), 0, ["c00"]).stop
