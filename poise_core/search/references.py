"""Which candidates become parents of the next generation, and which others are shown beside them.

A :class:`ParentSelector` sees :class:`NodeRecord` objects, one per archived candidate, failed ones included, and
returns one :class:`Selection` per child to be made. A node without a score is never a parent and never counts as zero;
its existence still counts as an expansion of its parent.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from scipy.special import stdtrit

from poise_core.evaluation.statistics import Interval


@dataclass(frozen=True)
class NodeRecord:
    """One candidate of the tree."""

    candidate_id: str
    name: str
    parent_ids: tuple[str, ...] = ()
    generation: int = 0
    overall: Interval | None = None  # None: failed, rejected or not yet measured
    benchmarks: Mapping[str, float] = field(default_factory=dict)  # percent, mean over seeds; may lack entries
    mechanisms: Mapping[str, str] = field(default_factory=dict)  # slot -> choice
    seed_overalls: tuple[float, ...] = ()  # Overall of every seed, for the noise that is not shared between candidates

    @property
    def scored(self) -> bool:
        """Whether there is a finite Overall to compare."""
        return self.overall is not None and math.isfinite(self.overall.estimate)


@dataclass(frozen=True)
class NodeScore:
    """How one node was judged in one round; ``total`` is None where the node could not be a parent."""

    candidate_id: str
    total: float | None
    terms: Mapping[str, float]


@dataclass(frozen=True)
class Selection:
    """One chosen parent."""

    candidate_id: str
    slot: int  # 0-based place in the round
    repeat: int  # how many earlier slots of this round hold the same parent; feeds the proposer's seed
    reason: str
    scores: tuple[NodeScore, ...]  # of every node, the same tuple in every selection of a round


class ParentSelector(Protocol):
    """Chooses the parents of one generation."""

    def select(self, nodes: Sequence[NodeRecord], count: int, seed: int) -> list[Selection]:
        """``count`` selections, or none where no node has a score; equal input and seed give equal output."""
        ...


def shrunken_scores(nodes: Sequence[NodeRecord]) -> dict[str, float]:
    """Empirical-Bayes estimate of each scored node's Overall: m + tau^2 / (tau^2 + v / n) * (x - m).

    m is the mean of the scores; n a node's seeds; v the variance between seeds, pooled over all nodes;
    tau^2 = max(var(x) - mean(v / n), 0) the spread that noise does not explain (method of moments). With one node, or where
    v is unknown, nothing is shrunk.
    """
    overalls = {node.candidate_id: node.overall for node in nodes if node.overall is not None and node.scored}
    values = {key: overall.estimate for key, overall in overalls.items()}
    variance = _seed_variance([node for node in nodes if node.scored])
    if len(values) < 2 or variance is None:
        return values
    noise = {key: variance / max(overall.seeds, 1) for key, overall in overalls.items()}
    mean = statistics.fmean(values.values())
    spread = max(statistics.variance(values.values()) - statistics.fmean(noise.values()), 0.0)
    return {
        key: mean + (spread / (spread + noise[key]) if noise[key] > 0 else 1.0) * (value - mean)
        for key, value in values.items()
    }


def _seed_variance(nodes: Sequence[NodeRecord]) -> float | None:
    """Pooled variance of Overall between seeds, weighted by degrees of freedom.

    From ``seed_overalls`` where nodes have them. Otherwise from the half-widths of the intervals, read as t * sqrt(v / n),
    which is too much by the problems' share: all candidates answer the same problems.
    """
    seeds = [node.seed_overalls for node in nodes if len(node.seed_overalls) > 1]
    if seeds:
        return sum((len(s) - 1) * statistics.variance(s) for s in seeds) / sum(len(s) - 1 for s in seeds)
    overalls = [node.overall for node in nodes if node.overall is not None]
    finite = [o for o in overalls if o.seeds > 1 and math.isfinite(o.high - o.low)]
    if not finite:
        return None
    total = sum(
        (o.seeds - 1) * o.seeds * ((o.high - o.low) / 2 / float(stdtrit(o.seeds - 1, 0.975))) ** 2 for o in finite
    )
    return total / sum(o.seeds - 1 for o in finite)


def expansions(nodes: Sequence[NodeRecord]) -> dict[str, int]:
    """How many children each node has had, failed ones included."""
    counts = {node.candidate_id: 0 for node in nodes}
    for node in nodes:
        for parent in node.parent_ids[:1]:  # a reference that lent a mechanism was not expanded
            if parent in counts:
                counts[parent] += 1
    return counts


def _tie_break(seed: int, candidate_id: str) -> str:
    return hashlib.sha256(f"{seed}:{candidate_id}".encode()).hexdigest()


@dataclass(frozen=True)
class ScoreExplorationSelector:
    """Normalised shrunken score plus a bonus for nodes that were expanded little.

    total = s + exploration * sqrt(ln(1 + N) / (1 + n)), n the node's children so far and N those of the whole tree
    (UCB1 of Auer et al. 2002, with the counts shifted by one so that unexpanded nodes stay finite).
    s = (shrunken - min x) / (max x - min x) in [0, 1], 0.5 where all x are equal: the range is that of the scores
    before shrinking, so that differences which are mostly noise stay small beside the bonus.
    The best ``count`` distinct nodes are taken; with fewer nodes than ``count`` the list starts again from the best.
    Ties fall by a hash of seed and id.
    """

    exploration: float = 0.5

    def select(self, nodes: Sequence[NodeRecord], count: int, seed: int) -> list[Selection]:
        """See :class:`ParentSelector`."""
        scores = self.score(nodes)
        ranked = sorted(
            (score for score in scores if score.total is not None),
            key=lambda score: (-round(score.total or 0.0, 9), _tie_break(seed, score.candidate_id)),
        )
        if not ranked:
            return []
        names = {node.candidate_id: node.name for node in nodes}
        chosen = []
        for slot in range(count):
            score, repeat = ranked[slot % len(ranked)], slot // len(ranked)
            reason = self._reason(names[score.candidate_id], score, slot % len(ranked) + 1, len(ranked), repeat)
            chosen.append(Selection(score.candidate_id, slot, repeat, reason, scores))
        return chosen

    def score(self, nodes: Sequence[NodeRecord]) -> tuple[NodeScore, ...]:
        """Every node's terms, in the order given."""
        shrunk, children = shrunken_scores(nodes), expansions(nodes)
        raw = [node.overall.estimate for node in nodes if node.overall is not None and node.scored]
        low, high = min(raw, default=0.0), max(raw, default=0.0)
        tree = sum(children.values())
        scores = []
        for node in nodes:
            expanded = children[node.candidate_id]
            terms = {"children": float(expanded)}
            total = None
            if node.candidate_id in shrunk:
                value = shrunk[node.candidate_id]
                terms["shrunken_overall"] = value
                terms["score"] = (value - low) / (high - low) if high - low > 1e-9 else 0.5
                terms["exploration"] = self.exploration * math.sqrt(math.log1p(tree) / (1 + expanded))
                total = terms["score"] + terms["exploration"]
            scores.append(NodeScore(node.candidate_id, total, terms))
        return tuple(scores)

    @staticmethod
    def _reason(name: str, score: NodeScore, rank: int, of: int, repeat: int) -> str:
        terms = score.terms
        again = f" Taken again (repeat {repeat}) because only {of} scored nodes exist." if repeat else ""
        return (
            f"{name} ranks {rank} of {of}: score {terms['score']:.2f} "
            f"(shrunken Overall {terms['shrunken_overall']:.2f}) + exploration {terms['exploration']:.2f} "
            f"({terms['children']:.0f} children so far).{again}"
        )


