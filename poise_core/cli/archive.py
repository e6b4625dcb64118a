"""``poise archive compact`` and ``poise archive check``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from poise_core.cli.common import FAULT, fail, plain_errors, say

if TYPE_CHECKING:
    from poise_core.archive import Archive, CompactedTable

app = typer.Typer(
    name="archive",
    help="Keep the tables of a run: rewrite many small files into few, look for damage.",
    no_args_is_help=True,
)

RunDir = Annotated[Path, typer.Argument(help="A run directory, for example runs/laptop.")]


@app.command()
def compact(
    run_dir: RunDir,
    check: Annotated[
        bool, typer.Option("--check", help="Look over the whole archive before and after, as poise archive check does.")
    ] = False,
) -> None:
    """Rewrite the many small files of a run's archive into one per table (two for evaluations: one per split).

    The rows stay the same, and so does everything that reads them. Every new file is read back and compared before the old
    ones go. A run may go on meanwhile and afterwards; after a kill the same command goes on.

    Example: poise archive compact runs/laptop
    """
    from poise_core.run_directory import RunDirectory

    with plain_errors():
        archive = RunDirectory.read(run_dir).archive
        if check:
            _check(archive)
        archive.compact(_tell)
        if check:
            _check(archive)


@app.command(name="check")
def check_archive(run_dir: RunDir) -> None:
    """Look over a run's archive: every file opens, every row matches its digest, nothing refers to a missing candidate.

    Exit status 0: all is well; 3: one line per fault.

    Example: poise archive check runs/laptop
    """
    from poise_core.run_directory import RunDirectory

    with plain_errors():
        _check(RunDirectory.read(run_dir).archive)
    typer.echo("every file opens, every row matches its digest, every candidate that is named is there")


def _tell(done: CompactedTable) -> None:
    if done.files_before:
        say(f"{done.table}: {done.rows} rows, {done.files_before} -> {done.files_after} files")


def _check(archive: Archive) -> None:
    faults = archive.check()
    for fault in faults[:-1]:
        say(f"poise: {fault}", err=True)
    if faults:
        raise fail(faults[-1], FAULT)
