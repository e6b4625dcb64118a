"""Views as Markdown: any of them as a code block, and the report of a nightly run as a page."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Sequence

from rich.console import RenderableType

from poise_core.archive.typed import CompletionRow, ExaminationRow
from poise_core.escaping import code_block, markdown, printable
from poise_core.evidence.ablation import Ablation
from poise_core.evidence.format import format_duration, format_interval, format_tokens
from poise_core.evidence.intervals import Interval
from poise_core.render import ViewConsole
from poise_core.render.lines import (
    EXAMINATION_HEAD,
    REPLAY_HEAD,
    examination_cells,
    examination_headline,
    examination_notes,
    judgement,
    outcome,
    outlook_note,
    replay_cells,
    untuned_note,
)
from poise_core.views.arms import ReplayedArm
from poise_core.views.leaderboard import LeaderboardRow, best_of
from poise_core.views.nightly import NightlyReport, Tried

SHOWN = 5
"""Candidates of the leaderboard in the report of a nightly run."""


def fenced(view: RenderableType, width: int) -> str:
    """A view as a Markdown code block: what a terminal of ``width`` columns shows, without colours."""
    page = ViewConsole(file=io.StringIO(), width=width, record=True)
    page.print(view)
    lines = page.export_text().rstrip().splitlines()
    return code_block("\n".join(line.rstrip() for line in lines))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; line breaks and bars within a cell are escaped. Cells are Markdown: words of others are escaped before."""
    titles = " ".join(f"| {title}".rstrip() for title in head) + " |"
    body = (f"| {' | '.join(map(_cell, row))} |" for row in rows)
    return "\n".join([titles, "|---" * len(head) + "|", *body])


def _cell(text: str) -> str:
    return " ".join(printable(text).split()).replace("|", "\\|")


def replays_section(sentences: str, arms: Sequence[ReplayedArm]) -> str:
    """Arms replayed on a recorded table, below what is known of the table."""
    rows = table(("arm", *REPLAY_HEAD), [(arm.arm, *replay_cells(arm)) for arm in arms])
    budget = f"Regret after {format_tokens(arms[0].tokens[-1])} tokens, {arms[0].final.seeds} replays of each arm:"
    return f"{sentences}\n\n{budget}\n\n{rows}\n"


def render_examination_page(rows: Sequence[ExaminationRow], name: str) -> str:
    """The examination of one candidate: the sentence, the table, and how it was made.

    Args:
        rows: of ``examinations``, at least one.
        name: of the candidate.
    """
    cells = table(EXAMINATION_HEAD, [examination_cells(row) for row in rows])
    notes = "\n".join(f"- {note}" for note in examination_notes(rows))
    return f"**{markdown(name)}**: {examination_headline(rows)}.\n\n{cells}\n\n{notes}\n"


def render_ablation_page(found: Ablation) -> str:
    """The ablation of one candidate: the sentence, the table, the numbers, and the simplified file."""

    def shown(interval: Interval | None) -> str:
        return format_interval(interval, signed=True) if interval else "-"

    parts = [f"**{markdown(found.name)}**: {markdown(found.sentence)}."]
    for what, rows in (("mechanism", found.contributions), ("change to the baseline", found.changes)):
        if rows:
            cells = [
                (markdown(one.name), shown(one.contribution), shown(one.alone), markdown(one.verdict)) for one in rows
            ]
            parts.append(table((what, "contribution", "alone, over the baseline", "verdict"), cells))
    if found.interactions:
        pairs = [(markdown(" with ".join(one.pair)), shown(one.effect)) for one in found.interactions]
        parts.append(table(("pair", "interaction"), pairs))
    if found.curves:
        numbers = [
            (markdown(name), f"{one.value:g}", "own" if one.outcome == "own" else shown(one.delta))
            for name, points in found.curves.items()
            for one in points
        ]
        parts.append(table(("number", "value", "to the candidate"), numbers))
    if found.simplified:
        parts.append(f"The simplified file:\n\n{code_block(found.simplified.source)}")
    return "\n\n".join(parts) + "\n"


def render_completions_page(rows: Sequence[CompletionRow], name: str) -> str:
    """The completions of a candidate that were kept to be read, each with its prompt and verdict.

    Args:
        rows: of ``completions``.
        name: of the candidate.
    """
    parts = [f"# Completions of {markdown(name)}"]
    for row in sorted(rows, key=lambda row: (row["origin"], row["seed"], row["benchmark"], row["step"], row["kind"])):
        where = f"training, step {row['step']}" if row["origin"] == "train" else markdown(row["benchmark"])
        verdict = "right" if row["correctness"] > 0 else "wrong" if row["format_valid"] else "no answer that parses"
        cut_off = ", cut off" if row["truncated"] else ""
        parts.append(f"## {where}, seed {row['seed']}, {row['kind']}: {verdict}, {row['tokens']} tokens{cut_off}")
        parts += [code_block(row["prompt"]), code_block(row["completion"])]
    return "\n\n".join(parts) + "\n"


