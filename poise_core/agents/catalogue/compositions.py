"""Compositions of candidates and of tried ideas, and the diagnoses that the next proposals should answer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from poise_core.agents.roles import CandidateRecord, ProposalContext
from poise_core.mechanisms.composition import GRPO, Composition
from poise_core.mechanisms.known import Known, composition_for
from poise_core.mechanisms.model import Choice

DIRECTIVE_HINTS: Mapping[str, str] = {
    r"short|concise|brief|length|verbos": "length_growth",
    r"format|pars": "format_invalid",
    r"explor|entropy|divers": "entropy_collapse",
    r"stab|spike|kl": "kl_spike",
    r"hard|difficult|fail": "all_fail_high",
}
"""Words of a directive -> the diagnosis whose answers they call for."""


def read_composition(data: Mapping[str, object] | None) -> Composition | None:
    """The composition of archived data; None where there is none, or the catalogue cannot express it."""
    try:
        return Composition.model_validate(dict(data)) if data is not None else None
    except ValidationError:
        return None


def known_composition(candidate: Mapping[str, Any]) -> Known | None:
    """A row of the archive's candidates: as recorded, or a shipped algorithm; None where the catalogue cannot express it."""
    if candidate["composition"] is not None:
        recorded = read_composition(json.loads(candidate["composition"]))
        return Known(recorded) if recorded else None
    return composition_for(candidate["source"])


def composition_of_record(record: CandidateRecord) -> tuple[Composition, str]:
    """A candidate as a composition, and what the composition leaves out ('' where nothing).

    A file that the catalogue does not know counts as GRPO, and the second value says so.
    """
    if record.composition is not None:
        try:
            return Composition.model_validate(dict(record.composition)), ""
        except ValidationError:  # archived by a version with another catalogue; the source may still be known
            pass
    known = composition_for(record.source)
    if known is None:
        return (
            GRPO,
            f"everything in which {record.name} differs from GRPO, because the catalogue cannot express its file",
        )
    return known.composition, known.left_out


def tried_compositions(context: ProposalContext) -> list[Composition]:
    """What was implemented or refused in this run; an idea that was only ranked lower may come again."""
    known = [read_composition(tried.composition) for tried in context.avoid if tried.outcome != "not_taken"]
    return [composition for composition in known if composition is not None]


def wanted_answers(context: ProposalContext) -> set[str]:
    """Codes of the parent's diagnoses, and those that the directive's words stand for."""
    reflection = context.parent.reflection
    codes = {diagnosis.code for diagnosis in reflection.diagnoses} if reflection else set()
    directive = context.directive.lower()
    return codes | {code for words, code in DIRECTIVE_HINTS.items() if re.search(words, directive)}


@dataclass
class TriedIdeas:
    """Compositions, sources and names that may not be proposed again; each new proposal is added."""

    keys: set[str]
    digests: set[str]
    names: set[str]

    @classmethod
    def of(cls, context: ProposalContext, base: Composition) -> TriedIdeas:
        """All that the context names: the parent, the references and what the run has tried."""
        records = [context.parent, *(reference.record for reference in context.references)]
        compositions = [base, *(composition_of_record(record)[0] for record in records), *tried_compositions(context)]
        return cls(
            {composition.key for composition in compositions},
            {tried.source_digest for tried in context.avoid if tried.source_digest},
            {name.upper() for name in [*(r.name for r in records), *(t.name for t in context.avoid), "GRPO"]},
        )

    def add(self, composition: Composition) -> bool:
        """Add the composition, and say whether it was new."""
        new = composition.key not in self.keys
        self.keys.add(composition.key)
        return new

    def name_for(self, parent: CandidateRecord, changed: Sequence[Choice]) -> str:
        """Tags of the new mechanisms, then what fits of the parent's name, for example ``VM-AV``."""
        inherited = [] if parent.name.upper() == "GRPO" else re.sub(r"-\d+$", "", parent.name.upper()).split("-")
        parts = list(dict.fromkeys([*(choice.tag for choice in changed), *inherited]))[:3]
        stem, number = "-".join(parts), 1
        name = stem
        while name.upper() in self.names:
            number += 1
            name = f"{stem}-{number}"
        self.names.add(name.upper())
        return name
