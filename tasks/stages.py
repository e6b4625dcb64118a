"""The stages of a run, one task each; what they do is in ``poise_core.evolution.Evolution``.

A stage takes the result of the one before it, so that the graph of a run shows the stages; what it works on is named by
small values and lies in the run directory and its archive. Time limits are those of the child processes: a thread that
waits for one cannot be interrupted from outside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from prefect import Task, task
from prefect.artifacts import create_markdown_artifact

from poise_core.escaping import markdown, markdown_page
from poise_core.evolution import CandidateRef, ChildSlot, Draft, Rung
from tasks.outcomes import MOST_RETRIES, RETRY_DELAYS, with_typed_end, worth_retrying
from tasks.session import current_evolution

R = TypeVar("R")


def stage(run_name: str) -> Callable[[Callable[..., R]], Task[..., R]]:
    """A task with the retries and typed ends that all stages share; ``run_name`` is filled in from its parameters.

    It has no tags: Prefect asks the server for slots of every tag before the task begins.
    """

    def decorate(function: Callable[..., R]) -> Task[..., R]:
        make = task(
            task_run_name=run_name,
            retries=MOST_RETRIES,
            retry_delay_seconds=RETRY_DELAYS,
            retry_condition_fn=worth_retrying,
        )
        return make(with_typed_end(function))

    return decorate


@stage("gen-00/base policy/evaluate")
def measure_base_policy(run_dir: str) -> CandidateRef:
    """Score the policy before any training."""
    return current_evolution(run_dir).measure_base_policy()


@stage("gen-00/baseline/verify")
def verify_baseline(run_dir: str) -> CandidateRef:
    """Put the baseline algorithm into the run and through the gate."""
    evolution = current_evolution(run_dir)
    return evolution.verify_baseline(evolution.register_baseline())


@stage("{candidate.label}/verify")
def admit(run_dir: str, candidate: CandidateRef) -> CandidateRef:
    """Put a candidate through the gate that is in the run already, by hand or by an evolution that has admitted it."""
    current_evolution(run_dir).trials.verify(candidate, must_be_new=False)
    return candidate


@stage("gen-{generation:02d}/select parents")
def select_parents(run_dir: str, generation: int) -> list[ChildSlot]:
    """Choose the parents of a generation; each gets one child."""
    return current_evolution(run_dir).select_parents(generation)


@stage("{slot.label}/propose for {slot.parent_name}")
def propose(run_dir: str, slot: ChildSlot, after: Any = None) -> list[str]:
    """Names of the proposals for a child; ``after`` is the admission of the slot before, whose ideas count as used."""
    return [proposal.name for proposal in current_evolution(run_dir).propose(slot)]


@stage("{slot.label}/screen for {slot.parent_name}")
def screen(run_dir: str, slot: ChildSlot, proposals: list[str]) -> list[str]:
    """Names of the feasible proposals, best first."""
    return [proposals[index] for index in current_evolution(run_dir).screen(slot)]


@stage("gen-{slot.generation:02d}/{ranked[0]}/implement")
def implement(run_dir: str, slot: ChildSlot, ranked: list[str]) -> Draft:
    """The candidate file of the best proposal."""
    return current_evolution(run_dir).implement(slot)


@stage("gen-{slot.generation:02d}/{draft.name}/verify")
def verify(run_dir: str, slot: ChildSlot, draft: Draft) -> CandidateRef:
    """The first candidate that the gate admits: this draft, or one that comes after it."""
    return current_evolution(run_dir).verify(slot, draft)


@stage("{candidate.label}/train")
def train(run_dir: str, candidate: CandidateRef, rung: Rung = "all") -> CandidateRef:
    """Train the candidate as far as a rung asks, by default with the run's seeds; nothing where it was stopped before."""
    return current_evolution(run_dir).train(candidate, rung)


@stage("{candidate.label}/repair")
def repair(run_dir: str, candidate: CandidateRef, trained: Any) -> CandidateRef:
    """The child to go on with after the first steps of training (``trained``): itself, or its author's revised file."""
    return current_evolution(run_dir).repair(candidate)


@stage("{candidate.label}/evaluate")
def evaluate(run_dir: str, candidate: CandidateRef, rung: Rung = "all") -> CandidateRef:
    """Score the trained policies on the search split, and decide whether the candidate goes on to the next rung."""
    return current_evolution(run_dir).evaluate(candidate, rung)


@stage("{candidate.label}/reflect")
def reflect(run_dir: str, candidate: CandidateRef, evaluated: Any) -> str:
    """What the candidate taught, scored (``evaluated`` is its candidate) or failed; also as an artifact."""
    reflection = current_evolution(run_dir).reflect(candidate)
    create_markdown_artifact(
        markdown_page(reflection.as_text()),
        key=f"reflection-{reflection.candidate_id}",
        description=f"What {markdown(candidate.name)} taught",
    )
    return reflection.summary
