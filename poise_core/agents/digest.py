"""What a training run did, condensed to the numbers a diagnosis needs.

Input are the rows of ``trajectory.jsonl`` (one mapping of metric to number per step, for each seed); output is a
``TrajectoryDigest``. Nothing here judges: thresholds and wording are in ``poise_core.agents.rules``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from poise_core.config.protocol import FrozenModel
from poise_core.evidence.intervals import Interval, mean_interval
from poise_core.evidence.noise import SeedNoise
from poise_core.trajectory import RUN_METRICS, Column, TrajectoryRows

Array = npt.NDArray[np.float64]

EDGE = 0.1  # share of the steps that a start or an end is averaged over
NEIGHBOURHOOD = 0.2  # share of the steps that a spike is compared with


class Spike(FrozenModel):
    """The step at which a metric stood out most from the steps around it."""

    step: int
    seed: int
    value: float
    ratio: float  # value / median of the fifth of the run around it (or half the run's median, if that is larger)


class TrajectoryDigest(FrozenModel):
    """Numbers of one candidate's training; start and end are means over the first and the last tenth of the steps.

    Curves are averaged over seeds step by step before they are read; spikes are looked for in every seed. A metric that
    the trajectory does not hold is ``None``, never zero. Numbers that are not finite are counted and otherwise left out.
    """

    steps: int  # steps of the longest seed
    seeds: int
    complete: bool  # every seed is as long as the longest
    non_finite_steps: int  # rows with a NaN or an infinity in any metric, over all seeds

    reward_start: float | None = None
    reward_end: float | None = None
    reward_best: float | None = None
    reward_plateau_step: int | None = None  # where the smoothed reward came within a tenth of its rise of its best
    entropy_start: float | None = None
    entropy_end: float | None = None
    entropy_slope: float | None = None  # nats per step, least squares over the run
    kl_end: float | None = None
    kl_peak: float | None = None
    kl_spike: Spike | None = None
    length_start: float | None = None
    length_end: float | None = None
    clip_fraction_mean: float | None = None
    clip_fraction_end: float | None = None
    all_fail_start: float | None = None
    all_fail_end: float | None = None
    all_pass_end: float | None = None
    format_valid_start: float | None = None
    format_valid_end: float | None = None
    truncated_start: float | None = None
    truncated_end: float | None = None
    grad_norm_median: float | None = None
    grad_norm_spike: Spike | None = None


def run_metric(rows: TrajectoryRows, name: str) -> float | None:
    """One of ``RUN_METRICS`` of one seed; None where the trajectory has no finite number for it.

    Raises:
        KeyError: ``name`` is not one of them.
    """
    column, reading = RUN_METRICS[name]
    curve = _curve(rows, column)
    curve = curve[np.isfinite(curve)]
    return _READINGS[reading](curve) if curve.size else None


def paired_run_delta(
    child: Mapping[int, TrajectoryRows],
    parent: Mapping[int, TrajectoryRows],
    name: str,
    level: float = 0.95,
    noise: SeedNoise | None = None,
) -> Interval | None:
    """A run metric of ``child`` minus that of ``parent`` over the seeds both have, with a paired t-interval; where one of the two
    ended earlier, over the steps that both have.

    ``noise`` is that of the difference at one seed, where it is known better than from these; a single seed has limits then.
    None where no shared seed has the metric in both; without ``noise``, infinite limits with a single one.
    """
    differences = []
    child, parent = at_same_steps(child, parent)
    for seed in child:
        mine, theirs = run_metric(child[seed], name), run_metric(parent[seed], name)
        if mine is not None and theirs is not None:
            differences.append(mine - theirs)
    count = len(differences)
    if count == 0:
        return None
    if noise is None:
        return mean_interval(differences, level)
    estimate = float(np.mean(differences))
    half = float(stdtrit(noise.freedom, 0.5 + level / 2)) * math.sqrt(noise.variance / count)
    return Interval(estimate, estimate - half, estimate + half, count)


def at_same_steps(
    child: Mapping[int, TrajectoryRows], parent: Mapping[int, TrajectoryRows]
) -> tuple[dict[int, TrajectoryRows], dict[int, TrajectoryRows]]:
    """Both cut to the steps that both have of a seed, so that the end of a training that was stopped is compared with the same step
    of its parent's and not with the parent's end."""
    shared = {seed: min(len(child[seed]), len(parent[seed])) for seed in sorted(child.keys() & parent.keys())}

    def cut(runs: Mapping[int, TrajectoryRows]) -> dict[int, TrajectoryRows]:
        return {
            seed: sorted(runs[seed], key=lambda row: row["step"])[:count] for seed, count in shared.items() if count
        }

    return cut(child), cut(parent)


def make_digest(trajectories: Mapping[int, TrajectoryRows]) -> TrajectoryDigest | None:
    """The digest of a candidate's trajectories by seed; None where there is no row at all."""
    runs = {seed: sorted(rows, key=lambda row: row["step"]) for seed, rows in trajectories.items() if rows}
    if not runs:
        return None
    lengths = [len(rows) for rows in runs.values()]
    curves = {column: _mean_curve(runs.values(), column) for column in _COLUMNS}
    reward, kl, clip, norm = (curves[name] for name in ("reward_mean", "kl", "clip_fraction", "grad_norm"))
    best, plateau = _plateau(reward)
    return TrajectoryDigest(
        steps=max(lengths),
        seeds=len(runs),
        complete=min(lengths) == max(lengths),
        non_finite_steps=sum(_non_finite(row) for rows in runs.values() for row in rows),
        reward_start=_read(reward, _start),
        reward_end=_read(reward, _end),
        reward_best=best,
        reward_plateau_step=plateau,
        entropy_slope=_read(curves["entropy"], _slope),
        kl_end=_read(kl, _end),
        kl_peak=_read(kl, lambda curve: float(curve.max())),
        kl_spike=_spike(runs, "kl"),
        clip_fraction_mean=_read(clip, lambda curve: float(curve.mean())),
        clip_fraction_end=_read(clip, _end),
        all_pass_end=_read(curves["all_pass_fraction"], _end),
        grad_norm_median=_read(norm, lambda curve: float(np.median(curve))),
        grad_norm_spike=_spike(runs, "grad_norm"),
        **{f"{short}_start": _read(curves[column], _start) for short, column in _EDGES.items()},
        **{f"{short}_end": _read(curves[column], _end) for short, column in _EDGES.items()},
    )


