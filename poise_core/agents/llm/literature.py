"""Literature priors: short notes on known methods, chosen by the parent's diagnoses.

A note is a head of ``key: value`` lines (title, source, answers, slots, and expires and protocol where it is a measurement), an
empty line, then text with the mechanism, its equation, what it fixes and when it hurts. ``answers`` lists diagnoses of
``poise_core.agents.rules.diagnoses.DIAGNOSES`` that the method addresses, ``slots`` the mechanism slots it changes. A Markdown
file holds one note, named after the file, or several, each below a heading ``# name``.

A note whose date ``expires`` is over is left out: whoever wrote it no longer stands by it. One measured under another ``protocol``
than the run's is handed over as a hint: its text begins by saying so, and of notes that suit equally well it comes last.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from poise_core.agents.catalogue.compositions import wanted_answers
from poise_core.agents.roles import ProposalContext

_HEAD = ("title", "source", "answers", "slots")
_LONGEST = 6000  # characters of a note that are read
_HEADING = re.compile(r"^# (\w+)[ \t]*\n", re.MULTILINE)


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
    expires: dt.date | None = None  # the last day on which it holds
    protocol: str = ""  # under which it was measured
    doubtful: bool = False  # measured under another protocol than the run's


def load_notes(folder: str | None = None, *, today: dt.date | None = None, protocol: str = "") -> tuple[Note, ...]:
    """The shipped notes, by name; those of the user's folder are added, or replace one of the same name.

    Args:
        folder: the user's.
        today: notes that expire before it are left out; without it none is. A run takes the day on which it began, so that its
            questions stay the same however long it takes, and in a replay.
        protocol: digest of the run's; notes of another one say that they are.

    Raises:
        LiteratureError: the folder is missing, a note has no title, or its date cannot be read.
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
            found = _read_file(path.name, path.read_text(encoding="utf-8-sig", errors="replace"))
            notes |= {name: one for name, one in found.items() if not (today and one.expires and one.expires < today)}
    return tuple(_for_protocol(notes[name], protocol) for name in sorted(notes))


def _for_protocol(note: Note, protocol: str) -> Note:
    if not protocol or note.protocol in ("", protocol):
        return note
    said = f"Measured under another protocol ({note.protocol}; this run's is {protocol}): a hint here, not a fact."
    return replace(note, text=f"{said}\n\n{note.text}", doubtful=True)


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
    try:
        expires = dt.date.fromisoformat(values["expires"].strip()) if values.get("expires") else None
    except ValueError:
        raise LiteratureError(
            f"{where}: expires: {values['expires'][:40]!r} is not a date such as 2026-03-31"
        ) from None
    source, protocol = values.get("source", "unknown"), values.get("protocol", "").strip()
    return Note(name, values["title"], source, answers, slots, body.strip(), expires, protocol)


