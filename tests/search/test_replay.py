"""The tabular benchmark on tables whose truth is known: recording, surrogate, noise, replays, and the command."""

from __future__ import annotations

import json
import math
import random
import re
import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from laboratory import Killed, Laboratory, make_preset
from rich.console import Console
from typer.testing import CliRunner

from poise_core.archive import Archive, ArchiveError
from poise_core.archive.cells import CellRow, TableHead, once_each, read_cells, together, write_cells
from poise_core.cli import app
from poise_core.config import Preset, load_preset
from poise_core.evaluation.results import SeedEvaluation
from poise_core.evolution.ladder import judged_by
from poise_core.experiments import replay as replays
from poise_core.experiments import surrogate as surrogates
from poise_core.experiments.contest import Contest, Kept, arms_of, replay_arms, require_same_proxy
from poise_core.experiments.recording import (
    draw_design,
    joined,
    measured_seeds,
    record_table,
    recorded_cells,
    table_of_run,
)
from poise_core.experiments.replay import ReplayArm, ReplayedSearch
from poise_core.experiments.surrogate import (
    Cells,
    SeedNoiseModel,
    Surrogate,
    TableError,
    find_optimum,
)
from poise_core.experiments.world import World
from poise_core.failures import CandidateFailure, FailureKind, InfrastructureError
from poise_core.mechanisms.composition import GRPO, Composition, compose
from poise_core.mechanisms.conflicts import conflicts
from poise_core.mechanisms.features import encode_all
from poise_core.mechanisms.operators import random_composition
from poise_core.render.markdown import replays_section
from poise_core.render.terminal.arms import render_replays
from poise_core.run_directory import RunDirectory, RunDirectoryError
from poise_core.search.references import reference_set
from poise_core.views.arms import compare_replays

ROOT = Path(__file__).parents[2]
WEIGHTS = {"greedy": 0.4, "pass": 0.6}
DYNAMICS = {"proxy_completion_length": 20.0, "proxy_entropy": 0.1, "proxy_kl": 0.2}
PRESET = load_preset("laptop", ["search.parents=2", "search.seeds_per_candidate=2"])


def true_overall(composition: Composition) -> float:
    """Main effects of a few choices, one number, and one pair that is worth more than its parts."""
    of = composition.choices
    value = 70.0
    value += {"none": 2.0, "group_std": 0.0}.get(of["scale"], -1.0)
    value += {"damp_negative": 3.0, "none": 0.0}.get(of["bound"], 1.0)
    value += {"token-mean": 1.5}.get(of["aggregation"], 0.0)
    value -= 2.0 * (of["entropy"] != "none")
    value += 3.0 * (of["kl"] == "none" and of["routing"] == "all")
    return value


def made_up_rows(cells: int, std: float, seeds: int = 2, wild: float = 0.0, collapsing: float = 0.0) -> list[CellRow]:
    """A recorded table of ``true_overall``; shares of the cells have three times the noise, or collapse at one seed."""
    rng = np.random.default_rng(1)
    rows = []
    for number, composition in enumerate([GRPO, *draw_design(cells)]):
        own = std * (3.0 if rng.random() < wild else 1.0)
        falls = rng.random() < collapsing
        for seed in range(seeds):
            overall = true_overall(composition) + own * float(rng.normal()) - 30.0 * (falls and seed == 0)
            split = std * float(rng.normal())
            rows.append(
                CellRow(
                    number, "random" if number else "baseline", f"CELL-{number:04d}", composition.choices,
                    composition.parameters, seed, overall,
                    {"greedy": overall + 0.6 * split, "pass": overall - 0.4 * split}, 1000, 400,
                    {"proxy_reward_mean": 0.5 + overall / 1000, **DYNAMICS},
                )
            )  # fmt: skip
    return rows


def head(**changes: object) -> TableHead:
    return replace(TableHead("made-up", "f00d", WEIGHTS, 0, 300, 30, 10), **changes)  # type: ignore[arg-type]


@lru_cache(maxsize=4)
def world(std: float, cells: int = 100) -> World:
    return World.build(Cells.of(head(), made_up_rows(cells, std)))


# ---- the file


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = [*made_up_rows(3, 1.0), CellRow(9, "random", "CELL-0009", {"scale": "none"}, {}, failure="rejected")]
    path = tmp_path / "deep" / "table.parquet"
    write_cells(path, head(), rows[::-1])
    assert read_cells(path) == (head(), rows)
    path.write_bytes(b"something else")
    with pytest.raises(ArchiveError, match="cannot be read as a table of cells"):
        read_cells(path)
    write_cells(path, head(version=99), rows)
    with pytest.raises(ArchiveError, match="later version"):
        read_cells(path)


def test_tables_of_one_protocol_are_one() -> None:
    """The second has the baseline with one seed more, the first's cell 2 under another number, and a cell of its own."""
    rows = made_up_rows(3, 1.0)
    baseline, third = [row for row in rows if row.cell == 0], [row for row in rows if row.cell == 2]
    new = made_up_rows(4, 1.0)[-1]
    other = [
        replace(baseline[0], overall=1.0),
        replace(baseline[0], seed=2),
        replace(third[0], cell=1, seed=7),
        replace(new, cell=2),
        replace(
            new, cell=3, seed=None, overall=None, choices=rows[2].choices, numbers=rows[2].numbers, failure="diverged"
        ),
    ]
    found, both = together({"a": (head(), rows), "b": (head(planned=0), other)})
    assert (found.baseline, found.planned) == (0, 300)
    assert sorted((row.cell, row.seed, row.failure) for row in both if row.cell != 1) == [
        (0, 0, None), (0, 1, None), (0, 2, None), (2, 0, None), (2, 1, None), (2, 7, None), (3, 0, None), (3, 1, None),
        (4, new.seed, None),
    ]  # fmt: skip
    assert [row.failure for row in both if row.cell == 1] == ["diverged"], "which counts for what others measured"
    assert next(row.overall for row in both if (row.cell, row.seed) == (0, 0)) == baseline[0].overall
    assert next(row.overall for row in both if row.cell == 4) == new.overall
    with pytest.raises(ArchiveError, match="b: another proxy steps than a; tables are not mixed"):
        together({"a": (head(), rows), "b": (head(proxy_steps=3), other)})
    swapped, _ = together({"b": (head(baseline=-1), other[2:]), "a": (head(), rows)})
    assert swapped.baseline == max(row.cell for row in other) + 1, "the baseline of the first table that has one"


