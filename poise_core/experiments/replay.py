"""Searches replayed on the surrogate of a recorded table: every arm, every operator left out, and selectors of your own.

A replay is a whole search without trainings. Parents are chosen, compositions varied and screened, and decisions of the ladder
taken by the code of a real run; what a training would have measured is drawn: the surrogate's value of the composition plus seed
noise as the table has it (``poise_core.experiments.surrogate``). The optimum is known, so what counts is *regret*: the optimum
minus the true Overall of the candidate that the search would name best, over the training tokens spent. Nothing is written to disk.

Two arms that try the same composition in the same replay draw the same numbers for it, so differences between arms are paired.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from typing import Any, Protocol, cast

import numpy as np

from poise_core.agents.catalogue.promising import most_promising, on_a_scale
from poise_core.agents.catalogue.proposer import CatalogueProposer
from poise_core.agents.catalogue.random_search import with_random_numbers
from poise_core.agents.catalogue.screener import CatalogueScreener
from poise_core.config import LadderSpec
from poise_core.config.environment_file import EnvironmentFile
from poise_core.config.search import AcquisitionSpec, PromiseSpec, SearchSpec
from poise_core.evidence import forecast
from poise_core.evidence.intervals import Interval
from poise_core.evidence.promise import Promise
from poise_core.evidence.stopping import Measurement, Referee
from poise_core.experiments.surrogate import (
    Codes,
    TableError,
)
from poise_core.experiments.world import Drawn, World
from poise_core.mechanisms.catalogue import SLOTS
from poise_core.mechanisms.composition import GRPO, Composition, number_distance
from poise_core.mechanisms.features import encode_all
from poise_core.mechanisms.operators import (
    Variation,
    crossover,
    mutate,
    mutate_numbers,
    random_composition,
)
from poise_core.search.acquisition import AcquisitionSelector, judge
from poise_core.search.nodes import Array, NodeRecord, NodeTable
from poise_core.search.plateau import assess_scores
from poise_core.search.references import family, reference_rows
from poise_core.search.shrinkage import shrink

DYNAMICS = tuple(f"proxy_{name}" for name in forecast.FEATURES)
"""Outputs of a table that a ladder decides by."""

_NEUTRAL = {slot: SLOTS[slot].neutral.name for slot in SLOTS}


class Selector(Protocol):
    """Chooses parents: see ``poise_core.search.selection.ParentSelector``; plain candidate ids will do as an answer."""

    def select(self, nodes: Sequence[NodeRecord], count: int, seed: int) -> Sequence[Any]:
        """``count`` parents, the same one several times where wanted; equal input and seed give equal output."""
        ...


@dataclass(frozen=True)
class ReplayArm:
    """One way to search."""

    name: str
    selector: str = "acquisition"  # or "greedy", "root", or FILE.py:CLASS
    proposer: str = "catalogue"  # or one of PROPOSERS, which propose without a parent
    acquisition: AcquisitionSpec = field(default_factory=AcquisitionSpec)
    crossover: bool = True
    numbers: bool = True  # whether some mutations move numbers and leave all choices
    plateau: bool = True
    screen: bool = True
    immigrants: int = 0  # slots of a generation; of the acquisition alone
    opening: int = 0  # candidates before there are other slots; of the acquisition alone
    promise: PromiseSpec | None = None
    ladder: LadderSpec | None = None


PROPOSERS: dict[str, Callable[[random.Random, Composition], Composition]] = {
    "random": lambda rng, baseline: random_composition(rng),
    "tune": lambda rng, baseline: with_random_numbers(baseline, rng).composition,
}
"""Arms that propose without looking at any measurement: (random numbers, baseline) -> composition."""


@lru_cache(maxsize=8)
def load_selector(name: str) -> Selector:
    """A user's selector, made of the class that ``FILE.py:CLASS`` names, which is called without arguments.

    Raises:
        TableError: the file is missing or fails, or the class has no method ``select``.
    """
    file = EnvironmentFile.parse(name)
    if file is None:
        raise TableError(f"{name}: a selector is named FILE.py:CLASS")
    if not file.path.is_file():
        raise TableError(f"{file.path}: no such file")
    try:
        selector = file.instance(f"poise_selector_{file.path.stem}")
    except ValueError as error:
        raise TableError(str(error)) from error
    if not callable(getattr(selector, "select", None)):
        raise TableError(f"{file.path}: {file.class_name} lacks select(nodes, count, seed)")
    return cast(Selector, selector)


# ---- one replay


@dataclass
class _Node:
    """One candidate of a replayed search."""

    composition: Composition
    parents: tuple[int, ...]
    generation: int
    drawn: Drawn
    values: Array  # (k, J) as far as it was measured; k = 0: it has no score
    choices: Codes  # (S,) the choice of every slot as a number
    texts: Codes  # (S,) a hash of every slot of the signature
    rewards: dict[int, float] = field(default_factory=dict)  # seed -> of the proxy, percent
    stopped: bool = False
    forecast: float | None = None


_Drawn = tuple[Composition, tuple[int, ...]]
"""A composition, and the rows of its parents."""

Step = tuple[float, float]
"""Training tokens spent, and the true Overall of the candidate that the search would name best then."""


class ReplayedSearch:
    """One search of one arm in one replay; ``run`` gives its steps."""

    def __init__(
        self, world: World, arm: ReplayArm, search: SearchSpec, budget: float, address: tuple[int, int]
    ) -> None:
        """Begin with the baseline, measured with all seeds.

        Args:
            world: the testbed.
            arm: how to search.
            search: parents, proposals and seeds per candidate, and the plateau rule.
            budget: training tokens, the baseline's included.
            address: of the replay: its seed and its number.
        """
        self.world, self.arm, self.search, self.budget, self.address = world, arm, search, budget, address
        self.selector = load_selector(arm.selector) if ":" in arm.selector else None
        self.acquisition = AcquisitionSelector(
            arm.acquisition, search.plateau.model_copy(update={"answer": arm.plateau}), arm.immigrants, arm.opening
        )
        self.proposer, self.screener = CatalogueProposer(), CatalogueScreener()
        cells = world.cells
        baseline = cells.compositions[cells.baseline] if cells.baseline >= 0 else GRPO
        self.baseline = baseline
        self.benchmarks = [i for i, weight in enumerate(cells.weights) if weight > 0]
        self.nodes: list[_Node] = []
        self.tried: set[Composition] = set()
        self.tokens = 0.0
        root = self._node(baseline, (), 0)
        root.drawn = replace(root.drawn, failed=False)  # a baseline that fails ends a run
        root.values = root.drawn.values
        root.rewards = self._rewards(root, range(search.seeds_per_candidate))
        self.tokens += root.drawn.tokens * search.seeds_per_candidate
        self.nodes.append(root)
        self.steps: list[Step] = []
        self._learned: tuple[int, Promise | None] = (0, None)

    def run(self) -> list[Step]:
        """Generations until the budget is used up or nothing new can be proposed; the step of the baseline first."""
        table = self._table()
        self._note(table)
        generation, stuck = 0, 0
        while self.tokens < self.budget and stuck < 5:
            generation += 1
            referee = self._referee()
            stalled = self._stalled(table)
            children = [
                child
                for slot, row in enumerate(self._parents(table, stalled, generation))
                if (child := self._propose(table, row, generation, slot, stalled and self.arm.plateau)) is not None
            ]
            for child in children:
                self._measure(child, referee)
                self.nodes.append(child)
            stuck = 0 if children else stuck + 1
            table = self._table()
            self._note(table)
        return self.steps

    # what is known

    def _table(self) -> NodeTable:
        nodes, weights = self.nodes, self.world.cells.weights
        seeds = np.array([max(len(node.values), 1) for node in nodes], np.float64)
        nothing = np.full((1, len(weights)), np.nan)
        means = np.array([(node.values if len(node.values) else nothing).mean(axis=0) for node in nodes])
        several = [node.values[:, self.benchmarks] for node in nodes if len(node.values) > 1]
        freedom = sum(len(one) - 1 for one in several)
        squares = sum(((one - one.mean(axis=0)) ** 2).sum(axis=0) for one in several)
        own = weights[self.benchmarks]
        overall = sum((((one - one.mean(axis=0)) @ own) ** 2).sum() for one in several)
        benchmarks = np.empty((len(nodes), len(self.benchmarks)))
        for column, index in enumerate(self.benchmarks):
            benchmarks[:, column] = shrink(
                means[:, index], seeds, float(squares[column] / freedom) if freedom else None
            )
        names = [str(row) for row in range(len(nodes))]
        return NodeTable(
            ids=names,
            names=names,
            parent=np.array([node.parents[0] if node.parents else -1 for node in nodes], np.int64),
            raw=means @ weights,
            seeds=seeds,
            variance=float(overall / freedom) if freedom else None,
            benchmarks=benchmarks,
            mechanisms=np.array([node.choices for node in nodes]),
            sketch=np.full((len(nodes), 0), np.nan),
            stopped=np.array([node.stopped for node in nodes]),
            forecast=np.array([math.nan if node.forecast is None else node.forecast for node in nodes]),
        )

    def _records(self, table: NodeTable) -> list[NodeRecord]:
        """As a real run gives them, for selectors of users."""
        cells, records = self.world.cells, []
        for row, node in enumerate(self.nodes):
            overalls = (node.values @ cells.weights).tolist()
            names = [cells.outputs[index] for index in self.benchmarks]
            scores = {name: tuple(node.values[:, i].tolist()) for name, i in zip(names, self.benchmarks, strict=True)}
            mean = float(table.raw[row])
            records.append(
                NodeRecord(
                    candidate_id=table.ids[row],
                    name=table.names[row],
                    parent_ids=tuple(str(one) for one in node.parents),
                    generation=node.generation,
                    overall=Interval(mean, -math.inf, math.inf, len(overalls)) if overalls else None,
                    benchmarks={name: float(np.mean(own)) for name, own in scores.items()} if overalls else {},
                    mechanisms=node.composition.choices,
                    seed_overalls=tuple(overalls),
                    seed_benchmarks=scores if overalls else {},
                    stopped=node.stopped,
                    forecast=node.forecast,
                )
            )
        return records

    def _note(self, table: NodeTable) -> None:
        best = int(np.argmax(np.where(table.scored, table.shrunken, -np.inf)))
        self.steps.append((self.tokens, self.nodes[best].drawn.truth))

    def _stalled(self, table: NodeTable) -> bool:
        generation = np.array([node.generation for node in self.nodes], np.int64)
        return assess_scores(table.raw, table.seeds, table.variance, generation, self.search.plateau).stalled

    # parents and children

    def _parents(self, table: NodeTable, stalled: bool, generation: int) -> list[int]:
        """Rows of the nodes that get a child."""
        count, seed = self.search.parents, zlib.crc32(f"{self.address}/{generation}".encode())
        if self.selector is not None:
            chosen = self.selector.select(self._records(table), count, seed)
            return [int(getattr(one, "candidate_id", one)) for one in chosen]
        if self.arm.selector == "root":
            return [0] * count
        if self.arm.selector == "greedy":
            return [int(np.argmax(np.where(table.scored, table.raw, -np.inf)))] * count
        judgement = judge(table, self.arm.acquisition)
        return [pick.row for pick in self.acquisition.choose(table, judgement, stalled, count, seed)]

    def _propose(self, table: NodeTable, row: int, generation: int, slot: int, wide: bool) -> _Node | None:
        """A new child of a node: of several variations the one that the screener ranks first; None where there is none."""
        rng = random.Random(f"{self.address}/{generation}/{slot}")
        if self.arm.proposer != "catalogue":
            for _ in range(200):
                composition = PROPOSERS[self.arm.proposer](rng, self.baseline)
                if composition not in self.tried:
                    return self._node(composition, (0,), generation)
            return None
        base = self.nodes[row]
        bred = self.acquisition.bred(table, self.search.parents)
        immigrant = self.arm.selector == "acquisition" and slot >= bred
        donors = self._donors(table, row, generation, slot) if self.arm.crossover and not immigrant else []
        fresh = set(self.tried)
        promise, spec = self._promise(), self.arm.promise or PromiseSpec()

        def new(variation: Variation | None, parents: tuple[int, ...]) -> _Drawn | None:
            if variation is None or variation.composition in fresh:
                return None
            fresh.add(variation.composition)
            return variation.composition, parents

        def draws(limit: int) -> Iterator[_Drawn]:
            for _ in range(100 * limit):
                parents: tuple[int, ...] = (row,)
                variation: Variation | None
                if immigrant:
                    variation = Variation(random_composition(rng), base.composition)
                elif donors and rng.random() < self.proposer.crossover_share:
                    parents = (row, rng.choice(donors))
                    variation = crossover(base.composition, self.nodes[parents[1]].composition, rng)
                else:
                    variation = self._mutated(base.composition, rng, wide, spec.reach if promise is not None else None)
                if (drawn := new(variation, parents)) is not None:
                    yield drawn

        count = self.search.proposals if self.arm.screen else 1
        high: Array | None = None
        if promise is None:
            found = list(islice(draws(count), count))
        else:
            found, high = most_promising(draws, promise, spec, count, lambda drawn: drawn[0])
            found, high = found[: self.search.proposals], high[: self.search.proposals]
        if not found:
            return None
        best = found[0]
        if self.arm.screen and len(found) > 1:
            best = found[self._screen(row, [one for one, _ in found], high, spec.weight)]
        return self._node(*best, generation)

    def _mutated(self, base: Composition, rng: random.Random, wide: bool, reach: int | None) -> Variation | None:
        """As ``CatalogueProposer`` does where nothing is diagnosed."""
        if self.arm.numbers and not wide and rng.random() < self.proposer.number_share:
            return mutate_numbers(base, rng)
        if reach is not None:
            return mutate(base, rng, rng.randint(1, reach))
        strength = 2 if rng.random() < self.proposer.double_share else 1
        return mutate(base, rng, strength + (self.proposer.wider_by if wide else 0))

    def _donors(self, table: NodeTable, row: int, generation: int, slot: int) -> list[int]:
        parents = {
            name: [table.ids[one] for one in node.parents] for name, node in zip(table.ids, self.nodes, strict=True)
        }
        seed = zlib.crc32(f"{self.address}/{generation}/{slot}".encode())
        return list(reference_rows(table, row, family(parents, table.ids[row]), seed=seed))

    def _screen(self, row: int, proposals: Sequence[Composition], high: Array | None, share: float) -> int:
        """The proposal that ``CatalogueScreener`` ranks first; there are no diagnoses here, so relevance is the same for all.

        Args:
            row: the parent.
            proposals: to choose from.
            high: (m,) what each may score; None where nothing is known of that.
            share: of the same in the rank.
        """
        weights, base = self.screener.weights, self.nodes[row].texts
        choices = np.array([node.choices for node in self.nodes])
        texts = np.array([node.texts for node in self.nodes])
        siblings = texts[[i for i, node in enumerate(self.nodes) if node.parents[:1] == (row,)]]
        directions = (siblings != base).argmax(axis=1)
        scores = []
        for composition in proposals:
            own, text = encode_choices(composition), _hashes(_signature(composition))
            apart = np.where(choices != own, 1.0, 0.25 * (texts != text)).sum(axis=1)
            for other in np.flatnonzero(
                (choices == own).all(axis=1)
            ).tolist():  # the same mechanisms with other numbers
                apart[other] = 2.0 * number_distance(composition, self.nodes[other].composition)
            same = int((directions == (text != base).argmax()).sum())
            neutral = sum(composition.choices[slot] == _NEUTRAL[slot] for slot in SLOTS) / len(SLOTS)
            scores.append(
                weights["novelty"] * min(1.0, float(apart.min()) / 3)
                + weights["variety"] / (1.0 + same)
                + weights["simplicity"] * neutral
            )
        if high is not None:
            scores = [(1 - share) * score + share * term for score, term in zip(scores, on_a_scale(high), strict=True)]
        return int(np.argmax(scores))

    def _promise(self) -> Promise | None:
        if self.arm.promise is None:
            return None
        scored = [node for node in self.nodes if len(node.values)]
        if self._learned[0] != len(scored):
            overall = np.array([float((node.values @ self.world.cells.weights).mean()) for node in scored])
            seeds = np.array([float(len(node.values)) for node in scored])
            coded = encode_all([node.composition for node in scored])
            self._learned = len(scored), Promise.learn(*coded, overall, seeds)
        return self._learned[1]

    def _node(self, composition: Composition, parents: tuple[int, ...], generation: int) -> _Node:
        self.tried.add(composition)
        signature = _signature(composition)
        drawn = self.world.draw(composition, "; ".join(signature), self.address, self.search.seeds_per_candidate)
        own = (encode_choices(composition), _hashes(signature))
        return _Node(composition, parents, generation, drawn, drawn.values[:0], *own)

    # measuring

    def _measure(self, child: _Node, referee: Referee | None) -> None:
        """Measure as far as the ladder lets the child; a failure costs a training and leaves no score."""
        drawn, seeds = child.drawn, self.search.seeds_per_candidate
        if drawn.failed:
            self.tokens += drawn.tokens
            return
        if referee is None:
            child.values, child.rewards = drawn.values, self._rewards(child, range(seeds))
            self.tokens += seeds * drawn.tokens
            return
        references = tuple(dict.fromkeys((str(child.parents[0]), "0")))
        child.rewards = self._rewards(child, [0])
        if referee.ladder.proxy_steps and referee.decide(self._measured(child), "proxy", references).stop:
            self.tokens += drawn.proxy_tokens
            child.stopped = True
            if referee.forecast is not None:
                child.forecast = referee.forecast.predict(self._dynamics(child, 0))
            return
        child.values = drawn.values[:1]
        if seeds > 1 and not referee.decide(self._measured(child), "first", references).stop:
            child.values, child.rewards = drawn.values, self._rewards(child, range(seeds))
        self.tokens += len(child.values) * drawn.tokens

    def _referee(self) -> Referee | None:
        if self.arm.ladder is None:
            return None
        measured = {str(row): self._measured(node) for row, node in enumerate(self.nodes) if not node.drawn.failed}
        return Referee.learn(self.arm.ladder, range(self.search.seeds_per_candidate), ["0"], measured)

    def _measured(self, node: _Node) -> Measurement:
        overalls = dict(enumerate((node.values @ self.world.cells.weights).tolist()))
        return Measurement(overalls, node.rewards, {seed: self._dynamics(node, seed) for seed in node.rewards})

    def _rewards(self, node: _Node, seeds: Sequence[int]) -> dict[int, float]:
        outputs = self.world.cells.outputs
        if "proxy_reward_mean" not in outputs:
            return {}
        column = outputs.index("proxy_reward_mean")
        return {seed: 100.0 * float(node.drawn.values[seed, column]) for seed in seeds}

    def _dynamics(self, node: _Node, seed: int) -> forecast.Dynamics:
        outputs = self.world.cells.outputs
        return tuple(float(node.drawn.values[seed, outputs.index(name)]) for name in DYNAMICS)


def encode_choices(composition: Composition) -> Codes:
    """(S,) the choice of every slot as a number; within the slot, since features of the nodes have a column for each."""
    return np.array([_PLACES[slot, choice] for slot, choice in composition.choices.items()], np.int64)


_PLACES = {(slot, choice.name): place for slot in SLOTS for place, choice in enumerate(SLOTS[slot].choices)}


def _signature(composition: Composition) -> tuple[str, ...]:
    return tuple(composition.describe(slot) for slot in SLOTS)


def _hashes(signature: tuple[str, ...]) -> Codes:
    return np.array([zlib.crc32(text.encode()) for text in signature], np.int64)
