"""Every shipped algorithm once more, as loops over completions and tokens in double precision.

Written from the formulas alone, without ``poise_core.reductions`` and without vectorization. Advantage functions give
one number per completion; loss functions give one float64 tensor per token, so that autograd finds the reference
gradient. A completion lists only its own tokens: there is no mask to get wrong.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from algorithm_batches import LIMIT
from torch import Tensor

from poise_core.contract import Dynamics, RolloutBatch


@dataclass
class Completion:
    """One completion; token lists hold its L tokens in order."""

    correct: float
    valid: bool
    truncated: bool
    group: int
    positions: list[int]  # columns of its tokens in the (B, T) tensors
    old: list[float]
    ref: list[float]
    now: list[Tensor]  # float64 leaves, the current policy's log-probabilities
    entropy: list[Tensor]  # float64 leaves
    advantage: list[float] = field(default_factory=list)  # per token
    trains: bool = True

    @property
    def length(self) -> int:
        return len(self.positions)


Members = list[Completion]


def unpack(batch: RolloutBatch, logprobs: Tensor, entropies: Tensor) -> Members:
    """The batch as a list of completions."""

    def leaf(values: Tensor, i: int, t: int) -> Tensor:
        return values[i, t].detach().double().requires_grad_()

    members = []
    for i in range(len(batch.correctness)):
        positions = [t for t in range(batch.completion_mask.shape[1]) if batch.completion_mask[i, t]]
        members.append(
            Completion(
                correct=float(batch.correctness[i]),
                valid=bool(batch.format_valid[i]),
                truncated=bool(batch.truncated[i]),
                group=int(batch.group_ids[i]),
                positions=positions,
                old=[float(batch.old_logprobs[i, t]) for t in positions],
                ref=[float(batch.ref_logprobs[i, t]) for t in positions],
                now=[leaf(logprobs, i, t) for t in positions],
                entropy=[leaf(entropies, i, t) for t in positions],
            )
        )
    return members


def mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else 0.0


def deviation(numbers: list[float]) -> float:
    """Sample standard deviation, divisor n - 1; 0 for fewer than two numbers."""
    if len(numbers) < 2:
        return 0.0
    return math.sqrt(sum((x - mean(numbers)) ** 2 for x in numbers) / (len(numbers) - 1))


def clip(x: float, low: float, high: float) -> float:
    return min(max(x, low), high)


def group_of(c: Completion, members: Members) -> Members:
    return [other for other in members if other.group == c.group]


def rewards(members: Members) -> list[float]:
    return [c.correct for c in members]


# --- advantages: (completion, its group, the batch, hyperparameters) -> one number -----------------------------------


def z_score(c: Completion, group: Members, members: Members, hp: Any) -> float:
    return (c.correct - mean(rewards(group))) / (deviation(rewards(group)) + hp.std_eps)


def centred(c: Completion, group: Members, members: Members, hp: Any) -> float:
    return c.correct - mean(rewards(group))


def rloo(c: Completion, group: Members, members: Members, hp: Any) -> float:
    def reward(x: Completion) -> float:
        return x.correct - hp.kl_coef * sum(old - ref for old, ref in zip(x.old, x.ref, strict=True))

    others = [reward(other) for other in group if other is not c]
    return reward(c) - mean(others) if others else 0.0


def pass_at_k(c: Completion, group: Members, members: Members, hp: Any) -> float:
    """Every k-subset is rewarded by its best member; a completion gets the mean of the scaled rewards of its subsets."""
    if len({x.correct for x in group}) == 1:
        return 0.0
    subsets = list(itertools.combinations(group, min(int(hp.k), len(group))))
    best = [max(x.correct for x in subset) for subset in subsets]
    population = math.sqrt(mean([(value - mean(best)) ** 2 for value in best]))
    own = [value for value, subset in zip(best, subsets, strict=True) if any(x is c for x in subset)]
    return (mean(own) - mean(best)) / (population + hp.eps)


def dapo(c: Completion, group: Members, members: Members, hp: Any) -> float:
    cache = hp.overlong_cache * LIMIT

    def reward(x: Completion) -> float:
        outcome = 1.0 if x.correct == 1.0 else -1.0
        if x.length <= LIMIT - cache:
            return outcome
        return outcome + (LIMIT - cache - x.length) / cache

    all_rewards = [reward(x) for x in group]
    solved = sum(rewards(group))
    c.trains = not c.truncated and 0 < solved < len(group)
    return (reward(c) - mean(all_rewards)) / (deviation(all_rewards) + hp.std_eps)


def bn(c: Completion, group: Members, members: Members, hp: Any) -> float:
    squares = [(x.correct - mean(rewards(group_of(x, members)))) ** 2 for x in members]
    return clip(centred(c, group, members, hp) / (math.sqrt(mean(squares)) + hp.scale_eps), -3.0, 3.0)


def av(c: Completion, group: Members, members: Members, hp: Any) -> float:
    def reward(x: Completion) -> float:
        return x.correct - (0.0 if x.valid else hp.format_penalty)

    values = [reward(x) for x in group]
    sigma = math.sqrt(max(mean([v * v for v in values]) - mean(values) ** 2, 0.0))
    return (reward(c) - mean(values)) / max(sigma, hp.sigma_min)


def vm_av(c: Completion, group: Members, members: Members, hp: Any) -> float:
    if not c.valid:
        return hp.invalid_advantage
    valid = [x for x in group if x.valid]
    mu = (sum(rewards(valid)) + hp.beta_a) / (len(valid) + hp.beta_a + hp.beta_b)
    advantage = (c.correct - mu) / max(math.sqrt(mu * (1 - mu)), hp.sigma_floor)
    if advantage < 0:
        advantage /= clip(c.length / mean([x.length for x in valid]), 0.5, 2.0)
    return advantage


def msa(c: Completion, group: Members, members: Members, hp: Any) -> float:
    totals = [x.correct + hp.format_weight * x.valid for x in group]
    uniform = deviation(rewards(group)) <= hp.sigma_eps
    sigma = deviation(totals) if uniform else deviation(rewards(group))
    advantage = (c.correct + hp.format_weight * c.valid - mean(totals)) / (sigma + hp.sigma_eps)
    if uniform:
        advantage *= hp.alpha_uniform
    power = hp.length_power if advantage > 0 else -hp.length_power
    return advantage * (c.length / mean([x.length for x in group])) ** power


def fa(c: Completion, group: Members, members: Members, hp: Any) -> float:
    if max(rewards(group)) > 0:
        return clip(z_score(c, group, members, hp), -3.0, 3.0)
    return -0.5 if c.valid else -2.0


def sa(c: Completion, group: Members, members: Members, hp: Any) -> float:
    anchor = hp.alpha * mean(rewards(group)) + (1 - hp.alpha) * mean(rewards(members))
    return (c.correct - anchor) / hp.sigma


def correct_lengths(group: Members) -> list[float]:
    return [x.length for x in group if x.correct == 1.0]


def dace(c: Completion, group: Members, members: Members, hp: Any) -> float:
    p = mean(rewards(group))
    advantage = z_score(c, group, members, hp) * (1 + hp.difficulty_coef * (1 - p))
    if c.correct == 1.0:
        lengths = correct_lengths(group)
        advantage += hp.length_coef * p * (mean(lengths) - c.length) / (deviation(lengths) + hp.std_eps)
    return advantage


def cag(c: Completion, group: Members, members: Members, hp: Any) -> float:
    advantage = z_score(c, group, members, hp)
    if c.correct == 1.0:
        average = mean(correct_lengths(group))
        advantage += hp.length_coef * mean(rewards(group)) ** 2 * min((average - c.length) / average, 0.0)
    return advantage


def dcbe(c: Completion, group: Members, members: Members, hp: Any) -> float:
    advantage = z_score(c, group, members, hp)
    if c.correct == 1.0:
        average = mean(correct_lengths(group))
        share = len(correct_lengths(group)) / len(group)
        advantage += hp.length_coef * share**2 * (average - c.length) / (average + hp.length_eps)
    return advantage


ADVANTAGES: dict[str, Callable[[Completion, Members, Members, Any], float]] = {
    "av": av,
    "bn": bn,
    "cag": cag,
    "cispo": z_score,
    "dace": dace,
    "dapo": dapo,
    "dcbe": dcbe,
    "dr_grpo": centred,
    "fa": fa,
    "gmpo": z_score,
    "grpo": z_score,
    "gspo": z_score,
    "msa": msa,
    "pass_at_k": pass_at_k,
    "reinforce_group_baseline": centred,
    "rloo": rloo,
    "sa": sa,
    "sapo": z_score,
    "vm_av": vm_av,
}


def assign_advantages(name: str, members: Members, hp: Any) -> None:
    """Fill in ``advantage`` and ``trains`` of every completion."""
    if name == "reinforce_plus_plus":
        returns = [
            [c.correct - hp.kl_coef * sum(c.old[s] - c.ref[s] for s in range(t, c.length)) for t in range(c.length)]
            for c in members
        ]
        tokens = [value for row in returns for value in row]
        population = math.sqrt(mean([(value - mean(tokens)) ** 2 for value in tokens]))
        for c, row in zip(members, returns, strict=True):
            c.advantage = [(value - mean(tokens)) / (population + hp.std_eps) for value in row]
        return
    for c in members:
        c.advantage = [ADVANTAGES[name](c, group_of(c, members), members, hp)] * c.length


# --- losses: (completion, hyperparameters, dynamics) -> one float64 tensor per token ---------------------------------


def bound(x: Tensor, low: float, high: float) -> Tensor:
    """x inside [low, high]; outside, the nearer end as a constant without gradient."""
    return x if low <= x <= high else torch.tensor(clip(float(x.detach()), low, high), dtype=torch.float64)


def clip_loss(c: Completion, hp: Any, dynamics: Dynamics) -> list[Tensor]:
    losses = []
    for now, old, advantage in zip(c.now, c.old, c.advantage, strict=True):
        ratio = torch.exp(now - old)
        losses.append(-min(ratio * advantage, bound(ratio, 1 - hp.clip_eps_low, 1 + hp.clip_eps_high) * advantage))
    return losses


def clip_kl_loss(c: Completion, hp: Any, dynamics: Dynamics) -> list[Tensor]:
    losses = []
    for now, ref, surrogate in zip(c.now, c.ref, clip_loss(c, hp, dynamics), strict=True):
        k3 = torch.exp(ref - now) - (ref - now) - 1
        losses.append(surrogate + hp.kl_coef * k3)
    return losses


def clip_kl_entropy_loss(c: Completion, hp: Any, dynamics: Dynamics, scale: float = 1.0) -> list[Tensor]:
    bonus = hp.entropy_coef * scale
    return [loss - bonus * entropy for loss, entropy in zip(clip_kl_loss(c, hp, dynamics), c.entropy, strict=True)]


def controlled_loss(c: Completion, hp: Any, dynamics: Dynamics) -> list[Tensor]:
    return clip_kl_entropy_loss(c, hp, dynamics, dynamics.controller["entropy_scale"])


def reinforce_loss(c: Completion, hp: Any, dynamics: Dynamics) -> list[Tensor]:
    return [-advantage * now for now, advantage in zip(c.now, c.advantage, strict=True)]


def cispo_loss(c: Completion, hp: Any, dynamics: Dynamics) -> list[Tensor]:
    losses = []
    for now, old, advantage in zip(c.now, c.old, c.advantage, strict=True):
        weight = min(math.exp(float(now.detach()) - old), 1 + hp.clip_eps_high)  # a plain number: no gradient
        losses.append(-weight * advantage * now)
    return losses


def gspo_loss(c: Completion, hp: Any, dynamics: Dynamics) -> list[Tensor]:
    change = sum(now - old for now, old in zip(c.now, c.old, strict=True)) / c.length
    ratio = torch.exp(torch.as_tensor(change))
    bounded = bound(ratio, 1 - hp.clip_eps_low, 1 + hp.clip_eps_high)
    return [-min(ratio * advantage, bounded * advantage) for advantage in c.advantage]


def gmpo_loss(c: Completion, hp: Any, dynamics: Dynamics) -> list[Tensor]:
    advantage = c.advantage[0]
    if advantage == 0.0:
        return [torch.zeros((), dtype=torch.float64)] * c.length
    product = torch.ones((), dtype=torch.float64)
    for now, old in zip(c.now, c.old, strict=True):
        ratio = torch.exp(now - old)
        bounded = bound(ratio, math.exp(-hp.clip_log_low), math.exp(hp.clip_log_high))
        product = product * abs(min(ratio * advantage, bounded * advantage))
    return [-math.copysign(1.0, advantage) * product ** (1 / c.length)] * c.length


def sapo_loss(c: Completion, hp: Any, dynamics: Dynamics) -> list[Tensor]:
    losses = []
    for now, old, advantage in zip(c.now, c.old, c.advantage, strict=True):
        tau = hp.tau_pos if advantage > 0 else hp.tau_neg
        gate = 4 / tau / (1 + torch.exp(-tau * (torch.exp(now - old) - 1)))
        losses.append(-gate * advantage)
    return losses


LOSSES: dict[str, Callable[[Completion, Any, Dynamics], list[Tensor]]] = {
    "av": clip_kl_entropy_loss,
    "bn": clip_kl_entropy_loss,
    "cag": clip_kl_loss,
    "cispo": cispo_loss,
    "dace": controlled_loss,
    "dapo": clip_loss,
    "dcbe": controlled_loss,
    "dr_grpo": clip_loss,
    "fa": clip_kl_loss,
    "gmpo": gmpo_loss,
    "grpo": clip_kl_loss,
    "gspo": gspo_loss,
    "msa": clip_kl_loss,
    "pass_at_k": clip_kl_loss,
    "reinforce_group_baseline": reinforce_loss,
    "reinforce_plus_plus": clip_loss,
    "rloo": reinforce_loss,
    "sa": clip_kl_entropy_loss,
    "sapo": sapo_loss,
    "vm_av": controlled_loss,
}


TOKEN_MEAN = {"dapo", "cispo", "reinforce_plus_plus"}
SEQUENCE_SUM = {"dr_grpo", "reinforce_group_baseline", "rloo"}


def aggregate(name: str, losses: list[list[Tensor]], limit: int) -> Tensor:
    """The scalar of a batch, from the token losses of its trained completions."""
    if name in TOKEN_MEAN:
        tokens = [loss for row in losses for loss in row]
        return sum(tokens, torch.zeros(())) / max(len(tokens), 1)
    rows = [sum(row, torch.zeros(())) / (limit if name in SEQUENCE_SUM else len(row)) for row in losses]
    return sum(rows, torch.zeros(())) / max(len(rows), 1)
