"""One candidate: why it was made, what it is, how it trained, what it scored, what it taught, where it failed."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rich.console import Group, RenderableType
from rich.markdown import Markdown
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from poise_core.archive import Archive, ArchiveError
from poise_core.archive.typed import (
    CandidateRow,
    FailureRow,
    ProposalRow,
    ReflectionRow,
    RungRow,
    VerificationRow,
)
from poise_core.config.protocol import Protocol
from poise_core.evaluation.results import benchmark_means
from poise_core.evidence.intervals import Interval, distinguishable
from poise_core.evidence.run_evidence import standing_of
from poise_core.render.text import STYLES, format_interval, sparkline

CURVES = (
    "reward_mean",
    "format_valid",
    "completion_length",
    "entropy",
    "kl",
    "clip_fraction",
    "grad_norm",
    "all_fail_fraction",
)

Row = TypeVar("Row")


@dataclass(frozen=True)
class CandidateView:
    """Everything the archive holds of one candidate, the sealed split aside."""

    record: CandidateRow  # the row of candidates
    parents: dict[str, str]  # candidate id -> name
    children: dict[str, str]
    proposal: ProposalRow | None
    verification: VerificationRow | None
    seeds: dict[int, float]  # seed -> Overall, percent
    benchmarks: dict[str, float]  # percent, mean over seeds
    parent_benchmarks: dict[str, float]
    overall: Interval | None
    deltas: dict[str, Interval]  # name of the parent and of the baseline -> paired difference
    curves: dict[str, dict[int, float]]  # metric -> step -> mean over seeds
    reflection: ReflectionRow | None
    failures: list[FailureRow]
    state: str = ""  # see Standing.state
    rungs: list[RungRow] = field(default_factory=list)  # of the ladder, from below
    replication: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON: times as ISO text, embedded JSON as objects."""
        plain = _plain(vars(self))
        plain["overall"] = self.overall.to_dict() if self.overall else None
        plain["deltas"] = {name: delta.to_dict() for name, delta in self.deltas.items()}
        return plain


