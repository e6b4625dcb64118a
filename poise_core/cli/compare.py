"""``poise compare-search`` and ``poise record-table``: searches against each other, run or replayed on a recorded table."""

from __future__ import annotations

import json as json_module
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from poise_core.cli.common import (
    FAULT,
    STOPPED,
    UNUSABLE,
    JsonOption,
    PresetOption,
    SetOption,
    SharedNetworkOption,
    around_measured,
    existing_file,
    fail,
    plain_errors,
    progress_bar,
    replace_measured,
    say,
    say_json,
    shared_network,
    view_console,
)

if TYPE_CHECKING:
    from poise_core.evidence.run_evidence import RunEvidence
    from poise_core.experiments.arms import ArmRun
    from poise_core.experiments.contest import Contest
    from poise_core.experiments.surrogate import Fit
    from poise_core.views.arms import ReplayedArm, Step

_EVOLVE = "from poise_core.cli import app; app()"


def compare_search(
    preset: PresetOption = "laptop",
    run_dir: Annotated[
        Path | None, typer.Option(help="Folder of the arms' runs; what is there goes on. Default: runs/PRESET-arms.")
    ] = None,
    arms: Annotated[
        list[str] | None,
        typer.Option("--arm", help="evolution, random, greedy, best-of-n or tune; repeat. Default: all."),
    ] = None,
    search_seeds: Annotated[int, typer.Option(min=1, help="Search seeds per arm; two or more give intervals.")] = 1,
    table: Annotated[
        list[Path] | None,
        typer.Option(
            help="Replay searches on this recorded table instead of running them; see record-table. Repeat: several "
            "tables of one protocol are one."
        ),
    ] = None,
    selector: Annotated[
        list[str] | None, typer.Option(help="With --table: a selector of your own, FILE.py:CLASS. Repeat.")
    ] = None,
    replays: Annotated[int, typer.Option(min=2, help="With --table: replays of every arm.")] = 1000,
    trainings: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="Budget of each search, in whole trainings. Default: as many generations as the preset says; with --table 80.",
        ),
    ] = None,
    measure_again: Annotated[
        int | None,
        typer.Option(min=2, help="Train every search's pick again with so many fresh seeds, on sealed problems."),
    ] = None,
    rough: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="With --table: how much of what the surrogate does not explain is true nevertheless."
        ),
    ] = 0.0,
    replay_seed: Annotated[int, typer.Option(help="With --table: seed of all replays.")] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="With --table: processes. Default: one per core.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="With --table: folder for replay.json, replay.svg and finished replays, with which a killed one goes on."
        ),
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="With --table: a document to put the result into, between its two comments.")
    ] = None,
    allow_shared_network: SharedNetworkOption = False,
    overrides: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Run the search and its control arms at equal budgets, and compare their best so far over training tokens.

    Each arm and seed is a whole run below the folder, readable with the other commands. The baseline is trained once. With
    --trainings every search goes on until it has spent so much, or has made all generations of the preset.
    The curves are those of the search split, so the best of many is overestimated, and by different amounts where one arm
    measured more candidates than another. --measure-again replicates what each search picked at the largest budget that all of
    them have spent: fresh seeds, sealed problems, the baseline beside it.

    With --table nothing is trained: every arm, the search with each of its operators left out, and selectors of your own are
    replayed on a surrogate of recorded compositions, whose optimum is known.

    Examples:

    poise compare-search --preset laptop --search-seeds 3

    poise compare-search --preset laptop-64 --search-seeds 3 --trainings 80 --set search.generations=60 --measure-again 6

    poise compare-search --table table.parquet --selector mine.py:MySelector
    """
    from poise_core.cli.common import resolve_preset
    from poise_core.experiments.arms import ARMS, arm_runs, share_baseline
    from poise_core.run_directory import require_usable_place

    if table:
        if measure_again is not None:
            raise fail("--measure-again is for searches that are run, not for replays on a table", UNUSABLE)
        if write is not None:
            around_measured(write, "Search")
        options = _Replays(
            replays, 80.0 if trainings is None else trainings, rough, replay_seed, workers, out, write, json
        )
        _replay([existing_file(one) for one in table], preset, overrides, arms, selector or [], options)
        return
    for option, given in (("--selector", selector), ("--out", out), ("--write", write)):
        if given:
            raise fail(
                f"{option} needs --table FILE: it is for searches that are replayed on a recorded table", UNUSABLE
            )
    with plain_errors():
        unknown = sorted(set(arms or ()) - set(ARMS))
        if unknown:
            raise fail(f"no arm {unknown[0]!r}; arms: {', '.join(ARMS)}", UNUSABLE)
        settings = [*(overrides or []), *shared_network(allow_shared_network)]
        settings += [f"search.trainings={trainings:g}"] if trainings is not None else []
        resolved = resolve_preset(preset, settings)
        folder = (run_dir or Path("runs") / f"{resolved.name}-arms").absolute()
        require_usable_place(folder)
        chosen = tuple(arm for arm in ARMS if not arms or arm in arms)
        runs = arm_runs(resolved, folder, chosen, tuple(range(search_seeds)))
        for run in runs:
            share_baseline(run, runs)
            _evolve(run, preset, settings)
        found = _searches(runs)
        if measure_again is not None:
            _measure_again(found, measure_again)
            found = _searches(runs)
        _report(found, folder, json)


def _evolve(run: ArmRun, preset: str, overrides: list[str]) -> None:
    """Run one arm in a process of its own; a signal reaches both, and the child ends its own children first."""
    search = run.preset.search
    settings = [f"search.arm={run.arm}", f"search.seed={run.seed}", f"search.searches={search.searches}"]
    if run.preset.archive is not None:
        settings.append(f"archive={run.preset.archive}")
    sets = [part for override in (*overrides, *settings) for part in ("--set", override)]
    arguments = ["evolve", "--preset", preset, "--run-dir", str(run.folder), *sets]
    say(f"{run.arm}, search seed {run.seed}: {run.folder}", err=True)
    process = subprocess.Popen([sys.executable, "-P", "-c", _EVOLVE, *arguments], stdout=subprocess.DEVNULL)
    try:
        status = process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise
    if status:
        again = "; the same command goes on" if status in (FAULT, STOPPED) else ""
        raise fail(f"the {run.arm} arm ended with status {status}{again}", status if status > 0 else STOPPED)


@dataclass(frozen=True)
class _Search:
    """One arm with one search seed, and what it came to."""

    run: ArmRun
    evidence: RunEvidence
    steps: list[Step]


def _searches(runs: list[ArmRun]) -> list[_Search]:
    from poise_core.run_directory import RunDirectory
    from poise_core.views.arms import best_so_far

    found = []
    for run in runs:
        evidence = RunDirectory.read(run.folder).evidence()
        found.append(_Search(run, evidence, best_so_far(evidence)))
    return found


def _measure_again(searches: list[_Search], seeds: int) -> None:
    """Replicate every search's pick at the largest budget that all have spent; done before, read back."""
    from poise_core.cli.progress import ProgressDisplay
    from poise_core.cli.track import say_behind
    from poise_core.experiments.picks import measure_again
    from poise_core.experiments.replication import ReplicationRefused
    from poise_core.run_directory import RunDirectory
    from poise_core.tracking.sync import Tracker
    from poise_core.views.arms import common_budget, pick_at

    def sync(run: RunDirectory) -> None:
        Tracker.for_run(run).sync_archive(run.archive, run.preset.protocol, run_dir=run.path, force=True)
        say_behind(run)

    budget = common_budget([search.steps for search in searches])
    picked = {search.run.folder: pick_at(search.steps, budget).pick for search in searches}
    for search in searches:
        run, pick = search.run, picked[search.run.folder]
        others = {folder: one for folder, one in picked.items() if folder != run.folder}
        say(f"{run.arm}, search seed {run.seed}: {search.evidence.candidates[pick]['name']} again", err=True)
        try:
            with ProgressDisplay(run.preset, seeds) as display:
                measure_again(run, pick, seeds, others, observer=display, on_row=sync)
        except ReplicationRefused as error:
            raise fail(error, UNUSABLE) from error


