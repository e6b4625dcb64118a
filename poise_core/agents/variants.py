"""Children without a model call: knock-outs of a candidate's mechanisms, and sweeps of one of its numbers.

Both are edits of the parent's own file, found by its syntax tree and never by running it. A knock-out makes what ``MECHANISMS``
says switches a mechanism off the default, and takes the mechanism from the list: it asks whether the mechanism earns its place. A
sweep halves or doubles one number: it asks whether the parent's gain hangs on it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping

from poise_core.agents.roles import CandidateRecord, Expectation, Proposal, ProposalContext
from poise_core.candidate.identity import source_digest

FACTORS = (0.5, 2.0)
"""By which a number is swept."""

KNOCK_OUT, SWEEP = "knock-out", "sweep"
"""Directions of such proposals, and their kind in the archive."""


def promising(context: ProposalContext) -> bool:
    """Whether the parent is worth it: a child, better than the baseline as far as it was measured."""
    line = next((one for one in context.table if one.name == context.parent.name), None)
    return bool(context.parent.parent_ids) and line is not None and line.delta is not None and line.delta.estimate > 0


def variants(context: ProposalContext, count: int) -> list[Proposal]:
    """Up to ``count`` variants of the parent that the run has not tried, knock-outs first; empty where its file has none."""
    tried = {one.source_digest for one in context.avoid}
    names = {one.name.upper() for one in context.avoid}
    found: list[Proposal] = []
    for proposal in _all(context.parent):
        fresh = source_digest(str(proposal.source)) not in tried and proposal.name.upper() not in names
        if fresh and len(found) < count:
            found.append(proposal)
    return found


def _all(parent: CandidateRecord) -> Iterator[Proposal]:
    try:
        tree = ast.parse(parent.source)
        mechanisms, defaults = _mechanisms(tree), _defaults(tree)
    except (SyntaxError, ValueError):
        return
    for name, overrides in mechanisms.items():
        if len(mechanisms) < 2 or not overrides.keys() <= defaults.keys():
            continue  # without its only mechanism a file is what its parent was
        kept = {other: given for other, given in mechanisms.items() if other != name}
        numbers = {key: value for key, value in overrides.items() if defaults[key][1] != value}
        kept = {  # one that the same numbers switch off goes with it
            other: given for other, given in kept.items() if any(numbers.get(key) != given[key] for key in given)
        }
        if numbers and kept:
            source = _edited(parent.source, tree, {key: repr(value) for key, value in numbers.items()}, kept)
            shown = ", ".join(f"{key} = {value!r}" for key, value in numbers.items())
            yield _proposal(
                parent, f"NO-{name}", source, KNOCK_OUT, kept,
                f"{parent.name} without {name}: {shown}",
                f"{name} earns its place: without it Overall falls",
                Expectation(metric="Overall", direction="decrease", why=f"{name} helps", probability=0.6),
            )  # fmt: skip
    for key, (_, value) in defaults.items():
        if isinstance(value, bool) or not isinstance(value, float) or value == 0.0:
            continue
        for factor in FACTORS:
            moved = float(f"{value * factor:.6g}")
            if any(given.get(key) == moved for given in mechanisms.values()):
                continue  # that would switch a mechanism off
            source = _edited(parent.source, tree, {key: repr(moved)}, mechanisms)
            yield _proposal(
                parent, f"{key}-{moved:g}", source, SWEEP, mechanisms,
                f"{parent.name} with {key} = {moved:g} in place of {value:g}",
                f"the gain of {parent.name} does not hang on {key}",
                Expectation(metric="Overall", direction="no_fall", size=2.0, why="robust", probability=0.6),
            )  # fmt: skip


def _proposal(
    parent: CandidateRecord,
    suffix: str,
    source: str,
    direction: str,
    mechanisms: Mapping[str, object],
    change: str,
    hypothesis: str,
    expectation: Expectation,
) -> Proposal:
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{parent.name}-{suffix}").strip("-")[:60]
    return Proposal(
        name=name,
        hypothesis=hypothesis,
        mechanism_change=change,
        addresses=f"what the gain of {parent.name} rests on",
        expectations=(expectation,),
        parent_ids=(parent.candidate_id,),
        direction=direction,
        proposer="catalogue",
        source=source,
        mechanisms=tuple(mechanisms),
        touches=("Hyperparameters",),
    )


def _mechanisms(tree: ast.Module) -> dict[str, dict[str, object]]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "MECHANISMS" for t in node.targets):
            value = ast.literal_eval(node.value)
            return {str(name): dict(given) for name, given in value.items()} if isinstance(value, dict) else {}
    return {}


def _defaults(tree: ast.Module) -> dict[str, tuple[ast.expr, object]]:
    """Field of Hyperparameters -> the expression of its default, and its value; those that are literals."""
    found: dict[str, tuple[ast.expr, object]] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == "Hyperparameters":
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and field.value is not None:
                    try:
                        found[field.target.id] = field.value, ast.literal_eval(field.value)
                    except ValueError:
                        continue
    return found


def _edited(
    source: str, tree: ast.Module, numbers: Mapping[str, str], mechanisms: Mapping[str, Mapping[str, object]]
) -> str:
    """The source with other defaults and another list of mechanisms; everything else stays as it is, letter by letter."""
    defaults = _defaults(tree)
    edits: list[tuple[ast.expr, str]] = [(defaults[key][0], text) for key, text in numbers.items()]
    if dict(mechanisms) != _mechanisms(tree):
        node = next(
            node
            for node in tree.body
            if isinstance(node, ast.Assign)
            and any(isinstance(t, ast.Name) and t.id == "MECHANISMS" for t in node.targets)
        )
        entries = "".join(f"    {name!r}: {dict(given)!r},\n" for name, given in mechanisms.items())
        edits.append((node.value, "{\n" + entries + "}"))
    lines = source.encode().splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    raw = source.encode()
    for place, text in sorted(edits, key=lambda edit: (-edit[0].lineno, -edit[0].col_offset)):
        begin = starts[place.lineno - 1] + place.col_offset
        end = starts[(place.end_lineno or place.lineno) - 1] + (place.end_col_offset or 0)
        raw = raw[:begin] + text.encode() + raw[end:]
    return raw.decode()