def test_a_cell_has_every_seed_once() -> None:
    zero, one, again = (
        replace(made_up_rows(1, 0.0)[0], seed=seed, overall=70.0 + n) for n, seed in enumerate((0, 1, 0))
    )
    assert once_each([zero, one, again]) == [zero, one], "the first of a seed counts, in its place"
    assert once_each([again, one, zero]) == [again, one]
    failed = replace(zero, seed=None, overall=None, failure="nan_loss")
    assert once_each([zero, failed, one]) == [failed]
    assert once_each([]) == []


@pytest.mark.slow
def test_the_published_run_is_a_table_whose_overalls_are_those_of_its_benchmarks() -> None:
    found, rows = table_of_run(RunDirectory.read(ROOT / "docs" / "results" / "laptop-64"))
    assert len({row.cell for row in rows}) == 46
    assert (found.baseline, rows[0].name, rows[0].composition) == (0, "GRPO", GRPO.model_dump(mode="json"))
    for row in rows:
        assert row.overall == pytest.approx(sum(found.weights[name] * score for name, score in row.benchmarks.items()))
        assert row.tokens is not None
        assert row.proxy_tokens is not None
        assert 0 < row.proxy_tokens < row.tokens
        assert {"proxy_kl", "final_entropy"} < row.dynamics.keys()


# ---- the recording


def test_a_part_of_the_design_is_the_beginning_of_the_whole() -> None:
    few, many = list(draw_design(5)), list(draw_design(12))
    assert many[:5] == few
    assert len({one.key for one in many}) == 12
    assert not any(conflicts(one) for one in many)
    assert list(draw_design(5, seed=1)) != few


def record(folder: Path, cells: int = 4, **resources: int) -> tuple[int, list[CellRow]]:
    preset = make_preset(resources={"parallel_candidates": 1, **resources})
    with RunDirectory.open(folder, preset) as run:
        scored = record_table(run, cells, (0, 1))
        return scored, table_of_run(run, cells)[1]


def test_the_published_table_is_of_the_compositions_that_are_drawn_now() -> None:
    """Whoever changes what a seed draws, or what conflicts, would cut the table off from its design."""
    cells = recorded_cells(ROOT / "docs" / "results" / "table.parquet", load_preset("laptop-64"))
    assert len(cells) == 401


@pytest.mark.slow
def test_a_recording_goes_on_after_a_kill_and_trains_nothing_twice(tmp_path: Path) -> None:
    with Laboratory() as quiet:
        whole = record(tmp_path / "whole")
        assert len(quiet.trained) == len(set(quiet.trained)) == 10
    with Laboratory() as laboratory:
        laboratory.fail["CELL-0002"] = Killed()
        with pytest.raises(Killed):
            record(tmp_path / "killed")
        assert not [name for name in laboratory.trained if name.startswith("CELL-0004")]
        laboratory.fail.clear()
        again = record(tmp_path / "killed")
        assert sorted(laboratory.steps) == sorted(set(laboratory.steps)) == sorted(quiet.steps)
        record(tmp_path / "killed")
        assert len(laboratory.steps) == len(quiet.steps)

    def content(rows: list[CellRow]) -> list[CellRow]:
        return [replace(row, seconds=None) for row in rows]

    assert (again[0], content(again[1])) == (whole[0], content(whole[1]))
    assert [row.design for row in whole[1]] == ["baseline"] * 2 + ["random"] * 8
    assert whole[0] == 5


@pytest.mark.slow
def test_a_recording_goes_on_from_its_table_alone(tmp_path: Path) -> None:
    table, preset = tmp_path / "table.parquet", make_preset()
    assert recorded_cells(table, preset) == {}
    with Laboratory() as quiet:
        _, whole = record(tmp_path / "whole")
    with Laboratory(), RunDirectory.open(tmp_path / "first", preset) as run:
        record_table(run, 2, (0, 1))
        head, rows = table_of_run(run, 4)
    one_seed = [row for row in rows if (row.cell, row.seed) != (2, 1)]
    write_cells(table, head, one_seed)
    earlier = recorded_cells(table, preset)
    known = measured_seeds(earlier, (0, 1))
    assert known == {0: {0, 1}, 1: {0, 1}, 2: {0}}
    with Laboratory() as laboratory, RunDirectory.open(tmp_path / "second", preset) as run:
        record_table(run, 4, (0, 1), known=known)
        trained = sorted((name.partition("/")[0][:9], int(name.rpartition("/")[2])) for name in laboratory.trained)
        assert trained == [("CELL-0002", 1), ("CELL-0003", 0), ("CELL-0003", 1), ("CELL-0004", 0), ("CELL-0004", 1)]
        head, both = joined(table_of_run(run, 4), earlier)
    assert head.baseline == 0
    both.sort(key=lambda row: (row.cell, row.seed or 0))
    assert [replace(row, seconds=None) for row in both] == [replace(row, seconds=None) for row in whole]
    assert quiet.trained
    with pytest.raises(ArchiveError, match="cell 1 is another composition than design 7 draws"):
        recorded_cells(table, preset, design_seed=7)
    longer = preset.protocol.model_copy(update={"seeds": (0, 1, 2, 3, 4, 5)})
    other = preset.model_copy(update={"protocol": longer})
    with pytest.raises(ArchiveError, match="tables are not mixed, name another file"):
        recorded_cells(table, other)


