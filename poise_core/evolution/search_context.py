"""What the stages of the search share beyond ``poise_core.evolution.run_context``: the roles, the run's history, and the
records of every child slot."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from poise_core.agents.roles import ProposalContext
from poise_core.agents.steering import steering_text
from poise_core.evolution.briefs import Briefs
from poise_core.evolution.history import History
from poise_core.evolution.records import CandidateRef, ChildSlot, Draft, load_record
from poise_core.evolution.roles import Roles
from poise_core.evolution.run_context import RunContext
from poise_core.failures import CandidateFailure
from poise_core.search.nodes import NodeRecord
from poise_core.search.plateau import Plateau, assess_plateau
from poise_core.search.references import reference_set


class SearchContext:
    """Handed to the stages that make children: select, propose, implement, verify, repair, reflect."""

    def __init__(self, run_context: RunContext, history: History, roles: Roles) -> None:
        """Bind to a run.

        Args:
            run_context: of the run.
            history: of the run.
            roles: who selects, proposes, screens, implements and reflects.
        """
        self.run_context, self.history, self.roles = run_context, history, roles
        self.run, self.archive = run_context.run, run_context.archive
        self.preset = self.run.preset
        self.protocol = self.preset.protocol
        self.briefs = Briefs(history, self.preset)
        self._wide: dict[int, bool] = {}  # generation -> whether its proposers are asked to change more at once

    @property
    def seeds(self) -> tuple[int, ...]:
        """The training seeds that every candidate of this run gets."""
        return self.protocol.seeds[: self.preset.search.seeds_per_candidate]

    def seed(self, *parts: object) -> int:
        """A seed for one purpose and slot, from the run's seed."""
        text = "/".join(map(str, (self.preset.search.seed, *parts)))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6])

    def announced(self, stage: str, what: str, generation: int) -> AbstractContextManager[Callable[[str], None]]:
        """Tell the observer of a stage; see ``RunContext.announced``."""
        return self.run_context.announced(stage, what, generation)

    # what roles are given

    def context(self, slot: ChildSlot) -> ProposalContext:
        """What the proposer and the screener of this slot may know."""
        nodes = self.history.nodes(slot.generation)
        seed = self.seed("references", slot.generation, slot.number)
        references = self.history.references(reference_set(nodes, slot.parent_id, seed=seed), slot.generation)
        ancestors = self.history.ancestors(slot.parent_id, slot.generation)
        bred = self.preset.search.bred(len(nodes))
        shown = [
            slot.parent_id,
            *(one.record.candidate_id for one in references),
            *(one.candidate_id for one in ancestors),
        ]
        return ProposalContext(
            parent=self.history.record(slot.parent_id, slot.generation),
            references=references,
            avoid=self.history.tried(slot.generation, slot.number),
            directive=steering_text(self.preset.agents.steering),
            generation=slot.generation,
            wide=self._is_wide(slot.generation, nodes),
            slot=slot.number,
            ancestors=ancestors,
            repeat=slot.repeat,
            immigrant=slot.number >= bred,
            variant=bred - self.preset.search.variants <= slot.number < bred,
            task=self.briefs.task_card(slot.generation),
            table=self.briefs.table(slot.generation, slot.number),
            calibration=self.briefs.calibration(slot.generation),
            ablations=self.briefs.ablations(slot.generation, shown),
            credit=self.briefs.credit(slot.generation),
            scored=self.history.scored(nodes),
        )

    def plateau(self, nodes: Sequence[NodeRecord]) -> Plateau:
        """Whether the search that has made these nodes is on a plateau."""
        search = self.preset.search
        return assess_plateau(nodes, search.plateau, parents=search.parents)

    def _is_wide(self, generation: int, nodes: Sequence[NodeRecord]) -> bool:
        """Whether proposers change more at once because the search is on a plateau; decided once per generation."""
        if generation not in self._wide:
            answers = self.preset.search.arm == "evolution" and self.preset.search.plateau.answer
            self._wide[generation] = answers and self.plateau(nodes).stalled
        return self._wide[generation]

    # what is on record for a slot

    def folder(self, slot: ChildSlot) -> Path:
        """Of the slot's records in the run directory."""
        return self.run.path / "generations" / slot.label

    def draft_path(self, slot: ChildSlot, number: int) -> Path:
        """Of the record of one answer of the implementer."""
        return self.folder(slot) / f"draft-{number}.json"

    def draft(self, slot: ChildSlot, number: int) -> Draft | None:
        """The recorded answer of this number; None where there is none."""
        stored = load_record(self.draft_path(slot, number))
        if stored is None:
            return None
        stored.pop("revision", None)  # records of earlier versions counted the drafts of a proposal
        return Draft(**stored)

    def drafts(self, slot: ChildSlot) -> list[Draft]:
        """What the implementer has answered for the slot, in order."""
        drafts: list[Draft] = []
        while (draft := self.draft(slot, len(drafts))) is not None:
            drafts.append(draft)
        return drafts

    def versions(self, slot: ChildSlot) -> list[Draft]:
        """The drafts that the gate has admitted: the child, and each repair of it."""
        drafts = [draft for draft in self.drafts(slot) if draft.candidate_id]
        rows = self.archive.rows("verifications", candidate_id=[draft.candidate_id for draft in drafts], admitted=True)
        admitted = {row["candidate_id"] for row in rows}
        return [draft for draft in drafts if draft.candidate_id in admitted]

    def slot_of(self, candidate: CandidateRef) -> ChildSlot | None:
        """Where the search made this candidate; None where it did not."""
        rows = self.archive.rows("candidates", candidate_id=candidate.candidate_id)
        identity = rows[0]["proposal_id"] if rows else None
        if identity is None:
            return None
        (proposal,) = self.archive.rows("proposals", proposal_id=identity)
        (parent,) = self.archive.rows("candidates", candidate_id=proposal["parent_ids"][0])
        return ChildSlot(proposal["generation"], proposal["slot"], parent["candidate_id"], parent["name"])

    def latest(self, candidate: CandidateRef) -> CandidateRef:
        """The last admitted file of the child's slot: the child itself, unless it was repaired."""
        slot = self.slot_of(candidate)
        versions = self.versions(slot) if slot else []
        return versions[-1].candidate(slot) if slot and versions else candidate

    def record_failure(self, slot: ChildSlot, failure: CandidateFailure, identity: str, name: str) -> None:
        """Archive why there is no child, or no file of an idea, under the identity that it would have had."""
        would_be = CandidateRef(identity, name, slot.generation, slot.parent_id)
        self.archive.append("failures", [self.run_context.failure_row(would_be, failure)], keep_existing=True)
