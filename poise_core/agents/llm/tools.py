"""What an implementer may try before it answers: LangChain tools over a draft, each bounded, its code in the gate's sandbox.

A model that has tool calls is given them as its tools (``offered``); any other asks for them by turns: its answer names the tools
beside a draft. Either way the next question brings the results as data, and after ``agents.tool_turns`` of such turns the answer
counts as it is. So every question has one answer, every turn is a row of the ledger, a prompt keeps its budget however many
drafts there were, and no provider's form of a conversation matters. Results depend on the draft alone, not on the machine's speed,
so a replay asks the same again.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from poise_core.agents.llm.forms import ImplementationForm, TryForm
from poise_core.agents.llm.question import ToolCall, Tools
from poise_core.agents.reports import gate_report
from poise_core.algorithms import algorithm_path, list_algorithms
from poise_core.candidate.identity import text_fault
from poise_core.config.protocol import TrainingSpec
from poise_core.failures import CandidateFailure, FailureKind, InfrastructureError
from poise_core.verification.language import vocabulary
from poise_core.verification.report import ANY_TRAINING, Conditions
from poise_core.verification.verify import measure_source, verify_file

SECONDS = 60.0
"""Wall time of one tool."""

RESULT_CHARACTERS = 6000
"""Of one result, at most."""

MOST_CALLS = 3
"""Tools that are run in one turn."""

LONGEST_DRAFT = 60_000
"""Characters of a draft, as of the file in ``ImplementationForm``."""


Draft = Annotated[str, "the whole Python file as it would be handed in"]


class ToolTry(TryForm):
    """A tool that a model has called as its own: with the draft among the arguments, and with whatever was wrong with the call."""

    tool: str  # type: ignore[assignment]  # what the model has named, known or not
    source: str = ""
    fault: str = ""


def tools_for(
    name: str, should_stop: Callable[[], bool] = lambda: False, training: TrainingSpec | None = None
) -> dict[str, Any]:
    """LangChain's tools, by name.

    Args:
        name: of the candidate, for reports.
        should_stop: ends a tool's process.
        training: for which the gate verifies the draft; by default any.
    """
    from langchain_core.tools import StructuredTool

    def run_gate(source: Draft) -> str:
        """Put the draft through the admission gate; every finding comes back, those after the first one too."""
        seed = int(hashlib.sha256(source.encode()).hexdigest()[:8], 16)  # the same draft, the same probes
        with tempfile.TemporaryDirectory(prefix="poise-draft-") as folder:
            path = Path(folder) / "draft.py"
            path.write_text(source, encoding="utf-8")
            report = verify_file(
                path,
                name=name,
                timeout_seconds=SECONDS,
                probe_seed=seed,
                conditions=Conditions.of(training) if training else ANY_TRAINING,
                keep_going=True,
                should_stop=should_stop,
            )
        if report.admitted:
            return "admitted"
        kind = report.failure or FailureKind.REJECTED
        return gate_report(CandidateFailure(kind, "verify", report.message, report.to_json()))

    def probe_numbers(source: Draft) -> str:
        """Measure the draft on fixed batches: advantages by group state, gradient by token entropy, gradient as KL drifts."""
        return measure_source(source, name=name, timeout_seconds=SECONDS, should_stop=should_stop)

    def read_reference(algorithm: Annotated[str, "its name, such as dapo"] = "") -> str:
        """Read the file of a known algorithm."""
        known = list_algorithms()
        wanted = algorithm.lower().replace("-", "_")
        if wanted not in known:
            return f"no algorithm {algorithm[:60]!r}; there are {', '.join(known)}"
        return algorithm_path(wanted).read_text(encoding="utf-8")

    made = [StructuredTool.from_function(one) for one in (run_gate, probe_numbers, read_reference)]
    return {tool.name: tool for tool in made}


def offered() -> Tools[ImplementationForm]:
    """The tools as a model with tool calls is given them, and what its calls stand for: a form that asks for them as by turns."""
    from langchain_core.utils.function_calling import convert_to_openai_tool

    made = tools_for("draft")
    documents = tuple(convert_to_openai_tool(tool) for tool in made.values())
    return Tools(documents, lambda calls: _as_form(calls, tuple(made)), without=("tries",))


def _as_form(calls: Sequence[ToolCall], known: Sequence[str]) -> ImplementationForm:
    tries: list[TryForm] = [_as_try(call, known) for call in calls]
    drafts = [one.source for one in tries if isinstance(one, ToolTry) and one.source]
    # not validated: it is no answer, and need hold no plan
    return ImplementationForm.model_construct(tries=tries, plan=[], source=(drafts or [""])[-1], equations=[])


def _as_try(call: ToolCall, known: Sequence[str]) -> ToolTry:
    """A call as it was meant, or with the fault that it cannot be carried out for."""
    tool = call.name[:60]
    if call.name not in known:
        return ToolTry(tool=tool, fault=f"there is no such tool; there are {', '.join(known)}")
    try:
        given = json.loads(call.arguments or "{}", strict=False)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, Mapping):
        return ToolTry(tool=tool, fault="its arguments are not a JSON object")
    wanted = "algorithm" if tool == "read_reference" else "source"
    value = given.get(wanted)
    if not isinstance(value, str) or not value.strip():
        return ToolTry(
            tool=tool, fault=f"it takes {wanted}, a text; the call gave {', '.join(map(str, given))[:100] or 'none'}"
        )
    if wanted == "algorithm":
        return ToolTry(tool=tool, algorithm=value)
    if len(value) > LONGEST_DRAFT:
        return ToolTry(tool=tool, fault=f"the draft has {len(value)} characters; at most {LONGEST_DRAFT} are read")
    return ToolTry(tool=tool, source=value)


def results(tries: Sequence[TryForm], draft: str, tools: dict[str, Any]) -> str:
    """What the tools say, one part for each that was asked for; a tool that the machine cannot run says so.

    Args:
        tries: what was asked for; of more than ``MOST_CALLS`` the first are run, and the others say that they were not.
        draft: on which a tool runs that brought none of its own.
        tools: of ``tools_for``.
    """
    parts = []
    for number, one in enumerate(tries[: 2 * MOST_CALLS]):
        own = one if isinstance(one, ToolTry) else ToolTry(tool=one.tool, algorithm=one.algorithm, source=draft)
        text = own.fault
        if not text and number >= MOST_CALLS:
            text = f"not run: at most {MOST_CALLS} tools are run in one turn"
        elif not text:
            text = _result(own, tools)
        if len(text) > RESULT_CHARACTERS:
            text = f"{text[:RESULT_CHARACTERS]}\n[cut]"
        parts.append(f"## {own.tool} {own.algorithm}".rstrip() + f"\n{text}")
    if len(tries) > 2 * MOST_CALLS:
        parts.append(f"and {len(tries) - 2 * MOST_CALLS} more, not run")
    return "\n\n".join(parts)


def _result(one: ToolTry, tools: dict[str, Any]) -> str:
    wanted = "algorithm" if one.tool == "read_reference" else "source"
    if wanted == "source" and (fault := text_fault(one.source)):
        return fault
    try:
        return str(tools[one.tool].invoke({wanted: getattr(one, wanted)}))
    except InfrastructureError:
        return "this tool could not be run; answer without it"


def language_text() -> str:
    """What a candidate file may name, one line for each module, and what it lacks."""
    lines = [
        f"{module}: {' '.join(sorted(members))}"
        for module, members in vocabulary.MODULES.items()
        if module not in ("poise_core.contract", "__future__")
    ]
    return "\n".join(
        [
            *lines,
            f"built-in functions: {' '.join(sorted(vocabulary.BUILTINS))}",
            "lacking: random numbers, in-place methods (add_), out=, sorting by key, other classes, closures, files",
        ]
    )
