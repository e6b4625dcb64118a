"""``poise verify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from poise_core.cli.common import REFUSED, JsonOption, existing_file, plain_errors

if TYPE_CHECKING:
    from poise_core.verification import VerificationReport


def verify(
    file: Annotated[Path, typer.Argument(help="A candidate file, for example poise_core/algorithms/grpo.py.")],
    json: JsonOption = False,
    timeout: Annotated[float, typer.Option(help="Seconds that the whole gate may take.")] = 60.0,
) -> None:
    """Put an algorithm file through the admission gate, in a confined process.

    Every check that says no comes with a sentence that says what to change. Exit status 0: admitted, 1: refused.

    Example: poise verify my_algorithm.py
    """
    from rich.console import Console

    from poise_core.verification import verify_file

    existing_file(file)
    with plain_errors(), Console(stderr=True).status(f"verifying {file.name}"):
        report = verify_file(file, timeout_seconds=timeout)
    if json:
        typer.echo(report.to_json())
    else:
        _print(report)
    if not report.admitted:
        raise typer.Exit(REFUSED)


def _print(report: VerificationReport) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    for check in report.checks:
        mark = Text("passed", "green") if check.passed else Text("failed", "red")
        table.add_row(mark, check.name, Text(check.proves if check.passed else check.message))
    console = Console()
    console.print(table)
    if report.admitted:
        near = ", ".join(f"{name} {distance:.2f}" for name, distance in report.nearest[:3])
        console.print(Text(f"{report.candidate_name}: admitted in {report.seconds:.1f} s", "green"))
        console.print(Text(f"nearest known algorithms (0 = same behaviour): {near}" if near else ""))
    else:
        console.print(Text(f"{report.candidate_name}: refused ({report.failure})", "red"))
