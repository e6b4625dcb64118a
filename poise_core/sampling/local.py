"""Sampling completions from a policy in this process; it is fast where lengths vary.

Every prompt is prefilled once and its cache is repeated for the members of its group. A sequence leaves the batch when it
is finished, and decoding ends with the longest sequence. The caller gives one uniform random number per completion and position,
so a completion depends on its own row only, not on the other rows of its batch or on the process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from poise_core.policies.model import PromptCodec, StopTexts, load_model
from poise_core.randomness import uniforms
from poise_core.sampling.base import Requests, Sampled
from poise_core.sampling.handover import sequence_logprobs

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
    truncated: Tensor  # (B,) bool, no end-of-sequence token and no stop text within the length limit
    logprobs: Tensor  # (B, T) float32, of the sampled tokens at the sampling temperature; 0 outside the mask
    entropies: Tensor  # (B, T) float32, nats; 0 outside the mask, and everywhere from a sampler that does not know them


class LocalSampler:
    """Decodes in this process with transformers; exact, and the same to the bit for the same batches."""

    def __init__(self, *, memory_gib: float = 4.0, most_rows: int | None = None) -> None:
        """Make a sampler without a policy.

        Args:
            memory_gib: for caches and logits of one batch; more rows are decoded batch after batch.
            most_rows: of a batch, however little they need.
        """
        self._memory_gib, self._most_rows = memory_gib, most_rows
        self._model: Any = None
        self._version = ""

    def load(self, version: str, folder: Path) -> None:
        """See ``Sampler.load``."""
        self.adopt(version, load_model(folder))

    def adopt(self, version: str, model: Any) -> None:
        """Take a model of this process as ``version``."""
        self._model = model.to("cuda") if torch.cuda.is_available() else model
        self._version = version

    def sample(self, requests: Requests) -> Sampled:
        """See ``Sampler.sample``."""
        ids, mask = padded_left(requests.prompts, requests.pad_id)
        device = next(self._model.parameters()).device
        rows = rows_within(self._model, ids.shape[1] + requests.max_length, self._memory_gib)
        noise = uniforms(requests.rows, requests.max_length, *requests.key) if requests.temperature else None
        completions = sample_in_batches(
            self._model,
            ids.to(device),
            mask.to(device),
            torch.full((len(ids),), requests.samples, device=device),
            rows=min(rows, self._most_rows or rows),
            max_length=requests.max_length,
            eos_ids=requests.eos_ids,
            pad_id=requests.pad_id,
            noise=noise,
            temperature=requests.temperature or 1.0,
            stops=requests.stops,
        )
        return Sampled(self._version, completions)

    def score(self, ids: Sequence[int]) -> list[float]:
        """See ``Sampler.score``."""
        return sequence_logprobs(self._model, ids)

    def identity(self) -> dict[str, str]:
        """See ``Sampler.identity``."""
        from transformers import __version__

        return {"engine": "local", "version": __version__, "torch": str(torch.__version__)}

    def close(self) -> None:
        """See ``Sampler.close``."""
        self._model = None


def prompt_tokens(codec: PromptCodec, problems: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Return the tokens of the prompts of problems, without padding."""
    ids, mask = codec.encode(problems)
    return tuple(tuple(row[keep].tolist()) for row, keep in zip(ids, mask, strict=True))


