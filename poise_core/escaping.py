"""Text as data: what a candidate, a model or a log wrote, made harmless for the place where it is shown.

One function for each kind of place, called where the text leaves the program and nowhere before: the archive keeps what was
written.

| place | function |
|---|---|
| terminal, tag, state message, any plain text | ``printable`` |
| line of a log, name on a tree or a bar | ``one_line`` |
| JSON that a program reads | ``printable_json`` |
| words within a Markdown text of ours | ``markdown`` |
| Markdown that somebody else wrote | ``markdown_page`` |
| a block of code in Markdown | ``code_block`` |
| a command to paste into a shell | ``shell_command`` |
| key of a metric or parameter in MLflow | ``mlflow_key`` |
| data of a prompt | ``prompt_data`` |
| a name in the instructions of a prompt | ``prompt_name`` |

Views for a terminal, and what is made of them (pages of HTML, drawings), go through ``poise_core.render.ViewConsole``.
"""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

_INVISIBLE = (
    # default-ignorable characters that belong to no category of controls or formats: joiners, fillers, selectors, tags
    "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff"
    # Cf, formats: soft hyphen, zero widths, directions, interlinear marks, tags
    "\u00ad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    # Cs, Zl and Zp: halves of surrogate pairs, separators that some programs take for line ends
    "\ud800-\udfff\u2028\u2029"
)
_HIDDEN = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f{_INVISIBLE}]")  # and Cc, controls, but for line ends and tabs
_PRESENTATION = re.compile("[\ufe0e\ufe0f]")  # choose between two forms of a sign; honest texts have them after a sign

REPLACEMENT = "\ufffd"


def printable(text: str) -> str:
    """The text with U+FFFD for each character that a terminal obeys or a reader does not see; line ends and tabs stay.

    Those are controls (with them the escape sequences), formats (with them what changes the direction of writing), halves of
    surrogate pairs, separators other than the line end, fillers, tags and selectors.
    """
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text  # as most are; to search them by expressions takes much longer
    return _HIDDEN.sub(REPLACEMENT, _PRESENTATION.sub("", text.replace("\r\n", "\n")))


def is_printable(text: str) -> bool:
    """Whether ``printable`` would keep every character."""
    return _HIDDEN.search(text) is None


def without_credentials(text: str) -> str:
    """The text with ``***`` for the user and the password in every URL: MLflow's and Prefect's addresses may have them."""
    return re.sub(r"(?<=://)[^/\s?#@]+@", "***@", text)


def one_line(text: object, limit: int = 0) -> str:
    """The text as ``printable`` leaves it, in one line; cut to ``limit`` characters, if that is given."""
    line = " ".join(printable(str(text)).split())
    return f"{line[: limit - 3]}..." if 0 < limit < len(line) else line


def shell_command(words: Iterable[object]) -> str:
    """The words as one line that can be pasted into bash or zsh and means the same there, whatever is in them."""
    return " ".join(map(shell_word, words))


def shell_word(word: object) -> str:
    """One word of ``shell_command``; line ends, tabs and what is not seen are written with escapes."""
    text = str(word)
    if is_printable(text) and not set(text) & set("\n\t"):
        return shlex.quote(text)
    data = text.encode("utf-8", "surrogateescape")
    escaped = "".join(chr(byte) if 32 <= byte < 127 and byte not in b"\\'" else f"\\x{byte:02x}" for byte in data)
    return f"$'{escaped}'"


def printable_json(text: str) -> str:
    """A JSON text with escapes for the characters that ``printable`` replaces: it says the same to a program."""
    return _HIDDEN.sub(lambda found: _json_escape(found.group()), text)


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


# ---- Markdown

