"""Reading a model's reply into the pydantic type that was asked for, and the JSON schema that asks for it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from poise_core.agents.llm.faults import CallFailed, Outcome
from poise_core.agents.llm.question import ToolCall, Tools
from poise_core.agents.llm.secrets import redact
from poise_core.agents.llm.wire import Reply

A = TypeVar("A", bound=BaseModel)

_CUT = {"length", "max_tokens", "model_length", "max_output_tokens"}
_DECLINED = {"content_filter", "refusal", "safety", "sensitive", "recitation", "prohibited_content", "blocklist"}
_BROKEN = {"error", "abort", "insufficient_system_resource"}  # OpenRouter, SGLang, DeepSeek: the server gave up
_DROPPED = {"title", "default", "minLength", "maxLength", "minItems", "maxItems", "minimum", "maximum"}


def answer_schema(kind: type[BaseModel], without: Sequence[str] = ()) -> dict[str, Any]:
    """JSON schema of an answer for strict structured output: no references, no open objects, every key required.

    Limits on lengths and numbers are left out, because not every server knows them; reading the answer checks them.

    Args:
        kind: of the answer.
        without: fields that are not asked for.
    """
    document = kind.model_json_schema()
    for name in without:
        del document["properties"][name]
    definitions = document.pop("$defs", {})
    schema = _strict(document, definitions)
    schema["title"] = kind.__name__
    schema["description"] = " ".join((kind.__doc__ or kind.__name__).split())
    return schema


def _strict(node: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(node, list):
        return [_strict(one, definitions) for one in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _strict(definitions[node["$ref"].rsplit("/", 1)[-1]], definitions)
    cleaned = {
        key: (
            {name: _strict(one, definitions) for name, one in value.items()}
            if key == "properties"
            else _strict(value, definitions)
        )
        for key, value in node.items()
        if key not in _DROPPED
    }
    if cleaned.get("type") == "object":
        cleaned["additionalProperties"] = False
        cleaned["required"] = list(cleaned.get("properties", {}))
    return cleaned


def read_answer(reply: Reply, kind: type[A], tools: Tools[A] | None = None) -> A:
    """The answer in a reply: a tool call's arguments, or JSON in its text (also in a code block, or after reasoning).

    With tools, calls of others than the answer's stand for what ``tools.read`` says; an answer beside them is not final, and
    text is not read.

    Raises:
        CallFailed: EMPTY, REFUSED, TRUNCATED or INVALID, with what is wrong.
    """
    if reply.refusal or reply.finish_reason in _DECLINED:
        why = reply.refusal or f"finish reason {reply.finish_reason}"
        raise CallFailed(Outcome.REFUSED, redact(f"the model declined: {why}"[:300]))
    if reply.finish_reason in _CUT:
        raise CallFailed(Outcome.TRUNCATED, f"the answer was cut after {reply.output_tokens or 'the most'} tokens")
    text = reply.arguments or reply.text
    if reply.finish_reason in _BROKEN:
        raise CallFailed(Outcome.EMPTY, f"the server ended its answer with {reply.finish_reason!r}")
    if tools is not None:
        asked = [ToolCall(name, given) for name, given in reply.calls if name != kind.__name__]
        if asked:
            return tools.read(asked)
    if not text.strip():
        raise CallFailed(Outcome.EMPTY, "the reply holds neither text nor a tool call")
    try:
        return _validated(_json_in(text), kind)
    except RecursionError:
        raise CallFailed(Outcome.INVALID, "not JSON of the form asked for: it nests too deeply") from None
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, one['loc'])) or 'the answer'}: {one['msg']}" for one in error.errors()[:5]
        )
        raise CallFailed(Outcome.INVALID, redact(faults)) from None
    except ValueError as error:
        raise CallFailed(Outcome.INVALID, f"not JSON: {error}") from None


def _validated(value: Any, kind: type[A]) -> A:
    """The answer in a value, or in what models without constrained decoding wrap it: a call with arguments, the schema's form.

    Raises:
        ValidationError: of the value itself.
    """
    try:
        return kind.model_validate(value)
    except ValidationError:
        within = (
            [value.get(key) for key in ("arguments", "parameters", "properties")] if isinstance(value, dict) else []
        )
        if isinstance(value, dict) and len(value) == 1:
            within += value.values()
        for one in within:
            try:
                return kind.model_validate(json.loads(one, strict=False) if isinstance(one, str) else one)
            except (ValueError, RecursionError):
                continue
        raise


def _json_in(text: str) -> Any:
    """The JSON in a reply, in time linear in its length.

    Raises:
        ValueError: there is none, or it nests deeper than Python reads.
    """
    fault: Exception | None = None
    for mend in (str, _mended):
        for part, rest in _parts(text):
            try:
                # a raw line end in a string is meant as one
                value = _PREFIX.raw_decode(mend(part))[0] if rest else json.loads(mend(part), strict=False)
                if isinstance(value, str) and value.lstrip().startswith("{"):
                    value = json.loads(value, strict=False)  # arguments of a call that were encoded twice
                return value
            except ValueError as error:
                fault = fault or error
            except RecursionError:
                fault = fault or ValueError("it nests too deeply")
    raise fault or ValueError("nothing in it looks like JSON")


def _mended(text: str) -> str:
    """A text with two faults of models mended: a backslash that begins no escape (TeX, regular expressions), a comma at an end."""
    text = re.sub(r'\\(["\\/bfnrt]|u[0-9a-fA-F]{4})|\\', lambda found: found[0] if found[1] else r"\\", text)
    return re.sub(r",(?=\s{0,20}[}\]])", "", text)


_END_OF_THOUGHT = re.compile(r"</think(?:ing)?>|</reasoning>|\[/THINK\]|<\|message\|>|\u25c1/think\u25b7")
"""Of DeepSeek's and Qwen's templates, of others, of Mistral's, of gpt-oss and of Kimi's; the opening may be part of the prompt."""

_FENCE = re.compile(r"\s*(?:```+|~~~+)\s*\w*\s*")

_MOST_STARTS = 16


_PREFIX = json.JSONDecoder(strict=False)


def _parts(text: str) -> Iterator[tuple[str, bool]]:
    """Where the JSON may stand: what follows the reasoning, then all of it; of each its first block of code, and its braces.

    Yields:
        A part, and whether something else may follow the JSON in it.
    """
    for part in dict.fromkeys((_END_OF_THOUGHT.split(text)[-1].strip(), text)):
        yield part, False
        lines = part.splitlines()
        fences = [number for number, line in enumerate(lines) if _FENCE.fullmatch(line)]
        if len(fences) > 1:
            yield "\n".join(lines[fences[0] + 1 : fences[1]]), False
        start, end = part.find("{"), part.rfind("}")
        if 0 <= start < end:
            yield part[start : end + 1], False
        # the last objects that begin a line: after braces in the prose before them
        starts = [found.start() for found in re.finditer(r"^[ \t]{0,8}\{", part, re.MULTILINE)]
        for begin in starts[-_MOST_STARTS:]:
            yield part[begin:].lstrip(), True
