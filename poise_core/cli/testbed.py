"""``poise calibrate`` and ``poise build-policy``: making and judging the testbed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress

from poise_core.cli.common import (
    REFUSED,
    UNUSABLE,
    SharedNetworkOption,
    around_measured,
    fail,
    plain_errors,
    progress_bar,
    replace_measured,
    say,
    shared_network,
    view_console,
)

if TYPE_CHECKING:
    from poise_core.archive.measured import Measured
    from poise_core.config import Preset
    from poise_core.testbed.calibration import Summary


def calibrate(
    preset: Annotated[str, typer.Option(help="Preset whose testbed is judged.")] = "laptop",
    seeds: Annotated[int, typer.Option(min=2, help="Training seeds per algorithm.")] = 5,
    other_seeds: Annotated[int, typer.Option(min=2, help="Training seeds per algorithm on the further policies.")] = 3,
    rate: Annotated[
        list[float] | None,
        typer.Option(
            min=1e-6,
            help="Multiples of the preset's learning rate; repeat. With several, every algorithm is measured at its best one.",
        ),
    ] = None,
    rate_seeds: Annotated[int, typer.Option(min=1, help="Training seeds that choose an algorithm's rate.")] = 3,
    algorithm: Annotated[
        list[str] | None, typer.Option(help="Algorithms of the panel; repeat. Default: all that are shipped.")
    ] = None,
    policy: Annotated[
        list[str] | None, typer.Option(help="Base policies; the first is judged, the others compared. Repeat.")
    ] = None,
    run_dir: Annotated[Path, typer.Option(help="Work folder; a repeated call goes on where it stopped.")] = Path(
        "runs/calibrate"
    ),
    write: Annotated[Path | None, typer.Option(help="Markdown page whose measured part is replaced.")] = None,
    record: Annotated[
        Path | None,
        typer.Option(
            help="Parquet file with every evaluation; what is in it is not trained again, here or on another machine."
        ),
    ] = None,
    allow_shared_network: SharedNetworkOption = False,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="key=value, as for evolve.")] = None,
) -> None:
    """Train a panel of known algorithms and state what the testbed can tell apart.

    With several rates, --rate-seeds seeds choose each algorithm's and --seeds further ones measure it there.

    Example: poise calibrate --preset laptop --rate 0.5 --rate 1 --rate 2 --policy arithmetic-a --policy arithmetic-b
    """
    from poise_core.algorithms import list_algorithms
    from poise_core.archive import ArchiveError
    from poise_core.archive.measured import Measured
    from poise_core.testbed.calibration import render
    from poise_core.testbed.panel import TUNED_BASELINE

    if write is not None:
        around_measured(write, "Testbed")
    try:
        measured = Measured(record)
    except ArchiveError as error:
        say(f"poise calibrate: {error}", err=True)
        raise typer.Exit(2) from error
    rates = sorted(set(rate or []))
    settings = [*(overrides or []), *shared_network(allow_shared_network)]
    summaries, protocols = [], []
    for i, name in enumerate(policy or [""]):
        own_seeds = other_seeds if i else seeds
        loaded = _load(preset, [*settings, *([f"protocol.policy={name}"] if name else [])])
        names = list(dict.fromkeys(algorithm or ())) or [
            *list_algorithms(),
            *([TUNED_BASELINE] if loaded.baseline_numbers else []),
        ]
        protocols.append(loaded.protocol)
        summaries.append(_judge(loaded, names, own_seeds, run_dir, rates, rate_seeds, measured))
    shown = "".join(f" --policy {name}" for name in policy or [])
    shown = "".join(f" --algorithm {name}" for name in dict.fromkeys(algorithm or ())) + shown
    shown = (
        "".join(f" --rate {factor:g}" for factor in rates) + (f" --rate-seeds {rate_seeds}" if rates else "") + shown
    )
    command = f"poise calibrate --preset {preset} --seeds {seeds} --other-seeds {other_seeds}{shown}"
    page = render(summaries, protocols, command)
    say(page)
    if write is not None:
        replace_measured(write, page, "Testbed")


def _load(preset: str, overrides: list[str]) -> Preset:
    from poise_core.config import PresetError, load_preset

    try:
        return load_preset(preset, overrides)
    except PresetError as error:
        say(f"poise calibrate: {error}", err=True)
        raise typer.Exit(2) from error


def _judge(
    preset: Preset,
    names: Sequence[str],
    seeds: int,
    folder: Path,
    rates: Sequence[float],
    rate_seeds: int,
    measured: Measured,
) -> Summary:
    """Train the panel on one base policy, with a bar on the terminal, and sum up.

    Raises:
        typer.Exit: there is nothing to compare, or too few have finished; what has finished is in the record.
    """
    from poise_core.testbed.calibration import summarize
    from poise_core.testbed.panel import TUNED_BASELINE, PanelRun

    protocol = preset.protocol
    baseline = TUNED_BASELINE if TUNED_BASELINE in names else preset.search.baseline
    if baseline not in names:
        raise fail(f"--algorithm: {baseline} is missing, to which the others are compared", UNUSABLE)
    if len(names) < 2:
        raise fail(f"--algorithm: name another one beside {baseline}", UNUSABLE)
    trainings = len(names) * (seeds + (len(rates) * rate_seeds if len(rates) > 1 else 0))
    with (
        progress_bar(f"training on {protocol.policy}", trainings) as advance,
        ThreadPoolExecutor(preset.resources.parallel_candidates) as pool,
    ):
        run = PanelRun(preset, folder, pool, lambda: advance(1), measured)
        try:
            with plain_errors():
                panel = run.run(names, seeds, rates, rate_seeds)
        except ValueError as error:
            say(f"poise calibrate: {error}", err=True)
            raise typer.Exit(2) from error
    if baseline not in panel.search or len(panel.search) < 2:
        reasons = "; ".join(f"{name} {reason}" for name, reason in panel.failed)
        raise fail(f"too few algorithms of the panel finished: {reasons}", REFUSED)
    return summarize(
        protocol.policy, protocol, panel.search, panel.report, panel.untrained, baseline, panel.failed, panel.rates
    )


def build_policy(
    name: Annotated[str, typer.Argument(help="A recipe of poise_core.testbed.recipes.")],
    out: Annotated[Path, typer.Option(help="Folder to write; must not hold a policy yet.")],
    threads: Annotated[int, typer.Option(help="CPU threads; the shipped policies were built with one.")] = 1,
) -> None:
    """Rebuild a shipped base policy from its recipe.

    Example: poise build-policy arithmetic-a --out /tmp/arithmetic-a
    """
    import torch

    from poise_core.testbed.recipes import RECIPES
    from poise_core.testbed.recipes import build_policy as build

    if name not in RECIPES:
        raise typer.BadParameter(f"no recipe {name!r}; there are {', '.join(RECIPES)}")
    if (out / "config.json").exists():
        raise typer.BadParameter(f"{out} already holds a policy; choose another folder")
    with plain_errors():
        out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(threads)
    recipe = RECIPES[name]
    with Progress(console=view_console(stderr=True)) as progress:
        bar = progress.add_task(f"demonstrations for {name}", total=recipe.steps)
        build(
            recipe,
            out,
            lambda step, loss: progress.update(bar, completed=step + 1, description=f"{name}: loss {loss:.3f}"),
        )
    say(f"wrote {out}")
