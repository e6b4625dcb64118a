"""``poise export --to paper``: an algorithm as a page of Markdown, with its equations and what was measured."""

from __future__ import annotations

import ast
import json
import textwrap
from collections.abc import Sequence

from poise_core.candidate.identity import source_digest
from poise_core.escaping import code_block, markdown, one_line
from poise_core.mechanisms.catalogue import SLOTS
from poise_core.mechanisms.render import composition_of


def paper(source: str, name: str, *, evidence: Sequence[str] = (), proposal: str = "", hypothesis: str = "") -> str:
    """The page of an algorithm.

    Args:
        source: text of the candidate file, which is read and not run.
        name: of the candidate.
        evidence: lines on what was measured.
        proposal: the proposal's JSON, where the archive has one; its equations come first.
        hypothesis: what was expected to get better, and why.
    """
    parts = [f"# {markdown(name)}"]
    tree = ast.parse(source)
    docstring = (ast.get_docstring(tree) or "").strip()
    if hypothesis:
        parts.append(markdown(hypothesis))
    changed = _proposed(proposal)
    if changed:
        parts += ["## Equations of the change", code_block("\n".join(one_line(line) for line in changed))]
    composed = _composed(source)
    if composed:
        parts += ["## Equations", *composed]
    elif docstring:
        parts += ["## Equations", *_paragraphs(docstring)]
    parts += ["## Hyperparameters", code_block(_definition(source, tree, "Hyperparameters"))]
    parts += ["## Mechanisms and how each is switched off", code_block(_definition(source, tree, "MECHANISMS"))]
    if not (changed or composed or any(line.startswith("    ") for line in docstring.splitlines())):
        parts += ["No equations are written down for this algorithm; the code says what it computes."]
    parts += ["## Code", code_block(source.strip("\n"))]
    parts += [
        "## What was measured",
        *[f"- {markdown(line)}" for line in evidence or ("nothing: this is a file and not a run",)],
    ]
    parts.append(f"Source digest (SHA-256): {source_digest(source)}")
    return "\n\n".join(parts) + "\n"


def _proposed(proposal: str) -> list[str]:
    try:
        found = json.loads(proposal or "{}")
    except ValueError:
        return []
    equations = found.get("equations") if isinstance(found, dict) else None
    return [str(one) for one in equations] if isinstance(equations, list) else []


def _composed(source: str) -> list[str]:
    """Each choice of the catalogue with its formulas, where the file is a composition of it."""
    composition = composition_of(source)
    if composition is None:
        return []
    parts = []
    for slot, chosen in composition.choices.items():
        choice = SLOTS[slot].choice(chosen)
        if choice.formulas:
            parts += [f"**{markdown(slot)}: {markdown(chosen)}**", code_block("\n".join(choice.formulas))]
    return parts


def _paragraphs(docstring: str) -> list[str]:
    """Paragraphs of a docstring; those that are indented are formulas."""
    parts = []
    for paragraph in docstring.split("\n\n"):
        indented = all(line.startswith("    ") for line in paragraph.splitlines() if line.strip())
        parts.append(code_block(textwrap.dedent(paragraph)) if indented else markdown(paragraph))
    return parts


def _definition(source: str, tree: ast.Module, name: str) -> str:
    for node in tree.body:
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", ())
        names = [one.id for one in targets if isinstance(one, ast.Name)]
        if getattr(node, "name", None) == name or name in names:
            return ast.get_source_segment(source, node) or ""
    return ""
