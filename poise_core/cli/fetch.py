"""``poise fetch``."""

from __future__ import annotations

import os
from typing import Annotated, Literal

import typer

from poise_core.cli.common import UNUSABLE, SetOption, fail, plain_errors, say


def fetch(
    preset: Annotated[str, typer.Argument(help="A shipped preset, or the path of a YAML file.")],
    dataset: Annotated[
        list[str] | None, typer.Option(metavar="OWNER/NAME[@REVISION]", help="A data set to fetch as well. Repeat.")
    ] = None,
    overrides: SetOption = None,
) -> None:
    """Download what a preset names: its policy and those of its examination, and data sets; afterwards everything runs offline.

    Files go into the hub's cache (HF_HOME), the rows of the preset's sources into that of problems (POISE_CACHE).
    A connection that breaks is taken up again; after an interruption the same command reads the files that are not whole.

    Examples:

    poise fetch my.yaml

    poise fetch my.yaml --set protocol.policy=OWNER/NAME@REVISION --dataset OWNER/NAME
    """
    with plain_errors():
        from poise_core.config import read_preset
        from poise_core.policies.fetch import FetchError, remark
        from poise_core.policies.fetch import fetch as download
        from poise_core.policies.locate import PolicyNotFoundError, require_loadable, resolve_policy, shipped_policies
        from poise_core.surroundings import settle_proxies

        resolved = read_preset(preset, overrides or [])
        wanted: list[tuple[Literal["model", "dataset"], str]] = [("model", resolved.protocol.policy)]
        wanted += [("model", policy) for policy in resolved.examination.policies]
        wanted += [("dataset", name) for name in dataset or []]
        try:
            for kind, name in dict.fromkeys(wanted):
                if kind == "model" and _is_here(name, shipped_policies()):
                    require_loadable(resolve_policy(name), name)
                    say(f"model {name}: {resolve_policy(name)}, nothing to download")
                    continue
                settle_proxies(os.environ.get("HF_ENDPOINT") or "https://the-hub")
                fetched = download(name, kind, say)
                say(f"  is in {fetched.folder}")
                if "@" not in name:
                    key = "write it as" if kind == "model" else "pin it as"
                    say(f"  {key} {name}@{fetched.commit}, so that nobody can change what you measure")
                if kind == "model" and (note := remark(fetched.folder)):
                    say(f"  {note}")
            sources = [resolved.protocol.environment.source, *(one.source for one in resolved.protocol.benchmarks)]
            for source in sources:
                if source is not None and source.dataset is not None and not source.is_file:
                    from poise_core.environments.sources import prepared

                    found = prepared(source)
                    say(f"data set {source.dataset}@{source.revision}: its rows are in {found.prepared}")
        except (FetchError, PolicyNotFoundError, ValueError) as error:
            raise fail(error, UNUSABLE) from error


def _is_here(policy: str, shipped: list[str]) -> bool:
    from pathlib import Path

    return policy in shipped or (Path(policy) / "config.json").is_file()
