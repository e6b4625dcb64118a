"""The recording of a table: random compositions, each trained and scored with the same seeds under one protocol.

Cells are drawn as the ``random`` arm draws them, independently of one another, in an order that only the design's seed decides. So
any part of a recording is itself a random design, and a recording may be stopped whenever there is enough of it. Every cell is a
candidate of an ordinary run directory: gate, training and evaluation go through the executor, confined, and whatever was killed
goes on where its files stand. The table itself (``poise_core.archive.cells``) is derived from the run's archive.
"""

from __future__ import annotations

import hashlib
import math
import random
import statistics
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

from poise_core.agents.catalogue.compositions import known_composition, read_composition
from poise_core.algorithms import display_name
from poise_core.archive import UNTRAINED_ARM, ArchiveError
from poise_core.archive.cells import CellRow, TableHead, once_each, read_cells
from poise_core.candidate.identity import same_program
from poise_core.config import LadderSpec, Preset
from poise_core.evaluation.problems import ProblemSecret
from poise_core.evolution import CandidateRef, Trials
from poise_core.evolution.events import Observer
from poise_core.failures import CandidateFailure
from poise_core.mechanisms.composition import Composition
from poise_core.mechanisms.known import with_numbers
from poise_core.mechanisms.operators import random_composition
from poise_core.mechanisms.render import render
from poise_core.run_directory import RunDirectory, RunDirectoryError, candidate_id

TABLE_ARM = "table"
"""The arm of the candidates of a recording; no search sees them."""

FEATURES = ("reward_mean", "completion_length", "entropy", "kl")
"""Columns of a trajectory whose means at the end of the proxy and of the training a table keeps."""

_PREFIX = "CELL-"  # of the names of random cells, before their number; the baseline is cell 0


def draw_design(count: int, seed: int = 0) -> Iterator[Composition]:
    """``count`` different random compositions; more of them begin with the same ones."""
    seen: set[str] = set()
    index = 0
    while len(seen) < count:
        composition = random_composition(random.Random(f"table:{seed}:{index}"))
        index += 1
        if composition.key not in seen:
            seen.add(composition.key)
            yield composition


def table_secret(design_seed: int = 0) -> ProblemSecret:
    """The secret of every recording of a design, known to all: one that goes on elsewhere asks the same problems.

    A recording claims nothing of a candidate, so nobody has to be kept from its problems.
    """
    return ProblemSecret(hashlib.sha256(f"poise/table/{design_seed}".encode()).digest())


def record_table(
    run: RunDirectory,
    cells: int,
    seeds: Sequence[int],
    *,
    design_seed: int = 0,
    known: Mapping[int, Collection[int]] = MappingProxyType({}),
    observer: Observer | None = None,
    on_cell: Callable[[int], None] = lambda done: None,
) -> int:
    """Measure the baseline and ``cells`` random compositions with these seeds; what is measured already is read back.

    Args:
        run: opened.
        cells: random compositions.
        seeds: of the trainings, the same for all cells.
        design_seed: of the random compositions.
        known: number of a cell -> seeds with which it was measured elsewhere; they are passed over.
        observer: called with every event.
        on_cell: called in this thread with the number of cells that are done.

    Returns:
        How many of the cells that lacked a seed, the baseline among them, have a score; the others were refused or failed.

    Raises:
        InfrastructureError, Cancelled: see ``poise_core.evolution.trials.Trials``; the same call goes on.
    """
    stop = threading.Event()
    options: dict[str, Any] = {} if observer is None else {"observer": observer}
    trials = Trials(run, should_stop=stop.is_set, **options)
    jobs = _jobs(trials, cells, design_seed, seeds, known)
    scored = done = 0
    with ThreadPoolExecutor(run.preset.resources.parallel_candidates) as pool:
        open_jobs: set[Future[bool]] = set()
        try:
            while True:
                for job in islice(jobs, run.preset.resources.parallel_candidates - len(open_jobs)):
                    open_jobs.add(pool.submit(_measure, trials, *job))
                if not open_jobs:
                    return scored
                finished, open_jobs = wait(open_jobs, return_when=FIRST_COMPLETED)
                for one in finished:
                    scored, done = scored + one.result(), done + 1
                    on_cell(done)
        except BaseException:
            stop.set()
            raise


Job = tuple[CandidateRef, tuple[int, ...]]
"""A cell, and the seeds that it lacks."""


