"""The time of selection and of the archive as the tree grows.

``python -m studies.scale`` writes ``docs/results/scale.md`` and ``scale.svg``. Trees are made up: every node
hangs under a random earlier one, one in seven has failed, six benchmarks, 14 slots of 5 choices, a sketch of 32 numbers.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from poise_core.archive import Archive, candidate_row
from poise_core.archive.typed import CandidateRow
from poise_core.config.search import AcquisitionSpec
from poise_core.evidence.intervals import Interval
from poise_core.files import write_atomically
from poise_core.search.acquisition import AcquisitionSelector, judge
from poise_core.search.nodes import NodeRecord, NodeTable
from poise_core.search.selection import pick_spread

BENCHMARKS, SLOTS, CHOICES, NUMBERS = 6, 14, 5, 32
SOURCE = '"""A candidate."""\n' + "\n".join(f"value_{line} = {line} * 1.5  # a line of code" for line in range(80))
TARGETS = {"selection": 2.0, "append": 0.02, "lineage": 1.0}
"""Seconds at 10,000 nodes that each operation may take."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one operation at one size; medians where it was repeated."""

    size: int
    wall: float
    processor: float
    slowest: float | None = None  # 95th percentile of the wall-clock time


def timed(action: Callable[[], object], repeats: int = 1) -> tuple[float, float]:
    """Median wall-clock and processor seconds."""
    walls, processors = [], []
    for _ in range(repeats):
        wall, processor = time.perf_counter(), time.process_time()
        action()
        walls.append(time.perf_counter() - wall)
        processors.append(time.process_time() - processor)
    return statistics.median(walls), statistics.median(processors)


def make_table(size: int, seed: int = 0) -> NodeTable:
    """A made-up tree as arrays."""
    rng = np.random.default_rng(seed)
    parent = np.concatenate([[-1], (rng.random(size - 1) * np.arange(1, size)).astype(np.int64)])
    raw = 45.0 + rng.normal(0.0, 3.0, size)
    raw[1:][rng.random(size - 1) < 1 / 7] = np.nan
    names = [f"c-{row}" for row in range(size)]
    return NodeTable(
        ids=names,
        names=names,
        parent=parent,
        raw=raw,
        seeds=np.full(size, 3.0),
        variance=2.0,
        benchmarks=rng.normal(45.0, 5.0, (size, BENCHMARKS)),
        mechanisms=rng.integers(0, CHOICES, (size, SLOTS)),
        sketch=rng.normal(0.0, 1.0, (size, NUMBERS)),
    )


def make_records(size: int) -> list[NodeRecord]:
    """The same tree as records, as an archive would give it."""
    table = make_table(size)
    nodes = []
    for row in range(size):
        overall = float(table.raw[row])
        scored = bool(table.scored[row])
        benchmarks = {f"b{j}": float(value) for j, value in enumerate(table.benchmarks[row])}
        nodes.append(
            NodeRecord(
                candidate_id=table.ids[row],
                name=table.names[row],
                parent_ids=(f"c-{table.parent[row]}",) if table.parent[row] >= 0 else (),
                generation=int(table.depth[row]),
                overall=Interval(overall, overall - 3.0, overall + 3.0, 3) if scored else None,
                benchmarks=benchmarks if scored else {},
                mechanisms={f"s{j}": str(code) for j, code in enumerate(table.mechanisms[row])},
                seed_overalls=(overall - 1.4, overall, overall + 1.4) if scored else (),
                seed_benchmarks={name: (v - 1.0, v, v + 1.0) for name, v in benchmarks.items()} if scored else {},
                sketch=tuple(table.sketch[row].tolist()),
            )
        )
    return nodes


def time_selection(sizes: Sequence[int]) -> list[Timing]:
    """``AcquisitionSelector.select`` of three parents, records in and archive rows out."""
    found = []
    for size in sizes:
        nodes = make_records(size)
        wall, processor = timed(lambda nodes=nodes: AcquisitionSelector().select(nodes, 3, 0), 3)  # type: ignore[misc]
        found.append(Timing(size, wall, processor))
    return found


def time_judgement(sizes: Sequence[int]) -> list[Timing]:
    """The arithmetic alone: all terms of all nodes, and the pick of three, from arrays."""
    found = []
    spec = AcquisitionSpec()
    for size in sizes:
        table = make_table(size)

        def act(table: NodeTable = table) -> None:
            pick_spread(table, judge(table, spec).total, 3, spec.lineage_penalty, 0)

        found.append(Timing(size, *timed(act, 3 if size <= 10_000 else 1)))
    return found


