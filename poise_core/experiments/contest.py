"""Contests of searches on a recorded table: the arms and ablations of a preset, and many replays of each within a budget."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from poise_core.archive.cells import TableHead
from poise_core.config import LadderSpec, Preset
from poise_core.config.environment_file import EnvironmentFile
from poise_core.config.search import PromiseSpec, SearchSpec
from poise_core.evolution.ladder import judged_by
from poise_core.experiments.replay import DYNAMICS, PROPOSERS, ReplayArm, ReplayedSearch
from poise_core.experiments.surrogate import Cells, TableError
from poise_core.experiments.world import World
from poise_core.files import write_atomically
from poise_core.sandbox import kernel
from poise_core.search.nodes import Array

OPENING = 12
"""Candidates of the opening of the arm *with an opening*."""


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
        immigrants=preset.search.immigrants,
        opening=preset.search.opening,
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
        *immigrations(whole, preset.search.parents),
        replace(whole, name="no opening", opening=0)
        if whole.opening
        else replace(whole, name="with an opening", opening=OPENING),
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


def arms_on(preset: Preset, cells: Cells) -> dict[str, ReplayArm]:
    """The arms that a table can replay, by name: those with a ladder where it knows the proxy's dynamics.

    Raises:
        TableError: see ``require_same_proxy``.
    """
    proxy = set(DYNAMICS) <= set(cells.outputs)
    if proxy:
        require_same_proxy(preset.ladder, cells.head)
    return arms_of(preset, proxy=proxy)


def require_same_proxy(ladder: LadderSpec, head: TableHead) -> None:
    """A table knows the dynamics of one proxy, so no ladder can be replayed that decides at another.

    Raises:
        TableError: the preset's proxy is another than the recording's.
    """
    own, recorded = (ladder.proxy_steps, ladder.proxy_window), (head.proxy_steps, head.proxy_window)
    if own[0] and own != recorded:
        raise TableError(
            f"the preset's proxy has {own[0]} steps and a window of {own[1]}, the table's {recorded[0]} and {recorded[1]}: "
            f"replay with --set ladder.proxy_steps={recorded[0]} --set ladder.proxy_window={recorded[1]}, or without a proxy, "
            "--set ladder.proxy_steps=0"
        )


def immigrations(whole: ReplayArm, parents: int) -> list[ReplayArm]:
    """The search with no immigrants, or with one where it has none, and with immigrants alone."""
    one = replace(whole, name="no immigrants", immigrants=0)
    if not whole.immigrants:
        one = replace(whole, name="with an immigrant", immigrants=1)
    return [one, replace(whole, name="immigrants alone", immigrants=parents)]


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

    def search_of(self, arm: ReplayArm, number: int) -> ReplayedSearch:
        """The search of one replay, with the baseline measured; ``run`` makes it."""
        return ReplayedSearch(self.world, arm, self.search, self.budget, (self.seed, number))

    def regrets(self, arm: ReplayArm, replays: Sequence[int]) -> Array:
        """(len(replays), G) optimum minus the true Overall of the candidate that the search names best, percent points.

        Before the baseline is measured there is nothing to name but the baseline.
        """
        found = np.empty((len(replays), self.points))
        for place, number in enumerate(replays):
            steps = self.search_of(arm, number).run()
            spent = np.array([tokens for tokens, _ in steps])
            last = np.maximum(np.searchsorted(spent, self.grid + 0.5, side="right") - 1, 0)
            found[place] = self.world.optimum.overall - np.array([truth for _, truth in steps])[last]
        return found


CHUNK = 25
"""Replays that a worker is given at once."""

Part = tuple[ReplayArm, range]
"""An arm, and the numbers of its replays that are made at once."""


@dataclass(frozen=True)
class Kept:
    """A folder in which the regrets of finished parts are kept, so that a contest that was killed goes on."""

    folder: Path

    @classmethod
    def of(cls, folder: Path, table: bytes, rough: float, contest: Contest) -> Kept:
        """Below ``folder``, apart for everything that the result depends on but the arm, this package's code included.

        Args:
            folder: for contests of any kind.
            table: the recorded table's file.
            rough: see ``World.build``.
            contest: what all replays share.
        """
        shared = (contest.search.model_dump_json(), rough, contest.budget, contest.seed, contest.points)
        return cls(folder / hashlib.sha256(table + repr(shared).encode() + _code()).hexdigest()[:16])

    def read(self, part: Part) -> Array | None:
        """The regrets of a part; None where it has not been finished."""
        path = self._path(part)
        return np.load(path, allow_pickle=False) if path.exists() else None

    def write(self, part: Part, regrets: Array) -> None:
        """Keep them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        np.save(content, regrets, allow_pickle=False)
        write_atomically(self._path(part), content.getvalue())

    def _path(self, part: Part) -> Path:
        arm, replays = part
        file = EnvironmentFile.parse(arm.selector)  # of a selector of the user's own, which may change
        own = hashlib.sha256(f"{arm}{file.present_digest() if file else ''}".encode()).hexdigest()[:16]
        return self.folder / f"{own}-{replays.start}-{replays.stop}.npy"


@cache
def _code() -> bytes:
    """A digest of this package's modules, any of which may change what a search does."""
    root = Path(__file__).parents[1]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(root.rglob("*.py")))).digest()


def replay_arms(
    contest: Contest,
    arms: Sequence[ReplayArm],
    replays: int,
    *,
    workers: int = 1,
    kept: Kept | None = None,
    on_replays: Callable[[int], None] = lambda count: None,
) -> dict[str, Array]:
    """Replay every arm; the result depends on neither the number of workers nor their speed.

    Args:
        contest: what all replays share.
        arms: to replay.
        replays: of each arm.
        workers: processes; one means this process.
        kept: where finished parts are looked for and kept.
        on_replays: called in this process with the number of replays that have just finished.

    Returns:
        arm -> (replays, G) regrets; see ``Contest.regrets``.
    """
    parts = [(arm, range(n, min(n + CHUNK, replays))) for n in range(0, replays, CHUNK) for arm in arms]
    found = {(arm.name, own.start): one for arm, own in parts if kept and (one := kept.read((arm, own))) is not None}
    missing = [(arm, own) for arm, own in parts if (arm.name, own.start) not in found]
    if found:
        on_replays(sum(map(len, found.values())))

    def gather(results: Iterable[Array]) -> None:
        for part, regrets in zip(missing, results, strict=True):
            found[part[0].name, part[1].start] = regrets
            if kept is not None:
                kept.write(part, regrets)
            on_replays(len(regrets))

    with threadpool_limits(1):
        if workers <= 1:
            gather(contest.regrets(arm, own) for arm, own in missing)
        elif missing:
            _ = contest.world.optimum  # found once, and not by every worker
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(workers, context, _begin_worker, (contest, os.getpid())) as pool:
                gather(pool.map(_regrets, missing))
    return {arm.name: np.concatenate([found[arm.name, own.start] for one, own in parts if one is arm]) for arm in arms}


_contest: list[Contest] = []  # of a worker process


def _begin_worker(contest: Contest, parent: int) -> None:
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)  # or it would wait for ever for a parent that was killed
    if os.getppid() != parent:
        os._exit(1)
    threadpool_limits(1)
    _contest[:] = [contest]


def _regrets(part: Part) -> Array:
    return _contest[0].regrets(*part)
