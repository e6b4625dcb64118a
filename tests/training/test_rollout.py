"""Sampling: rows are independent of their company, nothing decodes for the dead, numbers agree with a plain forward pass."""

import hashlib
import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers

from poise_core.config import Preset, load_preset, with_overrides
from poise_core.policies.locate import tokenizer_digest
from poise_core.policies.model import PromptCodec, StopTexts, load_model
from poise_core.policies.prompt import ModelSpec, PromptSpec
from poise_core.randomness import hash_key, uniforms
from poise_core.sampling import local, scoring, vllm
from poise_core.sampling.local import Completions, sample_completions
from poise_core.sampling.logprobs import token_scores
from poise_core.sampling.scoring import PACKED_WIDTH, score_completions, separates_packed

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
        eos_ids=codec.eos_ids,
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


def test_scores_in_tiles_have_the_numbers_and_gradients_of_whole_logits(model, codec, monkeypatch) -> None:
    """The head's weights are the embedding's, so their gradients are sums of two."""
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    sampled = sample(model, codec, PROMPTS, [16] * 4, uniforms(64, LENGTH, 8), temperature=SPREAD)
    rows = torch.arange(4).repeat_interleave(16)
    weight = torch.linspace(-1, 1, sampled.mask.numel()).view(sampled.mask.shape)
    found = []
    for tiled in (False, True):
        if tiled:
            monkeypatch.setattr(scoring, "PLAIN_LOGITS", 0)
            monkeypatch.setattr(scoring, "token_scores", partial(token_scores, tokens=50, words=7))
            monkeypatch.setattr(torch, "log_softmax", None)  # whole logits are not taken
        logprobs, entropies = scored(model, codec, sampled, rows, temperature=0.7, packed=True, tiled=tiled)
        gradients = torch.autograd.grad((weight * (logprobs + entropies)).sum(), list(model.parameters()))
        found.append((logprobs.detach(), entropies.detach(), gradients))
    assert "forward" not in vars(model.get_output_embeddings())
    (logprobs, entropies, gradients), (tiled_logprobs, tiled_entropies, tiled_gradients) = found
    torch.testing.assert_close(tiled_logprobs, logprobs, atol=4e-6, rtol=0)  # four units in the last place of -12
    torch.testing.assert_close(tiled_entropies, entropies, atol=2e-6, rtol=0)
    for one, other in zip(tiled_gradients, gradients, strict=True):  # float32 round-off of sums in another order
        torch.testing.assert_close(one, other, atol=1e-5 * float(other.abs().max()) + 1e-5, rtol=0)
    assert scored(model, codec, sampled, rows, entropies=False, tiled=True)[1].any().logical_not()


@pytest.mark.slow
def test_gradients_of_scores_in_tiles_are_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 5, generator=generator, dtype=torch.float64).requires_grad_() for n in (7, 11))
    chosen = torch.tensor([0, 3, 4, 10, 7, 8, 1])  # first and last words of tiles among them

    def scores(hidden, weight):
        return token_scores(hidden, weight, chosen, temperature=0.7, tokens=3, words=4)

    assert torch.autograd.gradcheck(scores, (hidden, weight))
    log_probabilities = torch.log_softmax(hidden @ weight.T / 0.7, -1)
    logprobs, entropies = scores(hidden, weight)
    assert logprobs.tolist() == pytest.approx(log_probabilities[torch.arange(7), chosen].tolist(), rel=1e-13)
    assert entropies.tolist() == pytest.approx(
        (-(log_probabilities.exp() * log_probabilities).sum(-1)).tolist(), rel=1e-13
    )


