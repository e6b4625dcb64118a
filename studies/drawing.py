"""A line chart as SVG, without a plotting library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 720, 380, 60, 50, 20, 180
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito: told apart by everyone


@dataclass(frozen=True)
class Series:
    """One line."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def line_chart(series: Sequence[Series], x_label: str, y_label: str) -> str:
    """The lines with their points, axes from zero, and a legend.

    Raises:
        ValueError: there is no point.
    """
    if not any(len(one.x) for one in series):
        raise ValueError("nothing to draw")
    right = max(max(one.x) for one in series if len(one.x)) or 1.0
    top = max(max(one.y) for one in series if len(one.y)) or 1.0
    across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + across * x / right, TOP + down * (1 - y / top)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<path d="M{LEFT} {TOP}V{TOP + down}H{LEFT + across}" fill="none" stroke="black"/>',
    ]
    for tick in range(5):
        x, y = place(right * tick / 4, top * tick / 4)
        parts.append(f'<text x="{x:.1f}" y="{TOP + down + 18}" text-anchor="middle">{right * tick / 4:.3g}</text>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{top * tick / 4:.3g}</text>')
    parts.append(
        f'<text x="{LEFT + across / 2:.0f}" y="{HEIGHT - 10}" text-anchor="middle">{escape(x_label)}</text>'
        f'<text transform="translate(14 {TOP + down / 2:.0f}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    for number, one in enumerate(series):
        colour = COLOURS[number % len(COLOURS)]
        points = [place(x, y) for x, y in zip(one.x, one.y, strict=True)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in points]
        height = TOP + 16 + 20 * number
        parts.append(f'<rect x="{LEFT + across + 16}" y="{height - 9}" width="14" height="4" fill="{colour}"/>')
        parts.append(f'<text x="{LEFT + across + 36}" y="{height}">{escape(one.name)}</text>')
    return "\n".join([*parts, "</svg>", ""])
