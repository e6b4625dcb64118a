"""What the commands share: options, exit states, and one line for every error that is not a bug."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from poise_core.escaping import one_line, printable, printable_json, without_credentials

if TYPE_CHECKING:
    from poise_core.config import Preset
    from poise_core.policies.model import PromptCodec
    from poise_core.render import ViewConsole

REFUSED, UNUSABLE, FAULT, STOPPED = 1, 2, 3, 130
"""Exit states: the candidate failed; bad input, nothing written; the machine failed; stopped by the user."""

PresetOption = Annotated[str, typer.Option(help="A shipped preset, or the path of a YAML file.")]
RunPresetOption = Annotated[
    str | None,
    typer.Option(help="A shipped preset, or a YAML file's path. Default: the run's own settings; of a new run laptop."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one key, for example protocol.training.steps=20. Repeat."),
]
SharedNetworkOption = Annotated[
    bool,
    typer.Option(
        "--allow-shared-network",
        help="Go on where this machine grants no network namespace; candidate code then shares the machine's network.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def say(text: str, *, err: bool = False) -> None:
    """Print a text that may quote candidates, models or files; no character of it moves the cursor or hides."""
    typer.echo(printable(text), err=err)


def say_json(text: str) -> None:
    """Print a JSON text for programs, with escapes for what a terminal would obey."""
    typer.echo(printable_json(text))


def view_console(*, stderr: bool = False) -> ViewConsole:
    """The console for tables and colours; see ``poise_core.render.ViewConsole``."""
    from poise_core.render import ViewConsole

    return ViewConsole(stderr=stderr)


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error; what is yielded takes how many more of ``total`` are done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=view_console(stderr=True)) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


def fail(message: object, status: int, again: str = "") -> typer.Exit:
    """Print one line on standard error; the caller raises the returned exit.

    Args:
        message: what is wrong.
        status: of the exit.
        again: a command of ``shell_command``, printed as it stands at the end of the line.
    """
    said = without_credentials(one_line(message))
    typer.echo(f"poise: {said} {without_credentials(again)}" if again else f"poise: {said}", err=True)
    return typer.Exit(status)


def shown(path: Path) -> str:
    """A path as a word of a command to paste: relative to the working directory where it lies below it, and never an option."""
    here = Path.cwd()
    text = str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
    return f"./{text}" if text.startswith(("-", "~")) else text


_WRONG_PLACES = (
    errno.EISDIR, errno.ENOTDIR, errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENAMETOOLONG,
)  # fmt: skip
"""Errors of a path that somebody gave, which no second try mends."""


@contextmanager
def plain_errors() -> Iterator[None]:
    """Print one line on what is wrong with the input (status 2) or with the machine (3), and exit."""
    from poise_core.config import PresetError
    from poise_core.failures import Cancelled, InfrastructureError
    from poise_core.run_directory import RunDirectoryError

    try:
        yield
        _release_other_nodes()
    except (PresetError, RunDirectoryError) as error:
        raise fail(error, UNUSABLE) from error
    except InfrastructureError as error:
        raise fail(str(error).splitlines()[0], FAULT) from error
    except OSError as error:
        if error.errno not in _WRONG_PLACES or error.filename is None:
            raise
        raise fail(f"{error.filename}: cannot be used: {error.strerror}; give another path", UNUSABLE) from error
    except (Cancelled, KeyboardInterrupt) as error:
        raise fail("stopped; the same command goes on", STOPPED) from error


def _release_other_nodes() -> None:
    """Where a training goes over several nodes, tell the others that this command has done its work."""
    if (nodes := sys.modules.get("poise_core.training.nodes")) is not None:
        nodes.end_leading(finished=True)


def shared_network(allowed: bool) -> list[str]:
    """The overrides of ``--allow-shared-network``, which travel with the run; on this machine it holds for the gate, too."""
    if not allowed:
        return []
    from poise_core.sandbox.run import ALLOW_SHARED_NETWORK

    os.environ[ALLOW_SHARED_NETWORK] = "1"
    return ["resources.allow_shared_network=true"]


def resolve_preset(name: str, overrides: list[str] | None, **settings: int | None) -> Preset:
    """The preset with ``--set`` and the options that stand for one key each.

    Args:
        name: shipped name or path.
        overrides: of ``--set``.
        **settings: keys of ``search``; ``None`` leaves the preset's value.

    Raises:
        PresetError: see ``poise_core.config.load_preset``.
    """
    from poise_core.config import PresetError, load_preset

    given = [f"search.{key}={value}" for key, value in settings.items() if value is not None]
    preset = load_preset(name, [*(overrides or []), *given])
    if preset.protocol.has_sources:  # they are read before anything is written
        from poise_core.environments.sources import prepared_protocol

        try:
            prepared_protocol(preset.protocol)
        except ValueError as error:
            raise PresetError(str(error)) from error
    return preset


def settings_to_go_on(
    preset: str | None, run_dir: Path | None, overrides: list[str], counts: dict[str, int | None]
) -> tuple[Preset, list[str]]:
    """The settings of this start, and one line for each that differs from those that the run had.

    Args:
        preset: name or path; None: a run that is there goes on with its own settings, a new one has those of laptop.
        run_dir: where the run is; None for the preset's default.
        overrides: of ``--set`` and the options that stand for keys.
        counts: keys of ``search``; None leaves what there is.

    Raises:
        PresetError, RunDirectoryError: see ``load_preset`` and ``RunDirectory.read``.
    """
    from poise_core.config.loading import with_overrides
    from poise_core.run_directory import RunDirectory
    from poise_core.run_directory.records import PRESET, differences

    named = preset or "laptop"
    folder = run_dir or default_run_dir(resolve_preset(named, []))
    present = RunDirectory.read(folder).current_preset if (folder / PRESET).is_file() else None
    if present is None or preset is not None:
        resolved = resolve_preset(named, overrides, **counts)
    else:
        given = [f"search.{key}={value}" for key, value in counts.items() if value is not None]
        resolved = with_overrides(present, [*overrides, *given])
    if present is None:
        return resolved, []
    changed = differences(present, resolved)
    return resolved, [f"{key}: {before!r} before, {after!r} from now on" for key, (before, after) in changed.items()]


def codec_of(preset: Preset) -> tuple[PromptCodec, int | None]:
    """The tokenizer of a preset's policy with its template, and the tokens that the policy can see, completion included."""
    from poise_core.environments import validate

    try:
        return validate.codec_of(preset.protocol)
    except ValueError as error:
        raise fail(error, UNUSABLE) from error


