"""``poise sampler``: the engine that samples in an environment of its own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from poise_core.cli.common import UNUSABLE, fail, plain_errors, say

app = typer.Typer(name="sampler", help="The engine that samples in an environment of its own.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """The engine that samples in an environment of its own."""


@app.command()
def install(
    folder: Annotated[
        Path | None, typer.Option(help="The environment's folder; then set resources.sampler.environment to it too.")
    ] = None,
    kind: Annotated[str, typer.Option(help="cpu or cuda. Default: cuda where the machine has nvidia-smi.")] = "",
    wheels: Annotated[
        Path | None, typer.Option(help="A folder with all wheels, made by 'pip download'; then no network is needed.")
    ] = None,
    index: Annotated[str, typer.Option(help="Address of the package index. Default: pip's own.")] = "",
) -> None:
    """Make the environment of vLLM, pinned, which a preset with protocol.sampler.name: vllm needs.

    It takes some minutes and gigabytes and needs the package index, or a folder with the wheels. This program's own environment
    stays as it is. What was interrupted goes on; an environment with another version is not touched.

    Examples:

    poise sampler install --kind cpu

    poise sampler install --wheels /shared/wheels
    """
    from poise_core.sampling.vllm import PACKAGES, default_environment, installed_packages
    from poise_core.sampling.vllm import install as make

    kind = kind or ("cuda" if shutil.which("nvidia-smi") else "cpu")
    if kind not in PACKAGES:
        raise fail(f"--kind is {kind!r}; use {' or '.join(PACKAGES)}", UNUSABLE)
    target = (folder or default_environment()).expanduser().resolve()
    with plain_errors():
        if wheels is not None and index:
            raise fail("give one of --wheels and --index", UNUSABLE)
        make(target, kind, wheels=wheels, index=index, report=lambda text: say(text, err=True))
        say(f"{target} holds {installed_packages(target)}")
