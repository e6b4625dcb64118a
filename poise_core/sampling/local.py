"""Sampling completions from a policy, fast where lengths vary.

Every prompt is prefilled once and its cache is repeated for the members of its group. A sequence leaves the batch when it
is finished, and decoding ends with the longest live one. Randomness is one uniform number per completion and position,
given from outside, so a completion depends on its own row only: not on which rows share its batch, nor on the process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COMPACT_SHARE = 0.1
"""The batch is compacted when at least this share of its sequences has finished; compaction copies the cache."""


@dataclass(frozen=True)
class Completions:
    """Sampled completions of B rows, T = the longest of them."""

    ids: Tensor  # (B, T) int64, pad id outside the mask
    mask: Tensor  # (B, T) bool, True = sampled token, the end-of-sequence token included
    truncated: Tensor  # (B,) bool, no end-of-sequence token within the length limit
    logprobs: Tensor  # (B, T) float32, of the sampled tokens at the sampling temperature; 0 outside the mask
    entropies: Tensor  # (B, T) float32, nats; 0 outside the mask


def _repeat_cache(cache: Any, counts: Tensor) -> None:
    rows = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    cache.batch_select_indices(rows)


@torch.no_grad()
def sample_completions(
    model: PreTrainedModel,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    counts: Tensor,
    *,
    max_length: int,
    eos_id: int,
    pad_id: int,
    noise: Tensor | None,
    temperature: float = 1.0,
    on_token: Callable[[int, int], None] | None = None,
) -> Completions:
    """Sample ``counts[i]`` completions of prompt i.

    Args:
        model: a causal language model in evaluation mode.
        prompt_ids: (N, P) int64, left-padded.
        prompt_mask: (N, P) bool.
        counts: (N,) int64; B = their sum; rows come out grouped by prompt, in order.
        max_length: the longest completion, in tokens, the end-of-sequence token included.
        eos_id: the token that ends a completion.
        pad_id: fills ids outside the mask.
        noise: (B, max_length) uniforms for inverse-CDF sampling, or None for greedy decoding.
        temperature: divides the logits.
        on_token: called with (position, live rows) after every decoding step; used by tests and benchmarks.
    """
    device = prompt_ids.device
    rows = int(counts.sum())
    out_ids = torch.full((rows, max_length), pad_id, dtype=torch.int64, device=device)
    out_logprobs = torch.zeros((rows, max_length), dtype=torch.float32, device=device)
    out_entropies = torch.zeros((rows, max_length), dtype=torch.float32, device=device)
    lengths = torch.full((rows,), max_length, dtype=torch.int64, device=device)
    ended = torch.zeros(rows, dtype=torch.bool, device=device)

    padded = not bool(prompt_mask.all())
    positions = (prompt_mask.long().cumsum(-1) - 1).clamp(min=0)
    attention = prompt_mask.long()
    output = model(
        input_ids=prompt_ids,
        attention_mask=attention if padded else None,
        position_ids=positions,
        use_cache=True,
        logits_to_keep=1,
    )
    cache = output.past_key_values
    _repeat_cache(cache, counts)
    logits = output.logits[:, -1].float().repeat_interleave(counts, 0)
    next_position = positions[:, -1].repeat_interleave(counts) + 1
    attention = attention.repeat_interleave(counts, 0)
    live = torch.arange(rows, device=device)  # row of the output that each row of the batch writes

    for position in range(max_length):
        log_probabilities = torch.log_softmax(logits / temperature, dim=-1)
        probabilities = log_probabilities.exp()
        if noise is None:
            token = logits.argmax(-1)
        else:
            threshold = noise[live, position].to(device).unsqueeze(-1)
            cumulative = probabilities.double().cumsum(-1)
            token = torch.searchsorted(cumulative, threshold * cumulative[:, -1:], right=True).squeeze(-1)
            token = token.clamp(max=logits.shape[-1] - 1)
        out_ids[live, position] = token
        out_logprobs[live, position] = log_probabilities.gather(-1, token.unsqueeze(-1)).squeeze(-1)
        out_entropies[live, position] = -(probabilities * log_probabilities).sum(-1)
        finished = (token == eos_id) & ~ended[live]
        ended[live] |= finished
        lengths[live] = torch.where(finished, position + 1, lengths[live])
        going = ~ended[live]
        alive = int(going.sum())
        if on_token is not None:
            on_token(position, alive)
        if alive == 0 or position + 1 == max_length:
            break
        if len(live) - alive >= COMPACT_SHARE * len(live):
            kept = going.nonzero().squeeze(-1)
            cache.batch_select_indices(kept)
            live, token, next_position, attention = live[kept], token[kept], next_position[kept], attention[kept]
        if padded:
            attention = torch.cat([attention, attention.new_ones((len(live), 1))], dim=1)
        output = model(
            input_ids=token.unsqueeze(-1),
            attention_mask=attention if padded else None,
            position_ids=next_position.unsqueeze(-1),
            past_key_values=cache,
            use_cache=True,
        )
        logits = output.logits[:, -1].float()
        next_position = next_position + 1

    longest = int(lengths.max())
    mask = torch.arange(longest, device=device) < lengths.unsqueeze(-1)
    zero = torch.zeros((), device=device)
    return Completions(
        ids=torch.where(mask, out_ids[:, :longest], torch.full_like(out_ids[:, :longest], pad_id)),
        mask=mask,
        truncated=~ended,
        logprobs=torch.where(mask, out_logprobs[:, :longest], zero),
        entropies=torch.where(mask, out_entropies[:, :longest], zero),
    )


def score_completions(
    model: Any,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    completion_ids: Tensor,
    completion_mask: Tensor,
    *,
    temperature: float = 1.0,
    entropies: bool = True,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the completions' tokens, and entropies, both (B, T) float32, with gradient if enabled.

    Entropies are zeros where ``entropies`` is False. Columns that no row uses may be cut off beforehand.
    """
    ids = torch.cat([prompt_ids, completion_ids], dim=1)
    attention = torch.cat([prompt_mask, completion_mask], dim=1)
    positions = (attention.long().cumsum(-1) - 1).clamp(min=0)
    length = completion_ids.shape[1]
    # right padding is never attended by a real token, so only left padding needs a mask
    left_padded = not bool(prompt_mask.all())
    output = model(
        input_ids=ids,
        attention_mask=attention.long() if left_padded else None,
        position_ids=positions,
        use_cache=False,
        logits_to_keep=length + 1,
    )
    logits = output.logits[:, :-1].float() / temperature  # (B, T, V)
    log_probabilities = torch.log_softmax(logits, dim=-1)
    logprobs = log_probabilities.gather(-1, completion_ids.unsqueeze(-1)).squeeze(-1)
    if not entropies:
        return logprobs, torch.zeros_like(logprobs)
    return logprobs, -(log_probabilities.exp() * log_probabilities).sum(-1)
