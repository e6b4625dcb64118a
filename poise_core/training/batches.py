"""The global batch, which gathers the completions of all processes, so that every process has whole groups.

Rows are in group order: row i belongs to prompt i // group_size and was sampled by process i // (B / processes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
import torch.distributed as dist
import torch.nn.functional as functional
from torch import Tensor

_PER_TOKEN = ("completion_ids", "completion_mask", "old_logprobs", "ref_logprobs", "entropies")


@dataclass(frozen=True)
class GlobalBatch:
    """All completions of one step, on every process. B rows, P prompt and T completion tokens."""

    prompt_ids: Tensor  # (B, P) int64
    prompt_mask: Tensor  # (B, P) bool
    completion_ids: Tensor  # (B, T) int64
    completion_mask: Tensor  # (B, T) bool
    old_logprobs: Tensor  # (B, T)
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
        lengths = self.prompt_mask.sum(-1) + self.completion_mask.sum(-1)
        ordered = [rows[lengths[rows].argsort(stable=True)] for rows in shares]
        sizes = [_sizes(lengths[rows].tolist(), budget) for rows in ordered]
        parts = max(map(len, sizes))
        return ordered[rank].split(_split_to(sizes[rank], parts))


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