def _report(searches: list[_Search], folder: Path, json: bool) -> None:
    from poise_core.files import write_atomically
    from poise_core.render.svg import draw_comparison
    from poise_core.render.terminal import render_comparison, render_picks
    from poise_core.views.arms import BASELINE, NOT_MEASURED, compare_arms, picks_at_budget

    steps: dict[str, list[list[Step]]] = {}
    for search in searches:
        steps.setdefault(search.run.arm, []).append(search.steps)
    champions = [
        f"{search.evidence.candidates[one.candidate_id]['name']} ({search.run.arm}, search seed {search.run.seed})"
        for search in searches
        for one in search.evidence.champions
    ]
    curves = compare_arms(steps)
    budget, picks = picks_at_budget(
        (search.run.arm, search.run.seed, search.steps, search.evidence) for search in searches
    )
    found = {
        "tokens": budget,
        "curves": [curve.to_dict() for curve in curves],
        "picks": [one.to_dict() for one in picks],
    }
    document = json_module.dumps(found, indent=1)
    write_atomically(folder / "comparison.json", document + "\n")
    draw_comparison(curves, folder / "comparison.svg")
    if json:
        say_json(document)
        return
    view_console().print(render_comparison(curves))
    if any(pick.outcome not in (NOT_MEASURED, BASELINE) for one in picks for pick in one.picks):
        view_console().print(render_picks(picks, budget))
    planned = searches[0].run.preset.search.planned
    say(
        f"Champion candidates, corrected for the {planned} children of all {len(searches)} searches: "
        f"{', '.join(champions) or 'none'}."
    )
    say(f"Curves: {folder / 'comparison.svg'}, numbers: {folder / 'comparison.json'}")


