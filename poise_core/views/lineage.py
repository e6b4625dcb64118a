"""The tree of algorithms: each candidate under its parent, with its Overall, its gain and what changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from poise_core.archive import UNTRAINED_ARM, TreeNode
from poise_core.archive.typed import SelectionRow
from poise_core.evidence.intervals import Interval, distinguishable
from poise_core.evidence.run_evidence import RunEvidence


@dataclass(frozen=True)
class LineageNode:
    """One candidate in the tree."""

    candidate_id: str
    name: str
    generation: int
    written_by: str
    change: str | None  # what differs from the parent
    other_parents: tuple[str, ...]  # names of the donors of mechanisms
    overall: Interval | None  # percent; None where it was not measured
    delta: Interval | None  # Overall minus the parent's, paired, percent points
    failure: str | None  # kind of the last failure of a candidate without Overall
    revised: bool  # whether a later file of the same proposal answers that failure
    state: str  # see RunEvidence.state
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


def lineage(evidence: RunEvidence, *, level: float = 0.95) -> list[LineageNode]:
    """One tree per candidate without a parent, children in the order in which they were made; no base policy.

    Raises:
        poise_core.archive.ArchiveError: a file cannot be read, or a parent is missing.
    """
    records = evidence.candidates
    judged: dict[str, list[SelectionRow]] = {}
    for row in evidence.archive.rows("selections", protocol=evidence.protocol.digest):
        judged.setdefault(row["candidate_id"], []).append(row)

    def node(link: TreeNode) -> LineageNode:
        candidate = link.candidate_id
        record, failure = records[candidate], evidence.last_failures.get(candidate)
        parent, donors = next(iter(record["parent_ids"]), None), record["parent_ids"][1:]
        judgements = sorted(judged.get(candidate, []), key=lambda row: row["generation"])
        return LineageNode(
            candidate_id=candidate,
            name=record["name"],
            generation=record["generation"],
            written_by=record["written_by"],
            change=record["change"],
            other_parents=tuple(records[donor]["name"] for donor in donors),
            overall=evidence.overall(candidate, level),
            delta=evidence.delta(candidate, parent, level) if parent else None,
            failure=failure["kind"] if failure and not evidence.evaluations.get(candidate) else None,
            revised=candidate in evidence.revised,
            state=evidence.state(candidate),
            selected=sum(len(row["slots"]) for row in judgements),
            terms=judgements[-1]["terms"] if judgements else {},
            total=judgements[-1]["total"] if judgements else None,
            children=tuple(node(child) for child in link.children),
        )

    links = evidence.lineage
    return [node(links.tree(root)) for root in links.roots() if records[root]["arm"] != UNTRAINED_ARM]
