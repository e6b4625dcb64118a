"""The page of ``poise explore``: a whole run in one file of HTML that needs neither a network nor a server.

Plots are plotly.js's, which the package ``plotly`` brings (MIT licence, 4.8 MB) and which stands in the page. Nothing but our two
scripts can run in it: the page's content security policy names them by their digests and forbids to load anything, and whatever
candidates, models or logs wrote is JSON, which the script shows as text.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from poise_core.escaping import printable
from poise_core.evidence.run_evidence import RunEvidence
from poise_core.views.explorer import details, overview

CHUNK = 50
"""Candidates whose details are compressed together; a page unpacks one such part when it needs it.

One candidate's details are longer than what gzip looks back over (32 KiB). So that it meets what candidates have in common, equal
places of all of them stand together: see ``columns``.
"""

_WITHOUT_TEXT = frozenset({int, float, bool, type(None)})
"""Types of which long lists are: most of a page is the numbers of its curves."""

_PLACE = re.compile("@[A-Z]+@")


class PlottingMissingError(RuntimeError):
    """The package with plotly.js is not installed; one line."""


def explorer_page(
    title: str, document: Mapping[str, Any], found: Iterable[Mapping[str, Any]], *, refresh_seconds: int = 0
) -> str:
    """Return the page.

    Args:
        title: of the run.
        document: ``poise_core.views.explorer.overview``.
        found: ``poise_core.views.explorer.details`` of its candidates, in their order.
        refresh_seconds: after which a browser loads the page again; 0 for never.

    Raises:
        PlottingMissingError: ``plotly`` is not installed.
    """
    plotly, script = plotly_source(), _asset("explorer.js")
    scripts = " ".join(f"'sha256-{_digest(one)}'" for one in (plotly, script))
    policy = (
        f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; "
        "form-action 'none'"
    )
    refresh = f'\n<meta http-equiv="refresh" content="{refresh_seconds}">' if refresh_seconds else ""
    filled = {
        "@POLICY@": policy,
        "@REFRESH@": refresh,
        "@TITLE@": html.escape(printable(title)),
        "@OVERVIEW@": _json(
            {**document, "candidates": columns(document["candidates"]), "title": title, "chunk": CHUNK}
        ),
        "@PLOTLY@": plotly,
        "@SCRIPT@": script,
    }
    pieces, end, text = list[str](), 0, _asset("explorer.html")
    # what is filled in is not searched, and the details, by far the most, are joined once
    for place in _PLACE.finditer(text):
        pieces.append(text[end : place.start()])
        pieces += _chunks(found) if place.group() == "@DETAILS@" else [filled[place.group()]]
        end = place.end()
    return "".join([*pieces, text[end:]])


def run_page(
    title: str, evidence: RunEvidence, beside: Mapping[str, RunEvidence] | None = None, *, refresh_seconds: int = 0
) -> str:
    """Return the page of a run with all its candidates; arguments and error as of ``explorer_page``.

    Args:
        title: of the run.
        evidence: of the run.
        beside: name -> evidence of runs under the same protocol, whose best so far is drawn too.
        refresh_seconds: after which a browser loads the page again; 0 for never.
    """
    document = overview(evidence, beside or {})
    found = details(evidence, [one["id"] for one in document["candidates"]])
    return explorer_page(title, document, found, refresh_seconds=refresh_seconds)


def plotly_source() -> str:
    """Return plotly.js, minified.

    Raises:
        PlottingMissingError: ``plotly`` is not installed.
    """
    try:
        return (files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise PlottingMissingError(
            "plots need the package plotly; install it with: pip install 'poise-rl[explore]'"
        ) from error


def _asset(name: str) -> str:
    return (files("poise_core.render") / "assets" / name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _printable(value: Any) -> Any:
    """The document without characters that hide, or turn the direction of what stands around them."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {printable(str(name)): _printable(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return value if _WITHOUT_TEXT.issuperset(map(type, value)) else [_printable(item) for item in value]
    return value


def columns(values: Sequence[Any]) -> Any:
    """JSON values of like shape with equal places beside each other, so that names stand once and like texts follow like.

    Returns:
        Of dictionaries ``{"d": count, "n": places that are null, "k": {name: [places without it, columns of the others]}}``; of
        lists ``{"l": lengths, -1 for null, "i": columns of all their items}``; of anything else the values.
    """
    known = [value for value in values if value is not None]
    if known and all(isinstance(value, Mapping) for value in known):
        nulls = [place for place, value in enumerate(values) if value is None]
        names = dict.fromkeys(name for value in known for name in value)
        return {"d": len(values), "n": nulls, "k": {name: _column(values, name) for name in names}}
    if known and all(isinstance(value, (list, tuple)) for value in known):
        lengths = [-1 if value is None else len(value) for value in values]
        return {"l": lengths, "i": columns([item for value in known for item in value])}
    return list(values)


def _column(values: Sequence[Any], name: str) -> list[Any]:
    without = [place for place, value in enumerate(values) if value is not None and name not in value]
    return [without, columns([value[name] for value in values if value is not None and name in value])]


def _json(document: Any) -> str:
    """JSON that ends no script element and begins no comment: < and > are escapes."""
    text = json.dumps(_printable(document), allow_nan=False, separators=(",", ":"))  # ASCII
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _chunks(details: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    number, part = 0, []
    for one in details:
        part.append(one)
        if len(part) == CHUNK:
            yield _chunk(number, part)
            number, part = number + 1, []
    if part:
        yield _chunk(number, part)


def _chunk(number: int, part: list[Mapping[str, Any]]) -> str:
    text = json.dumps(_printable(columns(part)), allow_nan=False, separators=(",", ":"))
    packed = gzip.compress(text.encode(), 6, mtime=0)
    return f'<script id="details-{number}" type="text/plain">{base64.b64encode(packed).decode()}</script>\n'
