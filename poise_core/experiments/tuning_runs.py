"""Tuning the baseline of a preset: the search of ``tuning.py`` with real trainings, and the record that the preset takes it from.

Every pair of learning rate and inner epochs is a protocol of its own, so it has a run directory of its own below the tuning's
folder, in which the other numbers are candidates that are verified, trained and scored like all others; ``poise leaderboard`` reads
each of them. The seeds are the tuning's own: none is on the protocol's list, so what a run measures of the baseline later is fresh.
Scores are those of the search split alone.
"""

from __future__ import annotations

import datetime as dt
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml

from poise_core.algorithms import display_name
from poise_core.archive import location_below
from poise_core.config import Preset
from poise_core.config.protocol import TUNED_TRAINING, Protocol
from poise_core.config.search import BaselineSpec, TuningRecord
from poise_core.evaluation.problems import ProblemSecret
from poise_core.evaluation.results import SeedEvaluation
from poise_core.evidence.format import format_duration
from poise_core.evidence.intervals import Interval, delta_between, overall_interval
from poise_core.evidence.noise import noise_floor
from poise_core.evolution.executor import Executor, default_executor
from poise_core.evolution.records import CandidateRef, load_record, write_record
from poise_core.evolution.run_context import MANUAL_ARM
from poise_core.evolution.trials import Trials
from poise_core.experiments.tuning import Axis, Point, Scores, Search, Spent
from poise_core.failures import CandidateFailure
from poise_core.files import write_atomically
from poise_core.mechanisms.known import CLIP_SIDES, defaults_of, takes_entropy_bonus, with_numbers
from poise_core.run_directory import RunDirectory
from poise_core.run_directory.lock import Lock

FIRST_SEED = 9001
"""Seeds of a tuning count from here, those of the protocol left out; the fresh ones of its end from 500 further."""

RECORD, PLAN = "tuned.yaml", "tuning.json"
HALF_DECADE = 10**0.5


class TuningRefused(ValueError):
    """The baseline cannot be tuned like this; one line."""


@dataclass(frozen=True)
class Tuned:
    """What a tuning has found."""

    record: TuningRecord
    document: dict[str, Any]  # what a preset takes: protocol.training and baseline
    path: Path  # where it lies


