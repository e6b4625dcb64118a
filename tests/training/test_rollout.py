"""Sampling: rows are independent of their company, nothing decodes for the dead, numbers agree with a plain forward pass."""

from pathlib import Path

import pytest
import torch

from poise_core.policies.model import PromptCodec, load_model
from poise_core.randomness import hash_key, uniforms
from poise_core.sampling.local import (
    PACKED_WIDTH,
    Completions,
    sample_completions,
    score_completions,
    separates_packed,
)

LENGTH = 10
SPREAD = 3.0  # a temperature at which completions have many lengths
PROMPTS = ["12%5=", "123+456=", "99%7=", "7%3="]


@pytest.fixture(scope="module")
def model(tiny_policy: Path):
    return load_model(tiny_policy)


@pytest.fixture(scope="module")
def codec(tiny_policy: Path) -> PromptCodec:
    return PromptCodec.load(tiny_policy)


def sample(model, codec, prompts, counts, noise, **kwargs) -> Completions:
    ids, mask = codec.encode(prompts)
    return sample_completions(
        model,
        ids,
        mask,
        torch.tensor(counts),
        max_length=LENGTH,
        eos_id=codec.eos_id,
        pad_id=codec.pad_id,
        noise=noise,
        **kwargs,
    )


def test_a_row_does_not_depend_on_its_company(model, codec) -> None:
    noise = uniforms(12, LENGTH, 1, 2)
    together = sample(model, codec, PROMPTS, [3, 3, 3, 3], noise)
    for group, prompt in enumerate(PROMPTS):
        for member in range(3):
            row = 3 * group + member
            alone = sample(model, codec, [prompt], [1], noise[row : row + 1])
            length = int(alone.mask.sum())
            assert int(together.mask[row].sum()) == length
            assert together.ids[row, :length].tolist() == alone.ids[0].tolist()
            torch.testing.assert_close(together.logprobs[row, :length], alone.logprobs[0], atol=2e-6, rtol=0)
            torch.testing.assert_close(together.entropies[row, :length], alone.entropies[0], atol=2e-6, rtol=0)


def test_logprobs_and_entropies_are_those_of_a_plain_forward_pass(model, codec) -> None:
    for temperature in (1.0, 0.7):
        sampled = sample(model, codec, PROMPTS, [4, 4, 4, 4], uniforms(16, LENGTH, 5), temperature=temperature)
        ids, mask = codec.encode(PROMPTS)
        rows = torch.arange(4).repeat_interleave(4)
        with torch.no_grad():
            logprobs, entropies = score_completions(
                model, ids[rows], mask[rows], sampled.ids, sampled.mask, temperature=temperature
            )
        kept = sampled.mask
        torch.testing.assert_close(logprobs[kept], sampled.logprobs[kept], atol=2e-6, rtol=0)
        torch.testing.assert_close(entropies[kept], sampled.entropies[kept], atol=2e-6, rtol=0)
        assert (sampled.logprobs[~kept] == 0).all()
        assert (sampled.ids[~kept] == codec.pad_id).all()


