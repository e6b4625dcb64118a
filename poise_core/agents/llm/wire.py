"""Sends one request to one model; only this module calls LangChain.

A request runs on a background event loop under a wall-clock limit for the whole answer. At the limit it is cancelled, which
closes its connection; if that hangs too, the caller no longer waits for it. A request to stop the run ends the wait within a
fifth of a second. LangChain's clients do not retry: the only retry layer is ``poise_core.agents.llm.call``.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, TypeVar

from poise_core.agents.llm.faults import AgentsUnusable, CallFailed, Outcome
from poise_core.agents.llm.quirks import amend, classify, is_redirect, own_fault
from poise_core.agents.llm.secrets import redact, unwrapped
from poise_core.config.agents import ModelSettings
from poise_core.failures import Cancelled

T = TypeVar("T")

_GRACE_SECONDS = 1.0
"""How long after its limit an attempt may take to be cancelled before it is abandoned."""

_ERROR_CHARACTERS = 400

_HOW_TO_MOVE = "if you trust the new address, give it as agents.base_url"


@dataclass(frozen=True)
class Request:
    """What is asked of a model; equal requests have equal digests, wherever and through whichever server they are sent."""

    model: str  # provider:name
    method: str  # "json_schema", "function_calling", "prompt", where the schema is asked for in words, or "tools"
    schema: dict[str, Any]  # JSON schema of the answer, with title and description
    messages: tuple[tuple[str, str], ...]  # role, text
    max_output_tokens: int
    temperature: float | None = None
    # whether the output limit goes under the name that is not this kind of server's usual one
    other_limit: bool = False
    otherwise: tuple[str, ...] = ()  # of quirks.QUIRKS: what else its server wants otherwise
    tools: tuple[
        dict[str, Any], ...
    ] = ()  # that may be called in place of the answer, which is one more; for method "tools"

    @property
    def digest(self) -> str:
        """12 hex digits of SHA-256 over everything in it."""
        fields = asdict(self)
        if not self.other_limit:
            del fields["other_limit"]  # recorded requests keep their digests
        if not self.otherwise:
            del fields["otherwise"]
        if not self.tools:
            del fields["tools"]
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def characters(self) -> int:
        """Length of what is sent."""
        tools = len(json.dumps(self.tools)) if self.tools else 0
        return sum(len(text) for _, text in self.messages) + len(json.dumps(self.schema)) + tools


@dataclass(frozen=True)
class Reply:
    """What a model answered, before it is read."""

    text: str = ""
    arguments: str = ""  # JSON of the first tool call's arguments
    finish_reason: str = ""
    refusal: str = ""
    input_tokens: int | None = None  # None: the server did not say
    output_tokens: int | None = None
    calls: tuple[tuple[str, str], ...] = ()  # name and arguments of every tool call, where tools were offered

    @classmethod
    def from_json(cls, text: str) -> Reply:
        """As the ledger keeps it."""
        fields = json.loads(text)
        return cls(**{**fields, "calls": tuple((name, given) for name, given in fields.get("calls", ()))})

    def to_json(self) -> str:
        """For the ledger; without tools it is what it was before there were any."""
        fields = asdict(self)
        if not self.calls:
            del fields["calls"]
        return json.dumps(fields, sort_keys=True)


class ChatModels:
    """Sends requests with the settings of a role."""

    def __init__(self, should_stop: Callable[[], bool] = lambda: False) -> None:
        self._should_stop = should_stop

    def send(self, request: Request, settings: ModelSettings, seconds: float) -> Reply:
        """Send the request once.

        Args:
            request: what to ask.
            settings: of the role, with every default filled in.
            seconds: wall-clock limit.

        Raises:
            CallFailed: there is no reply; it carries the outcome.
            AgentsUnusable: the model cannot even be set up.
            poise_core.failures.Cancelled: ``should_stop`` returned true.
        """
        try:
            model = chat_model(request, settings, seconds)  # imports on first use, which is not the server's time
            return run_bounded(lambda: _invoke(model, request), seconds, self._should_stop)
        except (Cancelled, AgentsUnusable, CallFailed):
            raise
        except concurrent.futures.TimeoutError:
            raise CallFailed(Outcome.TIMED_OUT, f"{request.model}: no whole answer in {seconds:.0f} s") from None
        except Exception as error:
            if (fault := own_fault(error)) is not None:
                said = redact(fault.message, _key(settings) or "")
                raise CallFailed(fault.outcome, f"{request.model}: {said}", fault.retry_after) from None
            outcome, wait = classify(error)
            text = " ".join(redact(str(error), _key(settings) or "").split())[:_ERROR_CHARACTERS]
            if outcome is Outcome.UNKNOWN_MODEL and "/v1" not in (settings.base_url or "/v1"):
                text += " (base_url usually ends in /v1)"
            if is_redirect(error):
                text = f"the server answers with a redirect, which is not followed; {_HOW_TO_MOVE} ({text})"
            # the cause is cut off: its text and its frames may hold the key
            raise CallFailed(outcome, f"{request.model}: {type(error).__name__}: {text}", wait) from None


def run_bounded(work: Callable[[], Coroutine[Any, Any, T]], seconds: float, should_stop: Callable[[], bool]) -> T:
    """The coroutine's result, or ``TimeoutError`` after ``seconds``, whatever it does.

    Raises:
        TimeoutError: the limit.
        poise_core.failures.Cancelled: ``should_stop`` returned true meanwhile.
    """
    future = asyncio.run_coroutine_threadsafe(_limited(work, seconds), _loop())
    deadline = time.monotonic() + seconds + _GRACE_SECONDS
    while not concurrent.futures.wait([future], timeout=0.2).done:
        if should_stop():
            future.cancel()
            raise Cancelled("stopped while waiting for a language model")
        if time.monotonic() > deadline:
            future.cancel()
            raise TimeoutError
    return future.result()


async def _limited(work: Callable[[], Coroutine[Any, Any, T]], seconds: float) -> T:
    return await asyncio.wait_for(work(), seconds)


_starting = threading.Lock()


def _loop() -> asyncio.AbstractEventLoop:
    with _starting:
        return _start_loop(os.getpid())


@lru_cache(maxsize=1)
def _start_loop(process: int) -> asyncio.AbstractEventLoop:
    """One loop per process: clients keep connections that belong to the loop they were made on."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="language models", daemon=True).start()
    return loop


