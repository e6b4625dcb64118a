"""The slots of a generation: from the evidence about a parent to a file that the gate admits, and back to its author.

Two bounded loops. Inner: the gate's report on a file goes back to the implementer (``search.revisions``), then the next-ranked
idea has its turn (``search.ideas_tried``). Outer: a training that shows a clear fault in its first steps goes back as well, and the
revised file of the same proposal passes the gate and trains as a candidate of its own (``search.repairs``); the failed one
stays, with its failure. Every answer is a draft, numbered in its slot and recorded before anybody acts on it.

Repairs of a generation run beside the admission of its later slots. So that nobody's speed decides anything, a repaired file
is seen by later generations only, and is compared with what the gate had admitted before its own slot.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from poise_core.agents.reports import gate_report, training_report
from poise_core.agents.roles import Attempt, Proposal, ProposalContext
from poise_core.archive import EVOLUTION_ARM as ARM
from poise_core.archive import failure_row, proposal_id, proposal_row
from poise_core.evolution.early_faults import clear_fault
from poise_core.evolution.events import announced
from poise_core.evolution.history import Memory
from poise_core.evolution.records import ChildSlot, Draft, failure_from_dict, failure_to_dict, load_record
from poise_core.evolution.roles import Roles
from poise_core.evolution.trials import CandidateRef, Trials
from poise_core.failures import CandidateFailure, FailureKind
from poise_core.files import write_atomically


class Admission:
    """The stages of every slot up to its admitted child; what has finished is read back."""

    def __init__(
        self,
        trials: Trials,
        memory: Memory,
        roles: Roles,
        *,
        first_seed: int,
        context: Callable[[ChildSlot], ProposalContext],
        seed: Callable[..., int],
    ) -> None:
        """Bind to a run.

        Args:
            trials: of the run.
            memory: of the run.
            roles: who proposes, screens and implements.
            first_seed: the training seed whose first steps show early faults.
            context: what the roles may know at a slot.
            seed: of the run's seed, for a purpose and a slot.
        """
        self.trials, self.memory, self.roles, self.context = trials, memory, roles, context
        self.run, self.archive = trials.run, trials.archive
        self.protocol, self.search = self.run.preset.protocol, self.run.preset.search
        self.first_seed, self._seed = first_seed, seed

    # ideas

    def propose(self, slot: ChildSlot) -> list[Proposal]:
        """Ideas for a child of the slot's parent."""
        path = self._folder(slot) / "proposals.json"
        stored = load_record(path)
        if stored is None:
            with self._stage("propose", slot.label, slot.generation) as say:
                context = self.context(slot)
                seed = self._seed("propose", slot.generation, slot.number)
                try:
                    proposals = self.roles.proposer.propose(context, self.search.proposals, seed)
                except CandidateFailure as failure:
                    self._record_failure(slot, failure, *child_to_be(slot))
                    proposals = []
                stored = [proposal.model_dump(mode="json") for proposal in proposals]
                write_record(path, stored)
                say(", ".join(proposal.name for proposal in proposals) or "nothing new")
        return [Proposal.model_validate(document) for document in stored]

    def screen(self, slot: ChildSlot) -> list[int]:
        """Indices of the feasible proposals, best first, as many as may be implemented."""
        path = self._folder(slot) / "screening.json"
        stored = load_record(path)
        if stored is None:
            proposals = self.propose(slot)
            with self._stage("screen", slot.label, slot.generation) as say:
                ranked = self.roles.screener.rank(proposals, self.context(slot))
                stored = [
                    {
                        "index": proposals.index(one.proposal),
                        "score": one.score,
                        "feasible": one.feasible,
                        "terms": dict(one.terms),
                        "reasons": list(one.reasons),
                        "screener": one.screener,
                    }
                    for one in ranked
                ]
                write_record(path, stored)
                say(f"{ranked[0].proposal.name} first of {len(ranked)}" if ranked else "nothing to rank")
        return [one["index"] for one in stored if one["feasible"]][: self.search.ideas_tried]

    # the inner loop: the gate

    def implement(self, slot: ChildSlot, refused: Draft | None = None) -> Draft:
        """A candidate file for the slot: of the best idea, or the next try after a refused one.

        Up to ``search.revisions`` further drafts answer the gate's report on the same idea, where the implementer has an
        answer; then the next-ranked idea has its turn, ``search.ideas_tried`` at most.

        Raises:
            CandidateFailure: no idea is left.
        """
        number = refused.number + 1 if refused else 0
        draft = self._draft(slot, number)
        while draft is not None and draft.failure is not None:
            number += 1
            draft = self._draft(slot, number)
        if draft is None:
            self._settle(slot)
            failure = CandidateFailure(FailureKind.REJECTED, "implement", self._why_no_child(slot))
            if not self.drafts(slot):  # otherwise every draft has a row of its own
                self._record_failure(slot, failure, *child_to_be(slot))
            raise failure
        return draft

    def verify(self, slot: ChildSlot, draft: Draft) -> CandidateRef:
        """The first draft that the gate admits, beginning with this one.

        Raises:
            CandidateFailure: none was admitted.
            InfrastructureError: the gate could not run.
        """
        while True:
            try:
                candidate = self._admit(slot, draft)
            except CandidateFailure:
                draft = self.implement(slot, draft)
            else:
                self._settle(slot)
                return candidate

    # the outer loop: the first steps of training

    def rounds(self, slots: Sequence[ChildSlot]) -> int:
        """How often children of these slots may go back to their authors: the preset's bound, 0 where nobody could
        answer, and never less than what is on record."""
        recorded = [len(_repaired(self.drafts(slot))) for slot in slots]
        return max([self.search.repairs if self.roles.implementer.revises else 0, *recorded])

    def repair(self, candidate: CandidateRef) -> CandidateRef:
        """The child to go on with: the same where nothing failed, otherwise a revised file that the gate has admitted.

        Raises:
            CandidateFailure: it failed, and of nothing that its author could mend (:mod:`poise_core.evolution.early_faults`);
                or its repairs are used up, or no answer was admitted. It is the recorded failure of the training.
            InfrastructureError: the gate could not run, or a model cannot be used.
        """
        failure = self.trials.failure(candidate)
        if failure is None:
            return candidate
        slot = self._slot(candidate)
        if slot is None:  # not made by this search
            raise failure
        number = 1 + max(draft.number for draft in self.drafts(slot) if draft.candidate_id == candidate.candidate_id)
        while (draft := self._repair_draft(slot, number, candidate, failure)) is not None:
            number += 1
            if draft.failure is None:
                try:
                    return self._admit(slot, draft)
                except CandidateFailure:  # refused by the gate: recorded, and answered by the next draft
                    continue
        raise failure

    def latest(self, candidate: CandidateRef) -> CandidateRef:
        """The last admitted file of the child's slot: the child itself, unless it was repaired."""
        slot = self._slot(candidate)
        versions = self._versions(slot) if slot else []
        return _candidate_ref(slot, versions[-1]) if slot and versions else candidate

    def ended(self, slot: ChildSlot) -> bool:
        """Whether the slot has come to its end, in a reflection or without an admissible child."""
        if not self.archive.contains("proposals", arm=ARM, generation=slot.generation, slot=slot.number):
            identity, _ = child_to_be(slot)  # a slot without a single idea has ended where that is on record
            keys = {"protocol": self.protocol.digest, "stage": "implement", "attempt": 0}
            return self.archive.contains("failures", candidate_id=identity, **keys)
        versions = self._versions(slot)
        return not versions or self.memory.reflection(str(versions[-1].candidate_id)) is not None

    def _repair_draft(
        self, slot: ChildSlot, number: int, candidate: CandidateRef, failure: CandidateFailure
    ) -> Draft | None:
        stored = load_record(self._draft_path(slot, number))
        if stored is not None:
            return Draft(**stored)
        earlier = self.drafts(slot)
        tries = [draft for draft in earlier if draft.repairs == candidate.candidate_id]
        rounds = len(_repaired(earlier) | {candidate.candidate_id})
        if tries:
            if len(tries) > self.search.revisions or tries[-1].failure:
                return None
        elif (
            rounds > self.search.repairs
            or not self.roles.implementer.revises
            or not self._clear_fault(candidate, failure)
            or self.memory.reflection(candidate.candidate_id) is not None  # this slot has ended
        ):
            return None
        (own,) = [draft for draft in earlier if draft.candidate_id == candidate.candidate_id][-1:]
        return self._write_draft(slot, number, own.index, repairs=candidate.candidate_id)

    def _clear_fault(self, candidate: CandidateRef, failure: CandidateFailure) -> bool:
        return clear_fault(
            failure,
            self.archive.trajectory(candidate.candidate_id, self.protocol.digest),
            first_seed=self.first_seed,
            within_steps=self.search.repair_steps,
            training_steps=self.protocol.training.steps,
        )

    # drafts

    def drafts(self, slot: ChildSlot) -> list[Draft]:
        """What the implementer has answered for the slot, in order."""
        drafts: list[Draft] = []
        while (stored := load_record(self._draft_path(slot, len(drafts)))) is not None:
            drafts.append(Draft(**stored))
        return drafts

    def _versions(self, slot: ChildSlot) -> list[Draft]:
        """The drafts that the gate has admitted: the child, and each repair of it."""
        drafts = [draft for draft in self.drafts(slot) if draft.candidate_id]
        rows = self.archive.rows("verifications", candidate_id=[draft.candidate_id for draft in drafts], admitted=True)
        admitted = {row["candidate_id"] for row in rows}
        return [draft for draft in drafts if draft.candidate_id in admitted]

    def _draft(self, slot: ChildSlot, number: int) -> Draft | None:
        """The implementer's answer of this number; None where no idea is left to ask about."""
        stored = load_record(self._draft_path(slot, number))
        if stored is not None:
            return Draft(**stored)
        earlier = self.drafts(slot)[:number]
        for index in self.screen(slot):
            own = [draft for draft in earlier if draft.index == index]
            if len(own) <= self.search.revisions and not any(draft.failure for draft in own):
                return self._write_draft(slot, number, index)
        return None

    def _write_draft(self, slot: ChildSlot, number: int, index: int, repairs: str | None = None) -> Draft:
        proposal = self.propose(slot)[index]
        earlier = [draft for draft in self.drafts(slot)[:number] if draft.index == index and draft.candidate_id]
        attempts = [self._attempt(draft) for draft in earlier]
        identity = proposal_id(ARM, slot.generation, slot.number, index)
        stage = "repair" if repairs else "implement"
        made, failed = None, None
        with self._stage(stage, proposal.name, slot.generation) as say:
            try:
                source = self.roles.implementer.implement(proposal, self.context(slot), attempts)
                made = self.register(
                    proposal.name,
                    source,
                    written_by=proposal.proposer,
                    generation=slot.generation,
                    parent_ids=proposal.parent_ids,
                    composition=proposal.composition,
                    hypothesis=proposal.hypothesis,
                    change=proposal.mechanism_change,
                    proposal_id=identity,
                    revises=earlier[-1].candidate_id if earlier else None,
                ).candidate_id
                if repairs and made in {draft.candidate_id for draft in earlier}:
                    raise CandidateFailure(FailureKind.REJECTED, stage, f"{proposal.name}: the same file as before")
                say(made)
            except CandidateFailure as failure:
                made, failed = None, failure_to_dict(failure)
                if not attempts:  # otherwise the refusal that could not be answered is on record
                    self._record_failure(slot, failure, identity, proposal.name)
                say(f"{failure.kind}: {failure.message}")
            draft = Draft(number, index, len(earlier), made, proposal.name, failed, repairs)
            write_record(self._draft_path(slot, number), asdict(draft))
        return draft

    def _attempt(self, draft: Draft) -> Attempt:
        """An earlier file of the same proposal with what its author has to answer: the gate's report or the training's."""
        (candidate,) = self.archive.rows("candidates", candidate_id=draft.candidate_id)
        failures = {
            row["stage"]: failure_from_dict(row)
            for row in self.archive.rows("failures", candidate_id=draft.candidate_id, protocol=self.protocol.digest)
        }
        if refused := failures.get("verify"):
            return Attempt(candidate["source"], "verify", gate_report(refused))
        steps = self.archive.trajectory(str(draft.candidate_id), self.protocol.digest)
        return Attempt(candidate["source"], "train", training_report(failures["train"], steps))

    def _admit(self, slot: ChildSlot, draft: Draft) -> CandidateRef:
        candidate = _candidate_ref(slot, draft)
        self.trials.verify(candidate, unseen=self.memory.unseen(slot.generation, slot.number))
        return candidate

    def register(self, name: str, source: str, **columns: Any) -> CandidateRef:
        """Give a candidate its place in the run, with its composition where the catalogue can express it.

        Raises:
            CandidateFailure: see :meth:`Trials.register`.
        """
        composition = columns.pop("composition", None) or _known_composition(source)
        mechanisms = composition["choices"] if composition else None
        return self.trials.register(name, source, arm=ARM, composition=composition, mechanisms=mechanisms, **columns)

    # records

    def _settle(self, slot: ChildSlot) -> None:
        """Archive the ideas of a slot once it is known which of them were implemented."""
        if self.archive.contains("proposals", arm=ARM, generation=slot.generation, slot=slot.number):
            return
        drafts = self.drafts(slot)
        ranked = {
            one["index"]: (rank, one) for rank, one in enumerate(load_record(self._folder(slot) / "screening.json"))
        }
        rows = []
        for index, proposal in enumerate(self.propose(slot)):
            rank, screened = ranked[index]
            rows.append(
                proposal_row(
                    proposal.model_dump(mode="json"),
                    generation=slot.generation,
                    slot=slot.number,
                    index=index,
                    written_by=proposal.proposer,
                    taken=any(draft.index == index and draft.candidate_id for draft in drafts),
                    arm=ARM,
                    rank=rank,
                    score=screened["score"],
                    terms=screened["terms"],
                    feasible=screened["feasible"],
                    reasons=screened["reasons"],
                    screened_by=screened.get("screener"),
                )
            )
        self.archive.append("proposals", rows)

    def _slot(self, candidate: CandidateRef) -> ChildSlot | None:
        """Where the search made this candidate; None where it did not."""
        rows = self.archive.rows("candidates", candidate_id=candidate.candidate_id)
        identity = rows[0]["proposal_id"] if rows else None
        if identity is None:
            return None
        (proposal,) = self.archive.rows("proposals", proposal_id=identity)
        (parent,) = self.archive.rows("candidates", candidate_id=proposal["parent_ids"][0])
        return ChildSlot(proposal["generation"], proposal["slot"], parent["candidate_id"], parent["name"])

    def _why_no_child(self, slot: ChildSlot) -> str:
        drafts = self.drafts(slot)
        if not drafts:
            return f"no feasible proposal for {slot.parent_name}"
        return f"no admissible child of {slot.parent_name} in {len(drafts)} drafts"

    def _record_failure(self, slot: ChildSlot, failure: CandidateFailure, identity: str, name: str) -> None:
        row = failure_row(
            failure,
            candidate_id=identity,
            protocol=self.protocol.digest,
            name=name,
            generation=slot.generation,
            parent_id=slot.parent_id,
        )
        self.archive.append("failures", [row], keep_existing=True)

    def _stage(self, stage: str, what: str, generation: int) -> AbstractContextManager[Callable[[str], None]]:
        return announced(self.trials.observer, stage, what, generation, self.trials.should_stop)

    def _folder(self, slot: ChildSlot) -> Path:
        return self.run.path / "generations" / slot.label

    def _draft_path(self, slot: ChildSlot, number: int) -> Path:
        return self._folder(slot) / f"draft-{number}.json"


def child_to_be(slot: ChildSlot) -> tuple[str, str]:
    """Identity and name of a child that there is no idea for yet."""
    return f"{ARM}-g{slot.generation}-s{slot.number}", f"child of {slot.parent_name}"


def write_record(path: Path, document: Any) -> None:
    """Put a stage's record into the run directory, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(document, indent=1) + "\n")


def _candidate_ref(slot: ChildSlot, draft: Draft) -> CandidateRef:
    assert draft.candidate_id is not None
    return CandidateRef(draft.candidate_id, draft.name, slot.generation, slot.parent_id)


def _repaired(drafts: Sequence[Draft]) -> set[str]:
    """The candidates that drafts of a slot answer for."""
    return {draft.repairs for draft in drafts if draft.repairs}


def _known_composition(source: str) -> dict[str, Any] | None:
    from poise_core.mechanisms.known import composition_for

    known = composition_for(source)
    return known.composition.model_dump(mode="json") if known else None
