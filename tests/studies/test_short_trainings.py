"""The study of short trainings, on trainings whose numbers are known."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from poise_core.archive.measured import Measured, Trainings
from poise_core.config import load_preset
from poise_core.evaluation.results import SeedEvaluation
from poise_core.testbed.panel import training_place
from studies import short_trainings
from studies.short_trainings import Training, correlation, forecasts, limits, read_trainings, rewards, table

LEVELS = np.linspace(40.0, 80.0, 12)
"""Overall of twelve algorithms."""


def training(number: int, seed: int = 0, steps: int = 4) -> Training:
    """The reward is noise for two steps and then what decides Overall."""
    noise = math.sin(7.0 * number + seed)
    reward = [noise, noise, LEVELS[number] / 100, LEVELS[number] / 100][:steps]
    rows = [
        {"reward_mean": one, "completion_length": 10.0, "entropy": 1.0, "kl": 0.1, "tokens": 100 * (step + 1)}
        for step, one in enumerate(reward)
    ]
    return Training(f"algorithm-{number}", seed, float(LEVELS[number]), rows)


TRAININGS = [training(number, seed) for number in range(12) for seed in range(2)]


def test_rewards_are_means_of_the_window() -> None:
    found = rewards([training(0), training(11)], steps=3, window=2)
    assert found == pytest.approx([(math.sin(0.0) + 0.4) / 2, (math.sin(77.0) + 0.8) / 2])


def test_the_forecast_of_an_algorithm_does_not_know_its_own_trainings() -> None:
    overall = np.array([one.overall for one in TRAININGS])
    assert correlation(forecasts(TRAININGS, 4, 1), overall) > 0.99
    changed = [Training("algorithm-3", 0, 0.0, one.trajectory) if one is TRAININGS[6] else one for one in TRAININGS]
    assert TRAININGS[6].algorithm == "algorithm-3"
    assert forecasts(changed, 4, 1)[[6, 7]] == pytest.approx(forecasts(TRAININGS, 4, 1)[[6, 7]], rel=1e-12)
    assert forecasts(changed, 4, 1)[0] != pytest.approx(forecasts(TRAININGS, 4, 1)[0], rel=1e-6)
    assert np.isnan(forecasts(TRAININGS[:8], 4, 1)).all()  # four algorithms are too few


def test_correlation_of_what_does_not_vary_or_is_missing() -> None:
    assert math.isnan(correlation(np.ones(4), np.arange(4.0)))
    assert correlation(np.array([1.0, np.nan, 2.0, 3.0]), np.array([2.0, 9.0, 4.0, 6.0])) == pytest.approx(1.0)


def test_limits_draw_algorithms_whole() -> None:
    """The mean of six algorithms of which each has one value twice: the spread is that of six values, not of twelve."""
    values = np.repeat([0.0, 0.0, 0.0, 1.0, 1.0, 1.0], 2)
    low, high = limits([f"a{i // 2}" for i in range(12)], lambda rows: float(values[rows].mean()))
    assert (low, high) == pytest.approx((1 / 6, 5 / 6), abs=0.01)


def leave(run: Path, trainings: Trainings, steps: Sequence[Mapping[str, Any]]) -> None:
    """What a calibration leaves of a training with one seed."""
    place = training_place(run, trainings)
    (place / "train" / f"seed-{trainings.seeds[0]}").mkdir(parents=True)
    (place / f"{trainings.algorithm}.py").write_text(trainings.source)
    lines = "".join(json.dumps(row) + "\n" for row in steps)
    (place / "train" / f"seed-{trainings.seeds[0]}" / "trajectory.jsonl").write_text(lines)


def test_the_table_says_from_which_step_on_the_reward_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = table(TRAININGS, window=1)
    rows = [line.split("|")[1:-1] for line in text.splitlines()[2:]]
    assert [(row[0].strip(), row[1].strip()) for row in rows] == [("2", "30 %"), ("3", "60 %"), ("4", "100 %")]
    assert abs(float(rows[0][2].split()[0])) < 0.5
    assert rows[1][2].split()[0] == "1.00"
    with pytest.raises(ValueError, match="no training"):
        table([], 1)

    protocol = load_preset("laptop").protocol.digest
    record = Measured(tmp_path / "record.parquet")
    for one in TRAININGS:
        of = Trainings(protocol, one.algorithm, "source", (one.seed,))
        record.put(of, {"search": [SeedEvaluation(one.seed, "search", one.overall, (), 1.0)]})
        if one.algorithm == "algorithm-4":  # was trained with another text before
            leave(tmp_path / "run", replace(of, source="before"), one.trajectory[::-1])
        leave(tmp_path / "run", of, one.trajectory[:2] if one.algorithm == "algorithm-5" else one.trajectory)
    read = read_trainings(tmp_path / "run", tmp_path / "record.parquet", protocol)
    assert {one.algorithm for one in read} == {one.algorithm for one in TRAININGS} - {"algorithm-5"}, "has not ended"
    assert [one.trajectory for one in read if one.algorithm == "algorithm-4"] == [
        one.trajectory for one in TRAININGS if one.algorithm == "algorithm-4"
    ]
    short_trainings.main(
        [str(tmp_path / "run"), str(tmp_path / "record.parquet"), "--window", "1", "--leave-out", "algorithm-7"]
    )
    assert "20 trainings of 10 algorithms" in capsys.readouterr().out