@dataclass
class Tuning:
    """The tuning of one preset's baseline in one folder, to be used as a context; the same call goes on where it stopped."""

    preset: Preset
    folder: Path
    budget: int  # trainings, those with fresh seeds included
    seeds: int = 2  # of a point; the front of the field gets twice as many
    fresh: int = 5  # seeds of the optimum's last measurement, and of the start's
    executor: Executor = field(default_factory=default_executor)
    say: Callable[[str], None] = lambda line: None

    def __post_init__(self) -> None:
        self.algorithm = self.preset.search.baseline
        training = self.preset.protocol.training
        self._kept = self._plan(
            {
                "digest": self.preset.protocol.tuning_digest,
                "algorithm": self.algorithm,
                "training": {name: getattr(training, name) for name in TUNED_TRAINING},
                "hyperparameters": self.preset.baseline_numbers,
            }
        )
        try:
            self.own = {**defaults_of(self.algorithm), **self._kept["hyperparameters"]}
            with_numbers(self.algorithm, self._kept["hyperparameters"])
        except ValueError as error:
            raise TuningRefused(f"search.baseline, baseline.hyperparameters: {error}") from error
        self.axes = self._axes()
        if self.budget < self.reserve + self.seeds:
            raise TuningRefused(
                f"{self.budget} trainings are too few: the start takes {self.seeds} and the last measurement {self.reserve}"
            )
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._stack = ExitStack()
        self._trials: dict[tuple[float, float], Trials] = {}
        self._candidates: dict[Point, CandidateRef] = {}
        self._done, self._trained, self._began = 0, 0, time.monotonic()

    def __enter__(self) -> Self:
        """Hold the folder.

        Raises:
            TuningRefused: a run lies there.
            RunDirectoryError: another process tunes there.
        """
        if RunDirectory.exists(self.folder):
            raise TuningRefused(f"{self.folder}: a run directory; a tuning needs a folder of its own, for several runs")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._stack.callback(Lock(self.folder / ".lock").release)
        write_record(self.folder / PLAN, self._kept)
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._stack.close()

    def _plan(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """What is tuned and from where; a tuning that goes on keeps its start, whatever the preset has taken from it since."""
        found: dict[str, Any] | None = load_record(self.folder / PLAN)
        if found is None:
            return wanted
        if (found["digest"], found["algorithm"]) != (wanted["digest"], wanted["algorithm"]):
            raise TuningRefused(
                f"{self.folder}: holds the tuning of {found['algorithm']} under another protocol ({found['digest']}, this is "
                f"{wanted['algorithm']} under {wanted['digest']}); take another folder"
            )
        return found

    # the points

    def _axes(self) -> list[Axis]:
        own = self.own
        axes = [
            Axis("learning_rate", self._kept["training"]["learning_rate"], fine=True),
            Axis("inner_epochs", 1.0, whole=True, lowest=1),
        ]
        if "kl_coef" in own:  # the last value above zero is half a decade below the start
            axes.append(Axis("kl_coef", own["kl_coef"] or 0.01, HALF_DECADE, lowest=-4, off=True))
        if own.keys() >= set(CLIP_SIDES):
            axes.append(Axis("clip_eps", own["clip_eps_high"]))
        if "entropy_coef" in own or takes_entropy_bonus(self.algorithm):
            axes.append(Axis("entropy_coef", own.get("entropy_coef", 0.0) or 0.001, HALF_DECADE, lowest=-4, off=True))
        return axes

    @property
    def start(self) -> Point:
        """The preset's own numbers, as they were when the tuning began."""
        zero = {name: axis.lowest for name in ("kl_coef", "entropy_coef") for axis in self.axes if axis.name == name}
        places = []
        for axis in self.axes:
            off = axis.name in zero and not self.own.get(axis.name, 0.0)
            place = self._kept["training"]["inner_epochs"] if axis.whole else 0
            places.append(axis.lowest if off and axis.lowest is not None else place)
        return tuple(places)

    def numbers(self, point: Point) -> dict[str, float]:
        """A point by the names of its axes; ``clip_eps`` is that of the upper side, the lower one keeps its share of it."""
        return {axis.name: axis.value(place) for axis, place in zip(self.axes, point, strict=True)}

    def hyperparameters(self, point: Point) -> dict[str, float]:
        """What of a point belongs to the candidate's file."""
        numbers = {name: value for name, value in self.numbers(point).items() if name not in TUNED_TRAINING}
        if (high := numbers.pop("clip_eps", None)) is not None:
            share = self.own["clip_eps_low"] / self.own["clip_eps_high"]
            numbers |= {"clip_eps_low": float(f"{high * share:.3g}"), "clip_eps_high": high}
        rest = {name: value for name, value in self._kept["hyperparameters"].items() if name not in numbers}
        return {**rest, **numbers}

    def label(self, point: Point) -> str:
        """For people: ``learning_rate 7.5e-05, inner_epochs 2, ...``."""
        return ", ".join(f"{name} {value:.3g}" for name, value in self.numbers(point).items())

    # the seeds and the budget

    @property
    def reserve(self) -> int:
        """Trainings that are kept for the last measurement."""
        return 2 * self.fresh

    def _seeds(self, first: int, count: int) -> tuple[int, ...]:
        numbers = (seed for seed in range(first, first + 500) if seed not in self.preset.protocol.seeds)
        return tuple(seed for seed, _ in zip(numbers, range(count), strict=False))

    @property
    def choosing_seeds(self) -> tuple[int, ...]:
        """Those by which points are compared; the second half is of the front alone."""
        return self._seeds(FIRST_SEED, 2 * self.seeds)

    @property
    def fresh_seeds(self) -> tuple[int, ...]:
        """Those of the last measurement, which no choice has seen."""
        return self._seeds(FIRST_SEED + 500, self.fresh)

    # the work

    def carry_out(self) -> Tuned:
        """Search, measure the optimum and the start again with fresh seeds, and write the record into the folder.

        Raises:
            TuningRefused: the training of the preset's own numbers fails.
            InfrastructureError: a process failed; the same call goes on.
            Cancelled: the work was stopped.
        """
        chosen, more = self.choosing_seeds[: self.seeds], self.choosing_seeds[self.seeds :]
        search = Search(self.axes, self.start, self._measure, chosen, more, self.budget - self.reserve)
        try:
            best = search.run()
        except (Spent, ValueError) as error:
            raise TuningRefused(str(error)) from error
        ends = [best] if best == search.start else [best, search.start]
        self.say(
            f"measuring again with {self.fresh} fresh seeds: {self.label(best)}"
            + (", and the start" if ends[1:] else "")
        )
        failed = [
            text for text in self._measure([(p, self.fresh_seeds) for p in ends]).values() if isinstance(text, str)
        ]
        if failed:
            raise TuningRefused(f"a training with fresh seeds failed: {failed[0]}; the numbers are no safe baseline")
        record = self._record(search, best, search.trainings + len(ends) * self.fresh)
        document = {
            "protocol": {"training": self._training(best)},
            "baseline": BaselineSpec(hyperparameters=self.hyperparameters(best), tuning=record).model_dump(mode="json"),
        }
        path = self.folder / RECORD
        write_tuned(path, document, self.preset.name)
        return Tuned(record, document, path)

    def _measure(self, requests: Sequence[tuple[Point, tuple[int, ...]]]) -> dict[Point, Scores | str]:
        """Train and score points with seeds, side by side; what is there is read back."""
        with ThreadPoolExecutor(self.preset.resources.parallel_candidates) as pool:
            futures = {point: pool.submit(self._one, point, seeds) for point, seeds in requests}
            try:
                return {point: future.result() for point, future in futures.items()}
            except BaseException:
                self._stop.set()
                raise

    def _one(self, point: Point, seeds: tuple[int, ...]) -> Scores | str:
        trials, candidate = self._candidate(point)
        missing = [seed for seed in seeds if not trials.contains("evaluations", candidate, split="search", seed=seed)]
        try:
            trials.measure(candidate, seeds)
        except CandidateFailure as failure:
            self._tell(point, f"{failure.kind}: {failure.message}", len(seeds), len(missing))
            return f"{failure.kind}: {failure.message}"
        scores = {one.seed: one.overall for one in trials.evaluations(candidate, seeds)}
        self._tell(point, " ".join(f"{score:.1f}" for score in scores.values()), len(seeds), len(missing))
        return scores

    def _tell(self, point: Point, what: str, counted: int, trained: int) -> None:
        with self._lock:
            self._done, self._trained = self._done + counted, self._trained + trained
            left = ""
            if self._trained and self._done < self.budget:
                seconds = (time.monotonic() - self._began) / self._trained * (self.budget - self._done)
                left = f", at most {format_duration(seconds)} left"
            self.say(f"{self._done:3d} of at most {self.budget} trainings{left}   {self.label(point)}: {what}")

    def _candidate(self, point: Point) -> tuple[Trials, CandidateRef]:
        training = self._training(point)
        pair = (training["learning_rate"], training["inner_epochs"])
        with self._lock:
            if pair not in self._trials:
                self._trials[pair] = self._open(training)
        trials = self._trials[pair]
        if point not in self._candidates:
            self._candidates[point] = self._register(trials, point)
        return trials, self._candidates[point]

    def _register(self, trials: Trials, point: Point) -> CandidateRef:
        source, composition = with_numbers(self.algorithm, self.hyperparameters(point))
        found = composition.model_dump(mode="json") if composition else None
        return trials.register(
            display_name(self.algorithm),
            source,
            written_by="catalogue",
            arm=MANUAL_ARM,
            composition=found,
            mechanisms=found["choices"] if found else None,
        )

    def _open(self, training: dict[str, float]) -> Trials:
        name = f"lr-{training['learning_rate']:g}-epochs-{training['inner_epochs']:g}"
        preset = self.preset
        archive = None if preset.archive is None else location_below(preset.archive, f"tune/{name}")
        own = preset.model_copy(
            update={"protocol": self._protocol(training), "archive": archive, "name": f"{preset.name}-tune"}
        )
        shared = ProblemSecret.made(self.folder / "secret")  # all points answer the same problems, and can be paired
        run = self._stack.enter_context(RunDirectory.open(self.folder / name, own, shared))
        return Trials(run, executor=self.executor, should_stop=self._stop.is_set)

    def _protocol(self, training: Mapping[str, float]) -> Protocol:
        protocol = self.preset.protocol
        spec = protocol.training.model_copy(update=dict(training))
        return protocol.model_copy(update={"training": spec, "seeds": (*self.choosing_seeds, *self.fresh_seeds)})

    def _training(self, point: Point) -> dict[str, Any]:
        numbers = self.numbers(point)
        return {"learning_rate": numbers["learning_rate"], "inner_epochs": int(numbers["inner_epochs"])}

    # the record

    def _record(self, search: Search, best: Point, trainings: int) -> TuningRecord:
        chosen, fresh = self.choosing_seeds, self.fresh_seeds
        evaluations = {point: self._evaluations(point, chosen) for point in search.scores}
        noise = noise_floor({str(point): found for point, found in evaluations.items()})
        protocol = self.preset.protocol
        named = {str(point): found for point, found in evaluations.items()}

        def row(number: int, point: Point) -> dict[str, Any]:
            value = self.axes[number].value(point[number])
            if point in search.failed:
                return {"value": value, "failed": search.failed[point]}
            own = noise.total if noise and len(named[str(point)]) == 1 else None
            line = {"value": value, "overall": _plain(overall_interval(named[str(point)], protocol, noise=own))}
            delta = delta_between(str(point), str(best), named, protocol, noise) if point != best else None
            return line | ({"delta": _plain(delta)} if delta else {})

        last = {point: self._evaluations(point, fresh) for point in {best, search.start}}
        ends = {str(point): found for point, found in last.items()}
        gain = delta_between(str(best), str(search.start), ends, protocol, None)
        assert gain is not None  # both have the fresh seeds
        return TuningRecord(
            algorithm=self.algorithm,
            digest=protocol.tuning_digest,
            numbers={**{k: float(v) for k, v in self._training(best).items()}, **self.hyperparameters(best)},
            start={
                **{k: float(v) for k, v in self._training(search.start).items()},
                **self.hyperparameters(search.start),
            },
            open=search.open_sides(best),
            date=dt.datetime.now(dt.UTC).date().isoformat(),
            budget=self.budget,
            trainings=trainings,
            tokens=sum(self._tokens(trials) for trials in self._trials.values()),
            points=len({*search.scores, *search.failed}),
            chosen_by=_plain(overall_interval(named[str(best)], protocol)),
            overall=_plain(overall_interval(last[best], protocol)),
            gain=_plain(gain) if best != search.start else _plain(Interval(0.0, 0.0, 0.0, self.fresh)),
            axes={
                axis.name: [row(number, point) for point in search.line(best, number)]
                for number, axis in enumerate(self.axes)
            },
        )

    def _evaluations(self, point: Point, seeds: Sequence[int]) -> list[SeedEvaluation]:
        trials, candidate = self._candidate(point)
        return trials.evaluations(candidate, seeds)

    @staticmethod
    def _tokens(trials: Trials) -> int:
        return sum(trials.archive.read("trajectories", ["tokens"])["tokens"].to_pylist())


def _plain(interval: Interval) -> dict[str, Any]:
    return {k: round(v, 3) if isinstance(v, float) else v for k, v in interval.to_dict().items()}


def write_tuned(path: Path, document: Mapping[str, Any], preset: str) -> None:
    """Write what a preset's key ``tuned`` names, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    head = f"# The tuned baseline of the preset {preset}, written by poise tune; the preset's key `tuned` names this file.\n"
    plain = json.loads(json.dumps(document))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, head + yaml.safe_dump(plain, sort_keys=False, width=140))
