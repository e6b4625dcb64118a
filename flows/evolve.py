"""The evolution as Prefect flows: a baseline, then one subflow per generation.

archive -> select parents -> for each parent: propose, screen, implement, verify, train, evaluate, reflect -> archive

Where the file's author can answer, a child whose first training steps show a clear fault is repaired and trained again first.

Training and evaluation go rung by rung where the preset has a ladder; above the rung at which a child was stopped, nothing is done.

Tasks wait for those whose results they take, and are started in the order in which they are submitted here. That order
matters: a task never waits for one that is submitted after it, so even one worker gets through.
"""

from __future__ import annotations

from typing import Any

from prefect import Task, allow_failure, flow
from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner

from tasks.outcomes import raise_for_the_run, with_typed_end
from tasks.reports import show_leaderboard, update_tracking
from tasks.session import evolution_session, parallel_candidates
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


@flow(name="evolve", flow_run_name="evolve {run_dir}", task_runner=WORKERS, validate_parameters=False)
@with_typed_end
def evolve(run_dir: str, preset: str = "laptop") -> None:
    """Evolve algorithms in a run directory until it holds as many generations as its preset says.

    Args:
        run_dir: made where it is missing; a run that is there goes on where it stopped.
        preset: name or path; not used where the caller has opened the run already.
    """
    with evolution_session(run_dir, preset) as evolution:
        tracked = establish_baseline(run_dir)
        for number in range(1, evolution.preset.search.generations + 1):
            if not evolution.finished(number):
                generation(run_dir, number)
        tracked.wait()


def establish_baseline(run_dir: str) -> PrefectFuture[str]:
    """The scores that everything is compared with: the policy before training, and the baseline algorithm.

    Returns:
        The update of MLflow, which nothing but the end of the flow waits for.
    """
    untrained = measure_base_policy.submit(run_dir)
    verified = verify_baseline.submit(run_dir)
    trained = train.submit(run_dir, verified)
    scored = evaluate.submit(run_dir, trained)
    reflected = reflect.submit(run_dir, verified, allow_failure(scored))
    raise_for_the_run([untrained, verified, trained, scored, reflected])
    return update_tracking.submit(run_dir, reflected)


def on_rung(stage: Task[..., Any], rung: str) -> Task[..., Any]:
    """The stage, with the rung in the name of its runs where it is not the last one."""
    if rung == "all":
        return stage
    return stage.with_options(task_run_name=f"{stage.task_run_name}, {rung}")


@flow(name="generation", flow_run_name="gen-{number:02d}", task_runner=WORKERS, validate_parameters=False)
@with_typed_end
def generation(run_dir: str, number: int) -> None:
    """One generation: a child of every selected parent."""
    with evolution_session(run_dir) as evolution:
        lowest, *higher = evolution.rungs
        designed: list[PrefectFuture[Any]] = []
        children, trained = [], []
        child = None
        for place in select_parents(run_dir, number):  # admitted one after the other: each sees the ideas before it
            ideas = propose.submit(run_dir, place, allow_failure(child))
            ranked = screen.submit(run_dir, place, ideas)
            draft = implement.submit(run_dir, place, ranked)
            child = verify.submit(run_dir, place, draft)
            designed += [ideas, ranked, draft]
            children.append(child)
            trained.append(on_rung(train, lowest).submit(run_dir, child, lowest))
        below, versions = [], children
        for _ in range(evolution.repair_rounds(number)):
            below += trained
            versions = [
                repair.submit(run_dir, *pair) for pair in zip(versions, map(allow_failure, trained), strict=True)
            ]
            trained = [on_rung(train, lowest).submit(run_dir, one, lowest) for one in versions]
            below += versions
        for rung, following in zip(evolution.rungs, higher, strict=False):  # all children on one rung, then on the next
            judged = [on_rung(evaluate, rung).submit(run_dir, one, rung) for one in trained]
            below += [*trained, *judged]
            trained = [on_rung(train, following).submit(run_dir, one, following) for one in judged]
        scored = [evaluate.submit(run_dir, one) for one in trained]
        reflected = [reflect.submit(run_dir, *pair) for pair in zip(children, map(allow_failure, scored), strict=True)]
        raise_for_the_run([*designed, *children, *below, *trained, *scored, *reflected])
        show_leaderboard.submit(run_dir, reflected).wait()
        update_tracking.submit(run_dir, reflected).wait()
