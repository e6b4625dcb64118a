"""Servers on loopback that speak other providers' protocols: Anthropic Messages, Gemini generateContent, Ollama chat.

Each is scripted as ``llm_server`` is: a function gets the request's body and says what to answer. What a script returns is
the same for all (a dictionary, ``Say``, ``Fail``, ``Hang``); a ``Dialect`` turns it into the provider's own documents.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any

from llm_server import Calls, Fail, Hang, Say, Script, ScriptedServer

INPUT_TOKENS, OUTPUT_TOKENS = 120, 34
"""What every answer reports."""


@dataclass(frozen=True)
class Dialect:
    """One provider's protocol."""

    provider: str  # as in provider:name
    package: str
    environment: dict[str, str]  # variables that the client reads; {url} is filled in
    key_header: str
    takes: Callable[[str], bool]  # whether a path is the one for completions
    answer: Callable[[dict[str, Any], Say, Calls | None], list[dict[str, Any]]]  # body, text, tool calls
    tool: Callable[[dict[str, Any]], str]  # name of the first tool offered
    error: Callable[[Fail], dict[str, Any]]
    schema: Callable[[dict[str, Any]], dict[str, Any]]  # that the answer has to follow
    prompt: Callable[[dict[str, Any]], str]


def _anthropic_answer(body: dict[str, Any], say: Say, made: Calls | None) -> list[dict[str, Any]]:
    reasons = {"stop": "end_turn", "length": "max_tokens", "content_filter": "refusal"}
    blocks: list[dict[str, Any]] = [{"type": "text", "text": say.text or ""}]
    reason = reasons[say.finish]
    if made is not None:
        uses = [
            {"type": "tool_use", "id": f"toolu_{n}", "name": name, "input": given}
            for n, (name, given) in enumerate(made.calls)
        ]
        blocks, reason = [*([{"type": "text", "text": made.text}] if made.text else []), *uses], "tool_use"
    return [
        {
            "id": "msg_1", "type": "message", "role": "assistant", "model": body["model"], "content": blocks,
            "stop_reason": reason, "stop_sequence": None,
            "usage": {"input_tokens": INPUT_TOKENS, "output_tokens": OUTPUT_TOKENS},
        }
    ]  # fmt: skip


def _anthropic_schema(body: dict[str, Any]) -> dict[str, Any]:
    if "tools" in body:
        return dict(body["tools"][0]["input_schema"])
    return dict(body["output_config"]["format"]["schema"])


def _anthropic_prompt(body: dict[str, Any]) -> str:
    return "\n".join(map(_text, [body.get("system", ""), *(one["content"] for one in body["messages"])]))


def _google_answer(body: dict[str, Any], say: Say, made: Calls | None) -> list[dict[str, Any]]:
    reasons = {"stop": "STOP", "length": "MAX_TOKENS", "content_filter": "SAFETY"}
    parts: list[dict[str, Any]] = [{"text": say.text or ""}]
    if made is not None:
        uses = [{"functionCall": {"name": name, "args": given}} for name, given in made.calls]
        parts = [*([{"text": made.text}] if made.text else []), *uses]
    total = INPUT_TOKENS + OUTPUT_TOKENS
    usage = {"promptTokenCount": INPUT_TOKENS, "candidatesTokenCount": OUTPUT_TOKENS, "totalTokenCount": total}
    content = {"role": "model", "parts": parts}
    candidate = {"content": content, "finishReason": reasons[say.finish], "index": 0}
    return [{"candidates": [candidate], "usageMetadata": usage, "modelVersion": "test"}]


def _google_schema(body: dict[str, Any]) -> dict[str, Any]:
    if "tools" in body:
        declared = body["tools"][0]["functionDeclarations"][0]
        return dict(declared.get("parametersJsonSchema") or declared["parameters"])
    return dict(body["generationConfig"]["responseJsonSchema"])


def _google_prompt(body: dict[str, Any]) -> str:
    parts = [
        *body.get("systemInstruction", {}).get("parts", []),
        *(p for one in body["contents"] for p in one["parts"]),
    ]
    return "\n".join(part.get("text", "") for part in parts)


