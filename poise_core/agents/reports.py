"""What is shown of a candidate's file and training: reports that go back to its author (what the gate refused, how a training went
wrong), and what the reflector reads (the difference to the parent's file, curves, levels of benchmarks).

They are part of a question to a model, and a recorded run is replayed by asking the same again: nothing in them may depend
on the folder of the run or on how fast the machine was.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence

from poise_core.agents.briefing import TaskCard
from poise_core.agents.digest import digest_lines, make_digest
from poise_core.evidence.format import short_interval
from poise_core.evidence.intervals import Interval
from poise_core.failures import CandidateFailure
from poise_core.trajectory import Column, TrajectoryRows

STEPS_SHOWN = 12
"""Last steps of a training whose numbers are listed one by one."""

_COLUMNS: tuple[Column, ...] = (
    "reward_mean", "entropy", "kl", "clip_fraction", "grad_norm", "loss", "completion_length", "truncated",
)  # fmt: skip
_LEFT_OUT = ("seconds", "confinement", "probe_seed", "conditions")
_FOLDERS = re.compile(r"(?<![\w.:/])/(?:[^\s/\"':]+/)+(?=[^\s/\"':])")


def without_folders(text: str) -> str:
    """The text with absolute paths cut to their last part, so that a prompt does not depend on where a run is stored."""
    return _FOLDERS.sub("", text)


def gate_report(failure: CandidateFailure) -> str:
    """The gate's report on a refused file, word for word, as JSON; durations and the machine's confinement are left out."""
    try:
        document = json.loads(failure.detail)
        if not isinstance(document, dict):
            return failure.detail or failure.message
    except ValueError:
        return failure.detail or failure.message
    shown = {key: value for key, value in document.items() if key not in _LEFT_OUT}
    shown["checks"] = [
        {k: v for k, v in one.items() if k not in _LEFT_OUT and (k, v) != ("note", "")}
        for one in document.get("checks", [])
    ]
    return json.dumps(shown, indent=1, ensure_ascii=False)


def training_report(failure: CandidateFailure, trajectories: Mapping[int, TrajectoryRows]) -> str:
    """How a training that ended early went wrong: the typed failure, its traceback, the last steps, and the digest.

    Args:
        failure: of the stage ``train``.
        trajectories: seed -> the steps that were done before it.
    """
    parts = [f"{failure.kind} in {failure.stage}: {without_folders(failure.message)}"]
    if failure.detail.strip():
        parts.append(f"## Traceback\n{without_folders(failure.detail.strip())[-3000:]}")
    for seed, rows in sorted(trajectories.items()):
        if rows:
            parts.append(f"## Steps of seed {seed} before it ended ({len(rows)} done)\n{_table(rows)}")
    digest = make_digest(trajectories)
    parts.append("## Digest\n" + "\n".join(digest_lines(digest)) if digest else "No step was finished.")
    return "\n\n".join(parts)


CURVE_POINTS = 10
"""Steps at which a curve is shown, the first and the last among them."""

_CURVES: tuple[Column, ...] = (
    "reward_mean", "entropy", "kl", "clip_fraction", "grad_norm", "completion_length", "truncated", "format_valid",
    "all_fail_fraction", "all_pass_fraction",
)  # fmt: skip


def difference(mine: str, theirs: str, name: str = "child", parent: str = "parent") -> str:
    """The unified difference from the parent's file to this one, with two lines of context; empty where they are equal."""
    lines = difflib.unified_diff(theirs.splitlines(), mine.splitlines(), parent, name, lineterm="", n=2)
    return "\n".join(lines)


def curves(trajectories: Mapping[int, TrajectoryRows], parent: Mapping[int, TrajectoryRows]) -> str:
    """Every seed at up to ten evenly spaced steps, and the parent's same seed at the same steps, as one table per seed.

    A cell is the candidate's number, a slash and the parent's; ``-`` stands for one that is not there. What a spike does between
    two of the steps is in the digest.
    """
    parts = []
    for seed, rows in sorted(trajectories.items()):
        mine = {int(row["step"]): row for row in rows}
        theirs = {int(row["step"]): row for row in parent.get(seed, ())}
        if not mine:
            continue
        steps = spread(sorted(mine), CURVE_POINTS)
        names = [name for name in _CURVES if any(mine[step].get(name) is not None for step in steps)]
        lines = [f"seed {seed}, {len(mine)} steps; candidate{'/parent' if theirs else ''}", " ".join(["step", *names])]
        for step in steps:
            cells = [_cell(mine[step], name) for name in names]
            if theirs:
                there = theirs.get(step, {})
                cells = [f"{cell}/{_cell(there, name)}" for cell, name in zip(cells, names, strict=True)]
            lines.append(" ".join([str(step), *cells]))
        broken = sorted(step for step, row in mine.items() if any(value != value for value in row.values()))
        if broken:
            lines.append(f"not a number at steps {', '.join(map(str, broken[:10]))}")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def spread(values: Sequence[int], count: int) -> list[int]:
    """At most ``count`` of the values, evenly spaced, the first and the last among them."""
    if len(values) <= count:
        return list(values)
    return [values[round(index * (len(values) - 1) / (count - 1))] for index in range(count)]


def _cell(row: Mapping[str, float], name: str) -> str:
    value = row.get(name)
    return "-" if value is None else f"{value:.3g}"


def levels(
    mine: Mapping[str, Interval],
    parent: Mapping[str, Interval],
    task: TaskCard | None = None,
    parent_name: str = "parent",
) -> str:
    """Percent on every benchmark: the candidate, its parent, the baseline and the untrained policy, one benchmark a line."""
    names = list(dict.fromkeys((*mine, *parent)))
    if not names:
        return ""

    def shown(found: Mapping[str, Interval], name: str) -> str:
        return short_interval(found[name], signed=False) if name in found else "?"

    baseline, untrained = (task.baseline, task.untrained) if task else ({}, {})
    lines = [f"benchmark | candidate | {parent_name} | baseline | untrained"]
    lines += [
        " | ".join(
            (
                name,
                shown(mine, name),
                shown(parent, name),
                shown(baseline, name),
                f"{untrained[name]:.1f}" if name in untrained else "?",
            )
        )
        for name in names
    ]
    return "\n".join(lines)


def _table(rows: TrajectoryRows) -> str:
    shown = sorted(rows, key=lambda row: row["step"])[-STEPS_SHOWN:]
    names = [name for name in _COLUMNS if any(row.get(name) is not None for row in shown)]
    lines = [" ".join(["step", *names])]
    for row in shown:
        values = [row.get(name) for name in names]
        lines.append(" ".join([str(int(row["step"])), *("-" if one is None else f"{one:.4g}" for one in values)]))
    return "\n".join(lines)
