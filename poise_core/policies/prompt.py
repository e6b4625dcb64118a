"""How a policy is loaded and computes, and how problems become prompts. Nothing here needs torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ModelSpec(BaseModel):
    """How a policy computes, as far as that changes numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="type of weights and activations; with bfloat16 the optimizer keeps float32 weights, gradients are summed in "
        "float32, and the output head computes its logits in float32",
    )
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] = Field(
        "sdpa", description="attention of transformers; flash_attention_2 and _3 need their packages and a GPU"
    )


class PromptSpec(BaseModel):
    """How the text of a problem becomes the prompt that a policy continues."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    template: str = Field("{problem}", description="text around a problem, which stands where {problem} is")
    chat: bool = Field(
        False, description="whether this text is a user's message in the chat template of the policy's tokenizer"
    )
    system: str | None = Field(None, description="system message of the chat; by default the chat template's own")

    @model_validator(mode="after")
    def _fits(self) -> PromptSpec:
        if self.template.count("{problem}") != 1:
            raise ValueError(f"template is {self.template!r}; it must hold {{problem}} once")
        if self.system is not None and not self.chat:
            raise ValueError("system is given but chat is false; only a chat has a system message")
        return self
