"""Batches and one update of a candidate, for the tests of rendered compositions."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from poise_core.candidate.loading import Candidate
from poise_core.contract import Advantages, Dynamics, LossInputs, RolloutBatch
from poise_core.reductions import aggregate_loss

NAN = float("nan")
LIMIT = 9
DYNAMICS = Dynamics(5, 0.25, 0.6, 0.05, 0.4, 5.0, 0.1, 0.3, 1.0, LIMIT)
GROUPS = [70] * 8 + [-3] * 4 + [12] * 5 + [5] + [40] * 6 + [41] * 8
"""70, 40 and 41 are mixed (41: one success of eight), -3 passes, 12 fails, 5 has one member."""


def batch_of(seed: int) -> RolloutBatch:
    """32 completions with everything a mechanism can react to; NaN outside the mask."""
    draw = torch.Generator().manual_seed(seed)
    groups = torch.tensor(GROUPS)
    rows = len(GROUPS)
    lengths = torch.randint(1, LIMIT + 1, (rows,), generator=draw)
    mask = torch.arange(LIMIT + 1) < lengths.unsqueeze(-1)
    correct = torch.rand(rows, generator=draw) < 0.5
    correct[0:4] = torch.tensor([True, True, True, False])
    correct[18:21] = torch.tensor([True, True, False])
    correct = (correct | (groups == -3)) & (groups != 12) & (groups != 41)
    correct[24] = True
    valid = correct | (torch.rand(rows, generator=draw) < 0.5)
    valid[12:14] = torch.tensor([True, False])
    valid[25:27] = torch.tensor([True, False])
    noise = torch.randn(3, *mask.shape, generator=draw)
    old = -noise[0].abs() - 0.1
    batch = RolloutBatch(
        correctness=correct.float(),
        format_valid=valid,
        truncated=(lengths == LIMIT) & ~correct,
        group_ids=groups,
        completion_mask=mask,
        old_logprobs=torch.where(mask, old, NAN),
        ref_logprobs=torch.where(mask, old + 0.4 * noise[1], NAN),
        entropies=torch.where(mask, noise[2].abs(), NAN),
    )
    return take(batch, torch.randperm(rows, generator=draw))


def take(batch: RolloutBatch, rows: Tensor) -> RolloutBatch:
    return RolloutBatch(**{f.name: getattr(batch, f.name)[rows] for f in dataclasses.fields(batch)})


def current(batch: RolloutBatch, spread: float = 0.5) -> Tensor:
    """Log-probabilities of a policy that has moved; a few tokens far enough for every kind of clip."""
    draw = torch.Generator().manual_seed(99)
    moved = spread * torch.randn(batch.old_logprobs.shape, generator=draw)
    return batch.old_logprobs + torch.where(torch.rand(moved.shape, generator=draw) < 0.1, 4.0 * moved, moved)


def inputs_of(batch: RolloutBatch, advantages: Advantages, logprobs: Tensor) -> LossInputs:
    return LossInputs(
        logprobs=logprobs.detach().clone().requires_grad_(),
        entropies=batch.entropies.clone().requires_grad_(),
        old_logprobs=batch.old_logprobs,
        ref_logprobs=batch.ref_logprobs,
        advantages=advantages.values,
        mask=batch.completion_mask if advantages.train_mask is None else advantages.train_mask,
        carry=advantages.carry,
        correctness=batch.correctness,
        format_valid=batch.format_valid,
    )


@dataclass(frozen=True)
class Update:
    """What one batch does to the policy."""

    values: Tensor  # (B, T)
    mask: Tensor  # (B, T)
    token_loss: Tensor  # (B, T)
    loss: Tensor
    gradient: Tensor  # (B, T), of logprobs
    entropy_gradient: Tensor  # (B, T)

    def same_as(self, other: Update, rtol: float = 1e-5, atol: float = 1e-6) -> bool:
        if not torch.equal(self.mask, other.mask):
            return False
        pairs = (
            (self.values[self.mask], other.values[self.mask]),
            (self.token_loss[self.mask], other.token_loss[self.mask]),
            (self.gradient, other.gradient),
            (self.entropy_gradient, other.entropy_gradient),
        )
        return all(torch.allclose(a, b, rtol=rtol, atol=atol) for a, b in pairs)

    @property
    def finite(self) -> bool:
        inside = (self.values[self.mask], self.token_loss[self.mask], self.gradient, self.entropy_gradient)
        return all(bool(torch.isfinite(tensor).all()) for tensor in inside)


def update_of(candidate: Candidate, batch: RolloutBatch, logprobs: Tensor, dynamics: Dynamics = DYNAMICS) -> Update:
    """Advantages, loss and gradients of the whole batch, as the trainer computes them."""
    with torch.no_grad():
        advantages = candidate.compute_advantages(batch, dynamics)
    inputs = inputs_of(batch, advantages, logprobs)
    outputs = candidate.compute_loss(inputs, dynamics)
    loss = aggregate_loss(outputs.token_loss, inputs.mask, candidate.loss_aggregation, max_length=LIMIT)
    gradient, entropy_gradient = gradients(loss, inputs)
    return Update(
        advantages.values, inputs.mask, outputs.token_loss.detach(), loss.detach(), gradient, entropy_gradient
    )


def gradients(loss: Tensor, inputs: LossInputs) -> tuple[Tensor, Tensor]:
    leaves = (inputs.logprobs, inputs.entropies)
    found = torch.autograd.grad(loss, leaves, allow_unused=True) if loss.requires_grad else (None, None)
    first, second = (torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True))
    return first, second


@cache
def edges() -> dict[str, tuple[RolloutBatch, Tensor]]:
    """Batches on which careless code stops being finite: name -> (batch, current log-probabilities)."""
    batch = batch_of(7)
    rows = len(batch.correctness)
    empty = batch.completion_mask.clone()
    empty[::3] = False
    cases = {
        "all pass": dataclasses.replace(batch, correctness=torch.ones(rows), format_valid=torch.ones(rows).bool()),
        "all fail": dataclasses.replace(batch, correctness=torch.zeros(rows)),
        "all invalid": dataclasses.replace(
            batch,
            correctness=torch.zeros(rows),
            format_valid=torch.zeros(rows).bool(),
            truncated=torch.ones(rows).bool(),
        ),
        "equal partial credit": dataclasses.replace(batch, correctness=torch.full((rows,), 0.5)),
        "partial credit": dataclasses.replace(batch, correctness=torch.linspace(0, 1, rows)),
        "groups of one": dataclasses.replace(batch, group_ids=torch.arange(rows)),
        "one completion": take(batch, torch.tensor([0])),
        "empty completions": dataclasses.replace(batch, completion_mask=empty),
        "no tokens at all": dataclasses.replace(batch, completion_mask=torch.zeros_like(empty)),
    }
    built = {name: (case, current(case)) for name, case in cases.items()}
    for shift in (-30.0, 30.0):
        built[f"log-ratio {shift:+.0f}"] = (batch, batch.old_logprobs + shift)
    return built
