"""Drawings: the curves of the arms, and what a terminal shows as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from rich.console import RenderableType

from poise_core.render import ViewConsole
from poise_core.views.arms import ArmCurve

WIDTH = 110
"""Columns of a terminal drawn as a picture."""


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
