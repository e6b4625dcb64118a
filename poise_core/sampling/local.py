"""Sampling completions from a policy, and scoring them; both are fast where lengths vary.

Every prompt is prefilled once and its cache is repeated for the members of its group. A sequence leaves the batch when it
is finished, and decoding ends with the longest sequence. The caller gives one uniform random number per completion and position,
so a completion depends on its own row only, not on the other rows of its batch or on the process.
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

PACKED_WIDTH = 64
"""Packed rows are at least this wide, in tokens: wider ones have less padding at their ends, but attention grows with the width."""


@dataclass(frozen=True)
class Completions:
    """Sampled completions, with B rows and T, the length of the longest completion."""

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
        noise: (B, max_length) uniform numbers for inverse-CDF sampling, or None for greedy decoding.
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
    packed: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities and entropies of the completions' tokens, both (B, T) float32, with gradient if enabled.

    Both are zero outside the mask, and entropies are zero where ``entropies`` is False. The model sees every sequence
    without its padding: prompt and completion next to each other, from the left. With ``packed``, several short sequences
    share a row; this requires a model for which ``separates_packed`` returns True.
    """
    real = torch.cat([prompt_mask, completion_mask], dim=1)  # (B, P + T)
    prompts = prompt_mask.sum(-1)
    place, width = _places(real.sum(-1).tolist(), PACKED_WIDTH if packed else 0)
    row, start = place.to(real.device).unbind(-1)  # (B,) each
    columns = start.unsqueeze(-1) + real.long().cumsum(-1) - 1  # of every real token in its row
    rows = int(row.max()) + 1
    ids = torch.zeros((rows, width), dtype=torch.int64, device=real.device)
    ids[row.unsqueeze(-1).expand_as(columns)[real], columns[real]] = torch.cat([prompt_ids, completion_ids], dim=1)[
        real
    ]
    begin = torch.zeros_like(ids)
    begin[row, start] = start
    # positions restart with every sequence, and continue in the unused rest of a row, to which no real token attends
    positions = torch.arange(width, device=real.device) - begin.cummax(-1).values
    first = int((start + prompts).min()) - 1  # the first column that predicts a completion's token
    output = model(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=width - first)
    predicting = row.unsqueeze(-1) * (width - first) + columns[:, prompt_mask.shape[1] :] - 1 - first
    logits = output.logits.flatten(0, 1).index_select(0, predicting[completion_mask])  # (tokens, V)
    log_probabilities = torch.log_softmax(logits.float() / temperature, dim=-1)
    chosen = log_probabilities.gather(-1, completion_ids[completion_mask].unsqueeze(-1)).squeeze(-1)
    zeros = torch.zeros(completion_mask.shape, dtype=torch.float32, device=real.device)
    logprobs = zeros.masked_scatter(completion_mask, chosen)
    if not entropies:
        return logprobs, zeros
    return logprobs, zeros.masked_scatter(completion_mask, -(log_probabilities.exp() * log_probabilities).sum(-1))


def _places(lengths: list[int], width: int) -> tuple[Tensor, int]:
    """Pack sequences of these lengths into rows of ``width`` tokens, or of the longest sequence where that is more.

    The method is first fit decreasing: from the longest on, each sequence goes into the first row with enough free columns.
    With a ``width`` of 0 every sequence has its own row.

    Returns:
        (B, 2) int64, row and first column of each sequence, and the width of the rows.
    """
    if width == 0:
        return torch.stack([torch.arange(len(lengths)), torch.zeros(len(lengths), dtype=torch.int64)], dim=-1), max(
            lengths
        )
    width = max(width, *lengths)
    used: list[int] = []
    places = [(0, 0)] * len(lengths)
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((row for row, length in enumerate(used) if length + lengths[index] <= width), len(used))
        if row == len(used):
            used.append(0)
        places[index] = (row, used[row])
        used[row] += lengths[index]
    return torch.tensor(places), max(used)


@torch.no_grad()
def separates_packed(model: Any) -> bool:
    """Whether a model treats the sequences of a packed row, which differ in their positions only, as separate.

    Transformers masks them from each other in models that pass positions to its masks. This function tries it: the tokens
    before a sequence in its row must not change a bit of its logits.
    """
    device = next(model.parameters()).device
    positions = torch.arange(3, device=device).repeat(2).unsqueeze(0)
    rows = [torch.tensor([[before] * 3 + [0, 1, 0]], device=device) for before in (0, 1)]
    one, other = (model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, 3:] for ids in rows)
    return torch.equal(one, other)