def time_archive(sizes: Sequence[int], plain: int) -> tuple[list[Timing], list[Timing], list[Timing]]:
    """Appending one candidate, and a fresh process's lineage with a snapshot and without one.

    Args:
        sizes: candidates in the archive, ascending.
        plain: the largest size at which the lineage is also timed without a snapshot.
    """
    appends, lineages, without = [], [], []
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        archive, count = Archive(folder).initialise(), 0
        for size in sizes:
            walls, processors = [], []
            while count < size:
                row = make_candidate(count, int(rng.integers(0, max(count, 1))))
                wall, processor = timed(lambda row=row: archive.append("candidates", [row]))  # type: ignore[misc]
                walls.append(wall)
                processors.append(processor)
                count += 1
            last = min(len(walls), 200)
            late = statistics.quantiles(walls[-last:], n=20)[-1]
            appends.append(Timing(size, statistics.median(walls[-last:]), statistics.median(processors[-last:]), late))
            if size <= plain:
                without.append(Timing(size, *timed(lambda: Archive(folder).lineage())))
            archive.refresh_snapshots()
            lineages.append(Timing(size, *timed(lambda: Archive(folder).lineage(), 3)))
    return appends, lineages, without


def make_candidate(number: int, parent: int) -> CandidateRow:
    """A candidate as it is appended, its parent and number given."""
    return candidate_row(
        candidate_id=f"c-{number}",
        name=f"C{number}",
        source=f"{SOURCE}\nnumber = {number}\n",
        source_digest=f"{number:064d}",
        written_by="catalogue",
        generation=number.bit_length(),
        parent_ids=[f"c-{parent}"] if number else [],
        mechanisms={f"s{slot}": str(number % CHOICES) for slot in range(SLOTS)},
    )


Curves = dict[str, list[Timing]]


def page(curves: Curves, load: float) -> str:
    """The measurements as Markdown."""
    lines = [
        "# Growth of selection and archive",
        "",
        "`python -m studies.scale` makes this page. Measured on "
        f"{os.cpu_count()} cores ({platform.machine()}, Python {platform.python_version()}) that other work shared (load average "
        f"{load:.1f}; this one at niceness {os.getpriority(os.PRIO_PROCESS, 0)}): processor seconds are the program's own, "
        "wall-clock seconds include waiting for the others.",
        "",
    ]
    for name, timings in curves.items():
        lines += [
            f"## {name}",
            "",
            "| nodes | processor seconds | wall-clock seconds | 95 % within |",
            "|---|---|---|---|",
        ]
        for one in timings:
            slowest = "" if one.slowest is None else f"{one.slowest:.4f}"
            lines.append(f"| {one.size:,} | {one.processor:.4f} | {one.wall:.4f} | {slowest} |")
        lines.append("")
    lines += ["![Growth](scale.svg)", ""]
    return "\n".join(lines)


def draw(curves: Curves, path: Path) -> None:
    """Seconds over nodes, both logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "poise"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.5))
    for name, timings in curves.items():
        sizes = [one.size for one in timings]
        (line,) = axes.loglog(sizes, [one.processor for one in timings], marker="o", ms=4, label=name)
        axes.loglog(sizes, [one.wall for one in timings], ls=":", color=line.get_color())
    for name, seconds in TARGETS.items():
        axes.plot([10_000], [seconds], marker="v", color="black", ms=6)
        axes.annotate(f"{name} at most", (10_000, seconds), fontsize=7, xytext=(4, 3), textcoords="offset points")
    axes.set_xlabel("nodes")
    axes.set_ylabel("seconds (solid: processor, dotted: wall clock)")
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main(arguments: Sequence[str] | None = None, say: Callable[[str], None] = print) -> None:
    """Measure and write page and figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--largest", type=int, default=1_000_000, help="nodes of the largest tree")
    parser.add_argument("--archive", type=int, default=10_000, help="candidates of the largest archive")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    options = parser.parse_args(arguments)
    small = [size for size in (100, 300, 1000, 3000, 10_000) if size <= options.largest]
    large = [size for size in (30_000, 100_000, 300_000, 1_000_000) if size <= options.largest]
    stored = [size for size in (100, 300, 1000, 3000, 10_000) if size <= options.archive]
    appends, lineages, without = time_archive(stored, plain=1000)
    curves = {
        "Selection of three parents, from records to archive rows": time_selection(small),
        "Selection, arithmetic on arrays": time_judgement([*small, *large]),
        "Archive: append of one candidate": appends,
        "Archive: lineage in a fresh process, with a snapshot": lineages,
        "Archive: lineage in a fresh process, without a snapshot": without,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    text = page(curves, os.getloadavg()[0])
    write_atomically(options.out / "scale.md", text)
    draw(curves, options.out / "scale.svg")
    say(text)


if __name__ == "__main__":
    main()
