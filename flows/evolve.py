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
from poise_core.evolution import Evolution
from poise_core.views.nightly import generation_headline, run_headline
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
        for number in range(1, evolution.preset.search.generations + 1):
            if not evolution.finished(number):
                generation(run_dir, number)
        tracked.wait()
        return Completed(message=run_headline(evolution.run.archive, evolution.preset.protocol))


def establish_baseline(run_dir: str) -> PrefectFuture[str]:
    """The scores that everything is compared with: the policy before training, and the baseline algorithm.

    Returns:
        The update of MLflow, which nothing but the end of the flow waits for.
    """
    with evolution_session(run_dir) as evolution:
        untrained = measure_base_policy.submit(run_dir)
        verified = verify_baseline.submit(run_dir)
        steps = measurement(evolution, rungs=("all",))
        first = steps[0].submit(run_dir, verified)
        measured, scored = submit_steps(run_dir, [first], steps[1:])
        reflected = reflect.submit(run_dir, verified, allow_failure(scored[0]))
        raise_for_the_run([untrained, verified, *measured, reflected])
        return update_tracking.submit(run_dir, reflected)


@flow(name="generation", flow_run_name="gen-{number:02d}", task_runner=WORKERS, validate_parameters=False)
@with_typed_end
def generation(run_dir: str, number: int) -> State[Any]:
    """One generation: a child of every selected parent."""
    with evolution_session(run_dir) as evolution:
        first, *further = measurement(evolution, evolution.rungs)
        designed: Futures = []
        children: Futures = []
        begun: Futures = []
        child = None
        for slot in select_parents(run_dir, number):  # admitted one after the other: each sees the ideas before it
            ideas = propose.submit(run_dir, slot, allow_failure(child))
            ranked = screen.submit(run_dir, slot, ideas)
            draft = implement.submit(run_dir, slot, ranked)
            child = verify.submit(run_dir, slot, draft)
            designed += [ideas, ranked, draft]
            children.append(child)
            begun.append(first.submit(run_dir, child))
        versions = children
        for _ in range(evolution.repair_rounds(number)):
            designed += begun
            versions = [repair.submit(run_dir, *pair) for pair in zip(versions, map(allow_failure, begun), strict=True)]
            designed += versions
            begun = [first.submit(run_dir, one) for one in versions]
        measured, scored = submit_steps(run_dir, begun, further)
        reflected = [reflect.submit(run_dir, *pair) for pair in zip(children, map(allow_failure, scored), strict=True)]
        raise_for_the_run([*designed, *children, *measured, *reflected])
        show_leaderboard.submit(run_dir, reflected).wait()
        update_tracking.submit(run_dir, reflected).wait()
        return Completed(message=generation_headline(evolution.run.archive, evolution.preset.protocol, number))


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
    return [Step(evaluate_elsewhere)] if evolution.preset.resources.dispatch == "pool" else here(rungs)


def here(rungs: Sequence[str]) -> list[Step]:
    """The steps of one candidate in this process."""
    return [Step(task, rung) for rung in rungs for task in (train, evaluate)]


def submit_steps(run_dir: str, begun: Futures, further: Sequence[Step]) -> tuple[Futures, Futures]:
    """All candidates take the next step, then the one after it.

    Args:
        run_dir: of the run.
        begun: the first step of each candidate.
        further: the steps after it.

    Returns:
        All steps; and the last one of each candidate.
    """
    submitted, standing = list(begun), begun
    for step in further:
        standing = [step.submit(run_dir, one) for one in standing]
        submitted += standing
    return submitted, standing