# ---- on a recorded table


@dataclass(frozen=True)
class _Replays:
    replays: int
    trainings: float
    rough: float
    seed: int
    workers: int | None
    out: Path | None
    write: Path | None
    json: bool


def _replay(
    tables: list[Path],
    preset: str,
    overrides: list[str] | None,
    arms: list[str] | None,
    selectors: list[str],
    given: _Replays,
) -> None:
    import os

    from poise_core.archive import ArchiveError
    from poise_core.cli.common import resolve_preset
    from poise_core.experiments.contest import Contest, Kept, arms_on, replay_arms
    from poise_core.experiments.replay import ReplayArm, load_selector
    from poise_core.experiments.surrogate import Cells, TableError
    from poise_core.experiments.world import World
    from poise_core.views.arms import REFERENCE, compare_replays

    with plain_errors():
        resolved = resolve_preset(preset, overrides)
        try:
            cells = Cells.read(tables)
            known = arms_on(resolved, cells)
            unknown = sorted(set(arms or ()) - set(known))
            if unknown:
                raise TableError(f"no arm {unknown[0]!r}; arms: {', '.join(known)}")
            for name in selectors:
                load_selector(name)
                known[name] = ReplayArm(name, selector=name)
            wanted = {*(arms or known), *selectors, REFERENCE}
            world = World.build(cells, given.rough)
        except (TableError, ArchiveError) as error:
            raise fail(error, UNUSABLE) from error
        chosen = [arm for name, arm in known.items() if name in wanted]
        contest = Contest.of(world, resolved.search, given.trainings, given.seed)
        content = b"".join(table.read_bytes() for table in tables)
        kept = Kept.of(given.out / "replays", content, given.rough, contest) if given.out else None
        with progress_bar("replays", len(chosen) * given.replays) as advance:
            workers = given.workers or os.cpu_count() or 1
            regrets = replay_arms(contest, chosen, given.replays, workers=workers, kept=kept, on_replays=advance)
        compared = compare_replays(regrets, contest.grid)
        _show_replays(contest, compared, world.fit, given)


