"""Asks a language model one question: caps, recorded answers, retries and fallbacks within one wall-clock limit.

This is the only retry layer. The table in ``poise_core.agents.llm.faults`` says what follows each outcome of an attempt;
this module counts the attempts. Every attempt leaves a row in the archive's table ``calls`` before its answer is used; a
question that was answered before is answered from its row.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from poise_core.agents.llm.answers import answer_schema, read_answer
from poise_core.agents.llm.context import ContextTooSmallError
from poise_core.agents.llm.faults import RULES, AgentsUnusable, CallFailed, Outcome
from poise_core.agents.llm.ledger import Allowance, Ledger, cost
from poise_core.agents.llm.pace import Pace
from poise_core.agents.llm.prompts import CHARACTERS_PER_TOKEN, data_block
from poise_core.agents.llm.question import A, Answer, Question
from poise_core.agents.llm.quirks import quirk, room_for_output
from poise_core.agents.llm.secrets import redact
from poise_core.agents.llm.wire import ChatModels, Reply, Request
from poise_core.archive import Archive, as_appended
from poise_core.config.agents import AgentSettings, ModelSettings
from poise_core.escaping import one_line
from poise_core.failures import Cancelled

logger = logging.getLogger(__name__)

FORMAT_RETRIES = 2
"""How often a model is told what was wrong with its answer's form; the second time it also gets another method."""

MOST_BACKOFF_SECONDS = 30.0

LEAST_OUTPUT_TOKENS = 128
"""What a server that grants fewer tokens than are asked for has to grant at least; no answer of a role fits into fewer."""

_SHOWN_AGAIN = 12_000  # characters of an unusable answer that its author is shown


@dataclass
class _Course:
    """What has been tried with one model for one question."""

    budget: int
    max_output: int
    methods: list[str]
    waits: int = 0
    asks: int = 0
    complaint: str = ""
    previous: str = ""  # the last reply, which is shown to the model where it is asked again
    quirks: set[str] = field(default_factory=set)  # of ``quirks.QUIRKS``, that its server has shown
    attempts: dict[str, int] = field(default_factory=dict)  # request digest -> attempts so far


