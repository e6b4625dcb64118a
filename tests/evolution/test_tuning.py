"""Tuning the baseline: bracketing, edges, budgets and interruption, in made-up worlds; and one real tuning."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from laboratory import Killed, Laboratory, make_preset, open_evolution
from typer.testing import CliRunner

from poise_core.cli import app
from poise_core.config import Preset, PresetError, load_preset, tuned_file
from poise_core.config.search import BaselineSpec
from poise_core.evaluation.results import BenchmarkResult, SeedEvaluation
from poise_core.evolution import EvolutionError
from poise_core.evolution.generation import establish_baseline
from poise_core.experiments.tuning import Axis, Point, Search
from poise_core.experiments.tuning_runs import Tuned, Tuning, TuningRefused
from poise_core.failures import CandidateFailure, FailureKind
from poise_core.mechanisms.composition import compose
from poise_core.run_directory import RunDirectory, RunDirectoryError

RATE, KL = Axis("rate", 3e-4, fine=True), Axis("kl", 0.01, 10**0.5, lowest=-4, off=True)


def test_places_of_an_axis_by_hand() -> None:
    assert [RATE.value(place) for place in (-4, -2, -1, 0, 2)] == [7.5e-5, 1.5e-4, 2.12e-4, 3e-4, 6e-4]
    assert [KL.value(place) for place in (-4, -2, 0, 2)] == [0.0, 0.00316, 0.01, 0.0316]
    assert (KL.neighbours(-2, 2), KL.neighbours(-4, 2), KL.neighbours(0, 2)) == ([-4, 0], [-2], [-2, 2])
    epochs = Axis("epochs", 1.0, whole=True, lowest=1)
    assert (epochs.neighbours(1, 1), epochs.neighbours(2, 1), epochs.value(3)) == ([2], [1, 3], 3.0)
    assert (RATE.steps, KL.steps, epochs.steps) == ((2, 1), (2,), (1,))


class World:
    """Scores of points from a function of their places, with what a seed adds."""

    def __init__(self, score: Callable[[Point], float | str], noise: Callable[[Point, int], float] = lambda p, s: 0.0):
        self.score, self.noise, self.asked = score, noise, []  # type: ignore[var-annotated]

    def measure(self, requests: Sequence[tuple[Point, tuple[int, ...]]]) -> dict[Point, Any]:
        self.asked += [(point, seed) for point, seeds in requests for seed in seeds]
        return {
            point: one if isinstance(one := self.score(point), str) else {s: one + self.noise(point, s) for s in seeds}
            for point, seeds in requests
        }

    def search(self, start: Point = (0, 0), budget: int = 500) -> Search:
        return Search((RATE, KL), start, self.measure, (1, 2), (3, 4), budget)


def bowl(*optimum: float) -> Callable[[Point], float]:
    """80 at the optimum, and a quarter of the squared distance less elsewhere; a clear 4 points are 4 places."""
    return lambda point: 80.0 - sum((place - best) ** 2 for place, best in zip(point, optimum, strict=True)) / 4.0


@pytest.mark.parametrize("optimum", [(-3, 2), (0, 0), (-20, 6), (13, -2)])
def test_an_axis_is_extended_until_its_optimum_has_worse_neighbours(optimum: Point) -> None:
    """(-20, ...) is ten doublings from the start: no grid had it."""
    world = World(bowl(*optimum))
    search = world.search()
    best = search.run()
    assert best == optimum
    assert search.open_sides(best) == ()
    for axis, place in enumerate(best):  # as the word bracketed says
        line = [point[axis] for point in search.line(best, axis)]
        assert min(line) < place < max(line)
    assert len(world.asked) == len(set(world.asked)) == search.trainings  # nothing is measured twice


def test_zero_needs_no_neighbour_below_it() -> None:
    search = World(bowl(-1, -9)).search()
    best = search.run()
    assert (best, KL.value(best[1])) == ((-1, -4), 0.0)
    assert search.open_sides(best) == ()


def test_axes_that_work_together_are_followed_along_the_valley() -> None:
    """The best rate depends on kl: one pass over the axes does not find it. (A valley narrower than a step would stop it.)"""
    search = World(lambda point: 80.0 - 0.3 * (point[0] - point[1]) ** 2 - 0.4 * (point[1] - 6) ** 2).search()
    assert search.run() == (6, 6)


def test_what_is_clearly_worse_after_one_seed_gets_no_second() -> None:
    world = World(lambda point: 80.0 - 5.0 * abs(point[0]) - 0.5 * abs(point[1]))
    world.search().run()
    seeds = {point: [seed for asked, seed in world.asked if asked == point] for point, _ in world.asked}
    assert seeds[(2, 0)] == [1]  # ten points below
    assert seeds[(0, 2)] == [1, 2, 3, 4]  # one point below, so it belongs to the front
    assert seeds[(0, 0)] == [1, 2, 3, 4]


def test_a_lucky_front_is_measured_again_and_loses_its_place() -> None:
    """(0, 2) is two points worse, but five better at the first two seeds: all four put it back."""
    world = World(
        lambda point: 80.0 - 2.0 * abs(point[1]) / 2 - 3.0 * abs(point[0]),
        lambda point, seed: 5.0 * (seed in (1, 2)) if point == (0, 2) else 0.0,
    )
    search = world.search()
    assert search.run() == (0, 2)  # (5 + 5 + 0 + 0) / 4 is still more than 2
    world.noise = lambda point, seed: (5.0, 5.0, -6.0, -6.0)[seed - 1] if point == (0, 2) else 0.0
    search = world.search()
    assert search.run() == (0, 0)
    assert search.open_sides((0, 0)) == ()


def test_a_budget_that_ends_early_says_which_sides_are_open() -> None:
    search = World(bowl(-20, 0)).search(budget=13)
    best = search.run()
    assert search.trainings <= 13
    assert best[0] < 0
    assert any(side.startswith("rate below ") for side in search.open_sides(best))
    search.budget = 500  # and a larger one goes on
    assert (search.run(), search.open_sides((-20, 0))) == ((-20, 0), ())


def test_points_that_fail_are_worse_than_any_score() -> None:
    search = World(lambda point: "diverged: loss is nan" if point[0] > 0 else bowl(4, 0)(point)).search()
    best = search.run()
    assert (best, search.open_sides(best)) == ((0, 0), ())
    with pytest.raises(ValueError, match="diverged"):
        World(lambda point: "diverged: loss is nan").search().run()


# with run directories and a laboratory in which numbers decide


def test_a_point_that_fails_at_a_later_seed_is_no_optimum() -> None:
    """(0, 2) leads with the seeds that every point gets, and breaks at one of those that only the front gets."""
    score = bowl(0, 1.5)

    def measure(requests: Sequence[tuple[Point, tuple[int, ...]]]) -> dict[Point, Any]:
        return {
            point: "diverged" if point == (0, 2) and 3 in seeds else dict.fromkeys(seeds, score(point))
            for point, seeds in requests
        }

    search = Search((RATE, KL), (0, 0), measure, (1, 2), (3, 4), 500)
    best = search.run()
    assert search.failed == {(0, 2): "diverged"}
    assert best == (1, 2), "80 - 1.25 / 4, the highest that is left"
    assert search.open_sides(best) == ()


def made_up() -> Preset:
    """One benchmark of 1000 problems, so that a tenth of a point is seen."""
    preset = make_preset()
    spec = preset.protocol.benchmarks[1].model_copy(update={"problems": 1000, "weight": 1.0})
    protocol = preset.protocol.model_copy(update={"benchmarks": (spec,)})
    resources = preset.resources.model_copy(update={"parallel_candidates": 1})
    return preset.model_copy(update={"protocol": protocol, "resources": resources})


class Numbers(Laboratory):
    """Trainings whose score follows from the learning rate and the candidate's kl_coef: best at 2.5e-5 and 0.03."""

    def evaluate(self, job: Any, *, should_stop: Any = None) -> list[SeedEvaluation]:
        self.splits.add(job.split)
        training = job.protocol.training
        source = (job.folder.parent / "candidate.py").read_text()
        kl = float(re.findall(r"kl_coef: float = (\S+)", source)[0])
        clip = float(re.findall(r"clip_eps(?:_high)?: float = (\S+)", source)[0])
        skill = 0.8 - 0.05 * math.log2(training.learning_rate / 2.5e-5) ** 2 - 0.05 * (training.inner_epochs - 1)
        skill -= 0.1 * math.log10(max(kl, 1e-3) / 0.03) ** 2 + 0.02 * abs(math.log2(clip / 0.2))
        skill -= 0.1 * ("entropy_coef" in source)
        (spec,) = job.protocol.benchmarks
        right = round(spec.problems * max(skill, 0.0))
        correct = (1,) * right + (0,) * (spec.problems - right)
        result = BenchmarkResult(spec.name, spec.metric_name, right / spec.problems * 100, correct, 1, 0.9, 6.0)
        self.evaluated += [str(seed) for seed, _ in job.policies]
        return [SeedEvaluation(seed, job.split, result.score, (result,), 1.0) for seed, _ in job.policies]


