"""What model servers say and mean: one table of their refusals, and the forms of answers that differ from OpenAI's.

Providers raise classes of their own, which share an HTTP status, headers and names only; so these and the words are read. A row of
``SAYINGS`` is what somebody's server has been seen to say; ``tests/agents/test_call.py`` has an example of each.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from poise_core.agents.llm.faults import CallFailed, Outcome

QUIRKS = {
    "system": "its chat template has no system role: the system part goes into the user's message",
    "limit": "it knows the output limit under its other name only (max_tokens, max_completion_tokens)",
    "output": "it gives fewer tokens than are asked for: as many as it says, or half",
    "temperature": "it takes no temperature",
    "strict": "it does not know the field `strict` of a tool",
    "stream": "it only streams",
    "": "it does not know this kind of structured output: the next one is taken",
}
"""What a server may want otherwise, for which it is asked again at once."""


@dataclass(frozen=True)
class Saying:
    """A refusal in the servers' words."""

    outcome: Outcome
    words: str  # a regular expression, whatever the case
    statuses: range | tuple[int, ...] = range(400, 500)
    quirk: str = ""  # of QUIRKS, for the outcome UNSUPPORTED
    servers: str = ""

    def fits(self, status: int | None, text: str) -> bool:
        """Whether a server has said this; without a status the client has raised it from what the server said."""
        return (status is None or status in self.statuses) and re.search(self.words, text, re.I) is not None


_NOT_KNOWN = r"(extra|unsupported|not (supported|permitted|allowed)|unknown|unrecogni|unexpected|invalid param)"
_LIMIT = r"max_(completion_)?tokens"

SAYINGS: tuple[Saying, ...] = (
    Saying(
        Outcome.REFUSED,
        r"content_filter|content management policy|responsible_?ai|requires moderation|was flagged|data_inspection_failed",
        (400, 403),
        servers="Azure, OpenRouter, DashScope",
    ),
    Saying(
        Outcome.UNAUTHORISED,
        r"api[ _]key (is )?(not |in)valid|api_key_invalid|invalid api[ _]key",
        (400,),
        servers="Gemini",
    ),
    Saying(
        Outcome.QUOTA,
        r"insufficient_quota|insufficient balance|credit balance|key limit exceeded|requires more credits|billing_hard_limit",
        (400, 402, 403, 429),
        servers="OpenAI, Anthropic, DeepSeek, OpenRouter",
    ),
    Saying(
        Outcome.UNSUPPORTED,
        rf"{_LIMIT}.{{0,60}}(too large|at most|less than or equal|valid range|which is the maximum)"
        r"|valid range of max_tokens|\(\d+ > \d+ - \d+\)|you requested \d+ output tokens|in the completion\)",
        (400, 422),
        "output",
        "OpenAI, vLLM, DeepSeek, Groq, Anthropic",
    ),
    Saying(
        Outcome.OVERFLOW,
        r"context.{0,20}(length|window|size)|maximum context|too many tokens|prompt is too long|input token|request too large"
        r"|too large for model|reduce the length",
        (400, 413, 422, 500),
        servers="all",
    ),
    Saying(
        Outcome.UNSUPPORTED,
        r"system.{0,30}(not|n't|un)\W{0,2}.{0,12}(support|allow)|(support|allow)\w*.{0,20}system\W{0,2} ?(role|message|prompt|with)"
        r"|conversation roles must alternate|(only|just) user and assistant roles|developer instruction"
        r"|(invalid|unexpected|unsupported|unknown) role\W{1,3}system|input should be 'user'",
        (400, 422, 500),
        "system",
        "Gemma's and Mistral's templates in vLLM, SGLang and llama.cpp; Gemini; o1-mini",
    ),
    Saying(
        Outcome.UNSUPPORTED,
        rf"{_LIMIT}.{{0,120}}{_NOT_KNOWN}|{_NOT_KNOWN}.{{0,120}}{_LIMIT}",
        (400, 422, 500),
        "limit",
        "Mistral, older vLLM, LiteLLM, Azure; OpenAI's reasoning models",
    ),
    Saying(
        Outcome.UNSUPPORTED,
        rf"temperature.{{0,80}}(does not support|only the default|deprecated|{_NOT_KNOWN})|{_NOT_KNOWN}.{{0,60}}\btemperature",
        (400, 422),
        "temperature",
        "OpenAI's reasoning models, Azure",
    ),
    Saying(
        Outcome.UNSUPPORTED,
        rf"tools?\b.{{0,80}}\bstrict\b.{{0,60}}{_NOT_KNOWN}|{_NOT_KNOWN}.{{0,60}}\bstrict\b(?!.{{0,40}}response_format)",
        (400, 422),
        "strict",
        "Mistral, Gemini, older gateways",
    ),
    Saying(
        Outcome.UNKNOWN_MODEL,
        r"model[_ ]not[_ ](found|exist)|model.{0,60}does not exist|not a valid model|invalid model\b|no models? loaded",
        (400, 404, 422),
        servers="Groq, DeepSeek, Mistral, OpenRouter, LM Studio",
    ),
    Saying(
        Outcome.UNSUPPORTED,
        r"no endpoints found that (support|can handle).{0,80}(tool|parameter|response)",
        (404,),
        servers="OpenRouter",
    ),
    Saying(Outcome.UNSUPPORTED, r"the server streams its answer", (400,), "stream", "gateways"),
    Saying(
        Outcome.UNSUPPORTED,
        r"response_?(format|schema)|json[_ ]?(schema|object)|structured.?output|xgrammar|grammar|guided.?(json|decoding)|outlines"
        r"|llguidance|tool_?.?choice|function.?call|tool.?call|tools?\b.{0,40}(not.{0,12}support|unsupported|requires)"
        r"|support\w*.{0,20}(tools?\b|function|tool use)|tool_use_failed|json_validate_failed|failed to generate json"
        r"|additionalproperties",
        (400, 415, 422, 500, 501),
        servers="vLLM, SGLang, llama.cpp, Ollama, LM Studio, LiteLLM, OpenRouter, DeepSeek, Groq, Gemini",
    ),
)
"""In the order in which they are tried; what none of them fits has the outcome of its status."""