class Caller:
    """Asks on behalf of all roles of a run; safe for several threads."""

    def __init__(
        self,
        archive: Archive,
        settings: AgentSettings,
        *,
        replay: Archive | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        backoff_seconds: float = 1.0,
        allowance: Allowance | None = None,
    ) -> None:
        """Read the ledger; no server is contacted.

        Args:
            archive: where calls are recorded.
            settings: of the run.
            replay: the archive of a recorded run: answers come from there alone, and nothing is sent.
            should_stop: ends every wait.
            backoff_seconds: the first pause before a retry; doubles each time, up to half a minute.
            allowance: the cost budget of the calls, beside the caps of the settings.
        """
        self.settings = settings
        self.ledger = Ledger(archive, settings, allowance)
        self._replay = replay
        self._should_stop = should_stop
        self._backoff = backoff_seconds
        self._models = ChatModels(should_stop)
        self._pace = Pace()
        # models whose server has refused tools: asked by turns from then on, after a pause of the run, too
        self._without_tools = {
            row["model"]
            for row in archive.rows("calls", method="tools")
            if _takes_no_tools(Outcome(row["outcome"]), row["message"] or "")
        }

    @property
    def should_stop(self) -> Callable[[], bool]:
        """Whether the run is asked to stop; for work between two questions."""
        return self._should_stop

    def ask(self, question: Question[A]) -> Answer[A]:
        """The answer, of the first model that gives a usable one.

        Raises:
            CallFailed: no model did within ``total_seconds``, or the call could pass a cap.
            AgentsUnusable: the settings cannot work, or the recording lacks the question.
            poise_core.failures.Cancelled: ``should_stop`` returned true.
        """
        settings = self.settings.for_role(question.role)
        deadline = time.monotonic() + (settings.total_seconds or 0.0)
        failure: CallFailed | None = None
        asked = [model for model in (question.model, settings.model, *(settings.fallbacks or ())) if model]
        prices = self.ledger.prices
        for model in dict.fromkeys(asked):
            try:
                return self._ask_model(question, model, settings, deadline)
            except CallFailed as error:
                if failure is None or error.outcome is not Outcome.TIMED_OUT or "used up" not in error.message:
                    failure = error
                if error.outcome is Outcome.BUDGET and model in prices:
                    break  # by a cap, which holds for the others too; a model without a price says nothing of them
            except _NotRecorded:
                if failure is None:
                    raise AgentsUnusable(
                        f"the recording holds no answer to the {question.role}'s question about {question.scope}: "
                        "it was made with another preset, other prompts or another version"
                    ) from None
                break
        assert failure is not None
        if RULES[failure.outcome].stops_run:
            raise AgentsUnusable(f"{failure.message}; check the model's name, its server and its key")
        raise failure

    def _ask_model(self, question: Question[A], model: str, settings: ModelSettings, deadline: float) -> Answer[A]:
        wanted = settings.structured_output
        methods = ["json_schema", "function_calling", "prompt"] if wanted in ("auto", None) else [str(wanted)]
        if question.tools and len(methods) > 1 and model not in self._without_tools:
            methods.insert(0, "tools")
        course = _Course(settings.context_tokens or 0, settings.max_output_tokens or 0, methods)
        failure: CallFailed | None = None
        while True:
            try:
                system, user = question.build(course.budget)
            except ContextTooSmallError as error:
                logger.warning(
                    "%s for %s: %s", question.role, one_line(question.scope), error, extra={"reason": Outcome.OVERFLOW}
                )
                raise CallFailed(Outcome.OVERFLOW, f"{model}: {error}") from None
            user += course.complaint
            tools = question.tools if course.methods[0] == "tools" else None
            schema = answer_schema(question.kind, tools.without if tools else ())
            if course.methods[0] == "prompt":
                user += f"\n\nAnswer with one JSON object of this JSON schema, and nothing else:\n{json.dumps(schema)}"
            messages = (
                (("human", f"{system}\n\n{user}"),)
                if "system" in course.quirks
                else (("system", system), ("human", user))
            )
            request = Request(
                model=model,
                method=course.methods[0],
                schema=schema,
                messages=messages,
                max_output_tokens=course.max_output,
                temperature=None if "temperature" in course.quirks else settings.temperature,
                other_limit="limit" in course.quirks,
                otherwise=tuple(sorted(course.quirks & {"strict", "stream"})),
                tools=tools.documents if tools else (),
            )
            try:
                return self._attempt(question, request, settings, deadline, course)
            except _NotRecorded:
                if tools:  # when this was asked the recorded run knew already that its server takes no tools
                    course.methods.pop(0)
                    continue
                if failure is None:
                    raise
                raise failure from None  # the recorded run gave up here
            except CallFailed as error:
                failure = error
                said = (question.role, one_line(question.scope), error.outcome, error.message)
                if tools and _takes_no_tools(error.outcome, error.message):
                    self._without_tools.add(model)
                try:
                    self._prepare_next(course, error, settings, deadline)
                except CallFailed:
                    logger.warning("%s for %s: %s: %s", *said, extra={"reason": error.outcome})
                    raise
                # a server that wants something otherwise is asked so, which is no trouble
                level = logging.INFO if error.outcome is Outcome.UNSUPPORTED else logging.WARNING
                logger.log(level, "%s for %s: %s: %s", *said, extra={"reason": error.outcome})

    def _prepare_next(self, course: _Course, failure: CallFailed, settings: ModelSettings, deadline: float) -> None:
        """Change what the next attempt sends, or raise ``failure`` where there is no further attempt."""
        rule = RULES[failure.outcome]
        if rule.retry == "ask" and course.asks < FORMAT_RETRIES:
            course.asks += 1
            if (course.asks == FORMAT_RETRIES or course.methods[0] == "tools") and len(course.methods) > 1:
                course.methods.pop(0)
            own = f"{data_block('your_previous_answer', course.previous, _SHOWN_AGAIN)}\n" if course.previous else ""
            course.complaint = (
                f"\n\nYour previous answer could not be used:\n{own}"
                f"{data_block('fault', failure.message, 1000)}\nAnswer again, exactly in the form asked for."
            )
        elif rule.retry == "wait" and course.waits < (settings.retries or 0):
            course.waits += 1
            pause = min(self._backoff * 2 ** (course.waits - 1), MOST_BACKOFF_SECONDS)
            pause = pause if failure.retry_after is None else failure.retry_after
            if self._replay is None:
                if time.monotonic() + pause >= deadline:
                    raise failure  # the pause would end after the deadline
                self._wait(pause)
        elif failure.outcome is Outcome.UNSUPPORTED and (odd := quirk(failure.message)) == "output":
            granted = min(room_for_output(failure.message) or course.max_output, course.max_output - 1)
            course.max_output = granted if granted > course.max_output // 8 else course.max_output // 2
            if course.max_output < LEAST_OUTPUT_TOKENS:
                raise failure
        elif failure.outcome is Outcome.UNSUPPORTED and odd and odd not in course.quirks:
            course.quirks.add(odd)
        elif failure.outcome is Outcome.UNSUPPORTED and len(course.methods) > 1:
            course.methods.pop(0)
        elif failure.outcome is Outcome.BAD_REQUEST and course.methods[0] == "tools":
            course.methods.pop(0)  # not every server has a word for what it does not know
        elif failure.outcome is Outcome.OVERFLOW and course.budget == settings.context_tokens:
            course.budget //= 2
        elif failure.outcome is Outcome.TRUNCATED and course.max_output == settings.max_output_tokens:
            course.max_output *= 2
        else:
            raise failure

    def _attempt(
        self, question: Question[A], request: Request, settings: ModelSettings, deadline: float, course: _Course
    ) -> Answer[A]:
        fault: CallFailed | None = None
        while True:
            number = course.attempts.get(request.digest, 0)
            course.attempts[request.digest] = number + 1
            call_id = f"{question.scope}/{question.role}-{request.digest}-{number}"
            row = self._recorded(call_id)
            if row is None:
                break
            if row["answer"]:
                course.previous = _said(Reply.from_json(row["answer"]))
            if RULES[Outcome(row["outcome"])].reply and row["answer"]:
                return _answer(Reply.from_json(row["answer"]), question, request, call_id)
            fault = CallFailed(Outcome(row["outcome"]), row["message"] or row["outcome"])
        if self._replay is not None:
            if fault is None:
                raise _NotRecorded
            raise fault
        return self._send(question, request, settings, deadline, call_id, number, course)

    def _send(
        self,
        question: Question[A],
        request: Request,
        settings: ModelSettings,
        deadline: float,
        call_id: str,
        number: int,
        course: _Course,
    ) -> Answer[A]:
        self._pace.wait(request.model, settings.requests_per_minute, self._wait, deadline)
        seconds = min(settings.timeout_seconds or 0.0, deadline - time.monotonic())
        if seconds <= 0:
            raise CallFailed(Outcome.TIMED_OUT, f"{request.model}: agents.total_seconds is used up")
        started = time.monotonic()
        guess = int(request.characters / CHARACTERS_PER_TOKEN)
        reply, failure, answer = None, None, None
        try:
            with self.ledger.reserved(request.model, question.generation, guess, request.max_output_tokens):
                seconds = min(seconds, self.ledger.seconds_left(question.generation))
                reply = _without_secrets(self._models.send(request, settings, seconds))
                course.previous = _said(reply)
                answer = _answer(reply, question, request, call_id)
                return answer
        except CallFailed as error:
            failure = error
            raise
        finally:
            if reply is not None and answer is None and failure is None:  # nobody may take it for a good one
                failure = CallFailed(Outcome.INVALID, "the reply could not be read")
            if reply is not None or failure is not None:
                self.ledger.write(self._row(question, request, call_id, number, reply, failure, started))

    def _row(
        self,
        question: Question[A],
        request: Request,
        call_id: str,
        number: int,
        reply: Reply | None,
        failure: CallFailed | None,
        started: float,
    ) -> dict[str, Any]:
        guess = int(request.characters / CHARACTERS_PER_TOKEN)
        estimated = False
        used = [0, 0]
        if reply is not None:
            counted = (reply.input_tokens, reply.output_tokens)
            called = "".join(given for _, given in reply.calls) or reply.arguments
            written = int(len(reply.text + called) / CHARACTERS_PER_TOKEN)
            estimated = None in counted
            used = [guess if counted[0] is None else counted[0], written if counted[1] is None else counted[1]]
        elif failure is not None and failure.outcome is Outcome.TIMED_OUT:
            used, estimated = [guess, 0], True  # a provider may charge for an abandoned request
        return {
            "call_id": call_id,
            "scope": question.scope,
            "role": question.role,
            "generation": question.generation,
            "model": request.model,
            "method": request.method,
            "attempt": number,
            "outcome": str(failure.outcome if failure else Outcome.OK),
            "message": failure.message if failure else None,
            "input_tokens": used[0],
            "output_tokens": used[1],
            "estimated": estimated,
            "dollars": cost(self.ledger.prices.get(request.model), used[0], used[1]),
            "seconds": time.monotonic() - started,
            "prompt": question.prompt,
            "request_digest": request.digest,
            "request": json.dumps(asdict(request), sort_keys=True),
            "answer": None if reply is None else reply.to_json(),
            "replayed": False,
            "written_by": "llm",
        }

    def _recorded(self, call_id: str) -> Mapping[str, Any] | None:
        """The row of an earlier attempt, here or in the recording, from which it is copied."""
        if (own := self.ledger.find(call_id)) is not None:
            return own
        if self._replay is not None and self._replay.contains("calls", call_id=call_id):
            (recorded,) = self._replay.rows("calls", call_id=call_id)
            row = as_appended(recorded)
            row["replayed"] = True
            self.ledger.write(row)
            return row
        return None

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self._should_stop():
                raise Cancelled("stopped while waiting for a language model")
            time.sleep(min(left, 0.2))


class _NotRecorded(Exception):
    """A replay was asked for something that the recording does not hold."""


def _answer(reply: Reply, question: Question[A], request: Request, call_id: str) -> Answer[A]:
    tools = question.tools if request.tools else None
    return Answer(read_answer(reply, question.kind, tools), call_id, question.prompt, request.model)


def _takes_no_tools(outcome: Outcome, message: str) -> bool:
    """Whether a server that answers a question with tools so is asked without them, then and later."""
    return outcome is Outcome.BAD_REQUEST or (outcome is Outcome.UNSUPPORTED and not quirk(message))


def _said(reply: Reply) -> str:
    return reply.arguments or reply.text


def _without_secrets(reply: Reply) -> Reply:
    return Reply(
        redact(reply.text),
        redact(reply.arguments),
        reply.finish_reason,
        redact(reply.refusal),
        reply.input_tokens,
        reply.output_tokens,
        tuple((redact(name), redact(given)) for name, given in reply.calls),
    )
