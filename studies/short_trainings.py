"""What the first steps of a training tell of its score: the reward there, and the forecast of the ladder.

``python -m studies.short_trainings RUN_DIR docs/results/calibration.parquet --preset laptop`` reads the trainings that
``poise calibrate`` has left in its folder and their scores in its record, and prints a table with a row per number of steps. The
forecast is the ladder's (``poise_core.evidence.forecast``), learned from all other algorithms at the same seed. One algorithm that
lies far from all others makes a correlation nearly alone; ``--leave-out`` shows what the others say.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from poise_core.candidate.identity import source_digest
from poise_core.config import load_preset
from poise_core.evidence.forecast import Forecast, proxy_dynamics
from poise_core.evidence.format import format_limits
from studies.simulation import calibration_rows

Array = npt.NDArray[np.float64]

RESAMPLES = 2000


@dataclass(frozen=True)
class Training:
    """One training of one algorithm."""

    algorithm: str
    seed: int
    overall: float  # percent, on the search split
    trajectory: Sequence[Mapping[str, Any]]  # a row per step


def read_trainings(folder: Path, record: Path, protocol: str) -> list[Training]:
    """Return the trainings that have both a score in the record and all their steps in the folder.

    Args:
        folder: the run directory of ``poise calibrate``.
        record: its Parquet file.
        protocol: the digest of the protocol whose trainings are read.

    Raises:
        OSError: the record cannot be read.
    """
    found = []
    for row, evaluation in calibration_rows(record, protocol):
        place = _place(folder / protocol / row["algorithm"], row)
        if place is not None and (file := place / "train" / f"seed-{row['seed']}" / "trajectory.jsonl").is_file():
            steps = [json.loads(line) for line in file.read_text().splitlines()]
            found.append(Training(row["algorithm"], row["seed"], evaluation.overall, steps))
    whole = max((len(one.trajectory) for one in found), default=0)
    return [one for one in found if len(one.trajectory) == whole]


def _place(folder: Path, row: Mapping[str, Any]) -> Path | None:
    """The folder of the row's trainings among those of an algorithm: the one with the text that the row names."""
    seeds, own = row["seeds"].split(), row["source_digest"]
    name = f"seeds-{seeds[0]}-{seeds[-1]}"  # as poise_core.testbed.panel.training_place names it
    for place in (folder / name, folder / f"{name}-{own[:8]}"):
        file = place / f"{row['algorithm']}.py"
        if file.is_file() and source_digest(file.read_text(encoding="utf-8")).startswith(own):
            return place
    return None


def rewards(trainings: Sequence[Training], steps: int, window: int) -> Array:
    """(N,) mean reward over the last ``window`` of the first ``steps`` steps."""
    return np.array([np.mean([row["reward_mean"] for row in one.trajectory[:steps][-window:]]) for one in trainings])


def forecasts(trainings: Sequence[Training], steps: int, window: int) -> Array:
    """(N,) Overall as the ladder forecasts it, from the others' trainings with the same seed; NaN where they are too few."""
    found = np.full(len(trainings), np.nan)
    known = [proxy_dynamics(one.trajectory, steps, window) for one in trainings]
    for place, (one, own) in enumerate(zip(trainings, known, strict=True)):
        others = {
            other.algorithm: (dynamics, other.overall)
            for other, dynamics in zip(trainings, known, strict=True)
            if other.seed == one.seed and other.algorithm != one.algorithm and dynamics is not None
        }
        forecast = Forecast.learn(
            {name: d for name, (d, _) in others.items()}, {name: y for name, (_, y) in others.items()}
        )
        if forecast is not None and own is not None:
            found[place] = forecast.predict(own)
    return found


def correlation(x: Array, y: Array) -> float:
    """Pearson's, over the pairs that are finite; NaN where one of the two does not vary."""
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    return float(np.corrcoef(x, y)[0, 1]) if len(x) > 2 and x.std() > 0 and y.std() > 0 else float("nan")


def limits(algorithms: Sequence[str], statistic: Callable[[Array], float], seed: int = 0) -> tuple[float, float]:
    """The 95 % limits of a statistic of trainings, by drawing algorithms with all their trainings again and again.

    Args:
        algorithms: of each training.
        statistic: of the places of trainings, (M,) int64.
        seed: of the drawing.
    """
    rng = np.random.default_rng(seed)
    names = sorted(set(algorithms))
    own = [np.flatnonzero(np.array(algorithms) == name) for name in names]
    drawn = [
        statistic(np.concatenate([own[i] for i in rng.integers(len(names), size=len(names))])) for _ in range(RESAMPLES)
    ]
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def table(trainings: Sequence[Training], window: int) -> str:
    """The table in Markdown.

    Raises:
        ValueError: there are no trainings.
    """
    if not trainings:
        raise ValueError("no training of this protocol has both a score in the record and its steps in the folder")
    overall = np.array([one.overall for one in trainings])
    algorithms = [one.algorithm for one in trainings]
    tokens = np.array([[row["tokens"] for row in one.trajectory] for one in trainings]).cumsum(axis=1)
    lines = [
        "| steps | share of the tokens | correlation of their reward with Overall | of the forecast |",
        "|---|---|---|---|",
    ]
    for steps in range(window + 1, tokens.shape[1] + 1):
        cells = []
        for x in (rewards(trainings, steps, window), forecasts(trainings, steps, window)):
            r = correlation(x, overall)
            low, high = limits(algorithms, lambda rows, x=x: correlation(x[rows], overall[rows]))  # type: ignore[misc]
            cells.append(format_limits(r, low, high, ".2f"))
        share = float((tokens[:, steps - 1] / tokens[:, -1]).mean())
        lines.append(f"| {steps} | {100 * share:.0f} % | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="run directory of poise calibrate")
    parser.add_argument("record", type=Path, help="its record")
    parser.add_argument("--preset", default="laptop")
    parser.add_argument("--window", type=int, default=3, help="steps whose means are taken")
    parser.add_argument("--leave-out", action="append", default=[], metavar="ALGORITHM", help="repeat for several")
    given = parser.parse_args(arguments)
    protocol = load_preset(given.preset).protocol.digest
    found = [
        one for one in read_trainings(given.folder, given.record, protocol) if one.algorithm not in given.leave_out
    ]
    print(f"{len(found)} trainings of {len({one.algorithm for one in found})} algorithms\n")
    print(table(found, given.window))


if __name__ == "__main__":
    main()
