"""The tree of algorithms: each candidate under its parent, with its Overall, its gain and what changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.text import Text
from rich.tree import Tree

from poise_core.archive import UNTRAINED_ARM, Archive, TreeNode
from poise_core.archive.typed import SelectionRow
from poise_core.config.protocol import Protocol
from poise_core.evidence.intervals import Interval, counted_seeds, distinguishable
from poise_core.evidence.run_evidence import standing_of
from poise_core.render.text import STYLES, format_interval
from poise_core.views.leaderboard import last_failures


@dataclass(frozen=True)
class LineageNode:
    """One candidate in the tree."""

    candidate_id: str
    name: str
    generation: int
    written_by: str
    change: str | None  # what differs from the parent
    other_parents: tuple[str, ...]  # names of those that lent mechanisms
    overall: Interval | None  # percent; None where it was not measured
    delta: Interval | None  # Overall minus the parent's, paired, percent points
    failure: str | None  # kind of the last failure of a candidate without Overall
    revised: bool  # whether a later file of the same proposal answers that failure
    state: str  # see Standing.state
    selected: int  # how many children it was selected for
    terms: dict[str, float]  # the last judgement as a parent, every term of the acquisition
    total: float | None  # the acquisition value s of that judgement
    children: tuple[LineageNode, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """For JSON, children nested."""
        plain = {**vars(self), "children": [child.to_dict() for child in self.children]}
        plain["overall"] = self.overall.to_dict() if self.overall else None
        plain["delta"] = self.delta.to_dict() if self.delta else None
        plain["verdict"] = distinguishable(self.delta) if self.delta else None
        return plain


def lineage(archive: Archive, protocol: Protocol, *, level: float = 0.95) -> list[LineageNode]:
    """One tree per candidate without a parent, children in the order in which they were made; no base policy.

    Raises:
        poise_core.archive.ArchiveError: a file cannot be read, or a parent is missing.
    """
    records = {row["candidate_id"]: row for row in archive.rows("candidates")}
    standing = standing_of(archive, protocol)
    failures = last_failures(archive, protocol)
    revised = {record["revises"] for record in records.values()}
    judged: dict[str, list[SelectionRow]] = {}
    for row in archive.rows("selections", protocol=protocol.digest):
        judged.setdefault(row["candidate_id"], []).append(row)

    def node(place: TreeNode) -> LineageNode:
        candidate = place.candidate_id
        record, evals = records[candidate], standing.evaluations.get(candidate)
        parent, lenders = next(iter(record["parent_ids"]), None), record["parent_ids"][1:]
        judgements = sorted(judged.get(candidate, []), key=lambda row: row["generation"])
        return LineageNode(
            candidate_id=candidate,
            name=record["name"],
            generation=record["generation"],
            written_by=record["written_by"],
            change=record["change"],
            other_parents=tuple(records[lender]["name"] for lender in lenders),
            overall=standing.overall(candidate, protocol, level),
            delta=standing.delta(candidate, parent, protocol, level) if parent else None,
            failure=failures[candidate]["kind"] if candidate in failures and not evals else None,
            revised=candidate in revised,
            state=standing.state(candidate),
            selected=sum(len(row["slots"]) for row in judgements),
            terms=judgements[-1]["terms"] if judgements else {},
            total=judgements[-1]["total"] if judgements else None,
            children=tuple(node(child) for child in place.children),
        )

    links = archive.lineage()
    return [node(links.tree(root)) for root in links.roots() if records[root]["arm"] != UNTRAINED_ARM]


def lineage_tree(roots: list[LineageNode]) -> Tree:
    """The trees from :func:`lineage` for a terminal; the delta is to the parent proper."""
    top = Tree(Text("Lineage: Overall, delta to the parent, what changed", style="bold"), hide_root=False)
    for root in roots:
        _grow(top, root)
    return top


def _grow(branch: Tree, node: LineageNode) -> None:
    place = branch.add(_label(node))
    for child in node.children:
        _grow(place, child)


def _label(node: LineageNode) -> Text:
    verdict = distinguishable(node.delta) if node.delta else ""
    label = Text()
    label.append(node.name, style="bold")
    label.append(f"  g{node.generation} {node.written_by}", style="dim")
    if node.overall:
        label.append(f"  {format_interval(node.overall)}")
        label.append(f" {counted_seeds(node.overall.seeds)}", style="dim")
    elif node.failure:
        label.append(f"  {node.failure}{', revised' if node.revised else ''}", style="red")
    elif not node.state:
        label.append("  not finished", style="yellow")
    if node.delta:
        label.append(f"  {format_interval(node.delta, signed=True)}", style=STYLES[verdict])
        label.append(f" {verdict}", style=STYLES[verdict])
    if node.state:
        label.append(f"  {node.state}", style=STYLES.get(node.state, "dim"))
    if node.change and not node.revised:  # of several files of one proposal, the last one tells it
        lent = f" (with {', '.join(node.other_parents)})" if node.other_parents else ""
        label.append(f"\n{node.change}{lent}", style="italic")
    if node.total is not None or node.selected:
        label.append(f"\n{_judgement(node)}", style="dim")
    return label


def _judgement(node: LineageNode) -> str:
    """The last value as a parent with every term that the archive has of it."""
    terms = ", ".join(f"{name} {_term(node.terms, name)}" for name in node.terms if name != "seeds")
    total = "" if node.total is None else f"s = {node.total:.2f}: "
    times = f"; selected for {node.selected} child{'ren' if node.selected > 1 else ''}" if node.selected else ""
    return f"{total}{terms}{times}"


def _term(terms: Mapping[str, float], name: str) -> str:
    """One term; beside a score stands how many seeds it had then, where the archive says."""
    value, seeds = f"{terms[name]:.2f}", int(terms.get("seeds", 0))
    return f"{value} ({counted_seeds(seeds)})" if name == "shrunken_overall" and seeds else value