@pytest.mark.slow
def test_a_recording_with_more_seeds_keeps_the_cells_that_it_does_not_come_to(tmp_path: Path) -> None:
    """A table of four cells with one seed; two seeds are asked for on another machine, which measures the first of them only."""
    table, preset = tmp_path / "table.parquet", make_preset(resources={"parallel_candidates": 1})
    with Laboratory(), RunDirectory.open(tmp_path / "first", preset) as run:
        record_table(run, 4, (0,))
        head, rows = table_of_run(run, 4)
        write_cells(table, head, rows)
    earlier = recorded_cells(table, preset)
    assert set(measured_seeds(earlier, (0, 1)).values()) == {frozenset({0})}
    failed = {7: [replace(made_up_rows(1, 1.0)[0], overall=None, seed=None, failure="diverged")]}
    assert measured_seeds(failed, (0, 1)) == {7: {0, 1}}, "what failed is not tried again"
    with Laboratory() as laboratory, RunDirectory.open(tmp_path / "second", preset) as run:
        laboratory.fail["CELL-0001"] = CandidateFailure(FailureKind.DIVERGED, "train", "NaN")
        record_table(run, 2, (1,))
        found = joined(table_of_run(run, 2), earlier)
    assert (found[0].baseline, found[0].planned) == (0, 2)
    assert sorted((row.cell, row.seed, row.failure) for row in found[1] if row.cell != 1) == [
        (0, 0, None), (0, 1, None), (2, 0, None), (2, 1, None), (3, 0, None), (4, 0, None)
    ]  # fmt: skip
    assert [(row.seed, row.failure) for row in found[1] if row.cell == 1] == [(None, "diverged")], "as a run counts it"


def test_the_table_of_a_search_is_no_recording_to_go_on_with(tmp_path: Path) -> None:
    """It has candidates that are no cells of a design, which a recording into the same file would drop."""
    preset, table = make_preset(), tmp_path / "table.parquet"
    searched = replace(made_up_rows(1, 1.0)[0], design="run")
    write_cells(table, head(protocol=preset.protocol.digest), [searched])
    with pytest.raises(ArchiveError, match="made of a search, and is no recording; name another file"):
        recorded_cells(table, preset)


@pytest.mark.slow
def test_an_evaluation_that_was_not_timed_hides_no_seconds_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluations = Archive.evaluations

    def untimed(self: Archive, **given: Any) -> dict[str, list[SeedEvaluation]]:
        found = evaluations(self, **given)
        return {name: [replace(one, seconds=math.nan) for one in own] for name, own in found.items()}

    monkeypatch.setattr(Archive, "evaluations", untimed)
    with Laboratory():
        _, rows = record(tmp_path / "run", cells=1)
    assert all(row.seconds is not None and math.isfinite(row.seconds) for row in rows)


@pytest.mark.slow
def test_a_cell_that_fails_is_a_row_with_its_failure_and_a_machine_that_fails_stops(tmp_path: Path) -> None:
    with Laboratory(refuse=lambda name, source: "made up" if name == "CELL-0001" else None) as laboratory:
        laboratory.fail["CELL-0003"] = CandidateFailure(FailureKind.DIVERGED, "train", "NaN")
        scored, rows = record(tmp_path / "run")
        assert scored == 3
        assert {row.cell: (row.failure, row.overall) for row in rows if row.failure} == {
            1: ("rejected", None), 3: ("diverged", None),
        }  # fmt: skip
        laboratory.fail["CELL-0005"] = InfrastructureError("the disk is full")
        with pytest.raises(InfrastructureError):
            record(tmp_path / "run", cells=5, infrastructure_retries=0)


def test_the_baseline_of_a_table_has_the_tuned_numbers(tmp_path: Path) -> None:
    tuned = make_preset().model_dump()
    tuned["baseline"]["hyperparameters"] = {"kl_coef": 0.03, "entropy_coef": 3e-4}
    with Laboratory(), RunDirectory.open(tmp_path / "run", Preset.model_validate(tuned)) as run:
        record_table(run, 1, (0,))
        (row,) = (row for row in table_of_run(run, 1)[1] if row.design == "baseline")
    assert (row.choices["kl"], row.choices["entropy"]) == ("k3", "bonus")
    assert (row.numbers["kl_coef"], row.numbers["entropy_coef"]) == (0.03, 3e-4)


def test_a_recording_has_one_baseline(tmp_path: Path) -> None:
    """Numbers that `poise tune` has found meanwhile are another one, and beside the first it would be cell 1, which is taken."""
    document = make_preset().model_dump()
    document["baseline"]["hyperparameters"] = {"kl_coef": 0.03}
    tuned, table = Preset.model_validate(document), tmp_path / "table.parquet"
    with Laboratory(), RunDirectory.open(tmp_path / "run", make_preset()) as run:
        record_table(run, 1, (0,))
        write_cells(table, *table_of_run(run, 1))
    assert sorted(recorded_cells(table, make_preset())) == [0, 1]
    with pytest.raises(ArchiveError, match="its baseline has other numbers than the preset's now; name another file"):
        recorded_cells(table, tuned)
    with Laboratory() as laboratory, RunDirectory.open(tmp_path / "run", tuned) as run:
        with pytest.raises(RunDirectoryError, match="has another baseline or other numbers than the preset's now"):
            record_table(run, 1, (0,))
        assert laboratory.trained == []


# ---- the surrogate


def overall_of(fitted: Surrogate, composition: Composition) -> float:
    """What a surrogate predicts for one composition, percent."""
    return float(fitted.predict(*encode_all([composition]))[0] @ fitted.cells.weights)


def test_the_explicit_form_is_the_kernel_regression() -> None:
    cells = Cells.of(head(), made_up_rows(40, 1.0))
    fitted = Surrogate.with_settings(cells, 0.4, 0.1)
    kernel = surrogates._kernel(cells, cells, 0.4)
    alpha = np.linalg.solve(kernel + 0.1 * np.eye(41), cells.line - cells.line.mean(axis=0))
    line = kernel @ alpha + cells.line.mean(axis=0)
    assert fitted.effects.at(cells.codes, cells.numbers) == pytest.approx(line)


