"""A question to a language model, a valid answer, scripts of answers, calls of tools, and their rows in the ledger."""

import json
from collections.abc import Callable, Iterator
from typing import Any

from llm_server import Calls, Fail
from pydantic import BaseModel, Field
from script import implementation

from poise_core.agents.llm.call import Question
from poise_core.agents.llm.tools import LONGEST_DRAFT
from poise_core.agents.roles import CandidateRecord, Diagnosis, ProposalContext, Reflection
from poise_core.agents.rules.diagnoses import DIAGNOSES
from poise_core.archive import Archive


class Colour(BaseModel):
    """A colour."""

    name: str = Field(min_length=1)
    red: int


GOOD = {"name": "green", "red": 0}


def question(**changes: Any) -> Question[Colour]:
    given: dict[str, Any] = {
        "role": "proposer", "scope": "gen-01/slot-0", "generation": 1, "kind": Colour,
        "build": lambda budget: ("Answer.", f"Which colour? {'x' * min(budget, 4000)}"), "prompt": "proposer.md v1 @0",
    }  # fmt: skip
    return Question(**{**given, **changes})


def script_of(*answers: Any) -> Callable[[dict[str, Any]], Any]:
    """These answers one after the other, the last one for ever."""
    left: Iterator[Any] = iter(answers)
    last = [answers[-1]]

    def script(body: dict[str, Any]) -> Any:
        last[0] = next(left, last[0])
        return last[0]

    return script


def outcomes(archive: Archive) -> list[str]:
    rows = sorted(archive.rows("calls"), key=lambda row: row["created_at"])
    return [row["outcome"] for row in rows]


def reflection(*codes: str, **changes: Any) -> Reflection:
    diagnoses = tuple(Diagnosis(code=code, text=code, slots=DIAGNOSES[code].slots) for code in codes)
    given: dict[str, Any] = {"candidate_id": "p", "parent_id": None, "reflector": "rules", "summary": "s"}
    return Reflection(**{**given, "diagnoses": diagnoses, **changes})


def place(taught: Reflection | None = None, **changes: Any) -> ProposalContext:
    parent = CandidateRecord("p", "PARENT", "SOURCE = 1\n", reflection=taught)
    return ProposalContext(parent, **changes)


READ = ("read_reference", {"algorithm": "DAPO"})

TOOL_CASES: dict[str, tuple[Calls, list[str]]] = {
    # what a model calls, and what it is told of each call
    "several in one reply": (Calls((READ, ("read_reference", {"algorithm": "rloo"}))), ["DAPO", "RLOO"]),
    "with text beside it": (Calls((READ,), "Let me look at DAPO first. {"), ["DAPO"]),
    "with the answer beside it": (Calls((("ImplementationForm", implementation(1.0)), READ)), ["DAPO"]),
    "an unknown tool": (
        Calls((("run_shell", {"command": "ls"}),)),
        ["there is no such tool; there are run_gate, probe_numbers, read_reference"],
    ),
    "arguments of another name": (Calls((("run_gate", {"code": "x"}),)), ["it takes source, a text; the call gave code"]),
    "arguments of another type": (Calls((("run_gate", {"source": 7}),)), ["it takes source, a text"]),
    "an unknown algorithm": (Calls((("read_reference", {"algorithm": "XPO"}),)), ["no algorithm 'XPO'; there are"]),
    "a draft without an end": (
        Calls((("run_gate", {"source": "x" * (LONGEST_DRAFT + 1)}),)), [f"at most {LONGEST_DRAFT} are read"],
    ),
    "too many": (Calls((READ,) * 9), ["DAPO"] * 3 + ["not run: at most 3 tools"] * 3 + ["and 3 more, not run"]),
}  # fmt: skip


def refusing_tools(refusal: Fail) -> Callable[[dict[str, Any]], Any]:
    """A server that takes no tools beside the answer's form; without them its model asks for the gate by turns."""

    def script(body: dict[str, Any]) -> Any:
        offers = json.dumps(body.get("tools") or [])
        return refusal if "run_gate" in offers else {**implementation(1.0), "tries": [{"tool": "run_gate"}]}

    return script
