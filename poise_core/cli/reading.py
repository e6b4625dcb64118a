"""``poise leaderboard``, ``lineage``, ``rungs``, ``credit`` and ``show``: views of a run, read from its archive."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from poise_core.cli.common import UNUSABLE, JsonOption, fail, plain_errors, say_json, view_console

if TYPE_CHECKING:
    from rich.console import RenderableType

    from poise_core.evidence.run_evidence import RunEvidence
    from poise_core.run_directory import RunDirectory

SvgOption = Annotated[Path | None, typer.Option("--svg", help="Also draw it into this file, for a page.")]
RunDir = Annotated[Path, typer.Argument(help="A run directory, for example runs/laptop.")]


def leaderboard(run_dir: RunDir, json: JsonOption = False, svg: SvgOption = None) -> None:
    """Candidates by Overall, with intervals and paired differences to the baseline; failures below.

    Example: poise leaderboard runs/laptop
    """
    from poise_core.render.svg import WIDTH, draw_view
    from poise_core.run_directory import RunDirectory
    from poise_core.views import leaderboard as rank

    with plain_errors():
        run = RunDirectory.read(run_dir)
        evidence = run.evidence()
        if json:
            _print_json([row.to_dict() for row in rank(evidence)])
            return
        _print(leaderboard_of(run, evidence))
        if svg is not None:
            draw_view(leaderboard_of(run, evidence, WIDTH), svg)


def lineage(run_dir: RunDir, json: JsonOption = False, svg: SvgOption = None) -> None:
    """Who descends from whom, what each child changed, and what it gained over its parent.

    Example: poise lineage runs/laptop
    """
    from poise_core.render.svg import draw_view
    from poise_core.render.terminal import render_lineage, render_selection
    from poise_core.run_directory import RunDirectory
    from poise_core.views import lineage as trace
    from poise_core.views.lineage import selection_report

    with plain_errors():
        evidence = RunDirectory.read(run_dir).evidence()
        roots = trace(evidence)
        if json:
            _print_json([node.to_dict() for node in roots])
            return
        _print(render_lineage(roots))
        if (report := selection_report(evidence)) is not None:
            _print(render_selection(report))
        if svg is not None:
            draw_view(render_lineage(roots), svg)


def rungs(run_dir: RunDir, json: JsonOption = False) -> None:
    """The ladder of a run: what each rung cost and decided, and how well it predicts the last one.

    Example: poise rungs runs/laptop
    """
    from poise_core.render.terminal import render_rungs
    from poise_core.run_directory import RunDirectory
    from poise_core.views.rungs import rung_report

    with plain_errors():
        run = RunDirectory.read(run_dir)
        report = rung_report(run.evidence(), run.current_preset.ladder)
        if json:
            _print_json(report.to_dict())
        else:
            _print(render_rungs(report))


def credit(run_dir: RunDir, json: JsonOption = False) -> None:
    """Which mechanisms pay across all candidates: what having each is worth, with intervals, and which cannot be told apart.

    Example: poise credit runs/laptop
    """
    from poise_core.evidence.credit import run_credit
    from poise_core.render.terminal import render_credit
    from poise_core.run_directory import RunDirectory

    with plain_errors():
        found = run_credit(RunDirectory.read(run_dir).evidence())
        if json:
            _print_json(found.to_dict())
        else:
            _print(render_credit(found))


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
    from poise_core.render.terminal import render_candidate
    from poise_core.run_directory import RunDirectory
    from poise_core.views import leaderboard as rank
    from poise_core.views import view_candidate
    from poise_core.views.leaderboard import best_of

    with plain_errors():
        run = RunDirectory.read(run_dir)
        evidence = run.evidence()
        best = best_of(rank(evidence))
        found = find_candidate_id(run, candidate or (best.candidate_id if best else ""))
        view = view_candidate(evidence, found)
        if json:
            _print_json(view.to_dict())
        else:
            _print(render_candidate(view, code=code))


def find_candidate_id(run: RunDirectory, wanted: str) -> str:
    """Id of the candidate with this name or id; one line and status 2 where there is none, or where there are several."""
    from poise_core.archive import ArchiveError
    from poise_core.views import find_candidate

    run.archive.read("candidates")  # an error of the archive itself comes first
    try:
        return find_candidate(run.archive, wanted)
    except ArchiveError as error:
        raise fail(error, UNUSABLE) from error


def leaderboard_of(run: RunDirectory, evidence: RunEvidence, width: int | None = None) -> RenderableType:
    """The leaderboard of a run for a terminal.

    Args:
        run: whose preset says what the search may still cost.
        evidence: of the run.
        width: columns of the terminal; by default of the one at hand.
    """
    from poise_core.render.lines import compute_note, outlook_note, spending_note
    from poise_core.render.terminal import render_leaderboard
    from poise_core.views import leaderboard as rank
    from poise_core.views import other_protocols
    from poise_core.views.outlook import computed, outlook, spending

    return render_leaderboard(
        rank(evidence),
        evidence.protocol,
        others=other_protocols(evidence),
        evidence=evidence,
        width=width or view_console().width,
        outlook=outlook_note(outlook(evidence, run.preset)),
        spending=spending_note(spending(evidence)),
        compute=compute_note(computed(evidence, run.current_preset.resources.gpus_held)),
    )


def _print_json(document: Any) -> None:
    say_json(json_module.dumps(document, indent=1, ensure_ascii=False))


def _print(view: RenderableType) -> None:
    view_console().print(view)
