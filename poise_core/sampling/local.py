"""Sampling completions from a policy in this process; it is fast where lengths vary.

Every prompt is prefilled once and its cache is repeated for the members of its group. A sequence leaves the batch when it
is finished, and decoding ends with the longest sequence. The caller gives one uniform random number per completion and position,
so a completion depends on its own row only, not on the other rows of its batch or on the process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COMPACT_SHARE = 0.1
"""The batch is compacted when at least this share of its sequences has finished; compaction copies the cache."""

DRAWN_LOGITS = 1 << 25
"""Logits from which tokens are drawn at a time; a draw needs four numbers of four bytes for each."""

BLOCK = 512
"""Words whose probabilities are summed first; only within one block the cumulative sum is taken word by word."""


@dataclass(frozen=True)
class Completions:
    """Sampled completions, with B rows and T, the length of the longest completion."""

    ids: Tensor  # (B, T) int64, pad id outside the mask
    mask: Tensor  # (B, T) bool, True = sampled token, the end-of-sequence token included
    truncated: Tensor  # (B,) bool, no end-of-sequence token within the length limit
    logprobs: Tensor  # (B, T) float32, of the sampled tokens at the sampling temperature; 0 outside the mask
    entropies: Tensor  # (B, T) float32, nats; 0 outside the mask


@torch.no_grad()
def sample_completions(
    model: PreTrainedModel,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    counts: Tensor,
    *,
    max_length: int,
    eos_ids: Sequence[int],
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
        eos_ids: the tokens that end a completion.
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
    ends = torch.tensor(list(eos_ids), device=device)
    decoding = _Decoding(model, prompt_ids, prompt_mask, counts)

    for position in range(max_length):
        live = decoding.live
        thresholds = None if noise is None else noise[live.to(noise.device), position].to(device)
        token, logprob, entropy = _draw(decoding.logits, thresholds, temperature)
        out_ids[live, position] = token
        out_logprobs[live, position] = logprob
        out_entropies[live, position] = entropy
        finished = torch.isin(token, ends) & ~ended[live]  # a finished row stays until the batch is compacted
        ended[live] |= finished
        lengths[live] = torch.where(finished, position + 1, lengths[live])
        going = ~ended[live]
        alive = int(going.sum())
        if on_token is not None:
            on_token(position, alive)
        if alive == 0 or position + 1 == max_length:
            break
        decoding.advance(token, going, alive)

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


class _Decoding:
    """The batch of unfinished rows: their caches, positions and the logits of their next tokens."""

    def __init__(self, model: PreTrainedModel, prompt_ids: Tensor, prompt_mask: Tensor, counts: Tensor) -> None:
        self._model = model
        self._padded = not bool(prompt_mask.all())
        positions = (prompt_mask.long().cumsum(-1) - 1).clamp(min=0)
        self._attention = prompt_mask.long()
        output = model(
            input_ids=prompt_ids,
            attention_mask=self._attention if self._padded else None,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache: Any = output.past_key_values
        self._cache.batch_select_indices(
            torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
        )
        self.logits = output.logits[:, -1].repeat_interleave(counts, 0)  # (live, V)
        self._position = positions[:, -1].repeat_interleave(counts) + 1
        self._attention = self._attention.repeat_interleave(counts, 0)
        self.live = torch.arange(len(self.logits), device=prompt_ids.device)  # row of the output that each row writes

    def advance(self, token: Tensor, going: Tensor, alive: int) -> None:
        """Append the drawn tokens, leave out finished rows where that pays, and compute the next logits."""
        if len(self.live) - alive >= COMPACT_SHARE * len(self.live):
            kept = going.nonzero().squeeze(-1)
            self._cache.batch_select_indices(kept)
            token = token[kept]
            self.live, self._position, self._attention = self.live[kept], self._position[kept], self._attention[kept]
        if self._padded:
            self._attention = torch.cat([self._attention, self._attention.new_ones((len(self.live), 1))], dim=1)
        output = self._model(
            input_ids=token.unsqueeze(-1),
            attention_mask=self._attention if self._padded else None,
            position_ids=self._position.unsqueeze(-1),
            past_key_values=self._cache,
            use_cache=True,
        )
        self.logits = output.logits[:, -1]
        self._position = self._position + 1


def _draw(logits: Tensor, thresholds: Tensor | None, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a token for every row: (rows,) int64 tokens, and their log-probabilities and the entropies, float32.

    Args:
        logits: (rows, V).
        thresholds: (rows,) uniform numbers, or None for the most probable token.
        temperature: divides the logits.
    """
    size = max(1, DRAWN_LOGITS // logits.shape[-1])
    drawn = []
    for start in range(0, len(logits), size):
        part = logits[start : start + size].float()
        log_probabilities = torch.log_softmax(part / temperature, dim=-1)
        probabilities = log_probabilities.exp()
        numbers = None if thresholds is None else thresholds[start : start + size]
        token = part.argmax(-1) if numbers is None else _inverse_cdf(probabilities, numbers)
        picked = log_probabilities.gather(-1, token.unsqueeze(-1)).squeeze(-1)
        drawn.append((token, picked, -(probabilities * log_probabilities).sum(-1)))
    token, picked, entropy = (torch.cat(parts) for parts in zip(*drawn, strict=True))
    return token, picked, entropy


def _inverse_cdf(probabilities: Tensor, thresholds: Tensor) -> Tensor:
    """Return the words at which the cumulative probability passes the thresholds. (rows,) int64.

    Sums are taken in float64, first over blocks of words and then within the block of the word, so that a vocabulary of 152,000
    words needs no (rows, V) tensor in float64. A word of probability 0 is never returned.
    """
    rows, words = probabilities.shape
    blocks = torch.nn.functional.pad(probabilities, (0, -words % BLOCK)).view(rows, -1, BLOCK)
    sums = blocks.sum(-1, dtype=torch.float64).cumsum(-1)  # (rows, blocks)
    target = thresholds.double().unsqueeze(-1) * sums[:, -1:]
    block = _first_above(sums, target)
    before = torch.nn.functional.pad(sums, (1, 0)).gather(-1, block)
    inner = blocks.gather(1, block.unsqueeze(-1).expand(-1, -1, blocks.shape[-1])).squeeze(1).double().cumsum(-1)
    word = block * blocks.shape[-1] + _first_above(inner, target - before)
    return word.squeeze(-1)


def _first_above(cumulative: Tensor, target: Tensor) -> Tensor:
    """Return the first places whose cumulative sum is above the target, which is kept within its range. (rows, 1) int64."""
    last = cumulative[:, -1:]
    below = torch.nextafter(last, torch.zeros_like(last))
    return torch.searchsorted(cumulative, torch.minimum(target.clamp(min=0.0), below), right=True)
