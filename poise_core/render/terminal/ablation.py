"""The ablation of one candidate, and the credit of mechanisms over a run, for a terminal of 100 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from poise_core.evidence.ablation import Ablation, Contribution, Point
from poise_core.evidence.credit import Credit
from poise_core.evidence.format import counted_seeds, format_interval
from poise_core.evidence.intervals import Interval
from poise_core.render.terminal.style import plain_table

_STYLES = {"helps": "green", "needed": "green", "pays": "green", "harms": "red", "costs": "red"}


def render_ablation(found: Ablation, title: str = "") -> RenderableType:
    """What each mechanism and each number does for the candidate's score."""
    parts: list[RenderableType] = []
    if found.contributions:
        names = [_with_others(one) for one in found.contributions]
        parts += [_contributions("mechanism", title, names, found.contributions), Text()]
    if found.changes:
        head = "Changes to the baseline, each undone alone, and made alone in the baseline"
        parts += [_contributions("change", head, [one.name for one in found.changes], found.changes), Text()]
    if found.interactions:
        beyond = found.beyond_noise
        lines = [f"{' with '.join(one.pair)} {format_interval(one.effect, signed=True)}" for one in beyond]
        parts.append(
            Text(
                f"Interactions of {len(found.interactions)} pairs beyond noise: {'; '.join(lines) or 'none'}",
                style="" if lines else "dim",
            )
        )
    if found.curves:
        table = plain_table("Numbers, one at a time: Overall to the candidate's own")
        table.add_column("number", overflow="fold")
        table.add_column("value: difference", overflow="fold")
        for name, points in found.curves.items():
            table.add_row(Text(name), Text("   ".join(map(_point, points))))
        parts += [Text(), table]
    parts.append(Text())
    if found.simplified:
        parts.append(Text(f"Simplified: {found.simplified.sentence}", style="bold"))
    parts.append(
        Text(
            f"{found.versions} versions with {counted_seeds(found.seeds)} each, paired by seed and problem; 95 % intervals, "
            "not corrected for how many there are.",
            style="dim",
        )
    )
    if found.limits:
        parts.append(Text(f"{found.limits}.", style="dim"))
    return Group(*parts)


def _contributions(what: str, title: str, names: Sequence[str], rows: Sequence[Contribution]) -> Table:
    table = plain_table(title)
    for head in (what, "contribution", "alone, over the baseline", "verdict"):
        table.add_column(head, overflow="fold")
    for name, one in zip(names, rows, strict=True):
        why = f"{one.verdict}: {one.message}" if one.verdict == "needed" else one.verdict
        table.add_row(Text(name), _shown(one.contribution), _shown(one.alone), Text(why, _STYLES.get(one.verdict, "")))
    return table


def _with_others(one: Contribution) -> str:
    others = [name for name in one.gone if name != one.name]
    return f"{one.name} (with {', '.join(others)})" if others else one.name


def _shown(interval: Interval | None) -> str:
    return format_interval(interval, signed=True) if interval else "-"


def _point(point: Point) -> str:
    if point.outcome == "own":
        return f"{point.value:g}: own"
    return f"{point.value:g}: {format_interval(point.delta, signed=True) if point.delta else point.outcome}"


def render_credit(found: Credit) -> RenderableType:
    """Mechanisms by what they are worth, and which of them cannot be told apart."""
    if not found.mechanisms:
        return Text(f"{found.sentence[:1].upper()}{found.sentence[1:]}.")
    table = plain_table(f"Credit of mechanisms over {found.candidates} scored candidates, points of Overall")
    for head in ("mechanism", "credit", "having it", "without", "verdict"):
        table.add_column(head, overflow="fold")
    for one in found.mechanisms:
        name = f"{one.name} (baseline's)" if one.in_baseline else one.name
        verdict = Text(one.verdict, _STYLES.get(one.verdict, "dim"))
        table.add_row(Text(name), format_interval(one.credit, signed=True), str(one.having), str(one.lacking), verdict)
    notes = [f"Cannot be told apart: {one.sentence}." for one in found.confounded]
    if found.never_varied:
        notes.append(f"Never varied: {', '.join(found.never_varied)}.")
    notes.append(
        f"95 % intervals of a ridge regression of deltas on mechanisms; what mechanisms do not explain has a standard deviation of "
        f"{found.misfit:.1f} points. {found.left_out} candidates without a score are left out. Mechanisms were not given out by "
        "lot: for one candidate, poise ablate tells what each does."
    )
    return Group(table, *(Text(note, style="dim") for note in notes))
