"""Checks before the first call: whether the settings can work, and what a run may cost."""

from __future__ import annotations

import logging
import os
import socket
import urllib.request
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from poise_core.agents.llm.call import FORMAT_RETRIES
from poise_core.agents.llm.faults import AgentsUnusable, Outcome
from poise_core.agents.llm.ledger import cost, price_table
from poise_core.agents.llm.literature import LiteratureError, load_notes
from poise_core.agents.llm.prompts import SHIPPED, PromptError, load_prompt
from poise_core.agents.llm.wire import KEYS, Request, chat_model, stripped_key, usual_key
from poise_core.config.agents import ROLES, AgentSettings, ModelSettings
from poise_core.escaping import one_line
from poise_core.evidence.format import format_tokens

logger = logging.getLogger("poise_core.agents.llm.call")  # where every failure of a model is told

LEAST_INPUT_TOKENS, LEAST_OUTPUT_TOKENS = 1500, 150
"""Of one call, for the lower end of a forecast: a prompt file and a small algorithm in, a form in few words out."""

PACKAGES = {"openai": "langchain_openai", "anthropic": "langchain_anthropic", "google_genai": "langchain_google_genai",
            "ollama": "langchain_ollama"}  # fmt: skip


SERVERS = {
    "openai": ("OPENAI_BASE_URL", "https://api.openai.com"),
    "anthropic": ("ANTHROPIC_BASE_URL", "https://api.anthropic.com"),
    "google_genai": ("GOOGLE_GEMINI_BASE_URL", "https://generativelanguage.googleapis.com"),
    "ollama": ("OLLAMA_HOST", "http://127.0.0.1:11434"),
}
"""The variable from which each provider's client takes its address, and the address where it is not set."""


def model_servers(settings: AgentSettings) -> list[str]:
    """The addresses of the servers that the roles ask, in order, each once."""
    found: dict[str, None] = {}
    for role in ROLES:
        own = settings.for_role(role)
        for model in _asked(settings, role):
            provider = model.partition(":")[0]
            variable, usual = SERVERS.get(provider, ("", f"https://{provider}"))
            address = (
                own.base_url if own.base_url and provider in ("openai", "ollama") else os.environ.get(variable) or usual
            )
            found[address if "://" in address else f"http://{address}"] = None
    return list(found)


def say_unanswering(settings: AgentSettings, seconds: float = 5.0) -> None:
    """Log a warning for each server of ``base_url`` that takes no connection; a run goes on, for it may be started meanwhile.

    A server behind a proxy is not tried, because nothing but a request would tell.
    """
    proxies = urllib.request.getproxies()
    for address in {own.base_url: None for own in map(settings.for_role, ROLES) if own.model and own.base_url}:
        parts = urlsplit(address)
        host = parts.hostname or ""
        if (parts.scheme in proxies or "all" in proxies) and not urllib.request.proxy_bypass(host):
            continue
        try:
            socket.create_connection((host, parts.port or {"https": 443}.get(parts.scheme, 80)), seconds).close()
        except OSError as error:
            reason = one_line(error.strerror or error)
            logger.warning(
                "the server at %s does not answer (%s)", address, reason, extra={"reason": Outcome.UNAVAILABLE}
            )


class AgentSettingsError(ValueError):
    """The settings of the agents cannot work; one line that names the key."""


def check_agents(settings: AgentSettings, *, asks: bool = True) -> None:
    """Check everything that can be checked without a call.

    Args:
        settings: of the run.
        asks: whether servers will be asked, which needs keys; a replay asks none.

    Raises:
        AgentSettingsError: a package, a variable, a folder, a file or a price is missing.
    """
    if not settings.enabled:
        if settings.base_url is not None:
            raise AgentSettingsError("agents.base_url is set but no model is: give --llm openai:NAME (agents.model)")
        return
    if find_spec("langchain") is None:
        raise AgentSettingsError("language models need the extra: pip install 'poise-rl[llm]'")
    try:
        load_notes(settings.literature_folder)
        for name in SHIPPED:
            load_prompt(name, settings.prompts_folder)
        for folder in settings.choices.prompts_folders:
            load_prompt("proposer", folder)
    except (LiteratureError, PromptError) as error:
        raise AgentSettingsError(str(error)) from error
    prices = price_table(settings)
    for role in ROLES:
        own = settings.for_role(role)
        if asks and own.api_key_env is not None and not os.environ.get(own.api_key_env, "").strip():
            raise AgentSettingsError(f"agents.api_key_env: the environment variable {own.api_key_env} is not set")
        for model in _asked(settings, role):
            _check_model(model, settings, model in prices)
            if asks:
                _check_key(model, own)
                _check_provider(model, own)
        if own.model and (own.context_tokens or 0) < LEAST_INPUT_TOKENS:
            raise AgentSettingsError(
                f"agents.context_tokens is {own.context_tokens} for the {role}; a prompt file and a small algorithm alone take "
                f"{LEAST_INPUT_TOKENS}"
            )