def padded_left(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Return prompts as left-padded ids and their mask, both (N, P), int64 and bool."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(prompts), width), dtype=torch.bool)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.int64)
        mask[i, width - len(prompt) :] = True
    return ids, mask


def rows_within(model: Any, tokens: int, memory_gib: float) -> int:
    """Return how many sequences of ``tokens`` tokens are decoded at once within this memory, at least one.

    A row needs keys and values of every layer, twice while finished rows are left out, and the logits of one position.
    """
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = next(model.parameters()).element_size()
    row = 2 * (2 * config.num_hidden_layers * heads * width * size) * tokens + 2 * config.vocab_size * size
    return max(1, int(memory_gib * 2**30) // row)


@torch.no_grad()
def sample_in_batches(
    model: PreTrainedModel,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    counts: Tensor,
    *,
    rows: int,
    noise: Tensor | None,
    pad_id: int,
    **settings: Any,
) -> Completions:
    """Sample as ``sample_completions`` does, at most ``rows`` completions at once."""
    if int(counts.sum()) <= rows:
        return sample_completions(model, prompt_ids, prompt_mask, counts, noise=noise, pad_id=pad_id, **settings)
    parts, done = [], 0
    for prompts, shares in _batches(counts.tolist(), rows):
        first = int(prompt_mask[prompts].any(0).int().argmax())
        own = slice(done, done + sum(shares))
        parts.append(
            sample_completions(
                model,
                prompt_ids[prompts, first:],
                prompt_mask[prompts, first:],
                torch.tensor(shares, device=counts.device),
                noise=None if noise is None else noise[own],
                pad_id=pad_id,
                **settings,
            )
        )
        done = own.stop
    return _joined(parts, pad_id)


def _batches(counts: Sequence[int], rows: int) -> Iterator[tuple[list[int], list[int]]]:
    """Split prompts with these counts into batches of at most ``rows`` completions: their indices, and their counts there."""
    prompts: list[int] = []
    shares: list[int] = []
    for prompt, count in enumerate(counts):
        pieces = [rows] * (count // rows) + [count % rows] * bool(count % rows)  # a prompt with more than a batch holds
        for piece in pieces:
            if prompts and sum(shares) + piece > rows:
                yield prompts, shares
                prompts, shares = [], []
            prompts.append(prompt)
            shares.append(piece)
    if prompts:
        yield prompts, shares


def _joined(parts: Sequence[Completions], pad_id: int) -> Completions:
    longest = max(part.ids.shape[1] for part in parts)

    def joined(name: str, fill: float) -> Tensor:
        values = [getattr(part, name) for part in parts]
        return torch.cat([functional.pad(value, (0, longest - value.shape[1]), value=fill) for value in values])

    return replace(
        parts[0],
        ids=joined("ids", pad_id),
        mask=joined("mask", False),
        truncated=torch.cat([part.truncated for part in parts]),
        logprobs=joined("logprobs", 0.0),
        entropies=joined("entropies", 0.0),
    )


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
    stops: StopTexts | None = None,
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
        stops: texts that end a completion, too.
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
        finished = torch.isin(token, ends)
        if stops is not None:
            finished |= _stopped(stops, out_ids[:, : position + 1], live, ~ended[live] & ~finished)
        finished &= ~ended[live]  # a finished row stays until the batch is compacted
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


def _stopped(stops: StopTexts, ids: Tensor, live: Tensor, going: Tensor) -> Tensor:
    """Mark, among the ``live`` rows of ``ids`` (B, t), those that are ``going`` and whose last token completes a stop text."""
    lasts = ids[live, -1].tolist()
    found = torch.zeros(len(live), dtype=torch.bool)
    for place, alive in enumerate(going.tolist()):
        if alive and stops.may_end(lasts[place]):
            found[place] = stops.ended(ids[live[place]].tolist())
    return found.to(ids.device)


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
    blocks = functional.pad(probabilities, (0, -words % BLOCK)).view(rows, -1, BLOCK)
    sums = blocks.sum(-1, dtype=torch.float64).cumsum(-1)  # (rows, blocks)
    target = thresholds.double().unsqueeze(-1) * sums[:, -1:]
    block = _first_above(sums, target)
    before = functional.pad(sums, (1, 0)).gather(-1, block)
    inner = blocks.gather(1, block.unsqueeze(-1).expand(-1, -1, blocks.shape[-1])).squeeze(1).double().cumsum(-1)
    word = block * blocks.shape[-1] + _first_above(inner, target - before)
    return word.squeeze(-1)


def _first_above(cumulative: Tensor, target: Tensor) -> Tensor:
    """Return the first places whose cumulative sum is above the target, which is kept within its range. (rows, 1) int64."""
    last = cumulative[:, -1:]
    below = torch.nextafter(last, torch.zeros_like(last))
    return torch.searchsorted(cumulative, torch.minimum(target.clamp(min=0.0), below), right=True)
