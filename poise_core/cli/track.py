"""``poise track``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from poise_core.cli.common import FAULT, fail, plain_errors, say, shown
from poise_core.escaping import shell_command, without_credentials

if TYPE_CHECKING:
    from poise_core.run_directory import RunDirectory


def track(
    run_dir: Annotated[Path, typer.Argument(help="A run directory, for example runs/laptop.")],
    uri: Annotated[
        str | None,
        typer.Option(help="MLflow's tracking URI. Default: MLFLOW_TRACKING_URI, else the run's own SQLite file."),
    ] = None,
) -> None:
    """Bring MLflow up to date with a run: also one that was finished while the server was down, or was kept elsewhere.

    What is there already stays as it is; the run itself is only read.

    Exit status 0: MLflow holds everything that the archive holds; 3: MLflow does not answer, the same command goes on.

    Example: poise track runs/laptop --uri http://127.0.0.1:5000
    """
    from poise_core.run_directory import RunDirectory
    from poise_core.tracking.sync import Tracker

    with plain_errors():
        run = RunDirectory.read(run_dir)
        tracker = Tracker.for_run(run, uri)
        report = tracker.sync_archive(run.archive, run.preset.protocol, run_dir=run.path, force=True)
    if report.error:
        raise fail(f"MLflow at {tracker.uri}: {report.error}", FAULT)
    say(
        f"{tracker.experiment} at {without_credentials(tracker.uri)}: {report.created} runs made, {report.updated} updated, "
        f"{report.unchanged} unchanged"
    )
    for line in report.refused:
        say(f"not taken: {line}", err=True)


def say_behind(run: RunDirectory) -> None:
    """One line where MLflow does not hold everything at the end, after it was tried once more."""
    from poise_core.tracking.sync import Tracker

    tracker = Tracker.for_run(run)
    if tracker.behind and tracker.sync_archive(run.archive, run.preset.protocol, run_dir=run.path, force=True).error:
        again = shell_command(["poise", "track", shown(run.path)])
        where = f"MLflow at {tracker.uri} is behind ({tracker.behind})"
        say(without_credentials(f"poise: {where}; the archive is complete, catch up with: {again}"), err=True)
