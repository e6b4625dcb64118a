"""A question to a language model, a valid answer, scripts of answers, and their rows in the ledger."""

from collections.abc import Callable, Iterator
from typing import Any

from pydantic import BaseModel, Field

from poise_core.agents.llm.call import Question
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