def _asked(settings: AgentSettings, role: str) -> tuple[str, ...]:
    """All models that a role may ask, each once."""
    models = settings.models_of(role)
    return tuple(dict.fromkeys((*models, *(settings.for_role(role).fallbacks or ())))) if models else ()


def _check_provider(model: str, settings: ModelSettings) -> None:
    """Set up a model of a provider that this project does not know itself; LangChain knows more, and has no list of them."""
    if model.partition(":")[0] in PACKAGES:
        return
    try:
        chat_model(Request(model, "prompt", {}, (), LEAST_OUTPUT_TOKENS), settings, settings.timeout_seconds or 0.0)
    except AgentsUnusable as error:
        raise AgentSettingsError(str(error)) from error


def _check_model(model: str, settings: AgentSettings, priced: bool) -> None:
    package = PACKAGES.get(model.partition(":")[0])
    if package is not None and find_spec(package) is None:
        raise AgentSettingsError(f"{model} needs its provider's package: pip install {package.replace('_', '-')}")
    capped = [name for name in ("run", "generation") if getattr(settings.caps, name).dollars is not None]
    if capped and not priced:
        raise AgentSettingsError(
            f"agents.caps.{capped[0]}.dollars is set and {model} has no price; give one in agents.prices (dollars per "
            "million tokens, input and output)"
        )


def _check_key(model: str, settings: ModelSettings) -> None:
    provider = model.partition(":")[0]
    try:
        key = stripped_key(settings.api_key_env) if settings.api_key_env else usual_key(provider)
    except AgentsUnusable as error:
        raise AgentSettingsError(str(error)) from error
    names = KEYS.get(provider, (f"{provider.upper()}_API_KEY",))
    if key or provider not in ("openai", "anthropic", "google_genai") or (provider == "openai" and settings.base_url):
        return  # other servers may want none
    raise AgentSettingsError(f"{model} needs a key: set {names[0]}, or give the variable's name in agents.api_key_env")


@dataclass(frozen=True)
class Forecast:
    """Calls, tokens and dollars of a run as (fewest, most): every answer is usable at once, or every loop runs to its bound and
    every answer has to be asked for again as often as that is done."""

    calls: tuple[int, int]
    tokens: tuple[int, int]
    dollars: tuple[float, float]
    unpriced: tuple[str, ...]  # models that the dollars leave out

    def __str__(self) -> str:
        """One line."""
        fewest, most = map(format_tokens, self.tokens)
        text = f"{self.calls[0]} to {self.calls[1]} calls, {fewest} to {most} tokens"
        if not self.unpriced:
            return f"{text}, {self.dollars[0]:.2f} to {self.dollars[1]:.2f} dollars"
        return f"{text}, no price known for {', '.join(self.unpriced)}"


def forecast(
    settings: AgentSettings, *, generations: int, parents: int, ideas: int, revisions: int, repairs: int = 0
) -> Forecast:
    """What a run may cost, without retries after network faults and without caps.

    Args:
        settings: of the run.
        generations: of the run.
        parents: per generation.
        ideas: that are implemented at most for one parent.
        revisions: answers to the gate's reports at most for one file.
        repairs: how often at most a child goes back to its author after an early fault in training.
    """
    slots = generations * parents
    again = 1 + FORMAT_RETRIES
    drafts = (ideas + repairs) * (1 + revisions) * (1 + settings.consistency_revisions)
    per_role = {
        "proposer": (slots, slots * again),
        "screener": (slots, slots * again),
        "implementer": (slots, slots * drafts * again * (1 + settings.tool_turns)),
        "reflector": (slots + 1, (slots + 1) * again),  # the baseline is reflected on as well
    }
    prices = price_table(settings)
    calls, tokens, dollars = [0, 0], [0, 0], [0.0, 0.0]
    unpriced: dict[str, Any] = {}
    for role, counts in per_role.items():
        own, models = settings.for_role(role), settings.models_of(role)
        if not models:
            continue
        context, output = own.context_tokens or 0, own.max_output_tokens or 0
        sizes = ((min(context, LEAST_INPUT_TOKENS), min(output, LEAST_OUTPUT_TOKENS)), (context, output))
        for end, (count, (sent, received)) in enumerate(zip(counts, sizes, strict=True)):
            calls[end] += count
            tokens[end] += count * (sent + received)
            costs = {model: cost(prices.get(model), count * sent, count * received) for model in models}
            known = [price for price in costs.values() if price is not None]
            dollars[end] += (max if end else min)(known, default=0.0)  # of several models any may propose every time
            unpriced |= {model: None for model, price in costs.items() if price is None}
    return Forecast((calls[0], calls[1]), (tokens[0], tokens[1]), (dollars[0], dollars[1]), tuple(unpriced))
