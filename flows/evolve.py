"""The evolution as Prefect flows: a baseline, then one subflow per generation.

archive -> select parents -> for each parent: propose, screen, implement, verify, train, evaluate, reflect -> archive

Where the file's author can answer, a child whose first training steps show a clear fault is repaired and trained again first.

Training and evaluation go rung by rung where the preset has a ladder; above the rung at which a child was stopped, nothing is done.
Where the preset dispatches candidates to a work pool, each child's training and evaluation is a flow run of its own there.

Tasks wait for those whose results they take, and are started in the order in which they are submitted here. That order
matters: a task never waits for one that is submitted after it, so even one worker gets through.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefect import Task, allow_failure, flow
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.states import Completed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.forms import Changes, Generations, Text
from poise_core.evolution import ChildSlot, Evolution
from poise_core.render.lines import generation_headline, run_headline
from poise_core.views import leaderboard
from tasks.dispatch import evaluate_elsewhere
from tasks.outcomes import raise_for_the_run, with_typed_end
from tasks.reports import show_leaderboard, update_tracking
from tasks.session import chosen_preset, evolution_session, parallel_candidates
from tasks.stages import (
    evaluate,
    implement,
    measure_base_policy,
    propose,
    reflect,
    repair,
    screen,
    select_parents,
    train,
    verify,
    verify_baseline,
)
from tasks.work_pool import WorkPool


class CandidateWorkers(ThreadPoolTaskRunner[Any]):
    """As many threads as the preset lets candidates run side by side; each waits for one child process at a time."""

    def duplicate(self) -> CandidateWorkers:
        """The runner of one flow run."""
        return CandidateWorkers(max_workers=parallel_candidates())


WORKERS: Any = CandidateWorkers()

Futures = list[PrefectFuture[Any]]


@flow(name="evolve", flow_run_name="evolve {run_dir}", task_runner=WORKERS)
@with_typed_end
def evolve(
    run_dir: Text = "runs/laptop",
    preset: Text = "laptop",
    generations: Generations = None,
    changes: Changes = [],  # noqa: B006  (never changed, and shown as it is in the form)
) -> State[Any]:
    """Evolve algorithms: the baseline first, then generations of children, each really trained and really scored.

    Args:
        run_dir: where everything goes, absolute or relative to the clone. Made where it is missing; a run that is there goes on
            where it stopped.
        preset: laptop, smoke, or the path of a YAML file. Only for a new run directory: a run that is there keeps its own.
        generations: how many the run shall hold in the end; empty for as many as the preset says.
        changes: to the preset, KEY=VALUE: search.parents=3, resources.dispatch=pool, agents.model=openai:NAME.
    """
    wanted = [*changes, *([f"search.generations={generations}"] if generations else [])]
    with evolution_session(run_dir, lambda: chosen_preset(run_dir, preset, wanted)) as evolution:
        tracked = establish_baseline(run_dir)
        for number in evolution.generations():
            if not evolution.finished(number):
                generation(run_dir, number)
        tracked.wait()
        return Completed(message=run_headline(leaderboard(evolution.run.evidence())))


def establish_baseline(run_dir: str) -> PrefectFuture[str]:
    """The scores that everything is compared with: the policy before training, and the baseline algorithm.

    Returns:
        The update of MLflow, which nothing but the end of the flow waits for.
    """
    with evolution_session(run_dir) as evolution:
        untrained = measure_base_policy.submit(run_dir)
        baseline = Child.of(run_dir, verify_baseline.submit(run_dir))
        for step in measurement(evolution, rungs=("all",)):
            baseline.take(step)
        reflected = baseline.reflect()
        raise_for_the_run([untrained, *baseline.stages])
        return update_tracking.submit(run_dir, reflected)


@flow(name="generation", flow_run_name="gen-{number:02d}", task_runner=WORKERS, validate_parameters=False)
@with_typed_end
def generation(run_dir: str, number: int) -> State[Any]:
    """One generation: a child of every selected parent."""
    with evolution_session(run_dir) as evolution:
        first, *further = measurement(evolution, evolution.rungs)
        children: list[Child] = []
        for slot in select_parents(run_dir, number):
            child = admit(run_dir, slot, after=children)
            child.take(first)
            children.append(child)
        for _ in range(evolution.repair_rounds(number)):
            for child in children:
                child.go_back_to_its_author()
            for child in children:
                child.take(first)
        for step in further:  # all children take the next step, then the one after it
            for child in children:
                child.take(step)
        reflected = [child.reflect() for child in children]
        raise_for_the_run(stage for child in children for stage in child.stages)
        show_leaderboard.submit(run_dir, reflected).wait()
        update_tracking.submit(run_dir, reflected).wait()
        return Completed(message=generation_headline(leaderboard(evolution.run.evidence()), number))


@dataclass
class Child:
    """The submitted stages of one candidate; their order is that of poise_core.evolution.generation, which needs no Prefect."""

    run_dir: str
    admitted: PrefectFuture[Any]
    stages: Futures  # all of them, in order
    version: PrefectFuture[Any]  # the file to go on with: the admitted one, or its author's answer to a fault
    last: PrefectFuture[Any]  # what the next stage waits for

    @classmethod
    def of(cls, run_dir: str, admitted: PrefectFuture[Any], before: Sequence[PrefectFuture[Any]] = ()) -> Child:
        """A candidate that the gate is to admit, after the stages ``before``."""
        return cls(run_dir, admitted, [*before, admitted], admitted, admitted)

    def take(self, step: Step) -> None:
        """Submit the next step of the candidate's measurement."""
        self.last = step.submit(self.run_dir, self.last)
        self.stages.append(self.last)

    def go_back_to_its_author(self) -> None:
        """Submit a repair, which asks the author for another file where the first training steps show an early fault."""
        self.version = self.last = repair.submit(self.run_dir, self.version, allow_failure(self.last))
        self.stages.append(self.last)

    def reflect(self) -> PrefectFuture[Any]:
        """Submit the reflection on the candidate, whether it was scored, stopped or failed."""
        reflected = reflect.submit(self.run_dir, self.admitted, allow_failure(self.last))
        self.stages.append(reflected)
        return reflected