def refuse_misfit(preset: Preset, run_directory: Path) -> None:
    """Refuse to begin a run whose prompts do not fit (``require_fit``); one that is there goes on as it began."""
    from poise_core.environments.validate import require_fit
    from poise_core.run_directory import RunDirectory

    if RunDirectory.exists(run_directory):
        return
    try:
        require_fit(preset.protocol)
    except ValueError as error:
        raise fail(error, UNUSABLE) from error


def serve_another_node(preset: Preset, run_directory: Path) -> None:
    """Where one training goes over several nodes: announce this one as their leader, or serve until the leader's command ends.

    Raises:
        typer.Exit: this node has served.
        poise_core.failures.NodeFault: something is wrong with the nodes.
    """
    if preset.resources.nodes > 1:
        from poise_core.training.nodes import take_part

        if take_part(run_directory, preset.resources):
            raise typer.Exit


def default_run_dir(preset: Preset) -> Path:
    """The run directory where none is given; the same command finds it again."""
    return Path("runs") / preset.name


def interval_text(plain: Mapping[str, Any], *, signed: bool = False) -> str:
    """An interval that stands in a record as plain values, as ``format_interval`` writes it."""
    from poise_core.evidence.format import format_interval
    from poise_core.evidence.intervals import Interval

    return format_interval(Interval.from_dict(plain), signed=signed)


def algorithm_file(given: Path) -> Path:
    """The candidate file that is meant: a path, or the name of a shipped algorithm; otherwise one line and status 2."""
    from poise_core.algorithms import algorithm_path, list_algorithms

    if given.is_file() or given.name != str(given) or given.suffix:
        return existing_file(given)
    if str(given) in list_algorithms():
        return algorithm_path(str(given))
    raise fail(f"{given}: no such file, nor a shipped algorithm; those are {', '.join(list_algorithms())}", UNUSABLE)


def existing_file(path: Path) -> Path:
    """The path, if there is such a file; otherwise one line and status 2."""
    if not path.is_file():
        raise fail(f"{path}: no such file", UNUSABLE)
    return path


_BEGIN, _END = "<!-- measured: begin -->", "<!-- measured: end -->"


def around_measured(path: Path, title: str) -> tuple[str, str]:
    """What stands before and after the measured part of a document, its two comments included; of a missing one, a new title.

    Called before anything is measured, so that hours are not spent on what cannot be written.

    Raises:
        typer.Exit: the document lacks the comments, or no file can be written there.
    """
    with plain_errors():
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text() if path.exists() else f"# {title}\n\n{_BEGIN}\n{_END}\n"
    head, _, rest = text.partition(_BEGIN)
    _, found, tail = rest.partition(_END)
    if not found:
        raise fail(f"{path} lacks the lines {_BEGIN} and {_END} around the part to replace", UNUSABLE)
    return f"{head}{_BEGIN}\n", f"{_END}{tail}"


def replace_measured(path: Path, page: str, title: str) -> None:
    """Put what was measured where the document has it."""
    from poise_core.files import write_atomically

    before, after = around_measured(path, title)
    write_atomically(path, f"{before}{page}{after}")
