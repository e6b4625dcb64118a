"""What the user steers towards, in words for the agents and in points for the selection of parents."""

from __future__ import annotations

from collections.abc import Mapping

from poise_core.config.agents import Steering


def steering_text(steering: Steering) -> str:
    """The directive and the declared aims, as the agents read them; empty where there are none."""
    lines = [steering.directive] if steering.directive else []
    lines += [f"Secondary aim: {aim.direction} {aim.metric} (weight {aim.weight:g})." for aim in steering.secondary]
    if steering.overall_tolerance is not None:
        lines.append(f"Overall may fall at most {steering.overall_tolerance:g} points below the baseline's.")
    return "\n".join(lines)


def steering_bonus(
    steering: Steering,
    overall: float,
    values: Mapping[str, float | None],
    baseline_overall: float,
    baseline_values: Mapping[str, float | None],
) -> float:
    """Points that a candidate's secondary metrics add to its Overall: sum of weight * signed relative change * 1 point.

    A change by the baseline's whole value earns ``weight`` points. A candidate whose Overall lies more than
    ``overall_tolerance`` points below the baseline earns nothing (and keeps what it loses). Metrics that are not
    measured count nothing.
    """
    bonus = 0.0
    for aim in steering.secondary:
        value, base = values.get(aim.metric), baseline_values.get(aim.metric)
        if value is None or base is None or base == 0.0:
            continue
        change = (value - base) / abs(base)
        bonus += aim.weight * (change if aim.direction == "increase" else -change)
    tolerance = steering.overall_tolerance
    if tolerance is not None and overall < baseline_overall - tolerance:
        return min(bonus, 0.0)
    return bonus