def scored(model, codec, sampled: Completions, rows: torch.Tensor, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = codec.encode(PROMPTS)
    return score_completions(model, ids[rows], mask[rows], sampled.ids, sampled.mask, **kwargs)


def test_packed_sequences_have_the_numbers_and_gradients_of_separate_ones(model, codec, monkeypatch) -> None:
    sampled = sample(model, codec, PROMPTS, [16] * 4, uniforms(64, LENGTH, 8), temperature=SPREAD)
    rows = torch.arange(4).repeat_interleave(16)
    shapes: list[tuple[int, int]] = []
    forward = type(model).forward

    def watching(self, *args, **kwargs):
        shapes.append(tuple(kwargs["input_ids"].shape))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", watching)
    weight = torch.linspace(-1, 1, sampled.mask.numel()).view(sampled.mask.shape)
    found = []
    for packed in (False, True):
        logprobs, entropies = scored(model, codec, sampled, rows, packed=packed)
        assert not logprobs[~sampled.mask].any()
        assert not entropies[~sampled.mask].any()
        gradients = torch.autograd.grad((weight * (logprobs + entropies)).sum(), list(model.parameters()))
        found.append((logprobs.detach(), entropies.detach(), gradients))
    prompts = codec.encode(PROMPTS)[1].sum(-1)
    lengths = prompts[rows] + sampled.mask.sum(-1)
    assert shapes[0] == (64, int(lengths.max()))
    assert shapes[1][1] <= PACKED_WIDTH
    assert shapes[1][0] * shapes[1][1] < 64 * int(lengths.max())
    (logprobs, entropies, gradients), (packed_logprobs, packed_entropies, packed_gradients) = found
    torch.testing.assert_close(packed_logprobs, logprobs, atol=2e-6, rtol=0)
    torch.testing.assert_close(packed_entropies, entropies, atol=2e-6, rtol=0)
    for one, other in zip(packed_gradients, gradients, strict=True):
        # sums over the tokens run in another order: float32 round-off of a sum of some 500 terms
        torch.testing.assert_close(one, other, atol=1e-5 * float(other.abs().max()) + 1e-5, rtol=0)


def test_a_model_that_mixes_the_sequences_of_a_row_is_found_out(model) -> None:
    assert separates_packed(model)

    class Mixing(torch.nn.Module):
        """Masks from an attention mask, as a model does that gives its masks no positions."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, input_ids, **kwargs):
            return self.inner(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), **kwargs)

    assert not separates_packed(Mixing())


def test_greedy_is_transformers_generate(model, codec) -> None:
    ids, mask = codec.encode(PROMPTS)
    mine = sample(model, codec, PROMPTS, [1, 1, 1, 1], None)
    theirs = model.generate(
        ids, attention_mask=mask.long(), max_new_tokens=LENGTH, do_sample=False, pad_token_id=codec.pad_id
    )[:, ids.shape[1] :]
    assert mine.ids.tolist() == theirs[:, : mine.ids.shape[1]].tolist()


def test_masks_lengths_and_truncation_agree(model, codec) -> None:
    sampled = sample(model, codec, PROMPTS, [16] * 4, uniforms(64, LENGTH, 8), temperature=SPREAD)
    assert sampled.truncated.any()
    assert not sampled.truncated.all()
    for row in range(64):
        length = int(sampled.mask[row].sum())
        tokens = sampled.ids[row, :length].tolist()
        assert sampled.mask[row, :length].all()
        assert codec.eos_id not in tokens[:-1]
        assert (tokens[-1] == codec.eos_id) != bool(sampled.truncated[row])
        assert length == LENGTH or not sampled.truncated[row]


def test_finished_sequences_leave_the_batch(model, codec, monkeypatch) -> None:
    widths: list[int] = []
    live: list[int] = []
    forward = type(model).forward

    def counting(self, *args, **kwargs):
        widths.append(kwargs["input_ids"].shape[0])
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", counting)
    noise = uniforms(64, LENGTH, 8)
    counts = [16] * 4
    sampled = sample(
        model, codec, PROMPTS, counts, noise, temperature=SPREAD, on_token=lambda _, alive: live.append(alive)
    )
    assert widths[0] == len(PROMPTS)  # a prompt is prefilled once, whatever its group's size
    for alive, width in zip(live, widths[1:], strict=False):
        assert alive <= width <= alive / 0.9 + 1  # compacted at ten percent finished
    assert len(widths) == sampled.mask.shape[1]  # the longest completion ends the decoding


def test_samples_follow_the_distribution(model, codec) -> None:
    count = 40000
    sampled = sample(model, codec, ["12%5="], [count], uniforms(count, LENGTH, 3))
    ids, _ = codec.encode(["12%5="])
    with torch.no_grad():
        expected = torch.softmax(model(input_ids=ids).logits[0, -1].double(), -1)
    seen = torch.bincount(sampled.ids[:, 0], minlength=len(expected)).double() / count
    # five standard deviations of a binomial share, for each token
    assert ((seen - expected).abs() <= 5 * (expected * (1 - expected) / count).sqrt() + 1e-9).all()


def test_random_streams_are_separate() -> None:
    keys = [(seed, step, purpose) for seed in range(5) for step in range(20) for purpose in (1, 2)]
    assert len({hash_key(*key) for key in keys}) == len(keys)
    assert hash_key(1, 23) != hash_key(12, 3)
    assert torch.equal(uniforms(3, 4, 1, 2), uniforms(3, 4, 1, 2))
    assert not torch.equal(uniforms(3, 4, 1, 2), uniforms(3, 4, 1, 3))
