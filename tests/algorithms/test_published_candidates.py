"""The published losses in ``examples/candidates``: the gate admits every one, and its characteristic term is that of the paper."""

from __future__ import annotations

import ast
import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from algorithm_batches import DYNAMICS, one_completion, small_batch

from poise_core.candidate.loading import Candidate, load_candidate
from poise_core.contract import LossInputs
from poise_core.export.candidate_source import inlined
from poise_core.reductions import aggregate_loss
from poise_core.verification.gate import run_checks
from poise_core.verification.report import Conditions

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "candidates"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))

OFTEN = ("clip_cov", "gfpo", "grpo_lead", "kl_cov", "nsr", "pkpo", "pods", "psr", "topr", "w_reinforce")
"""Put through the gate by every slow run, because they were or are nearest to being refused; the others by an exhaustive one."""


@lru_cache
def load(name: str) -> Candidate:
    return load_candidate(FOLDER / f"{name}.py")


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=pytest.mark.slow if one in OFTEN else pytest.mark.exhaustive) for one in NAMES]
)
def test_the_gate_admits_it(name: str) -> None:
    source = (FOLDER / f"{name}.py").read_text()
    report = run_checks(source, name, probe_seed=11)  # a draw at which none of them has a note
    assert report.admitted, report.message
    assert report.duplicate_of is None
    assert [check.note for check in report.checks if check.note] == []


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", NAMES)
def test_no_draw_and_no_preset_refuses_it(name: str, seed: int) -> None:
    conditions = Conditions(
        group_size=(8, 16)[seed % 2], max_completion_length=(32, 2048)[seed % 2], steps=(60, 500)[seed % 2]
    )
    report = run_checks((FOLDER / f"{name}.py").read_text(), name, probe_seed=seed, conditions=conditions)
    assert report.admitted, report.message


def test_each_is_listed_with_its_paper() -> None:
    page = (ROOT / "docs" / "algorithms.md").read_text()
    for name in NAMES:
        text = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text())) or ""
        paper = " ".join(text.split()).split("arXiv ")[1][:10]
        row = next(line for line in page.splitlines() if f"`{name}`" in line)
        assert paper in row, f"{name}: arXiv {paper}"
    assert len(NAMES) == 38


@pytest.mark.parametrize("name", NAMES)
def test_it_can_be_exported(name: str) -> None:
    source = (FOLDER / f"{name}.py").read_text()
    shim, text = inlined(source, ast.parse(source))
    compile(shim + text, name, "exec")
    assert "poise_core" not in text


# ---- advantages by hand, at the first token of every completion

STD = math.sqrt(0.25) + 1e-4  # of 1 0 0 0: squares 0.5625 + 3 * 0.0625 = 0.75; / 3
ONE_OF_FOUR = {"correct": [1, 0, 0, 0]}
UNEQUAL = {"correct": [1, 1, 0, 0], "lengths": [2, 4, 2, 4]}
HALF = math.sqrt(1 / 3) + 1e-4  # of 1 1 0 0: squares 4 * 0.25; / 3