def test_a_prediction_is_the_mean_of_the_regression_and_of_the_trees() -> None:
    """On the logit scale, so it lies between the two; every leaf holds one cell, so the trees know the recorded ones by heart."""
    cells = Cells.of(head(), made_up_rows(40, 1.0))
    fitted = Surrogate.with_settings(cells, 0.4, 0.1)
    by_pairs = fitted.effects.at(cells.codes, cells.numbers)
    assert fitted.at(cells.codes, cells.numbers) == pytest.approx(0.5 * (by_pairs + cells.line), abs=1e-9)
    new = encode_all([random_composition(random.Random(number)) for number in range(20)])
    assert fitted.at(*new) == pytest.approx(0.5 * (fitted.effects.at(*new) + fitted.forest.predict(*new)))
    assert fitted.predict(*new) == pytest.approx(surrogates.from_line(fitted.at(*new), cells.weights))
    alone = [fitted.at(codes[None], numbers[None])[0] for codes, numbers in zip(*new, strict=True)]
    assert fitted.at(*new) == pytest.approx(np.array(alone)), "one at a time is the same"


def test_scores_are_fitted_as_logits_and_other_outputs_as_they_are() -> None:
    """By hand: 50 % is log(51 / 51) = 0; 100 % is log 101, and the slope there 102 / (101 * 1); tokens stay."""
    weights = np.array([0.6, 0.4, 0.0])
    values = np.array([[50.0, 100.0, 11.0], [0.0, 20.0, -3.0]])
    line = surrogates.to_line(values, weights)
    assert line[0] == pytest.approx([0.0, math.log(101.0), 11.0])
    assert surrogates.from_line(line, weights) == pytest.approx(values)
    slope = surrogates.slope_of_line(values, weights)
    assert slope[0] == pytest.approx([102.0 / 51.0**2, 102.0 / 101.0, 1.0])
    inside = np.array([30.0, 70.0, 5.0])
    step = (surrogates.to_line(inside + 1e-4, weights) - surrogates.to_line(inside - 1e-4, weights)) / 2e-4
    assert surrogates.slope_of_line(inside, weights) == pytest.approx(step, rel=1e-6)
    far = surrogates.from_line(np.full((2, 3), 50.0) * np.array([[1], [-1]]), weights)
    assert (far[:, :2].max(), far[:, :2].min()) == pytest.approx((101.0, -1.0)), "whatever adds up, a score is a share"


def test_leave_one_out_errors_are_those_of_leaving_out() -> None:
    """The centre stays that of all cells, as the formula has it."""
    cells = Cells.of(head(), made_up_rows(12, 1.0))
    kernel, mean = surrogates._kernel(cells, cells, 0.2), cells.line.mean(axis=0)
    for i, predicted in enumerate(surrogates._left_out(cells, cells.line, 0.2, 0.3)):
        rest = np.arange(13) != i
        inside = kernel[np.ix_(rest, rest)] + 0.3 * np.eye(12)
        assert predicted == pytest.approx(mean + kernel[i, rest] @ np.linalg.solve(inside, cells.line[rest] - mean))


@pytest.mark.exhaustive
def test_the_surrogate_finds_known_effects_up_to_the_ceiling_of_the_noise() -> None:
    cells = Cells.of(head(), made_up_rows(250, 1.5))
    fit = World.build(cells).fit
    true = np.array([true_overall(one) for one in cells.compositions])
    assert fit.seed_std == pytest.approx(1.5, rel=0.1)
    assert fit.ceiling == pytest.approx(true.var() / (true.var() + 1.5**2 / 2), abs=0.05)
    assert 0.75 * fit.ceiling < fit.r2 < fit.ceiling
    assert fit.rank_correlation > 0.75
    assert (fit.cells, fit.failed, fit.fallen, fit.collapses, fit.trainings) == (251, 0, 0, 0, 502)
    assert math.isnan(fit.fall_auc)
    cells = Cells.of(head(), made_up_rows(600, 1.5))
    fitted = Surrogate.fit(cells)

    def predicted(**choices: str) -> float:
        return overall_of(fitted, compose(**choices))

    together = predicted(kl="none", routing="all") - predicted(kl="k3", routing="all")
    apart = predicted(kl="none", routing="hard_weighted") - predicted(kl="k3", routing="hard_weighted")
    assert together - apart > 0.7, "a pair is worth more than its parts; it is shrunken from 3"


def with_a_cliff(rows: list[CellRow]) -> list[CellRow]:
    """The same where all compositions with one kind of entropy bonus fall, and one seed of cell 5 of those that do not."""
    falls = {row.cell: row.choices["entropy"] == "bonus" for row in rows}
    changed = [40.0 * (falls[row.cell] or (row.cell == 5 and row.seed == 0)) for row in rows]
    return [
        replace(row, overall=(row.overall or 0.0) - lost, benchmarks={k: v - lost for k, v in row.benchmarks.items()})
        for row, lost in zip(rows, changed, strict=True)
    ]


@pytest.mark.slow
def test_which_compositions_fall_is_a_part_of_its_own_that_hides_no_difference_between_the_others() -> None:
    """Every entropy bonus costs 40 points. What the others score is fitted as if these had not been recorded, and as if the one
    training of another cell that collapsed had not been, either."""
    rows = made_up_rows(150, 1.0)
    cells = Cells.of(head(), with_a_cliff(rows))
    bonus = np.array([one.choices["entropy"] == "bonus" for one in cells.compositions])
    assert cells.compositions[5].choices["entropy"] != "bonus"
    assert cells.fallen.astype(bool).tolist() == bonus.tolist(), "and not the cell that fell with one seed of two"
    some = World.build(cells)
    kept = [row for row in with_a_cliff(rows) if (row.cell, row.seed) != (5, 0)]
    alone = Surrogate.fit(Cells.of(head(), kept).subset(np.flatnonzero(~bonus)))
    assert some.surrogate.effects.main == pytest.approx(alone.effects.main)
    assert (some.fit.fallen, some.fit.cells) == (bonus.sum(), 151)
    assert some.fit.fall_auc > 0.95
    assert some.fit.r2 > 0.3
    drawn = [one for one in draw_design(300, seed=5) if one.key not in some._recorded]
    found = np.array([some.draw(one, str(n), (0, n), 2).truth for n, one in enumerate(drawn)])
    falls = np.array([one.choices["entropy"] == "bonus" for one in drawn])
    assert (found[falls] < 50.0).mean() > 0.6
    assert (found[~falls] < 50.0).mean() < 0.1
    risks = some.risk.of(*encode_all(drawn))
    assert (found < 50.0).mean() == pytest.approx(risks.mean(), abs=0.06), "as often as they are told to"