def admit(run_dir: str, slot: ChildSlot, after: Sequence[Child]) -> Child:
    """Submit the stages that make the child of a slot; they wait for the slots ``after`` which it comes, whose ideas they see."""
    ideas = propose.submit(run_dir, slot, allow_failure(after[-1].admitted if after else None))
    ranked = screen.submit(run_dir, slot, ideas)
    draft = implement.submit(run_dir, slot, ranked)
    return Child.of(run_dir, verify.submit(run_dir, slot, draft), [ideas, ranked, draft])


@dataclass(frozen=True)
class Step:
    """One task of a candidate's measurement: takes the candidate from the step before."""

    task: Task[..., Any]
    rung: str = "all"

    def submit(self, run_dir: str, before: Any) -> PrefectFuture[Any]:
        """Start it when the step before has finished; its rung is in its name where it is not the last one."""
        if self.rung == "all":
            return self.task.submit(run_dir, before)
        named = self.task.with_options(task_run_name=f"{self.task.task_run_name}, {self.rung}")
        return named.submit(run_dir, before, self.rung)


def measurement(evolution: Evolution, rungs: Sequence[str]) -> list[Step]:
    """The steps of one candidate: train and evaluate on every rung, or all of that elsewhere."""
    return [Step(evaluate_elsewhere)] if isinstance(evolution.executor, WorkPool) else here(rungs)


def here(rungs: Sequence[str]) -> list[Step]:
    """The steps of one candidate in this process."""
    return [Step(task, rung) for rung in rungs for task in (train, evaluate)]
