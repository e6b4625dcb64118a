"""Every way in which a call can end, against real sockets: one stated outcome each, in bounded time, all on the ledger."""

import asyncio
import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from call_samples import GOOD, TOOL_CASES, Colour, outcomes, question, refusing_tools, script_of
from langchain.chat_models import base
from llm_server import Calls, Drip, Fail, Hang, Loop, LoopbackServer, NoChoices, Raw, Say, prompt_of
from script import implementation

from poise_core.agents.llm.call import Caller
from poise_core.agents.llm.context import ContextTooSmallError
from poise_core.agents.llm.faults import RULES, AgentsUnusable, CallFailed, Outcome
from poise_core.agents.llm.forms import ImplementationForm, TryForm
from poise_core.agents.llm.preflight import AgentSettingsError, check_agents, say_unanswering
from poise_core.agents.llm.question import Answer, Question
from poise_core.agents.llm.quirks import QUIRKS, SAYINGS, classify, outcome_of, quirk, room_for_output
from poise_core.agents.llm.tools import offered, results, tools_for
from poise_core.agents.llm.wire import run_bounded
from poise_core.archive import Archive, ArchiveError
from poise_core.config.agents import AgentSettings
from poise_core.failures import Cancelled

Serve = Callable[..., LoopbackServer]


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "archive").initialise()


@pytest.fixture
def caller_for(archive: Archive) -> Callable[..., Caller]:
    def make(server: LoopbackServer, **settings: Any) -> Caller:
        options = {name: settings.pop(name) for name in ("replay", "should_stop") if name in settings}
        given = {"model": "openai:test", "base_url": server.base_url, "timeout_seconds": 5, "retries": 1, **settings}
        return Caller(archive, AgentSettings.model_validate(given), backoff_seconds=0.01, **options)

    return make


