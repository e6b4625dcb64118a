"""Calls of language models as MLflow traces, drawn from the archive's table ``calls``. MLflow is not imported here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from poise_core.escaping import markdown_page, one_line

CALL_TAG = "poise.call_id"
_TEXT_LENGTH = 250  # of tags


def push_calls(client: Any, experiment_id: str, rows: Iterable[Mapping[str, Any]]) -> int:
    """Make a trace of every call that has none yet; how many were made.

    Args:
        client: an ``MlflowClient`` whose store is the process's tracking URI, because traces are exported there.
        experiment_id: where they go.
        rows: of ``calls``.
    """
    known = _known(client, experiment_id)
    made = 0
    for row in sorted(rows, key=lambda one: (one["created_at"], one["call_id"])):
        if row["call_id"] in known:
            continue
        end = int(row["created_at"].timestamp() * 1e9)
        span = client.start_trace(
            name=one_line(f"{row['role']} {row['scope']}"),
            span_type="CHAT_MODEL",
            inputs={"messages": _inert(json.loads(row["request"])["messages"])},
            attributes={
                name: one_line(row[name])
                for name in (
                    "model",
                    "method",
                    "outcome",
                    "prompt",
                    "input_tokens",
                    "output_tokens",
                    "dollars",
                    "replayed",
                )
            },
            tags={CALL_TAG: row["call_id"][:_TEXT_LENGTH], "role": row["role"], "outcome": row["outcome"]},
            experiment_id=experiment_id,
            start_time_ns=end - int((row["seconds"] or 0.0) * 1e9),
        )
        client.end_trace(
            span.trace_id,
            outputs=_inert(json.loads(row["answer"]) if row["answer"] else {"fault": row["message"]}),
            status="OK" if row["outcome"] == "ok" else "ERROR",
            end_time_ns=end,
        )
        made += 1
    return made


def _inert(document: Any) -> Any:
    """The document with texts that MLflow's page of a conversation, which renders Markdown, makes nothing active of."""
    if isinstance(document, str):
        return markdown_page(document)
    if isinstance(document, dict):
        return {key: _inert(value) for key, value in document.items()}
    return [_inert(value) for value in document] if isinstance(document, list) else document


def _known(client: Any, experiment_id: str) -> set[str]:
    found: set[str] = set()
    token = None
    while True:
        page = client.search_traces(locations=[experiment_id], include_spans=False, max_results=500, page_token=token)
        found |= {trace.info.tags.get(CALL_TAG, "") for trace in page}
        token = page.token
        if not token:
            return found
