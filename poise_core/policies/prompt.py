"""How a policy is loaded and computes, and how problems become prompts. Nothing here needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

_ASKED = "Please reason step by step, and put your final answer within \\boxed{}."
TEMPLATES: dict[str, dict[str, Any]] = {
    "none": {"template": "{problem}"},
    "boxed": {"template": "{problem}\n" + _ASKED},
    "qwen-math": {
        "template": f"<|im_start|>system\n{_ASKED}<|im_end|>\n<|im_start|>user\n{{problem}}<|im_end|>\n<|im_start|>assistant\n",
        "stop": ("<|im_end|>", "<|endoftext|>"),
        "stopping": "sampling",
    },
    "r1": {
        "template": "A conversation between User and Assistant. The User asks a question, and the Assistant solves it. "
        "The Assistant first thinks about the reasoning process in the mind and then provides the User with the answer. "
        "The reasoning process is enclosed within <think> </think> and answer is enclosed within <answer> </answer> tags, "
        "respectively, i.e., <think> reasoning process here </think> <answer> answer here </answer>.\n"
        "User: {problem}\nAssistant: <think>",
        "stop": ("</answer>",),
        "stopping": "sampling",
    },
}
"""Templates by name. Their text, not their name, belongs to the protocol."""


class ModelSpec(BaseModel):
    """How a policy computes, as far as that changes numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="type of weights and activations; with bfloat16 the optimizer keeps float32 weights, and gradients are summed "
        "in float32",
    )
    head: Literal["float32", "model"] = Field(
        "float32",
        description="type of the logits that the output head computes; model: that of the weights, as most engines do",
    )
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] = Field(
        "sdpa", description="attention of transformers; flash_attention_2 and _3 need their packages and a GPU"
    )

    @model_serializer(mode="wrap")
    def _lean(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = handler(self)
        if self.head == "float32":
            del document["head"]  # digests of before stay
        return document


class PromptSpec(BaseModel):
    """How the text of a problem becomes the prompt that a policy continues.

    A preset may give ``name``, one of ``TEMPLATES``, or ``file``, a text file; both are replaced by what they stand for.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    template: str = Field("{problem}", description="text around a problem, which stands where {problem} is")
    chat: bool = Field(
        False, description="whether this text is a user's message in the chat template of the policy's tokenizer"
    )
    system: str | None = Field(None, description="system message of the chat; by default the chat template's own")
    stop: tuple[str, ...] = Field(
        (), description="texts that end a completion; the first one and what follows is not graded"
    )
    stopping: Literal["sampling", "grading"] = Field(
        "grading",
        description="where a stop text works; sampling: the token that completes it is the last one of the completion; grading: "
        "only the graded text ends there. A preset that says nothing gets sampling, runs of before have grading",
    )

    @model_validator(mode="before")
    @classmethod
    def _expanded(cls, document: Any) -> Any:
        if not isinstance(document, dict) or not {"name", "file"} & set(document):
            return document
        document = dict(document)
        name, file = document.pop("name", None), document.pop("file", None)
        if (name is not None) + (file is not None) + ("template" in document) != 1:
            raise ValueError("give one of name, file and template")
        if name is not None and name not in TEMPLATES:
            raise ValueError(f"name is {name!r}; the templates are {', '.join(TEMPLATES)}")
        try:
            known = TEMPLATES[name] if name is not None else {"template": Path(str(file)).read_text(encoding="utf-8")}
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"file {file} cannot be read: {error}") from error
        return {**known, **document}

    @model_serializer(mode="wrap")
    def _lean(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = handler(self)
        unsaid = set() if self.stop else {"stop"}
        unsaid |= set() if self.ends_sampling else {"stopping"}  # digests of before stay
        return {key: value for key, value in document.items() if key not in unsaid}

    @property
    def ends_sampling(self) -> bool:
        """Whether a stop text ends a completion while it is sampled."""
        return bool(self.stop) and self.stopping == "sampling"

    @model_validator(mode="after")
    def _fits(self) -> PromptSpec:
        if self.template.count("{problem}") != 1:
            raise ValueError(f"template is {self.template!r}; it must hold {{problem}} once")
        if self.system is not None and not self.chat:
            raise ValueError("system is given but chat is false; only a chat has a system message")
        if "" in self.stop:
            raise ValueError("stop holds an empty text, which would end every completion at once")
        return self

    def graded(self, completion: str) -> str:
        """Return a completion up to its first stop text; ``</answer>`` is kept, as it closes the answer."""
        ends = [
            completion.find(stop) + (len(stop) if stop.startswith("</") else 0)
            for stop in self.stop
            if stop in completion
        ]
        return completion[: min(ends)] if ends else completion
