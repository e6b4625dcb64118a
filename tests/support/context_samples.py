"""A minimal reflection and a minimal context of the proposer."""

from typing import Any

from poise_core.agents.roles import CandidateRecord, Diagnosis, ProposalContext, Reflection
from poise_core.agents.rules.diagnoses import DIAGNOSES


def reflection(*codes: str, **changes: Any) -> Reflection:
    diagnoses = tuple(Diagnosis(code=code, text=code, slots=DIAGNOSES[code].slots) for code in codes)
    given: dict[str, Any] = {"candidate_id": "p", "parent_id": None, "reflector": "rules", "summary": "s"}
    return Reflection(**{**given, "diagnoses": diagnoses, **changes})


def place(taught: Reflection | None = None, **changes: Any) -> ProposalContext:
    parent = CandidateRecord("p", "PARENT", "SOURCE = 1\n", reflection=taught)
    return ProposalContext(parent, **changes)
