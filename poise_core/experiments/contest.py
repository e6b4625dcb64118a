"""Contests of searches on a recorded table: the arms and ablations of a preset, and many replays of each within a budget."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from poise_core.config import Preset
from poise_core.config.search import PromiseSpec, SearchSpec
from poise_core.evolution.ladder import judged_by
from poise_core.experiments.replay import PROPOSERS, ReplayArm, ReplayedSearch
from poise_core.experiments.world import World
from poise_core.search.nodes import Array


def arms_of(preset: Preset, *, proxy: bool = True) -> dict[str, ReplayArm]:
    """The arms of a search and its ablations, by name.

    Args:
        preset: whose acquisition, plateau rule and ladder the evolution has, the ladder as a run climbs it.
        proxy: whether the table knows the proxy's dynamics, which a ladder needs.
    """
    spec = preset.search.acquisition
    climbed = judged_by(preset.ladder, preset.protocol)
    ladder = climbed if climbed.enabled and proxy else None
    whole = ReplayArm(
        "evolution",
        acquisition=spec,
        plateau=preset.search.plateau.answer,
        promise=preset.search.promise,
        ladder=ladder,
    )
    arms = [
        whole,
        *(ReplayArm(name, selector="root", proposer=name, ladder=ladder) for name in PROPOSERS),
        ReplayArm("greedy", selector="greedy", plateau=False, ladder=ladder),
        ReplayArm("best-of-n", selector="root", plateau=False, ladder=ladder),
    ]
    terms = ("pareto", "performance", "diversity", "potential")
    arms += [replace(whole, name=f"no {term}", acquisition=spec.model_copy(update={term: 0.0})) for term in terms]
    alone = dict.fromkeys(("pareto", "diversity", "potential"), 0.0)
    changes: dict[str, dict[str, Any]] = {
        "performance alone": alone,
        "terms as they are": {"scale": "none"},
        "terms as ranks": {"scale": "rank"},
        "gain not regressed": {"regress": False},
        "no spread over lineages": {"lineage_penalty": 0.0},
    }
    arms += [replace(whole, name=name, acquisition=spec.model_copy(update=one)) for name, one in changes.items()]
    arms += [
        replace(whole, name="no crossover", crossover=False),
        replace(whole, name="no mutation of numbers alone", numbers=False),
        replace(whole, name="no plateau rule", plateau=False),
        *promises(preset.search.promise, whole),
        replace(whole, name="no screening", screen=False),
    ]
    if ladder is not None:
        arms.append(replace(whole, name="no ladder", ladder=None))
        arms.append(
            replace(whole, name="stopped children left out", acquisition=spec.model_copy(update={"impute": False}))
        )
    elif proxy:
        arms.append(replace(whole, name="with a ladder", ladder=climbed.model_copy(update={"enabled": True})))
    return {arm.name: arm for arm in arms}


def promises(spec: PromiseSpec | None, whole: ReplayArm) -> list[ReplayArm]:
    """The search without the promise of compositions, or with it where the preset has none, and with its settings moved."""
    if spec is None:
        return [replace(whole, name="with promise", promise=PromiseSpec())]
    changes: dict[str, dict[str, Any]] = {
        "promise alone": {"weight": 1.0},
        "promise of few draws": {"draws": 16},
        "promise of small steps": {"reach": 2},
        "promise without confidence": {"confidence": 0.0},
    }
    moved = [replace(whole, name=name, promise=spec.model_copy(update=one)) for name, one in changes.items()]
    return [replace(whole, name="no promise", promise=None), *moved]


@dataclass(frozen=True)
class Contest:
    """What all replays share."""

    world: World
    search: SearchSpec
    budget: float  # training tokens of one replay, the baseline's included
    seed: int = 0
    points: int = 60

    @classmethod
    def of(cls, world: World, search: SearchSpec, trainings: float, seed: int = 0) -> Contest:
        """With a budget of so many whole trainings of the table's average length, the baseline's left out."""
        cells = world.cells
        tokens = (
            np.exp(cells.values[:, cells.outputs.index("log_tokens")]) if "log_tokens" in cells.outputs else np.ones(1)
        )
        return cls(world, search, float(tokens.mean()) * (trainings + search.seeds_per_candidate), seed)

    @property
    def grid(self) -> Array:
        """(G,) budgets at which the arms are compared."""
        return np.linspace(self.budget / self.points, self.budget, self.points)

    def regrets(self, arm: ReplayArm, replays: Sequence[int]) -> Array:
        """(len(replays), G) optimum minus the true Overall of the candidate that the search names best, percent points.

        Before the baseline is measured there is nothing to name but the baseline.
        """
        found = np.empty((len(replays), self.points))
        for place, number in enumerate(replays):
            steps = ReplayedSearch(self.world, arm, self.search, self.budget, (self.seed, number)).run()
            spent = np.array([tokens for tokens, _ in steps])
            last = np.maximum(np.searchsorted(spent, self.grid + 0.5, side="right") - 1, 0)
            found[place] = self.world.optimum.overall - np.array([truth for _, truth in steps])[last]
        return found


CHUNK = 25
"""Replays that a worker is given at once."""

_contest: list[Contest] = []  # of a worker process


def replay_arms(
    contest: Contest,
    arms: Sequence[ReplayArm],
    replays: int,
    *,
    workers: int = 1,
    on_replays: Callable[[int], None] = lambda count: None,
) -> dict[str, Array]:
    """Replay every arm; the result depends on neither the number of workers nor their speed.

    Args:
        contest: what all replays share.
        arms: to replay.
        replays: of each arm.
        workers: processes; one means this process.
        on_replays: called in this process with the number of replays that have just finished.

    Returns:
        arm -> (replays, G) regrets; see ``Contest.regrets``.
    """
    parts = [range(first, min(first + CHUNK, replays)) for first in range(0, replays, CHUNK)]
    tasks = [(arm, part) for part in parts for arm in arms]
    found: dict[str, list[tuple[int, Array]]] = {arm.name: [] for arm in arms}
    with threadpool_limits(1):
        if workers <= 1:
            results: Iterator[Array] = (contest.regrets(arm, part) for arm, part in tasks)
            _gather(tasks, results, found, on_replays)
        else:
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(workers, context, _begin_worker, (contest,)) as pool:
                _gather(tasks, pool.map(_regrets, tasks), found, on_replays)
    return {
        name: np.concatenate([one for _, one in sorted(own, key=lambda pair: pair[0])]) for name, own in found.items()
    }


def _gather(
    tasks: Sequence[tuple[ReplayArm, range]],
    results: Iterable[Array],
    found: dict[str, list[tuple[int, Array]]],
    on_replays: Callable[[int], None],
) -> None:
    for (arm, part), regrets in zip(tasks, results, strict=True):
        found[arm.name].append((part.start, regrets))
        on_replays(len(part))


def _begin_worker(contest: Contest) -> None:
    threadpool_limits(1)
    _contest[:] = [contest]


def _regrets(task: tuple[ReplayArm, range]) -> Array:
    return _contest[0].regrets(*task)
