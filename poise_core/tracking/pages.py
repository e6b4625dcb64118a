"""The pages that experiment tracking shows beside the numbers: what ``poise show`` and ``poise leaderboard`` print, as HTML."""

from __future__ import annotations

import io
from collections.abc import Collection

from rich.console import Console, RenderableType

from poise_core.archive import Archive
from poise_core.config.protocol import Protocol
from poise_core.evidence.run_evidence import standing_of
from poise_core.views import leaderboard, render_candidate, render_leaderboard, view_candidate

WIDTH = 100
"""Columns of a page: what MLflow's pane for artifacts shows without scrolling, in the size below."""

_FORMAT = """\
<!DOCTYPE html>
<html><head><meta charset="UTF-8"></head>
<body style="color: {foreground}; background-color: {background}">
<pre style="font: 12px/1.35 Menlo, 'DejaVu Sans Mono', Consolas, 'Courier New', monospace"><code
style="font-family: inherit">{code}</code></pre>
</body></html>
"""


def candidate_page(archive: Archive, protocol: Protocol, candidate_id: str) -> str:
    """One candidate: admission, idea, scores, evidence, training, reflection, failures. The source is an artifact of its own.

    Raises:
        poise_core.archive.ArchiveError: no such candidate, or a file cannot be read.
    """
    return _page(render_candidate(view_candidate(archive, protocol, candidate_id), code=False))


def generation_page(archive: Archive, protocol: Protocol, members: Collection[str]) -> str:
    """The leaderboard, as far as the members of one generation and the baseline stand on it.

    Raises:
        poise_core.archive.ArchiveError: a file cannot be read.
    """
    rows = leaderboard(archive, protocol)
    shown = [row for row in rows if row.candidate_id in members or row.verdict == "baseline"]
    standing = standing_of(archive, protocol)
    return _page(render_leaderboard(shown, protocol, standing=standing, width=WIDTH))


def _page(content: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=WIDTH, record=True)
    console.print(content)
    return console.export_html(inline_styles=True, code_format=_FORMAT)