ADVANTAGES: Sequence[tuple[str, Mapping[str, Any], Sequence[float]]] = (
    ("psr", ONE_OF_FOUR, [1, 0, 0, 0]),
    ("nsr", ONE_OF_FOUR, [0, -1, -1, -1]),
    ("w_reinforce", ONE_OF_FOUR, [0.1, -1, -1, -1]),
    ("raft_plus_plus", ONE_OF_FOUR, [1, 0, 0, 0]),
    ("reinforce_rej", ONE_OF_FOUR, [1, -1, -1, -1]),
    ("dual_clip_ppo", ONE_OF_FOUR, [0.75 / STD, *[-0.25 / STD] * 3]),
    # half of the eight completions are in a mixed group: alpha = 8 / 4
    ("gpg", {"correct": [1, 0, 0, 0, 1, 1, 1, 1], "groups": [0] * 4 + [1] * 4}, [1.5, -0.5, -0.5, -0.5, 0, 0, 0, 0]),
    # b = (2 + 4) / (2 + 4 + 2 + 8) = 6 / 16
    ("opo", {"correct": [1, 1, 0, 0], "lengths": [2, 4, 2, 8]}, [0.625, 0.625, -0.375, -0.375]),
    # R / mean - 1 with mean 1/4
    ("maxrl", ONE_OF_FOUR, [3, -1, -1, -1]),
    ("maxrl", {"correct": [0, 0]}, [0, 0]),
    # the 0.4-quantile of 0 0 0 1 is 0, that of 0 1 1 1 is 1
    ("quantile_baseline", ONE_OF_FOUR, [1 / STD, 0, 0, 0]),
    ("quantile_baseline", {"correct": [0, 1, 1, 1]}, [-1 / STD, 0, 0, 0]),
    ("asymmetric_reinforce", ONE_OF_FOUR, [0.85, -0.15, -0.15, -0.15]),
    # std of the eight rewards of both groups, two of them right: squares 2 * 0.5625 + 6 * 0.0625 = 1.5; / 7
    ("lite_ppo", {"correct": [1, 0, 0, 0] * 2, "groups": [0] * 4 + [1] * 4},
     [0.75 / (math.sqrt(1.5 / 7) + 1e-4), *[-0.25 / (math.sqrt(1.5 / 7) + 1e-4)] * 3] * 2),
    # k = 4 of n = 4, one right: s = 1 of the right one; a wrong one with all the rest is never all wrong, so its s is 1, too
    ("pkpo", ONE_OF_FOUR, [0, 0, 0, 0]),
    # k = 4 of n = 5, one right: right 4/5; wrong 4/5 (1 - C(3, 3) / C(4, 3)) = 3/5; others' means 3/5 and (4/5 + 9/5) / 4 = 0.65
    ("pkpo", {"correct": [1, 0, 0, 0, 0]}, [0.2, *[-0.05] * 4]),
    # all are equally likely: they share rank 1.5, so R = 1 - 0.25 * 2.5 / 4 = 0.84375, of which the deviation is half
    ("unlikeliness_reward", ONE_OF_FOUR, [0.84375 * x / (0.421875 + 1e-4) for x in (0.75, -0.25, -0.25, -0.25)]),
    # shortest 2, longest 4: lambda = 1/2 and -1/2; R = 1.25, 0.75, 0 (a wrong one gains nothing), -0.25; mean 0.4375
    ("kimi_length_reward", UNEQUAL, [0.8125, 0.3125, -0.4375, -0.6875]),
    # L* = 2, limit 7: R = 2, 2 - 2/7, 0, -2/7; mean 6/7; centred 8/7, 6/7, -6/7, -8/7, squares 200/49
    ("shorter_better", UNEQUAL, [x / 7 / (math.sqrt(200 / 49 / 3) + 1e-4) for x in (8, 6, -6, -8)]),
    # right ones: mean length 3, std sqrt 2; sigmoid(-+0.7071) = 0.33024, 0.66976; R = 0.933952, 0.866048, 0, 0; mean 0.45
    ("efficient_reasoning", UNEQUAL, [(0.933952 - 0.45) * 4 / 3, (0.866048 - 0.45) * 4 / 3, -0.6, -0.6]),
    # all of one length: f = 1
    ("lambda_grpo", ONE_OF_FOUR, [0.75 / STD, *[-0.25 / STD] * 3]),
    # entropy 0.5: 0.4 * 0.5 = 0.2, at most half of the advantage: 0.75 / STD + 0.2 and -0.25 / STD + 0.2
    ("entropy_advantage", ONE_OF_FOUR, [0.75 / STD + 0.2, *[-0.25 / STD + 0.2] * 3]),
    # one right of four: p = 1/4; w(1/4) = 0.4 + 1.1 / (1 + e^-5) = 1.492638, w(3/4) = 0.4 + 0.55; R = 1, -1: A = 1.5 / 1, -0.5 / 1
    ("grpo_lead", ONE_OF_FOUR, [1.5 / 1.0001 * 1.492638, *[-0.5 / 1.0001 * 0.95] * 3]),
    # weights of NFT: sqrt((1 - p) / p) = sqrt 3
    ("nft", ONE_OF_FOUR, [math.sqrt(3)] * 4),
    # pass rates 1/4 and 3/4: mean 1/2, variance 1/16, a + b = 1/4 / (1/16) - 1 = 3; 1 + 1.5 / 3 = 1.5 twice;
    # Beta(1.5, 1.5) at 1/4 is sqrt(3/16) * 8 / pi = 1.102658
    ("bnpo", {"correct": [1, 0, 0, 0, 1, 1, 1, 0], "groups": [0] * 4 + [1] * 4},
     [x / 1.102658 for x in (0.75, -0.25, -0.25, -0.25, 0.25, 0.25, 0.25, -0.75)]),
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "batch", "expected"), ADVANTAGES, ids=[f"{row[0]}-{n}" for n, row in enumerate(ADVANTAGES)]
)
def test_advantages(name: str, batch: Mapping[str, Any], expected: Sequence[float]) -> None:
    rollout = small_batch(batch["correct"], batch.get("groups"), batch.get("lengths"))
    found = load(name).compute_advantages(rollout, dataclasses.replace(DYNAMICS, progress=0.5))
    assert found.values[:, 0].tolist() == pytest.approx(list(expected), rel=1e-4, abs=1e-5)


