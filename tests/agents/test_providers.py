"""Each provider's real client against a server of its own protocol: structured output, tokens, and what every error means."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from call_samples import GOOD, TOOL_CASES, Colour, outcomes, question, refusing_tools, script_of
from laboratory import Laboratory, evolve, make_preset, open_evolution
from llm_server import Fail, Hang, Say
from provider_servers import DIALECTS, INPUT_TOKENS, OUTPUT_TOKENS, ProviderServer
from script import answer_to, implementation

from poise_core.agents.llm.call import Caller
from poise_core.agents.llm.faults import AgentsUnusable, CallFailed
from poise_core.agents.llm.forms import ImplementationForm
from poise_core.agents.llm.tools import offered, results, tools_for
from poise_core.archive import Archive
from poise_core.config import Preset
from poise_core.config.agents import AgentSettings

Serve = Callable[[Any], ProviderServer]


@pytest.fixture(params=DIALECTS)
def serve(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """A server of one provider, to which the environment leads that provider's client."""
    dialect = DIALECTS[request.param]
    pytest.importorskip(dialect.package)
    started: list[ProviderServer] = []

    def start(script: Any) -> ProviderServer:
        server = ProviderServer(dialect, script)
        started.append(server)
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        return server

    yield start
    for server in started:
        server.close()


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "archive").initialise()


@pytest.fixture
def caller_for(archive: Archive) -> Callable[..., Caller]:
    def make(server: ProviderServer, **settings: Any) -> Caller:
        given = {"model": f"{server.dialect.provider}:test-model", "timeout_seconds": 20, "retries": 1, **settings}
        return Caller(archive, AgentSettings.model_validate(given), backoff_seconds=0.01)

    return make


@pytest.mark.slow
@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output_tokens_and_key(
    method: str, archive: Archive, caller_for: Callable[..., Caller], serve: Serve
) -> None:
    server = serve(script_of(GOOD))
    answer = caller_for(server, structured_output=method, temperature=0.5, max_output_tokens=321).ask(question())
    assert answer.value == Colour(**GOOD)
    (row,) = archive.rows("calls")
    assert (row["outcome"], row["method"], row["model"]) == ("ok", method, f"{server.dialect.provider}:test-model")
    assert (row["input_tokens"], row["output_tokens"], row["estimated"]) == (INPUT_TOKENS, OUTPUT_TOKENS, False)
    (body,) = server.requests
    assert set(server.dialect.schema(body)["properties"]) == {"name", "red"}
    prompt = server.dialect.prompt(body)
    assert "Answer." in prompt
    assert "Which colour?" in prompt
    assert "321" in json.dumps(body)  # the limit of the output, whatever it is called there
    assert "0.5" in json.dumps(body)
    if server.dialect.key_header:
        assert server.keys == [server.environment[next(name for name in server.environment if "KEY" in name)]]


