"""Drawings: the curves of the arms, and what a terminal shows as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from rich.console import RenderableType

from poise_core.render import ViewConsole
from poise_core.views.arms import ArmCurve, ReplayedArm

WIDTH = 110
"""Columns of a terminal drawn as a picture."""

MAIN_ARMS = ("evolution", "random", "greedy", "best-of-n", "tune")
"""Whose curves are drawn; the others are variants of the first, and their final regret is."""


def draw_view(view: RenderableType, path: Path) -> None:
    """A view for a terminal of ``WIDTH`` columns, as an SVG with its colours."""
    drawing = ViewConsole(record=True, width=WIDTH, file=io.StringIO())
    drawing.print(view)
    drawing.save_svg(str(path), title="poise")


def draw_comparison(curves: Sequence[ArmCurve], path: Path) -> None:
    """Best so far over tokens, with a band where there are several search seeds, as SVG or PNG by the path's suffix."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    for curve in curves:
        millions = [tokens / 1e6 for tokens in curve.tokens]
        (line,) = axes.step(millions, [one.estimate for one in curve.best], where="post", label=curve.arm)
        if curve.best[0].seeds > 1:
            low, high = [one.low for one in curve.best], [one.high for one in curve.best]
            axes.fill_between(millions, low, high, step="post", alpha=0.15, color=line.get_color())
    axes.set_xlabel("training tokens, millions")
    axes.set_ylabel("best so far, shrunken Overall (%)")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def draw_replays(arms: Sequence[ReplayedArm], path: Path) -> None:
    """Mean regret over tokens with its band, and the final regret of every arm, as SVG or PNG by the path's suffix."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "poise"
    from matplotlib import pyplot as plt

    figure, (curves, finals) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=(3, 2))
    shown = [one for one in arms if one.arm in MAIN_ARMS or ":" in one.arm] or list(arms)
    unit, scale = ("training tokens, millions", 1e6) if arms[0].tokens[-1] > 1e5 else ("whole trainings", 1.0)
    for one in shown:
        budgets = [tokens / scale for tokens in one.tokens]
        (line,) = curves.plot(budgets, [point.estimate for point in one.regret], label=one.arm)
        low, high = [point.low for point in one.regret], [point.high for point in one.regret]
        curves.fill_between(budgets, low, high, alpha=0.2, color=line.get_color())
    curves.set_xlabel(unit)
    curves.set_ylabel("mean regret (points of Overall)")
    curves.set_ylim(bottom=0.0)
    curves.legend(fontsize=8)
    for place, one in enumerate(reversed(arms)):
        error = [[one.final.estimate - one.final.low], [one.final.high - one.final.estimate]]
        colour = "C0" if one in shown else "grey"
        finals.errorbar([one.final.estimate], [place], xerr=error, fmt="o", ms=4, capsize=2, color=colour)
    finals.set_yticks(range(len(arms)), [one.arm for one in reversed(arms)], fontsize=7)
    finals.set_xlabel("regret at the whole budget")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
