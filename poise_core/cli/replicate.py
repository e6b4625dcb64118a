"""``poise replicate``: the examination of a champion candidate; ``poise ablate``: what its gain rests on."""

from __future__ import annotations

import json as json_module
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from poise_core.cli.common import (
    REFUSED,
    UNUSABLE,
    JsonOption,
    SetOption,
    SharedNetworkOption,
    fail,
    plain_errors,
    say,
    say_json,
    serve_another_node,
    shared_network,
    view_console,
)
from poise_core.cli.track import say_behind

if TYPE_CHECKING:
    from poise_core.experiments.examination import ExaminationRecord


def replicate(
    run_dir: Annotated[Path, typer.Argument(help="A run directory, for example runs/laptop.")],
    candidate: Annotated[str, typer.Argument(help="Name, id, or the beginning of an id.")],
    seeds: Annotated[
        int | None, typer.Option(min=2, help="Fresh training seeds of every comparison. Default: examination.seeds.")
    ] = None,
    conditions: Annotated[
        str | None,
        typer.Option(help="Only these, after the primary one, for example primary or rates,policy. Default: all."),
    ] = None,
    undeclared: Annotated[
        bool, typer.Option("--undeclared", help="Also a candidate that is no champion candidate; the record says so.")
    ] = False,
    allow_shared_network: SharedNetworkOption = False,
    overrides: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Examine a champion candidate beside the baseline: fresh seeds, sealed problems, and the conditions of the preset.

    The primary condition is the protocol as it is; it makes a champion. The others ask whether that holds with each side at its
    best learning rate, on another base policy, at other k and without a collapse: docs/evidence.md. Their cost is told before
    anything is trained. A candidate is examined once; asked again, the record is shown. Interrupted, the same command goes on.

    Exit status 0: better under the primary condition; 1: it is not, or it failed; 2: not possible here, and nothing was done.

    Examples:

    poise replicate runs/laptop VM-AV

    poise replicate runs/laptop VM-AV --conditions primary --seeds 5
    """
    from poise_core.archive import ArchiveError
    from poise_core.cli.progress import ProgressDisplay
    from poise_core.config import with_overrides
    from poise_core.experiments.examination import Examination
    from poise_core.experiments.replication import ReplicationRefused
    from poise_core.run_directory import RunDirectory
    from poise_core.tracking.sync import Tracker
    from poise_core.views import find_candidate

    shared_network(allow_shared_network)
    with plain_errors():
        preset = with_overrides(RunDirectory.read(run_dir).current_preset, overrides or [])
        serve_another_node(preset, run_dir)
        if preset.protocol.unsealed:
            say(f"poise: {preset.protocol.unsealed_note}", err=True)
        with RunDirectory.open(run_dir, preset) as run:
            try:
                found = find_candidate(run.archive, candidate)
            except ArchiveError as error:
                raise fail(error, UNUSABLE) from error
            try:
                with ProgressDisplay(preset, seeds or preset.examination.seeds) as display:
                    record = Examination(run, found, observer=display).examine(
                        seeds,
                        undeclared=undeclared,
                        conditions=[one.strip() for one in conditions.split(",")] if conditions is not None else None,
                        say=lambda cost: say(cost, err=True),
                    )
            except ReplicationRefused as error:
                raise fail(error, UNUSABLE) from error
            Tracker.for_run(run).sync_archive(
                run.archive,
                run.preset.protocol,
                run_dir=run.path,
                force=True,
            )  # moves the champion's alias
            say_behind(run)
    _print(found, record, json)
    if record.replication["outcome"] != "replicated":
        raise typer.Exit(REFUSED)


def ablate(
    run_dir: Annotated[Path, typer.Argument(help="A run directory, for example runs/laptop.")],
    candidate: Annotated[str, typer.Argument(help="Name, id, or the beginning of an id.")],
    budget: Annotated[
        int, typer.Option(min=1, help="Trainings of the whole ablation, those of earlier calls included.")
    ] = 120,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="With how many of the candidate's training seeds. Default: all.")
    ] = None,
    allow_shared_network: SharedNetworkOption = False,
    overrides: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Train a candidate's file with its mechanisms switched off and its numbers moved, and say what its score rests on.

    Every mechanism is switched off alone, and is the only one; every number is halved and doubled; pairs of mechanisms, as far as
    the budget goes. What was not shown to help is left out together: that simplified file is verified, measured and written beside
    the candidate. Interrupted, the same command goes on; asked again, the record is shown; with a larger budget, more is measured.

    Examples:

    poise ablate runs/laptop VM-AV

    poise ablate runs/laptop VM-AV --budget 300 --seeds 3
    """
    from poise_core.archive import ArchiveError
    from poise_core.cli.progress import ProgressDisplay
    from poise_core.config import with_overrides
    from poise_core.experiments.ablation import AblationRefused, AblationStudy
    from poise_core.render.terminal import render_ablation
    from poise_core.run_directory import RunDirectory
    from poise_core.tracking.sync import Tracker
    from poise_core.views import find_candidate

    shared_network(allow_shared_network)
    with plain_errors():
        preset = with_overrides(RunDirectory.read(run_dir).current_preset, overrides or [])
        serve_another_node(preset, run_dir)
        with RunDirectory.open(run_dir, preset) as run:
            try:
                found = find_candidate(run.archive, candidate)
            except ArchiveError as error:
                raise fail(error, UNUSABLE) from error
            try:
                with ProgressDisplay(preset, seeds or preset.search.seeds_per_candidate) as display:
                    study = AblationStudy(run, found, observer=display)
                    ablation = study.carry_out(budget, seeds=seeds, say=display.note)
            except AblationRefused as error:
                raise fail(error, UNUSABLE) from error
            Tracker.for_run(run).sync_archive(run.archive, run.preset.protocol, run_dir=run.path, force=True)
            say_behind(run)
    if json:
        say_json(json_module.dumps(ablation.to_dict(), indent=1, ensure_ascii=False))
        return
    view_console().print(render_ablation(ablation, f"Ablation of {ablation.name}"))
    if ablation.simplified:
        say(f"The simplified candidate: {study.simplified_file}", err=True)


def _print(candidate: str, record: ExaminationRecord, json: bool) -> None:
    """The replication, and where there is one the examination."""
    from poise_core.evidence.examination import conclude
    from poise_core.render.terminal import render_examination

    if json:
        document = _plain(record.replication)
        if record.rows:
            conclusion = conclude(record.rows)
            rows = [_plain(row) | {"detail": json_module.loads(row["detail"])} for row in record.rows]
            document["examination"] = {"standing": conclusion.standing, "says": conclusion.sentence, "conditions": rows}
        say_json(json_module.dumps(document, indent=1))
        return
    say(f"{candidate}: {record.replication['message']}")
    if record.rows:
        view_console().print(render_examination(record.rows, f"Examination of {candidate}"))


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("row_key", "created_at", "content_digest")}
