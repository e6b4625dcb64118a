"""One run of the search: a baseline, then generations of children.

Every method is one stage. A stage that has finished is read back, so calling all of them again in the same order costs
look-ups only and goes on where the last process ended, however it ended. Places of a generation are admitted one after
the other, because each proposer sees the ideas before it; training and all that follows may run side by side.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from poise_core.agents.base import Attempt, Proposal, ProposalContext, Reflection
from poise_core.agents.ledger import Allowance
from poise_core.agents.steering import steering_text
from poise_core.archive import EVOLUTION_ARM as ARM
from poise_core.archive import Archive, failure_row, proposal_id, proposal_row, reflection_row, selection_row
from poise_core.evolution.events import Observer, announced, ignore
from poise_core.evolution.ladder import Ladder, Rung
from poise_core.evolution.memory import Memory, with_bonus
from poise_core.evolution.places import Draft, Place, failure_to_dict, load_record
from poise_core.evolution.roles import Roles, roles_for
from poise_core.evolution.trials import ComputeSlot, Subject, Trials
from poise_core.failures import Cancelled, CandidateFailure, FailureKind
from poise_core.files import write_atomically
from poise_core.run_directory import RunDirectory
from poise_core.search.nodes import NodeRecord
from poise_core.search.plateau import Plateau, assess_plateau
from poise_core.search.references import reference_set
from poise_core.search.selection import Selection

IDEAS_TRIED = 3
"""Proposals of one place that are implemented at most, one after the other, until one is admitted."""

REVISIONS = 2
"""How often the implementer may answer the gate's report on one proposal."""


class EvolutionError(Exception):
    """The search cannot go on; the message is one line."""


