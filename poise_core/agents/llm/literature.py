"""Literature priors: short notes on known methods, chosen by the parent's diagnoses.

A note is a head of ``key: value`` lines (title, source, answers, slots), an empty line, then text with the mechanism, its
equation, what it fixes and when it hurts. ``answers`` lists diagnoses of ``poise_core.agents.rules.diagnoses.DIAGNOSES`` that
the method addresses, ``slots`` the mechanism slots it changes. A Markdown file holds one note, named after the file, or
several, each below a heading ``# name``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from poise_core.agents.catalogue.compositions import wanted_answers
from poise_core.agents.roles import ProposalContext

_HEAD = ("title", "source", "answers", "slots")
_LONGEST = 6000  # characters of a note that are read
_HEADING = re.compile(r"^# (\w+)[ \t]*\n", re.MULTILINE)
_WORD = re.compile(r"[a-z]{4,}")


class LiteratureError(ValueError):
    """The user's folder or one of its notes cannot be used; one line that names it."""


@dataclass(frozen=True)
class Note:
    """One method."""

    name: str  # the heading's, or the file's without suffix
    title: str
    source: str
    answers: frozenset[str]
    slots: frozenset[str]
    text: str


def load_notes(folder: str | None = None) -> tuple[Note, ...]:
    """The shipped notes, by name; those of the user's folder are added, or replace one of the same name.

    Raises:
        LiteratureError: the folder is missing, or a note has no title.
    """
    shipped = resources.files("poise_core") / "agents" / "llm" / "notes"
    notes: dict[str, Note] = {}
    for entry in shipped.iterdir():
        if entry.name.endswith(".md"):
            notes |= _read_file(entry.name, entry.read_text(encoding="utf-8"))
    if folder is not None:
        if not Path(folder).is_dir():
            raise LiteratureError(f"agents.literature_folder: {folder} is not a folder")
        for path in sorted(Path(folder).glob("*.md")):
            notes |= _read_file(path.name, path.read_text(encoding="utf-8", errors="replace"))
    return tuple(notes[name] for name in sorted(notes))


def _read_file(file: str, text: str) -> dict[str, Note]:
    before, *named = _HEADING.split(text)
    if before.strip() or not named:  # a text that begins without a heading is one note
        named = [file.removesuffix(".md"), text]
    return {name: _read(f"{file}: {name}", name, note) for name, note in zip(named[::2], named[1::2], strict=True)}


def _read(where: str, name: str, text: str) -> Note:
    head, _, body = text.strip()[:_LONGEST].partition("\n\n")
    values = dict(re.findall(r"^(\w+):[ \t]*(.*)$", head, re.MULTILINE))
    if not values.get("title") or not body.strip():
        raise LiteratureError(f"{where}: a note begins with lines such as 'title: NAME', then an empty line and text")
    answers, slots = (frozenset(values.get(key, "").replace(",", " ").split()) for key in _HEAD[2:])
    return Note(name, values["title"], values.get("source", "unknown"), answers, slots, body.strip())


def retrieve(notes: Iterable[Note], context: ProposalContext, count: int) -> list[Note]:
    """The notes that match the parent's diagnoses and the directive best, best first; ties are broken by name.

    A shared diagnosis counts 3 for the parent's gravest and down to 1 for its last, a shared slot half a point, a word of the
    directive one. Without any diagnosis or directive the order rotates with the generation, so that every note gets shown.
    """
    wanted, slots = _wanted(context)
    words = set(_WORD.findall(context.directive.lower())) - _COMMON

    def relevance(note: Note) -> float:
        shared = sum(weight for code, weight in wanted.items() if code in note.answers)
        in_note = set(_WORD.findall(f"{note.title} {note.text}".lower()))
        return shared + 0.5 * len(slots & note.slots) + len(words & in_note)

    ordered = sorted(notes, key=lambda note: note.name)
    turn = context.generation * count % len(ordered) if ordered else 0
    turned = ordered[turn:] + ordered[:turn]
    return sorted(turned, key=lambda note: -relevance(note))[:count]


_COMMON = {"keep", "with", "that", "this", "from", "than", "more", "less", "while", "without", "make", "should"}


def _wanted(context: ProposalContext) -> tuple[dict[str, float], set[str]]:
    reflection = context.parent.reflection
    diagnoses: Sequence[str] = [one.code for one in reflection.diagnoses] if reflection else []
    weights = {code: max(1.0, 3.0 - 0.5 * rank) for rank, code in enumerate(diagnoses)}
    for code in sorted(wanted_answers(context) - set(diagnoses)):
        weights[code] = 2.0  # called for by the directive
    slots = {slot for one in (reflection.diagnoses if reflection else ()) for slot in one.slots[:2]}
    return weights, slots