def test_a_composition_that_was_recorded_falls_as_it_did() -> None:
    cells = Cells.of(head(), with_a_cliff(made_up_rows(40, 1.0)))
    some = World.build(cells)
    for row, one in enumerate(cells.compositions):
        for number in range(3):
            assert (some.draw(one, str(number), (0, number), 2).truth < 50.0) == bool(cells.fallen[row])
    assert not some._recorded[GRPO.key]


def test_scores_alike_do_not_fall() -> None:
    """Where half of the cells score the same, there is no spread of the bulk to be below."""
    rows = [replace(row, overall=70.0, benchmarks={"greedy": 70.0, "pass": 70.0}) for row in made_up_rows(30, 1.0)]
    rows[-1] = replace(rows[-1], overall=10.0, benchmarks={"greedy": 10.0, "pass": 10.0})
    cells = Cells.of(head(), rows)
    assert not cells.fallen.any()
    assert surrogates.FallRisk.fit(cells).of(cells.codes[:1], cells.numbers[:1]) == [0.0]


@pytest.mark.slow
def test_permuted_scores_are_not_predicted() -> None:
    rows = made_up_rows(80, 0.5)
    rng = np.random.default_rng(0)
    shuffled = [rows[i] for i in rng.permutation(len(rows))]
    mixed = [
        replace(row, overall=other.overall, benchmarks=other.benchmarks)
        for row, other in zip(rows, shuffled, strict=True)
    ]
    cells = Cells.of(head(), mixed)
    fit = World.build(cells).fit
    assert fit.r2 < 0.1
    assert abs(fit.rank_correlation) < 0.25


@pytest.mark.slow
def test_the_optimum_has_the_best_known_choices_and_beats_whatever_is_drawn() -> None:
    fitted = world(0.0).surrogate
    optimum = find_optimum(fitted)
    of = optimum.composition.choices
    assert (of["bound"], of["entropy"], of["scale"], of["aggregation"]) == (
        "damp_negative",
        "none",
        "none",
        "token-mean",
    )
    assert (of["kl"], of["routing"]) == ("none", "all")
    assert not conflicts(optimum.composition)
    assert optimum.agreement > 0.2
    assert overall_of(fitted, optimum.composition) == pytest.approx(optimum.overall)
    drawn = [random_composition(random.Random(i)) for i in range(500)]
    assert max(overall_of(fitted, one) for one in drawn) <= optimum.overall + 1e-9


def test_too_small_a_table_is_refused_in_one_line() -> None:
    with pytest.raises(TableError, match="3 cells have a score; a surrogate needs 6"):
        Cells.of(head(), made_up_rows(2, 1.0))


# ---- the noise


def drawn_overalls(some: World, count: int = 600, seeds: int = 6) -> np.ndarray:
    """(count, seeds) Overall minus its truth."""
    compositions = [*draw_design(30, seed=5)]
    found = []
    for number in range(count):
        composition = compositions[number % 30]
        drawn = some.draw(composition, str(number), (0, number), seeds)
        found.append(drawn.values @ some.cells.weights - drawn.truth)
    return np.array(found)


@pytest.mark.exhaustive
def test_replayed_noise_has_the_measured_size_and_is_unequal_where_that_was() -> None:
    even = drawn_overalls(world(1.5))
    assert even.std() == pytest.approx(1.5, rel=0.1)
    assert abs(even.mean()) < 0.1
    wild = World.build(Cells.of(head(), made_up_rows(150, 1.0, seeds=4, wild=0.2)))
    uneven = drawn_overalls(wild)
    assert uneven.std() == pytest.approx(math.sqrt(0.8 + 0.2 * 9), rel=0.2)

    def tail(values: np.ndarray) -> float:
        own = values.std(axis=1, ddof=1)
        return float(np.quantile(own, 0.95) / np.median(own))

    assert tail(uneven) > 1.2 * tail(even)


@pytest.mark.slow
def test_collapses_are_counted_passed_on_and_zero_on_average() -> None:
    """A tenth of 151 cells lose 30 points at one of two seeds: 5 % of the trainings."""
    cells = Cells.of(head(), made_up_rows(150, 1.0, collapsing=0.1))
    noise = SeedNoiseModel.learn(cells)
    assert noise.collapses == pytest.approx(15, abs=8)
    assert math.sqrt(noise.pooled_variance) == pytest.approx(1.0, rel=0.15), "they are no seed noise"
    values = drawn_overalls(World.build(cells))
    assert abs(values.mean()) < 0.5
    assert (values < -10.0).mean() == pytest.approx(noise.collapses / 302, rel=0.5)


# ---- replays


def contest(some: World, trainings: float = 40, seed: int = 0) -> Contest:
    return Contest.of(some, PRESET.search, trainings, seed)


@pytest.mark.slow
def test_random_has_the_regret_of_the_order_statistic() -> None:
    """Without noise the pick is the best of the baseline and n draws: E max = sum over sorted values v_i of
    v_i ((i / M)^n - ((i - 1) / M)^n), every value raised to the baseline's at least; n = 10 children, M = 1,500."""
    some = world(0.0)
    fitted = some.surrogate
    pool = np.array([overall_of(fitted, random_composition(random.Random(f"x{i}"))) for i in range(1500)])
    base = overall_of(fitted, GRPO)
    ranks = np.arange(1501) / 1500
    expected = float((np.sort(np.maximum(pool, base)) * (ranks[1:] ** 10 - ranks[:-1] ** 10)).sum())
    arm = ReplayArm("random", selector="root", proposer="random")
    found = contest(some, trainings=20).regrets(arm, range(60))[:, -1]
    error = found.std(ddof=1) / math.sqrt(len(found))
    assert found.mean() == pytest.approx(some.optimum.overall - expected, abs=4 * error + 0.05)