def test_advantages_that_are_normalized_over_the_batch() -> None:
    # B = 3/4, -1/4 three times; one token each: mean 0, spread sqrt(0.75 / 4) = 0.433013
    found = load("reinforce_plus_plus_baseline").compute_advantages(small_batch([1, 0, 0, 0]), DYNAMICS)
    assert found.values[:, 0].tolist() == pytest.approx([0.75 / 0.433113, *[-0.25 / 0.433113] * 3], rel=1e-4)


# ---- losses by hand: advantage, ratios, log-probability, then token losses and gradients of their mean

LOSSES: Sequence[tuple[str, float, Sequence[float], Sequence[float], Sequence[float]]] = (
    # A < 0: ratio 5 would cost 5 |A|, the dual clip stops at 3 |A| without a gradient
    ("dual_clip_ppo", -1.0, [5.0], [3.0], [0.0]),
    ("dual_clip_ppo", -1.0, [2.0], [2.0], [2.0]),
    # beyond 1.28 the weight is 1.28 and keeps its gradient; below 0.8 at A < 0 it is 0.75 * 0.8 = 0.6
    ("ce_gppo", 1.0, [2.0], [-1.28], [-1.28]),
    ("ce_gppo", -1.0, [0.5], [0.6], [0.6]),
    # q = e^-1 / 2 = 0.183940 under the old policy: high = 1/2 + 1/2 sqrt(1 + 0.8 / 0.183940) = 1.656392
    ("dcpo", 1.0, [2.0], [-1.656392], [0.0]),
    ("gpg", 0.5, [3.0], [0.5], [-0.5]),  # -A log pi, log pi = -1
    # wrong: min(r, 1) = 1/2, so 1/2 * -A log pi = 1/2 * -1; right: no weight
    ("topr", -1.0, [0.5], [-0.5], [0.5]),
    ("topr", 1.0, [0.5], [1.0], [-1.0]),
    # tau 0.1, log-ratio ln 2 = 0.693147: 0.05 * 0.480453 + A; gradient -A + 0.1 * 0.693147
    ("kimi_mirror_descent", 1.0, [2.0], [0.05 * 0.480453 + 1.0], [-1.0 + 0.0693147]),
    ("truncated_importance", 1.0, [5.0], [2.0], [-2.0]),  # cut at 2: -2 A log pi
    # A > 0: weight 1 / r = 2; at ratio 1.5 the gradient has ended
    ("aspo", 1.0, [0.5], [-2.0], [-2.0]),
    ("aspo", 1.0, [1.5], [-1 / 1.5], [0.0]),
    ("aspo", -1.0, [5.0], [3.0], [0.0]),
    # -min(l A, clip(l) A) with l = ln 1.1 = 0.0953102, drift 0.1 * 0.1 * l
    ("cpgd", 1.0, [1.1], [-0.0953102 + 0.01 * 0.0953102], [-0.99]),
    # correctness is 1 here: -min(r A, clip) - 0.1 log pi = -1.1 + 0.1
    ("positive_nll", 1.0, [1.1], [-1.0], [-1.2]),
    ("adaptive_entropy", 1.0, [1.5], [-1.2], [0.0]),  # entropy 0.6 is above the target: no bonus
)  # fmt: skip


