"""``poise evolve``."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from click.core import ParameterSource

from poise_core.cli.agents import agent_overrides, check_and_forecast, recording
from poise_core.cli.common import (
    FAULT,
    STOPPED,
    PresetOption,
    SetOption,
    SharedNetworkOption,
    default_run_dir,
    fail,
    plain_errors,
    resolve_preset,
    say,
    shared_network,
    view_console,
)
from poise_core.cli.reading import leaderboard_of

if TYPE_CHECKING:
    from poise_core.config import Preset
    from poise_core.run_directory import RunDirectory


def evolve(
    context: typer.Context,
    preset: PresetOption = "laptop",
    run_dir: Annotated[
        Path | None, typer.Option(help="Where everything goes; a run that is there goes on. Default: runs/PRESET.")
    ] = None,
    generations: Annotated[int | None, typer.Option(min=1, help="How many generations the run shall hold.")] = None,
    parents: Annotated[int | None, typer.Option(min=1, help="Parents per generation; each gets one child.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of selection and proposals.")] = None,
    llm: Annotated[
        str | None, typer.Option(metavar="PROVIDER:NAME", help="Let a language model propose, write and reflect.")
    ] = None,
    base_url: Annotated[str | None, typer.Option(help="OpenAI-compatible server of an openai: model.")] = None,
    directive: Annotated[str | None, typer.Option(help="In words, what the search should aim for.")] = None,
    replay: Annotated[
        Path | None, typer.Option(help="A recorded run: take its models' answers instead of asking.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the whole plan, and what is there of it; start and write nothing.")
    ] = False,
    allow_shared_network: SharedNetworkOption = False,
    overrides: SetOption = None,
) -> None:
    """Evolve algorithms: the baseline first, then generations of children, each really trained and really scored.

    Run it again on the same directory and it goes on where it stopped, however it was stopped. Without --preset it goes on with the
    run's own settings, whatever set them, and says which of them are given anew.

    Examples:

    poise evolve --preset laptop

    poise evolve --run-dir runs/laptop --generations 5

    poise evolve --preset my.yaml --seed 1 --set search.seeds_per_candidate=3

    poise evolve --llm openai:NAME --base-url http://127.0.0.1:8000/v1 --directive "shorter answers, same accuracy"
    """
    with plain_errors():
        settings = [
            *(overrides or []),
            *agent_overrides(llm, base_url, directive),
            *shared_network(allow_shared_network),
        ]
        counts = {"generations": generations, "parents": parents, "seed": seed}
        chosen = context.get_parameter_source("preset") is not ParameterSource.DEFAULT
        resolved, anew = settings_to_go_on(preset, chosen, run_dir, settings, counts)
        if dry_run:
            from poise_core.cli.plan import dry_run_text

            say(dry_run_text(resolved, run_dir or default_run_dir(resolved)))
            return
        if forecast := check_and_forecast(resolved):
            count = resolved.search.generations
            say(f"poise: forecast of {count} generation{'s' if count > 1 else ''}: {forecast}", err=True)
        from flows.local import evolve_here
        from poise_core.cli.progress import ProgressDisplay
        from poise_core.evolution import EvolutionError
        from poise_core.failures import Cancelled, InfrastructureError
        from poise_core.render.terminal import render_lineage
        from poise_core.views import lineage

        folder = run_dir or default_run_dir(resolved)
        recorded = recording(replay)
        if replay is not None:
            share_problems(replay, folder, resolved)
        resume = f"go on with: {shlex.join(['poise', *sys.argv[1:]])}"
        try:
            with ProgressDisplay(resolved, resolved.search.seeds_per_candidate) as display:
                notes = [
                    f"poise: {line}" for line in (*anew, resolved.untuned, resolved.protocol.unsealed_note) if line
                ]

                def tell(status: str) -> None:
                    while notes:  # once, when the run is open: input that cannot be used gets its own line alone
                        display.note(notes.pop(0))
                    display.say(status)

                run = evolve_here(resolved, folder, observer=display, say=tell, replay=recorded)
        except Cancelled as error:
            raise fail(f"stopped; {resume}", STOPPED) from error
        except InfrastructureError as error:
            raise fail(f"{str(error).splitlines()[0]}; once that is corrected, {resume}", FAULT) from error
        except EvolutionError as error:
            raise fail(error, 1) from error
        console = view_console()
        evidence = run.evidence()
        console.print(leaderboard_of(run, evidence))
        console.print()
        console.print(render_lineage(lineage(evidence)))
        console.print()
        console.print(where_to_look(run), highlight=False, soft_wrap=True)
        if failures := model_failures(run):
            say(f"poise: {failures}", err=True)


def model_failures(run: RunDirectory) -> str:
    """One line on the calls of language models that got no usable answer, with the first reason; "" where all did."""
    calls = sorted(run.archive.rows("calls"), key=lambda row: row["created_at"])
    failed = [row for row in calls if row["outcome"] not in ("ok", "budget")]
    if not failed:
        return ""
    first = failed[0]
    nothing = "" if len(failed) < len(calls) else "; the catalogue and the rules worked in its place"
    return (
        f"{len(failed)} of {len(calls)} calls to the language model failed{nothing}; "
        f"the first: {first['outcome']}: {first['message']}"
    )


def share_problems(recorded: Path, folder: Path, preset: Preset) -> None:
    """Give a new run the secret of the recorded one: its problems, and with them the scores that models were told, are the same.

    Raises:
        RunDirectoryError: see ``RunDirectory.open``.
    """
    from poise_core.run_directory import RunDirectory
    from poise_core.run_directory.records import PRESET

    secret = RunDirectory.read(recorded).secret
    if secret is not None and not (folder / PRESET).is_file():
        with RunDirectory.open(folder, preset, secret):
            pass


def settings_to_go_on(
    preset: str, chosen: bool, run_dir: Path | None, overrides: list[str], counts: dict[str, int | None]
) -> tuple[Preset, list[str]]:
    """The settings of this start, and one line for each that differs from those that the run had.

    Args:
        preset: name or path.
        chosen: whether the user has given it; otherwise a run that is there goes on with its own settings.
        run_dir: where the run is; None for the preset's default.
        overrides: of ``--set`` and the options that stand for keys.
        counts: keys of ``search``; None leaves what there is.

    Raises:
        PresetError, RunDirectoryError: see ``load_preset`` and ``RunDirectory.read``.
    """
    from poise_core.config.loading import with_overrides
    from poise_core.run_directory import RunDirectory
    from poise_core.run_directory.records import PRESET, differences

    folder = run_dir or default_run_dir(resolve_preset(preset, []))
    present = RunDirectory.read(folder).current_preset if (folder / PRESET).is_file() else None
    if present is None or chosen:
        resolved = resolve_preset(preset, overrides, **counts)
    else:
        given = [f"search.{key}={value}" for key, value in counts.items() if value is not None]
        resolved = with_overrides(present, [*overrides, *given])
    if present is None:
        return resolved, []
    changed = differences(present, resolved)
    return resolved, [f"{key}: {before!r} before, {after!r} from now on" for key, (before, after) in changed.items()]


def where_to_look(run: RunDirectory) -> str:
    """Paths of what a run has left, with the commands that open them."""
    from poise_core.escaping import without_credentials

    folder = _short(run.path)
    archive = run.preset.archive or f"{folder}/archive"
    programs = _short(Path(sys.executable).parent)
    server = os.environ.get("PREFECT_API_URL")
    home = _short(Path(os.environ.get("PREFECT_HOME", run.path / "prefect")))
    tracking = run.tracking_uri
    mlflow = f"{programs}/mlflow ui --backend-store-uri {tracking}" if tracking == run.own_tracking_uri else tracking
    prefect = f"PREFECT_HOME={home} {programs}/prefect server start" if server is None else server
    lines = "\n".join(
        [
            f"Archive   {archive}",
            f"          {programs}/python -c \"import pandas; print(pandas.read_parquet('{archive}/evaluations'))\"",
            f"MLflow    {mlflow}",
            f"Prefect   {prefect}",
            f"Look      poise show {folder} NAME    poise leaderboard {folder}    poise lineage {folder}",
        ]
    )
    return without_credentials(lines)


def _short(path: Path) -> str:
    """Relative to the working directory where the path lies below it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
