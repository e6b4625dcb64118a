"""``poise --version``."""

from __future__ import annotations

import platform
from importlib import metadata

import typer


def version_line() -> str:
    """Versions of POISE, Python and torch, and the platform, on one line; nothing is imported to find them."""
    return ", ".join(
        (
            f"poise {_version_of('poise-rl')}",
            f"Python {platform.python_version()}",
            f"torch {_version_of('torch')}",
            platform.platform(),
        )
    )


def _version_of(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def print_version(wanted: bool) -> None:
    """Print the line and exit where the option is given."""
    if wanted:
        typer.echo(version_line())
        raise typer.Exit