_PER_MINUTE = re.compile(r"retry ?delay|(retry|try again) (in|after)", re.I)
_EXHAUSTED = re.compile(
    r"insufficient_quota|exceeded your current quota|billing|credit balance|insufficient balance", re.I
)
_LATER = re.compile(
    r"(?:retry ?delay\W{1,6}|(?:retry|try again) (?:in|after) )((?:\d+(?:\.\d+)?\s?(?:ms|[hms])[a-z]*\s?)+)", re.I
)
_LOADING = re.compile(r"loading model|model is (currently )?loading|still loading|warming up", re.I)
_LOADING_SECONDS = 10.0
"""How long a server that loads its model is left alone."""


def quirk(message: str) -> str:
    """What a server that refuses a request wants otherwise, in its own words: a key of ``QUIRKS``."""
    for saying in SAYINGS:
        if saying.outcome is Outcome.UNSUPPORTED and saying.fits(None, message):
            return saying.quirk
    return ""


def room_for_output(message: str) -> int | None:
    """The most output tokens that a server grants, by its refusal; None where it does not say."""
    if found := re.search(r"\(\d+ > (\d+) - (\d+)\)", message):
        return int(found[1]) - int(found[2])
    if found := re.search(r"context length is (\d+) .*?(\d+) (?:in the messages|input tokens)", message):
        return int(found[1]) - int(found[2])
    for words in (
        r"at most (\d+)", r"less than or equal to \W?(\d+)", r"valid range of max_tokens is \[\d+, ?(\d+)\]",
        r"\d+ > (\d+), which is the maximum",
    ):  # fmt: skip
        if found := re.search(words, message):
            return int(found[1])
    return None


def classify(error: BaseException) -> tuple[Outcome, float | None]:
    """The outcome that an exception of a provider's client stands for, and the seconds it asks to wait."""
    chain = list(_chain(error))
    text = " ".join(f"{type(one).__name__} {one}" for one in chain)
    names = {kind.__name__ for one in chain for kind in type(one).__mro__}
    status = next((code for one in chain if isinstance(code := _status(one), int)), None)
    if "LengthFinishReasonError" in names:
        return Outcome.TRUNCATED, None
    if "ContentFilterFinishReasonError" in names or "OpenAIRefusalError" in names:
        return Outcome.REFUSED, None
    if any("Timeout" in name for name in names) or status == 408:
        return Outcome.TIMED_OUT, None
    return outcome_of(status, text, names), _wait(chain, text)


def outcome_of(status: int | None, text: str, names: set[str] | frozenset[str] = frozenset()) -> Outcome:
    """The outcome of a refusal: by its words, else by its status, else by the names of the exceptions that it came as."""
    if status == 429:
        passes = _PER_MINUTE.search(text) is not None  # Gemini speaks of quota and billing for a limit per minute, too
        return Outcome.QUOTA if _EXHAUSTED.search(text) and not passes else Outcome.RATE_LIMITED
    known = names & {"JSONDecodeError", "ValidationError", "OutputParserException", "APIResponseValidationError"}
    if not (status is None and known):
        for saying in SAYINGS:
            if status is not None and saying.fits(status, text):
                return saying.outcome
    if status is not None:
        named = {401: Outcome.UNAUTHORISED, 402: Outcome.QUOTA, 403: Outcome.UNAUTHORISED, 404: Outcome.UNKNOWN_MODEL,
                 413: Outcome.OVERFLOW}  # fmt: skip
        return named.get(status) or (Outcome.BAD_REQUEST if 300 <= status < 500 else Outcome.UNAVAILABLE)
    if SAYINGS_OVERFLOW.fits(None, text):
        return Outcome.OVERFLOW
    if any("Connect" in name or "Transport" in name for name in names):
        return Outcome.UNAVAILABLE
    if known:
        return Outcome.INVALID
    if names & {"TypeError", "IndexError", "KeyError", "AttributeError"}:
        return Outcome.EMPTY  # clients raise on bodies without choices
    return Outcome.UNAVAILABLE if "OSError" in names else Outcome.INVALID


