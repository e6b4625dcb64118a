"""``poise verify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from poise_core.cli.common import (
    REFUSED,
    JsonOption,
    SharedNetworkOption,
    algorithm_file,
    plain_errors,
    say_json,
    shared_network,
    view_console,
)

if TYPE_CHECKING:
    from poise_core.config.protocol import TrainingSpec
    from poise_core.run_directory import RunDirectory
    from poise_core.verification import VerificationReport


def verify(
    file: Annotated[Path, typer.Argument(help="A candidate file, or a shipped algorithm such as grpo.")],
    run_dir: Annotated[
        Path | None, typer.Option(help="A run whose admitted candidates it is compared with, as evolve would.")
    ] = None,
    json: JsonOption = False,
    allow_shared_network: SharedNetworkOption = False,
    probe_seed: Annotated[
        int | None,
        typer.Option(help="Of the probes, to repeat a verdict: the probe_seed of its report. Default: random."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Verify for this preset's group size, length limit and steps. Default: those of --run-dir, or any."
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(min=1.0, help="Seconds that the whole gate may take.")] = 60.0,
) -> None:
    """Put an algorithm file through the admission gate, in a confined process.

    Every failed check comes with a sentence that says what to change. Exit status 0: admitted, 1: refused.

    Example: poise verify my_algorithm.py
    """
    from rich.text import Text

    from poise_core.evolution.stages.verify import Known, known_candidates
    from poise_core.run_directory import RunDirectory
    from poise_core.verification import Conditions, verify_file
    from poise_core.verification.report import ANY_TRAINING

    file = algorithm_file(file)
    shared_network(allow_shared_network)
    with plain_errors(), view_console(stderr=True).status(Text(f"verifying {file.name}")):
        run = RunDirectory.read(run_dir) if run_dir else None
        known = known_candidates(run.archive) if run else Known({}, {})
        training = _training(preset, run)
        report = verify_file(
            file,
            timeout_seconds=timeout,
            known_fingerprints=known.fingerprints,
            known_programs=known.programs,
            probe_seed=probe_seed,
            conditions=Conditions.of(training) if training else ANY_TRAINING,
        )
    if json:
        say_json(report.to_json())
    else:
        _print(report)
    if not report.admitted:
        raise typer.Exit(REFUSED)


def _training(preset: str | None, run: RunDirectory | None) -> TrainingSpec | None:
    """The training of a preset, or of a run's protocol."""
    from poise_core.config import load_preset

    if preset:
        return load_preset(preset).protocol.training
    return run.preset.protocol.training if run else None


def _print(report: VerificationReport) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    for check in report.checks:
        mark = Text("passed", "green") if check.passed else Text("failed", "red")
        table.add_row(mark, check.name, Text(check.proves if check.passed else check.message))
        if check.note:
            table.add_row(Text("note", "yellow"), "", Text(check.note))
    console = view_console()
    console.print(table)
    for line in [*_likeness(report), *_confinement(report)]:
        console.print(Text(line))
    if report.probe_seed is not None:
        console.print(Text(f"drawn probes: --probe-seed {report.probe_seed} repeats this verdict"))
    if report.admitted:
        console.print(Text(f"{report.candidate_name}: admitted in {report.seconds:.1f} s", "green"))
    else:
        console.print(Text(f"{report.candidate_name}: refused ({report.failure})", "red"))


def _likeness(report: VerificationReport) -> list[str]:
    """The algorithms that it behaves like; distance 0 is the same update on every probe, 1 and more an unrelated one."""
    lines = []
    if report.duplicate_of:
        lines.append(f"trains exactly as {report.duplicate_of}")
    if report.nearest:
        (name, distance), *others = report.nearest[:4]
        further = ", ".join(f"{other} {far:.2g}" for other, far in others)
        lines.append(f"within {distance:.2g} of {name} on every probe (0 the same, 1 unrelated); further: {further}")
    if report.nearest_archived:
        near = ", ".join(f"{identity} {distance:.2g}" for identity, distance in report.nearest_archived)
        lines.append(f"nearest in the run: {near}")
    return lines


def _confinement(report: VerificationReport) -> list[str]:
    """The measures of confinement that this machine did not grant."""
    if not report.confinement:
        return []  # nothing was run
    missing = [f"{name} ({text})" for name, text in report.confinement.items() if text != "granted"]
    return [f"confined but for: {'; '.join(missing)}" if missing else "confined in every way"]
