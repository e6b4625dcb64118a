"""The tree of algorithms: each candidate under its parent, with its Overall, its gain and what changed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from poise_core.archive import UNTRAINED_ARM, TreeNode
from poise_core.archive.typed import SelectionRow
from poise_core.evidence.intervals import Interval, distinguishable
from poise_core.evidence.rankings import Correlation, rank_correlation
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


@dataclass(frozen=True)
class SelectionReport:
    """How the last selection of parents was made, and how well the process behind its potential predicts."""

    generation: int
    contributions: dict[str, float]  # term -> standard deviation over nodes of what it adds to the total
    targets: int  # nodes whose gain was predicted from all others
    error: float | None  # root mean square of these predictions' errors, in units of the discounted gain
    error_of_mean: float | None  # the same of predicting the mean of the others
    agreement: Correlation | None  # of prediction and observed gain, over nodes


def selection_report(evidence: RunEvidence) -> SelectionReport | None:
    """The last selection; None where there is none whose contributions are archived.

    Raises:
        poise_core.archive.ArchiveError: a file cannot be read.
    """
    rows = evidence.archive.rows("selections", protocol=evidence.protocol.digest)
    last = max((row["generation"] for row in rows), default=0)
    judged = {row["candidate_id"]: row["terms"] for row in rows if row["generation"] == last}
    names = sorted({name for terms in judged.values() for name in terms if name.startswith("contribution_")})
    if not names:
        return None
    spreads = {
        name.removeprefix("contribution_"): _spread([t[name] for t in judged.values() if name in t]) for name in names
    }
    known = {name: terms for name, terms in judged.items() if {"gain_observed", "gain_left_out"} <= terms.keys()}
    if len(known) < 2:
        return SelectionReport(last, spreads, len(known), None, None, None)
    observed = {name: terms["gain_observed"] for name, terms in known.items()}
    predicted = {name: terms["gain_left_out"] for name, terms in known.items()}
    total, count = sum(observed.values()), len(observed)
    means = {name: (total - value) / (count - 1) for name, value in observed.items()}
    return SelectionReport(
        last,
        spreads,
        count,
        _error(predicted, observed),
        _error(means, observed),
        rank_correlation(predicted, observed),
    )


def _spread(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))


def _error(predicted: Mapping[str, float], observed: Mapping[str, float]) -> float:
    return math.sqrt(sum((predicted[name] - value) ** 2 for name, value in observed.items()) / len(observed))