@pytest.mark.parametrize("head", ["float32", "model"])
def test_the_head_of_a_policy_in_bfloat16_computes_in_the_type_of_the_protocol(
    tiny_policy: Path, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain and in tiles, and what is sampled has the log-probabilities of the same logits."""
    codec, model = PromptCodec.load(tiny_policy), load_model(tiny_policy, ModelSpec(dtype="bfloat16", head=head))
    ids, mask = codec.encode(PROMPTS)
    places = (mask.long().cumsum(-1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask.long(), position_ids=places).logits
    assert logits.dtype == (torch.bfloat16 if head == "model" else torch.float32)
    assert torch.equal(logits, logits.bfloat16().to(logits.dtype)) == (head == "model")
    found = sample(model, codec, PROMPTS, [1] * 4, uniforms(4, LENGTH, 3))
    with torch.no_grad():
        plain, _ = score_completions(model, ids, mask, found.ids, found.mask)
        monkeypatch.setattr(scoring, "PLAIN_LOGITS", 0)
        tiled, _ = score_completions(model, ids, mask, found.ids, found.mask, tiled=True)
    torch.testing.assert_close(tiled, plain, atol=1e-5, rtol=0)
    first = found.logprobs[:, 0]
    expected = torch.log_softmax(logits[:, -1].float(), -1).gather(-1, found.ids[:, :1])[:, 0]
    torch.testing.assert_close(first, expected, atol=1e-5, rtol=0)


def test_the_type_of_the_head_is_hashed_where_it_is_not_the_usual_one() -> None:
    usual = load_preset("smoke", ["protocol.model={dtype: bfloat16}", "protocol.sampler={name: scripted}"]).protocol
    document = usual.model_dump(mode="json")
    assert "head" not in document["model"]  # digests of before stay
    assert "head" not in document["sampler"]
    others = [
        load_preset("smoke", [f"protocol.model={{dtype: bfloat16{one}}}", f"protocol.sampler={{name: scripted{two}}}"])
        for one, two in ((", head: model", ""), ("", ", head: float32"), (", head: float32", ""))
    ]
    assert [one.protocol.digest == usual.digest for one in others] == [False, False, True]


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_scores_in_tiles_are_finite_and_exact_at_extreme_logits(scale: float) -> None:
    hidden, weight = torch.eye(3) * scale, torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
    logprobs, entropies = token_scores(hidden, weight, torch.tensor([0, 3, 1]), words=1)
    expected = torch.log_softmax(hidden @ weight.T, -1)
    assert torch.equal(logprobs.isfinite(), torch.tensor([True] * 3))
    assert logprobs.tolist() == pytest.approx(expected[torch.arange(3), [0, 3, 1]].tolist(), rel=1e-6)
    assert entropies.tolist() == pytest.approx((-(expected.exp() * expected).sum(-1)).tolist(), abs=1e-6)


SHAPE = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "pad_token_id": 0,
}  # fmt: skip


def test_logits_that_a_model_changes_after_its_head_are_found_out(model) -> None:
    assert scoring.returns_products(model)
    families = (
        ("Gemma2", {"head_dim": 16, "final_logit_softcapping": 1.0}),
        ("Granite", {"logits_scaling": 3.0}),
        (
            "FalconH1",
            {"mamba_d_ssm": 32, "mamba_n_heads": 2, "mamba_d_head": 16, "mamba_d_state": 8, "lm_head_multiplier": 0.02},
        ),
    )
    for family, changes in families:
        config = getattr(transformers, f"{family}Config")(**SHAPE, **changes)
        assert not scoring.returns_products(getattr(transformers, f"{family}ForCausalLM")(config).eval()), family


def test_a_token_is_where_the_cumulative_probability_passes_its_number() -> None:
    """Over several blocks as over one; words of probability 0 are never drawn, whatever the number."""
    generator = torch.Generator().manual_seed(1)
    for words in (3, local.BLOCK, local.BLOCK + 1, 3 * local.BLOCK - 7):
        probabilities = torch.softmax(3 * torch.randn(50, words, generator=generator), -1)
        probabilities[:, 0] = probabilities[:, -1] = 0.0
        thresholds = torch.rand(50, generator=generator)
        thresholds[:3] = torch.tensor([0.0, 1.0, 1 - 2**-24])
        drawn = local._inverse_cdf(probabilities, thresholds)
        for row in range(50):
            cumulative = probabilities[row].double().cumsum(-1)
            word = int(drawn[row])
            target = float(thresholds[row].double() * cumulative[-1])
            assert probabilities[row, word] > 0
            assert cumulative[word - 1] - 1e-12 <= target <= cumulative[word] + 1e-12


def test_draws_in_chunks_are_those_at_once(model, codec, monkeypatch) -> None:
    noise = uniforms(12, LENGTH, 1, 2)
    whole = sample(model, codec, PROMPTS, [3, 3, 3, 3], noise)
    monkeypatch.setattr(local, "DRAWN_LOGITS", 1)
    chunks = sample(model, codec, PROMPTS, [3, 3, 3, 3], noise)
    for name in ("ids", "mask", "logprobs", "entropies"):
        assert torch.equal(getattr(chunks, name), getattr(whole, name))


def test_any_of_several_tokens_ends_a_completion_and_is_left_out_of_its_text(model, codec) -> None:
    digit = codec.tokenizer("1", add_special_tokens=False)["input_ids"][0]
    both = replace(codec, eos_ids=(*codec.eos_ids, digit))
    sampled = sample(model, both, PROMPTS, [16] * 4, uniforms(64, LENGTH, 8), temperature=SPREAD)
    last = sampled.ids[torch.arange(64), sampled.mask.sum(-1) - 1]
    assert {int(token) for token in last[~sampled.truncated]} == set(both.eos_ids)
    assert not any("1" in text for text in both.decode(sampled.ids, sampled.mask))


class Words:
    """A tokenizer of hand-made words, of which only the text counts."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def decode(self, ids: list[int], **_: object) -> str:
        return "".join(self.words[i] for i in ids)


@pytest.mark.parametrize(
    ("text", "words", "ids", "length"),
    [
        ("</a>", ("x", "</", "a", ">", "a>"), [0, 1, 2, 3, 0], 4),  # over three tokens
        ("</a>", ("x", "</", "a", ">", "a>"), [0, 1, 4, 3], 3),  # the same text over two
        ("</a>", ("x", "</a>\n\nUser", "a"), [0, 1, 0], 2),  # inside a token that goes on
        ("</a>", ("</a", ">x"), [0, 0, 1, 1], 3),
        ("</a>", ("</a", "b>"), [0, 1, 1], None),
        ("\n\n", ("a", "\n", "b"), [0, 1, 2, 1, 1, 0], 5),
        ("ab", ("a", "b", "ab"), [1, 0, 1, 2], 3),  # the first of two
    ],
)
def test_a_stop_text_ends_with_the_token_that_completes_it(
    text: str, words: tuple[str, ...], ids: list[int], length: int | None
) -> None:
    stops = StopTexts(Words(*words), (text,))
    assert stops.length_of(ids) == length
    assert [stops.ended(ids[:count]) for count in range(1, (length or len(ids)) + 1)] == [
        count == length for count in range(1, (length or len(ids)) + 1)
    ]
    assert StopTexts(Words(*words), ("never", text)).length_of(ids) == length


def test_sampling_ends_with_a_stop_text_and_draws_the_same_tokens_until_then(model, codec) -> None:
    """Of the same numbers: rows with the text end with it, and are finished; the others are as without."""
    noise = uniforms(64, LENGTH, 8)
    plain = sample(model, codec, PROMPTS, [16] * 4, noise, temperature=SPREAD)
    stopping = replace(codec, prompt=PromptSpec(stop=("11", "7"), stopping="sampling"))
    found = sample(model, codec, PROMPTS, [16] * 4, noise, temperature=SPREAD, stops=stopping.stops)
    cut = 0
    for row in range(64):
        drawn, kept = plain.ids[row, plain.mask[row]].tolist(), found.ids[row, found.mask[row]].tolist()
        texts = [codec.tokenizer.decode(drawn[:count]) for count in range(1, len(drawn) + 1)]
        places = [count for count, text in enumerate(texts, 1) if "11" in text or "7" in text]
        if not places:
            assert kept == drawn
            assert bool(found.truncated[row]) == bool(plain.truncated[row])
            continue
        cut += 1
        assert kept == drawn[: min(places)]
        assert not found.truncated[row]
        assert torch.equal(found.logprobs[row, : len(kept)], plain.logprobs[row, : len(kept)])
        assert not found.logprobs[row, len(kept) :].any()  # nothing after it counts
    assert 5 < cut < 60
    small = local.sample_in_batches(
        model,
        *codec.encode(PROMPTS),
        torch.tensor([16] * 4),
        rows=5,
        noise=noise,
        pad_id=codec.pad_id,
        max_length=LENGTH,
        eos_ids=codec.eos_ids,
        temperature=SPREAD,
        stops=stopping.stops,
    )
    assert torch.equal(small.ids, found.ids)
    assert all("11" not in text and "7" not in text for text in stopping.decode(found.ids, found.mask))


def test_what_an_engine_has_drawn_after_a_stop_text_is_cut() -> None:
    """Rows of 4, 2, 0 and 3 tokens; the text is "ab", and the second row was ended by a token."""
    tensors = {
        "lengths": torch.tensor([4, 2, 0, 3]),
        "ids": torch.tensor([2, 0, 1, 2, 0, 2, 0, 1, 1]),
        "logprobs": -torch.arange(1.0, 10.0),
        "finished": torch.tensor([False, True, False, True]),
    }
    found = vllm._completions(tensors, 9, StopTexts(Words("a", "b", "c"), ("ab",)))
    assert found.ids.tolist() == [[2, 0, 1], [0, 2, 9], [9, 9, 9], [0, 1, 9]]
    assert found.mask.sum(-1).tolist() == [3, 2, 0, 2]
    assert found.logprobs.tolist() == [[-1, -2, -3], [-5, -6, 0], [0, 0, 0], [-7, -8, 0]]
    assert found.truncated.tolist() == [False, False, True, False]


def test_stop_texts_of_presets_are_hashed_and_runs_of_before_keep_their_digest() -> None:
    prompt = "protocol.prompt={template: '{problem}', stop: [x]}"
    new, without = load_preset("smoke", [prompt]), load_preset("smoke", ["protocol.prompt={template: '{problem}'}"])
    assert new.protocol.stops_sampling
    assert not without.protocol.stops_sampling
    old = load_preset("smoke", [prompt.replace("[x]", "[x], stopping: grading")])
    kept = old.model_dump(mode="json")
    assert kept["protocol"]["prompt"].keys() == {"template", "chat", "system", "stop"}  # as such runs were kept
    assert Preset.model_validate(kept).protocol.digest == old.protocol.digest
    other = load_preset("smoke", [prompt.replace("[x]", "[y]")])
    assert len({one.protocol.digest for one in (new, without, old, other)}) == 4
    assert not with_overrides(old, ["search.seed=3"]).protocol.stops_sampling  # of a run that is there
    for name in ("r1", "qwen-math"):
        assert PromptSpec.model_validate({"name": name}).ends_sampling


def test_a_beginning_of_sequence_token_stands_before_every_prompt(codec) -> None:
    ids, mask = replace(codec, prefix=(7,)).encode(["1", "12%5="])
    plain, _ = codec.encode(["1", "12%5="])
    assert ids[1].tolist() == [7, *plain[1].tolist()]
    assert ids[0, mask[0]].tolist()[0] == 7


def test_ends_are_those_of_the_tokenizer_and_of_the_generation_configuration(codec, tiny_policy, tmp_path) -> None:
    folder = tmp_path / "policy"
    shutil.copytree(tiny_policy, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, codec.eos_ids[0]]}))
    assert PromptCodec.load(folder).eos_ids == (codec.eos_ids[0], 3)
    (folder / "generation_config.json").unlink()
    assert PromptCodec.load(folder).eos_ids == (codec.eos_ids[0],)


