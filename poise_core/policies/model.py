"""Loading and saving the language models that are trained, and encoding and decoding their texts.

Weights are read from safetensors only, never unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import compress
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor

from poise_core.policies.prompt import ModelSpec, PromptSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# without trust_remote_code=False, transformers asks on the terminal whether to run a policy's own code
_OFFLINE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}

# what chat templates call for the day, of which they get a fixed one: prompts of a protocol would differ from day to day
_DAY = {
    "%-d": "26", "%d": "26", "%b": "Jul", "%B": "July", "%-m": "7", "%m": "07", "%y": "24", "%Y": "2024", "%a": "Fri",
    "%A": "Friday", "%H": "00", "%M": "00", "%S": "00",
}  # fmt: skip
_DATED = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('{sign}', '{text}')" for sign, text in _DAY.items())
    + " }}{% endmacro %}\n"
)


def load_model(folder: Path, spec: ModelSpec | None = None, *, configuration: Path | None = None) -> Any:
    """Load the causal language model of a policy folder, in evaluation mode (dropout off).

    In half precision its output head computes logits in float32 from hidden states and weights in half precision, unless the
    specification says otherwise: rounded logits change log-probabilities in the second digit, and token by token otherwise in
    sampling than in training.

    Args:
        folder: the folder with the weights, as safetensors.
        spec: type of the weights in memory, and attention; by default float32 and the attention that transformers chooses.
        configuration: folder with the architecture; by default ``folder`` itself.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(configuration or folder, **_OFFLINE)
    dtype = getattr(torch, spec.dtype) if spec else torch.float32
    chosen = {"attn_implementation": spec.attention} if spec else {}
    model = AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=dtype, use_safetensors=True, **chosen, **_OFFLINE
    )
    head = model.get_output_embeddings()
    rounds = spec is not None and spec.head == "model" and dtype != torch.float32
    setattr(model, "rounds_logits", rounds)  # noqa: B010 - which score_completions asks
    if dtype != torch.float32 and isinstance(head, torch.nn.Linear) and not rounds:
        setattr(head, "forward", MethodType(_float32_logits, head))  # noqa: B010 - a method, of this instance alone
    return model.eval()


def _float32_logits(head: torch.nn.Linear, hidden: Tensor) -> Tensor:
    """The logits of an output head in float32; without gradients on a GPU no float32 copy of its weights is made."""
    if hidden.is_cuda and hidden.dtype == head.weight.dtype and head.bias is None and not torch.is_grad_enabled():
        product = torch.mm(hidden.flatten(0, -2), head.weight.T, out_dtype=torch.float32)
        return product.unflatten(0, hidden.shape[:-1])
    bias = None if head.bias is None else head.bias.float()
    return torch.nn.functional.linear(hidden.float(), head.weight.float(), bias)


def saved_tensors(folder: Path) -> dict[str, list[int]]:
    """Return the tensors with which a policy is saved, tied ones once, and their shapes: name -> shape. Nothing is loaded for it.

    Raises:
        ValueError: the policy's files name them otherwise than its model does, so that no other process could take them.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, **_OFFLINE))
    state, tied = model.state_dict(keep_vars=True), set(model.all_tied_weights_keys)
    names: dict[int, list[str]] = {}
    for name, tensor in state.items():
        names.setdefault(id(tensor), []).append(name)
    groups = [sorted(group, key=lambda name: name in tied) for group in names.values()]
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, "pt")) for path in _weight_files(folder)]
        places = {name: file for file in files for name in file.keys()}  # noqa: SIM118 - it is no dict
        for group in groups:
            found = [name for name in group if name in places]
            if not found:
                raise ValueError(
                    f"the files of the policy in {folder} do not name {group[0]}, as its model does, so that no other process can "
                    "take it; leave protocol.sampler out"
                )
            values = [places[name].get_tensor(name) for name in found] if len(found) > 1 else []
            if any(not torch.equal(values[0], value) for value in values):
                raise ValueError(
                    f"the files of the policy in {folder} hold {' and '.join(found)}, which its configuration ties and which "
                    "differ; write tie_word_embeddings: false into its config.json"
                )
    return {group[0]: list(state[group[0]].shape) for group in groups}


def _weight_files(folder: Path) -> list[Path]:
    """Return the files from which a policy's weights are loaded; others may lie beside them, as in another format."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists() or not index.exists():
        return [folder / "model.safetensors"]
    return [folder / name for name in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))]