def digest_lines(digest: TrajectoryDigest) -> list[str]:
    """The numbers of a digest as ``name = value``, for prompts; what was not measured is left out."""
    lines = []
    for name, value in digest.model_dump().items():
        if isinstance(value, dict):
            lines += [f"{name}.{key} = {_plain(one)}" for key, one in value.items()]
        elif value is not None:
            lines.append(f"{name} = {_plain(value)}")
    return lines


def _plain(value: float | int | bool) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


_COLUMNS: tuple[Column, ...] = (
    "reward_mean", "entropy", "kl", "completion_length", "clip_fraction", "all_fail_fraction", "all_pass_fraction",
    "format_valid", "truncated", "grad_norm",
)  # fmt: skip
_EDGES: Mapping[str, Column] = {
    "entropy": "entropy",
    "length": "completion_length",
    "all_fail": "all_fail_fraction",
    "format_valid": "format_valid",
    "truncated": "truncated",
}


def _non_finite(row: Mapping[str, float]) -> bool:
    return any(isinstance(value, float) and not math.isfinite(value) for value in row.values())


def _curve(rows: TrajectoryRows, column: Column) -> Array:
    """One number per row, NaN where the row has none."""
    values = [row.get(column) for row in rows]
    return np.array([math.nan if value is None else float(value) for value in values])


def _mean_curve(runs: Iterable[TrajectoryRows], column: Column) -> Array:
    """Mean over the seeds that reached a step and hold a finite number there; steps without any are left out."""
    curves = [_curve(rows, column) for rows in runs]
    table = np.full((len(curves), max(map(len, curves))), np.nan)
    for row, curve in zip(table, curves, strict=True):
        row[: len(curve)] = np.where(np.isfinite(curve), curve, np.nan)
    present = np.isfinite(table)
    counts = present.sum(axis=0)
    return np.where(present, table, 0.0).sum(axis=0)[counts > 0] / counts[counts > 0]


def _read(curve: Array, reader: Callable[[Array], float]) -> float | None:
    return reader(curve) if curve.size else None


def _edge(curve: Array) -> int:
    return max(1, round(EDGE * curve.size))


def _start(curve: Array) -> float:
    return float(curve[: _edge(curve)].mean())


def _end(curve: Array) -> float:
    return float(curve[-_edge(curve) :].mean())


_READINGS: Mapping[str, Callable[[Array], float]] = {
    "end": _end,
    "mean": lambda curve: float(curve.mean()),
    "median": lambda curve: float(np.median(curve)),
}


def _slope(curve: Array) -> float:
    return float(np.polyfit(np.arange(curve.size), curve, 1)[0]) if curve.size > 1 else 0.0


def _plateau(reward: Array) -> tuple[float | None, int | None]:
    """Best smoothed reward, and the first step at which it was within a tenth of the total rise of that."""
    if not reward.size:
        return None, None
    width = _edge(reward)
    smooth = np.convolve(reward, np.ones(width) / width, mode="valid")  # value i covers steps i to i + width - 1
    best, rise = float(smooth.max()), float(smooth.max() - smooth[0])
    return best, int(np.argmax(smooth >= best - 0.1 * rise)) + width - 1


def _spike(runs: Mapping[int, TrajectoryRows], column: Column) -> Spike | None:
    """The step, over all seeds, that stands out most from the steps around it."""
    found: list[Spike] = []
    for seed, rows in runs.items():
        curve = _curve(rows, column)
        finite = np.flatnonzero(np.isfinite(curve))
        curve, overall = curve[finite], float(np.median(curve[finite])) if finite.size else 0.0
        if curve.size < 5 or overall <= 0.0:
            continue
        reach = max(2, round(NEIGHBOURHOOD * curve.size / 2))
        around = np.array([np.median(curve[max(0, i - reach) : i + reach + 1]) for i in range(curve.size)])
        ratios = curve / np.maximum(around, 0.5 * overall)
        top = int(ratios.argmax())
        step = int(rows[finite[top]]["step"])
        found.append(Spike(step=step, seed=seed, value=float(curve[top]), ratio=float(ratios[top])))
    return max(found, key=lambda spike: spike.ratio, default=None)
