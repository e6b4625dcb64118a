"""Reductions over groups and masks, vectorized, for candidate files and for the trainer.

Group functions take one number per completion, shape (B,), and ``group_ids``, shape (B,) int64 with arbitrary values in
arbitrary order, and give each completion its group's number, shape (B,). Sums use ``index_add_`` over the compacted ids,
so the cost is linear in B whatever the group sizes.

Where ``where`` (bool, (B,)) is given, only those completions enter the statistic; a group without any gets the
documented ``empty`` value.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _compact(group_ids: Tensor) -> tuple[Tensor, int]:
    unique, inverse = torch.unique(group_ids, return_inverse=True)
    return inverse, int(unique.numel())


def group_sum(values: Tensor, group_ids: Tensor, where: Tensor | None = None) -> Tensor:
    """Sum of each group, given back to its members. (B,) -> (B,); a group with nothing in ``where`` gets 0."""
    inverse, groups = _compact(group_ids)
    kept = values if where is None else torch.where(where, values, torch.zeros_like(values))
    return torch.zeros(groups, dtype=values.dtype, device=values.device).index_add_(0, inverse, kept)[inverse]


def group_count(group_ids: Tensor, where: Tensor | None = None) -> Tensor:
    """Number of completions of each group (those in ``where``), as float32. (B,) -> (B,)."""
    ones = torch.ones(group_ids.shape, dtype=torch.float32, device=group_ids.device)
    return group_sum(ones, group_ids, where)


def group_mean(values: Tensor, group_ids: Tensor, where: Tensor | None = None, empty: float = 0.0) -> Tensor:
    """Mean of each group, given back to its members. (B,) -> (B,); ``empty`` where a group has none."""
    count = group_count(group_ids, where)
    mean = group_sum(values, group_ids, where) / count.clamp(min=1.0)
    return torch.where(count > 0, mean, torch.full_like(mean, empty))


def group_std(values: Tensor, group_ids: Tensor, where: Tensor | None = None, correction: int = 1) -> Tensor:
    """Standard deviation of each group with divisor n - ``correction``. (B,) -> (B,).

    ``correction=1`` is the sample deviation (``torch.std``'s default, used by GRPO implementations); ``correction=0`` the
    population deviation. A group whose divisor would not be positive gets 0.
    """
    deviation = values - group_mean(values, group_ids, where)
    divisor = group_count(group_ids, where) - correction
    variance = group_sum(deviation * deviation, group_ids, where) / divisor.clamp(min=1.0)
    return torch.where(divisor > 0, variance, torch.zeros_like(variance)).sqrt()


def _extreme(values: Tensor, group_ids: Tensor, where: Tensor | None, empty: float, reduce: str) -> Tensor:
    inverse, groups = _compact(group_ids)
    neutral = float("-inf") if reduce == "amax" else float("inf")
    kept = values if where is None else torch.where(where, values, torch.full_like(values, neutral))
    start = torch.full((groups,), neutral, dtype=values.dtype, device=values.device)
    found = start.scatter_reduce(0, inverse, kept, reduce=reduce)[inverse]
    return torch.where(group_count(group_ids, where) > 0, found, torch.full_like(found, empty))


def group_max(values: Tensor, group_ids: Tensor, where: Tensor | None = None, empty: float = 0.0) -> Tensor:
    """Maximum of each group, given back to its members. (B,) -> (B,); ``empty`` where a group has none."""
    return _extreme(values, group_ids, where, empty, "amax")


def group_min(values: Tensor, group_ids: Tensor, where: Tensor | None = None, empty: float = 0.0) -> Tensor:
    """Minimum of each group, given back to its members. (B,) -> (B,); ``empty`` where a group has none."""
    return _extreme(values, group_ids, where, empty, "amin")


def group_quantile(values: Tensor, group_ids: Tensor, q: float) -> Tensor:
    """The ``q``-quantile of each group with linear interpolation, as ``torch.quantile``. (B,) -> (B,).

    Raises:
        ValueError: if ``q`` lies outside [0, 1].
    """
    if not 0.0 <= q <= 1.0:
        raise ValueError(f"q must lie in [0, 1], got {q}")
    inverse, groups = _compact(group_ids)
    by_value = torch.argsort(values, stable=True)
    order = by_value[torch.argsort(inverse[by_value], stable=True)]  # sorted by group, then by value
    sorted_values = values[order]
    size = torch.zeros(groups, dtype=torch.int64, device=values.device).index_add_(0, inverse, torch.ones_like(inverse))
    start = torch.cumsum(size, 0) - size
    position = q * (size - 1).to(values.dtype)
    low = position.floor().to(torch.int64)
    high = position.ceil().to(torch.int64)
    low_value, high_value = sorted_values[start + low], sorted_values[start + high]
    quantile = low_value + (high_value - low_value) * (position - low.to(values.dtype))
    return quantile[inverse]


def group_rank(values: Tensor, group_ids: Tensor, ties: Tensor | None = None, reduce: str = "mean") -> Tensor:
    """Rank of each completion among the values of its group, 0 for the smallest, as float32. (B,) -> (B,).

    Equal values share the mean of their ranks, so 1, 0, 0, 0 rank 3, 1, 1, 1, whatever the order of the rows. Ranks are the
    number of smaller values plus half the number of other equal ones; they add up to n (n - 1) / 2 in a group of n.

    Keep the k largest of every group with ``group_rank(..., reduce="amax") >= group_count(group_ids) - k`` and the k smallest with
    ``group_rank(..., reduce="amin") < k``: of equal completions at the cut all are kept, so there may be more than k. With
    the mean of their ranks they could all be dropped.

    Args:
        values: what is ranked; for the largest first, hand in ``-values``.
        group_ids: of the completions.
        ties: (B,) what ranks completions of equal values, such as the sum of a completion's log-probabilities; what is equal
            here too shares its ranks.
        reduce: which of their ranks equal completions share: ``mean``, the lowest ``amin`` or the highest ``amax``.

    Raises:
        ValueError: ``reduce`` is none of these.
    """
    if reduce not in ("mean", "amin", "amax"):
        raise ValueError(f"reduce is {reduce!r}; use 'mean', 'amin' or 'amax'")
    inverse, _ = _compact(group_ids)
    keys = [inverse, values] if ties is None else [inverse, values, ties]
    order = torch.arange(inverse.shape[0], device=inverse.device)
    for key in reversed(keys):  # sorted by group, then by value, then by what decides ties
        order = order[torch.argsort(key[order], stable=True)]
    begins = torch.zeros(order.shape, dtype=torch.bool, device=order.device)  # where another value begins
    for key in keys:
        begins[1:] |= key[order][1:] != key[order][:-1]
    place = torch.arange(order.shape[0], device=order.device, dtype=torch.float32)
    place = place - group_min(place, inverse[order])  # within the group
    rank = torch.empty_like(place)
    shared = {"mean": group_mean, "amin": group_min, "amax": group_max}[reduce]
    rank[order] = shared(place, torch.cumsum(begins.to(torch.int64), 0))
    return rank


def masked_sum(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum of ``values`` where ``mask``; what lies outside, NaN included, does not matter."""
    kept = torch.where(mask, values, torch.zeros_like(values))
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of ``values`` where ``mask``; 0 where the mask is empty."""
    count = mask.sum() if dim is None else mask.sum(dim)
    return masked_sum(values, mask, dim) / count.clamp(min=1)


def sequence_lengths(mask: Tensor) -> Tensor:
    """Number of True positions per row, float32. (B, T) -> (B,)."""
    return mask.sum(-1).to(torch.float32)


def to_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """One number per completion, repeated over its tokens. (B,), (B, T) -> (B, T)."""
    return values.unsqueeze(-1).expand(mask.shape)


def log_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, bound: float = 20.0) -> Tensor:
    """log(current / old), 0 outside the mask, clamped to +-``bound`` so that its exponential stays finite. (B, T) -> (B, T)."""
    return torch.where(mask, logprobs - old_logprobs, torch.zeros_like(logprobs)).clamp(-bound, bound)


def aggregate_loss(
    token_loss: Tensor,
    mask: Tensor,
    aggregation: str,
    *,
    token_count: Tensor | float | None = None,
    sequence_count: Tensor | float | None = None,
    max_length: int | None = None,
) -> Tensor:
    """Reduce (B, T) token losses to the scalar that is minimized.

    ``token-mean``: sum over tokens / token count (DAPO, arXiv 2503.14476 eq. 8). ``sequence-mean``: per-completion token
    mean, then mean over completions (GRPO, arXiv 2402.03300 eq. 3). ``sequence-sum``: sum / (completions x max
    completion length) (Dr. GRPO, arXiv 2503.20783). Counts default to this batch's own; the trainer passes the global
    ones, so that the micro-batches of a step add up to the loss of the whole batch.

    Args:
        token_loss: (B, T).
        mask: (B, T) bool; rows without any True position add nothing, and by default count as no completion.
        aggregation: one of ``poise_core.contract.LOSS_AGGREGATIONS``.
        token_count: denominator of ``token-mean``.
        sequence_count: number of completions with at least one trained token.
        max_length: T of the length limit for ``sequence-sum``; defaults to ``mask.shape[1]``.

    Raises:
        ValueError: if ``aggregation`` is not one of the allowed names.
    """
    rows = mask.any(-1)
    tokens = mask.sum() if token_count is None else torch.as_tensor(token_count)
    sequences = rows.sum() if sequence_count is None else torch.as_tensor(sequence_count)
    if aggregation == "token-mean":
        return masked_sum(token_loss, mask) / tokens.clamp(min=1)
    if aggregation == "sequence-mean":
        return masked_mean(token_loss, mask, dim=-1).sum() / sequences.clamp(min=1)
    if aggregation == "sequence-sum":
        length = mask.shape[-1] if max_length is None else max_length
        return masked_sum(token_loss, mask) / (sequences.clamp(min=1) * length)
    raise ValueError(f"unknown aggregation {aggregation!r}; use 'token-mean', 'sequence-mean' or 'sequence-sum'")
