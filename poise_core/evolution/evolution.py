"""One run of the search: a baseline, then generations of children.

Every method is one stage. A stage that has finished is read back, so calling all of them again in the same order costs
look-ups only and goes on where the last process ended, however it ended. Places of a generation are admitted one after
the other, because each proposer sees the ideas before it; training and all that follows may run side by side.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from poise_core.agents.llm.ledger import Allowance
from poise_core.agents.roles import Proposal, ProposalContext, Reflection
from poise_core.agents.steering import steering_text
from poise_core.archive import EVOLUTION_ARM as ARM
from poise_core.archive import Archive, reflection_row, selection_row
from poise_core.archive.typed import SelectionRow
from poise_core.evolution.admission import Admission
from poise_core.evolution.events import Observer, announced, ignore
from poise_core.evolution.history import Memory, with_bonus
from poise_core.evolution.ladder import Ladder, Rung
from poise_core.evolution.records import Draft, Place
from poise_core.evolution.roles import Roles, roles_for
from poise_core.evolution.trials import ComputeSlot, Subject, Trials
from poise_core.failures import Cancelled
from poise_core.run_directory import RunDirectory
from poise_core.search.nodes import NodeRecord
from poise_core.search.plateau import Plateau, assess_plateau
from poise_core.search.references import reference_set
from poise_core.search.selection import Selection


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
        self.admission = Admission(
            self.trials, self.memory, self.roles, first_seed=self.seeds[0], context=self.context, seed=self._seed
        )
        self._wide: dict[int, bool] = {}  # generation -> whether its proposers are asked to change more at once

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
        return self.admission.register(name, path.read_text(), written_by="human", generation=0)

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
            self.run.archive.refresh_snapshots()
        rows = self.run.archive.rows("selections", protocol=protocol, arm=ARM, generation=generation, selected=True)
        places = [
            Place(generation, slot, row["candidate_id"], names[row["candidate_id"]], repeat, row["reason"] or "")
            for row in rows
            for repeat, slot in enumerate(row["slots"])
        ]
        return sorted(places, key=lambda place: place.slot)

    def propose(self, place: Place) -> list[Proposal]:
        """See :meth:`Admission.propose`."""
        return self.admission.propose(place)

    def screen(self, place: Place) -> list[int]:
        """See :meth:`Admission.screen`."""
        return self.admission.screen(place)

    def implement(self, place: Place, refused: Draft | None = None) -> Draft:
        """See :meth:`Admission.implement`."""
        return self.admission.implement(place, refused)

    def verify(self, place: Place, draft: Draft) -> Subject:
        """See :meth:`Admission.verify`."""
        return self.admission.verify(place, draft)

    def repair_rounds(self, generation: int) -> int:
        """How often a child of this generation may go from training back to its author; 0 where nobody could answer."""
        return self.admission.rounds(self.select_parents(generation))

    def repair(self, subject: Subject) -> Subject:
        """The child to go on with once it is trained on the lowest rung; see :meth:`Admission.repair`.

        Raises:
            Cancelled: it is neither trained nor failed, because an earlier stage was stopped or the machine failed.
        """
        if self.trials.failure(subject) is None and not self.ladder.trained(subject, self.rungs[0]):
            raise Cancelled(f"no repair of {subject.name}: its training has not come to an end yet")
        return self.admission.repair(subject)

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

    def ended(self, subject: Subject) -> bool:
        """Whether nothing more will be measured of the candidate: it has all its scores, was stopped on the ladder or failed."""
        if self.trials.failure(subject) is not None or self.ladder.stopped(subject) is not None:
            return True
        return len(self.trials.evaluations(subject, self.seeds)) == len(self.seeds)

    def reflect(self, subject: Subject) -> Reflection:
        """What the candidate taught, be it scored, stopped on the ladder or failed in training; of a child that went back to
        its author, what its last admitted file taught.

        Raises:
            Cancelled: it is neither yet, because an earlier stage was stopped or the machine failed.
        """
        subject = self.admission.latest(subject)
        if stored := self.memory.reflection(subject.candidate_id):
            return stored
        failure, stopped = self.trials.failure(subject), self.ladder.stopped(subject)
        if not self.ended(subject):
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
        return all(self.admission.ended(place) for place in self.select_parents(generation))

    def first_unfinished(self) -> int:
        """The number of the first generation that has not come to its end, begun or not."""
        number = 1
        while self.finished(number):
            number += 1
        return number

    # what roles are given

    def context(self, place: Place) -> ProposalContext:
        """What the proposer and the screener of this place may know."""
        nodes = self.memory.nodes(place.generation)
        seed = self._seed("references", place.generation, place.slot)
        return ProposalContext(
            parent=self.memory.record(place.parent_id),
            references=self.memory.references(reference_set(nodes, place.parent_id, seed=seed)),
            avoid=self.memory.tried(place.generation, place.slot),
            directive=steering_text(self.preset.agents.steering),
            generation=place.generation,
            wide=self._is_wide(place.generation, nodes),
            slot=place.slot,
            ancestors=self.memory.ancestors(place.parent_id),
        )

    def plateau(self, nodes: Sequence[NodeRecord]) -> Plateau:
        """Whether the search that has made these nodes still gets anywhere."""
        search = self.preset.search
        return assess_plateau(nodes, search.plateau, parents=search.parents)

    def _is_wide(self, generation: int, nodes: Sequence[NodeRecord]) -> bool:
        """Whether the search stands on a plateau and answers it; asked once per generation, whose nodes do not change."""
        if generation not in self._wide:
            answers = self.preset.search.arm == "evolution" and self.preset.search.plateau.answer
            self._wide[generation] = answers and self.plateau(nodes).stalled
        return self._wide[generation]

    # records

    def _why_no_scores(self) -> str:
        for row in self.memory.candidates():
            failure = self.trials.failure(Subject.of_row(row))
            if failure is not None:
                return f"{row['name']} {failure.kind} in {failure.stage}: {failure.message}"
        return "no candidate has been evaluated"

    def _selection_rows(
        self, generation: int, chosen: Sequence[Selection], bonuses: Mapping[str, float]
    ) -> list[SelectionRow]:
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

    def _stage(self, stage: str, subject: str, generation: int) -> AbstractContextManager[Callable[[str], None]]:
        return announced(self.observer, stage, subject, generation, self._stop.is_set)

    def _seed(self, *parts: object) -> int:
        """A seed for one purpose and place, from the run's seed."""
        text = "/".join(map(str, (self.preset.search.seed, *parts)))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6])
