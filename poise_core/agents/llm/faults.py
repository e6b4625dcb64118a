"""The outcomes of a call, and one table of what follows each of them."""

from __future__ import annotations

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