def find_candidate(archive: Archive, wanted: str) -> str:
    """Id of the candidate with this id, name, or beginning of an id.

    Raises:
        ArchiveError: none or several match; the message lists them.
    """
    rows = archive.rows("candidates")
    names = {row["candidate_id"]: row["name"] for row in rows}
    if wanted in names:
        return wanted
    revised = {row["revises"] for row in rows}
    found = [key for key, name in names.items() if name.lower() == wanted.lower()]
    found = [key for key in found if key not in revised] or found  # of several files of one proposal, the last
    found = found or [key for key in names if key.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ArchiveError(f"{wanted!r} could be any of {', '.join(found)}; give more of the id")
    raise ArchiveError(f"no candidate {wanted!r}; there are {', '.join(sorted(names)) or 'none'}")


def view_candidate(archive: Archive, protocol: Protocol, wanted: str, *, level: float = 0.95) -> CandidateView:
    """Collect what the archive holds.

    Raises:
        ArchiveError: no such candidate, or a file cannot be read.
    """
    candidate = find_candidate(archive, wanted)
    records = {row["candidate_id"]: row for row in archive.rows("candidates")}
    record = records[candidate]
    standing = standing_of(archive, protocol)
    evaluations = standing.evaluations
    evals = evaluations.get(candidate, [])
    deltas = {}
    for other in dict.fromkeys([*record["parent_ids"][:1], standing.baseline or candidate]):
        delta = standing.delta(candidate, other, protocol, level) if other != candidate else None
        if delta is not None:
            deltas[records[other]["name"]] = delta
    parent = record["parent_ids"][0] if record["parent_ids"] else ""
    children = archive.lineage().children(candidate)
    return CandidateView(
        record=record,
        parents={key: records[key]["name"] for key in record["parent_ids"]},
        children={key: records[key]["name"] for key in children},
        proposal=_only(archive.rows("proposals", proposal_id=record["proposal_id"])) if record["proposal_id"] else None,
        verification=_only(archive.rows("verifications", candidate_id=candidate)),
        seeds={evaluation.seed: evaluation.overall for evaluation in evals},
        benchmarks=benchmark_means(evals),
        parent_benchmarks=benchmark_means(evaluations.get(parent, [])),
        overall=standing.overall(candidate, protocol, level),
        deltas=deltas,
        curves=mean_curves(archive.trajectory(candidate, protocol.digest)),
        reflection=_only(archive.rows("reflections", candidate_id=candidate, protocol=protocol.digest)),
        failures=archive.rows("failures", candidate_id=candidate, protocol=protocol.digest),
        state=standing.state(candidate),
        rungs=_rungs(archive, protocol, candidate),
        replication=standing.replications.get(candidate),
    )


def _rungs(archive: Archive, protocol: Protocol, candidate: str) -> list[RungRow]:
    if not archive.has("rungs"):
        return []
    rows = archive.rows("rungs", candidate_id=candidate, protocol=protocol.digest)
    return sorted(rows, key=lambda row: row["tokens"])


def mean_curves(seeds: dict[int, list[dict[str, Any]]]) -> dict[str, dict[int, float]]:
    """Mean over seeds of every metric at every step that it was recorded at; one bad seed makes the mean NaN."""
    points: dict[str, dict[int, list[float]]] = {}
    for rows in seeds.values():
        for row in rows:
            for name, value in row.items():
                if name not in ("step", "seed"):
                    points.setdefault(name, {}).setdefault(row["step"], []).append(float(value))
    return {
        name: {step: statistics.fmean(values) for step, values in sorted(by_step.items())}
        for name, by_step in points.items()
    }


def render_candidate(view: CandidateView, *, code: bool = True) -> RenderableType:
    """The candidate for a terminal of 100 columns; ``code=False`` leaves the source out."""
    parts: list[RenderableType] = [_head(view)]
    if view.record["hypothesis"] or view.record["change"]:
        parts.append(_section("Proposal", _proposal(view)))
    if view.benchmarks:
        parts.append(_section("Evaluation, search split", _scores(view)))
    if view.rungs or view.replication:
        parts.append(_section("Ladder and replication", _evidence(view)))
    if view.curves:
        parts.append(_section("Training, mean over seeds", _training(view)))
    if view.reflection:
        title = f"Reflection, written by {view.reflection['written_by']}"
        parts.append(_section(title, Markdown(view.reflection["markdown"])))
    if view.failures:
        parts.append(_section("Failures", _failures(view)))
    if code:
        source = Syntax(view.record["source"], "python", theme="ansi_dark", background_color="default", word_wrap=True)
        parts.append(_section("Source", source))
    return Group(*parts)


def _section(title: str, body: RenderableType) -> Panel:
    return Panel(body, title=title, title_align="left", border_style="dim", padding=(0, 1))


def _head(view: CandidateView) -> RenderableType:
    record = view.record
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    table.add_row("candidate", Text(f"{record['name']}  ({record['candidate_id']})", style="bold"))
    table.add_row("made", f"generation {record['generation']}, by {record['written_by']}, arm {record['arm']}")
    table.add_row("parents", ", ".join(view.parents.values()) or "none, a root")
    if record["revises"]:
        table.add_row("revises", f"{record['revises']}, after its failure")
    table.add_row("children", ", ".join(view.children.values()) or "none yet")
    table.add_row("admission", _admission(view))
    if view.state:
        table.add_row("standing", Text(view.state, style=STYLES.get(view.state, "yellow")))
    return table


def _admission(view: CandidateView) -> Text:
    if view.verification is None:
        return Text("not verified", style="yellow")
    if view.verification["admitted"]:
        return Text("admitted", style="green")
    return Text("rejected", style="red")


def _proposal(view: CandidateView) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for title, text in (("hypothesis", view.record["hypothesis"]), ("change", view.record["change"])):
        if text:
            table.add_row(title, Text(text))
    if view.proposal:
        for expected in json.loads(view.proposal["content"]).get("expectations", []):
            sentence = f"{expected['metric']} to {expected['direction']}: {expected['why']}"
            table.add_row("expects", Text(sentence))
        if view.proposal["reasons"]:
            table.add_row("screener", Text(" ".join(view.proposal["reasons"])))
    return table


def _scores(view: CandidateView) -> RenderableType:
    table = Table(box=None, pad_edge=False)
    table.add_column("benchmark")
    table.add_column("score", justify="right")
    if view.parent_benchmarks:
        table.add_column("parent", justify="right", style="dim")
        table.add_column("difference", justify="right")
    for name, score in view.benchmarks.items():
        cells = [name, f"{score:.1f}"]
        if view.parent_benchmarks:
            parent = view.parent_benchmarks[name]
            cells += [f"{parent:.1f}", f"{score - parent:+.1f}"]
        table.add_row(*cells)
    seeds = ", ".join(f"seed {seed}: {overall:.1f}" for seed, overall in view.seeds.items())
    lines: list[RenderableType] = [table, Text(), Text(f"Overall {format_interval(view.overall)}   ({seeds})", "bold")]
    for name, delta in view.deltas.items():
        verdict = distinguishable(delta)
        lines.append(Text(f"to {name}: {format_interval(delta, signed=True)} {verdict}", style=STYLES[verdict]))
    return Group(*lines)


def _evidence(view: CandidateView) -> RenderableType:
    lines = [
        Text(f"{row['rung']}: {row['decision']}, {row['tokens']} tokens so far; {row['message']}", style="dim")
        for row in view.rungs
    ]
    if view.replication:
        lines.append(Text(f"report split: {view.replication['message']}", style="bold"))
    return Group(*lines)


def _training(view: CandidateView) -> RenderableType:
    table = Table(box=None, pad_edge=False)
    table.add_column("metric")
    table.add_column("curve", no_wrap=True)
    for title in ("first", "last", "lowest", "highest"):
        table.add_column(title, justify="right")
    own = sorted(name for name in view.curves if name.startswith(("candidate/", "controller/")))
    for name in (*CURVES, *own):
        if name in view.curves:
            curve = list(view.curves[name].values())
            finite = [value for value in curve if math.isfinite(value)] or [math.nan]
            numbers = (curve[0], curve[-1], min(finite), max(finite))
            table.add_row(name, sparkline(curve), *(f"{number:.3g}" for number in numbers))
    return table


def _failures(view: CandidateView) -> RenderableType:
    lines: list[RenderableType] = []
    for failure in view.failures:
        title = f"{failure['kind']} in {failure['stage']}, attempt {failure['attempt']}: "
        lines.append(Text.assemble((title, "red"), failure["message"]))
        if failure["detail"]:
            lines.append(Text(failure["detail"].strip(), style="dim"))
    return Group(*lines)


def _only(rows: list[Row]) -> Row | None:
    return rows[0] if rows else None


def _plain(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(item, str(name)) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if key in ("mechanisms", "composition", "report", "content") and isinstance(value, str):
        return json.loads(value)
    if isinstance(value, float) and not math.isfinite(value):  # no JSON
        return None
    return value