def _show_replays(contest: Contest, compared: list[ReplayedArm], fit: Fit, given: _Replays) -> None:
    from dataclasses import asdict

    from poise_core.files import write_atomically
    from poise_core.render.markdown import replays_section
    from poise_core.render.svg import draw_replays
    from poise_core.render.terminal import describe_fit, render_replays

    world = contest.world
    cells, optimum = world.cells, world.optimum
    baseline = None
    if cells.baseline >= 0:
        row = [cells.baseline]
        baseline = float(world.surrogate.predict(cells.codes[row], cells.numbers[row])[0] @ cells.weights)
    found = {"composition": optimum.composition.to_text(), "overall": optimum.overall, "agreement": optimum.agreement}
    document = json_module.dumps(
        {"surrogate": asdict(fit), "optimum": found, "baseline": baseline, "arms": [one.to_dict() for one in compared]},
        indent=1,
    )
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        write_atomically(given.out / "replay.json", document + "\n")
        draw_replays(compared, given.out / "replay.svg")
    sentences = describe_fit(fit, optimum.overall, baseline, optimum.agreement)
    if given.write is not None:
        replace_measured(given.write, replays_section(sentences, compared), "Search")
    if given.json:
        say_json(document)
        return
    say(sentences)
    view_console().print(render_replays(compared))


def record_table(
    out: Annotated[Path, typer.Option(help="The table to write, a Parquet file; rewritten as cells are finished.")],
    preset: PresetOption = "laptop",
    cells: Annotated[int, typer.Option(min=1, help="Random compositions to record, beside the baseline.")] = 400,
    seeds: Annotated[int, typer.Option(min=1, help="Training seeds of each.")] = 2,
    design_seed: Annotated[int, typer.Option(help="Seed of the random compositions.")] = 0,
    run_dir: Annotated[
        Path | None, typer.Option(help="Where the trainings lie; what is there goes on. Default: runs/PRESET-table.")
    ] = None,
    from_archive: Annotated[
        list[Path] | None,
        typer.Option(help="Train nothing: make the table of what this run directory has measured. Repeat for several."),
    ] = None,
    allow_shared_network: SharedNetworkOption = False,
    overrides: SetOption = None,
) -> None:
    """Record a table of random compositions, each trained and scored, on which searches can be replayed.

    The order of the compositions is random, so a part of a recording is a valid, smaller one. Killed, the same command goes on;
    with the table alone, on another machine too: what it holds is not trained again. So a second seed can be added later.

    Examples:

    poise record-table --preset laptop-64 --cells 400 --seeds 2 --out table.parquet

    poise record-table --from-archive runs/laptop-64 --out old.parquet
    """
    from poise_core.archive import ArchiveError
    from poise_core.archive.cells import together, write_cells
    from poise_core.cli.common import resolve_preset
    from poise_core.experiments.recording import joined, measured_seeds, recorded_cells, table_of_run, table_secret
    from poise_core.experiments.recording import record_table as record
    from poise_core.run_directory import RunDirectory

    with plain_errors():
        try:
            if from_archive:
                head, rows = together({str(run): table_of_run(RunDirectory.read(run)) for run in from_archive})
                write_cells(out, head, rows)
                say(f"{len({row.cell for row in rows})} cells, {len(rows)} rows: {out}")
                return
            resolved = resolve_preset(preset, [*(overrides or []), *shared_network(allow_shared_network)])
            chosen = resolved.protocol.seeds[:seeds]
            if len(chosen) < seeds:
                raise fail(f"--seeds {seeds}: protocol.seeds lists {len(chosen)}; list more of them", UNUSABLE)
            folder = (run_dir or Path("runs") / f"{resolved.name}-table").absolute()
            earlier = recorded_cells(out, resolved, design_seed)
            known = measured_seeds(earlier, chosen)
            whole = {number for number in range(cells + 1) if known.get(number, frozenset()) >= set(chosen)}
            with (
                RunDirectory.open(folder, resolved, table_secret(design_seed)) as run,
                progress_bar("cells", cells + 1 - len(whole)) as advance,
            ):

                def write() -> None:
                    write_cells(out, *joined(table_of_run(run, cells), earlier))

                def save(done: int) -> None:
                    advance(1)
                    if done % SAVE_EVERY == 0:
                        write()

                scored = record(run, cells, chosen, design_seed=design_seed, known=known, on_cell=save)
                scored += sum(earlier[number][0].failure is None for number in whole)
                write()
        except ArchiveError as error:
            raise fail(error, UNUSABLE) from error
    say(f"{scored} of {cells + 1} cells have a score: {out}")


SAVE_EVERY = 20
"""Finished cells after which the table is written anew; a kill loses nothing, since it is made from the run directory and from what
the table held before."""