async def _invoke(model: Any, request: Request) -> Reply:
    strict = {"strict": True} if _provider(request.model) == "openai" and "strict" not in request.otherwise else {}
    if request.method == "prompt":
        return _read(await model.ainvoke(list(request.messages)))
    if request.method == "tools":
        # the answer's form comes first: a server that knows one tool only takes the first
        bound = model.bind_tools([answer_tool(request.schema), *request.tools])
        return _read(await bound.ainvoke(list(request.messages)), str(request.schema["title"]))
    structured = model.with_structured_output(request.schema, method=request.method, **strict)
    try:
        # the first step is the model; LangChain's parser after it takes the square of the length on text that is not JSON
        answer = await structured.first.ainvoke(list(request.messages))
    except Exception as error:
        cut = getattr(error, "completion", None)  # the client raises on a truncated answer, which was paid for
        if cut is None:
            raise
        usage = getattr(cut, "usage", None)
        text = cut.choices[0].message.content or "" if cut.choices else ""
        reason = "length" if "Length" in type(error).__name__ else "content_filter"
        return Reply(
            text, "", reason, "", getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None)
        )
    return _read(answer)


def answer_tool(schema: dict[str, Any]) -> dict[str, Any]:
    """The form of an answer as a tool, in OpenAI's form."""
    parameters = {key: value for key, value in schema.items() if key not in ("title", "description")}
    function = {"name": schema["title"], "description": schema["description"], "parameters": parameters}
    return {"type": "function", "function": function}


def _read(message: Any, answer: str = "") -> Reply:
    """The reply in LangChain's message; with ``answer``, the name of the answer's tool, all its tool calls are kept."""
    metadata, extra = message.response_metadata or {}, message.additional_kwargs or {}
    usage = message.usage_metadata or {}
    calls = message.tool_calls or []
    broken = getattr(message, "invalid_tool_calls", None) or []
    made = [
        *((str(call.get("name") or ""), json.dumps(call["args"])) for call in calls),
        *((str(call.get("name") or ""), str(call.get("args") or "")) for call in broken),
    ]
    arguments = next((given for name, given in made if name == answer or not answer), "")
    reason = str(metadata.get("finish_reason") or metadata.get("stop_reason") or metadata.get("done_reason") or "")
    return Reply(
        text=str(message.text),
        arguments=arguments,
        finish_reason=reason.lower(),
        refusal=str(extra.get("refusal") or ""),
        input_tokens=usage.get("input_tokens"),
        output_tokens=usage.get("output_tokens"),
        calls=tuple(made) if answer else (),
    )


