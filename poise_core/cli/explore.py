"""``poise explore``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from poise_core.cli.common import STOPPED, UNUSABLE, fail, plain_errors, say

REFRESH_SECONDS = 30


def explore(
    run_dir: Annotated[Path, typer.Argument(help="A run directory, for example runs/laptop.")],
    out: Annotated[
        Path | None, typer.Option(help="The file to write. Default: explore.html in the run directory.")
    ] = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option(
            help="Another run under the same protocol, such as another arm; its best over tokens is drawn too."
        ),
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Show a running evolution on loopback instead, always as it is now.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of --serve; 0 takes a free one.")] = 0,
) -> None:
    """A whole run as one page for a browser: tree, plots, curves, every candidate with its code, and a table of all.

    The file needs neither a network nor a server; send it to whoever asks.

    Example: poise explore runs/laptop --out laptop.html
    """
    from poise_core.files import write_atomically
    from poise_core.render.explorer import PlottingMissingError, plotly_source, run_page
    from poise_core.run_directory import RunDirectory
    from poise_core.views.explorer import PAGE

    others = beside or []

    def page(refresh_seconds: int = 0) -> str:
        beside = {path.resolve().name: RunDirectory.read(path).evidence() for path in others}
        evidence = RunDirectory.read(run_dir).evidence()
        return run_page(run_dir.resolve().name, evidence, beside, refresh_seconds=refresh_seconds)

    def revision() -> tuple[str, ...]:
        runs = [RunDirectory.read(path) for path in (run_dir, *others)]
        return tuple(text for run in runs for text in (run.archive.revision(), run.current_preset.model_dump_json()))

    with plain_errors():
        digest = RunDirectory.read(run_dir).preset.protocol.digest
        for other in others:
            if RunDirectory.read(other).preset.protocol.digest != digest:
                raise fail(f"{other}: another protocol; numbers of two protocols are never drawn together", UNUSABLE)
        try:
            plotly_source()
        except PlottingMissingError as error:
            raise fail(error, UNUSABLE) from error
        if serve:
            from poise_core.render.explorer_server import serve_pages

            try:
                serve_pages(
                    lambda: page(REFRESH_SECONDS),
                    port,
                    revision=revision,
                    on_ready=lambda url: say(f"{url} (Ctrl-C stops)"),
                )
            except KeyboardInterrupt:
                raise typer.Exit(STOPPED) from None
            except OSError as error:
                raise fail(f"port {port}: {error.strerror or error}; --port 0 takes a free one", UNUSABLE) from error
            return
        place = out or run_dir / PAGE
        text = page()
        try:
            write_atomically(place, text)
        except OSError as error:
            raise fail(f"{place}: cannot be written: {error.strerror or error}", UNUSABLE) from error
        say(f"{place}  ({place.stat().st_size / 1e6:.1f} MB)")
