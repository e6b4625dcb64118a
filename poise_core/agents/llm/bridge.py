"""An OpenAI-compatible endpoint on loopback whose questions are files and whose answers a person, or any program, writes.

Every request becomes ``NNNN-FORM-KEY.md``, to read, and ``NNNN-FORM-KEY.json``, for programs: messages, the JSON schema of the
answer, and the name of the file that it is awaited in, ``NNNN-FORM-KEY.answer.json`` (or ``.answer.md``, with the JSON in a code
block). The key is that of the request, so that whoever asks the same again, after a pause or in a later run, is answered from the
file that is there: a folder of questions and answers is a recording. Questions are redacted before they get here, and answers are
data to whoever asked.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from poise_core.files import write_atomically

LARGEST_REQUEST, LARGEST_ANSWER = 16 * 2**20, 4 * 2**20
"""Bytes of a request and of an answer's file that are read."""

POLL_SECONDS, SETTLED_SECONDS = 0.2, 0.5
"""How often answers are looked for, and how long a file must not have changed, because editors write in several steps."""

_LOOPBACK = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d+)?")
_KEY = 12  # hex digits of SHA-256 of a request


class Bridge:
    """Serves in threads of its own until it is closed; a context manager."""

    def __init__(self, folder: Path, port: int = 0, told: Callable[[str], None] = lambda line: None) -> None:
        """Listen on loopback.

        Args:
            folder: of questions and answers, made where it is missing.
            port: 0 for a free one.
            told: called with one line for every new question and every answer.

        Raises:
            OSError: the folder cannot be made, or the port is taken.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._told = folder, told
        self._closed, self._naming = threading.Event(), threading.Lock()
        bridge = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                """Say nothing: what happens is told in ``told``."""

            def do_GET(self) -> None:
                bridge._models(self)

            def do_POST(self) -> None:
                try:
                    bridge._complete(self)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = (
                        True  # who asked has gone; the question stays, and its answer waits for the next time
                    )

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": POLL_SECONDS}, daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening; questions that wait are left without an answer."""
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait(self) -> None:
        """Until it is closed."""
        self._closed.wait()

    # requests

    def _models(self, handler: BaseHTTPRequestHandler) -> None:
        if self._refused(handler):
            return
        if handler.path.rstrip("/").endswith("/models"):
            _send(handler, 200, {"object": "list", "data": [{"id": "bridge", "object": "model"}]})
        else:
            _fail(handler, 404, f"no such path: {handler.path}; this serves /v1/chat/completions")

    def _complete(self, handler: BaseHTTPRequestHandler) -> None:
        if self._refused(handler):
            return
        length = int(handler.headers.get("Content-Length") or 0)
        if not 0 < length <= LARGEST_REQUEST:
            handler.close_connection = True
            _fail(handler, 413 if length else 411, f"a request has from 1 to {LARGEST_REQUEST} bytes")
            return
        try:
            body = json.loads(handler.rfile.read(length))
            messages = [(str(one["role"]), _text(one["content"])) for one in body["messages"]]
        except (ValueError, KeyError, TypeError):
            _fail(handler, 400, "not a chat completion request: a JSON object with messages")
            return
        if not handler.path.rstrip("/").endswith("/chat/completions"):
            _fail(handler, 404, f"no such path: {handler.path}; this serves /v1/chat/completions")
            return
        if len(body.get("tools") or ()) > 1:
            # one file, one form: whoever offers tools beside the form asks by turns then, and the form has a place for them
            _fail(handler, 400, "tools beside the form of the answer are not supported")
            return
        stem = self._question(body, messages)
        text = self._answer(stem)
        if text is None:
            _fail(handler, 503, "the bridge was closed before there was an answer")
            return
        _reply(handler, body, text)

    @staticmethod
    def _refused(handler: BaseHTTPRequestHandler) -> bool:
        """Whether the request is one that a page in a browser may have sent; those are answered with 403."""
        host = handler.headers.get("Host", "")
        if _LOOPBACK.fullmatch(host) and handler.headers.get("Origin") is None:
            return False
        handler.close_connection = True
        _fail(handler, 403, "this serves programs on this machine only")
        return True

    # files

    def _question(self, body: dict[str, Any], messages: list[tuple[str, str]]) -> str:
        """The stem of the question's files, which are written where they are missing."""
        name, schema = _asked(body)
        document = {"form": name, "messages": messages, "schema": schema}
        key = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:_KEY]
        with self._naming:
            for known in sorted(self.folder.glob(f"*-{key}.json")):
                return known.name.removesuffix(".json")
            numbers = [int(found.name[:4]) for found in self.folder.glob("[0-9][0-9][0-9][0-9]-*.json")]
            stem = f"{max(numbers, default=0) + 1:04d}-{name}-{key}"
            awaited = f"{stem}.answer.json"
            parts = [f"Answer with JSON in the file `{awaited}` beside this one."]
            if schema:
                parts.append(f"## Form\n\n```json\n{json.dumps(schema, indent=1)}\n```")
            parts += [f"## {role}\n\n{text}" for role, text in messages]
            write_atomically(self.folder / f"{stem}.md", "\n\n".join(parts) + "\n")
            # the JSON is last, so that a program that waits for it finds the rest
            write_atomically(
                self.folder / f"{stem}.json", json.dumps({**document, "answer_file": awaited}, indent=1) + "\n"
            )
        self._told(f"asked {stem}")
        return stem

    def _answer(self, stem: str) -> str | None:
        """The text of the answer once it is there and settled; None where the bridge is closed before."""
        paths = [self.folder / f"{stem}.answer{suffix}" for suffix in (".json", ".md")]
        while True:
            for path in paths:
                try:
                    status = path.stat()
                    if 0 < status.st_size <= LARGEST_ANSWER and time.time() - status.st_mtime > SETTLED_SECONDS:
                        text = path.read_text(encoding="utf-8", errors="replace")
                        self._told(f"answered {stem}")
                        return text
                except OSError:
                    continue
            if self._closed.wait(POLL_SECONDS):
                return None


