"""``poise tune``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from poise_core.cli.common import (
    UNUSABLE,
    PresetOption,
    SetOption,
    SharedNetworkOption,
    fail,
    interval_text,
    plain_errors,
    refuse_misfit,
    resolve_preset,
    say,
    shared_network,
    view_console,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from poise_core.experiments.tuning_runs import Tuned, Tuning


def tune(
    preset: PresetOption = "laptop",
    run_dir: Annotated[
        Path | None, typer.Option(help="Folder of the trainings; what is there goes on. Default: runs/PRESET-tune.")
    ] = None,
    trainings: Annotated[int, typer.Option(min=1, help="Budget, the last measurement included.")] = 80,
    seeds: Annotated[int, typer.Option(min=2, help="Training seeds per point; the front gets twice as many.")] = 2,
    fresh_seeds: Annotated[int, typer.Option(min=2, help="Seeds of the optimum's last measurement.")] = 5,
    write: Annotated[
        bool | None,
        typer.Option(
            "--write/--no-write",
            help="Put the result where the preset takes it from. Default: yes for a preset of your own, no for a shipped one.",
        ),
    ] = None,
    allow_shared_network: SharedNetworkOption = False,
    overrides: SetOption = None,
) -> None:
    """Search the baseline's own numbers: learning rate, inner epochs, KL, clip and entropy coefficients.

    A search for better algorithms should begin from a baseline at its best: otherwise it finds what suits the untuned numbers.
    One number after the other is moved on a log scale until its neighbours on both sides are worse, on the search split and
    with seeds that no run uses; then the optimum and the start are measured again with fresh seeds. The result is written to
    tuned.yaml in the folder and, with --write, to the file that the preset's key `tuned` names.

    Run it again on the same folder and it goes on where it stopped, however it was stopped, with more --trainings if you like.

    Examples:

    poise tune --preset laptop

    poise tune --preset my.yaml --run-dir runs/my-tune --trainings 120
    """
    from poise_core.experiments.tuning_runs import Tuning, TuningRefused
    from poise_core.run_directory import require_usable_place

    def tell(line: str) -> None:
        say(line, err=True)

    with plain_errors():
        resolved = resolve_preset(preset, [*(overrides or []), *shared_network(allow_shared_network)])
        folder = (run_dir or Path("runs") / f"{resolved.name}-tune").absolute()
        require_usable_place(folder)
        refuse_misfit(resolved, folder)
        try:
            tuning = Tuning(resolved, folder, trainings, seeds, fresh_seeds, say=tell)
            tell(_what(tuning))
            with tuning:
                tuned = tuning.carry_out()
        except TuningRefused as error:
            raise fail(error, UNUSABLE) from error
        view_console().print(table(tuned))
        say(summary(tuned))
        say(_placed(tuned, preset, overrides, write))


def _what(tuning: Tuning) -> str:
    names = ", ".join(axis.name for axis in tuning.axes)
    return (
        f"Tuning {tuning.algorithm} under protocol {tuning.preset.protocol.tuning_digest} (learning rate, inner epochs and seeds "
        f"aside): {names}.\nOne after the other on a log scale, {tuning.seeds} seeds a point, until both neighbours of the best "
        f"point are worse on every axis; at most {tuning.budget} trainings, {tuning.reserve} of them with fresh seeds at the end.\n"
        f"Start: {tuning.label(tuning.start)}.\nFolder: {tuning.folder}; the same command goes on where it stopped."
    )


def table(tuned: Tuned) -> RenderableType:
    """The points through the optimum, one block per number."""
    from rich.table import Table

    record = tuned.record
    shown = Table(
        title=f"Tuning of {record.algorithm}, protocol {record.digest}: all numbers but one at the optimum", box=None
    )
    for head in ("number", "value", "Overall [95%]", "seeds", "to the optimum"):
        shown.add_column(head, justify="left" if head == "number" else "right", no_wrap=True)
    for name, rows in record.axes.items():
        for row in rows:
            optimum = "delta" not in row and "failed" not in row
            cells = ("failed", "", "") if "failed" in row else (
                interval_text(row["overall"]),
                str(row["overall"]["seeds"]),
                "optimum" if optimum else interval_text(row["delta"], signed=True),
            )  # fmt: skip
            shown.add_row(name, f"{row['value']:.3g}", *cells, style="bold" if optimum else None)
    return shown


def summary(tuned: Tuned) -> str:
    """What was found, in sentences."""
    record = tuned.record
    numbers = ", ".join(f"{name} {value:.3g}" for name, value in record.numbers.items())
    lines = [
        f"Optimum: {numbers}.",
        f"Overall {interval_text(record.overall)} with {record.overall['seeds']} fresh seeds, against "
        f"{interval_text(record.chosen_by)} on the seeds that chose it among {record.points} points, which is optimistic.",
        f"Gain over the start: {interval_text(record.gain, signed=True)} with the fresh seeds, paired.",
        f"{record.trainings} of {record.budget} trainings, {record.tokens:,} completion tokens. Search split only.",
    ]
    lines += [  # below the table, which a long reason would squeeze
        f"Failed: {name} {row['value']:.3g}: {row['failed']}"
        for name, rows in record.axes.items()
        for row in rows
        if "failed" in row
    ]
    if record.open:
        lines.append(f"NOT bracketed: {', '.join(record.open)}. More --trainings on the same folder go on from here.")
    else:
        lines.append(
            "Bracketed: on every axis both neighbours of the optimum are worse, or it is the axis's last value."
        )
    return "\n".join(lines)


def _placed(tuned: Tuned, preset: str, overrides: list[str] | None, write: bool | None) -> str:
    """Write the result where the preset takes it from, if it is to be, and say where it lies."""
    from poise_core.config import load_preset, shipped_presets, tuned_file
    from poise_core.experiments.tuning_runs import write_tuned

    target = tuned_file(preset)
    lies = f"Result: {tuned.path}."
    if target is None:
        return f"{lies} The preset takes it with the line `tuned: {tuned.path}`."
    if overrides and load_preset(preset).protocol.tuning_digest != tuned.record.digest:
        return f"{lies} Not written to {target}: with --set it is the result of another protocol than the preset's."
    if not (preset not in shipped_presets() if write is None else write):
        return f"{lies} With --write it also goes to {target}, where the preset takes it from."
    try:
        write_tuned(target, tuned.document, Path(preset).stem)
    except OSError as error:
        raise fail(f"{target}: not written: {error.strerror or error}; the result is {tuned.path}", UNUSABLE) from error
    return f"{lies} Written to {target}, where the preset takes it from."
