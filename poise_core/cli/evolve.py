"""``poise evolve``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from poise_core.cli.agents import agent_overrides, check_and_forecast, recording
from poise_core.cli.common import (
    FAULT,
    STOPPED,
    RunPresetOption,
    SetOption,
    SharedNetworkOption,
    default_run_dir,
    fail,
    plain_errors,
    refuse_misfit,
    say,
    serve_another_node,
    settings_to_go_on,
    shared_network,
    shown,
    view_console,
)
from poise_core.cli.reading import leaderboard_of
from poise_core.cli.track import say_behind
from poise_core.escaping import shell_command, shell_word, without_credentials

if TYPE_CHECKING:
    from poise_core.archive import Archive
    from poise_core.config import Preset
    from poise_core.run_directory import RunDirectory


def evolve(
    preset: RunPresetOption = None,
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
        resolved, anew = settings_to_go_on(preset, run_dir, settings, counts)
        folder = run_dir or default_run_dir(resolved)
        if dry_run:
            from poise_core.cli.plan import dry_run_text

            say(dry_run_text(resolved, folder))
            return
        refuse_misfit(resolved, folder)
        serve_another_node(resolved, folder)
        if forecast := check_and_forecast(resolved, asks=replay is None):
            count = resolved.search.generations
            say(f"poise: forecast of {count} generation{'s' if count > 1 else ''}: {forecast}", err=True)
        recorded = recording(replay)
        if replay is not None:
            share_problems(replay, folder, resolved)
        show_end(evolved(resolved, folder, anew, recorded))


def evolved(preset: Preset, folder: Path, anew: Sequence[str], replay: Archive | None) -> RunDirectory:
    """The run with all its generations, shown as they are made; every way in which it can stop says how it goes on.

    Args:
        preset: as settled.
        folder: of the run.
        anew: one line for each setting that differs from those that the run had.
        replay: the archive of a recorded run.

    Raises:
        typer.Exit: it was stopped, or cannot go on now.
    """
    from flows.local import evolve_here
    from poise_core.cli.progress import ProgressDisplay, Troubles
    from poise_core.evolution import EvolutionError
    from poise_core.failures import Cancelled, InfrastructureError

    resume = shell_command(["poise", *sys.argv[1:]])
    try:
        with (
            ProgressDisplay(preset, preset.search.seeds_per_candidate) as display,
            Troubles(display.note),
        ):
            notes = [f"poise: {line}" for line in (*anew, preset.untuned, preset.protocol.unsealed_note) if line]

            def tell(status: str) -> None:
                while notes:  # once, when the run is open: input that cannot be used gets its own line alone
                    display.note(notes.pop(0))
                display.say(status)

            return evolve_here(preset, folder, observer=display, say=tell, replay=replay)
    except Cancelled as error:
        say_failures(folder)
        raise fail("stopped; go on with:", STOPPED, resume) from error
    except InfrastructureError as error:
        say_failures(folder)
        raise fail(f"{str(error).splitlines()[0]}; once that is corrected, go on with:", FAULT, resume) from error
    except EvolutionError as error:
        say_failures(folder)
        raise fail(error, 1) from error


def show_end(run: RunDirectory) -> None:
    """What a finished run came to, and where to look further."""
    from poise_core.render.terminal import render_lineage
    from poise_core.views import lineage

    console = view_console()
    evidence = run.evidence()
    console.print(leaderboard_of(run, evidence))
    console.print()
    console.print(render_lineage(lineage(evidence)))
    console.print()
    console.print(where_to_look(run), highlight=False, soft_wrap=True)
    say_failures(run.path)
    say_behind(run)


def say_failures(folder: Path) -> None:
    """One line on what language models did not answer, at every end of a run; nothing where there is no run."""
    from poise_core.agents.llm.ledger import failures_of
    from poise_core.archive import ArchiveError
    from poise_core.run_directory import RunDirectory, RunDirectoryError

    try:
        failures = failures_of(RunDirectory.read(folder).archive.rows("calls")) if RunDirectory.exists(folder) else ""
    except (ArchiveError, RunDirectoryError, OSError):
        return  # what ended the run is said in the line after this one
    if failures:
        say(f"poise: {failures}", err=True)


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


def where_to_look(run: RunDirectory) -> str:
    """Paths of what a run has left, with the commands that open them."""
    folder = shown(run.path)
    archive = run.preset.archive or f"{folder}/archive"
    programs = shown(Path(sys.executable).parent)
    server = os.environ.get("PREFECT_API_URL")
    tracking = run.tracking_uri
    reading = f"import pandas; print(pandas.read_parquet({f'{archive}/evaluations'!r}))"
    mlflow = shell_command([f"{programs}/mlflow", "ui", "--backend-store-uri", tracking])
    home = f"PREFECT_HOME={shell_word(run.path / 'prefect')}"
    prefect = f"{home} {shell_command([f'{programs}/prefect', 'server', 'start'])}"
    look = (["show", folder, "NAME"], ["leaderboard", folder], ["lineage", folder])
    lines = "\n".join(
        [
            f"Archive   {archive}",
            f"          {shell_command([f'{programs}/python', '-c', reading])}",
            f"MLflow    {mlflow if tracking == run.own_tracking_uri else tracking}",
            f"Prefect   {prefect if server is None else server}",
            f"Look      {'    '.join(shell_command(['poise', *words]) for words in look)}",
        ]
    )
    return without_credentials(lines)
