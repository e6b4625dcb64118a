"""Views as text for a terminal, as Markdown, as pages and as drawings, and the console through which all of them go."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from poise_core.escaping import printable


class ViewConsole(Console):
    """A console for views of data: no text in them is markup or a link, and no character moves the cursor or hides.

    What it renders is made harmless at the last step, so that no view can forget a name.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of a view; see ``rich.console.Console.render``."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            if control:
                yield segment
                continue
            if style is not None and style.link is not None:
                style = style.update_link(None)
            yield Segment(printable(text), style)