@pytest.mark.slow
def test_who_knows_the_optimum_has_no_regret(monkeypatch: pytest.MonkeyPatch) -> None:
    some = world(0.0)
    monkeypatch.setitem(replays.PROPOSERS, "oracle", lambda rng, baseline: some.optimum.composition)
    curve = contest(some).regrets(ReplayArm("oracle", selector="root", proposer="oracle"), range(3))
    assert curve[:, -1] == pytest.approx([0.0] * 3, abs=1e-9)
    assert (curve >= -1e-9).all()


@pytest.mark.exhaustive
def test_a_selector_that_sees_the_truth_is_better_than_one_that_sees_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    some = world(4.0)
    greedy = ReplayArm("greedy", selector="greedy", plateau=False)
    blind = contest(some, 30).regrets(greedy, range(30))[:, -1]

    def best_in_truth(self: ReplayedSearch, table: object, stalled: bool, generation: int) -> list[int]:
        return [int(np.argmax([node.drawn.truth for node in self.nodes]))] * 2

    monkeypatch.setattr(ReplayedSearch, "_parents", best_in_truth)
    monkeypatch.setattr(
        ReplayedSearch,
        "_note",
        lambda self, table: self.steps.append((self.tokens, max(n.drawn.truth for n in self.nodes))),
    )
    assert contest(some, 30).regrets(greedy, range(30))[:, -1].mean() < blind.mean() - 1.0


@pytest.mark.exhaustive
def test_every_ablation_changes_the_search() -> None:
    short = ["search.seeds_per_candidate=2", "search.parents=2", "search.immigrants=0", "search.opening=0"]
    arms = arms_of(load_preset("laptop-64", short))
    assert {
        "evolution",
        "random",
        "tune",
        "greedy",
        "best-of-n",
        "no potential",
        "no crossover",
        "no plateau rule",
        "no promise",
        "promise of few draws",
        "with an immigrant",
        "immigrants alone",
        "with an opening",
        "no ladder",
    } < arms.keys()
    one = Contest.of(world(1.5), PRESET.search, 30)
    whole = one.regrets(arms["evolution"], range(6))
    same = [
        name for name, arm in arms.items() if name != "evolution" and np.array_equal(one.regrets(arm, range(6)), whole)
    ]
    assert same in ([], ["stopped children left out"]), "few replays may stop no child before its first training"


def test_a_replay_climbs_the_ladder_that_a_run_climbs() -> None:
    """Where pass@k is scored, no reward may stop a child; a replay of the same preset has to agree."""
    asked = ["ladder.enabled=true", "ladder.proxy_steps=2", "ladder.proxy_window=1", "ladder.proxy_stop_below=0.3"]
    sampled, single = load_preset("smoke", asked), load_preset("smoke", asked)
    greedy = tuple(one for one in single.protocol.benchmarks if one.single_sample)
    single = single.model_copy(update={"protocol": single.protocol.model_copy(update={"benchmarks": greedy})})
    assert (sampled.protocol.scored_by_reward, single.protocol.scored_by_reward) == (False, True)
    for preset, below in ((sampled, 0.0), (single, 0.3)):
        ladders = [arm.ladder for arm in arms_of(preset).values() if arm.ladder is not None]
        assert {ladder.proxy_stop_below for ladder in ladders} == {below}
        assert set(ladders) == {judged_by(preset.ladder, preset.protocol)}
        switched = preset.model_copy(update={"ladder": preset.ladder.model_copy(update={"enabled": False})})
        assert arms_of(switched)["with a ladder"].ladder == judged_by(preset.ladder, preset.protocol)


def test_a_replay_decides_at_the_recorded_proxy_or_at_none() -> None:
    """Without a proxy nobody ends there, and a proxy that the table does not know is refused."""
    ladder = PRESET.ladder.model_copy(update={"enabled": True, "forecast_stop_below": 0.4})
    ends = {}
    for steps in (7, 0):
        arm = replace(arms_of(PRESET)["evolution"], ladder=ladder.model_copy(update={"proxy_steps": steps}))
        search = ReplayedSearch(world(1.5), arm, PRESET.search, 60_000.0, (0, 0))
        search.run()
        ends[steps] = sum(node.stopped for node in search.nodes)
    assert ends[7] > 0
    assert ends[0] == 0
    own = head()
    require_same_proxy(
        ladder.model_copy(update={"proxy_steps": own.proxy_steps, "proxy_window": own.proxy_window}), own
    )
    require_same_proxy(ladder.model_copy(update={"proxy_steps": 0}), own)
    with pytest.raises(TableError, match=f"ladder.proxy_steps={own.proxy_steps} "):
        require_same_proxy(ladder.model_copy(update={"proxy_steps": own.proxy_steps + 1}), own)


@pytest.mark.slow
def test_donors_are_the_references_of_a_run() -> None:
    search = ReplayedSearch(world(1.5), arms_of(PRESET)["evolution"], PRESET.search, 60_000.0, (0, 0))
    search.run()
    assert any(len(node.parents) > 1 for node in search.nodes), "a donor is an ancestor, too"
    table, records = search._table(), search._records(search._table())
    for row in np.flatnonzero(table.scored).tolist():
        for generation in range(3):
            seed = zlib.crc32(f"{search.address}/{generation}/0".encode())
            asked = {int(one.candidate_id) for one in reference_set(records, table.ids[row], seed=seed)}
            assert set(search._donors(table, row, generation, 0)) == asked