def text_configuration(folder: Path) -> Any:
    """Return the configuration of a policy's language model, which models of images and texts hold beside others."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, **_OFFLINE).get_text_config()


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a policy folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, **_OFFLINE)


class StopTexts:
    """Texts that end a completion while it is sampled, wherever tokens begin and end.

    The token that completes such a text is the last one of the completion: a policy learns to write the text, and nothing after it
    counts. Every sampler ends completions by ``length_of``.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str]) -> None:
        self.texts = tuple(texts)
        self._tokenizer = tokenizer
        self._lasts = frozenset(text[-1] for text in texts)
        self._known: dict[int, bool] = {}

    def ended(self, ids: Sequence[int]) -> bool:
        """Whether the last of these tokens completes a text; none of those before it did."""
        return self.may_end(ids[-1]) and any(text in self._decoded(ids) for text in self.texts)

    def length_of(self, ids: Sequence[int]) -> int | None:
        """Return how many of the tokens the completion has, the last one completing a text; None where none does."""
        return next((count for count in range(1, len(ids) + 1) if self.ended(ids[:count])), None)

    def may_end(self, token: int) -> bool:
        """Whether a token holds the last character of a text, or a part of one; most do not and are never decoded again."""
        if token not in self._known:
            text = self._decoded([token])
            # alone, a token may lose a space, and show a part of a character as U+FFFD
            vague = "\ufffd" in text or not text or any(last.isspace() for last in self._lasts)
            self._known[token] = vague or not self._lasts.isdisjoint(text)
        return self._known[token]

    def _decoded(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


@dataclass(frozen=True)
class PromptCodec:
    """A tokenizer with the special ids that sampling needs."""

    tokenizer: Any
    eos_ids: tuple[int, ...]  # any of them ends a completion; the first is the tokenizer's own
    pad_id: int
    prefix: tuple[int, ...] = ()  # put before every prompt: the beginning-of-sequence token of models that expect one
    prompt: PromptSpec | None = None  # None: problems are prompts

    @classmethod
    def load(cls, folder: Path, prompt: PromptSpec | None = None) -> PromptCodec:
        """Load the codec of a policy folder.

        Completions end at the end-of-sequence tokens of the tokenizer and of the generation configuration. Without a pad
        token, the end-of-sequence id is the pad id.

        Raises:
            ValueError: no token ends a completion; see ``with_prompt`` for the rest.
        """
        tokenizer = load_tokenizer(folder)
        own = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
        ends = tuple(dict.fromkeys([*own, *_generation_ends(folder)]))
        if not ends:
            raise ValueError(
                f"the policy in {folder} names no token that ends a completion; put eos_token into its tokenizer_config.json"
            )
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
        return cls(tokenizer=tokenizer, eos_ids=ends, pad_id=int(pad)).with_prompt(prompt)

    def with_prompt(self, prompt: PromptSpec | None, where: str = "protocol.prompt") -> PromptCodec:
        """Return the codec of the same tokenizer for other prompts.

        Args:
            prompt: how problems become prompts.
            where: the preset's key of it, for messages.

        Raises:
            ValueError: a chat is asked for, and the tokenizer has no chat template, or one that cannot render it.
        """
        begin = self.tokenizer.bos_token_id
        chat = prompt is not None and prompt.chat  # the chat template brings its own beginning
        if chat and not self.tokenizer.chat_template:
            raise ValueError(
                f"{where}.chat: the tokenizer of {self.tokenizer.name_or_path} has no chat template; use an instruction-tuned "
                f"model, or write the dialogue into {where}.template"
            )
        expected = begin is not None and not chat and self.tokenizer("")["input_ids"][:1] == [begin]
        codec = replace(self, prompt=prompt, prefix=(int(begin),) if expected else ())
        try:
            codec.render("1 + 1 =")
        except Exception as error:  # of Jinja, or whatever the template has called
            raise ValueError(
                f"{where}: the chat template of {self.tokenizer.name_or_path} refuses it: {str(error).splitlines()[0]}"
            ) from error
        return codec

    @cached_property
    def _others(self) -> dict[PromptSpec, PromptCodec]:
        """Codecs for benchmarks' own prompts, each checked once and not for every problem."""
        return {}

    @cached_property
    def stops(self) -> StopTexts | None:
        """What ends a completion beside the end-of-sequence tokens, where the prompt says so."""
        return StopTexts(self.tokenizer, self.prompt.stop) if self.prompt and self.prompt.ends_sampling else None

    def render(self, problem: str) -> str:
        """Return the prompt of a problem's text."""
        if self.prompt is None:
            return problem
        text = self.prompt.template.replace("{problem}", problem)
        if not self.prompt.chat:
            return text
        messages = [{"role": "user", "content": text}]
        if self.prompt.system is not None:
            messages.insert(0, {"role": "system", "content": self.prompt.system})
        template = str(self.tokenizer.get_chat_template())
        dated = {"chat_template": _DATED + template} if "strftime_now" in template else {}
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **dated))

    def encode(self, problems: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the prompts of problems as left-padded ids and their mask, both (N, P), int64 and bool."""
        prompts = [self.render(problem) for problem in problems]
        rows = [[*self.prefix, *row] for row in self.tokenizer(prompts, add_special_tokens=False)["input_ids"]]
        width = max(len(row) for row in rows)
        ids = torch.full((len(rows), width), self.pad_id, dtype=torch.int64)
        mask = torch.zeros((len(rows), width), dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, width - len(row) :] = torch.tensor(row, dtype=torch.int64)
            mask[i, width - len(row) :] = True
        return ids, mask

    def prompt_tokens(self, problem: str, prompt: PromptSpec | None = None) -> int:
        """Return how many tokens the prompt of a problem has, with ``prompt`` in the place of the codec's own where it is given."""
        if prompt and prompt not in self._others:
            self._others[prompt] = self.with_prompt(prompt)
        codec = self._others[prompt] if prompt else self
        return int(codec.encode([problem])[0].shape[1])

    def decode(self, ids: Tensor, mask: Tensor) -> list[str]:
        """Return the texts of completions, given (B, T) ids and mask, without end-of-sequence tokens; stop texts cut."""
        kept = (mask & ~torch.isin(ids, torch.tensor(self.eos_ids, device=ids.device))).tolist()
        rows = [tuple(compress(row, keep)) for row, keep in zip(ids.tolist(), kept, strict=True)]
        # short completions of one prompt are often equal, so each text is decoded once
        texts = {row: self.tokenizer.decode(list(row), clean_up_tokenization_spaces=False) for row in set(rows)}
        if self.prompt is not None and self.prompt.stop:
            texts = {row: self.prompt.graded(text) for row, text in texts.items()}
        return [texts[row] for row in rows]


def _generation_ends(folder: Path) -> list[int]:
    """Return the end-of-sequence ids of a policy's generation configuration, if it has one."""
    path = folder / "generation_config.json"
    ends = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.exists() else None
    return [int(end) for end in (ends if isinstance(ends, list) else [ends]) if end is not None]


def save_policy(model: PreTrainedModel, codec: PromptCodec, folder: Path) -> None:
    """Write weights (safetensors), configuration and tokenizer to ``folder``."""
    model.save_pretrained(folder, safe_serialization=True)
    codec.tokenizer.save_pretrained(folder)