def _ollama_answer(body: dict[str, Any], say: Say, made: Calls | None) -> list[dict[str, Any]]:
    message: dict[str, Any] = {"role": "assistant", "content": say.text or ""}
    if made is not None:
        calls = [{"function": {"name": name, "arguments": given}} for name, given in made.calls]
        message = {"role": "assistant", "content": made.text, "tool_calls": calls}
    head = {"model": body["model"], "created_at": "2026-01-01T00:00:00Z"}
    end = {
        **head, "message": {"role": "assistant", "content": ""}, "done": True,
        "done_reason": "length" if say.finish == "length" else "stop",
        "total_duration": 1, "prompt_eval_count": INPUT_TOKENS, "eval_count": OUTPUT_TOKENS,
    }  # fmt: skip
    if not body.get("stream", True):
        return [{**end, "message": message}]
    return [{**head, "message": message, "done": False}, end]


def _ollama_schema(body: dict[str, Any]) -> dict[str, Any]:
    return dict(body["tools"][0]["function"]["parameters"] if body.get("tools") else body["format"])


def _ollama_prompt(body: dict[str, Any]) -> str:
    return "\n".join(one["content"] for one in body["messages"])


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "\n".join(block["text"] for block in content)


DIALECTS = {
    "anthropic": Dialect(
        "anthropic",
        "langchain_anthropic",
        {"ANTHROPIC_BASE_URL": "{url}", "ANTHROPIC_API_KEY": "anthropic-test-key"},
        "Authorization",
        lambda path: path.split("?")[0].endswith("/v1/messages"),
        _anthropic_answer,
        lambda body: str(body["tools"][0]["name"]),
        lambda fail: {"type": "error", "error": {"type": fail.code, "message": fail.message}},
        _anthropic_schema,
        _anthropic_prompt,
    ),
    "google_genai": Dialect(
        "google_genai",
        "langchain_google_genai",
        {"GOOGLE_GEMINI_BASE_URL": "{url}", "GOOGLE_API_KEY": "google-test-key"},
        "x-goog-api-key",
        lambda path: path.split("?")[0].endswith(":generateContent"),
        _google_answer,
        lambda body: str(body["tools"][0]["functionDeclarations"][0]["name"]),
        lambda fail: {"error": {"code": fail.status, "message": fail.message, "status": fail.code.upper()}},
        _google_schema,
        _google_prompt,
    ),
    "ollama": Dialect(
        "ollama",
        "langchain_ollama",
        {"OLLAMA_HOST": "{url}"},
        "",
        lambda path: path == "/api/chat",
        _ollama_answer,
        lambda body: str(body["tools"][0]["function"]["name"]),
        lambda fail: {"error": fail.message},
        _ollama_schema,
        _ollama_prompt,
    ),
}


class ProviderServer(ScriptedServer):
    """Speaks a dialect."""

    def __init__(self, dialect: Dialect, script: Script) -> None:
        self.dialect, self.key_header = dialect, dialect.key_header
        super().__init__(script)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that lead the provider's client here."""
        return {name: value.format(url=self.url) for name, value in self.dialect.environment.items()}

    def respond(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        if not self.dialect.takes(handler.path):
            return _send(handler, 404, [self.dialect.error(Fail(404, f"no such path {handler.path}"))], {})
        answer = self.script(body)
        if isinstance(answer, Fail):
            return _send(handler, answer.status, [self.dialect.error(answer)], answer.headers)
        if isinstance(answer, Hang):
            self.closed.wait(answer.seconds)
            handler.close_connection = True
            return None
        made = answer if isinstance(answer, Calls) else None
        if isinstance(answer, dict) and body.get("tools"):
            made = Calls(((self.dialect.tool(body), answer),))
        say = answer if isinstance(answer, Say) else Say("" if made else json.dumps(answer))
        return _send(handler, 200, self.dialect.answer(body, say, made), {})


def _send(
    handler: BaseHTTPRequestHandler, status: int, documents: list[dict[str, Any]], headers: dict[str, str]
) -> None:
    body = b"".join(json.dumps(document).encode() + b"\n" for document in documents)
    handler.send_response(status)
    for name, value in {"Content-Type": "application/json", **headers}.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)
