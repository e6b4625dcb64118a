"""The ``poise`` command. Importing this package loads typer only; every command imports what it needs when it runs."""

from __future__ import annotations

# ruff: noqa: E402  (the surroundings are settled before anything is imported that a folder of the user's could hold, too)
from typing import Annotated, Any

from poise_core.surroundings import settle

settle()

import typer
from typer.core import TyperGroup

from poise_core.cli import archive as cli_archive
from poise_core.cli import sampler as cli_sampler
from poise_core.cli import testbed as cli_testbed
from poise_core.cli.agents import bridge, context, cost, lessons
from poise_core.cli.compare import compare_search, record_table
from poise_core.cli.evaluate import evaluate
from poise_core.cli.evolve import evolve
from poise_core.cli.explore import explore
from poise_core.cli.export import export
from poise_core.cli.fetch import fetch
from poise_core.cli.plan import plan
from poise_core.cli.problems import env, grade
from poise_core.cli.reading import credit, leaderboard, lineage, rungs, show
from poise_core.cli.replicate import ablate, replicate
from poise_core.cli.track import track
from poise_core.cli.tune import tune
from poise_core.cli.verify import verify
from poise_core.cli.version import print_version
from poise_core.files import expanded

_HELP = (
    "Evolve the reinforcement-learning algorithms that train language models, and keep the evidence.",
    "Start with [bold]poise evolve --preset laptop[/bold]: it trains and scores GRPO, then proposes, verifies, trains and "
    "scores children of it, generation after generation. Ctrl-C stops it; the same command goes on.",
    "Then look: [bold]poise leaderboard runs/laptop[/bold], [bold]poise lineage runs/laptop[/bold], [bold]poise show "
    "runs/laptop NAME[/bold].",
    "Then prove: [bold]poise replicate runs/laptop NAME[/bold] trains a champion candidate again, with fresh seeds, and reads the "
    "sealed split.",
    "Write one yourself: copy a file of poise_core/algorithms, change it, run [bold]poise verify FILE.py[/bold] until it "
    "is admitted, then [bold]poise evaluate FILE.py[/bold].",
    "Exit status: 0 done; 1 the candidate was refused or failed; 2 the input cannot be used and nothing was written; "
    "3 the machine failed, the same command goes on; 130 stopped, the same command goes on.",
)


class _Commands(TyperGroup):
    """The commands; a leading ~ in an argument is the home folder, also where the shell leaves it, as in --run-dir=~/run."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments of the command line."""
        return super().parse_args(ctx, [_with_home(argument) for argument in args])


def _with_home(argument: str) -> str:
    option, _, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    if value != "~" and not value.startswith("~/"):
        return argument
    return f"{option}={expanded(value)}" if option else str(expanded(value))


app = typer.Typer(
    name="poise",
    cls=_Commands,
    help="\n\n".join(_HELP),
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=print_version, help="Print the versions and the platform."),
    ] = False,
) -> None:
    """Options of the command itself; its subcommands do the work."""


for command in (
    evolve,
    evaluate,
    verify,
    fetch,
    leaderboard,
    lineage,
    show,
    rungs,
    explore,
    credit,
    replicate,
    ablate,
    export,
    track,
    cost,
    context,
    lessons,
    bridge,
    tune,
    grade,
    plan,
):
    app.command()(command)
app.command()(compare_search)
app.command()(record_table)
app.add_typer(cli_archive.app)
app.add_typer(cli_sampler.app)
app.add_typer(env)
app.command(rich_help_panel="Testbed")(cli_testbed.calibrate)
app.command(rich_help_panel="Testbed")(cli_testbed.build_policy)
