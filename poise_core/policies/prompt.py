"""How problems become prompts. Nothing here needs torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator


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