CASES: dict[str, tuple[Any, dict[str, Any], list[str], str | None]] = {
    # answers, settings, what the ledger holds, how it ends (None: with the good answer)
    "good": ([GOOD], {}, ["ok"], None),
    "good and streamed": ([GOOD], {"streaming": True}, ["ok"], None),
    "good, streamed tool call": ([GOOD], {"streaming": True, "structured_output": "function_calling"}, ["ok"], None),
    "good, by tool call": ([GOOD], {"structured_output": "function_calling"}, ["ok"], None),
    "in a fence after reasoning": (
        [Say("<think>{blue?}</think>It is:\n```json\n" + json.dumps(GOOD) + "\n```")], {}, ["ok"], None,
    ),
    "without usage": ([Say(json.dumps(GOOD), usage=False)], {}, ["ok"], None),
    "malformed, then good": ([Say('{"name": "gre'), GOOD], {}, ["invalid_answer", "ok"], None),
    "always malformed": ([Say("a colour, surely")], {}, ["invalid_answer"] * 3, "invalid_answer"),
    "wrong schema": ([{"name": "", "blue": 1}], {}, ["invalid_answer"] * 3, "invalid_answer"),
    "json_schema unknown": (
        [Fail(400, "response_format json_schema is not supported"), GOOD], {}, ["unsupported_output", "ok"], None,
    ),
    "no structured output at all": (
        [Fail(400, "response_format is not supported"), Fail(400, "tools are not supported")],
        {}, ["unsupported_output"] * 3, "unsupported_output",
    ),
    "neither schema nor tools, but words": (
        [Fail(400, "not supported by xgrammar"), Fail(400, "tool use is not supported"), Say('{"name": "green", "red": 0}')],
        {}, ["unsupported_output"] * 2 + ["ok"], None,
    ),
    "no system role": ([Fail(400, "System role not supported"), GOOD], {}, ["unsupported_output", "ok"], None),
    "another name of the limit": (
        [Fail(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."), GOOD],
        {}, ["unsupported_output", "ok"], None,
    ),
    "402": ([Fail(402, "Insufficient Balance")], {}, ["quota"], "quota"),
    "refusal": ([Say(None, refusal="I would rather not")], {}, ["refused"], "refused"),
    "content filter": ([Say("", finish="content_filter")], {}, ["refused"], "refused"),
    "truncated once": ([Say('{"name": "gr', finish="length"), GOOD], {}, ["truncated", "ok"], None),
    "always truncated": ([Say('{"name": "gr', finish="length")], {}, ["truncated"] * 2, "truncated"),
    "429 with Retry-After": (
        [Fail(429, headers={"Retry-After": "0.2"}), GOOD], {}, ["rate_limited", "ok"], None,
    ),
    "429 without": ([Fail(429), GOOD], {}, ["rate_limited", "ok"], None),
    "429 for ever": ([Fail(429)], {}, ["rate_limited"] * 2, "rate_limited"),
    "429 with a Retry-After beyond the limit": (
        [Fail(429, headers={"Retry-After": "3600"})], {"total_seconds": 5}, ["rate_limited"], "rate_limited",
    ),
    "quota": ([Fail(429, "You exceeded your current quota", "insufficient_quota")], {}, ["quota"], "quota"),
    "500, then good": ([Fail(500), GOOD], {}, ["unavailable", "ok"], None),
    "500 for ever": ([Fail(500)], {}, ["unavailable"] * 2, "unavailable"),
    "no choices": ([NoChoices()], {}, ["empty_answer"] * 2, "empty_answer"),
    "choices null": ([NoChoices(null=True)], {}, ["empty_answer"] * 2, "empty_answer"),
    "empty text": ([Say("")], {}, ["empty_answer"] * 2, "empty_answer"),
    "context overflow, then good": (
        [Fail(400, "This model's maximum context length is 4096 tokens", "context_length_exceeded"), GOOD],
        {"context_tokens": 1000}, ["context_overflow", "ok"], None,
    ),
    "context overflow for ever": (
        [Fail(400, "maximum context length is 4096 tokens", "context_length_exceeded")],
        {"context_tokens": 1000}, ["context_overflow"] * 2, "context_overflow",
    ),
    "bad request": ([Fail(400, "temperature is not what it should be")], {}, ["bad_request"], "bad_request"),
    "hung": ([Hang()], {"timeout_seconds": 0.4}, ["timed_out"] * 2, "timed_out"),
    "slow drip": ([Drip()], {"timeout_seconds": 0.4}, ["timed_out"] * 2, "timed_out"),
    "endless stream": ([Loop()], {"timeout_seconds": 0.4, "streaming": True}, ["timed_out"] * 2, "timed_out"),
    "hung longer than the whole answer may take": (
        [Hang()], {"timeout_seconds": 5, "total_seconds": 0.5}, ["timed_out"], "timed_out",
    ),
    "an HTML page": ([b"<html>please log in</html>"], {}, ["empty_answer"] * 2, "empty_answer"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_each_way_to_end_has_one_outcome_in_bounded_time(
    case: str, archive: Archive, caller_for: Callable[..., Caller], serve: Serve
) -> None:
    answers, settings, ledger, end = CASES[case]
    server = serve(script_of(*answers))
    caller = caller_for(server, **settings)
    started = time.monotonic()
    if end is None:
        answer = caller.ask(question())
        assert answer.value == Colour(**GOOD)
    else:
        with pytest.raises(CallFailed) as failed:
            caller.ask(question())
        assert failed.value.outcome == end
    assert time.monotonic() - started < 8
    assert outcomes(archive) == ledger
    # one retry layer: the client behind it never asks again by itself; on a busy machine time may be up before it has asked
    sent = len(server.requests)
    assert sent == len(ledger) or (end == "timed_out" and 0 < sent < len(ledger))


@pytest.mark.slow
@pytest.mark.parametrize(("status", "outcome"), [(401, "unauthorised"), (403, "unauthorised"), (404, "unknown_model")])
def test_a_mistake_in_the_settings_stops_the_run(
    status: int, outcome: str, archive: Archive, caller_for: Callable[..., Caller], serve: Serve
) -> None:
    caller = caller_for(serve(script_of(Fail(status, "no such thing"))))
    with pytest.raises(AgentsUnusable, match="check the model's name, its server and its key"):
        caller.ask(question())
    assert outcomes(archive) == [outcome]


SAID: tuple[tuple[int, str, str, str], ...] = (
    # status, what a server has said, the outcome, and what it wants otherwise
    (400, "The provided JSON schema contains features not supported by xgrammar.", "unsupported_output", ""),  # vLLM
    (400, "Failed to convert JSON schema to GBNF grammar", "unsupported_output", ""),  # llama.cpp
    (500, "tools param requires --jinja flag", "unsupported_output", ""),  # llama.cpp
    (400, '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set', "unsupported_output", ""),
    (400, "registry.ollama.ai/library/gemma2 does not support tools", "unsupported_output", ""),  # Ollama
    (400, "'response_format.type' must be 'json_schema' or 'text'", "unsupported_output", ""),  # LM Studio
    (400, "litellm.UnsupportedParamsError: sagemaker does not support parameters: ['response_format']", "unsupported_output", ""),
    (404, "No endpoints found that support tool use.", "unsupported_output", ""),  # OpenRouter
    (400, "This response_format type is unavailable now", "unsupported_output", ""),  # DeepSeek
    (400, "deepseek-reasoner does not support Function Calling", "unsupported_output", ""),
    (400, "Failed to generate JSON. Please adjust your prompt. json_validate_failed", "unsupported_output", ""),  # Groq
    (400, "Unknown name \"additionalProperties\" at 'tools[0].parameters': Cannot find field.", "unsupported_output", ""),  # Gemini
    (400, "response_format: Extra inputs are not permitted", "unsupported_output", ""),  # Anthropic
    (422, "[{'type': 'extra_forbidden', 'loc': ['body', 'max_completion_tokens'], 'msg': 'Extra inputs are not permitted'}]",
     "unsupported_output", "limit"),  # Mistral, vLLM
    (400, "Unrecognized request argument supplied: max_completion_tokens", "unsupported_output", "limit"),  # Azure
    (400, "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
     "unsupported_output", "limit"),  # OpenAI
    (400, "max_tokens is too large: 8192. This model supports at most 4096 completion tokens, whereas you provided 8192.",
     "unsupported_output", "output"),  # OpenAI
    (400, "'max_tokens' or 'max_completion_tokens' is too large: 8192. This model's maximum context length is 4096 tokens and your "
     "request has 1000 input tokens (8192 > 4096 - 1000).", "unsupported_output", "output"),  # vLLM
    (400, "Invalid max_tokens value, the valid range of max_tokens is [1, 4096]", "unsupported_output", "output"),  # DeepSeek
    (400, "max_tokens: 8192 > 4096, which is the maximum allowed number of output tokens", "unsupported_output", "output"),
    (400, "System role not supported", "unsupported_output", "system"),  # Gemma's template
    (400, "Conversation roles must alternate user/assistant/user/assistant/...", "unsupported_output", "system"),  # Mistral's
    (400, "Developer instruction is not enabled for models/gemma-3-27b-it", "unsupported_output", "system"),  # Gemini
    (400, "Unsupported value: 'messages[0].role' does not support 'system' with this model.", "unsupported_output", "system"),
    (400, "Unsupported value: 'temperature' does not support 0.2 with this model. Only the default (1) value is supported.",
     "unsupported_output", "temperature"),
    (422, "[{'loc': ['body', 'tools', 0, 'function', 'strict'], 'msg': 'Extra inputs are not permitted'}]", "unsupported_output",
     "strict"),
    (400, "maximum context length is 4096 tokens. However, your messages resulted in 5000 tokens.", "context_overflow", ""),
    (400, "the request exceeds the available context size. try increasing the context size", "context_overflow", ""),  # llama.cpp
    (400, "The input token count (40000) exceeds the maximum number of tokens allowed (32768).", "context_overflow", ""),  # Gemini
    (413, "Request too large for model: Limit 6000, Requested 9000", "context_overflow", ""),  # Groq
    (402, "Insufficient Balance", "quota", ""),  # DeepSeek
    (402, "This request requires more credits, or fewer max_tokens.", "quota", ""),  # OpenRouter
    (400, "Your credit balance is too low to access the Anthropic API.", "quota", ""),
    (429, "You exceeded your current quota, please check your plan and billing details.", "quota", ""),  # OpenAI
    (429, "You exceeded your current quota. Please retry in 34.07s.", "rate_limited", ""),  # Gemini, per minute
    (403, "Key limit exceeded (total limit).", "quota", ""),  # OpenRouter
    (403, "Your chosen model requires moderation and your input was flagged", "refused", ""),  # OpenRouter
    (400, "The response was filtered due to the prompt triggering Azure OpenAI's content management policy.", "refused", ""),
    (400, "API key not valid. Please pass a valid API key.", "unauthorised", ""),  # Gemini
    (401, "invalid x-api-key", "unauthorised", ""),
    (400, "Model Not Exist", "unknown_model", ""),  # DeepSeek
    (400, "mistral-huge is not a valid model ID", "unknown_model", ""),  # OpenRouter
    (404, "The model `grammar-7b` does not exist.", "unknown_model", ""),  # vLLM
    (404, "Not Found", "unknown_model", ""),  # no /v1
    (400, "temperature must be between 0 and 2", "bad_request", ""),
    (503, "Loading model", "unavailable", ""),  # llama.cpp
)  # fmt: skip


@pytest.mark.parametrize(("status", "said", "outcome", "odd"), SAID, ids=[said[1][:40] for said in SAID])
def test_what_servers_say(status: int, said: str, outcome: str, odd: str) -> None:
    assert outcome_of(status, f"BadRequestError Error code: {status} - {{'error': {{'message': {said!r}}}}}") == outcome
    if outcome == "unsupported_output":
        assert quirk(said) == odd


def test_every_row_of_the_table_has_an_example() -> None:
    text = "\n".join(said for _, said, _, _ in SAID) + "\nthe server streams its answer"
    assert [saying.words for saying in SAYINGS if not any(saying.fits(None, line) for line in text.splitlines())] == []
    assert {saying.quirk for saying in SAYINGS} == set(QUIRKS)


def test_the_room_that_a_server_grants_is_read() -> None:
    granted = [room_for_output(said) for _, said, _, odd in SAID if odd == "output"]
    assert granted == [4096, 4096 - 1000, 4096, 4096]
    assert room_for_output("max_tokens is too large") is None


@pytest.mark.parametrize(
    ("header", "said", "seconds"),
    [
        ("12", "", 12.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", "", 0.0),  # a date that has passed
        ("", "Please try again in 1m2.5s.", 62.5),  # OpenAI, Groq
        ("", "'retryDelay': '34s'", 34.0),  # Gemini
        ("", "Please retry in 350ms", 0.35),
        ("", "Loading model", 10.0),  # llama.cpp
        ("", "no", None),
    ],
)
def test_the_pause_that_a_server_asks_for_is_read(header: str, said: str, seconds: float | None) -> None:
    class Refusal(Exception):
        status_code = 429

    error = Refusal(said)
    error.response = type("Response", (), {"headers": {"retry-after": header} if header else {}, "status_code": 429})()
    assert classify(error)[1] == (seconds if seconds is None else pytest.approx(seconds))


def unless(wrong: Callable[[dict[str, Any]], Any], fault: Fail) -> Callable[[dict[str, Any]], Any]:
    """A server that refuses requests in which something is, and answers the others."""
    return lambda body: fault if wrong(body) else GOOD


TOOL = {"structured_output": "function_calling"}
WANTING: dict[str, tuple[Callable[[dict[str, Any]], Any], dict[str, Any]]] = {
    "system": (unless(lambda body: body["messages"][0]["role"] == "system", Fail(400, "System role not supported")), {}),
    "limit": (unless(lambda body: "max_tokens" in body, Fail(422, "max_tokens: Extra inputs are not permitted")), {}),
    "output": (
        unless(lambda body: body["max_tokens"] > 3000, Fail(400, "max_tokens is too large: at most 3000 completion tokens")), {},
    ),
    "temperature": (
        unless(lambda body: "temperature" in body, Fail(400, "'temperature' does not support 0.2 with this model")),
        {"temperature": 0.2},
    ),
    "strict": (
        unless(lambda body: "strict" in body["tools"][0]["function"], Fail(422, "tools.0.function.strict: extra_forbidden")),
        TOOL,
    ),
    "stream": (lambda body: GOOD if body.get("stream") else Raw("data: [DONE]", "text/event-stream"), {}),
    "": (unless(lambda body: "response_format" in body, Fail(400, "grammar error")), {}),
}  # fmt: skip
"""For every quirk a server that has it, and settings under which it shows."""


@pytest.mark.parametrize("odd", QUIRKS, ids=[name or "another method" for name in QUIRKS])
def test_a_server_that_wants_something_otherwise_is_asked_so_once(
    odd: str, archive: Archive, caller_for: Callable[..., Caller], serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    script, settings = WANTING[odd]
    server = serve(script)
    answer = caller_for(server, **settings).ask(question())
    assert answer.value == Colour(**GOOD)
    assert outcomes(archive) == ["unsupported_output", "ok"]
    assert "Answer." in prompt_of(server.requests[-1])  # whatever is left out, the system part is not
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []  # it is no failure
    again = caller_for(server, **settings).ask(question())  # a resumed run asks once more whether it is still so
    assert (again.call_id, len(server.requests)) == (answer.call_id, 3)


def message(**fields: Any) -> Raw:
    """A completion with these fields of its message."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": None, **fields}}
    return Raw({"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]})


TEXT = json.dumps(GOOD)
FORMS: dict[str, tuple[Any, str | None]] = {
    # what comes with status 200; words of the failure, None where it is a good answer
    "in the field for reasoning": (message(reasoning_content=TEXT), None),
    "as a list of parts": (message(content=[{"type": "thinking", "thinking": []}, {"type": "text", "text": TEXT}]), None),
    "arguments as an object": (
        message(tool_calls=[{"id": "1", "type": "function", "function": {"name": "Colour", "arguments": GOOD}}]), None,
    ),
    "arguments encoded twice": (
        message(tool_calls=[{"id": "1", "type": "function", "function": {"name": "Colour", "arguments": json.dumps(TEXT)}}]), None,
    ),
    "a call as text": (Say(f'<tool_call>{{"name": "Colour", "arguments": {TEXT}}}</tool_call>'), None),
    "in the form of the schema": (Say(json.dumps({"type": "object", "properties": GOOD})), None),
    "after a thought that began in the prompt": (Say(f"First {{blue}}? No.\n</think>\n{TEXT}"), None),
    "after another one's thought": (Say(f"[THINK]{{blue}}[/THINK]{TEXT}"), None),
    "after prose with braces": (Say(f"Of {{red, green}} I take:\n{TEXT}\nAs asked {{sic}}."), None),
    "in a fence with line ends of Windows": (Say(f"Here:\r\n```JSON\r\n{TEXT}\r\n```\r\nDone."), None),
    "in a fence of tildes": (Say(f"~~~json\n{TEXT}\n~~~"), None),
    "with a comma at the end": (Say('{"name": "green", "red": 0,}'), None),
    "an error document": (Raw({"error": {"message": "Provider returned error", "code": 502}}), "Provider returned error"),
    "an error as text": (Raw({"error": "The model has crashed without additional information."}), "has crashed"),
    "an error in a choice": (
        Raw({"choices": [{"error": {"message": "upstream gone"}, "finish_reason": "error", "message": {"content": ""}}]}),
        "upstream gone",
    ),
    "no choice": (Raw({"choices": []}), "has no choice in it"),
    "a page": (b"<html><h1>Open WebUI</h1></html>", r"web page in place of an answer \(Open WebUI\); is base_url"),
    "given up": (Say(TEXT, finish="insufficient_system_resource"), "insufficient_system_resource"),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_answers(form: str, archive: Archive, caller_for: Callable[..., Caller], serve: Serve) -> None:
    answer, words = FORMS[form]
    caller = caller_for(serve(script_of(answer)), retries=0)
    if words is None:
        assert caller.ask(question()).value == Colour(**GOOD)
        assert outcomes(archive) == ["ok"]
        return
    with pytest.raises(CallFailed, match=words):
        caller.ask(question())
    assert len(outcomes(archive)) == 1


def test_tex_in_a_string_is_read(caller_for: Callable[..., Caller], serve: Serve) -> None:
    server = serve(script_of(Say('{"name": "\\alpha_t \\sum \\n", "red": 0}')))
    assert caller_for(server).ask(question()).value.name == "\\alpha_t \\sum \n"


@pytest.mark.parametrize("given", ["sk-abcdefgh12345678\r\n", '"sk-abcdefgh12345678"', "\ufeffsk-abcdefgh12345678 "])
def test_a_key_is_sent_without_what_its_file_has_around_it(
    given: str, caller_for: Callable[..., Caller], serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", given)
    server = serve(script_of(GOOD))
    caller_for(server).ask(question())
    assert server.keys == ["sk-abcdefgh12345678"]


def test_every_outcome_has_a_rule() -> None:
    assert set(RULES) == set(Outcome)


def test_the_next_model_is_asked_where_the_first_one_fails(
    archive: Archive, caller_for: Callable[..., Caller], serve: Serve
) -> None:
    server = serve(lambda body: GOOD if body["model"] == "second" else Say(None, refusal="no"))
    answer = caller_for(server, fallbacks=["openai:second"]).ask(question())
    assert answer.model == "openai:second"
    assert outcomes(archive) == ["refused", "ok"]


def test_a_role_has_its_own_model_temperature_and_limits(caller_for: Callable[..., Caller], serve: Serve) -> None:
    server = serve(script_of(GOOD))
    roles = {"reflector": {"model": "openai:small", "temperature": 0.5, "max_output_tokens": 77}}
    caller = caller_for(server, roles=roles)
    caller.ask(question())
    caller.ask(question(role="reflector"))
    first, second = server.requests
    assert (first["model"], first.get("temperature"), first["max_tokens"]) == ("test", None, 8192)
    assert (second["model"], second["temperature"], second["max_tokens"]) == ("small", 0.5, 77)


def test_the_schema_is_strict_and_the_fault_is_told(caller_for: Callable[..., Caller], serve: Serve) -> None:
    server = serve(script_of({"name": ""}, GOOD))
    caller_for(server).ask(question())
    asked = server.requests[0]["response_format"]["json_schema"]
    assert asked["strict"] is True
    assert asked["schema"]["required"] == ["name", "red"]
    assert asked["schema"]["additionalProperties"] is False
    again = server.requests[1]["messages"][-1]["content"]
    assert "red: Field required" in again
    assert '<data name="your_previous_answer">\n{"name": ""}\n</data>' in again


def test_the_second_complaint_comes_with_a_tool(caller_for: Callable[..., Caller], serve: Serve) -> None:
    server = serve(script_of(Say("no"), Say("no"), GOOD))
    caller_for(server).ask(question())
    assert ["tools" in body for body in server.requests] == [False, False, True]


def with_tools(number: int = 0) -> Question[ImplementationForm]:
    return question(kind=ImplementationForm, scope=f"gen-01/slot-{number}").with_tools(offered())


MALFORMED = {
    "arguments that are no JSON": (Calls((("run_gate", '{"source": "x'),)), ["its arguments are not a JSON object"]),
    "arguments that nest too deeply": (Calls((("run_gate", "[" * 100_000),)), ["its arguments are not a JSON object"]),
    "no arguments": (Calls((("run_gate", ""),)), ["it takes source, a text; the call gave none"]),
    "no name": (Calls((("", "{}"),)), ["there is no such tool"]),
}


@pytest.mark.parametrize("case", [*TOOL_CASES, *MALFORMED])
def test_whatever_a_model_calls_is_told_in_the_next_question(
    case: str, archive: Archive, caller_for: Callable[..., Caller], serve: Serve
) -> None:
    calls, told = {**TOOL_CASES, **MALFORMED}[case]
    server = serve(script_of(calls))
    form = caller_for(server).ask(with_tools()).value
    shown, at = results(form.tries, form.source, tools_for("X")).lower(), 0
    for sign in told:
        at = shown.find(sign.lower(), at)
        assert at >= 0, (case, sign)
        at += len(sign)
    (row,) = archive.rows("calls")
    assert (row["outcome"], row["method"]) == ("ok", "tools")
    kept = json.loads(row["answer"])
    assert [name for name, _ in kept["calls"]] == [name for name, _ in calls.calls]  # the record has all of them
    assert kept["text"] == calls.text
    asked = len(server.requests)
    assert caller_for(server).ask(with_tools()).value == form  # and answers again from it
    assert len(server.requests) == asked == 1


@pytest.mark.parametrize("tool", ["run_gate", "probe_numbers"])
def test_a_draft_that_no_file_can_hold_is_told_so(tool: str, caller_for: Callable[..., Caller], serve: Serve) -> None:
    """Half of a surrogate pair, which JSON may spell."""
    server = serve(script_of(Calls(((tool, '{"source": "x = 1  # \\ud83d"}'),))))
    form = caller_for(server).ask(with_tools()).value
    by_turns = [TryForm(tool=tool)]  # type: ignore[arg-type]
    for shown in (results(form.tries, "", tools_for("X")), results(by_turns, "x = 1  # \ud83d", tools_for("X"))):
        assert "half of a surrogate pair at character 9" in shown


def test_an_answer_that_calls_no_tool_is_final(caller_for: Callable[..., Caller], serve: Serve) -> None:
    server = serve(script_of(implementation(1.0), Say(json.dumps(implementation(2.0)))))
    bounds = [caller_for(server).ask(with_tools(number)).value.source for number in range(2)]
    assert ["bound: float = 1.0" in bounds[0], "bound: float = 2.0" in bounds[1]] == [True, True]
    (form, *tools) = [tool["function"] for tool in server.requests[0]["tools"]]
    assert form["name"] == "ImplementationForm"
    assert "tries" not in form["parameters"]["properties"]
    assert [tool["name"] for tool in tools] == ["run_gate", "probe_numbers", "read_reference"]
    assert tools[0]["parameters"]["required"] == ["source"]


@pytest.mark.parametrize("odd", [Say("Let me think."), Calls((("run_gate", '["no object"]'),))])
def test_what_neither_calls_nor_answers_is_asked_for_without_tools(
    odd: Any, archive: Archive, caller_for: Callable[..., Caller], serve: Serve
) -> None:
    server = serve(script_of(odd, implementation(1.0)))
    assert caller_for(server).ask(with_tools()).value.tries == []
    assert [("tools" in body, "response_format" in body) for body in server.requests] == [(True, False), (False, True)]
    assert outcomes(archive) == ["invalid_answer", "ok"]


@pytest.mark.parametrize(
    ("refusal", "outcome"),
    [
        (Fail(400, '"auto" tool choice requires --enable-auto-tool-choice to be set'), "unsupported_output"),
        (Fail(404, "No endpoints found that support tool use"), "unsupported_output"),
        (Fail(400, "it is not what it should be"), "bad_request"),  # not every server has a word for it
    ],
)
def test_a_server_that_refuses_tools_is_asked_by_turns_and_that_is_remembered(
    refusal: Fail, outcome: str, archive: Archive, caller_for: Callable[..., Caller], serve: Serve, tmp_path: Path
) -> None:
    server = serve(refusing_tools(refusal))
    caller = caller_for(server)
    for number in range(2):
        assert [one.tool for one in caller.ask(with_tools(number)).value.tries] == ["run_gate"]
    assert outcomes(archive) == [outcome, "ok", "ok"]
    caller_for(server).ask(with_tools(2))  # the run goes on in another process
    assert [row["method"] for row in archive.rows("calls")].count("tools") == 1
    server.script = lambda body: Fail(500)
    again = Caller(Archive(tmp_path / "again").initialise(), caller.settings, replay=archive)
    for number in (1, 0, 2):  # in another order than recorded
        assert [one.tool for one in again.ask(with_tools(number)).value.tries] == ["run_gate"]


def test_a_quirk_of_another_kind_is_no_refusal_of_tools(
    archive: Archive, caller_for: Callable[..., Caller], serve: Serve
) -> None:
    server = serve(script_of(Fail(400, "temperature is not supported with this model"), implementation(1.0)))
    caller = caller_for(server, temperature=0.5)
    caller.ask(with_tools(0))
    caller.ask(with_tools(1))
    assert ["tools" in body for body in server.requests] == [True] * 3
    assert {row["method"] for row in archive.rows("calls")} == {"tools"}


def test_who_names_a_kind_of_output_gets_no_tools(caller_for: Callable[..., Caller], serve: Serve) -> None:
    server = serve(script_of(implementation(1.0)))
    caller_for(server, structured_output="json_schema").ask(with_tools())
    assert "tools" not in server.requests[0]


def test_a_context_that_does_not_fit_its_budget_is_no_end_of_the_run(
    archive: Archive, caller_for: Callable[..., Caller], serve: Serve
) -> None:
    """Half of the budget is too little for what the role needs: the next model is asked with all of it."""

    def build(budget: int) -> tuple[str, str]:
        if budget < 2000:
            raise ContextTooSmallError(f"parent_code needs about 1900 tokens and {budget} are left")
        return "s", "u"

    too_long = Fail(400, "This model's maximum context length is 4096 tokens", "context_length_exceeded")
    server = serve(script_of(too_long, GOOD))
    asked = dataclasses.replace(question(), build=build)
    assert caller_for(server, context_tokens=3000, fallbacks=["openai:other"]).ask(asked).model == "openai:other"
    with pytest.raises(CallFailed, match="openai:test: parent_code needs") as failed:
        caller_for(server, context_tokens=1500).ask(asked)
    assert failed.value.outcome is Outcome.OVERFLOW
    assert outcomes(archive) == ["context_overflow", "ok"]


def test_a_drawn_model_without_a_price_leaves_the_roles_own(
    archive: Archive, caller_for: Callable[..., Caller], serve: Serve
) -> None:
    server = serve(script_of(GOOD))
    prices = {"openai:test": {"input": 1.0, "output": 1.0}}
    caller = caller_for(server, prices=prices, caps={"run": {"dollars": 5}})
    assert caller.ask(dataclasses.replace(question(), model="openai:local")).model == "openai:test"
    assert outcomes(archive) == ["budget", "ok"]


def test_overflow_halves_the_context_and_truncation_doubles_the_output(
    caller_for: Callable[..., Caller], serve: Serve
) -> None:
    server = serve(script_of(Fail(400, "maximum context length"), Say('{"n', finish="length"), GOOD))
    caller_for(server, context_tokens=1000, max_output_tokens=50).ask(question())
    sizes = [body["messages"][-1]["content"].count("x") for body in server.requests]
    assert sizes == [1000, 500, 500]
    assert [body["max_tokens"] for body in server.requests] == [50, 50, 100]


def test_what_was_answered_is_never_asked_again(
    archive: Archive, caller_for: Callable[..., Caller], serve: Serve
) -> None:
    """A process killed between the answer and its use asks again: the ledger answers, also for the faulty first reply."""
    server = serve(script_of(Fail(500), Say("no"), GOOD))
    first = caller_for(server).ask(question())
    second = caller_for(server).ask(question())
    assert (first.value, first.call_id) == (second.value, second.call_id)
    assert len(server.requests) == 3
    caller_for(server).ask(question(scope="gen-01/slot-1"))  # another place is another question
    assert len(server.requests) == 4


@pytest.mark.parametrize("answer", [b"<html>please log in</html>", NoChoices()])
def test_what_came_without_a_reply_is_not_read_again_as_one(
    answer: Any, archive: Archive, caller_for: Callable[..., Caller], serve: Serve
) -> None:
    """The outcome is one that has a reply, and the row has none: a resumed run ended with a TypeError."""
    server = serve(script_of(answer))
    for _ in range(2):
        with pytest.raises(CallFailed) as failed:
            caller_for(server).ask(question())
        assert failed.value.outcome == "empty_answer"
    assert len(server.requests) == 4  # nothing was answered, so a resumed run asks again


DEEP = "[" * 20_000 + "]" * 20_000


@pytest.mark.slow
@pytest.mark.parametrize(("method", "streaming"), [("json_schema", False), ("function_calling", True)])
@pytest.mark.parametrize(
    "text",
    [DEEP, '{"name": ' + DEEP + ', "red": 0}', '{"a":' * 10_000, "<think>" * 10_000, "<think>" * 10_000 + json.dumps(GOOD),
     '{"name": "' + 'a\\"' * 10_000, "{" * 20_000, "```\n" * 10_000],
    ids=["lists", "a value", "objects", "thoughts", "thoughts and an answer", "a long start", "braces", "fences"],
)  # fmt: skip
def test_what_no_parser_should_be_given_is_an_invalid_answer(
    text: str, streaming: bool, method: str, archive: Archive, caller_for: Callable[..., Caller], serve: Serve
) -> None:
    server = serve(lambda body: Say(text, tool=method == "function_calling"))
    caller = caller_for(server, structured_output=method, streaming=streaming, timeout_seconds=60)
    for _ in range(2):  # from the server, then from the ledger
        if text.endswith(json.dumps(GOOD)):
            assert caller.ask(question()).value == Colour(**GOOD)
            continue
        with pytest.raises(CallFailed) as failed:
            caller.ask(question())
        assert failed.value.outcome == "invalid_answer"
    expected = ["ok"] if text.endswith(json.dumps(GOOD)) else ["invalid_answer"] * 3
    assert outcomes(archive) == expected
    assert len(server.requests) == len(expected)


def test_a_reply_that_cannot_be_read_is_never_good(
    archive: Archive, caller_for: Callable[..., Caller], serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the reader raises, the row must not say "ok": a later run would take the answer for a usable one."""

    def fails(*_: object) -> None:
        raise RuntimeError("a bug of the reader")

    monkeypatch.setattr("poise_core.agents.llm.call.read_answer", fails)
    with pytest.raises(RuntimeError):
        caller_for(serve(script_of(GOOD))).ask(question())
    assert outcomes(archive) == ["invalid_answer"]


def test_the_fault_of_a_server_is_one_line_for_log_and_ledger(
    archive: Archive, caller_for: Callable[..., Caller], serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    said = "no\n2026-11-27 INFO poise all is well \x1b[2J\u202e\x9b31m"
    with pytest.raises(CallFailed):
        caller_for(serve(script_of(Fail(400, said)))).ask(question(scope="gen-01\n/slot-0"))
    (line,) = [record.getMessage() for record in caplog.records if "bad_request" in record.getMessage()]
    (row,) = archive.rows("calls")
    for text in (line, row["message"]):
        assert text.isprintable()
        assert "all is well" in text


def test_a_replay_answers_from_the_recording_alone(
    tmp_path: Path, archive: Archive, caller_for: Callable[..., Caller], serve: Serve
) -> None:
    server = serve(script_of(Fail(500), Say("no"), GOOD))
    caller_for(server).ask(question())
    for kind in ("refused", "slow"):
        server.script = script_of(Say(None, refusal="no") if kind == "refused" else Fail(503))
        with pytest.raises(CallFailed):
            caller_for(server).ask(question(scope=kind))
    asked = len(server.requests)
    copy = Archive(tmp_path / "copy").initialise()
    settings = AgentSettings(model="openai:test", base_url=server.base_url, retries=1)
    replaying = Caller(copy, settings, replay=archive)
    assert replaying.ask(question()).value == Colour(**GOOD)
    for kind, outcome in (("refused", "refused"), ("slow", "unavailable")):
        with pytest.raises(CallFailed) as failed:
            replaying.ask(question(scope=kind))
        assert failed.value.outcome == outcome
    keys = ["row_key", "content_digest"]
    assert copy.read("calls", keys).to_pylist() == archive.read("calls", keys).to_pylist()
    with pytest.raises(AgentsUnusable, match="the recording holds no answer"):
        replaying.ask(question(scope="elsewhere"))
    assert len(server.requests) == asked


@pytest.mark.parametrize(
    ("cap", "named"),
    [
        ({"calls": 1}, "calls"),
        ({"tokens": 12_000}, "tokens"),
        ({"dollars": 0.04}, "dollars"),
        ({"seconds": 9}, "seconds"),
    ],
)
@pytest.mark.parametrize("period", ["run", "generation"])
def test_a_cap_stands_before_the_call(
    cap: dict[str, float], named: str, period: str, archive: Archive, caller_for: Callable[..., Caller], serve: Serve
) -> None:
    server = serve(script_of(GOOD))
    prices = {
        "openai:test": {"input": 1.0, "output": 4.0}
    }  # at most 8192 * 4 / 1e6 = 0.033 dollars per call, for sure 0.0008
    caller = caller_for(server, caps={period: cap}, prices=prices)
    caller.ask(question())
    caller.ledger._count(
        {"generation": 1, "outcome": "ok", "input_tokens": 3000, "output_tokens": 0, "dollars": 0.01, "seconds": 9.0}
    )
    with pytest.raises(CallFailed, match=f"agents.caps.{period}.{named}") as failed:
        caller.ask(question(scope="gen-01/slot-1"))
    assert failed.value.outcome == "budget"
    assert len(server.requests) == 1
    assert outcomes(archive) == ["ok", "budget"]
    if period == "generation":
        caller.ask(question(scope="gen-02/slot-0", generation=2))


def test_calls_side_by_side_cannot_pass_a_cap_together(archive: Archive) -> None:
    settings = AgentSettings(model="openai:test", caps={"run": {"calls": 1}})
    ledger = Caller(archive, settings).ledger
    with (
        ledger.reserved("openai:test", 1, 10, 10),
        pytest.raises(CallFailed),
        ledger.reserved("openai:test", 1, 10, 10),
    ):
        pass
    with ledger.reserved("openai:test", 1, 10, 10):
        pass


def test_the_ledger_counts_tokens_cost_and_estimates(
    archive: Archive, caller_for: Callable[..., Caller], serve: Serve
) -> None:
    prices = {"openai:test": {"input": 2.0, "output": 8.0}}
    server = serve(script_of(GOOD, Say(json.dumps(GOOD), usage=False)))
    caller = caller_for(server, prices=prices)
    caller.ask(question())
    caller.ask(question(scope="other"))
    first, second = sorted(archive.rows("calls"), key=lambda row: row["created_at"])
    # the server counts a token per four characters of the prompt, and 100 for the answer
    sent = len("Answer." + "\n" + "Which colour? " + "x" * 4000) // 4
    assert (first["input_tokens"], first["output_tokens"], first["estimated"]) == (sent, 100, False)
    assert first["dollars"] == pytest.approx((sent * 2.0 + 100 * 8.0) / 1e6)
    assert (first["prompt"], first["model"], first["role"]) == ("proposer.md v1 @0", "openai:test", "proposer")
    assert second["estimated"]
    assert second["input_tokens"] >= sent
    assert caller.ledger.spent().calls == 2


def test_the_pace_is_kept(caller_for: Callable[..., Caller], serve: Serve) -> None:
    caller = caller_for(serve(script_of(GOOD)), requests_per_minute=200)
    started = time.monotonic()
    for number in range(4):
        caller.ask(question(scope=f"q{number}"))
    assert time.monotonic() - started > 3 * 0.3 - 0.05


def test_a_stop_ends_the_wait_at_once(archive: Archive, caller_for: Callable[..., Caller], serve: Serve) -> None:
    begun = time.monotonic()
    caller = caller_for(serve(script_of(Hang())), should_stop=lambda: time.monotonic() - begun > 0.5)
    with pytest.raises(Cancelled):
        caller.ask(question())
    assert time.monotonic() - begun < 2
    assert not archive.rows("calls")


def test_a_client_that_will_not_be_cancelled_is_left_behind() -> None:
    async def stubborn() -> None:
        end = time.monotonic() + 4
        while time.monotonic() < end:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.1)

    began = time.monotonic()
    with pytest.raises(TimeoutError):
        run_bounded(stubborn, 0.2, lambda: False)
    assert time.monotonic() - began < 2.5


@pytest.mark.slow
def test_nobody_at_the_port(archive: Archive, caller_for: Callable[..., Caller]) -> None:
    server = LoopbackServer(script_of(GOOD))
    server.close()
    with pytest.raises(CallFailed) as failed:
        caller_for(server).ask(question())
    assert failed.value.outcome == "unavailable"


def test_a_server_that_is_not_there_is_named_at_the_start(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    gone = LoopbackServer(script_of(GOOD))
    gone.close()
    roles = {"reflector": {"base_url": serve(script_of(GOOD)).base_url}}
    say_unanswering(AgentSettings.model_validate({"model": "openai:test", "base_url": gone.base_url, "roles": roles}))
    assert [record.getMessage() for record in caplog.records] == [
        f"the server at {gone.base_url} does not answer (Connection refused)"
    ]


@pytest.mark.parametrize(
    ("model", "variables", "said"),
    [
        ("openai:x", {}, "openai:x needs a key: set OPENAI_API_KEY"),
        ("anthropic:x", {}, "set ANTHROPIC_API_KEY"),
        ("google_genai:x", {}, "set GOOGLE_API_KEY"),
        ("openai:x", {"OPENAI_API_KEY": "sk-one two"}, "the key in OPENAI_API_KEY holds a space"),
        ("google_genai:x", {"GEMINI_API_KEY": "AIza\nx"}, "the key in GEMINI_API_KEY holds"),
    ],
)
def test_a_key_that_cannot_work_is_named_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch, model: str, variables: dict[str, str], said: str
) -> None:
    for name in ("GOOGLE_API_KEY", "GEMINI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(AgentSettingsError, match=said):
        check_agents(AgentSettings(model=model))
    check_agents(AgentSettings(model=model), asks=False)  # a replay asks nobody


def test_a_missing_key_is_named(archive: Archive) -> None:
    settings = AgentSettings(model="openai:test")
    with pytest.raises(AgentsUnusable, match="OPENAI_API_KEY"):
        Caller(archive, settings).ask(question())


def test_a_missing_package_is_named(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "langchain_anthropic", None)  # as if it were not installed
    base._get_chat_model_creator.cache_clear()  # another test of this process may have used it
    with pytest.raises(AgentsUnusable, match="pip install langchain-anthropic"):
        Caller(archive, AgentSettings(model="anthropic:some")).ask(question())


def test_secrets_leave_no_trace(
    archive: Archive,
    caller_for: Callable[..., Caller],
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    planted = "planted-9f8e7d6c5b4a"
    monkeypatch.setenv("OPENAI_API_KEY", planted)
    monkeypatch.setenv("MY_GATEWAY_KEY", f"{planted}-too")
    server = serve(script_of(Fail(500, f"key {planted}-too is broken"), {"name": planted, "red": 1}))
    answer: Answer[Colour] = caller_for(server, api_key_env="MY_GATEWAY_KEY").ask(question())
    assert server.keys == [f"{planted}-too"] * 2  # it was really used
    assert answer.value.name == "[secret]"
    server.script = script_of(Fail(401, f"Incorrect API key provided: {planted}"))
    with pytest.raises(AgentsUnusable) as failed:
        caller_for(server).ask(question(scope="other"))
    chain: list[BaseException | None] = [failed.value]
    while chain[-1] is not None:
        chain.append(chain[-1].__cause__ or (None if chain[-1].__suppress_context__ else chain[-1].__context__))
    told = " ".join(map(str, chain)) + caplog.text + json.dumps(archive.rows("calls"), default=str)
    assert planted not in told
    assert "[secret]" in told


def test_an_answer_that_came_while_the_disk_was_full_is_not_paid_again(
    archive: Archive, serve: Serve, caller_for: Callable[..., Caller], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(script_of(GOOD, {"name": "red", "red": 255}))
    caller = caller_for(server)

    def full(*_: Any, **__: Any) -> int:
        raise ArchiveError("No space left on device")

    for _ in range(3):  # as often as a stage is retried
        with monkeypatch.context() as patch:
            patch.setattr(Archive, "append", full)
            with pytest.raises(ArchiveError, match="No space left"):
                caller.ask(question())
    assert caller.ask(question()).value == Colour(**GOOD)
    assert len(server.requests) == 1
    assert outcomes(archive) == ["ok"]
    assert caller.ledger.spent().calls == 1