@pytest.mark.slow
def test_replays_depend_on_their_seed_alone() -> None:
    arms = arms_of(PRESET)
    chosen = [arms["evolution"], arms["random"]]
    once = replay_arms(contest(world(1.5), 20), chosen, 4)
    again = replay_arms(contest(world(1.5), 20), chosen, 4)
    other = replay_arms(contest(world(1.5), 20, seed=1), chosen, 4)
    for name, curves in once.items():
        assert curves.shape == (4, 60)
        assert np.array_equal(curves, again[name])
        assert not np.array_equal(curves, other[name])
    assert np.array_equal(contest(world(1.5), 20).regrets(arms["evolution"], [2])[0], once["evolution"][2])


@pytest.mark.slow
def test_a_contest_that_was_killed_goes_on_with_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = arms_of(PRESET)
    chosen, one = [arms["random"], arms["greedy"]], contest(world(1.5), 10)
    expected = replay_arms(one, chosen, 60)
    kept, made, done = Kept.of(tmp_path, b"table", 0.0, one), list[tuple[str, int]](), list[int]()
    plain = Contest.regrets

    def dies(self: Contest, arm: ReplayArm, replays: Sequence[int], after: int = 3) -> Any:
        if len(made) == after:
            raise KeyboardInterrupt
        made.append((arm.name, replays[0]))
        return plain(self, arm, replays)

    monkeypatch.setattr(Contest, "regrets", dies)
    with pytest.raises(KeyboardInterrupt):
        replay_arms(one, chosen, 60, kept=kept)
    monkeypatch.setattr(Contest, "regrets", partialmethod(dies, after=-1))
    found = replay_arms(one, chosen, 60, kept=kept, on_replays=done.append)
    assert len(made) == len(set(made)) == 6, "three parts of either arm, none of them twice"
    assert done == [75, 25, 10, 10]
    for name, curves in expected.items():
        assert np.array_equal(curves, found[name])
    for other in (Kept.of(tmp_path, b"other", 0.0, one), Kept.of(tmp_path, b"table", 1.0, one)):
        assert other.read((chosen[0], range(25))) is None, "of another table, or another world"
    assert kept.read((replace(chosen[0], crossover=False), range(25))) is None, "of another arm of that name"
    assert kept.read((chosen[0], range(25))) is not None


@pytest.mark.exhaustive
def test_workers_change_nothing(tmp_path: Path) -> None:
    arms = arms_of(PRESET)
    one = contest(world(1.5), 10)
    chosen = [arms["random"], arms["greedy"]]
    for name, curves in replay_arms(one, chosen, 30, workers=2).items():
        assert np.array_equal(curves, replay_arms(one, chosen, 30)[name])


@pytest.mark.slow
def test_a_budget_is_kept_and_failures_cost_but_never_count(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        *made_up_rows(60, 1.0),
        *(CellRow(100 + i, "random", "X", GRPO.choices, {}, failure="diverged") for i in range(60)),
    ]
    some = World.build(Cells.of(head(), rows))
    assert some.failure_share == pytest.approx(60 / 121)
    search = ReplayedSearch(some, arms_of(PRESET)["random"], PRESET.search, 41_000.0, (0, 0))
    steps = search.run()
    failed = [node for node in search.nodes if node.drawn.failed]
    assert 5 < len(failed) < len(search.nodes) - 5
    assert all(len(node.values) == 0 for node in failed)
    spent = sum((1 if node in failed else 2) * node.drawn.tokens for node in search.nodes)
    assert steps[-1][0] == pytest.approx(spent)
    assert 41_000 <= steps[-1][0] < 41_000 + 2 * 2 * 1100


# ---- comparing


def test_tokens_to_the_same_regret_by_hand() -> None:
    """Random falls from 8 to 4 over tokens 1 to 5 (1 per token); the arm from 8 to 4 over 1 to 3. Both reach 4: 5 / 3."""
    tokens = np.arange(1.0, 6.0)
    random_curve, arm_curve = np.array([8.0, 7, 6, 5, 4]), np.array([8.0, 6, 4, 4, 4])
    worse = np.array([8.0, 7.5, 7, 6.5, 6])  # reaches 6 at 5; random does at 3
    rows = {
        row.arm: row
        for row in compare_replays(
            {n: np.tile(c, (4, 1)) for n, c in {"random": random_curve, "arm": arm_curve, "worse": worse}.items()},
            tokens,
        )
    }
    assert rows["arm"].ratio is not None
    assert rows["worse"].ratio is not None
    assert (rows["arm"].ratio.estimate, rows["worse"].ratio.estimate) == (pytest.approx(5 / 3), pytest.approx(3 / 5))
    assert rows["worse"].gap is not None
    assert rows["worse"].gap.estimate == 2.0
    assert rows["random"].gap is rows["random"].ratio is None
    noisy = np.random.default_rng(0).normal(0.0, 1.0, (200, 5))
    jagged = {name: curve + np.random.default_rng(1).normal(0.0, 1.0, (50, 5)) for name, curve in
              {"random": random_curve, "worse": worse, "arm": arm_curve}.items()}  # fmt: skip
    alone = {name: one for name, one in jagged.items() if name != "worse"}
    assert [row.ratio for row in compare_replays(alone, tokens) if row.arm == "arm"] == [
        row.ratio for row in compare_replays(jagged, tokens) if row.arm == "arm"
    ], "an arm's limits do not depend on which others are compared"
    spread = compare_replays({"random": random_curve + noisy, "arm": random_curve + noisy - 1.0}, tokens)
    best = spread[0]
    assert best.arm == "arm"
    assert best.gap is not None
    assert (best.gap.low, best.gap.high) == (pytest.approx(-1.0), pytest.approx(-1.0)), "paired: common luck cancels"
    parts = compare_replays({"evolution": arm_curve + noisy, "no part": arm_curve + noisy + 0.5}, tokens)
    assert parts[0].loss is None, "the whole search has lost no part"
    assert parts[1].loss is not None
    assert (parts[1].loss.low, parts[1].loss.high) == (pytest.approx(0.5), pytest.approx(0.5))
    assert parts[1].gap is None, "no arm to compare with"
    page = replays_section("Fit.", parts)
    assert "| no part | 4.63 [" in page
    assert page.rstrip().endswith("+0.50 [+0.50, +0.50] |")
    names, console = list(arms_of(load_preset("laptop-64"))), Console(width=80)
    with console.capture() as printed:
        console.print(render_replays(compare_replays(dict.fromkeys(names, arm_curve + noisy + 10.0), tokens)))
    words = {word for name in names for word in name.split()}
    assert words <= set(printed.get().split()), "80 columns leave room for every word of an arm's name"