def _jobs(
    trials: Trials, cells: int, design_seed: int, seeds: Sequence[int], known: Mapping[int, Collection[int]]
) -> Iterator[Job]:
    for number, composition in enumerate([None, *draw_design(cells, design_seed)]):
        lacking = tuple(seed for seed in seeds if seed not in known.get(number, ()))
        if lacking:
            cell = _baseline(trials) if composition is None else _cell(trials, number, composition)
            yield cell, lacking


def _baseline(trials: Trials) -> CandidateRef:
    """With the preset's numbers, which ``poise tune`` has found.

    Raises:
        RunDirectoryError: the recording began with another baseline.
    """
    preset = trials.run.preset
    source, composition = with_numbers(preset.search.baseline, preset.baseline_numbers)
    content = composition.model_dump(mode="json") if composition else None
    title = display_name(preset.search.baseline)
    for row in trials.archive.rows("candidates", arm=TABLE_ARM):
        if row["name"].startswith(_PREFIX) or row["candidate_id"] == candidate_id(title, source):
            continue
        if row["name"] == title and same_program(row["source"], source):
            source = row["source"]  # the recording keeps its text, whatever comments this version ships
        else:
            raise RunDirectoryError(
                f"{trials.run.path}: this recording has another baseline or other numbers than the preset's now; give them back "
                "(search.baseline, baseline.hyperparameters), or take another directory and another file"
            )
    return trials.register(title, source, written_by="human", arm=TABLE_ARM, composition=content)


def _cell(trials: Trials, number: int, composition: Composition) -> CandidateRef:
    name = f"{_PREFIX}{number:04d}"
    source = render(composition, name, "It is one random cell of a recorded table.", composition.to_text())
    content = composition.model_dump(mode="json")
    return trials.register(
        name, source, written_by="catalogue", arm=TABLE_ARM, composition=content, mechanisms=composition.choices
    )


def _measure(trials: Trials, candidate: CandidateRef, seeds: tuple[int, ...]) -> bool:
    """Whether the candidate came through gate, training and evaluation."""
    try:
        trials.measure(candidate, seeds)
    except CandidateFailure:
        return False
    return True


# ---- the table of a run


def recorded_cells(path: Path, preset: Preset, design_seed: int = 0) -> dict[int, list[CellRow]]:
    """The cells of a recording's table by number, so that it goes on from its table alone, on another machine too.

    Of a missing file there are none.

    Raises:
        poise_core.archive.ArchiveError: the file cannot be read, is of another protocol, design or baseline, or of a search.
    """
    if not path.exists():
        return {}
    head, rows = read_cells(path)
    protocol = preset.protocol
    if head.protocol != protocol.digest:
        raise ArchiveError(
            f"{path}: a table of protocol {head.protocol}, this is {protocol.digest}; tables are not mixed, name another file"
        )
    if any(row.design not in ("baseline", "random") for row in rows):
        raise ArchiveError(f"{path}: a table made of a search, and is no recording; name another file")
    cells = _by_cell(rows)
    drawn = dict(enumerate(draw_design(max(cells, default=0), design_seed), 1))
    _, baseline = with_numbers(preset.search.baseline, preset.baseline_numbers)
    for number, found in cells.items():
        recorded = read_composition(found[0].composition)
        if number and (recorded is None or recorded.key != drawn[number].key):
            raise ArchiveError(
                f"{path}: cell {number} is another composition than design {design_seed} draws; name another file, or the "
                "design with which it was recorded"
            )
        if not number and (recorded is None or baseline is None or recorded.key != baseline.key):
            raise ArchiveError(f"{path}: its baseline has other numbers than the preset's now; name another file")
    return cells


def measured_seeds(cells: Mapping[int, Sequence[CellRow]], seeds: Sequence[int]) -> dict[int, frozenset[int]]:
    """Number of a cell -> those of the seeds with which it need not be measured again; all where it was refused or failed."""
    return {
        number: frozenset(seeds)
        if found[0].failure
        else frozenset(row.seed for row in found if row.overall is not None and row.seed is not None)
        for number, found in cells.items()
    }