def retrieve(notes: Iterable[Note], context: ProposalContext, count: int) -> list[Note]:
    """The notes that suit the parent's diagnoses, the directive and the benchmarks best, best first; ties are broken by name.

    A shared diagnosis counts 3 for the parent's gravest and down to 1 for its last, a shared slot half a point. Meaning counts
    as cosine similarity of the note with the directive (4 points at most), with the sentences of the diagnoses (2) and with what
    the benchmarks ask for (1), words weighed by how few notes have them and those of one concept taken for each other. Without any
    diagnosis or directive half of the notes rotate with the generation, so that every note gets shown.
    """
    wanted, slots = _wanted(context)
    ordered = sorted(notes, key=lambda note: note.name)
    texts = [_terms(f"{note.title} {note.title} {' '.join(sorted(note.answers))} {note.text}") for note in ordered]
    rarity = {
        term: math.log((1 + len(texts)) / (1 + sum(term in text for text in texts))) for text in texts for term in text
    }
    queries = [(weight, _terms(text)) for weight, text in _meanings(context) if text]

    def relevance(position: int) -> float:
        note = ordered[position]
        shared = sum(weight for code, weight in wanted.items() if code in note.answers)
        meant = sum(weight * _cosine(query, texts[position], rarity) for weight, query in queries)
        return shared + 0.5 * len(slots & note.slots) + meant

    points = [relevance(position) for position in range(len(ordered))]
    turn = context.generation * count % len(ordered) if ordered else 0
    turned = [*range(turn, len(ordered)), *range(turn)]
    ranked = sorted(turned, key=lambda position: (-round(points[position], 9), ordered[position].doubtful))
    if not wanted and not context.directive:
        first = [position for position in ranked[: (count + 1) // 2] if points[position] > 0]
        ranked = [*first, *(position for position in turned if position not in first)]
    return [ordered[position] for position in ranked[:count]]


_COMMON = frozenset(
    re.findall(
        r"\w+",
        "keep with that this from than more less while without make should the and for are its into which where what have has not "
        "each same algorithm method train training policy model models",
    )
)

_CONCEPTS = {
    "passk": "pass@k pass several attempts best-of coverage",
    "diverse": "diverse diversity exploration explore exploring varied variety modes mode spread distinct sharpening",
    "collapse": "collapse collapsed collapsing collapses degenerate vanishing vanish",
    "length": "length long longer short shorter shorten brevity verbose tokens overlong truncated truncation",
    "unstable": "spike spikes spiked unstable instability stability steady explode diverge blowup",
    "anchor": "kl divergence reference drift anchor initial",
    "hard": "hard harder difficult rare unsolved",
    "format": "format parse parseable malformed valid",
}
"""Concept -> words that stand for it; all of them count as the concept too."""

_OF_CONCEPT = {word: concept for concept, words in _CONCEPTS.items() for word in words.split()}


def _terms(text: str) -> Counter[str]:
    """Words cut to their stems, with the concepts that they stand for; ``pass@32`` is ``pass@k``."""
    found: Counter[str] = Counter()
    for word in re.findall(r"[a-z][a-z0-9@.-]*[a-z0-9]|kl", re.sub(r"pass(@| at )(\d+|k)", "pass@k", text.lower())):
        for part in (word, *word.replace("_", "-").split("-")):
            if part in _COMMON or len(part) < 2:
                continue
            found[re.sub(r"(ing|ed|es|s|ity)$", "", part) if len(part) > 4 else part] += 1
            if concept := _OF_CONCEPT.get(part):
                found[f"concept:{concept}"] += 2
    return found


def _cosine(query: Counter[str], text: Counter[str], rarity: dict[str, float]) -> float:
    """Of the two with counts damped by their logarithm and weighed by rarity (tf-idf; Salton and Buckley 1988)."""

    def weights(counts: Counter[str]) -> dict[str, float]:
        return {term: (1 + math.log(count)) * rarity.get(term, 0.0) for term, count in counts.items()}

    mine, theirs = weights(query), weights(text)
    norms = math.sqrt(sum(x * x for x in mine.values())) * math.sqrt(sum(x * x for x in theirs.values()))
    return sum(value * theirs.get(term, 0.0) for term, value in mine.items()) / norms if norms else 0.0


def _meanings(context: ProposalContext) -> list[tuple[float, str]]:
    reflection = context.parent.reflection
    told = " ".join(f"{one.code.replace('_', ' ')} {one.text}" for one in (reflection.diagnoses if reflection else ()))
    metrics = ""
    if context.task is not None:
        metrics = " ".join(
            one.metric_name for one in context.task.protocol.benchmarks if not one.single_sample
        )  # what single answers score is what every method trains
    return [(4.0, context.directive), (2.0, told), (1.0, metrics)]


def _wanted(context: ProposalContext) -> tuple[dict[str, float], set[str]]:
    reflection = context.parent.reflection
    diagnoses: Sequence[str] = [one.code for one in reflection.diagnoses] if reflection else []
    weights = {code: max(1.0, 3.0 - 0.5 * rank) for rank, code in enumerate(diagnoses)}
    for code in sorted(wanted_answers(context) - set(diagnoses)):
        weights[code] = 2.0  # called for by the directive
    slots = {slot for one in (reflection.diagnoses if reflection else ()) for slot in one.slots[:2]}
    return weights, slots
