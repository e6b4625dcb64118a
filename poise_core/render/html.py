"""Views as pages of HTML: what a terminal shows, with its colours."""

from __future__ import annotations

import io

from rich.console import RenderableType

from poise_core.render import ViewConsole

WIDTH = 100
"""Columns of a page: what MLflow's pane for artifacts shows without scrolling, in the size below."""

_FORMAT = """\
<!DOCTYPE html>
<html><head><meta charset="UTF-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'"></head>
<body style="color: {foreground}; background-color: {background}">
<pre style="font: 12px/1.35 Menlo, 'DejaVu Sans Mono', Consolas, 'Courier New', monospace"><code
style="font-family: inherit">{code}</code></pre>
</body></html>
"""


def html_page(view: RenderableType) -> str:
    """A page of its own, without links and without anything that is loaded from elsewhere or runs."""
    console = ViewConsole(file=io.StringIO(), width=WIDTH, record=True)
    console.print(view)
    return console.export_html(inline_styles=True, code_format=_FORMAT)
