"""The tree of algorithms for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.text import Text
from rich.tree import Tree

from poise_core.evidence.format import counted_seeds, format_interval
from poise_core.evidence.intervals import distinguishable
from poise_core.render.terminal.style import STYLES
from poise_core.views.lineage import LineageNode, SelectionReport


def render_lineage(roots: Sequence[LineageNode]) -> Tree:
    """The trees from ``lineage``; the delta is to the primary parent."""
    top = Tree(Text("Lineage: Overall, delta to the parent, what changed", style="bold"), hide_root=False)
    for root in roots:
        _grow(top, root)
    return top


def render_selection(report: SelectionReport) -> Text:
    """How the last parents were selected, in two sentences."""
    moved = ", ".join(f"{name} {value:.3f}" for name, value in report.contributions.items())
    text = (
        f"Selection of generation {report.generation}: standard deviation over nodes of what each term adds: {moved}."
    )
    if report.error is None or report.error_of_mean is None or report.agreement is None:
        return Text(f"{text} Too few nodes have descendants to say how well their gain is predicted.", style="dim")
    verdict = "no better" if report.error >= report.error_of_mean else "better"
    text += (
        f" The gain of descendants, predicted for each of {report.targets} nodes from all others (leave-one-out): error "
        f"{report.error:.3f}, {verdict} than {report.error_of_mean:.3f} by their mean; rank correlation "
        f"{report.agreement.sentence()}."
    )
    return Text(text, style="dim")


def _grow(branch: Tree, node: LineageNode) -> None:
    added = branch.add(_label(node))
    for child in node.children:
        _grow(added, child)


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
        unnamed = [
            donor for donor in node.other_parents if donor not in node.change
        ]  # the catalogue's words have theirs
        lent = f" (with {', '.join(unnamed)})" if unnamed else ""
        label.append(f"\n{node.change}{lent}", style="italic")
    if node.total is not None or node.selected:
        label.append(f"\n{_judgement(node)}", style="dim")
    return label


def _judgement(node: LineageNode) -> str:
    """The last value as a parent with every term that the archive has of it."""
    shown = [name for name in node.terms if name != "seeds" and not name.startswith("contribution_")]
    terms = ", ".join(f"{name} {_term(node.terms, name)}" for name in shown)
    total = "" if node.total is None else f"s = {node.total:.2f}: "
    times = f"; selected for {node.selected} child{'ren' if node.selected > 1 else ''}" if node.selected else ""
    return f"{total}{terms}{times}"


def _term(terms: Mapping[str, float], name: str) -> str:
    """One term; the number of seeds that a score had then follows it, where the archive has that."""
    value, seeds = f"{terms[name]:.0f}" if name == "children" else f"{terms[name]:.2f}", int(terms.get("seeds", 0))
    return f"{value} ({counted_seeds(seeds)})" if name == "shrunken_overall" and seeds else value