# ---- selectors of users, and the command


def documented_selector() -> str:
    text = (ROOT / "docs" / "search.md").read_text()
    return re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]  # type: ignore[index]


def invoke(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    return done.exit_code, done.output


@pytest.fixture
def table(tmp_path: Path) -> Path:
    write_cells(tmp_path / "table.parquet", head(), made_up_rows(40, 1.0))
    return tmp_path / "table.parquet"


@pytest.mark.slow
def test_the_workers_of_a_killed_command_end_too(table: Path) -> None:
    given = ["compare-search", "--table", table, "--arm", "random", "--replays", 10**6, "--workers", 2]
    with subprocess.Popen(
        [Path(sys.executable).parent / "poise", *map(str, given)], stdout=subprocess.DEVNULL
    ) as command:
        below: list[psutil.Process] = []
        while sum(one.cpu_times().user > 1 for one in below) < 2:  # past their imports
            assert command.poll() is None
            time.sleep(0.2)
            below = psutil.Process(command.pid).children(recursive=True)
        command.kill()
    assert psutil.wait_procs(below, timeout=30)[1] == []


@pytest.mark.slow
def test_the_documented_selector_is_replayed(table: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(documented_selector())
    name, page = f"{file}:Halves", tmp_path / "page.md"
    page.write_text("before\n<!-- measured: begin -->\nold\n<!-- measured: end -->\nafter\n")
    status, output = invoke(
        "compare-search", "--table", table, "--selector", name, "--arm", "greedy", "--replays", 3, "--trainings", 12,
        "--workers", 1, "--out", tmp_path / "out", "--write", page, "--json",
    )  # fmt: skip
    assert status == 0, output
    found = json.loads((tmp_path / "out" / "replay.json").read_text())
    assert {one["arm"] for one in found["arms"]} == {"random", "greedy", name}
    assert (tmp_path / "out" / "replay.svg").stat().st_size > 1000
    for one in found["arms"]:
        assert (one["gap"] is None) == (one["arm"] == "random")
    written = page.read_text()
    assert written.startswith("before\n<!-- measured: begin -->\n41 cells with a score")
    assert written.endswith("<!-- measured: end -->\nafter\n")
    for one in found["arms"]:
        assert f"| {one['arm']} | {one['final']['estimate']:.2f} [" in written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--table", "none.parquet"), "none.parquet: no such file"),
        (("--table", "TABLE", "--arm", "none"), "no arm 'none'; arms: evolution, random, tune"),
        (("--table", "TABLE", "--selector", "none.py:X"), "none.py: no such file"),
        (("--table", "TABLE", "--selector", "X"), "X: a selector is named FILE.py:CLASS"),
        (("--table", "TABLE", "--selector", "WRONG:Wrong"), "Wrong lacks select(nodes, count, seed)"),
        (("--selector", "X"), "--selector needs --table FILE"),
        (("--write", "X"), "--write needs --table FILE"),
        (("--table", "TABLE", "--write", "wrong.py"), "wrong.py lacks the lines <!-- measured: begin -->"),
        (("--table", "TABLE", "--measure-again", "3"), "--measure-again is for searches that are run"),
        (("--table", "TABLE", "--set", "ladder.proxy_window=3"), "replay with --set ladder.proxy_steps=30"),
        (("--table", "older.parquet"), "older.parquet: cell 3 is no composition of this version's catalogue"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    arguments: tuple[str, ...], message: str, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.py").write_text("class Wrong:\n    pass\n")
    known, rows = read_cells(table)
    older = [replace(row, choices={**row.choices, "kl": "k9"}) if row.cell == 3 else row for row in rows]
    write_cells(tmp_path / "older.parquet", known, older)
    given = [one.replace("TABLE", str(table)).replace("WRONG", "wrong.py") for one in arguments]
    status, output = invoke("compare-search", *given)
    assert (status, len(output.strip().splitlines())) == (2, 1), output
    assert message in output


@pytest.mark.slow
def test_a_table_is_made_of_a_run_by_the_command(tmp_path: Path) -> None:
    out = tmp_path / "old.parquet"
    status, output = invoke("record-table", "--from-archive", ROOT / "docs" / "results" / "laptop-64", "--out", out)
    assert (status, output) == (0, f"46 cells, 136 rows: {out}\n")
    assert len(read_cells(out)[1]) == 136
    status, output = invoke(
        "record-table", "--preset", "smoke", "--seeds", 9, "--out", out, "--run-dir", tmp_path / "r"
    )
    assert (status, "protocol.seeds lists 2" in output) == (2, True)


def test_the_published_searches_add_cells_to_the_published_table() -> None:
    results = ROOT / "docs" / "results"
    tables = {name: read_cells(results / name) for name in ("table.parquet", "searched.parquet")}
    head, rows = together(tables)
    alone = [{row.cell for row in own} for _, own in tables.values()]
    assert head.baseline == 0
    assert len({row.cell for row in rows}) == len(alone[0]) + len(alone[1]) - 1, "the baseline is in both"
    assert max(sum(row.cell == cell for row in rows) for cell in {row.cell for row in rows}) == 3


def test_the_published_table_is_of_the_present_protocol_and_catalogue() -> None:
    """Every composition is one of this version's catalogue, and each number is the one that its design draws."""
    path = ROOT / "docs" / "results" / "table.parquet"
    preset = load_preset("laptop-64")
    recorded = recorded_cells(path, preset)
    cells = Cells.of(*read_cells(path))
    assert set(recorded) == set(range(len(recorded))), "a part of the design without gaps"
    assert len(cells.codes) + cells.failed == len(recorded) >= 200
    assert cells.baseline == 0
    assert set(cells.head.weights) == {spec.name for spec in preset.protocol.benchmarks}