@pytest.mark.parametrize(("name", "advantage", "ratios", "loss", "gradient"), LOSSES)
def test_losses(
    name: str, advantage: float, ratios: Sequence[float], loss: Sequence[float], gradient: Sequence[float]
) -> None:
    found = one_completion(load(name), advantage, list(ratios))
    assert found.loss == pytest.approx(list(loss), rel=1e-4, abs=1e-6)
    assert found.logprobs_grad == pytest.approx(list(gradient), rel=1e-4, abs=1e-6)


def test_mirror_descent_is_of_whole_completions_whatever_their_length() -> None:
    # log-ratio 0.1 a token, A = 1: gradient -1 + 0.1 * 0.1 L at every token, over 2 completions and a limit of 4 tokens
    mask = torch.arange(4) < torch.tensor([[1], [4]])
    logprobs = torch.full((2, 4), -1.0, requires_grad=True)
    zeros = torch.zeros(2, 4)
    inputs = LossInputs(
        logprobs=logprobs, entropies=zeros, old_logprobs=torch.full((2, 4), -1.1), ref_logprobs=zeros,
        advantages=torch.ones(2, 4), mask=mask, carry={}, correctness=torch.ones(2), format_valid=mask[:, 0],
    )  # fmt: skip
    candidate = load("kimi_mirror_descent")
    total = aggregate_loss(candidate.compute_loss(inputs, DYNAMICS).token_loss, mask, candidate.loss_aggregation)
    (gradient,) = torch.autograd.grad(total, logprobs)
    assert (8 * gradient)[mask].tolist() == pytest.approx([-0.99, *[-0.96] * 4], rel=1e-4)


def carried(
    name: str, advantage: float, ratio: float, carry: Mapping[str, float], correct: float = 1.0
) -> tuple[float, float]:
    """Loss and gradient of one token with signals that its advantages carry; one number per completion, or per token."""
    logprobs = torch.full((1, 1), -1.0, requires_grad=True)
    rows = {key: torch.full((1,) if key == "rate" else (1, 1), value) for key, value in carry.items()}
    one = torch.full((1, 1), -1.0)
    inputs = LossInputs(
        logprobs=logprobs,
        entropies=torch.full((1, 1), 0.5),
        old_logprobs=one - math.log(ratio),
        ref_logprobs=one.clone(),
        advantages=torch.full((1, 1), advantage),
        mask=torch.ones((1, 1), dtype=torch.bool),
        carry=rows,
        correctness=torch.tensor([correct]),
        format_valid=torch.ones(1, dtype=torch.bool),
    )
    loss = load(name).compute_loss(inputs, DYNAMICS).token_loss.sum()
    (gradient,) = torch.autograd.grad(loss, logprobs)
    return float(loss.detach()), float(gradient)


def test_losses_that_read_what_the_advantages_carry() -> None:
    near = pytest.approx
    # KL-Cov: -2 A, and for a held token 1/2 (ln 2)^2 more, whose gradient is ln 2
    assert carried("kl_cov", 1.0, 2.0, {"held": 0.0}) == near((-2.0, -2.0), rel=1e-5)
    assert carried("kl_cov", 1.0, 2.0, {"held": 1.0}) == near((-2.0 + 0.240227, -2.0 + 0.693147), rel=1e-5)
    # Archer: a reasoning token may go to 1.5, a token of knowledge to 1.2; k3 at the reference's own policy is 0
    assert carried("archer", 1.0, 1.4, {"reasoning": 1.0}) == near((-1.4, -1.4), rel=1e-5)
    assert carried("archer", 1.0, 1.4, {"reasoning": 0.0}) == near((-1.2, 0.0), rel=1e-5)
    # NFT, p = 1/2, r = 1.2: right -ln 1.2; wrong -ln((1 - 0.6) / 0.5) = -ln 0.8, gradient r p / (1 - p r) = 0.6 / 0.4
    assert carried("nft", 1.0, 1.2, {"rate": 0.5}) == near((-math.log(1.2), -1.0), rel=1e-5)
    assert carried("nft", 1.0, 1.2, {"rate": 0.5}, correct=0.0) == near((-math.log(0.8), 1.5), rel=1e-5)


