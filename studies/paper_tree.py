"""The published tree of the POISE paper, replayed: does the acquisition pick parents with better descendants?

``python -m studies.paper_tree`` writes ``docs/results/paper_tree.md`` and ``paper_tree.svg``.

The 64 variants of arXiv 2603.23951 (``data/poise_paper_variants.csv``) name their parents but not their order. An order is
drawn at random, parents before children; after every three nodes a round is judged: each rule picks three parents among
the nodes so far, and what counts is what these parents have below them that is not yet visible. Nothing that is not yet
visible enters a rule. Only nodes with unseen descendants can be picked: what others would have led to nobody knows.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np

from poise_core.config.search import AcquisitionSpec
from poise_core.evidence.format import format_limits
from poise_core.evidence.intervals import Interval
from poise_core.files import write_atomically
from poise_core.search.acquisition import Judgement, judge
from poise_core.search.nodes import Array, NodeRecord, NodeTable
from poise_core.search.selection import pick_spread

BENCHMARKS = ("aime24_pass32", "aime25_pass32", "amc_pass32", "math500_acc1", "minerva_acc1", "olympiad_acc1")
PARENTS = 3
Order = Literal["any", "by depth"]
ORDERS: tuple[Order, ...] = ("any", "by depth")
MEASURES = {
    "best descendant": "Overall of the best unseen descendant of the three parents",
    "best child": "Overall of the best unseen child of the three parents",
    "gain": "mean over the three parents of the discounted top-K gain of their unseen descendants, times 100",
}
TERMS = ("pareto", "performance", "potential")
RULES = ("acquisition", "greedy", "random", *(f"{term} alone" for term in TERMS))


def published_tree() -> list[NodeRecord]:
    """The published variants, parents before children; GAA-GRPO, whose parent is not published, is left out."""
    with (resources.files("studies") / "data" / "poise_paper_variants.csv").open(encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["depth"]]
    rows.sort(key=lambda row: int(row["depth"]))
    return [
        NodeRecord(
            candidate_id=row["algorithm"],
            name=row["algorithm"],
            parent_ids=(row["parent"],) if row["parent"] else (),
            generation=int(row["depth"]),
            overall=Interval(float(row["overall"]), -math.inf, math.inf, 1),  # one run each: nothing to shrink by
            benchmarks={name: float(row[name]) for name in BENCHMARKS},
        )
        for row in rows
    ]


def draw_order(nodes: Sequence[NodeRecord], order: Order, rng: np.random.Generator) -> list[int]:
    """Positions of all nodes, parents first.

    ``any``: next is any node whose parent is there, all equally likely. ``by depth``: generation by generation.
    """
    if order == "by depth":
        return sorted(range(len(nodes)), key=lambda row: (nodes[row].generation, rng.random()))
    children: dict[str, list[int]] = {}
    for row, node in enumerate(nodes):
        children.setdefault(node.parent_ids[0] if node.parent_ids else "", []).append(row)
    ready, drawn = list(children[""]), []
    while ready:
        row = ready.pop(int(rng.integers(len(ready))))
        drawn.append(row)
        ready += children.get(nodes[row].candidate_id, [])
    return drawn


@dataclass(frozen=True)
class Outcomes:
    """What each visible node has below it that is not visible, (n,) each; NaN where it has nothing."""

    descendant: Array
    child: Array
    gain: Array

    @classmethod
    def of(cls, tree: NodeTable, visible: Sequence[int], spec: AcquisitionSpec) -> Outcomes:
        """From the whole tree, whose nodes outside ``visible`` are unseen."""
        seen = np.zeros(tree.size, np.bool_)
        seen[list(visible)] = True
        values = np.full((3, len(visible)), np.nan)
        unseen = [row for row in range(tree.size) if not seen[row]]
        paths = {row: tree.ancestry(row) for row in unseen}
        for place, row in enumerate(visible):
            below = [other for other in unseen if paths[other][row]]
            if not below:
                continue
            children = [other for other in below if tree.parent[other] == row]
            best = sorted(below, key=lambda other: -tree.raw[other])[: spec.top_descendants]
            gains = [
                spec.discount ** (tree.depth[other] - tree.depth[row])
                * math.tanh((tree.raw[other] - tree.raw[row]) / spec.gain_scale)
                for other in best
            ]
            values[0, place] = tree.raw[below].max()
            values[1, place] = tree.raw[children].max() if children else np.nan
            values[2, place] = 100.0 * float(np.mean(gains))
        return cls(*values)

    def of_round(self, chosen: Sequence[int]) -> tuple[float, float, float]:
        """The measures of three chosen parents, in the order of ``MEASURES``."""
        rows = list(chosen)
        children = self.child[rows]
        child = float(np.nanmax(children)) if np.isfinite(children).any() else math.nan
        return float(np.nanmax(self.descendant[rows])), child, float(np.nanmean(self.gain[rows]))


def replay(nodes: Sequence[NodeRecord], order: Order, seed: int, spec: AcquisitionSpec) -> dict[str, Array]:
    """One order: rule -> (rounds, measures)."""
    rng = np.random.default_rng([seed, ORDERS.index(order)])
    rows = draw_order(nodes, order, rng)
    tree = NodeTable.of(nodes)
    found: dict[str, list[tuple[float, float, float]]] = {rule: [] for rule in RULES}
    for size in range(PARENTS + 1, len(rows), PARENTS):
        visible = rows[:size]
        outcomes = Outcomes.of(tree, visible, spec)
        eligible = np.isfinite(outcomes.descendant)
        if eligible.sum() <= PARENTS:  # nothing to choose between
            continue
        table = NodeTable.of([nodes[row] for row in visible])
        for rule, totals in rule_totals(judge(table, spec), table, spec, rng).items():
            penalty = spec.lineage_penalty if rule == "acquisition" else 0.0
            picks = pick_spread(table, np.where(eligible, totals, np.nan), PARENTS, penalty, seed)
            found[rule].append(outcomes.of_round([pick.row for pick in picks]))
    return {rule: np.array(values).reshape(-1, len(MEASURES)) for rule, values in found.items()}


def rule_totals(
    judgement: Judgement, table: NodeTable, spec: AcquisitionSpec, rng: np.random.Generator
) -> Mapping[str, Array]:
    """What each rule makes of the visible nodes."""
    return {
        "acquisition": judgement.total,
        "greedy": table.raw,
        "random": rng.random(table.size),
        "pareto alone": judgement.pareto,
        "performance alone": judgement.performance,
        "potential alone": judgement.bayes,
    }


def interval(values: Sequence[Array], seed: int = 0, draws: int = 500) -> tuple[float, float, float]:
    """Mean over orders of the mean over rounds, with 95 % percentile limits: orders are drawn anew, then their rounds."""
    rng = np.random.default_rng(seed)
    kept = [one[np.isfinite(one)] for one in values]
    kept = [one for one in kept if len(one)]
    means = []
    for _ in range(draws):
        picked = rng.integers(len(kept), size=len(kept))
        means.append(np.mean([rng.choice(kept[i], len(kept[i])).mean() for i in picked]))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(np.mean([one.mean() for one in kept])), float(low), float(high)


Summary = dict[tuple[Order, str, str], tuple[float, float, float]]


def summarise(replays: Mapping[Order, Sequence[Mapping[str, Array]]]) -> tuple[Summary, Summary]:
    """Levels of every rule, and differences of the acquisition to every other rule, paired by round."""
    levels: Summary = {}
    differences: Summary = {}
    for order, runs in replays.items():
        for column, measure in enumerate(MEASURES):
            for rule in RULES:
                levels[order, measure, rule] = interval([run[rule][:, column] for run in runs])
                paired = [run["acquisition"][:, column] - run[rule][:, column] for run in runs]
                differences[order, measure, rule] = interval(paired)
    return levels, differences


def page(levels: Summary, differences: Summary, orders: int, spec: AcquisitionSpec, size: int) -> str:
    """The results as Markdown."""
    lines = [
        "# The published tree, replayed",
        "",
        f"`python -m studies.paper_tree --orders {orders}` makes this page. Data: the variants of arXiv "
        "2603.23951, one run each.",
        "",
        f"{size} nodes (GRPO and every variant with a published parent). The order in which they were made is not "
        "published: it is drawn at random, parents before children, either *any* such order or one *by depth* (generation by "
        f"generation), {orders} of each. After every three nodes each rule picks three parents among the visible nodes that "
        "have unseen descendants. *Greedy* takes the three best scores. The acquisition has its default settings "
        f"(weights {spec.pareto:g} / {spec.performance:g} / {spec.diversity:g} / {spec.potential:g}); none was chosen on this "
        "tree. Mechanisms and behaviour are not published, so diversity is 0 for all, and with one run per variant nothing "
        "can be shrunk.",
        "",
        "Intervals: 95 %, bootstrap over orders and over the rounds within them. They say how much the unknown order "
        "matters; there is one tree, so they do not say how another tree would turn out. Random is stronger here than in a "
        "search: it too may only take nodes that the authors went on from. *Gain* counts from the parent's own score, so it "
        "favours low parents, whose children rise by regression to the mean alone.",
        "",
    ]
    for order in ORDERS:
        lines += [f"## Order: {order}", ""]
        for measure, meaning in MEASURES.items():
            lines += [f"**{measure}**: {meaning}.", "", "| rule | value | acquisition minus this |", "|---|---|---|"]
            for rule in RULES:
                value, low, high = levels[order, measure, rule]
                delta, below, above = differences[order, measure, rule]
                paired = "" if rule == "acquisition" else format_limits(delta, below, above, "+.2f")
                lines.append(f"| {rule} | {format_limits(value, low, high, '.2f')} | {paired} |")
            lines.append("")
    lines += ["## Reading", "", *verdicts(differences), "", "![Differences](paper_tree.svg)", ""]
    return "\n".join(lines)


def verdicts(differences: Summary) -> list[str]:
    """One line per comparison with greedy and random."""
    lines = []
    for order in ORDERS:
        for measure in MEASURES:
            parts = []
            for rule in ("greedy", "random"):
                delta, low, high = differences[order, measure, rule]
                word = "better than" if low > 0 else "worse than" if high < 0 else "not distinguishable from"
                parts.append(f"{word} {rule} ({delta:+.2f})")
            lines.append(f"- {measure}, order {order}: the acquisition is {' and '.join(parts)}.")
    return lines


def draw(differences: Summary, path: Path) -> None:
    """Acquisition minus each other rule, one panel per measure."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "poise"
    from matplotlib import pyplot as plt

    others = RULES[1:]
    figure, panels = plt.subplots(1, len(MEASURES), figsize=(11, 3.2), sharey=True)
    for panel, measure in zip(panels, MEASURES, strict=True):
        for shift, order in zip((-0.12, 0.12), ORDERS, strict=True):
            values = [differences[order, measure, rule] for rule in others]
            centres = [value for value, _, _ in values]
            errors = [[v - low for v, low, _ in values], [high - v for v, _, high in values]]
            places = np.arange(len(others)) + shift
            panel.errorbar(centres, places, xerr=errors, fmt="o", ms=4, capsize=2, label=f"order: {order}")
        panel.axvline(0.0, color="grey", lw=0.8)
        panel.set_title(f"{measure}: acquisition minus ...", fontsize=9)
        panel.set_yticks(np.arange(len(others)), others)
    panels[0].invert_yaxis()
    panels[-1].legend(fontsize=7, loc="best")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main(arguments: Sequence[str] | None = None, say: Callable[[str], None] = print) -> None:
    """Replay and write page and figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--orders", type=int, default=30, help="random orders of each kind")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    options = parser.parse_args(arguments)
    spec, nodes = AcquisitionSpec(), published_tree()
    replays = {order: [replay(nodes, order, seed, spec) for seed in range(options.orders)] for order in ORDERS}
    levels, differences = summarise(replays)
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out / "paper_tree.md", page(levels, differences, options.orders, spec, len(nodes)))
    draw(differences, options.out / "paper_tree.svg")
    say("\n".join(verdicts(differences)))


if __name__ == "__main__":
    main()
