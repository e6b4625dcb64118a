"""One candidate for a terminal, section by section."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.markdown import Markdown
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from poise_core.archive.typed import ExaminationRow
from poise_core.escaping import markdown_page
from poise_core.evidence.format import format_interval
from poise_core.evidence.intervals import distinguishable
from poise_core.evidence.promotion import Stability
from poise_core.render.lines import (
    EXAMINATION_HEAD,
    examination_cells,
    examination_headline,
    examination_notes,
    grading_note,
)
from poise_core.render.terminal.ablation import render_ablation
from poise_core.render.terminal.style import STYLES, plain_table, sparkline
from poise_core.views.candidate import CandidateView

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


def render_candidate(view: CandidateView, *, code: bool = True) -> RenderableType:
    """The view of a candidate for a terminal of 100 columns; ``code=False`` leaves the source out."""
    parts: list[RenderableType] = [_head(view)]
    if view.record["hypothesis"] or view.record["change"]:
        parts.append(_section("Proposal", _proposal(view)))
    if view.benchmarks:
        parts.append(_section("Evaluation, search split", _scores(view)))
    if view.rungs or view.replication:
        parts.append(_section("Ladder and replication", _evidence(view)))
    if view.examination:
        parts.append(_section("Examination", render_examination(view.examination)))
    if view.ablation:
        parts.append(_section("Ablation", render_ablation(view.ablation)))
    if view.curves:
        parts.append(_section("Training, mean over seeds", _training(view)))
    if view.reflection:
        title = f"Reflection, written by {view.reflection['written_by']}"
        parts.append(_section(title, Markdown(markdown_page(view.reflection["markdown"]), hyperlinks=False)))
    if view.failures:
        parts.append(_section("Failures", _failures(view)))
    if code:
        source = Syntax(view.record["source"], "python", theme="ansi_dark", background_color="default", word_wrap=True)
        parts.append(_section("Source", source))
    return Group(*parts)


def _section(title: str, body: RenderableType) -> Panel:
    return Panel(body, title=Text(title), title_align="left", border_style="dim", padding=(0, 1))


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
    if view.unconfined:
        missing = "; ".join(f"{measure} ({why})" for measure, why in view.unconfined.items())
        table.add_row("trained without", Text(missing, style="yellow"))
    if view.state:
        table.add_row("standing", Text(view.state, style=STYLES.get(view.state, "yellow")))
        if view.state in STYLES and view.seeds:
            steady = Stability(min(view.seeds.values()), len(view.seeds))
            table.add_row("", Text(f"{steady.sentence()} (95 %)", style="dim"))
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
    for title, said in (("hypothesis", view.record["hypothesis"]), ("change", view.record["change"])):
        if said:
            table.add_row(title, Text(said))
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
    if note := grading_note(view.graded):
        lines.append(Text(note, style="yellow"))
    return Group(*lines)


def _evidence(view: CandidateView) -> RenderableType:
    lines = [
        Text(f"{row['rung']}: {row['decision']}, {row['tokens']} tokens so far; {row['message']}", style="dim")
        for row in view.rungs
    ]
    if view.replication:
        lines.append(Text(f"report split: {view.replication['message']}", style="bold"))
    return Group(*lines)


def render_examination(rows: Sequence[ExaminationRow], title: str = "") -> RenderableType:
    """The examination of one candidate for a terminal of 100 columns.

    Args:
        rows: of ``examinations``, at least one.
        title: above the table; empty for none.
    """
    table = plain_table(title)
    for head in EXAMINATION_HEAD:
        table.add_column(head, overflow="fold")
    for row in rows:
        *cells, verdict = examination_cells(row)
        table.add_row(*cells, Text(verdict, style=STYLES[verdict]))
    notes = [Text(note, style="dim") for note in examination_notes(rows)]
    return Group(table, Text(), Text(examination_headline(rows), style="bold"), *notes)


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