class Evolution:
    """The stages of one run, bound to its directory; see the module's docstring."""

    def __init__(
        self,
        run: RunDirectory,
        *,
        roles: Roles | None = None,
        observer: Observer = ignore,
        replay: Archive | None = None,
        compute_slot: ComputeSlot = nullcontext,
        allowance: Allowance | None = None,
    ) -> None:
        """Bind to a run directory.

        Args:
            run: opened.
            roles: instead of those of the preset.
            observer: told what happens.
            replay: the archive of a recorded run, whose language models' answers are taken instead of new ones.
            compute_slot: held while a training or an evaluation runs.
            allowance: what language models may cost; the call that could cost more is not made, and the run stops.
        """
        self.run = run
        self.preset = run.preset
        self.observer = observer
        self._stop = threading.Event()
        self.stop_reason = ""
        self.roles = roles or roles_for(
            run.preset, run.archive, replay=replay, should_stop=self._stop.is_set, allowance=allowance
        )
        self.trials = Trials(run, observer=observer, should_stop=self._stop.is_set, compute_slot=compute_slot)
        self.memory = Memory(run.archive, run.preset.protocol)
        self.ladder = Ladder(self.trials, self.seeds)

    def stop(self, reason: str = "") -> None:
        """Ask every running stage to end its child processes and to raise ``Cancelled``; callable from any thread.

        Args:
            reason: for people; the first one given is kept as ``stop_reason``.
        """
        self.stop_reason = self.stop_reason or reason
        self._stop.set()

    def go_on(self) -> None:
        """Undo :meth:`stop`. Only while no stage is running: one that has not seen the stop yet would not end."""
        self._stop.clear()

    @property
    def stopped(self) -> bool:
        """Whether :meth:`stop` was called."""
        return self._stop.is_set()

    @property
    def seeds(self) -> tuple[int, ...]:
        """The training seeds that every candidate of this run gets."""
        return self.preset.protocol.seeds[: self.preset.search.seeds_per_candidate]

    # the baseline

    def measure_base_policy(self) -> Subject:
        """Score the untrained policy, to show what training itself gains."""
        return self.trials.evaluate_untrained(self.seeds)

    def register_baseline(self) -> Subject:
        """Put the baseline algorithm into the run."""
        from poise_core.algorithms import algorithm_path

        path = algorithm_path(self.preset.search.baseline)
        name = path.stem.upper().replace("_", "-")
        return self._register(name, path.read_text(), written_by="human", generation=0)

    def verify_baseline(self, baseline: Subject) -> Subject:
        """Put the baseline through the gate that its children will meet."""
        self.trials.verify(baseline, must_be_new=False)
        return baseline

    # from the archive to a child

    def select_parents(self, generation: int) -> list[Place]:
        """The places of a generation, each with its parent.

        Raises:
            EvolutionError: no candidate has a score yet.
        """
        protocol = self.preset.protocol.digest
        names = {row["candidate_id"]: row["name"] for row in self.memory.candidates()}
        if not self.run.archive.contains("selections", protocol=protocol, arm=ARM, generation=generation):
            nodes = self.memory.nodes(generation)
            bonuses = self.memory.steering_bonuses(nodes, self.preset.agents.steering)
            steered = [with_bonus(node, bonuses.get(node.candidate_id, 0.0)) for node in nodes]
            chosen = self.roles.selector.select(steered, self.preset.search.parents, self._seed("select", generation))
            if not chosen:
                raise EvolutionError(f"nothing to select parents from: {self._why_no_scores()}")
            self.run.archive.append("selections", self._selection_rows(generation, chosen, bonuses))
            self.run.archive.compact()
        rows = self.run.archive.rows("selections", protocol=protocol, arm=ARM, generation=generation, selected=True)
        places = [
            Place(generation, slot, row["candidate_id"], names[row["candidate_id"]], repeat, row["reason"] or "")
            for row in rows
            for repeat, slot in enumerate(row["slots"])
        ]
        return sorted(places, key=lambda place: place.slot)

    def propose(self, place: Place) -> list[Proposal]:
        """Ideas for a child of the place's parent."""
        path = self._folder(place) / "proposals.json"
        stored = load_record(path)
        if stored is None:
            with self._stage("propose", place.label, place.generation) as say:
                context = self.context(place)
                seed = self._seed("propose", place.generation, place.slot)
                try:
                    proposals = self.roles.proposer.propose(context, self.preset.search.proposals, seed)
                except CandidateFailure as failure:
                    self._record_failure(place, failure, *self._child_to_be(place))
                    proposals = []
                stored = [proposal.model_dump(mode="json") for proposal in proposals]
                self._write(path, stored)
                say(", ".join(proposal.name for proposal in proposals) or "nothing new")
        return [Proposal.model_validate(document) for document in stored]

    def screen(self, place: Place) -> list[int]:
        """Indices of the feasible proposals, best first, as many as may be implemented."""
        path = self._folder(place) / "screening.json"
        stored = load_record(path)
        if stored is None:
            proposals = self.propose(place)
            with self._stage("screen", place.label, place.generation) as say:
                ranked = self.roles.screener.rank(proposals, self.context(place))
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
                self._write(path, stored)
                say(f"{ranked[0].proposal.name} first of {len(ranked)}" if ranked else "nothing to rank")
        return [one["index"] for one in stored if one["feasible"]][:IDEAS_TRIED]

    def implement(self, place: Place, refused: Draft | None = None) -> Draft:
        """A candidate file for the place: of the best idea, or the next try after a refused one.

        Up to ``REVISIONS`` further drafts answer the gate's report on the same idea, where the implementer has an answer;
        then the next-ranked idea has its turn, ``IDEAS_TRIED`` at most.

        Raises:
            CandidateFailure: no idea is left.
        """
        number = refused.number + 1 if refused else 0
        draft = self._draft(place, number)
        while draft is not None and draft.failure is not None:
            number += 1
            draft = self._draft(place, number)
        if draft is None:
            self._settle(place)
            failure = CandidateFailure(FailureKind.REJECTED, "implement", self._why_no_child(place))
            if not self._drafts(place):  # otherwise every draft has a row of its own
                self._record_failure(place, failure, *self._child_to_be(place))
            raise failure
        return draft

    def verify(self, place: Place, draft: Draft) -> Subject:
        """The first draft that the gate admits, beginning with this one.

        Raises:
            CandidateFailure: none was admitted.
            InfrastructureError: the gate could not run.
        """
        while True:
            assert draft.candidate_id is not None
            subject = Subject(draft.candidate_id, draft.name, place.generation, place.parent_id)
            try:
                self.trials.verify(subject)
            except CandidateFailure:
                draft = self.implement(place, draft)
            else:
                self._settle(place)
                return subject

    # a child's measurements

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """The rungs that every child climbs or is stopped at."""
        return self.ladder.rungs

    def train(self, subject: Subject, rung: Rung = "all") -> Subject:
        """Train as far as a rung asks, by default with this run's seeds; see :meth:`Ladder.train`."""
        self.ladder.train(subject, rung)
        return subject

    def evaluate(self, subject: Subject, rung: Rung = "all") -> Subject:
        """Score what was trained and decide whether the child goes on; see :meth:`Ladder.judge`."""
        self.ladder.judge(subject, rung)
        return subject

    def reflect(self, subject: Subject) -> Reflection:
        """What the candidate taught, be it scored, stopped on the ladder or failed in training.

        Raises:
            Cancelled: it is neither yet, because an earlier stage was stopped or the machine failed.
        """
        if stored := self.memory.reflection(subject.candidate_id):
            return stored
        failure = self.trials.failure(subject)
        stopped = self.ladder.stopped(subject)
        measured = len(self.trials.evaluations(subject, self.seeds)) == len(self.seeds)
        if failure is None and stopped is None and not measured:
            raise Cancelled(f"no reflection on {subject.name}: it has neither a score nor a failure yet")
        with self._stage("reflect", subject.name, subject.generation) as say:
            directive = steering_text(self.preset.agents.steering)
            evidence = replace(
                self.memory.evidence(subject, failure, stopped), directive=directive, generation=subject.generation
            )
            reflection = self.roles.reflector.reflect(evidence)
            row = reflection_row(
                candidate_id=subject.candidate_id,
                protocol=self.preset.protocol.digest,
                summary=reflection.summary,
                markdown=reflection.as_text(),
                content=reflection.model_dump(mode="json"),
                written_by=reflection.reflector,
                parent_id=reflection.parent_id,
            )
            self.run.archive.append("reflections", [row], keep_existing=True)
            say(reflection.summary)
        return reflection

    def finished(self, generation: int) -> bool:
        """Whether every place of the generation has come to its end, in a reflection or without an admissible child."""
        protocol = self.preset.protocol.digest
        if not self.run.archive.contains("selections", protocol=protocol, arm=ARM, generation=generation):
            return False
        return all(self._ended(place) for place in self.select_parents(generation))

    def first_unfinished(self) -> int:
        """The number of the first generation that has not come to its end, begun or not."""
        number = 1
        while self.finished(number):
            number += 1
        return number

    def _ended(self, place: Place) -> bool:
        if not self.run.archive.contains("proposals", arm=ARM, generation=place.generation, slot=place.slot):
            identity, _ = self._child_to_be(place)  # a place without a single idea has ended where that is on record
            keys = {"protocol": self.preset.protocol.digest, "stage": "implement", "attempt": 0}
            return self.run.archive.contains("failures", candidate_id=identity, **keys)
        drafts = [draft.candidate_id for draft in self._drafts(place) if draft.candidate_id]
        admitted = self.run.archive.rows("verifications", candidate_id=drafts, admitted=True)
        reflected = self.run.archive.rows(
            "reflections", protocol=self.preset.protocol.digest, candidate_id=[row["candidate_id"] for row in admitted]
        )
        return len(reflected) == len(admitted)

    # what roles are given

    def context(self, place: Place) -> ProposalContext:
        """What the proposer and the screener of this place may know."""
        nodes = self.memory.nodes(place.generation)
        seed = self._seed("references", place.generation, place.slot)
        return ProposalContext(
            parent=self.memory.record(place.parent_id),
            references=self.memory.references(reference_set(nodes, place.parent_id, seed=seed)),
            avoid=self.memory.tried(place.generation),
            directive=steering_text(self.preset.agents.steering),
            generation=place.generation,
            wide=self._answers_plateau() and self.plateau(nodes).stalled,
            slot=place.slot,
            ancestors=self.memory.ancestors(place.parent_id),
        )

    def plateau(self, nodes: Sequence[NodeRecord]) -> Plateau:
        """Whether the search that has made these nodes still gets anywhere."""
        search = self.preset.search
        return assess_plateau(nodes, search.plateau, parents=search.parents)

    def _answers_plateau(self) -> bool:
        return self.preset.search.arm == "evolution" and self.preset.search.plateau.answer

    # records

    def _draft(self, place: Place, number: int) -> Draft | None:
        """The implementer's answer of this number; None where no idea is left to ask about."""
        path = self._folder(place) / f"draft-{number}.json"
        stored = load_record(path)
        if stored is not None:
            return Draft(**stored)
        earlier = [Draft(**load_record(self._folder(place) / f"draft-{n}.json")) for n in range(number)]
        for index in self.screen(place):
            own = [draft for draft in earlier if draft.index == index]
            if len(own) <= REVISIONS and not any(draft.failure for draft in own):
                draft = self._write_draft(place, number, index, own)
                self._write(path, json.loads(draft.to_json()))
                return draft
        return None

    def _write_draft(self, place: Place, number: int, index: int, refused: Sequence[Draft]) -> Draft:
        proposal = self.propose(place)[index]
        attempts = [self._attempt(draft) for draft in refused]
        identity = proposal_id(ARM, place.generation, place.slot, index)
        with self._stage("implement", proposal.name, place.generation) as say:
            try:
                source = self.roles.implementer.implement(proposal, self.context(place), attempts)
                subject = self._register(
                    proposal.name,
                    source,
                    written_by=proposal.proposer,
                    generation=place.generation,
                    parent_ids=proposal.parent_ids,
                    composition=proposal.composition,
                    hypothesis=proposal.hypothesis,
                    change=proposal.mechanism_change,
                    proposal_id=identity,
                )
            except CandidateFailure as failure:
                if not attempts:  # otherwise the refusal that could not be answered is on record
                    self._record_failure(place, failure, identity, proposal.name)
                say(f"{failure.kind}: {failure.message}")
                return Draft(number, index, len(attempts), None, proposal.name, failure_to_dict(failure))
            say(subject.candidate_id)
        return Draft(number, index, len(attempts), subject.candidate_id, proposal.name)

    def _attempt(self, draft: Draft) -> Attempt:
        assert draft.candidate_id is not None
        (candidate,) = self.run.archive.rows("candidates", candidate_id=draft.candidate_id)
        (failure,) = self.run.archive.rows("failures", candidate_id=draft.candidate_id, stage="verify")
        return Attempt(candidate["source"], "verify", failure["detail"] or failure["message"])

    def _register(self, name: str, source: str, **columns: Any) -> Subject:
        composition = columns.pop("composition", None) or _known_composition(source)
        mechanisms = composition["choices"] if composition else None
        return self.trials.register(name, source, arm=ARM, composition=composition, mechanisms=mechanisms, **columns)

    def _settle(self, place: Place) -> None:
        """Archive the ideas of a place once it is known which of them were implemented."""
        if self.run.archive.contains("proposals", arm=ARM, generation=place.generation, slot=place.slot):
            return
        drafts = self._drafts(place)
        ranked = {
            one["index"]: (rank, one) for rank, one in enumerate(load_record(self._folder(place) / "screening.json"))
        }
        rows = []
        for index, proposal in enumerate(self.propose(place)):
            rank, screened = ranked[index]
            rows.append(
                proposal_row(
                    proposal.model_dump(mode="json"),
                    generation=place.generation,
                    slot=place.slot,
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
        self.run.archive.append("proposals", rows)

    def _drafts(self, place: Place) -> list[Draft]:
        drafts: list[Draft] = []
        while (stored := load_record(self._folder(place) / f"draft-{len(drafts)}.json")) is not None:
            drafts.append(Draft(**stored))
        return drafts

    @staticmethod
    def _child_to_be(place: Place) -> tuple[str, str]:
        """Identity and name of a child that there is no idea for yet."""
        return f"{ARM}-g{place.generation}-s{place.slot}", f"child of {place.parent_name}"

    def _why_no_child(self, place: Place) -> str:
        drafts = self._drafts(place)
        if not drafts:
            return f"no feasible proposal for {place.parent_name}"
        return f"no admissible child of {place.parent_name} in {len(drafts)} drafts"

    def _why_no_scores(self) -> str:
        for row in self.memory.candidates():
            failure = self.trials.failure(Subject(row["candidate_id"], row["name"]))
            if failure is not None:
                return f"{row['name']} {failure.kind} in {failure.stage}: {failure.message}"
        return "no candidate has been evaluated"

    def _selection_rows(
        self, generation: int, chosen: Sequence[Selection], bonuses: Mapping[str, float]
    ) -> list[dict[str, Any]]:
        slots: dict[str, list[int]] = {}
        reasons: dict[str, str] = {}
        for one in chosen:
            slots.setdefault(one.candidate_id, []).append(one.slot)
            reasons.setdefault(one.candidate_id, one.reason)
        return [
            selection_row(
                protocol=self.preset.protocol.digest,
                generation=generation,
                candidate_id=score.candidate_id,
                terms={
                    **score.terms,
                    **({"steering": bonuses[score.candidate_id]} if score.candidate_id in bonuses else {}),
                },
                total=score.total,
                slots=slots.get(score.candidate_id, ()),
                reason=reasons.get(score.candidate_id),
                arm=ARM,
            )
            for score in chosen[0].scores
        ]

    def _record_failure(self, place: Place, failure: CandidateFailure, identity: str, name: str) -> None:
        row = failure_row(
            failure,
            candidate_id=identity,
            protocol=self.preset.protocol.digest,
            name=name,
            generation=place.generation,
            parent_id=place.parent_id,
        )
        self.run.archive.append("failures", [row], keep_existing=True)

    def _stage(self, stage: str, subject: str, generation: int) -> AbstractContextManager[Callable[[str], None]]:
        return announced(self.observer, stage, subject, generation, self._stop.is_set)

    def _folder(self, place: Place) -> Path:
        return self.run.path / "generations" / place.label

    @staticmethod
    def _write(path: Path, document: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(document, indent=1) + "\n")

    def _seed(self, *parts: object) -> int:
        """A seed for one purpose and place, from the run's seed."""
        text = "/".join(map(str, (self.preset.search.seed, *parts)))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6])


def _known_composition(source: str) -> dict[str, Any] | None:
    from poise_core.mechanisms.known import composition_for

    known = composition_for(source)
    return known.composition.model_dump(mode="json") if known else None
