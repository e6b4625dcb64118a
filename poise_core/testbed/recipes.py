"""Building the small base policies: Qwen2 models of well under a million parameters, trained on demonstrations.

``poise build-policy NAME`` rebuilds a shipped policy from its recipe; the same recipe on the same machine gives the same
weights. Supervised training stops early on purpose: completions of a base policy must sometimes be correct and sometimes
malformed, so that reinforcement learning can improve it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as functional

from poise_core.environments.arithmetic import ALPHABET, ArithmeticEnvironment
from poise_core.environments.base import Problem
from poise_core.policies.model import PromptCodec, load_tokenizer, save_policy
from poise_core.randomness import hash_key
from poise_core.testbed.demonstrations import demonstrate

if TYPE_CHECKING:
    from transformers import Qwen2ForCausalLM

BATCHES_SORTED = 8
"""Batches drawn at once and sorted by length, so that little of a batch is padding."""


@dataclass(frozen=True)
class Recipe:
    """The architecture, the demonstrations and the optimizer settings of a base policy."""

    hidden_size: int
    layers: int
    heads: int
    intermediate_size: int
    mixture: dict[str, float]  # kind of problem -> share of the demonstrations
    skills: dict[str, float]  # behaviour -> share while the skills are learned
    habits: dict[
        str, float
    ]  # behaviour -> share in the last ``habit_steps`` steps, which sets the final policy's tendencies
    slip: float  # share of demonstrations whose answer is wrong in one digit
    steps: int
    habit_steps: int
    batch_size: int
    learning_rate: float
    seed: int
    max_completion_length: int


def build_tokenizer(folder: Path) -> PromptCodec:
    """Write a character-level tokenizer over the arithmetic alphabet to ``folder`` and load it as the codec."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", *ALPHABET])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    folder.mkdir(parents=True, exist_ok=True)
    fast.save_pretrained(folder)
    loaded = load_tokenizer(folder)
    return PromptCodec(tokenizer=loaded, eos_ids=(vocabulary["<eos>"],), pad_id=vocabulary["<pad>"])


def _draw(shares: dict[str, float], rng: random.Random) -> str:
    return rng.choices(list(shares), weights=list(shares.values()))[0]


def _demonstrations(
    pools: dict[str, list[Problem]], recipe: Recipe, codec: PromptCodec, rng: random.Random
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield batches of right-padded ids (N, L) and labels, -100 outside the completion, grouped by similar length."""
    for first in range(0, recipe.steps, BATCHES_SORTED):
        shares = recipe.skills if first < recipe.steps - recipe.habit_steps else recipe.habits
        examples = []
        for _ in range(recipe.batch_size * BATCHES_SORTED):
            problem = rng.choice(pools[_draw(recipe.mixture, rng)])
            text = demonstrate(problem, _draw(shares, rng), recipe.slip, rng)
            prompt = codec.tokenizer(problem.prompt)["input_ids"]
            completion = [*codec.tokenizer(text)["input_ids"], codec.eos_ids[0]][: recipe.max_completion_length]
            examples.append((prompt, completion))
        examples.sort(key=lambda example: len(example[0]) + len(example[1]))
        starts = list(range(0, len(examples), recipe.batch_size))
        rng.shuffle(starts)
        for start in starts:
            yield _pad(examples[start : start + recipe.batch_size], codec.pad_id)


def _pad(examples: list[tuple[list[int], list[int]]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(prompt) + len(completion) for prompt, completion in examples)
    ids = torch.full((len(examples), width), pad_id)
    labels = torch.full((len(examples), width), -100)
    for i, (prompt, completion) in enumerate(examples):
        ids[i, : len(prompt) + len(completion)] = torch.tensor(prompt + completion)
        labels[i, len(prompt) : len(prompt) + len(completion)] = torch.tensor(completion)
    return ids, labels


def _new_model(recipe: Recipe, codec: PromptCodec) -> Qwen2ForCausalLM:
    """Return the untrained model, whose weights are drawn from torch's global generator."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=len(ALPHABET) + 2,
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        intermediate_size=recipe.intermediate_size,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        eos_token_id=codec.eos_ids[0],
        pad_token_id=codec.pad_id,
        bos_token_id=None,
    )
    return Qwen2ForCausalLM(config)