def tuned_in(folder: Path, laboratory: Laboratory, budget: int = 120, **options: Any) -> Tuned:
    with Tuning(made_up(), folder, budget, executor=laboratory, **options) as tuning:
        return tuning.carry_out()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tuned, Numbers]:
    """A tuning from beginning to end, with its laboratory."""
    laboratory = Numbers()
    return tuned_in(tmp_path_factory.mktemp("whole") / "tune", laboratory), laboratory


@pytest.mark.slow
def test_tuning_a_preset_finds_its_numbers_with_fresh_seeds_and_no_sealed_problem(whole: tuple[Tuned, Numbers]) -> None:
    tuned, laboratory = whole
    record, start = tuned.record, {"learning_rate": 1e-4, "kl_coef": 0.01, "clip_eps_high": 0.2}
    assert {name: record.start[name] for name in start} == start
    assert record.numbers["learning_rate"] == 2.5e-5
    assert record.numbers["kl_coef"] == pytest.approx(0.0316)
    assert (record.numbers["inner_epochs"], record.numbers["entropy_coef"], record.open) == (1.0, 0.0, ())
    # 0.05 * 2^2 for two doublings of the rate, 0.1 * (log10(0.01 / 0.03))^2 = 0.0228 for kl
    assert record.gain["estimate"] == pytest.approx(22.2, abs=0.2)
    assert laboratory.splits == {"search"}
    assert record.trainings == len(laboratory.trained) == len(laboratory.evaluated)
    used = {int(name.rpartition("/")[2]) for name in laboratory.trained}
    assert used == {9001, 9002, 9003, 9004, 9501, 9502, 9503, 9504, 9505}
    assert record.tokens == record.trainings * 100 * 12
    rates = record.axes["learning_rate"]
    values = [row["value"] for row in rates]
    assert values == sorted(values)
    assert values[0] < 2.5e-5 < values[-1]
    assert all(row["delta"]["estimate"] < 0 for row in rates if "delta" in row)


