"""Which candidates are shown to the proposer beside the parent: strong, different, and from other lineages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Literal

import numpy as np

from poise_core.evidence.format import counted_seeds
from poise_core.search.diversity import distances
from poise_core.search.nodes import Array, NodeRecord, NodeTable
from poise_core.search.selection import tie_break

Tier = Literal["pareto", "complementary", "exploratory"]


@dataclass(frozen=True)
class ReferenceChoice:
    """A node to show beside the parent."""

    candidate_id: str
    tier: Tier
    reason: str


def reference_set(
    nodes: Sequence[NodeRecord], parent_id: str, *, per_tier: int = 1, seed: int = 0
) -> list[ReferenceChoice]:
    """Nodes to show beside the parent: strong ones, structurally different ones, ones from other lineages.

    ``pareto``: dominated by no node but perhaps the parent in the shrunken benchmark vector, by shrunken score.
    ``complementary``: largest distance to the parent in mechanisms and behaviour
    (``poise_core.search.diversity.distances``), then score.
    ``exploratory``: neither ancestor nor descendant of the parent, least expanded first. Only scored nodes; never the
    parent; no node twice.

    Raises:
        KeyError: no node has the id ``parent_id``.
    """
    table = NodeTable.of(nodes)
    rows = {identity: row for row, identity in enumerate(table.ids)}
    parent = rows[parent_id]
    relatives = family({node.candidate_id: node.parent_ids for node in nodes}, parent_id)
    found = reference_rows(table, parent, relatives, per_tier=per_tier, seed=seed)
    return [
        ReferenceChoice(
            table.ids[row],
            tier,
            _why(
                tier,
                nodes[row],
                nodes[parent],
                float(table.shrunken[row]),
                int(table.seeds[row]),
                int(table.children[row]),
            ),
        )
        for row, tier in found.items()
    ]


def reference_rows(
    table: NodeTable, parent: int, relatives: Set[str], *, per_tier: int = 1, seed: int = 0
) -> dict[int, Tier]:
    """Rows of the references of one parent, each with its tier; see ``reference_set``.

    Args:
        table: of n nodes.
        parent: its row.
        relatives: of ``family``.
        per_tier: references of a tier at most.
        seed: for ties.
    """
    others = [row for row in map(int, np.flatnonzero(table.scored)) if row != parent]
    others.sort(key=lambda row: (-table.shrunken[row], tie_break(seed, table.ids[row])))
    contrast = distances(table, np.array([parent]), np.array(others, np.int64))[0]
    outside = [row for row in others if table.ids[row] not in relatives]
    tiers: tuple[tuple[Tier, list[int]], ...] = (
        ("pareto", _frontier(table, others, 3 * per_tier)),
        ("complementary", [others[i] for i in np.argsort(-contrast, kind="stable") if contrast[i] > 0]),
        ("exploratory", sorted(outside, key=lambda row: table.children[row])),
    )
    chosen: dict[int, Tier] = {}
    for tier, candidates in tiers:
        for row in [row for row in candidates if row not in chosen][:per_tier]:
            chosen[row] = tier
    return chosen


def non_dominated(benchmarks: Array, row: int) -> bool:
    """Whether no row of (n, m) is nowhere worse than this one and somewhere better."""
    own = benchmarks[row]
    return not bool(((benchmarks >= own).all(axis=1) & (benchmarks > own).any(axis=1)).any())


def mechanism_distance(a: NodeRecord, b: NodeRecord) -> float:
    """Share of slots on which the two differ, in [0, 1]; a slot that only one of them names counts as different."""
    slots = a.mechanisms.keys() | b.mechanisms.keys()
    return sum(a.mechanisms.get(s) != b.mechanisms.get(s) for s in slots) / len(slots) if slots else 0.0


def _frontier(table: NodeTable, ranked: Sequence[int], most: int) -> list[int]:
    """The first ``most`` of the ranked rows that are dominated by none of them; none without benchmarks."""
    if not table.benchmarks.shape[1]:
        return []
    vectors = table.benchmarks[list(ranked)]
    front: list[int] = []
    for rank, row in enumerate(ranked):
        if non_dominated(vectors, rank):
            front.append(row)
            if len(front) == most:
                break
    return front


def _why(tier: Tier, node: NodeRecord, parent: NodeRecord, shrunk: float, seeds: int, children: int) -> str:
    score = f"shrunken Overall {shrunk:.2f} ({counted_seeds(seeds)})"
    if tier == "pareto":
        return f"{node.name} is on the Pareto frontier of the benchmarks, the parent left out, {score}."
    if tier == "complementary":
        return (
            f"{node.name} differs from {parent.name} in {mechanism_distance(parent, node):.0%} of the slots, {score}."
        )
    return f"{node.name} lies outside the lineage of {parent.name} and has {children} children, {score}."


def family(parents: Mapping[str, Sequence[str]], candidate_id: str) -> set[str]:
    """The node, its ancestors and its descendants over all links, donors' too; tolerates missing parents and cycles.

    Args:
        parents: of every node, all of them.
        candidate_id: of the node.
    """
    down: dict[str, list[str]] = {}
    for child, above in parents.items():
        for parent in above:
            down.setdefault(parent, []).append(child)
    return _reach(candidate_id, parents) | _reach(candidate_id, down)


def _reach(candidate_id: str, links: Mapping[str, Sequence[str]]) -> set[str]:
    found, frontier = {candidate_id}, [candidate_id]
    while frontier:
        frontier = [near for one in frontier for near in links.get(one, ()) if near not in found]
        found.update(frontier)
    return found
