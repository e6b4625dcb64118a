"""One example computed by hand for every variant that the POISE paper publishes with formulas."""

from __future__ import annotations

import dataclasses
import math

import pytest
from algorithm_batches import DYNAMICS, one_completion, small_batch

from poise_core.algorithms import algorithm_path
from poise_core.candidate.loading import Candidate, load_candidate
from poise_core.contract import RolloutBatch


def load(name: str) -> Candidate:
    return load_candidate(algorithm_path(name))


def advantages(candidate: Candidate, batch: RolloutBatch) -> list[float]:
    """The advantage of every completion."""
    return candidate.compute_advantages(batch, DYNAMICS).values[:, 0].tolist()


def near(*expected: float) -> object:
    """Equality up to float32 rounding."""
    return pytest.approx(list(expected), rel=1e-5, abs=1e-6)


# 1 1 0 0: mean 0.5, sample variance 4 * 0.25 / 3, and GRPO's advantage of the correct ones
Z_HALF = 0.5 / (math.sqrt(1 / 3) + 1e-4)


@pytest.mark.parametrize("name", ["bn", "av", "vm_av", "msa", "fa", "sa", "dace", "cag", "dcbe"])
def test_all_share_the_clip_and_the_kl_of_grpo(name: str) -> None:
    candidate = load(name)
    if hasattr(candidate.hyperparameters, "entropy_coef"):
        candidate = candidate.with_overrides(entropy_coef=0.0)
    # ratio 1.5 counts as 1.2; k3 at ref / current = 2 is 2 - ln 2 - 1 = 0.306853 with derivative -1
    found = one_completion(candidate, 2.0, [1.5], ref_ratio=2.0)
    assert found.loss == near(-2.4 + 0.01 * 0.306853)
    assert found.logprobs_grad == near(-0.01)


@pytest.mark.parametrize(
    ("name", "coef"), [("bn", 0.01), ("av", 0.001), ("sa", 0.05), ("vm_av", 0.001), ("dace", 0.001), ("dcbe", 0.01)]
)
def test_entropy_is_paid(name: str, coef: float) -> None:
    found = one_completion(load(name), 1.0, [1.0], entropy=0.5)
    assert found.loss == near(-1.0 - coef * 0.5)
    assert found.entropies_grad == near(-coef)


def test_bn() -> None:
    # group 0 is 1 0: centred +-0.5; group 1 is 1 1: centred 0; mean square (0.25 + 0.25) / 4 = 0.125
    scale = math.sqrt(0.125) + 1e-4
    batch = small_batch([1, 0, 1, 1], groups=[0, 0, 1, 1])
    assert advantages(load("bn"), batch) == near(0.5 / scale, -0.5 / scale, 0.0, 0.0)
    # one mixed pair among 20 completions: root of 0.5 / 20 = 0.158; 0.5 / 0.158 = 3.16 is cut to 3
    sparse = small_batch([1, 0] + [1] * 18, groups=[0, 0] + [1] * 18)
    assert advantages(load("bn"), sparse)[:2] == near(3.0, -3.0)


def test_av() -> None:
    # R = 1 0 0 -0.5; mean 0.125; mean square 1.25 / 4 = 0.3125; variance 0.3125 - 0.015625 = 0.296875
    sigma = math.sqrt(0.296875)
    batch = small_batch([1, 0, 0, 0], valid=[True, True, True, False])
    assert advantages(load("av"), batch) == near(0.875 / sigma, -0.125 / sigma, -0.125 / sigma, -0.625 / sigma)
    # one failure among 128: sigma = sqrt(127) / 128 = 0.088 is below the floor of 0.1
    rare = advantages(load("av"), small_batch([0] + [1] * 127))
    assert rare[:2] == near(-127 / 128 / 0.1, 1 / 128 / 0.1)


def test_vm_av() -> None:
    batch = small_batch([1, 0, 0, 0], lengths=[4, 2, 6, 6], valid=[True, True, False, True])
    # V has 3 members: mu = (1 + 1) / (3 + 2) = 0.4; sigma = sqrt(0.4 * 0.6) = 0.489898; mean length (4 + 2 + 6) / 3 = 4
    # correct: 0.6 / sigma = 1.224745; wrong: -0.4 / sigma = -0.816497, divided by 2/4 and by 6/4; invalid: -1
    expected = near(1.224745, -0.816497 / 0.5, -1.0, -0.816497 / 1.5)
    assert advantages(load("vm_av"), batch) == expected
    # 200 successes: mu = 201 / 202, sigma = sqrt(201) / 202 = 0.070 is below the floor of 0.1
    assert advantages(load("vm_av"), small_batch([1] * 200))[:1] == near(1 / 202 / 0.1)


