"""Scoring given completions with a policy: the log-probabilities and entropies of their tokens, with gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from poise_core.sampling.logprobs import token_scores

PACKED_WIDTH = 64
"""Packed rows are at least this wide, in tokens: wider ones have less padding at their ends, but attention grows with the width."""

PLAIN_LOGITS = 1 << 24
"""Up to this many logits, 64 MB in float32, are computed at once; more are computed in tiles and never held together."""


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
    tiled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities and entropies of the completions' tokens, both (B, T) float32, with gradient if enabled.

    Both are zero outside the mask, and entropies are zero where ``entropies`` is False. The model sees every sequence
    without its padding: prompt and completion next to each other, from the left. With ``packed``, several short sequences
    share a row; this requires a model for which ``separates_packed`` returns True. With ``tiled``, many logits are never in
    memory at once; this requires one for which ``returns_products`` does.
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
    predicting = row.unsqueeze(-1) * (width - first) + columns[:, prompt_mask.shape[1] :] - 1 - first
    chosen, spread = _scores(
        model,
        {"input_ids": ids, "position_ids": positions, "use_cache": False, "logits_to_keep": width - first},
        predicting[completion_mask],
        completion_ids[completion_mask],
        temperature,
        entropies,
        tiled,
    )
    zeros = torch.zeros(completion_mask.shape, dtype=torch.float32, device=real.device)
    logprobs = zeros.masked_scatter(completion_mask, chosen)
    return logprobs, zeros if spread is None else zeros.masked_scatter(completion_mask, spread)


def _scores(
    model: Any,
    inputs: dict[str, Any],
    positions: Tensor,
    chosen: Tensor,
    temperature: float,
    entropies: bool,
    tiled: bool,
) -> tuple[Tensor, Tensor | None]:
    """Run the model and return log-probabilities and entropies of the chosen words, (N,) float32 each.

    Args:
        model: the causal language model.
        inputs: arguments of its forward pass.
        positions: (N,) int64, the tokens that predict, counted over the kept positions of all rows.
        chosen: (N,) int64, the words.
        temperature: divides the logits.
        entropies: whether entropies are wanted.
        tiled: whether the model's logits are the products of its head.
    """
    head = model.get_output_embeddings() if tiled else None
    if head is None or len(chosen) * len(head.weight) <= PLAIN_LOGITS:
        logits = model(**inputs).logits.flatten(0, 1).index_select(0, positions)  # (N, V)
        log_probabilities = torch.log_softmax(logits.float() / temperature, dim=-1)
        picked = log_probabilities.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
        return picked, -(log_probabilities.exp() * log_probabilities).sum(-1) if entropies else None

    def scored(hidden: Tensor) -> Tensor:
        kept = hidden.flatten(0, 1).index_select(0, positions)
        rounded = getattr(model, "rounds_logits", False)
        scores = token_scores(kept, head.weight, chosen, temperature=temperature, rounded=rounded)
        return torch.stack(scores, dim=-1).unsqueeze(0)

    with _replaced_forward(
        head, scored
    ):  # within the model's own forward pass, where ZeRO 3 gathers the head's weights
        result = model(**inputs).logits[0]
    return result[:, 0], result[:, 1] if entropies else None


@contextmanager
def _replaced_forward(module: Any, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    own = vars(module).get("forward")  # one that a library has set on this instance
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


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


@torch.no_grad()
def returns_products(model: Any) -> bool:
    """Whether a model's logits are exactly what its head returns, a product with the head's weights, which models of many families
    scale or cap afterwards. This function tries it: no name of a setting is known for all of them."""
    head = model.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear) or head.bias is not None:
        return False
    products: list[Tensor] = []
    hook = head.register_forward_hook(lambda _, inputs, output: products.append(output))
    ids = torch.arange(3, device=next(model.parameters()).device).unsqueeze(0)
    logits = model(input_ids=ids, use_cache=False).logits
    hook.remove()
    return len(products) == 1 and torch.equal(products[0], logits)