@pytest.mark.exhaustive
def test_a_killed_tuning_goes_on_where_it_stood(tmp_path: Path, whole: tuple[Tuned, Numbers]) -> None:
    """After every ninth training; the way is the same as without an interruption, and nothing is trained twice."""
    expected, uninterrupted = whole
    left = 0

    def dies(name: str) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed(name)

    laboratory, found = Numbers(before_training=dies), None
    for _ in range(20):
        left = 9
        try:
            found = tuned_in(tmp_path / "run", laboratory)
            break
        except Killed:
            continue
    assert found is not None
    assert laboratory.trained == uninterrupted.trained
    same = {"date"}
    assert found.record.model_dump(exclude=same) == expected.record.model_dump(exclude=same)


@pytest.mark.exhaustive
def test_a_larger_budget_goes_on_and_another_protocol_is_refused(tmp_path: Path) -> None:
    laboratory = Numbers()
    first = tuned_in(tmp_path / "tune", laboratory, 20)
    assert first.record.open
    assert first.record.trainings <= 20
    before = list(laboratory.trained)
    second = tuned_in(tmp_path / "tune", laboratory, 120)
    assert (second.record.open, laboratory.trained[: len(before)]) == ((), before)
    assert second.record.numbers["learning_rate"] == 2.5e-5
    preset = made_up()
    training = preset.protocol.training.model_copy(update={"steps": 13})
    other = preset.model_copy(update={"protocol": preset.protocol.model_copy(update={"training": training})})
    with pytest.raises(TuningRefused, match="another protocol"):
        Tuning(other, tmp_path / "tune", 50)
    with pytest.raises(TuningRefused, match="11 trainings are too few"):
        Tuning(preset, tmp_path / "new", 11)
    with Tuning(preset, tmp_path / "tune", 50), pytest.raises(RunDirectoryError, match="in use"):
        Tuning(preset, tmp_path / "tune", 50).__enter__()