CHAT = (
    "{% for message in messages %}[{{ message.role }}|{{ message.content }}]{% endfor %}"
    "{% if add_generation_prompt %}[{% endif %}"
)


def test_a_problem_becomes_a_prompt_by_template_and_chat(codec, tiny_policy, tmp_path) -> None:
    assert codec.render("1+1=") == "1+1="
    assert PromptCodec.load(tiny_policy, PromptSpec(template="0+{problem}")).render("1+1=") == "0+1+1="
    with pytest.raises(ValueError, match="has no chat template; use an instruction-tuned model"):
        PromptCodec.load(tiny_policy, PromptSpec(chat=True))
    folder = tmp_path / "policy"
    shutil.copytree(tiny_policy, folder)
    (folder / "chat_template.jinja").write_text(CHAT)
    assert PromptCodec.load(folder, PromptSpec(chat=True)).render("1") == "[user|1]["
    told = PromptSpec(chat=True, system="Add.", template="{problem}?")
    assert PromptCodec.load(folder, told).render("{1}") == "[system|Add.][user|{1}?]["
    assert tokenizer_digest(folder) != tokenizer_digest(tiny_policy)


def with_beginning(policy: Path, folder: Path, template: str) -> Path:
    """A copy of a policy whose tokenizer puts a token before every text, and whose chat template does so itself."""
    shutil.copytree(policy, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    number = 1 + max(tokenizer["model"]["vocab"].values())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer["added_tokens"].append({"id": number, "content": "<bos>", "special": True, **flags})
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<bos>": {"id": "<bos>", "ids": [number], "tokens": ["<bos>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"bos_token": "<bos>", "chat_template": "{{ bos_token }}" + template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_a_prompt_of_a_benchmarks_own_is_made_as_the_protocols(tiny_policy, tmp_path) -> None:
    folder = with_beginning(tiny_policy, tmp_path / "policy", "{{ messages[-1].content }}")
    plain, chat = PromptSpec(), PromptSpec(chat=True)
    expected = PromptCodec.load(folder, plain).encode(["1+1="])[0].tolist()
    assert PromptCodec.load(folder, chat).encode(["1+1="])[0].tolist() == expected, "one beginning each"
    for one, other in ((plain, chat), (chat, plain), (None, chat)):
        codec = PromptCodec.load(folder, one)
        assert codec.with_prompt(other).encode(["1+1="])[0].tolist() == expected
        assert codec.prompt_tokens("1+1=", other) == len(expected[0])
    with pytest.raises(ValueError, match=r"benchmark own: prompt\.chat: the tokenizer of .* has no chat template"):
        PromptCodec.load(tiny_policy).with_prompt(chat, "benchmark own: prompt")


def test_a_chat_template_writes_the_same_day_every_day_and_what_it_refuses_is_one_line(tiny_policy, tmp_path) -> None:
    dated = "{{ strftime_now('%d %b %Y') }}|{{ messages[-1].content }}"
    folder = with_beginning(tiny_policy, tmp_path / "dated", dated)
    assert PromptCodec.load(folder, PromptSpec(chat=True)).render("1") == "<bos>26 Jul 2024|1"
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    folder = with_beginning(tiny_policy, tmp_path / "refusing", refusing + "{{ messages[0].content }}")
    assert PromptCodec.load(folder, PromptSpec(chat=True)).render("1") == "<bos>1"
    with pytest.raises(ValueError, match=r"protocol\.prompt: the chat template of .* refuses it: no system role"):
        PromptCodec.load(folder, PromptSpec(chat=True, system="Add."))


@pytest.mark.parametrize(
    ("document", "message"),
    [({"template": "{problem}{problem}"}, "must hold {problem} once"), ({"system": "Add."}, "only a chat has")],
)
def test_a_prompt_that_fits_nothing_is_refused(document: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PromptSpec.model_validate(document)


def test_prompts_are_part_of_the_protocol(tiny_policy) -> None:
    """Protocols without them keep their digests, under which archives are filed."""
    plain = load_preset("smoke").protocol
    told = load_preset("smoke", ['protocol.prompt={template: "{problem}"}']).protocol
    assert len(told.tokenizer_digest) == 64
    assert told.digest != plain.digest
    benchmark = "{name: own, metric: accuracy, weight: 1.0, kinds: [add2], problems: 4, prompt: {name: boxed}}"
    own = load_preset("smoke", [f"protocol.benchmarks=[{benchmark}]"])
    assert own.protocol.tokenizer_digest == told.tokenizer_digest
    before = own.protocol.model_copy(update={"tokenizer_digest": ""})
    assert before.digest != own.protocol.digest
    kept = with_overrides(own.model_copy(update={"protocol": before}), ["search.seed=3"])
    assert kept.protocol.digest == before.digest, "a run that is there"
    younger = {"prompt", "tokenizer_digest", "model", "sampler", "evaluation"}
    document = plain.model_dump(mode="json", exclude=younger)
    assert plain.digest == hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]


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
        assert codec.eos_ids[0] not in tokens[:-1]
        assert (tokens[-1] == codec.eos_ids[0]) != bool(sampled.truncated[row])
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


@pytest.mark.slow
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