CASES: dict[str, tuple[list[Any], list[str], str | None]] = {
    # answers, what the ledger holds, how it ends (None: with the good answer)
    "429 with Retry-After": (
        [Fail(429, "too many", "rate_limit_error", {"Retry-After": "0.2"}), GOOD], ["rate_limited", "ok"], None,
    ),
    "429 for ever": ([Fail(429, "too many", "rate_limit_error")], ["rate_limited"] * 2, "rate_limited"),
    "500, then good": ([Fail(500, "internal", "api_error"), GOOD], ["unavailable", "ok"], None),
    "500 for ever": ([Fail(500, "internal", "api_error")], ["unavailable"] * 2, "unavailable"),
    "malformed, then good": ([Say('{"name": "gre'), GOOD], ["invalid_answer", "ok"], None),
    "truncated once": ([Say('{"name": "gr', finish="length"), GOOD], ["truncated", "ok"], None),
    "context overflow, then good": (
        [Fail(400, "prompt is too long: 5000 tokens > 4096 maximum context length", "invalid_request_error"), GOOD],
        ["context_overflow", "ok"], None,
    ),
    "bad request": ([Fail(400, "it is not what it should be", "invalid_request_error")], ["bad_request"], "bad_request"),
    "empty": ([Say("")], ["empty_answer"] * 2, "empty_answer"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_each_way_to_end_has_the_same_outcome_with_every_provider(
    case: str, archive: Archive, caller_for: Callable[..., Caller], serve: Serve
) -> None:
    answers, ledger, end = CASES[case]
    server = serve(script_of(*answers))
    caller = caller_for(server, context_tokens=1000)
    if end is None:
        assert caller.ask(question()).value == Colour(**GOOD)
    else:
        with pytest.raises(CallFailed) as failed:
            caller.ask(question())
        assert failed.value.outcome == end
    assert outcomes(archive) == ledger
    assert len(server.requests) == len(ledger)  # one retry layer: the client never asks again by itself


@pytest.mark.slow
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_no_redirect_is_followed(
    status: int, archive: Archive, caller_for: Callable[..., Caller], serve: Serve
) -> None:
    """The key stands in a header that a client takes along, also to another host; the prompt, too, with 307 and 308."""
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.setblocking(False)
        place = f"http://127.0.0.1:{elsewhere.getsockname()[1]}/steal"
        server = serve(script_of(Fail(status, "it has moved", "moved", {"Location": place})))
        with pytest.raises(CallFailed, match="redirect, which is not followed") as failed:
            caller_for(server).ask(question())
        with pytest.raises(BlockingIOError):  # nobody has knocked
            elsewhere.accept()
    assert failed.value.outcome == "bad_request"
    assert outcomes(archive) == ["bad_request"]
    assert len(server.requests) == 1


def test_a_refusal_is_a_refusal(archive: Archive, caller_for: Callable[..., Caller], serve: Serve) -> None:
    server = serve(script_of(Say("", finish="content_filter")))
    with pytest.raises(CallFailed) as failed:
        caller_for(server).ask(question())
    expected = "empty_answer" if server.dialect.provider == "ollama" else "refused"  # Ollama has no word for it
    assert failed.value.outcome == expected


@pytest.mark.parametrize(("status", "outcome"), [(401, "unauthorised"), (404, "unknown_model")])
def test_a_wrong_key_or_model_stops_the_run(
    status: int, outcome: str, archive: Archive, caller_for: Callable[..., Caller], serve: Serve
) -> None:
    server = serve(script_of(Fail(status, "no such thing", "authentication_error")))
    with pytest.raises(AgentsUnusable, match="check the model's name, its server and its key"):
        caller_for(server).ask(question())
    assert outcomes(archive) == [outcome]


@pytest.mark.slow
def test_a_hung_server_is_left_in_time(archive: Archive, caller_for: Callable[..., Caller], serve: Serve) -> None:
    server = serve(script_of(GOOD))
    caller_for(server).ask(question())  # the first call of a client imports for a while
    server.script = script_of(Hang())
    started = time.monotonic()
    with pytest.raises(CallFailed) as failed:
        caller_for(server, timeout_seconds=0.5, retries=0).ask(question(scope="elsewhere"))
    assert failed.value.outcome == "timed_out"
    assert time.monotonic() - started < 8


@pytest.mark.slow
def test_every_role_is_carried_by_the_provider(tmp_path: Path, laboratory: Laboratory, serve: Serve) -> None:
    def script(body: dict[str, Any]) -> Any:
        dialect = server.dialect
        return answer_to(form_of(dialect.schema(body)), dialect.prompt(body))

    server = serve(script)
    document = make_preset(generations=1, parents=1, proposals=2).model_dump(mode="json")
    agents = {"model": f"{server.dialect.provider}:test-model", "timeout_seconds": 60, "retries": 0}
    evolution = open_evolution(tmp_path / "run", Preset.model_validate({**document, "agents": agents}))
    evolve(evolution)
    rows = evolution.run.archive.rows
    assert {row["role"] for row in rows("calls")} == {"proposer", "screener", "implementer", "reflector"}
    assert {row["outcome"] for row in rows("calls")} == {"ok"}
    assert {row["written_by"] for row in rows("candidates", generation=1)} == {"llm"}
    assert rows("evaluations", candidate_id=rows("candidates", generation=1)[0]["candidate_id"])


@pytest.mark.slow
def test_tools_are_called_as_each_protocol_has_it(
    archive: Archive, caller_for: Callable[..., Caller], serve: Serve
) -> None:
    """The answer's form and the tools are offered together; whatever a model calls, the run gets a form to go on with."""
    server = serve(script_of(*(calls for calls, _ in TOOL_CASES.values()), implementation(2.0)))
    caller = caller_for(server)
    for number, (case, (_, told)) in enumerate(TOOL_CASES.items()):
        asked = question(kind=ImplementationForm, scope=f"gen-01/slot-{number}").with_tools(offered())
        form = caller.ask(asked).value
        assert form.tries, case
        shown, at = results(form.tries, form.source, tools_for("X")).lower(), 0
        for sign in told:
            at = shown.find(sign.lower(), at)
            assert at >= 0, (case, sign)
            at += len(sign)
    final = question(kind=ImplementationForm, scope="gen-01/slot-99").with_tools(offered())
    assert caller.ask(final).value == ImplementationForm.model_validate(implementation(2.0))
    assert outcomes(archive) == ["ok"] * (len(TOOL_CASES) + 1)
    assert {row["method"] for row in archive.rows("calls")} == {"tools"}
    assert server.dialect.tool(server.requests[0]) == "ImplementationForm"
    assert "tries" not in server.dialect.schema(server.requests[0])["properties"]
    sent = json.dumps(server.requests[0])
    assert all(name in sent for name in ("run_gate", "probe_numbers", "read_reference"))


@pytest.mark.slow
def test_a_server_that_refuses_tools_is_asked_by_turns_once_and_for_all(
    archive: Archive, caller_for: Callable[..., Caller], serve: Serve
) -> None:
    server = serve(refusing_tools(Fail(400, "test-model does not support tools", "invalid_request_error")))
    caller = caller_for(server)
    for number in range(2):
        asked = question(kind=ImplementationForm, scope=f"gen-01/slot-{number}").with_tools(offered())
        assert [one.tool for one in caller.ask(asked).value.tries] == ["run_gate"]
    assert outcomes(archive) == ["unsupported_output", "ok", "ok"]
    later = caller_for(server)  # the run goes on in another process
    later.ask(question(kind=ImplementationForm, scope="gen-02/slot-0").with_tools(offered()))
    assert [row["method"] for row in archive.rows("calls")].count("tools") == 1
    assert len(server.requests) == 4


def form_of(schema: dict[str, Any]) -> str:
    """The form whose schema this is; not every protocol sends its name."""
    marks = {"proposals": "ProposalsForm", "judgements": "ScreeningForm", "source": "ImplementationForm",
             "summary": "ReflectionForm"}  # fmt: skip
    return next(form for mark, form in marks.items() if mark in schema["properties"])
