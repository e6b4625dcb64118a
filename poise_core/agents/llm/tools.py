"""What an implementer may try before it answers: LangChain tools over a draft, each bounded, its code in the gate's sandbox.

A model asks for them by turns: its answer names the tools beside a draft, the next question brings the results, and after
``agents.tool_turns`` of such turns the answer counts as it is. So every model has them, with tool calls of its own or without, and
every turn is a row of the ledger. Results depend on the draft alone, not on the machine's speed, so a replay asks the same again.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from poise_core.agents.llm.forms import TryForm
from poise_core.agents.reports import gate_report
from poise_core.algorithms import algorithm_path, list_algorithms
from poise_core.config.protocol import TrainingSpec
from poise_core.failures import CandidateFailure, FailureKind
from poise_core.verification.language import vocabulary
from poise_core.verification.report import ANY_TRAINING, Conditions
from poise_core.verification.verify import measure_source, verify_file

SECONDS = 60.0
"""Wall time of one tool."""

RESULT_CHARACTERS = 6000
"""Of one result, at most."""


def tools_for(
    source: str, name: str, should_stop: Callable[[], bool] = lambda: False, training: TrainingSpec | None = None
) -> dict[str, Any]:
    """LangChain's tools over one draft, by name.

    Args:
        source: the draft.
        name: of the candidate, for reports.
        should_stop: ends a tool's process.
        training: for which the gate verifies the draft; by default any.
    """
    from langchain_core.tools import StructuredTool

    def run_gate() -> str:
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

    def probe_numbers() -> str:
        """Measure the draft on fixed batches: advantages by group state, gradient by token entropy, gradient as KL drifts."""
        return measure_source(source, name=name, timeout_seconds=SECONDS, should_stop=should_stop)

    def read_reference(algorithm: str = "") -> str:
        """Read the file of a known algorithm."""
        known = list_algorithms()
        wanted = algorithm.lower().replace("-", "_")
        if wanted not in known:
            return f"no algorithm {algorithm[:60]!r}; there are {', '.join(known)}"
        return algorithm_path(wanted).read_text(encoding="utf-8")

    made = [StructuredTool.from_function(one) for one in (run_gate, probe_numbers, read_reference)]
    return {tool.name: tool for tool in made}


def results(tries: Sequence[TryForm], tools: dict[str, Any]) -> str:
    """What the tools say, one part for each that was asked for; a tool that the machine cannot run says so."""
    from poise_core.failures import InfrastructureError

    parts = []
    for one in tries:
        arguments = {"algorithm": one.algorithm} if one.tool == "read_reference" else {}
        try:
            text = str(tools[one.tool].invoke(arguments))
        except InfrastructureError:
            text = "this tool could not be run; answer without it"
        if len(text) > RESULT_CHARACTERS:
            text = f"{text[:RESULT_CHARACTERS]}\n[cut]"
        parts.append(f"## {one.tool} {one.algorithm}".rstrip() + f"\n{text}")
    return "\n\n".join(parts)


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