_TAG = re.compile(r"<(?![ \d=])")
_REFERENCE = re.compile(r"&(?=#|[A-Za-z])")  # of a character, which may be a hidden one
_LINK = re.compile(r"\](?=\s*[(\[:{])")  # of a link, of an image, of what a reference stands for
_ADDRESS = re.compile(r"(?<=[A-Za-z]):(?=//)|(?<=[wW]{3})\.|@(?=[\w-])")  # what becomes a link by itself
_ENTITIES = {":": "&#58;", ".": "&#46;", "@": "&#64;"}
_MARKS = re.compile(r"([\\`*\[\]~{}])|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_OPENING = re.compile(r"^(?:[#>+-]|\d(?=\d{0,8}[.)]))")  # of a heading, a quotation, a list


def markdown_page(text: str) -> str:
    """A Markdown text of somebody else: headings, lists and emphasis stay; tags, links, images and addresses become words.

    What would make them is written as a character reference, which is never read as Markdown, whatever stands before it.
    """
    return _without_addresses(_LINK.sub("&#93;", _REFERENCE.sub("&amp;", printable(text))))


def markdown(text: object) -> str:
    """Words for a place within a Markdown text: one line that is shown as it was written and marks nothing up."""
    line = _MARKS.sub(lambda found: f"\\{found.group()}", _REFERENCE.sub("&amp;", one_line(text)))
    return _without_addresses(_OPENING.sub(lambda found: f"&#{ord(found.group())};", line))


def _without_addresses(text: str) -> str:
    return _ADDRESS.sub(lambda found: _ENTITIES[found.group()], _TAG.sub("&lt;", text))


def code_block(text: str) -> str:
    """A block of code in Markdown; its fence is longer than any row of back quotes in the text, which so cannot end it."""
    text = printable(text)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"


# ---- MLflow


def mlflow_key(name: str) -> str:
    """A key that MLflow takes for a metric or a parameter: its characters, and no part that would lead out of a folder."""
    parts = re.sub(r"[^A-Za-z0-9_\-. :/]", "_", name).split("/")
    return "/".join("_" if part.strip() in ("", ".", "..") else part for part in parts)[:250]


# ---- prompts


def prompt_name(text: str) -> str:
    """A name as the instructions of a prompt may quote it: 60 letters, digits and ``_.-``, without room for a sentence."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)[:60].strip("-") or "unnamed"


def prompt_data(text: str) -> str:
    """A text for the data of a prompt: without hidden characters, and without anything that looks like a tag named data.

    A model reads tokens and not bytes: to it `</data>` may also be one with spaces, accents or letters of another alphabet,
    in full width, or spelt with a character reference. The bracket of each of these becomes a square one; the rest of the
    text stays as it is, code with comparisons included.
    """
    text = _HIDDEN.sub("", text.replace("\r\n", "\n"))
    folded = _folded(text)
    pieces, end = [], 0
    for found in _DATA_TAG.finditer(folded):
        pieces += [text[end : found.start()], "["]
        end = found.end("bracket")
    return "".join([*pieces, text[end:]])


_BRACKETS = "‹〈⟨❮❰ᐸ˂≺⧼《⟪«"
_SLASHES = "⁄∕⧸╱⟋／⧵∖\\|"
_LOOKALIKES = {
    **dict.fromkeys(_BRACKETS, "<"),
    **dict.fromkeys(_SLASHES, "/"),
    **dict(zip("аɑαԁɗđтτŧ", "aaadddttt", strict=True)),
}
# names end a word; between the letters of a closing tag anything may stand that is no letter and no other bracket
_GAP = r"(?:[^\w<]|_)*"
_LESS = r"(?P<bracket><|&(?:amp;)*(?:lt|\#0*60|\#x0*3c);?|\\u003c|\\x3c|%3c)"
_DATA_TAG = re.compile(
    rf"{_LESS}(?:{_GAP}/{_GAP}d{_GAP}a{_GAP}t{_GAP}a(?![^\W_])|data(?!\w)|[^\w<]{{1,40}}?data(?!\w)(?=\W{{0,40}}?(?:name\b|>|&)))"
)


def _folded(text: str) -> str:
    """The text with every character's plain counterpart in its place: as many characters, in lower case."""
    return text.lower() if text.isascii() else "".join(map(_fold, text))


@lru_cache(maxsize=4096)
def _fold(character: str) -> str:
    if character in _LOOKALIKES:
        return _LOOKALIKES[character]
    plain = unicodedata.normalize("NFKD", character)
    base = "".join(one for one in plain if not unicodedata.combining(one))
    lowered = base.lower()
    folded = lowered if len(lowered) == 1 else character
    return _LOOKALIKES.get(folded, folded)
