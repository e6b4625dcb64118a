"""Log-probabilities and entropies of chosen tokens without the logits of the whole vocabulary.

The logits of a micro-batch, (N, V) in float32, are the largest tensor of an update: 8 sequences of 4,096 tokens over 152,000
words take 20 GB, and their gradient as much again. Both results depend on three sums over the vocabulary only, which this
module computes tile by tile, with running maxima as in Milakov and Gimelshein, "Online normalizer calculation for softmax",
arXiv 1805.02867. The backward pass computes each tile anew. Sums are kept in float32 whatever the type of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE = {"cuda": (4096, 32768), "cpu": (256, 8192)}
"""Tokens and words of a tile: 512 MB of logits in float32 on a GPU, 8 MB on a processor, whose caches hold more of them."""


def token_scores(
    hidden: Tensor,
    weight: Tensor,
    chosen: Tensor,
    *,
    temperature: float = 1.0,
    tokens: int | None = None,
    words: int | None = None,
    rounded: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities of the chosen words and the entropies of the distributions, both (N,) float32.

    Both have gradients with respect to ``hidden`` and ``weight``. With logits z = hidden weight^T / temperature and
    p = softmax(z), the results are z_c - logsumexp(z) and logsumexp(z) - sum(p z), and their gradients with respect to z are
    [j = c] - p_j and -p_j (log p_j + entropy).

    Args:
        hidden: (N, D) last hidden states, of any floating type.
        weight: (V, D) weight of the output head, of the same type.
        chosen: (N,) int64, the words.
        temperature: divides the logits.
        tokens: tokens of a tile; by default as fits the device.
        words: words of a tile, likewise.
        rounded: whether logits are rounded to the type of the weights, as a head that computes in it does.
    """
    own = TILE["cuda" if hidden.is_cuda else "cpu"]
    tile = (tokens or own[0], words or own[1])
    scores: tuple[Tensor, Tensor] = _TokenScores.apply(hidden, weight, chosen, temperature, *tile, rounded)
    return scores


class _TokenScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        chosen: Tensor,
        temperature: float,
        tokens: int,
        words: int,
        rounded: bool,
    ) -> tuple[Tensor, Tensor]:
        count = len(hidden)
        kind = torch.promote_types(hidden.dtype, torch.float32)  # float64 only in checks of the gradient
        largest = hidden.new_full((count,), -torch.inf, dtype=kind)
        total = hidden.new_zeros((count,), dtype=kind)  # sum of exp(z - largest)
        weighted = torch.zeros_like(total)  # sum of exp(z - largest) (z - largest)
        picked = torch.zeros_like(total)  # z of the chosen word
        for columns in _tiles(len(weight), words):
            for rows in _tiles(count, tokens):
                logits = _logits(hidden[rows], weight[columns], temperature, rounded)
                before, sum_before = largest[rows], total[rows]
                now = torch.maximum(before, logits.amax(-1))
                shift = torch.where(sum_before > 0, before - now, 0.0)  # of what was summed so far; 0 in the first tile
                logits_above = logits - now.unsqueeze(-1)
                exponentials = logits_above.exp()
                weighted[rows] = shift.exp() * (weighted[rows] + sum_before * shift) + (
                    exponentials * logits_above
                ).sum(-1)
                total[rows] = shift.exp() * sum_before + exponentials.sum(-1)
                largest[rows] = now
                inside, word = _inside(chosen[rows], columns)
                picked[rows] += torch.where(inside, logits.gather(-1, word.unsqueeze(-1)).squeeze(-1), 0.0)
        spread = total.log()
        entropy = spread - weighted / total
        ctx.save_for_backward(hidden, weight, chosen, largest, spread, entropy)
        ctx.settings = (temperature, tokens, words, rounded)
        return picked - largest - spread, entropy  # in this order: the logsumexp alone would round off the spread

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logprob: Tensor, grad_entropy: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None, None, None]:
        hidden, weight, chosen, largest, spread, entropy = ctx.saved_tensors
        temperature, tokens, words, rounded = ctx.settings
        for_hidden, for_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.zeros_like(hidden, dtype=largest.dtype) if for_hidden else None
        grad_weight = torch.empty_like(weight) if for_weight else None
        for columns in _tiles(len(weight), words):
            part = weight[columns]
            grad_part = torch.zeros_like(part, dtype=largest.dtype) if for_weight else None
            for rows in _tiles(len(hidden), tokens):
                logits_above = _logits(hidden[rows], part, temperature, rounded) - largest[rows].unsqueeze(-1)
                log_probabilities = logits_above - spread[rows].unsqueeze(-1)
                probabilities = log_probabilities.exp()
                share = grad_logprob[rows].unsqueeze(-1) + grad_entropy[rows].unsqueeze(-1) * (
                    log_probabilities + entropy[rows].unsqueeze(-1)
                )
                grad_logits = probabilities.mul_(share).neg_()
                inside, word = _inside(chosen[rows], columns)
                grad_logits.scatter_add_(
                    -1, word.unsqueeze(-1), torch.where(inside, grad_logprob[rows], 0.0).unsqueeze(-1)
                )
                grad_logits /= temperature
                if grad_hidden is not None:
                    grad_hidden[rows] += _product(grad_logits, part)
                if grad_part is not None:
                    grad_part += _product(grad_logits.T, hidden[rows])
            if grad_weight is not None and grad_part is not None:
                grad_weight[columns] = grad_part.to(weight.dtype)
        return None if grad_hidden is None else grad_hidden.to(hidden.dtype), grad_weight, None, None, None, None, None


def _tiles(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _logits(hidden: Tensor, weight: Tensor, temperature: float, rounded: bool) -> Tensor:
    product = _product(hidden, weight.T)
    return (product.to(weight.dtype).to(product.dtype) if rounded else product).div_(temperature)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply matrices, one of which may be in half precision, with sums and result in float32 (float64 for float64)."""
    if left.is_cuda and left.dtype == right.dtype and left.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(left, right, out_dtype=torch.float32)
    kind = torch.promote_types(torch.promote_types(left.dtype, right.dtype), torch.float32)
    return left.to(kind) @ right.to(kind)


def _inside(chosen: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Return which chosen words lie in a tile, and their places in it, 0 for the others."""
    inside = (chosen >= columns.start) & (chosen < columns.stop)
    return inside, torch.where(inside, chosen - columns.start, 0)
