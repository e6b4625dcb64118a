"""How numbers read, wherever they are printed; and that nothing prints limits by a rule of its own."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

import poise_core
from poise_core.evidence import format as formats
from poise_core.evidence.format import (
    counted_seeds,
    format_duration,
    format_interval,
    format_level,
    format_limits,
    format_overall,
    format_tokens,
    spell_interval,
)
from poise_core.evidence.intervals import Interval

ROOT = Path(poise_core.__file__).parent.parent


def test_an_estimate_stands_before_its_limits() -> None:
    assert format_limits(52.44, 50.06, 54.71) == "52.4 [50.1, 54.7]"
    assert format_limits(0.256, 0.1, 0.5, ".0%") == "26% [10%, 50%]"
    assert format_limits(0.5, -0.25, 1.0, "+.2f") == "+0.50 [-0.25, +1.00]"


def test_one_seed_has_no_limits_in_any_form() -> None:
    alone = Interval(52.44, -math.inf, math.inf, 1)
    assert format_interval(alone) == "52.4 (one seed)"
    assert format_interval(alone, signed=True) == "+52.4 (one seed)"
    assert format_overall(alone) == "52.4, 1 seed, no interval"
    assert spell_interval(alone) == "+52.44 (no interval: 1 seed)"


def test_seeds_are_said_where_no_column_says_them() -> None:
    assert format_overall(Interval(52.44, 50.06, 54.71, 3)) == "52.4 [50.1, 54.7], 3 seeds"
    assert format_overall(Interval(52.44, 50.06, 54.71, 1)) == "52.4 [50.1, 54.7], 1 seed"  # limits by the noise floor
    assert spell_interval(Interval(1.2, -0.4, 2.8, 3), ".1f") == "1.2 (95 % interval -0.4 to 2.8, 3 seeds)"
    assert (counted_seeds(1), counted_seeds(0), counted_seeds(2)) == ("1 seed", "0 seeds", "2 seeds")


def test_an_interval_comes_back_from_its_json() -> None:
    for interval in (Interval(1.2, -0.4, 2.8, 3), Interval(52.0, -math.inf, math.inf, 1)):
        assert Interval.from_dict(interval.to_dict()) == interval


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.0, "0 s"), (29.4, "29 s"), (31.0, "1 min"), (3540.0, "59 min"), (3600.0, "1 h 00 min"), (7500.0, "2 h 05 min")],
)
def test_durations(seconds: float, shown: str) -> None:
    assert format_duration(seconds) == shown


@pytest.mark.parametrize(
    ("tokens", "shown"),
    [(830, "830"), (9999, "9,999"), (12_345, "12 k"), (999_499, "999 k"), (999_500, "1.00 M"), (1_254_000, "1.25 M")],
)
def test_counts_of_tokens(tokens: int, shown: str) -> None:
    assert format_tokens(tokens) == shown


def test_limits_are_printed_by_one_module() -> None:
    """Two places that print the same number by two rules had come to disagree about one seed."""
    own = re.compile(
        r"\} \[\{[^}]*(low|below)\b"
    )  # an estimate, and behind it a bracket that begins with its lower limit
    files = [file for folder in ("poise_core", "tasks", "flows", "studies") for file in (ROOT / folder).rglob("*.py")]
    assert len(files) > 100
    found = {file for file in files if own.search(file.read_text(encoding="utf-8"))}
    assert found == {Path(formats.__file__)}


@pytest.mark.parametrize(
    ("level", "shown"),
    [(0.95, "95%"), (0.9, "90%"), (1 - 0.05 / 6, "99.17%"), (1 - 0.05 / 50, "99.9%"), (1 - 0.05 / 1620, "99.9969%")],
)
def test_levels_near_one_are_not_rounded_to_it(level: float, shown: str) -> None:
    assert format_level(level) == shown
