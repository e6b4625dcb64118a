"""The settings of a preset for language models: models, limits, prices, and the aims of the user.

``agents`` without a model (the default) means that the mechanism catalogue and the rules fill all roles. API keys are never part
of a preset: they are read from the environment when a call is made.
"""

from __future__ import annotations

from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from poise_core.config.protocol import FrozenModel
from poise_core.trajectory import RUN_METRICS

ROLES = ("proposer", "screener", "implementer", "reflector")
"""The roles that a language model can carry."""

StructuredOutput = Literal["auto", "json_schema", "function_calling", "prompt"]


class ModelSettings(FrozenModel):
    """One role's model and its limits; a value that is None or missing is taken from ``agents``."""

    model: str | None = Field(None, description="provider:name, for example openai:gpt-4.1 or ollama:qwen3")
    base_url: str | None = Field(None, description="of the server of openai: (OpenAI-compatible) and ollama: models")
    api_key_env: str | None = Field(None, description="environment variable that holds the key, if not the usual one")
    temperature: NonNegativeFloat | None = Field(None, description="none: the provider's default is used")
    fallbacks: tuple[str, ...] | None = Field(None, description="models to ask, in order, where the first fails")
    max_output_tokens: PositiveInt | None = None
    context_tokens: PositiveInt | None = Field(None, description="budget of a prompt, in estimated tokens")
    timeout_seconds: PositiveFloat | None = Field(None, description="wall-clock limit of one attempt")
    total_seconds: PositiveFloat | None = Field(
        None, description="of one answer: attempts, waits and fallbacks together"
    )
    retries: NonNegativeInt | None = Field(None, description="after network faults, per model")
    requests_per_minute: PositiveFloat | None = None
    structured_output: StructuredOutput | None = Field(
        None, description="auto: json_schema, then tool calls, then prompt (words)"
    )
    streaming: bool | None = Field(
        None, description="for servers and gateways that only stream, or cut idle connections"
    )

    @field_validator("base_url")
    @classmethod
    def _plain_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be a URL such as http://127.0.0.1:8000/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError("must hold no user, password or query; put the key into an environment variable")
        return value

    @field_validator("model")
    @classmethod
    def _provider_and_name(cls, value: str | None) -> str | None:
        if value is not None and not all(value.partition(":")):
            raise ValueError("must be provider:name, for example openai:gpt-4.1, anthropic:NAME or ollama:NAME")
        return value

    @field_validator("fallbacks")
    @classmethod
    def _providers_and_names(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for one in value or ():
            cls._provider_and_name(one)
        return value


DEFAULTS = ModelSettings(
    fallbacks=(),
    max_output_tokens=8192,
    context_tokens=24_000,
    timeout_seconds=180.0,
    total_seconds=600.0,
    retries=3,
    structured_output="auto",
    streaming=False,
)
"""The values that are used where neither the role nor ``agents`` gives one."""


class RoleSettings(FrozenModel):
    """Settings per role, each falling back to those of ``agents``."""

    proposer: ModelSettings = ModelSettings()
    screener: ModelSettings = ModelSettings()
    implementer: ModelSettings = ModelSettings()
    reflector: ModelSettings = ModelSettings()


class Cap(FrozenModel):
    """Limits that are checked before a call; None means no limit."""

    dollars: NonNegativeFloat | None = None
    calls: NonNegativeInt | None = None
    tokens: NonNegativeInt | None = Field(None, description="input and output together")
    seconds: PositiveFloat | None = Field(
        None, description="of waiting for answers, all calls together; a call has no longer than what is left"
    )


class Caps(FrozenModel):
    """Limits of a whole run and of each of its generations."""

    run: Cap = Cap()
    generation: Cap = Cap()


class Price(FrozenModel):
    """US dollars per million tokens."""

    input: NonNegativeFloat
    output: NonNegativeFloat


class Secondary(FrozenModel):
    """A further aim beside Overall."""

    metric: str = Field(description="a name of poise_core.trajectory.RUN_METRICS, for example length_end")
    direction: Literal["increase", "decrease"]
    weight: PositiveFloat = Field(
        1.0, description="points of utility for a change by the whole of the baseline's value"
    )

    @field_validator("metric")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in RUN_METRICS:
            raise ValueError(f"must be one of {', '.join(RUN_METRICS)}")
        return value


class Steering(FrozenModel):
    """The user's aims for the search; part of the run's stored preset."""

    directive: str = Field("", max_length=2000, description="free text for proposer, screener and reflector")
    secondary: tuple[Secondary, ...] = ()
    overall_tolerance: NonNegativeFloat | None = Field(
        None, description="points of Overall below the baseline from which on secondary aims earn nothing"
    )


class Choices(FrozenModel):
    """What proposes beside ``agents.model`` and ``agents.prompts_folder``; measured gain per dollar decides for each place."""

    models: tuple[str, ...] = Field((), description="further models, as provider:name")
    prompts_folders: tuple[str, ...] = Field((), description="folders with another proposer.md")

    @field_validator("models")
    @classmethod
    def _providers_and_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            if not all(one.partition(":")):
                raise ValueError("must be provider:name, for example openai:gpt-4.1, anthropic:NAME or ollama:NAME")
        return value


class AgentSettings(ModelSettings):
    """All settings for the agents of a run."""

    roles: RoleSettings = RoleSettings()
    on_failure: Literal["catalogue", "fail"] = Field(
        "catalogue", description="who answers where the model cannot: the catalogue and the rules, or a typed failure"
    )
    consistency_revisions: NonNegativeInt = Field(
        1, description="answers of the implementer to a file that contradicts its proposal, per draft"
    )
    tool_turns: NonNegativeInt = Field(
        2, description="turns in which the implementer may try a draft with tools, per file"
    )
    literature_notes: NonNegativeInt = Field(6, description="notes shown to the proposer")
    literature_folder: str | None = Field(
        None, description="further notes; one of the same name replaces a shipped one"
    )
    prompts_folder: str | None = Field(None, description="files of the shipped prompts' names replace them")
    choices: Choices = Choices()
    caps: Caps = Caps()
    prices: dict[str, Price] = Field(default_factory=dict, description="model -> price; replaces the shipped table's")
    steering: Steering = Steering()

    @model_validator(mode="after")
    def _choices_beside_a_model(self) -> Self:
        if (self.choices.models or self.choices.prompts_folders) and not self.for_role("proposer").model:
            raise ValueError("choices are made beside a model of the proposer: give model, or roles.proposer.model")
        return self

    @property
    def enabled(self) -> bool:
        """Whether any role is LLM-backed."""
        return any(self.for_role(role).model for role in ROLES)

    def models_of(self, role: str) -> tuple[str, ...]:
        """All models that a role may ask first, its own at the head; none where it has none."""
        own = self.for_role(role).model
        return (own, *(self.choices.models if role == "proposer" else ())) if own else ()

    def for_role(self, role: str) -> ModelSettings:
        """Return the settings of a role with every missing value filled in; ``model`` is None where the role has none."""
        own: ModelSettings = getattr(self.roles, role)
        filled = {
            name: next(
                (value for source in (own, self, DEFAULTS) if (value := getattr(source, name)) is not None), None
            )
            for name in ModelSettings.model_fields
        }
        return ModelSettings.model_validate(filled)