def table_of_run(run: RunDirectory, planned: int = 0) -> tuple[TableHead, list[CellRow]]:
    """The table of everything that a run has measured: of a recording, or of any search.

    Of a search this is no random design: which candidates there are, and which of them have several seeds, followed from scores.
    Candidates without a composition are left out, and so are those that were stopped before they had a score.

    Args:
        run: a directory of ``poise record-table``, ``poise evolve`` or ``poise evaluate``.
        planned: random cells that the recording was asked for.

    Raises:
        poise_core.archive.ArchiveError: a file cannot be read.
    """
    archive, protocol, ladder = run.archive, run.preset.protocol, run.preset.ladder
    baseline_name = display_name(run.preset.search.baseline)
    candidates = [row for row in archive.rows("candidates") if row["arm"] != UNTRAINED_ARM]
    candidates.sort(key=lambda row: (row["name"] != baseline_name, row["generation"], row["name"], row["candidate_id"]))
    failures = {row["candidate_id"]: row["kind"] for row in archive.rows("failures", protocol=protocol.digest)}
    evaluations = archive.evaluations(protocol=protocol.digest)
    rows: list[CellRow] = []
    baseline = -1
    for place, candidate in enumerate(candidates):
        identity, name = candidate["candidate_id"], candidate["name"]
        expressed, failure = known_composition(candidate), failures.get(identity)
        composition = expressed.composition if expressed else None
        scored = [] if failure else [one for one in evaluations.get(identity, []) if math.isfinite(one.overall)]
        if composition is None or not (scored or failure):
            continue
        root, random_cell = name == baseline_name, candidate["arm"] == TABLE_ARM
        baseline = place if root and baseline < 0 else baseline
        design = "baseline" if root else "random" if random_cell else "run"
        number = int(name.removeprefix(_PREFIX)) if design == "random" else place
        cell = CellRow(number, design, name, composition.choices, composition.parameters, failure=failure)
        if not scored:
            rows.append(cell)
            continue
        steps = archive.trajectory(identity, protocol.digest)
        for one in scored:
            scores = {result.name: result.score for result in one.benchmarks}
            known = training_columns(steps.get(one.seed, []), protocol.training.steps, ladder)
            timed = one.seconds if math.isfinite(one.seconds) else 0.0  # NaN of an evaluation that nobody timed
            seconds = known.pop("seconds", 0.0) + timed
            measured = {"seed": one.seed, "overall": one.overall, "benchmarks": scores, "seconds": seconds}
            rows.append(replace(cell, **measured, **known))
    weights = {spec.name: spec.weight for spec in protocol.benchmarks}
    proxy = (ladder.proxy_steps, ladder.proxy_window)
    return TableHead(run.preset.name, protocol.digest, weights, baseline, planned, *proxy), rows


def joined(
    table: tuple[TableHead, list[CellRow]], earlier: Mapping[int, Sequence[CellRow]]
) -> tuple[TableHead, list[CellRow]]:
    """The table of a recording with all that an earlier table of it holds, also of cells that it has not come to again.

    Of a cell that both have there is one row per seed, that of the new table; a failure stands alone, as in a run.
    """
    head, rows = table
    here, whole = _by_cell(rows), list[CellRow]()
    for number in sorted(here.keys() | earlier.keys()):
        whole += once_each([*here.get(number, ()), *earlier.get(number, ())])
    return replace(head, baseline=0 if 0 in earlier else head.baseline), whole


def _by_cell(rows: Sequence[CellRow]) -> dict[int, list[CellRow]]:
    cells: dict[int, list[CellRow]] = {}
    for row in rows:
        cells.setdefault(row.cell, []).append(row)
    return cells


def training_columns(trajectory: Sequence[Mapping[str, Any]], steps: int, ladder: LadderSpec) -> dict[str, Any]:
    """Tokens, mean dynamics and seconds of one training, as columns of ``CellRow``; empty where it is not whole."""
    if len(trajectory) < steps or not steps:
        return {}
    spans = {"final": trajectory[-ladder.proxy_window :]}
    if 0 < ladder.proxy_steps <= steps:
        spans["proxy"] = trajectory[: ladder.proxy_steps][-ladder.proxy_window :]
    means = {}
    for span, rows in spans.items():
        for name in FEATURES:
            values = [row[name] for row in rows if row.get(name) is not None and math.isfinite(row[name])]
            if values:
                means[f"{span}_{name}"] = statistics.fmean(values)
    spent = [int(row.get("tokens") or 0) for row in trajectory]
    proxy = sum(spent[: ladder.proxy_steps]) if "proxy" in spans else None
    seconds = sum(float(row.get(name) or 0.0) for row in trajectory for name in ("seconds_rollout", "seconds_update"))
    return {"tokens": sum(spent), "proxy_tokens": proxy, "dynamics": means, "seconds": seconds}