def chat_model(request: Request, settings: ModelSettings, seconds: float) -> Any:
    """LangChain's chat model for a request.

    Raises:
        AgentsUnusable: the provider's package is missing, the provider is unknown, or there is no key.
    """
    try:
        from langchain.chat_models import init_chat_model
    except ImportError as error:
        raise AgentsUnusable("language models need the extra: pip install 'poise-rl[llm]'") from error
    _read_streamed_calls_whole()
    provider = _provider(request.model)
    options: dict[str, Any] = {"max_tokens": request.max_output_tokens, "timeout": seconds}
    if request.temperature is not None:
        options["temperature"] = request.temperature
    if key := _key(settings) or usual_key(provider):
        options["api_key"] = key
    if provider == "openai":
        options.update(max_retries=0, use_responses_api=False)
        if (
            settings.base_url is not None
        ) != request.other_limit:  # servers of other makers know max_tokens, some only that
            options["extra_body"] = {"max_tokens": options.pop("max_tokens")}
        if settings.base_url is not None:
            options["base_url"] = settings.base_url
            if not key:
                options["api_key"] = "none-needed"  # local servers accept any key, but the client requires one
        if settings.streaming or "stream" in request.otherwise:
            options.update(streaming=True, stream_usage=True)
    elif provider == "google_genai":
        options["max_retries"] = 1  # counts attempts
        options["client_args"] = {"follow_redirects": False, "allow_redirects": False}  # of httpx, of aiohttp
    elif provider == "ollama":
        options = {name: options[name] for name in ("temperature",) if name in options}
        options.update(
            num_predict=request.max_output_tokens, client_kwargs={"timeout": seconds, "follow_redirects": False}
        )
        if settings.base_url is not None:
            options["base_url"] = settings.base_url
    else:
        options["max_retries"] = 0
    try:
        model = init_chat_model(request.model, **options)
    except ImportError as error:
        package = str(error).split("`")[1] if "`" in str(error) else f"langchain-{provider}"
        raise AgentsUnusable(f"{request.model} needs its provider's package: pip install {package}") from None
    except Exception as error:  # errors of pydantic and of the clients share only their text
        text = " ".join(redact(str(error), _key(settings) or "").split())[:_ERROR_CHARACTERS]
        raise AgentsUnusable(f"{request.model} cannot be set up: {text}") from None
    if not _refuse_redirects(model) and provider in ("openai", "anthropic"):
        raise AgentsUnusable(
            f"{request.model}: the installed client cannot be kept from following redirects, which could take the key "
            "elsewhere; install the versions of constraints.txt"
        )
    return model


@lru_cache(maxsize=1)
def _read_streamed_calls_whole() -> None:
    """Keep LangChain from guessing the end of a streamed tool call that is no JSON yet: it tries every length of what has come,
    and while it does no time limit is looked at. What is no JSON at the end is read as text here.
    """
    from langchain_core.messages import ai

    ai.parse_partial_json = json.loads


def _refuse_redirects(model: Any) -> bool:
    """Keep the HTTP client below a chat model from following redirects: key and prompt are for the server that was named.

    Google's and Ollama's clients take an option for it. Those of OpenAI, Anthropic and most others hold an httpx client, some
    levels down, that they would only take whole, without LangChain's settings.
    """
    found = False
    for name in ("root_async_client", "_async_client", "async_client"):
        holder: Any = getattr(model, name, None)
        for _ in range(4):
            if isinstance(getattr(holder, "follow_redirects", None), bool):
                holder.follow_redirects = False
                found = True
                hooks = getattr(holder, "event_hooks", None)
                if hooks is not None and amend not in hooks["response"]:
                    holder.event_hooks = {**hooks, "response": [*hooks["response"], amend]}
            holder = getattr(holder, "_client", None)
    return found


def _provider(model: str) -> str:
    return model.partition(":")[0]


def _key(settings: ModelSettings) -> str | None:
    if settings.api_key_env is None:
        return None
    key = stripped_key(settings.api_key_env)
    if not key:
        raise AgentsUnusable(f"the environment variable {settings.api_key_env} (agents.api_key_env) is not set")
    return key


KEYS = {"google_genai": ("GOOGLE_API_KEY", "GEMINI_API_KEY")}
"""Variables of the key where they are not called PROVIDER_API_KEY."""


def usual_key(provider: str) -> str | None:
    """The key in the provider's own variable; None where it is not set.

    Raises:
        AgentsUnusable: it holds what no key has.
    """
    names = KEYS.get(provider, (f"{provider.upper()}_API_KEY",))
    return next(filter(None, map(stripped_key, names)), None)


def stripped_key(variable: str) -> str | None:
    """The key in a variable, without the line end or the quotes of the file that it came from.

    Raises:
        AgentsUnusable: it holds what no HTTP header can.
    """
    key = unwrapped(os.environ.get(variable, ""))
    if not all("!" <= character <= "~" for character in key):
        raise AgentsUnusable(
            f"the key in {variable} holds a space, a line end or another character that no key has; set it again"
        )
    return key or None