def render_nightly_report(report: NightlyReport) -> str:
    """The report as a page."""
    sections = [
        f"# Nightly report of generation {report.run.generation}, {report.run.began:%Y-%m-%d}\n\n{_lead(report)}",
        f"## What was tried\n\n{_tried(report.children)}",
        f"## What was learned\n\n{_learned(report)}",
        *_examined(report),
        f"## What it cost\n\n{_cost(report)}",
        f"## Where the search stands\n\n{_best(report.rows)}{_untuned(report)}",
    ]
    return "\n\n".join(sections) + "\n"


def _lead(report: NightlyReport) -> str:
    run, best = report.run, best_of(report.rows)
    ends = Counter(child.row.status for child in report.children)
    counted = ", ".join(f"{count} {status}" for status, count in ends.items()) or "none yet"
    lines = [f"Children: {counted}."]
    if run.finished:
        lines.append("The generation is complete.")
    else:
        lines.append(
            f"The generation is not complete; the next nightly run goes on with it ({markdown(run.stopped or 'stopped')})."
        )
    if run.finished and run.stopped:
        lines.append(f"The nightly run ended early: {markdown(run.stopped)}.")
    if best is not None:
        news = " It is new." if best.generation == run.generation else ""
        lines.append(f"Best so far: **{markdown(best.name)}**, {outcome(best)}.{news}")
    if run.replication:
        lines.append(f"Replication: {markdown(run.replication)}.")
    if report.shared_network:
        names = ", ".join(map(markdown, report.shared_network))
        lines.append(f"Trained on the machine's network, without one of their own, as was allowed: {names}.")
    return " ".join(lines)


def _tried(children: Sequence[Tried]) -> str:
    if not children:
        return "No child has become a candidate."
    cells = [
        (markdown(child.row.name), markdown(", ".join(child.parents)), markdown(child.change), outcome(child.row))
        for child in children
    ]
    return table(("candidate", "parent", "change", "outcome"), cells)


def _examined(report: NightlyReport) -> list[str]:
    """The section on the examination; none where nothing was examined."""
    if not report.examination:
        return []
    page = render_examination_page(report.examination, report.examined_name)
    return [f"## What was examined\n\n{page.rstrip()}"]


def _learned(report: NightlyReport) -> str:
    lines = [f"- **{markdown(name)}**: {markdown(summary)}" for name, summary in report.learned]
    if note := outlook_note(report.outlook):
        lines.append(f"- {note}")
    lines += [f"- {markdown(line)}" for line in report.calibration.splitlines()]
    return "\n".join(lines) or "No candidate has been reflected on yet."


def _cost(report: NightlyReport) -> str:
    run, spent = report.run, report.spent
    limit = f" of {format_duration(run.hours * 3600)}" if run.hours is not None else ""
    took = format_duration((run.ended - run.began).total_seconds())
    held = f", of a budget of {run.gpu_hours:g}" if run.gpu_hours is not None else ""
    lines = [
        f"- Time: {took}{limit}.",
        f"- Training: {report.tokens:,} completion tokens over all children, {report.gpu_hours:.3g} GPU-hours{held}.",
    ]
    budget = f" of {run.dollars:g}" if run.dollars is not None else ""
    if not spent.calls:
        lines.append(f"- Language models: none asked, 0{budget} dollars.")
    else:
        unpriced = f"; {spent.unpriced} without a price" if spent.unpriced else ""
        tokens = f"{spent.input_tokens:,} tokens in, {spent.output_tokens:,} out"
        lines.append(
            f"- Language models: {spent.calls} calls, {tokens}, {spent.dollars:.4f}{budget} dollars{unpriced}."
        )
    if report.model_failures:
        lines.append(f"- {markdown(report.model_failures)}.")
    return "\n".join(lines)


def _best(rows: Sequence[LeaderboardRow]) -> str:
    scored = [row for row in rows if row.rank is not None][:SHOWN]
    if not scored:
        return "Nothing is scored yet."
    cells = [
        (
            str(row.rank),
            markdown(row.name),
            str(row.generation),
            format_interval(row.overall),
            str(row.overall.seeds) if row.overall else "",
            _finite(row.delta),
            judgement(row),
        )
        for row in scored
    ]
    return table(("rank", "candidate", "generation", "Overall", "seeds", "to the baseline", ""), cells)


def _untuned(report: NightlyReport) -> str:
    notes = [note for note in (untuned_note(report.untuned), report.not_sealed) if note]
    return "".join(f"\n\n{note}" for note in notes)


def _finite(delta: Interval | None) -> str:
    return format_interval(delta, signed=True) if delta is not None and math.isfinite(delta.estimate) else ""
