"""The global batch, which gathers the completions of all processes, so that every process has whole groups.

Rows are in group order: row i belongs to prompt i // group_size and was sampled by process i // (B / processes), or came from a
sampler in another process. Such a sampler computes other log-probabilities than the trainer, by rounding, by a stale cache, or by
an error of its own. What a candidate sees is the trainer's; what that leaves out is corrected here, outside the candidate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as functional
from torch import Tensor

from poise_core.config.protocol import SamplerSpec
from poise_core.sampling import handover
from poise_core.training.algorithm import not_finite

_PER_TOKEN = ("completion_ids", "completion_mask", "old_logprobs", "sampler_logprobs", "ref_logprobs", "entropies")


@dataclass(frozen=True)
class GlobalBatch:
    """All completions of one step, on every process. B rows, P prompt and T completion tokens."""

    prompt_ids: Tensor  # (B, P) int64
    prompt_mask: Tensor  # (B, P) bool
    completion_ids: Tensor  # (B, T) int64
    completion_mask: Tensor  # (B, T) bool
    old_logprobs: Tensor  # (B, T), of the trainer
    sampler_logprobs: Tensor  # (B, T), of whoever sampled; the same tensor where that is the trainer, in float32
    ref_logprobs: Tensor  # (B, T)
    entropies: Tensor  # (B, T)
    correctness: Tensor  # (B,)
    format_valid: Tensor  # (B,) bool
    truncated: Tensor  # (B,) bool
    group_ids: Tensor  # (B,) int64

    def trimmed(self) -> GlobalBatch:
        """Return the batch without columns that no row uses, left of the prompts and right of the completions."""
        first = int(self.prompt_mask.any(0).int().argmax())
        longest = max(1, int(self.completion_mask.sum(-1).max()))
        columns = {name: getattr(self, name)[:, first:] for name in ("prompt_ids", "prompt_mask")}
        return replace(self, **columns, **{name: getattr(self, name)[:, :longest] for name in _PER_TOKEN})

    def select(self, rows: Tensor) -> GlobalBatch:
        """Return the rows with these indices, trimmed."""
        return replace(self, **{spec.name: getattr(self, spec.name)[rows] for spec in fields(self)}).trimmed()

    def by_length(self, rows: Tensor, parts: int) -> tuple[Tensor, ...]:
        """Split the indices ``rows`` into ``parts`` parts of equal size by length, so that a part has little padding."""
        lengths = self.completion_mask[rows].sum(-1)
        return rows[lengths.argsort(stable=True)].tensor_split(parts)

    def by_tokens(self, shares: Sequence[Tensor], rank: int, budget: int) -> tuple[Tensor, ...]:
        """Split the rows of one process by length into parts of at most ``budget`` tokens, padding included.

        The number of parts is the same on all processes, because each of them computes the parts of all: with ZeRO every backward
        pass waits for the others'. A sequence that is longer than the budget is a part of its own.

        Args:
            shares: the rows of every process, equally many.
            rank: the process whose parts are wanted.
            budget: tokens of a part, prompts and completions.
        """
        lengths = self._lengths()
        ordered = [rows[lengths[rows].argsort(stable=True)] for rows in shares]
        sizes = [_sizes(lengths[rows].tolist(), budget) for rows in ordered]
        parts = max(map(len, sizes))
        return ordered[rank].split(_split_to(sizes[rank], parts))

    def own_by_tokens(self, budget: int) -> tuple[Tensor, ...]:
        """Split all rows as ``by_tokens`` does, where each process has only its own batch, of equally many rows."""
        lengths = self._lengths()
        ordered = lengths.argsort(stable=True)
        sizes = _sizes(lengths[ordered].tolist(), budget)
        parts = torch.tensor(len(sizes), device=lengths.device)
        if dist.get_world_size() > 1:
            dist.all_reduce(parts, dist.ReduceOp.MAX)
        return ordered.split(_split_to(sizes, int(parts)))

    def _lengths(self) -> Tensor:
        """Tokens of every row, prompt and completion. (B,) int64."""
        return self.prompt_mask.sum(-1) + self.completion_mask.sum(-1)


def _sizes(lengths: Sequence[int], budget: int) -> list[int]:
    """Return how many of the ascending ``lengths`` go into each part, so that number times longest is within the budget."""
    sizes = [0]
    for length in lengths:
        if sizes[-1] and (sizes[-1] + 1) * length > budget:
            sizes.append(0)
        sizes[-1] += 1
    return sizes


def _split_to(sizes: list[int], parts: int) -> list[int]:
    """Halve the largest part until there are so many."""
    sizes = list(sizes)
    while len(sizes) < parts:
        place = sizes.index(max(sizes))
        sizes[place : place + 1] = [sizes[place] // 2, sizes[place] - sizes[place] // 2]
    return sizes


def gather_batch(own: GlobalBatch, max_length: int) -> GlobalBatch:
    """Join the rows of all processes in order of their ranks; ``own`` tensors may be shorter than ``max_length``."""
    if dist.get_world_size() == 1:
        return own
    joined = {}
    for spec in fields(own):
        value: Tensor = getattr(own, spec.name)
        if spec.name in _PER_TOKEN:
            value = functional.pad(value, (0, max_length - value.shape[1]))
        sent = value.to(torch.uint8) if value.dtype == torch.bool else value
        parts = [torch.empty_like(sent) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, sent.contiguous())
        joined[spec.name] = torch.cat(parts).to(value.dtype)
    return GlobalBatch(**joined).trimmed()


@dataclass(frozen=True)
class Rendezvous:
    """The way to a sampler in another process; see ``poise_core/sampling/handover.py``."""

    folder: Path
    spec: SamplerSpec
    names: tuple[str, ...]  # of the policy's tensors, as its files name them

    def hand_over(self, model: Any, seed: int, step: int, *, writes: bool) -> None:
        """Write the weights of a whole model, and ask for the rollout of this step.

        Every process calls it, so that all of them fail where the policy does; the one that ``writes`` hands over.

        Raises:
            CandidateFailure: DIVERGED, the policy's log-probabilities are not finite.
            SamplerFault: the disk is full.
        """
        own_canary = handover.canary(model)
        if not all(map(math.isfinite, own_canary)):
            raise not_finite("a log-probability of the policy", step)
        if writes:
            state = model.state_dict()
            dtype = getattr(torch, self.spec.dtype)
            tensors = {name: state[name].detach().to("cpu", dtype, copy=True) for name in self.names}
            handover.hand_over(self.folder, seed, step, tensors, own_canary)

    def rollout(self, seed: int, step: int, rows: range, group_size: int, device: torch.device) -> GlobalBatch:
        """Wait for the rollout of this step and return these rows of it; their ``old_logprobs`` and ``entropies`` are still 0.

        Raises:
            SamplerFault: what came is not what was asked.
        """
        tensors, _ = handover.await_rollout(self.folder, seed, step)
        groups = torch.tensor([row // group_size for row in rows])
        own = {name: value[rows.start : rows.stop].to(device) for name, value in tensors.items()}
        own |= {name: tensors[name][groups].to(device) for name in ("prompt_ids", "prompt_mask")}
        zeros = torch.zeros_like(own["sampler_logprobs"])
        valid = own["format_valid"]
        own["correctness"] = torch.where(valid, own["correctness"], torch.zeros_like(own["correctness"]))
        return GlobalBatch(
            **own,
            old_logprobs=zeros,
            ref_logprobs=zeros.clone(),
            entropies=zeros,
            group_ids=groups.to(device),
        )


def importance_weights(batch: GlobalBatch, spec: SamplerSpec | None) -> Tensor | None:
    """Return the weights of tokens, (B, T), or None where the trainer has sampled itself or the protocol has them off.

    They are min(exp(trainer - sampler), cap), of a token's log-probability or of the sum over its completion: truncated importance
    sampling (Ionides 2008, eq. 3; for samplers of language models Yao et al. 2025, "Your efficient RL framework secretly brings
    you off-policy RL training"). The gradient of a candidate's loss at each token is multiplied by them.
    """
    if spec is None or spec.importance == "off":
        return None
    gap = _gap(batch)
    if spec.importance == "sequence":
        gap = gap.sum(-1, keepdim=True).expand_as(gap)
    return gap.exp().clamp(max=spec.cap)


def mismatch(batch: GlobalBatch) -> dict[str, float]:
    """Return how far sampler and trainer are apart: the columns ``sampler_*`` of a trajectory.

    With d = trainer - sampler, per token that was sampled: the KL of sampler to trainer by estimator k3, the mean of
    exp(d) - d - 1; the effective sample size (sum w)^2 / (n sum w^2) of the w = exp(d), which is 1 where all are alike; and the
    largest |d|.
    """
    mask = batch.completion_mask
    if not bool(mask.any()):
        return {"sampler_kl": 0.0, "sampler_ess": 1.0, "sampler_gap": 0.0}
    gap = _gap(batch)[mask].double().clamp(-20, 20)
    weights = gap.exp()
    return {
        "sampler_kl": float((weights - gap - 1).mean()),
        "sampler_ess": float(weights.sum() ** 2 / (len(weights) * (weights**2).sum())),
        "sampler_gap": float(gap.abs().max()),
    }


def _gap(batch: GlobalBatch) -> Tensor:
    return torch.where(
        batch.completion_mask, batch.old_logprobs - batch.sampler_logprobs, torch.zeros_like(batch.old_logprobs)
    )
