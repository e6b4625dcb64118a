"""An OpenAI-compatible server on loopback for tests: chat completions over real sockets, scripted by a function.

It speaks plain and streamed completions, ``response_format`` with a JSON schema, tool calls and usage. The script gets each
request's body and says what to answer: a dictionary (the structured answer), or one of the behaviours below.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass(frozen=True)
class Say:
    """A completion: any text, with its finish reason."""

    text: str | None
    finish: str = "stop"
    refusal: str | None = None
    usage: bool = True
    tool: bool = False  # the text is the arguments of a tool call


@dataclass(frozen=True)
class Calls:
    """Tool calls: names and arguments, a document or, where a protocol has it, any text; and what is said beside them."""

    calls: tuple[tuple[str, Any], ...]
    text: str = ""


@dataclass(frozen=True)
class Fail:
    """An HTTP error."""

    status: int
    message: str = "it failed"
    code: str = "error"
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Hang:
    """Nothing for so many seconds."""

    seconds: float = 30.0


@dataclass(frozen=True)
class Drip:
    """A byte now and then, so that no read ever times out."""

    every: float = 0.05
    seconds: float = 30.0


@dataclass(frozen=True)
class Loop:
    """A stream of the same words that never ends."""

    seconds: float = 30.0


@dataclass(frozen=True)
class NoChoices:
    """A completion without a choice."""

    null: bool = False


@dataclass(frozen=True)
class Raw:
    """A document as it stands, with status 200."""

    document: Any
    kind: str = "application/json"


Script = Callable[[dict[str, Any]], Any]


def asked_form(body: dict[str, Any]) -> str:
    """Name of the form that a request asks for."""
    if "response_format" in body:
        return str(body["response_format"]["json_schema"]["name"])
    return str(body["tools"][0]["function"]["name"])


def prompt_of(body: dict[str, Any]) -> str:
    return "\n".join(message["content"] for message in body["messages"])


class ScriptedServer:
    """Runs in a thread; ``requests`` holds every body, ``keys`` every key that was sent. A subclass says how a provider answers."""

    key_header = "Authorization"

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.closed = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                key = self.headers.get(server.key_header, "") if server.key_header else ""
                server.keys.append(key.removeprefix("Bearer "))
                server.requests.append(body)
                try:
                    server.respond(self, body)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def respond(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        """Answer one request."""
        raise NotImplementedError

    def close(self) -> None:
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class LoopbackServer(ScriptedServer):
    """Speaks OpenAI's chat completions."""

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    def respond(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        if not handler.path.endswith("/chat/completions"):
            _error(handler, Fail(404, f"no such path {handler.path}"))
        else:
            _respond(handler, body, self.script(body), self.closed)

    def reset(self, script: Script) -> None:
        """Another script, with nothing asked yet; responses that still drip or hang end."""
        self.closed.set()
        self.script, self.requests, self.keys, self.closed = script, [], [], threading.Event()


def _respond(handler: BaseHTTPRequestHandler, body: dict[str, Any], answer: Any, closed: threading.Event) -> None:
    if isinstance(answer, Fail):
        _error(handler, answer)
    elif isinstance(answer, Hang):
        closed.wait(answer.seconds)
        handler.close_connection = True
    elif isinstance(answer, Drip):
        _drip(handler, answer, closed)
    elif isinstance(answer, Loop):
        _loop(handler, body, answer, closed)
    elif isinstance(answer, NoChoices):
        _json(handler, _completion(body, None if answer.null else []))
    elif isinstance(answer, Raw):
        _send(handler, 200, json.dumps(answer.document).encode(), {"Content-Type": answer.kind})
    elif isinstance(answer, Calls):
        made = [
            {"name": name, "arguments": given if isinstance(given, str) else json.dumps(given)}
            for name, given in answer.calls
        ]
        calls = [{"id": f"call_{n}", "type": "function", "function": one} for n, one in enumerate(made)]
        message = {"role": "assistant", "content": answer.text or None, "tool_calls": calls}
        _json(handler, _completion(body, [{"index": 0, "message": message, "finish_reason": "tool_calls"}]))
    elif isinstance(answer, bytes):
        _send(handler, 200, answer, {"Content-Type": "text/html"})
    else:
        say = answer if isinstance(answer, Say) else Say(json.dumps(answer))
        message = _message(body, say, isinstance(answer, Say) and not answer.tool)
        if body.get("stream"):
            _stream(handler, body, say, message)
        else:
            choice = {"index": 0, "message": message, "finish_reason": say.finish, "logprobs": None}
            _json(handler, _completion(body, [choice], say.usage))


def _message(body: dict[str, Any], say: Say, plain: bool) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": say.text, "refusal": say.refusal}
    if "tools" in body and not plain:
        function = {"name": asked_form(body), "arguments": say.text}
        message |= {"content": None, "tool_calls": [{"id": "call_1", "type": "function", "function": function}]}
    return message


def _completion(body: dict[str, Any], choices: Any, usage: bool = True) -> dict[str, Any]:
    document = {"id": "c1", "object": "chat.completion", "created": 1, "model": body["model"], "choices": choices}
    if usage:
        document["usage"] = _usage(body)
    return document


def _usage(body: dict[str, Any]) -> dict[str, int]:
    prompt = len(prompt_of(body)) // 4
    return {"prompt_tokens": prompt, "completion_tokens": 100, "total_tokens": prompt + 100}


def _stream(handler: BaseHTTPRequestHandler, body: dict[str, Any], say: Say, message: dict[str, Any]) -> None:
    _begin(handler)
    text = message["content"] or ""
    half = len(text) // 2
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": text[:half]}, {"content": text[half:]}]
    if "tool_calls" in message:
        deltas = [{"role": "assistant", "tool_calls": [{"index": 0, **message["tool_calls"][0]}]}]
    for delta in deltas:
        _chunk(handler, body, [{"index": 0, "delta": delta, "finish_reason": None}])
    _chunk(handler, body, [{"index": 0, "delta": {}, "finish_reason": say.finish}])
    if body.get("stream_options", {}).get("include_usage"):
        _chunk(handler, body, [], _usage(body))
    handler.wfile.write(b"data: [DONE]\n\n")
    handler.close_connection = True


def _begin(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "text/event-stream")
    handler.send_header("Connection", "close")
    handler.end_headers()


def _chunk(
    handler: BaseHTTPRequestHandler, body: dict[str, Any], choices: list[Any], usage: dict[str, int] | None = None
) -> None:
    document = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}
    document |= {"choices": choices, "usage": usage}
    handler.wfile.write(f"data: {json.dumps(document)}\n\n".encode())
    handler.wfile.flush()


def _loop(handler: BaseHTTPRequestHandler, body: dict[str, Any], loop: Loop, closed: threading.Event) -> None:
    _begin(handler)
    end = time.monotonic() + loop.seconds
    while time.monotonic() < end and not closed.wait(0.01):
        _chunk(handler, body, [{"index": 0, "delta": {"content": "again and "}, "finish_reason": None}])


def _drip(handler: BaseHTTPRequestHandler, drip: Drip, closed: threading.Event) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    end = time.monotonic() + drip.seconds
    while time.monotonic() < end and not closed.wait(drip.every):
        handler.wfile.write(b" ")
        handler.wfile.flush()
    handler.close_connection = True


def _error(handler: BaseHTTPRequestHandler, fail: Fail) -> None:
    error = {"message": fail.message, "type": fail.code, "code": fail.code, "param": None}
    _send(handler, fail.status, json.dumps({"error": error}).encode(), fail.headers)


def _json(handler: BaseHTTPRequestHandler, document: dict[str, Any]) -> None:
    _send(handler, 200, json.dumps(document).encode(), {"Content-Type": "application/json"})


def _send(handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str]) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)
