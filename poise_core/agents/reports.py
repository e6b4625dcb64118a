"""Reports that go back to the author of a candidate file: what the gate refused, and how a training went wrong.

They are part of a question to a model, and a recorded run is replayed by asking the same again: nothing in them may depend
on the folder of the run or on how fast the machine was.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from poise_core.agents.digest import digest_lines, make_digest
from poise_core.failures import CandidateFailure
from poise_core.trajectory import Column, TrajectoryRows

STEPS_SHOWN = 12
"""Last steps of a training whose numbers are listed one by one."""

_COLUMNS: tuple[Column, ...] = (
    "reward_mean", "entropy", "kl", "clip_fraction", "grad_norm", "loss", "completion_length", "truncated",
)  # fmt: skip
_LEFT_OUT = ("seconds", "confinement")
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
    shown["checks"] = [{k: v for k, v in one.items() if k not in _LEFT_OUT} for one in document.get("checks", [])]
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


def _table(rows: TrajectoryRows) -> str:
    shown = sorted(rows, key=lambda row: row["step"])[-STEPS_SHOWN:]
    names = [name for name in _COLUMNS if any(row.get(name) is not None for row in shown)]
    lines = [" ".join(["step", *names])]
    for row in shown:
        values = [row.get(name) for name in names]
        lines.append(" ".join([str(int(row["step"])), *("-" if one is None else f"{one:.4g}" for one in values)]))
    return "\n".join(lines)