Tier = Literal["pareto", "complementary", "exploratory"]


@dataclass(frozen=True)
class ReferenceChoice:
    """A node to show beside the parent."""

    candidate_id: str
    tier: Tier
    reason: str


def dominates(a: Mapping[str, float], b: Mapping[str, float]) -> bool:
    """Whether ``a`` is nowhere worse than ``b`` and somewhere better; False unless both hold the same benchmarks."""
    if not a or a.keys() != b.keys() or not all(map(math.isfinite, [*a.values(), *b.values()])):
        return False
    return all(a[key] >= b[key] for key in a) and any(a[key] > b[key] for key in a)


def pareto_front(nodes: Sequence[NodeRecord]) -> list[NodeRecord]:
    """Scored nodes with a finite benchmark vector that no other node dominates, in the order given."""
    usable = [n for n in nodes if n.scored and n.benchmarks and all(map(math.isfinite, n.benchmarks.values()))]
    return [n for n in usable if not any(dominates(other.benchmarks, n.benchmarks) for other in usable)]


def mechanism_distance(a: NodeRecord, b: NodeRecord) -> float:
    """Share of slots on which the two differ, in [0, 1]; a slot that only one of them names counts as different."""
    slots = a.mechanisms.keys() | b.mechanisms.keys()
    return sum(a.mechanisms.get(s) != b.mechanisms.get(s) for s in slots) / len(slots) if slots else 0.0