def test_msa() -> None:
    candidate = load("msa")
    # T = 1.2 0, mean 0.6; outcome deviation of 1 0 is sqrt(0.5); lengths 1 and 3 are 0.5 and 1.5 of their mean
    value = 0.6 / (math.sqrt(0.5) + 1e-4)
    mixed = small_batch([1, 0], lengths=[1, 3], valid=[True, False])
    assert advantages(candidate, mixed) == near(value * 0.5**0.2, -value * 1.5**-0.2)
    # all fail: T = 0.2 0, mean 0.1, deviation sqrt(2 * 0.01); times alpha_uniform = 0.3
    value = 0.3 * 0.1 / (math.sqrt(0.02) + 1e-4)
    assert advantages(candidate, small_batch([0, 0], valid=[True, False])) == near(value, -value)


def test_fa() -> None:
    candidate = load("fa")
    batch = small_batch([1, 1, 0, 0, 0, 0], groups=[0, 0, 0, 0, 1, 1], valid=[True] * 5 + [False])
    assert advantages(candidate, batch) == near(Z_HALF, Z_HALF, -Z_HALF, -Z_HALF, -0.5, -2.0)
    # one success among 16: variance 16 * (1/16) * (15/16) / 15 = 1/16; 0.9375 / 0.2501 = 3.75 is cut to 3
    assert advantages(candidate, small_batch([1] + [0] * 15))[:2] == near(3.0, -0.0625 / 0.2501)


def test_sa() -> None:
    # batch mean 0.5; anchors 0.5 * 1 + 0.5 * 0.5 = 0.75 and 0.25: groups of one outcome carry a signal
    batch = small_batch([1, 1, 0, 0], groups=[0, 0, 1, 1])
    assert advantages(load("sa"), batch) == near(0.5, 0.5, -0.5, -0.5)  # (1 - 0.75) / 0.5


# the examples of DACE, CAG and DCBE: p = 0.5; correct completions of 2 and 4 tokens, so their mean length is 3
HALF_SOLVED = small_batch([1, 1, 0, 0], lengths=[2, 4, 3, 5])


def test_dace() -> None:
    # difficulty: 1 + 0.5 * (1 - 0.5) = 1.25; deviation of 2 and 4 is sqrt 2, so brevity is +-1 / sqrt 2, times 0.3 p
    brevity = 0.3 * 0.5 / (math.sqrt(2) + 1e-4)
    hard = 1.25 * Z_HALF
    assert advantages(load("dace"), HALF_SOLVED) == near(hard + brevity, hard - brevity, -hard, -hard)


def test_cag() -> None:
    # only the longer pays: 0.5 * 0.25 * (3 - 4) / 3 = -0.041667
    assert advantages(load("cag"), HALF_SOLVED) == near(Z_HALF, Z_HALF - 0.125 / 3, -Z_HALF, -Z_HALF)


def test_dcbe() -> None:
    # the shorter gains what the longer pays: 0.5 * 0.25 * (3 - 2) / 3 = 0.041667
    assert advantages(load("dcbe"), HALF_SOLVED) == near(Z_HALF + 0.125 / 3, Z_HALF - 0.125 / 3, -Z_HALF, -Z_HALF)


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        ("vm_av", 1.0 + 0.1 * (0.5 - 1.0) + 0.1 * (0.5 - 0.5) + 0.1 * (0.5 - 0.25)),  # target: half
        ("dace", 1.0 + 0.1 * (1.0 - 1.0) + 0.1 * (0.65 - 0.5) + 0.1 * (0.3 - 0.25)),  # targets: 1, 1 - 0.7 / 2, 0.3
        ("dcbe", math.exp(0.1 * (1.0 - 1.0)) * math.exp(0.1 * (1.0 - 0.5)) * math.exp(0.1 * (1.0 - 0.25))),  # target: 1
    ],
)
def test_controllers(name: str, scale: float) -> None:
    """Entropy 0.8 at the start, 0.4 half way through the run, 0.2 at its end: levels of 1, 0.5 and 0.25."""
    candidate = load(name)
    state: dict[str, float] = {}
    for progress, entropy in ((0.0, 0.8), (0.5, 0.4), (1.0, 0.2)):
        dynamics = dataclasses.replace(DYNAMICS, progress=progress, entropy=entropy, controller=state)
        state = candidate.update_controller(state, dynamics)
    assert state == {"initial_entropy": 0.8, "entropy_scale": pytest.approx(scale)}
