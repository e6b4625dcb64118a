"""One run of the search: a baseline, then generations of children.

Every method is one stage. A stage that has finished is read back, so calling all of them again in the same order costs
look-ups only and goes on where the last process ended, however it ended. Slots of a generation are admitted one after
the other, because each proposer sees the ideas before it; training and all that follows may run side by side.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import nullcontext

from poise_core.agents.llm.ledger import Allowance
from poise_core.agents.roles import Proposal, ProposalContext, Reflection
from poise_core.algorithms import display_name
from poise_core.archive import EVOLUTION_ARM as ARM
from poise_core.archive import Archive
from poise_core.candidate.identity import same_program
from poise_core.evolution.events import Observer, ignore
from poise_core.evolution.executor import Executor
from poise_core.evolution.history import History, tokens_of_generations
from poise_core.evolution.ladder import Ladder, Rung
from poise_core.evolution.records import CandidateRef, ChildSlot, Draft
from poise_core.evolution.roles import Roles, roles_for
from poise_core.evolution.run_context import ComputeSlot
from poise_core.evolution.search_context import SearchContext
from poise_core.evolution.stages import evaluate, implement, propose, reflect, repair, select, verify
from poise_core.evolution.stages.select import EvolutionError
from poise_core.evolution.trials import Trials
from poise_core.failures import Cancelled
from poise_core.mechanisms.known import with_numbers
from poise_core.run_directory import RunDirectory, candidate_id


class Evolution:
    """The stages of one run, bound to its directory; see the module's docstring."""

    def __init__(
        self,
        run: RunDirectory,
        *,
        executor: Executor | None = None,
        roles: Roles | None = None,
        observer: Observer = ignore,
        replay: Archive | None = None,
        compute_slot: ComputeSlot = nullcontext,
        allowance: Allowance | None = None,
    ) -> None:
        """Bind to a run directory.

        Args:
            run: opened.
            executor: carries out gate, trainings and evaluations; by default child processes of this one.
            roles: instead of those of the preset.
            observer: called with every event.
            replay: the archive of a recorded run, whose language models' answers are taken instead of new ones.
            compute_slot: held while a training or an evaluation runs.
            allowance: the cost budget of language models; a call that could exceed it is not made, and the run stops.
        """
        self.run = run
        self.preset = run.preset
        self.observer = observer
        self._stop = threading.Event()
        self.stop_reason = ""
        self.roles = roles or roles_for(
            run.preset, run.archive, replay=replay, should_stop=self._stop.is_set, allowance=allowance
        )
        self.trials = Trials(
            run, executor=executor, observer=observer, should_stop=self._stop.is_set, compute_slot=compute_slot
        )
        self.executor = self.trials.executor
        self.history = History(run.archive, run.preset.protocol, run.preset.ladder)
        self.search = SearchContext(self.trials, self.history, self.roles)
        self.ladder = Ladder(self.trials, self.seeds)

    def stop(self, reason: str = "") -> None:
        """Ask every running stage to end its child processes and to raise ``Cancelled``; callable from any thread.

        Args:
            reason: for people; the first one given is kept as ``stop_reason``.
        """
        self.stop_reason = self.stop_reason or reason
        self._stop.set()

    def go_on(self) -> None:
        """Undo ``stop``. Only while no stage is running: one that has not seen the stop yet would not end."""
        self._stop.clear()

    @property
    def stopped(self) -> bool:
        """Whether ``stop`` was called."""
        return self._stop.is_set()

    @property
    def seeds(self) -> tuple[int, ...]:
        """The training seeds that every candidate of this run gets."""
        return self.search.seeds

    # the baseline

    def measure_base_policy(self) -> CandidateRef:
        """Score the untrained policy, to show what training itself gains."""
        return evaluate.evaluate_untrained(self.trials, self.seeds)

    def register_baseline(self) -> CandidateRef:
        """Put the baseline algorithm into the run, with the preset's numbers, which ``poise tune`` has found.

        Raises:
            EvolutionError: the preset gives a number that the algorithm does not have, or the run has another baseline.
        """
        name, numbers = self.preset.search.baseline, self.preset.baseline_numbers
        try:
            source, composition = with_numbers(name, numbers)
        except ValueError as error:
            raise EvolutionError(f"search.baseline, baseline.hyperparameters: {error}") from error
        title = display_name(name)
        identity = candidate_id(title, source)
        for row in self.run.archive.rows("candidates", arm=ARM):
            if row["parent_ids"] or row["candidate_id"] == identity:
                continue
            if row["name"] == title and same_program(row["source"], source):
                source = row["source"]  # the run keeps its text, whatever comments this version ships
            else:
                raise EvolutionError(
                    f"the baseline of this run is {row['candidate_id']}, and the preset now gives {identity}, another algorithm or "
                    "other numbers; give it back (search.baseline, baseline.hyperparameters) or take another directory"
                )
        found = composition.model_dump(mode="json") if composition else None
        return implement.register(self.search, title, source, written_by="human", generation=0, composition=found)

    def verify_baseline(self, baseline: CandidateRef) -> CandidateRef:
        """Put the baseline through the gate that its children will meet."""
        self.trials.verify(baseline, must_be_new=False)
        return baseline

    # from the archive to a child

    def select_parents(self, generation: int) -> list[ChildSlot]:
        """The slots of a generation, each with its parent.

        Raises:
            EvolutionError: no candidate has a score yet.
        """
        return select.select_parents(self.search, generation)

    def context(self, slot: ChildSlot) -> ProposalContext:
        """What the proposer and the screener of this slot may know."""
        return self.search.context(slot)

    def propose(self, slot: ChildSlot) -> list[Proposal]:
        """Ideas for a child of the slot's parent."""
        return propose.propose(self.search, slot)

    def screen(self, slot: ChildSlot) -> list[int]:
        """Indices of the feasible proposals, best first, as many as may be implemented."""
        return implement.screen(self.search, slot)

    def implement(self, slot: ChildSlot) -> Draft:
        """A candidate file of the slot's best idea, or of the next one; see ``stages.implement.implement``."""
        return implement.implement(self.search, slot)

    def verify(self, slot: ChildSlot, draft: Draft) -> CandidateRef:
        """The first draft that the gate admits; see ``stages.verify.admitted_child``."""
        return verify.admitted_child(self.search, slot, draft)

    def repair_rounds(self, generation: int) -> int:
        """How often a child of this generation may go from training back to its author; 0 where no author can revise."""
        return repair.rounds(self.search, self.select_parents(generation))

    def repair(self, candidate: CandidateRef) -> CandidateRef:
        """The child to go on with once it is trained on the lowest rung; see ``stages.repair.repair``.

        Raises:
            Cancelled: it is neither trained nor failed, because an earlier stage was stopped or the machine failed.
        """
        if self.trials.failure(candidate) is None and not self.ladder.trained(candidate, self.rungs[0]):
            raise Cancelled(f"no repair of {candidate.name}: its training has not come to an end yet")
        return repair.repair(self.search, candidate)

    # a child's measurements

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """The rungs that every child goes through or is stopped at."""
        return self.ladder.rungs

    def train(self, candidate: CandidateRef, rung: Rung = "all") -> CandidateRef:
        """Train as far as a rung asks, by default with this run's seeds; see ``Ladder.train``."""
        self.ladder.train(candidate, rung)
        return candidate

    def evaluate(self, candidate: CandidateRef, rung: Rung = "all") -> CandidateRef:
        """Score what was trained and decide whether the child goes on; see ``Ladder.judge``."""
        self.ladder.judge(candidate, rung)
        return candidate

    def ended(self, candidate: CandidateRef) -> bool:
        """Whether nothing more will be measured of the candidate: it has all its scores, was stopped on the ladder or failed."""
        if self.trials.failure(candidate) is not None or self.ladder.stopped(candidate) is not None:
            return True
        return len(self.trials.evaluations(candidate, self.seeds)) == len(self.seeds)

    def reflect(self, candidate: CandidateRef) -> Reflection:
        """What the candidate taught, be it scored, stopped on the ladder or failed in training; of a child that went back to
        its author, what its last admitted file taught.

        Raises:
            Cancelled: its measurement has not ended, because an earlier stage was stopped or the machine failed.
        """
        candidate = self.search.latest(candidate)
        if stored := self.history.reflection(candidate.candidate_id):
            return stored
        if not self.ended(candidate):
            raise Cancelled(f"no reflection on {candidate.name}: it has neither a score nor a failure yet")
        failure, stopped = self.trials.failure(candidate), self.ladder.stopped(candidate)
        return reflect.reflect(self.search, candidate, failure, stopped)

    def generations(self) -> Iterator[int]:
        """The numbers of this run's generations in order, those that are finished first.

        They are as many as the preset says, or fewer where it has a budget of trainings. The budget is looked at before a
        generation begins and counts only those before it, so that a run that was killed within one makes it whole.
        """
        for number in range(1, self.preset.search.generations + 1):
            if self._spent(number):
                return
            yield number

    def _spent(self, generation: int) -> bool:
        """Whether the children of earlier generations have used up the budget of trainings."""
        budget = self.preset.search.trainings
        if budget is None or generation == 1:
            return False
        totals = self.run.archive.totals(
            "trajectories", "candidate_id", ("tokens",), protocol=self.preset.protocol.digest
        )
        spent = {name: int(tokens) for name, (tokens,) in totals.items()}
        baseline, *children = tokens_of_generations(self.history.candidates(), spent, generation)
        return sum(children) >= budget * baseline / len(self.seeds)

    def finished(self, generation: int) -> bool:
        """Whether every slot of the generation has come to its end, in a reflection or without an admissible child."""
        protocol = self.preset.protocol.digest
        if not self.run.archive.contains("selections", protocol=protocol, arm=ARM, generation=generation):
            return False
        return all(reflect.slot_ended(self.search, slot) for slot in self.select_parents(generation))

    def first_unfinished(self) -> int:
        """The number of the first generation that has not come to its end, begun or not."""
        number = 1
        while self.finished(number):
            number += 1
        return number