def _text(content: Any) -> str:
    """The text of a message, which may be a list of parts."""
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content)
    return str(content)


def _asked(body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and JSON schema of the answer that is asked for."""
    form: Any = (body.get("response_format") or {}).get("json_schema") or {}
    if tools := body.get("tools"):
        form = tools[0].get("function", {})
    name = re.sub(r"\W+", "", str(form.get("name") or "answer"))[:40] or "answer"
    return name, form.get("schema") or form.get("parameters") or {}


def _reply(handler: BaseHTTPRequestHandler, body: dict[str, Any], text: str) -> None:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    finish = "stop"
    if body.get("tools"):
        function = {"name": str(body["tools"][0]["function"]["name"]), "arguments": _unfenced(text)}
        message = {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call_0", "type": "function", "function": function}],
        }
        finish = "tool_calls"
    common = {"id": "bridge", "created": int(time.time()), "model": str(body.get("model", "bridge"))}
    if not body.get("stream"):
        choice = {"index": 0, "message": message, "finish_reason": finish}
        _send(handler, 200, {**common, "object": "chat.completion", "choices": [choice]})
        return
    for call in message.get("tool_calls", ()):
        call["index"] = 0
    chunks = [
        {"choices": [{"index": 0, "delta": message, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]},
    ]
    lines = [json.dumps({**common, "object": "chat.completion.chunk", **chunk}) for chunk in chunks]
    _send_bytes(handler, 200, "".join(f"data: {one}\n\n" for one in (*lines, "[DONE]")).encode(), "text/event-stream")


def _unfenced(text: str) -> str:
    found = re.fullmatch(r"\s*```\w*\n(.*?)\n?```\s*", text, re.DOTALL)
    return found.group(1) if found else text


def _fail(handler: BaseHTTPRequestHandler, status: int, message: str) -> None:
    _send(handler, status, {"error": {"message": message, "type": "bridge", "code": status}})


def _send(handler: BaseHTTPRequestHandler, status: int, document: dict[str, Any]) -> None:
    _send_bytes(handler, status, json.dumps(document).encode(), "application/json")


def _send_bytes(handler: BaseHTTPRequestHandler, status: int, data: bytes, kind: str) -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)
