"""``poise leaderboard``, ``poise lineage`` and ``poise show``: a run as its archive tells it."""

from __future__ import annotations

import io
import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from poise_core.cli.common import UNUSABLE, JsonOption, fail, plain_errors

if TYPE_CHECKING:
    from rich.console import RenderableType

    from poise_core.run_directory import RunDirectory

DRAWING_WIDTH = 110

SvgOption = Annotated[Path | None, typer.Option("--svg", help="Also draw it into this file, for a page.")]
RunDir = Annotated[Path, typer.Argument(help="A run directory, for example runs/laptop.")]


def leaderboard(run_dir: RunDir, json: JsonOption = False, svg: SvgOption = None) -> None:
    """Candidates by Overall, with intervals and paired differences to the baseline; failures below.

    Example: poise leaderboard runs/laptop
    """
    from poise_core.run_directory import RunDirectory
    from poise_core.views import leaderboard as rank

    with plain_errors():
        run = RunDirectory.read(run_dir)
        if json:
            rows = rank(run.archive, run.preset.protocol)
            _print_json([row.to_dict() for row in rows])
        else:
            _print(leaderboard_of(run), leaderboard_of(run, DRAWING_WIDTH), svg)


def lineage(run_dir: RunDir, json: JsonOption = False, svg: SvgOption = None) -> None:
    """Who descends from whom, what each child changed, and what it gained over its parent.

    Example: poise lineage runs/laptop
    """
    from poise_core.run_directory import RunDirectory
    from poise_core.views import lineage as trace

    with plain_errors():
        run = RunDirectory.read(run_dir)
        if json:
            _print_json([node.to_dict() for node in trace(run.archive, run.preset.protocol)])
        else:
            _print(lineage_of(run), lineage_of(run), svg)


def rungs(run_dir: RunDir, json: JsonOption = False) -> None:
    """The ladder of a run: what each rung cost and decided, and how well it predicts the last one.

    Example: poise rungs runs/laptop
    """
    from poise_core.run_directory import RunDirectory
    from poise_core.views.rungs import render_rungs, rung_report

    with plain_errors():
        run = RunDirectory.read(run_dir)
        report = rung_report(run.archive, run.preset.protocol, run.current_preset.ladder)
        if json:
            _print_json(report.to_dict())
        else:
            _print(render_rungs(report))


def show(
    run_dir: RunDir,
    candidate: Annotated[
        str | None, typer.Argument(help="Name, id, or the beginning of an id. Default: the best one.")
    ] = None,
    code: Annotated[bool, typer.Option(help="Also print the source.")] = True,
    json: JsonOption = False,
) -> None:
    """One candidate: why it was made, how it trained, what it scored, what it taught, and its source.

    Example: poise show runs/laptop GRPO
    """
    from poise_core.run_directory import RunDirectory
    from poise_core.views import leaderboard as rank
    from poise_core.views import render_candidate, view_candidate

    with plain_errors():
        run = RunDirectory.read(run_dir)
        rows = rank(run.archive, run.preset.protocol)
        best = next((row.candidate_id for row in rows if row.rank == 1), "")
        found = find_candidate_id(run, candidate or best)
        view = view_candidate(run.archive, run.preset.protocol, found)
        if json:
            _print_json(view.to_dict())
        else:
            _print(render_candidate(view, code=code))


def find_candidate_id(run: RunDirectory, wanted: str) -> str:
    """The candidate that is meant; one line and status 2 where there is none, or where there are several."""
    from poise_core.archive import ArchiveError
    from poise_core.views import find_candidate

    run.archive.read("candidates")  # what is wrong with the archive itself is told as that
    try:
        return find_candidate(run.archive, wanted)
    except ArchiveError as error:
        raise fail(error, UNUSABLE) from error


def leaderboard_of(run: RunDirectory, width: int | None = None) -> RenderableType:
    """For a terminal of ``width`` columns, by default the one at hand."""
    from rich.console import Console

    from poise_core.evidence.run_evidence import standing_of
    from poise_core.views import leaderboard as rank
    from poise_core.views import other_protocols, render_leaderboard
    from poise_core.views.outlook import outlook_note

    protocol = run.preset.protocol
    return render_leaderboard(
        rank(run.archive, protocol),
        protocol,
        others=other_protocols(run.archive, protocol),
        standing=standing_of(run.archive, protocol),
        width=width or Console().width,
        outlook=outlook_note(run.archive, run.preset),
    )


def lineage_of(run: RunDirectory) -> RenderableType:
    """For a terminal."""
    from poise_core.views import lineage as trace
    from poise_core.views import lineage_tree

    return lineage_tree(trace(run.archive, run.preset.protocol))


def _print_json(document: Any) -> None:
    typer.echo(json_module.dumps(document, indent=1, ensure_ascii=False))


def _print(view: RenderableType, drawn: RenderableType | None = None, svg: Path | None = None) -> None:
    from rich.console import Console

    Console().print(view)
    if svg is not None and drawn is not None:
        drawing = Console(record=True, width=DRAWING_WIDTH, file=io.StringIO())
        drawing.print(drawn)
        drawing.save_svg(str(svg), title="poise")