SAYINGS_OVERFLOW = next(saying for saying in SAYINGS if saying.outcome is Outcome.OVERFLOW)


def is_redirect(error: BaseException) -> bool:
    """Whether the server has answered with another address, where no client of ours follows."""
    status = next((code for one in _chain(error) if (code := _status(one)) is not None), 0)
    return 300 <= status < 400


def own_fault(error: BaseException) -> CallFailed | None:
    """What ``amend`` has raised within a client, which wraps it."""
    return next((one for one in _chain(error) if isinstance(one, CallFailed)), None)


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found and len(found) < 5:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _status(error: BaseException) -> int | None:
    for holder in (error, getattr(error, "response", None)):
        code = getattr(holder, "status_code", None) or getattr(holder, "code", None)
        if isinstance(code, int) and code >= 300:  # a client that cannot read a successful response raises it, too
            return code
    return None


def _wait(chain: list[BaseException], text: str) -> float | None:
    """The seconds that a server asks to wait: in a header, as a number or a date, or in its words."""
    for one in chain:
        headers = getattr(getattr(one, "response", None), "headers", None) or {}
        for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
            given = str(headers.get(name) or "")
            try:
                return max(0.0, float(given) * scale)
            except ValueError:
                pass
            try:
                return max(0.0, parsedate_to_datetime(given).timestamp() - time.time())
            except (TypeError, ValueError, AttributeError):
                continue
    if found := _LATER.search(text):
        scales = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
        parts = re.findall(r"(\d+(?:\.\d+)?)\s?(ms|[hms])", found[1].lower())
        return sum(float(number) * scales[unit] for number, unit in parts)
    return _LOADING_SECONDS if _LOADING.search(text) else None


# ---- answers


async def amend(response: Any) -> None:
    """Put an answer with status 200 into the form that OpenAI's client reads; a hook of the HTTP client.

    Raises:
        CallFailed: it holds no completion; the message says what the server has sent in its place.
    """
    if response.status_code != 200:
        return
    kind = response.headers.get("content-type", "")
    if "event-stream" in kind:
        if re.search(rb'"stream":\s*true', response.request.content or b"") is None:
            raise CallFailed(Outcome.UNSUPPORTED, "the server streams its answer, which was not asked for")
        return
    if "json" not in kind and not kind.startswith("text/"):
        return
    body = await response.aread()
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        if "html" in kind:
            start = " ".join(re.sub(rb"<[^>]*>", b" ", body[:2000]).decode("utf-8", "replace").split())[:100]
            what = "is base_url the address of its API, which usually ends in /v1?"
            raise CallFailed(
                Outcome.EMPTY, f"the server has sent a web page in place of an answer ({start}); {what}"
            ) from None
        return
    if isinstance(document, dict) and _amend(document):
        response._content = json.dumps(document).encode()
        response.headers["content-type"] = "application/json"


def _amend(document: dict[str, Any]) -> bool:
    """Change the document to the usual form; whether there was anything to change.

    Raises:
        CallFailed: it is an error, or has no choice.
    """
    choices = document.get("choices")
    first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None
    error = document.get("error") if first is None else first.get("error")
    if error and not (first or {}).get("message", {}).get("content"):
        raise _error(error)  # OpenRouter, LM Studio, gateways
    if first is None:
        if "choices" in document:
            raise CallFailed(Outcome.EMPTY, "the server's answer has no choice in it")
        return False
    message = first.get("message")
    if not isinstance(message, dict):
        return False
    changed = False
    if isinstance(content := message.get("content"), list):  # Mistral's thinking models, gateways to Anthropic
        texts = [
            part if isinstance(part, str) else part.get("text") for part in content if isinstance(part, str | dict)
        ]
        message["content"], changed = "".join(text for text in texts if isinstance(text, str)), True
    for call in message.get("tool_calls") or ():
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            continue
        arguments = function.get("arguments")
        if isinstance(arguments, dict):  # Ollama, older gateways
            function["arguments"], changed = json.dumps(arguments), True
        elif isinstance(arguments, str) and arguments.lstrip().startswith('"'):  # encoded twice
            with contextlib.suppress(ValueError):
                function["arguments"], changed = str(json.loads(arguments, strict=False)), True
    if not any(message.get(name) for name in ("content", "tool_calls", "refusal")):
        # vLLM and SGLang with a parser for reasoning
        thought = message.get("reasoning_content") or message.get("reasoning")
        if isinstance(thought, str) and thought:
            message["content"], changed = thought, True
    return changed


def _error(error: Any) -> CallFailed:
    """The failure that an error document with status 200 stands for."""
    said, code = (error.get("message"), error.get("code")) if isinstance(error, dict) else (error, None)
    code = str(code)
    status = int(code) if code.isdecimal() and 400 <= int(code) < 600 else 502
    details = error.get("metadata", {}) if isinstance(error, dict) else {}
    raw = details.get("raw") if isinstance(details, dict) else None
    text = " ".join(str(part) for part in (said, raw) if part)
    return CallFailed(
        outcome_of(status, text), f"status {status} within an answer: {text or error}"[:400], _wait([], text)
    )