def reference_set(
    nodes: Sequence[NodeRecord], parent_id: str, *, per_tier: int = 1, seed: int = 0
) -> list[ReferenceChoice]:
    """Nodes to show beside the parent: strong ones, structurally different ones, ones from other lineages.

    ``pareto``: on the frontier of the benchmark vector, by shrunken score. ``complementary``: largest
    :func:`mechanism_distance` to the parent, then score. ``exploratory``: neither ancestor nor descendant of the
    parent, least expanded first. Only scored nodes; never the parent; no node twice.

    Raises:
        KeyError: no node has the id ``parent_id``.
    """
    by_id = {node.candidate_id: node for node in nodes}
    parent = by_id[parent_id]
    shrunk, children = shrunken_scores(nodes), expansions(nodes)
    others = [node for node in nodes if node.scored and node.candidate_id != parent_id]
    family = _lineage(by_id, parent_id)

    def tie(node: NodeRecord) -> str:
        return _tie_break(seed, node.candidate_id)

    front = sorted(pareto_front(others), key=lambda n: (-shrunk[n.candidate_id], tie(n)))
    contrast = sorted(others, key=lambda n: (-mechanism_distance(parent, n), -shrunk[n.candidate_id], tie(n)))
    outside = sorted(
        (n for n in others if n.candidate_id not in family),
        key=lambda n: (children[n.candidate_id], -shrunk[n.candidate_id], tie(n)),
    )
    tiers: tuple[tuple[Tier, list[NodeRecord]], ...] = (
        ("pareto", front),
        ("complementary", [n for n in contrast if mechanism_distance(parent, n) > 0]),
        ("exploratory", outside),
    )
    chosen: dict[str, ReferenceChoice] = {}
    for tier, candidates in tiers:
        fresh = [node for node in candidates if node.candidate_id not in chosen][:per_tier]
        for node in fresh:
            reason = _why(tier, node, parent, shrunk[node.candidate_id], children[node.candidate_id])
            chosen[node.candidate_id] = ReferenceChoice(node.candidate_id, tier, reason)
    return list(chosen.values())


def _why(tier: Tier, node: NodeRecord, parent: NodeRecord, shrunk: float, children: int) -> str:
    score = f"shrunken Overall {shrunk:.2f}"
    if tier == "pareto":
        return f"{node.name} is on the Pareto frontier of the benchmarks, {score}."
    if tier == "complementary":
        return (
            f"{node.name} differs from {parent.name} in {mechanism_distance(parent, node):.0%} of the slots, {score}."
        )
    return f"{node.name} lies outside the lineage of {parent.name} and has {children} children, {score}."


def _lineage(by_id: Mapping[str, NodeRecord], candidate_id: str) -> set[str]:
    """The node, its ancestors and its descendants; tolerates missing parents and cycles."""
    family = {candidate_id}
    frontier = [candidate_id]
    while frontier:
        frontier = [p for node in frontier if node in by_id for p in by_id[node].parent_ids if p not in family]
        family.update(frontier)
    descendants = {candidate_id}
    grown = True
    while grown:
        fresh = {n.candidate_id for n in by_id.values() if descendants & set(n.parent_ids)} - descendants
        descendants |= fresh
        grown = bool(fresh)
    return family | descendants