@pytest.mark.slow
def test_a_run_takes_the_tuned_numbers_and_says_so(tmp_path: Path, whole: tuple[Tuned, Numbers]) -> None:
    preset = made_up()
    assert preset.untuned.startswith("The baseline grpo was never tuned under this protocol; 'poise tune")
    document = whole[0].document
    training = preset.protocol.training.model_copy(update=document["protocol"]["training"])
    own = preset.model_copy(
        update={
            "protocol": preset.protocol.model_copy(update={"training": training}),
            "baseline": BaselineSpec.model_validate(document["baseline"]),
        }
    )
    assert own.untuned == ""
    assert own.protocol.tuning_digest == preset.protocol.tuning_digest
    seeds = own.protocol.model_copy(update={"seeds": (4, 5, 6)})
    assert own.model_copy(update={"protocol": seeds}).untuned == ""  # the tuning used none of either list
    faster = training.model_copy(update={"learning_rate": 1e-3})
    changed = own.model_copy(update={"protocol": own.protocol.model_copy(update={"training": faster})})
    assert "has learning_rate = 0.001 here, but 2.5e-05 was found" in changed.untuned
    longer = own.protocol.model_copy(update={"training": training.model_copy(update={"steps": 13})})
    assert "was tuned under another protocol" in own.model_copy(update={"protocol": longer}).untuned
    dapo = own.model_copy(update={"search": own.search.model_copy(update={"baseline": "dapo"})})
    assert (dapo.untuned[:23], dapo.baseline_numbers) == ("The baseline dapo was n", {})
    with Laboratory():
        evolution = open_evolution(tmp_path / "run", own)
        with evolution.run:
            baseline = establish_baseline(evolution)
            (row,) = evolution.run.archive.rows("candidates", candidate_id=baseline.candidate_id)
        assert "kl_coef: float = 0.0316" in row["source"]
        assert json.loads(row["composition"]) == compose(numbers={"kl_coef": 0.0316}).model_dump(mode="json")
        other = own.model_copy(update={"baseline": BaselineSpec(hyperparameters={"kl_coef": 0.1})})
        resumed = open_evolution(tmp_path / "run", other)
        with resumed.run, pytest.raises(EvolutionError, match="the baseline of this run is grpo-"):
            resumed.register_baseline()


# the files


def test_a_preset_takes_its_tuned_file_and_hands_it_to_what_extends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("extends: smoke\nname: mine\ntuned: found/mine.yaml\n")
    Path("child.yaml").write_text("extends: mine.yaml\nname: child\nprotocol: {training: {inner_epochs: 3}}\n")
    assert load_preset("mine.yaml").untuned.startswith("The baseline grpo was never tuned")  # no such file yet
    found = {
        "protocol": {"training": {"learning_rate": 5e-5, "inner_epochs": 2}},
        "baseline": {"hyperparameters": {"kl_coef": 0.03}},
    }
    Path("found").mkdir()
    Path("found/mine.yaml").write_text(yaml.safe_dump(found))
    mine, child = load_preset("mine.yaml"), load_preset("child.yaml")
    assert (mine.protocol.training.learning_rate, mine.protocol.training.inner_epochs) == (5e-5, 2)
    assert (child.protocol.training.learning_rate, child.protocol.training.inner_epochs) == (5e-5, 3)
    assert child.baseline_numbers == mine.baseline_numbers == {"kl_coef": 0.03}
    assert tuned_file("child.yaml") == tuned_file("mine.yaml") == Path("found/mine.yaml")
    assert tuned_file("smoke") is None
    shared = tuned_file("laptop-64")
    assert shared is not None
    assert shared == tuned_file("laptop")
    Path("found/mine.yaml").write_text("search: {generations: 9}\n")
    with pytest.raises(PresetError, match=r"found/mine\.yaml: not a file that poise tune has written"):
        load_preset("mine.yaml")


@pytest.mark.exhaustive
def test_a_real_tuning_of_the_smallest_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four real trainings: the start with two seeds, and once more with two fresh ones."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(
        "extends: smoke\nname: tiny\ntuned: tiny.tuned.yaml\nprotocol: {training: {steps: 2}}\nresources: {checkpoint_steps: 0}\n"
    )
    arguments = ["tune", "--preset", "tiny.yaml", "--trainings", "6", "--fresh-seeds", "2"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    for said in (
        "Start: learning_rate 0.0001",
        "NOT bracketed: learning_rate below 0.0001",
        "Written to tiny.tuned.yaml",
    ):
        assert said in result.output, result.output
    preset = load_preset("tiny.yaml")
    record = preset.baseline.tuning
    assert record is not None
    assert (record.trainings, record.overall["seeds"]) == (4, 2)
    assert preset.untuned.startswith(
        "The tuning of the baseline grpo left its optimum open: learning_rate below 0.0001"
    )
    run = RunDirectory.read("runs/tiny-tune/lr-0.0001-epochs-1")
    (candidate,) = run.archive.rows("candidates")
    found = run.archive.evaluations(protocol=run.preset.protocol.digest)[candidate["candidate_id"]]
    assert [one.seed for one in found] == [9001, 9002, 9501, 9502]
    again = CliRunner().invoke(app, arguments)
    assert (again.exit_code, load_preset("tiny.yaml").baseline) == (0, preset.baseline)


def test_a_candidate_failure_of_the_start_is_one_line(tmp_path: Path) -> None:
    failure = CandidateFailure(FailureKind.DIVERGED, "train", "loss is nan at step 3")
    laboratory = Numbers(fail={"GRPO": failure})
    with pytest.raises(TuningRefused, match="the training of the present numbers failed: diverged: loss is nan"):
        tuned_in(tmp_path / "tune", laboratory)
