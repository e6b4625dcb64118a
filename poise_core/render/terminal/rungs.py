"""The ladder of a run for a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from poise_core.views.rungs import RungReport


def render_rungs(report: RungReport) -> RenderableType:
    """For a terminal of 80 columns."""
    table = Table(title="Ladder", title_justify="left", box=None, pad_edge=False, header_style="dim")
    for title in ("rung", "reached", "promoted", "stopped", "finished"):
        table.add_column(title, justify="left" if title == "rung" else "right")
    for row in report.rungs:
        if row["candidates"]:
            table.add_row(row["rung"], *(str(row[key]) for key in ("candidates", "promoted", "stopped", "finished")))
    lines: list[RenderableType] = []
    if any(row["candidates"] for row in report.rungs):
        lines += [table, Text()]
    else:
        lines.append(
            Text("No candidate was measured on the rungs here (ladder.enabled is false, or none is finished).", "dim")
        )
    for name, one in report.correlations.items():
        style = "" if one.predicts else "yellow"
        lines.append(Text(f"Rank correlation {name}: {one.sentence()}", style))
    saved = f"; with all seeds for every candidate about {report.tokens_without:,}" if report.tokens_without else ""
    lines.append(Text(f"Training tokens sampled: {report.tokens:,}{saved}.", "dim"))
    for row in report.stopped:
        ended = ""
        if row.get("stopped_overall") is not None:
            ended = f"; Overall {row['stopped_overall']:.1f} then, after {row['stopped_step']} steps"
        lines.append(Text(f"{row['name']} stopped at {row['rung']} ({row['cause']}): {row['message']}{ended}", "dim"))
    return Group(*lines)
