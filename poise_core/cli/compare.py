"""``poise compare-search``."""

from __future__ import annotations

import json as json_module
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from poise_core.cli.common import (
    FAULT,
    STOPPED,
    UNUSABLE,
    JsonOption,
    PresetOption,
    SetOption,
    SharedNetworkOption,
    fail,
    plain_errors,
    say,
    shared_network,
    view_console,
)

if TYPE_CHECKING:
    from poise_core.experiments.arms import ArmRun

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
    allow_shared_network: SharedNetworkOption = False,
    overrides: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Run the search and its control arms with as many children each, and compare their best so far over training tokens.

    Each arm and seed is a whole run below the folder, readable with the other commands. The baseline is trained once.
    The numbers are those of the search split, so the best of many is overestimated, and by different amounts where a
    ladder measured more candidates, or with more seeds, in one arm than in another.

    Example: poise compare-search --preset laptop --search-seeds 3
    """
    from poise_core.cli.common import resolve_preset
    from poise_core.experiments.arms import ARMS, arm_runs, share_baseline

    with plain_errors():
        unknown = sorted(set(arms or ()) - set(ARMS))
        if unknown:
            raise fail(f"no arm {unknown[0]!r}; arms: {', '.join(ARMS)}", UNUSABLE)
        settings = [*(overrides or []), *shared_network(allow_shared_network)]
        resolved = resolve_preset(preset, settings)
        folder = (run_dir or Path("runs") / f"{resolved.name}-arms").absolute()
        chosen = tuple(arm for arm in ARMS if not arms or arm in arms)
        runs = arm_runs(resolved, folder, chosen, tuple(range(search_seeds)))
        for run in runs:
            share_baseline(run, runs)
            _evolve(run, preset, settings)
        _report(runs, folder, json)


def _evolve(run: ArmRun, preset: str, overrides: list[str]) -> None:
    """Run one arm in a process of its own; a signal reaches both, and the child ends its own children first."""
    search = run.preset.search
    settings = [f"search.arm={run.arm}", f"search.seed={run.seed}", f"search.searches={search.searches}"]
    sets = [part for override in (*overrides, *settings) for part in ("--set", override)]
    arguments = ["evolve", "--preset", preset, "--run-dir", str(run.folder), *sets]
    say(f"{run.arm}, search seed {run.seed}: {run.folder}", err=True)
    process = subprocess.Popen([sys.executable, "-c", _EVOLVE, *arguments], stdout=subprocess.DEVNULL)
    try:
        status = process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise
    if status:
        again = "; the same command goes on" if status in (FAULT, STOPPED) else ""
        raise fail(f"the {run.arm} arm ended with status {status}{again}", status if status > 0 else STOPPED)


def _report(runs: list[ArmRun], folder: Path, json: bool) -> None:
    from poise_core.evidence.run_evidence import RunEvidence
    from poise_core.files import write_atomically
    from poise_core.render.svg import draw_comparison
    from poise_core.render.terminal import render_comparison
    from poise_core.run_directory import RunDirectory
    from poise_core.views.arms import best_so_far, compare_arms

    steps: dict[str, list[Any]] = {}
    champions = []
    for run in runs:
        archive = RunDirectory.read(run.folder).archive
        evidence = RunEvidence.load(archive, run.preset.protocol, planned=run.preset.search.planned)
        steps.setdefault(run.arm, []).append(best_so_far(evidence))
        champions += [
            f"{evidence.candidates[one.candidate_id]['name']} ({run.arm}, search seed {run.seed})"
            for one in evidence.champions
        ]
    curves = compare_arms(steps)
    document = json_module.dumps([curve.to_dict() for curve in curves], indent=1)
    write_atomically(folder / "comparison.json", document + "\n")
    draw_comparison(curves, folder / "comparison.svg")
    if json:
        typer.echo(document)
    else:
        view_console().print(render_comparison(curves))
        say(
            f"Champion candidates, corrected for the {runs[0].preset.search.planned} children of all {len(runs)} searches: "
            f"{', '.join(champions) or 'none'}."
        )
        say(f"Curves: {folder / 'comparison.svg'}, numbers: {folder / 'comparison.json'}")
