"""The acquisition: s(d) = w_pareto U_pareto + w_perf U_perf + w_div U_div + w_bayes alpha_GP(d), term by term.

The form is the paper's (arXiv 2603.23951); what it leaves open is answered in the modules of the terms and in
``docs/search.md``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from scipy.stats import rankdata
from threadpoolctl import ThreadpoolController

from poise_core.config.search import AcquisitionSpec, PlateauSpec, bred_of
from poise_core.evidence.format import counted_seeds
from poise_core.evidence.noise import winsorized
from poise_core.search.diversity import novelty
from poise_core.search.nodes import Array, NodeRecord, NodeTable
from poise_core.search.pareto import pareto_strength
from poise_core.search.plateau import Plateau, assess_plateau
from poise_core.search.potential import Potential, descendant_potential
from poise_core.search.selection import NodeScore, Pick, Selection, best_row, pick_spread


@dataclass(frozen=True)
class Judgement:
    """Every term of every node, (n,) each; NaN for nodes without a score, which cannot be parents."""

    pareto: Array
    performance: Array
    diversity: Array
    potential: Potential
    contributions: Mapping[str, Array] = field(
        default_factory=dict
    )  # term -> weight times the term on the common scale

    @property
    def total(self) -> Array:
        """The sum of the contributions."""
        return np.sum(list(self.contributions.values()), axis=0)

    @property
    def bayes(self) -> Array:
        """The upper confidence bound on a scale on which no gain is 0.5 and the largest possible one is 1."""
        return (self.potential.upper + 1.0) / 2.0

    @property
    def raw(self) -> Mapping[str, Array]:
        """Term -> its values, each on its own scale."""
        own = {"pareto": self.pareto, "performance": self.performance, "diversity": self.diversity}
        return {**own, "potential": self.bayes}


def performance(table: NodeTable) -> Array:
    """U_perf = (shrunken - low) / (high - low), clipped to [0, 1]; 0.5 where all scores are equal.

    The range is that of the scores before shrinking, so that differences which are mostly noise stay small beside the other
    terms; its lower end is the lowest score that is no collapse (``poise_core.evidence.noise.winsorized``).
    """
    raw = table.raw[table.scored]
    if not len(raw):
        return np.full(table.size, np.nan)
    low, high = float(winsorized(raw).min()), float(raw.max())
    if high - low <= 1e-9:
        return np.where(table.scored, 0.5, np.nan)
    return np.clip((table.shrunken - low) / (high - low), 0.0, 1.0)


def judge(table: NodeTable, spec: AcquisitionSpec) -> Judgement:
    """The acquisition value of every node and what it is made of.

    On one thread: the matrices are small, and beside trainings that fill the machine a second thread only waits.
    """
    with _thread_pools().limit(limits=1):
        return _judge(table, spec)


@lru_cache(maxsize=1)
def _thread_pools() -> ThreadpoolController:
    """Those of the libraries that are loaded; finding them takes longer than a judgement."""
    return ThreadpoolController()


def _judge(table: NodeTable, spec: AcquisitionSpec) -> Judgement:
    scored = table.scored
    pareto = np.full(table.size, np.nan)
    if scored.any():
        pareto[scored] = pareto_strength(table.benchmarks[scored])
    known = table if spec.impute else replace(table, stopped=None)
    potential = descendant_potential(known, spec)
    plain = Judgement(pareto, performance(table), novelty(table, spec.neighbours), potential)
    weighted = {name: getattr(spec, name) * on_common_scale(values, spec.scale) for name, values in plain.raw.items()}
    return replace(plain, contributions=weighted)


def on_common_scale(values: Array, scale: str) -> Array:
    """A term in units that are the same for all terms, so that equal weights let them move the total equally.

    ``deviation``: 0.5 + z / 4, with z the standard deviations from the mean of the nodes, at most 3. Mean and deviation are
    taken with collapses raised (``winsorized``), so that one very low value does not make all others equal. Where all values
    are equal they are 0.5. ``rank``: the share of nodes below, ties counted half. ``none``: as they are.

    The deviation is the default because parents are picked from the top: a rank puts the first as far above the second as
    the thirtieth above the thirty-first, and forgets that a node stands out.

    Args:
        values: (n,) NaN where a node has none.
        scale: see above.
    """
    known = np.isfinite(values)
    if scale == "none" or not known.any():
        return values
    own = values[known]
    result = np.full(len(values), np.nan)
    if scale == "rank":
        result[known] = (rankdata(own) - 0.5) / len(own)
        return result
    typical = winsorized(own)
    spread = float(typical.std())
    z = (own - typical.mean()) / spread if spread > 1e-9 else np.zeros(len(own))
    result[known] = 0.5 + np.clip(z, -3.0, 3.0) / 4.0
    return result


BRANCH, IMMIGRANT = 0, -1
"""Ranks of picks that were taken for something else than their total."""


@dataclass(frozen=True)
class AcquisitionSelector:
    """The best nodes by ``judge``, spread over lineages; see ``poise_core.search.selection.ParentSelector``.

    On a plateau the last of several slots goes to the most novel node among those with the fewest children instead. The slots of
    immigrants, which come after these and are all slots in the opening, go to the baseline.
    """

    spec: AcquisitionSpec = field(default_factory=AcquisitionSpec)
    plateau: PlateauSpec = field(default_factory=PlateauSpec)
    immigrants: int = 0  # slots of a generation
    opening: int = 0  # nodes before there are other slots

    def select(self, nodes: Sequence[NodeRecord], count: int, seed: int) -> list[Selection]:
        """See ``poise_core.search.selection.ParentSelector``."""
        table = NodeTable.of(nodes)
        judgement = judge(table, self.spec)
        stuck = assess_plateau(nodes, self.plateau)
        picks = self.choose(table, judgement, stuck.stalled, count, seed)
        if not picks:
            return []
        scores = node_scores(table, judgement)

        def reason(pick: Pick) -> str:
            if pick.rank == IMMIGRANT:
                return f"{table.names[pick.row]} is the baseline, of which immigrants from the whole catalogue are children."
            if pick.rank == BRANCH:
                return self._branch_reason(table, pick.row, stuck)
            return self._reason(table, judgement, pick)

        return [
            Selection(table.ids[pick.row], slot, pick.repeat, reason(pick), scores) for slot, pick in enumerate(picks)
        ]

    def choose(self, table: NodeTable, judgement: Judgement, stalled: bool, count: int, seed: int) -> list[Pick]:
        """The nodes of ``count`` slots; the rank of an unexplored branch is ``BRANCH``, that of an immigrant's ``IMMIGRANT``."""
        root = np.flatnonzero(table.scored & (table.depth == 0))
        bred = self.bred(table, count) if len(root) else count
        picks = pick_spread(table, judgement.total, bred, self.spec.lineage_penalty, seed)
        branch = self._unexplored(table, judgement, picks, seed) if stalled and self.plateau.answer else None
        if branch is not None:
            picks = [*picks[:-1], Pick(branch, 0, BRANCH, 0.0)]
        earlier = sum(pick.row == root[0] for pick in picks) if bred < count else 0
        return [*picks, *(Pick(int(root[0]), earlier + one, IMMIGRANT, 0.0) for one in range(count - bred))]

    def bred(self, table: NodeTable, count: int) -> int:
        """How many of ``count`` slots are no immigrants'."""
        return bred_of(count, self.immigrants, self.opening, len(table.ids))

    @staticmethod
    def _unexplored(table: NodeTable, judgement: Judgement, picks: Sequence[Pick], seed: int) -> int | None:
        """The most novel of the nodes with the fewest children that no earlier slot has; None where there is only one slot."""
        free = table.scored.copy()
        free[[pick.row for pick in picks[:-1]]] = False
        if len(picks) < 2 or not free.any():
            return None
        fewest = table.children[free].min()
        values = np.where(free & (table.children == fewest), judgement.diversity, -np.inf)
        return best_row(table.ids, values, seed)

    def _reason(self, table: NodeTable, judgement: Judgement, pick: Pick) -> str:
        row, spec, scored = pick.row, self.spec, int(table.scored.sum())
        seeds = int(table.seeds[row])
        kept = judgement.total[row] - pick.penalty
        lineage = (
            f", of which the lineage it shares with parents chosen before leaves {kept:.2f}" if pick.penalty else ""
        )
        again = f" Taken again (repeat {pick.repeat}) because only {scored} scored nodes exist." if pick.repeat else ""
        prior = "" if judgement.potential.fitted else " (too few descendants to learn from: prior)"
        notes = {
            "performance": f" (shrunken Overall {table.shrunken[row]:.2f}, {counted_seeds(seeds)})",
            "potential": prior,
        }
        parts = [
            f"{getattr(spec, name):g} x {name} {on_common_scale(values, spec.scale)[row]:.2f}{notes.get(name, '')}"
            for name, values in judgement.raw.items()
        ]
        return (
            f"{table.names[row]} ranks {pick.rank} of {scored}: {judgement.total[row]:.2f} = {' + '.join(parts)}{lineage}; "
            f"{table.children[row]} children so far.{again}"
        )

    @staticmethod
    def _branch_reason(table: NodeTable, row: int, stuck: Plateau) -> str:
        return (
            f"{table.names[row]} is an unexplored branch ({table.children[row]} children), taken because the search is on "
            f"a plateau: {stuck.describe()}"
        )


def node_scores(table: NodeTable, judgement: Judgement) -> tuple[NodeScore, ...]:
    """Every node's terms, in the order of the table, for the archive; what a node does not have is left out."""
    columns = {
        **judgement.raw,
        **{f"contribution_{name}": values for name, values in judgement.contributions.items()},
        "shrunken_overall": table.shrunken,
        "seeds": np.where(table.scored, table.seeds, np.nan),
        "gain_mean": judgement.potential.mean,
        "gain_std": judgement.potential.std,
        "gain_mechanical": judgement.potential.mechanical,
        "gain_observed": judgement.potential.target,
        "gain_left_out": judgement.potential.left_out,
        "children": table.children.astype(np.float64),
    }
    names, values = list(columns), np.column_stack(list(columns.values())).tolist()
    totals = judgement.total.tolist()
    return tuple(
        NodeScore(
            identity,
            total if total == total else None,
            {name: value for name, value in zip(names, row, strict=True) if value == value},
        )
        for identity, total, row in zip(table.ids, totals, values, strict=True)
    )
