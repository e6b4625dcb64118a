"""``poise replicate``."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from poise_core.cli.common import REFUSED, UNUSABLE, JsonOption, fail, plain_errors


def replicate(
    run_dir: Annotated[Path, typer.Argument(help="A run directory, for example runs/laptop.")],
    candidate: Annotated[str, typer.Argument(help="Name, id, or the beginning of an id.")],
    seeds: Annotated[int | None, typer.Option(min=2, help="Fresh training seeds. Default: all that are left.")] = None,
    undeclared: Annotated[
        bool, typer.Option("--undeclared", help="Also a candidate that is no champion candidate; the record says so.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Replicate a champion candidate: train it and the baseline with fresh seeds, and read the sealed report split.

    A candidate is replicated once; asked again, the record is shown. Interrupted, the same command goes on.

    Exit status 0: replicated; 1: refuted, or it failed; 2: not possible here, and nothing was done.

    Example: poise replicate runs/laptop VM-AV
    """
    from poise_core.archive import ArchiveError
    from poise_core.cli.progress import ProgressDisplay
    from poise_core.experiments.replication import Replication, ReplicationRefused
    from poise_core.run_directory import RunDirectory
    from poise_core.tracking.sync import Tracker
    from poise_core.views import find_candidate

    with plain_errors():
        preset = RunDirectory.read(run_dir).current_preset
        with RunDirectory.open(run_dir, preset) as run:
            try:
                found = find_candidate(run.archive, candidate)
            except ArchiveError as error:
                raise fail(error, UNUSABLE) from error
            try:
                with ProgressDisplay(preset, seeds or len(preset.protocol.seeds)) as display:
                    row = Replication(run, found, observer=display).carry_out(seeds, undeclared=undeclared)
            except ReplicationRefused as error:
                raise fail(error, UNUSABLE) from error
            Tracker.for_run(run).sync_archive(
                run.archive,
                run.preset.protocol,
                run_dir=run.path,
                force=True,
                planned=run.current_preset.search.planned,
            )  # moves the champion's alias
    if json:
        plain = {name: value for name, value in row.items() if name not in ("row_key", "created_at", "content_digest")}
        typer.echo(json_module.dumps(plain, indent=1))
    else:
        typer.echo(f"{found}: {row['message']}")
    if row["outcome"] != "replicated":
        raise typer.Exit(REFUSED)