def build_policy(recipe: Recipe, folder: Path, on_step: Callable[[int, float], None] | None = None) -> None:
    """Train a base policy by its recipe and write it to ``folder``; ``on_step`` gets (step, loss)."""
    torch.manual_seed(hash_key(recipe.seed, 0))
    codec = build_tokenizer(folder)
    model = _new_model(recipe, codec)
    environment = ArithmeticEnvironment()
    pools: dict[str, list[Problem]] = {}
    for kind in recipe.mixture:
        size = environment.pool_size(kind)
        pools[kind] = environment.problems("train", [kind], size, f"demonstrations/{recipe.seed}")
    rng = random.Random(hash_key(recipe.seed, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 50, 0.1 + 0.9 * (1 - step / recipe.steps))
    )
    model.train()
    for step, (ids, labels) in zip(range(recipe.steps), _demonstrations(pools, recipe, codec, rng), strict=False):
        logits = model(input_ids=ids).logits[:, :-1]
        # a sum and not a mean: batches are sorted by length, and every token should have the same weight
        loss = functional.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="sum") / labels.shape[0] / 8
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if on_step is not None:
            on_step(step, float(loss.detach()))
    save_policy(model.eval(), codec, folder)


_SKILLS = {"direct": 0.3, "scratchpad": 0.7}
_HABITS = {"direct": 0.45, "scratchpad": 0.28, "ramble": 0.05, "malformed": 0.22}
_MIXTURE = {"add2": 1.0, "add3": 2.0, "sub2": 1.0, "mul1": 1.2, "chain4": 1.0, "mod": 1.0}

_WIDE_MIXTURE = {"add3": 1.5, "sub3": 1.5, "mul1": 1.0, "mul3": 1.5, "chain4": 0.7, "chain5": 1.3, "mod": 1.0}
_RARE_SCRATCHPADS = {"direct": 0.67, "scratchpad": 0.06, "ramble": 0.05, "malformed": 0.22}

_SMALL = Recipe(
    hidden_size=64,
    layers=3,
    heads=4,
    intermediate_size=192,
    mixture=_MIXTURE,
    skills=_SKILLS,
    habits=_HABITS,
    slip=0.02,
    steps=2700,
    habit_steps=300,
    batch_size=128,
    learning_rate=3e-3,
    seed=1,
    max_completion_length=36,
)

_LARGE = Recipe(
    hidden_size=96,
    layers=3,
    heads=4,
    intermediate_size=256,
    mixture=_MIXTURE,
    skills=_SKILLS,
    habits=_HABITS,
    slip=0.02,
    steps=2300,
    habit_steps=300,
    batch_size=128,
    learning_rate=2e-3,
    seed=2,
    max_completion_length=36,
)

RECIPES = {
    "arithmetic-a": _SMALL,
    "arithmetic-b": _LARGE,
    "arithmetic-c": replace(
        _SMALL, hidden_size=80, intermediate_size=224, mixture=_WIDE_MIXTURE, habits=_RARE_SCRATCHPADS, seed=4
    ),
    "arithmetic-d": replace(_LARGE, mixture=_WIDE_MIXTURE, habits=_RARE_SCRATCHPADS, seed=7),
}
"""The shipped base policies. ``arithmetic-a`` and ``arithmetic-b`` write their steps in a quarter of their completions and were
shown neither chains of five terms nor differences of three digits, so those are hopeless at first; ``arithmetic-c`` and
``arithmetic-d`` know both and seldom write steps, so sampled accuracy has a long way to go."""
