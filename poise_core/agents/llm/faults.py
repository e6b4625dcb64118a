"""The outcomes of a call, and one table of what follows each of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from poise_core.escaping import one_line
from poise_core.failures import InfrastructureError


class Outcome(StrEnum):
    """How one attempt ended, as the ledger stores it."""

    OK = "ok"
    INVALID = "invalid_answer"  # no JSON, or JSON that is not what was asked for
    REFUSED = "refused"  # the model declined
    TRUNCATED = "truncated"  # the answer hit the output limit
    EMPTY = "empty_answer"  # no choice, nothing in it, or a page that is no completion
    RATE_LIMITED = "rate_limited"  # 429
    QUOTA = "quota"  # 429 that does not pass with time
    UNAVAILABLE = "unavailable"  # 5xx, or no connection
    TIMED_OUT = "timed_out"  # the attempt's wall-clock limit
    OVERFLOW = "context_overflow"  # the prompt does not fit the model
    UNSUPPORTED = "unsupported_output"  # the server does not know this kind of structured output
    UNAUTHORISED = "unauthorised"  # 401, 403
    UNKNOWN_MODEL = "unknown_model"  # 404
    BAD_REQUEST = "bad_request"  # any other 4xx
    BUDGET = "budget"  # a cap: the call was not made


@dataclass(frozen=True)
class Rule:
    """What follows an outcome."""

    reply: bool  # whether the server answered, so that the answer is paid for and kept
    retry: str  # "wait": the same again after a pause; "ask": again with the fault named; "adapt"; "": no
    stops_run: bool = False  # a mistake in the settings, with which later calls would fail too


RULES: dict[Outcome, Rule] = {
    Outcome.OK: Rule(True, ""),
    Outcome.INVALID: Rule(True, "ask"),
    Outcome.REFUSED: Rule(True, ""),
    Outcome.TRUNCATED: Rule(True, "adapt"),  # once, with twice the output limit
    Outcome.EMPTY: Rule(True, "wait"),
    Outcome.RATE_LIMITED: Rule(False, "wait"),
    Outcome.QUOTA: Rule(False, ""),
    Outcome.UNAVAILABLE: Rule(False, "wait"),
    Outcome.TIMED_OUT: Rule(False, "wait"),
    Outcome.OVERFLOW: Rule(False, "adapt"),  # once, with half the context
    Outcome.UNSUPPORTED: Rule(False, "adapt"),  # with the next kind of structured output
    Outcome.UNAUTHORISED: Rule(False, "", stops_run=True),
    Outcome.UNKNOWN_MODEL: Rule(False, "", stops_run=True),
    Outcome.BAD_REQUEST: Rule(False, ""),
    Outcome.BUDGET: Rule(False, ""),
}


class CallFailed(Exception):
    """An attempt, or a whole question, got no usable answer; ``message`` is one line without secrets."""

    def __init__(self, outcome: Outcome, message: str, retry_after: float | None = None) -> None:
        message = one_line(message)  # it may quote what a server wrote
        super().__init__(message)
        self.outcome, self.message, self.retry_after = outcome, message, retry_after


class AgentsUnusable(InfrastructureError):
    """The settings of the agents cannot work (a refused key, an unknown model); the run stops until they are corrected."""


_OVERFLOW = re.compile(r"context.{0,20}(length|window|size)|maximum context|too many tokens|prompt is too long", re.I)
_UNSUPPORTED = re.compile(
    r"response_?format|json[_ ]?schema|structured.?output|xgrammar|grammar|guided.?(json|decoding)|outlines|llguidance"
    r"|tool.?choice|function.?call|tool.?call|tools?\b.{0,40}(not.{0,12}support|unsupported)",
    re.I,
)
_QUOTA = re.compile(r"insufficient_quota|exceeded your current quota|billing|credit balance|insufficient balance", re.I)
_NO_SYSTEM = re.compile(
    r"system.{0,30}(not|n't|un)\W{0,2}.{0,12}(support|allow)|(support|allow).{0,20}system (role|message|prompt)"
    r"|conversation roles must alternate|(only|just) user and assistant roles|developer instruction",
    re.I,
)
_UNKNOWN_FIELD = re.compile(
    r"extra|unsupported|not (supported|permitted|allowed)|unknown|unrecogni|unexpected|invalid param", re.I
)
_LIMIT = re.compile(r"max_(completion_)?tokens", re.I)


def quirk(message: str) -> str:
    """What a server that refuses a request wants otherwise, in its own words: "system", "limit", or "" for nothing known.

    "system": its chat template has no system role. "limit": it knows the output limit under its other name only.
    """
    if _NO_SYSTEM.search(message):
        return "system"
    unknown = _UNKNOWN_FIELD.search(message)
    return "limit" if _LIMIT.search(message) and unknown else ""


def classify(error: BaseException) -> tuple[Outcome, float | None]:
    """The outcome that an exception of a provider's client stands for, and the seconds it asks to wait.

    Providers raise classes of their own, which share an HTTP status, headers and names only; so these are read.
    """
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
    if status == 429:
        return (Outcome.QUOTA if _QUOTA.search(text) else Outcome.RATE_LIMITED), _retry_after(chain)
    if status in (401, 403):
        return Outcome.UNAUTHORISED, None
    if _OVERFLOW.search(text) and (status is None or status in (400, 413, 422)):
        return Outcome.OVERFLOW, None
    if status == 402:
        return Outcome.QUOTA, None
    if status in (400, 415, 422, 500, 501) and (_UNSUPPORTED.search(text) or (status != 500 and quirk(text))):
        return Outcome.UNSUPPORTED, None
    if status == 404:
        return Outcome.UNKNOWN_MODEL, None
    if status is not None and 300 <= status < 500:
        return Outcome.BAD_REQUEST, None
    if status is not None or any("Connect" in name or "Transport" in name for name in names):
        return Outcome.UNAVAILABLE, _retry_after(chain)
    if names & {"JSONDecodeError", "ValidationError", "OutputParserException", "APIResponseValidationError"}:
        return Outcome.INVALID, None
    if names & {"TypeError", "IndexError", "KeyError", "AttributeError"}:
        return Outcome.EMPTY, None  # clients raise on bodies without choices
    return (Outcome.UNAVAILABLE if isinstance(error, OSError) else Outcome.INVALID), None


def is_redirect(error: BaseException) -> bool:
    """Whether the server has answered with another address, where no client of ours follows."""
    status = next((code for one in _chain(error) if (code := _status(one)) is not None), 0)
    return 300 <= status < 400


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


def _retry_after(chain: list[BaseException]) -> float | None:
    for one in chain:
        headers = getattr(getattr(one, "response", None), "headers", None) or {}
        for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
            try:
                return max(0.0, float(headers[name]) * scale)
            except (KeyError, TypeError, ValueError):
                continue
    return None
