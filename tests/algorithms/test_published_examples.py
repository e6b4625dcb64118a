"""One example computed by hand for every algorithm from the literature."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from algorithm_batches import DYNAMICS, one_completion, small_batch

from poise_core.algorithms import algorithm_path
from poise_core.candidate.loading import Candidate, load_candidate
from poise_core.contract import RolloutBatch


def load(name: str) -> Candidate:
    return load_candidate(algorithm_path(name))


def first_token(candidate: Candidate, batch: RolloutBatch) -> list[float]:
    """The advantage at the first token of every completion."""
    return candidate.compute_advantages(batch, DYNAMICS).values[:, 0].tolist()


def near(*expected: float) -> object:
    """Equality up to float32 rounding."""
    return pytest.approx(list(expected), rel=1e-5, abs=1e-6)


def test_reinforce_group_baseline() -> None:
    candidate = load("reinforce_group_baseline")
    # mean of 1 0 0 0 is 1/4
    assert first_token(candidate, small_batch([1, 0, 0, 0])) == near(0.75, -0.25, -0.25, -0.25)
    # -A logp = -0.75 * -2 = 1.5; its derivative is -A; the ratio plays no part
    found = one_completion(candidate, 0.75, [3.0], logprob=-2.0)
    assert found.loss == near(1.5)
    assert found.logprobs_grad == near(-0.75)


def test_rloo() -> None:
    candidate = load("rloo")
    # completion 0 has drifted by 0.5 + 0.5 nats: R = 1 - 0.03 * 1 = 0.97, the others 0
    # baselines: (0 + 0) / 2 = 0 for completion 0, (0.97 + 0) / 2 = 0.485 for the others
    batch = small_batch([1, 0, 0], lengths=[2, 1, 1], kl=[[0.5, 0.5], [0.0], [0.0]])
    assert first_token(candidate, batch) == near(0.97, -0.485, -0.485)
    found = one_completion(candidate, -0.485, [0.5], logprob=-2.0)
    assert found.loss == near(-0.97)  # 0.485 * -2
    assert found.logprobs_grad == near(0.485)


def test_pass_at_k() -> None:
    candidate = load("pass_at_k")
    # pass@4 of 8 with 6 wrong: q = C(6, 4) / C(8, 4) = 15 / 70 = 3 / 14, sigma = sqrt(33) / 14; right 3 / sqrt(33),
    # wrong -q (8 - 6) / (6 sigma) = -1 / sqrt(33)
    batch = small_batch([1, 1, 0, 0, 0, 0, 0, 0])
    sigma = math.sqrt(33.0) / 14 + 1e-4
    assert first_token(candidate, batch) == near(*[3 / 14 / sigma] * 2, *[-1 / 14 / sigma] * 6)
    # fewer wrong completions than k: every subset of four has a right one, and nothing is left to learn
    assert first_token(candidate, small_batch([1, 1, 1, 1, 1, 0, 0, 0])) == near(*[0.0] * 8)


def test_grpo() -> None:
    candidate = load("grpo")
    # mean 1/4; squares 0.5625 + 3 * 0.0625 = 0.75; / 3 = 0.25; std 0.5; + 1e-4 = 0.5001
    advantages = first_token(candidate, small_batch([1, 0, 0, 0]))
    assert advantages == near(0.75 / 0.5001, *[-0.25 / 0.5001] * 3)
    # ratio 1.5 is clipped to 1.2; k3 at ref / current = 2 is 2 - ln 2 - 1 = 0.306853, derivative 1 - 2 = -1
    found = one_completion(candidate, 2.0, [1.5], ref_ratio=2.0)
    assert found.loss == near(-1.2 * 2.0 + 0.01 * 0.306853)
    assert found.logprobs_grad == near(-0.01)
    # a negative advantage is not clipped upwards: -(1.5 * -2) = 3, derivative 3
    found = one_completion(candidate, -2.0, [1.5])
    assert found.loss == near(3.0)
    assert found.logprobs_grad == near(3.0)
    # but downwards: ratio 0.5 counts as 0.8, so 0.8 * 2 = 1.6 and no gradient
    found = one_completion(candidate, -2.0, [0.5])
    assert found.loss == near(1.6)
    assert found.logprobs_grad == near(0.0)


def test_dr_grpo() -> None:
    candidate = load("dr_grpo")
    assert first_token(candidate, small_batch([1, 0, 0, 0])) == near(0.75, -0.25, -0.25, -0.25)  # not divided by 0.5
    found = one_completion(candidate, 0.75, [1.1], ref_ratio=2.0)  # inside the clip range, no KL
    assert found.loss == near(-0.825)  # -1.1 * 0.75
    assert found.logprobs_grad == near(-0.825)


def test_dapo() -> None:
    candidate = load("dapo")
    batch = small_batch(
        [0, 1, 0, 1, 0, 0],
        groups=[0, 0, 0, 0, 1, 1],
        lengths=[10, 9, 8, 5, 3, 4],
        truncated=[True, False, False, False, False, False],
    )
    # limit 10, cache 0.2 * 10 = 2: length 10 costs 1, 9 costs 0.5, 8 or less nothing
    # R = -1 - 1, 1 - 0.5, -1, 1 = -2, 0.5, -1, 1; mean -0.375; centred -1.625, 0.875, -0.625, 1.375
    # squares 2.640625 + 0.765625 + 0.390625 + 1.890625 = 5.6875
    scale = math.sqrt(5.6875 / 3) + 1e-4
    advantages = candidate.compute_advantages(batch, dataclasses.replace(DYNAMICS, max_completion_length=10))
    assert advantages.values[:4, 0].tolist() == near(-1.625 / scale, 0.875 / scale, -0.625 / scale, 1.375 / scale)
    # the truncated completion and the group that fails throughout do not train
    assert advantages.train_mask is not None
    assert advantages.train_mask.sum(-1).tolist() == [0, 9, 8, 5, 0, 0]
    # the same lengths where nobody was cut off: the punishment is that of the limit, not of the batch
    whole = dataclasses.replace(batch, truncated=torch.zeros(6, dtype=torch.bool))
    same = candidate.compute_advantages(whole, dataclasses.replace(DYNAMICS, max_completion_length=10))
    assert torch.equal(same.values, advantages.values)
    # limit 20, cache 4: nothing is near it; R = -1, 1, -1, 1, squares 4
    far = candidate.compute_advantages(whole, dataclasses.replace(DYNAMICS, max_completion_length=20))
    assert far.values[:4, 0].tolist() == near(*(r / (math.sqrt(4 / 3) + 1e-4) for r in (-1, 1, -1, 1)))
    # clip-higher: 1.25 is inside, 1.3 counts as 1.28; 0.7 counts as 0.8
    assert one_completion(candidate, 1.0, [1.25, 1.3]).loss == near(-1.25, -1.28)
    assert one_completion(candidate, -1.0, [0.7]).loss == near(0.8)


def test_gspo() -> None:
    candidate = load("gspo")
    assert first_token(candidate, small_batch([1, 0])) == near(0.5 / (math.sqrt(0.5) + 1e-4), -0.5 / 0.707207)
    # token ratios 1.2 and 1.0002^2 / 1.2 have the geometric mean 1.0002, inside the range: both tokens keep their gradient
    found = one_completion(candidate, 2.0, [1.2, 1.0002**2 / 1.2])
    assert found.loss == near(-2.0004, -2.0004)
    assert found.logprobs_grad == near(-1.0002, -1.0002)  # -s A / L
    # geometric mean 1.001 counts as 1.0004, and neither token moves
    found = one_completion(candidate, 2.0, [1.2, 1.001**2 / 1.2])
    assert found.loss == near(-2.0008, -2.0008)
    assert found.logprobs_grad == near(0.0, 0.0)


def test_cispo() -> None:
    candidate = load("cispo")
    assert first_token(candidate, small_batch([1, 1])) == near(0.0, 0.0)
    # ratio 2 weighs 1.28: -1.28 * 1.5 * -0.5 = 0.96, and unlike under a clip the gradient stays: -1.28 * 1.5 = -1.92
    found = one_completion(candidate, 1.5, [2.0], logprob=-0.5)
    assert found.loss == near(0.96)
    assert found.logprobs_grad == near(-1.92)
    # no lower bound: ratio 0.1 weighs 0.1
    assert one_completion(candidate, -1.5, [0.1]).logprobs_grad == near(0.15)


def test_gmpo() -> None:
    candidate = load("gmpo")
    # A > 0: log-ratio ln 2 = 0.693 counts as 0.4; geometric mean exp((0.4 + 0) / 2) = 1.221403
    found = one_completion(candidate, 1.0, [2.0, 1.0])
    assert found.loss == near(-1.221403, -1.221403)
    assert found.logprobs_grad == near(0.0, -0.610701)  # -J / 2 at the token that is not clipped
    # A < 0: growing ratios are not clipped; exp((0.693 + 0) / 2) = sqrt 2
    found = one_completion(candidate, -1.0, [2.0, 1.0])
    assert found.loss == near(math.sqrt(2), math.sqrt(2))
    assert found.logprobs_grad == near(math.sqrt(2) / 2, math.sqrt(2) / 2)


def test_sapo() -> None:
    candidate = load("sapo")
    # at ratio 1 the gate is 4 sigmoid(0) = 2 with slope 4 * 0.25 = 1
    found = one_completion(candidate, 3.0, [1.0])
    assert found.loss == near(-6.0)
    assert found.logprobs_grad == near(-3.0)
    # ratio 2: sigmoid(1) = 0.731059; gate 2.924234; slope 4 * 0.731059 * 0.268941 = 0.786448; d ratio / d logp = 2
    found = one_completion(candidate, 1.0, [2.0])
    assert found.loss == near(-2.924234)
    assert found.logprobs_grad == near(-1.572896)
    # A < 0, tau 1.05: sigmoid(1.05) = 0.740775; gate 4 / 1.05 * 0.740775 = 2.822000; slope 4 * 0.740775 * 0.259225
    found = one_completion(candidate, -1.0, [2.0])
    assert found.loss == near(2.822000)
    assert found.logprobs_grad == near(2 * 4 * 0.740775 * 0.259225)


def test_reinforce_plus_plus() -> None:
    candidate = load("reinforce_plus_plus").with_overrides(kl_coef=0.1)
    batch = small_batch([1, 0], lengths=[2, 1], kl=[[0.5, 0.5], [0.0]])
    # G: 1 - 0.1 * (0.5 + 0.5) = 0.9, then 1 - 0.1 * 0.5 = 0.95; the other completion 0; mean 1.85 / 3 = 0.616667
    # centred 0.283333, 0.333333, -0.616667; squares 0.080278 + 0.111111 + 0.380278 = 0.571667; / 3 = 0.190556
    scale = math.sqrt(0.571667 / 3) + 1e-4
    values = candidate.compute_advantages(batch, DYNAMICS).values
    assert values[0].tolist() == near(0.283333 / scale, 0.333333 / scale)
    assert values[1, :1].tolist() == near(-0.616667 / scale)
    found = one_completion(candidate, 1.0, [1.5], ref_ratio=2.0)  # clipped; the KL is not in the loss
    assert found.loss == near(-1.2)
    assert found.logprobs_grad == near(0.0)


def test_where_the_files_differ_from_verl() -> None:
    """The numbers of docs/algorithms.md."""
    for name in (
        "grpo",
        "dr_grpo",
        "gspo",
        "cispo",
        "gmpo",
        "sapo",
        "rloo",
    ):  # a group of one; verl gives its reward, 1
        assert first_token(load(name), small_batch([1], lengths=[1])) == near(0.0)
    found = one_completion(load("grpo"), -1.0, [5.0])
    assert found.loss == near(5.0)  # a dual clip at 3 would give 3, without a gradient
    assert found.logprobs_grad == near(5.0)
    # k3 at ref / current = e^5 is 148.413 - 5 - 1, its derivative 1 - e^5; verl cuts the value at 10, without a gradient
    found = one_completion(load("grpo"), 0.0, [1.0], ref_ratio=math.exp(5.0))
    assert found.loss == near(0.01 * (math.exp(5.0) - 6.0))
    assert found.logprobs_grad == near(0.01 * (1.0 - math.exp(5.0)))
    # a mean log-ratio of 12 at A < 0: s = e^12 (verl: e^10)
    found = one_completion(load("gspo"), -1.0, [math.exp(12.0)])
    assert found.loss == pytest.approx([math.exp(12.0)], rel=1e-4)