def test_which_tokens_and_completions_train() -> None:
    # Clip-Cov: log-probabilities less their mean of -2 are 1, 0.5, -1, -0.5, advantages +-0.5 / 0.57745 = +-0.866 with mean 0: the
    # covariances are 0.866, -0.433, -0.866 and 0.433; the largest is left out where it reaches the floor
    batch = dataclasses.replace(small_batch([1, 0, 1, 0]), old_logprobs=torch.tensor([[-1.0], [-1.5], [-3.0], [-2.5]]))
    low = load("clip_cov").with_overrides(cov_floor=0.1)
    assert (low.compute_advantages(batch, DYNAMICS).values[:, 0] == 0).tolist() == [True, False, False, False]
    assert (load("clip_cov").compute_advantages(batch, DYNAMICS).values != 0).all(), (
        "0.87 is below the paper's floor of 1"
    )
    held = load("kl_cov").compute_advantages(batch, DYNAMICS).carry["held"]
    assert held[:, 0].tolist() == [1.0, 0.0, 0.0, 0.0]
    # forking tokens: a fifth of four, rounded up, is the one with the highest entropy
    spread = dataclasses.replace(batch, entropies=torch.tensor([[0.1], [0.9], [0.5], [0.3]]))
    mask = load("forking_tokens").compute_advantages(spread, DYNAMICS).train_mask
    assert mask is not None
    assert mask[:, 0].tolist() == [False, True, False, False]
    # Archer: the last of five tokens has a higher entropy than four of five
    five = small_batch([1], lengths=[5])
    five = dataclasses.replace(five, entropies=torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.5]]))
    assert load("archer").compute_advantages(five, DYNAMICS).carry["reasoning"].tolist() == [[0, 0, 0, 0, 1]]
    # PODS keeps half of eight, two right and two wrong: of three right ones the less likely two, of five wrong the likeliest two
    likely = [[-1.0], [-2.0], [-3.0], [-1.0], [-2.0], [-3.0], [-4.0], [-5.0]]
    batch = dataclasses.replace(small_batch([1, 1, 1, 0, 0, 0, 0, 0]), old_logprobs=torch.tensor(likely))
    found = load("pods").compute_advantages(batch, DYNAMICS)
    assert found.train_mask is not None
    assert found.train_mask[:, 0].tolist() == [False, True, True, True, True, False, False, False]
    assert found.values[1, 0].item() == pytest.approx(0.5 / HALF, rel=1e-5)
    # of four identical right ones none is less likely: all stand at the cut and train with the likeliest two of the wrong
    likely = [[-1.0]] * 4 + [[-2.0], [-3.0], [-4.0], [-5.0]]
    batch = dataclasses.replace(small_batch([1] * 4 + [0] * 4), old_logprobs=torch.tensor(likely))
    found = load("pods").compute_advantages(batch, DYNAMICS)
    assert found.train_mask is not None
    assert found.train_mask[:, 0].tolist() == [True] * 6 + [False, False]
    # ... and where the wrong ones are identical, too, everything trains
    found = load("pods").compute_advantages(small_batch([1] * 4 + [0] * 4), DYNAMICS)
    assert found.train_mask is not None
    assert found.train_mask.all()
    # GFPO keeps half by reward per token: 1/2, then 1/4; a wrong one has none
    found = load("gfpo").compute_advantages(small_batch([1, 1, 0, 1], lengths=[2, 4, 1, 8]), DYNAMICS)
    assert found.train_mask is not None
    assert found.train_mask.any(-1).tolist() == [True, True, False, False]
    # one right and seven identical wrong ones: half of eight would be the right one and any three of the others
    found = load("gfpo").compute_advantages(small_batch([1] + [0] * 7), DYNAMICS)
    assert found.train_mask is not None
    assert found.train_mask.all()


def test_the_coefficient_of_the_adaptive_entropy_bonus() -> None:
    control = load("adaptive_entropy")
    low, high = dataclasses.replace(DYNAMICS, entropy=0.4), dataclasses.replace(DYNAMICS, entropy=0.6)
    assert control.update_controller({"coef": 0.02}, low) == {"coef": pytest.approx(0.025)}
    assert control.update_controller({"coef": 0.02}, high) == {"coef": pytest.approx(0.015)}
    assert control.update_controller({"coef": 0.002}, high) == {"coef": 0.0}
    bonus = dataclasses.replace(low, controller={"coef": 0.02})
    assert one_completion(control, 1.0, [1.0], dynamics=bonus).loss == pytest.approx([-1.0 - 0.02 * 0.5])
