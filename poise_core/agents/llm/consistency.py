"""Whether a candidate file is what its proposal says: mechanisms declared, equations used, the named parts changed."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from poise_core.agents.llm.forms import EquationUse
from poise_core.agents.roles import Proposal
from poise_core.candidate.switches import constants
from poise_core.verification.language.check import LanguageError, parse_source

PARTS = ("Hyperparameters", "LOSS_AGGREGATION", "compute_advantages", "compute_loss", "update_controller")

_FREE = ("Hyperparameters",)
"""Parts that may change without being named: a new mechanism brings its numbers with it."""


def contradictions(
    source: str, proposal: Proposal, parent_source: str, equations: Sequence[EquationUse] = ()
) -> list[str]:
    """One sentence per contradiction between the file and the proposal, each telling what to change; empty if none."""
    try:
        tree = parse_source(source)
    except LanguageError as error:
        return [str(error)]
    return [
        *_missing_mechanisms(tree, proposal),
        *_unused_equations(source, proposal, equations),
        *_wrong_parts(tree, proposal, parent_source),
    ]


def _missing_mechanisms(tree: ast.Module, proposal: Proposal) -> list[str]:
    value = constants(tree).get("MECHANISMS")
    keys = value.keys if isinstance(value, ast.Dict) else []
    declared = {str(key.value) for key in keys if isinstance(key, ast.Constant)}
    missing = [name for name in proposal.mechanisms if name not in declared]
    return [f"MECHANISMS lacks {name!r}, which the proposal names" for name in missing]


def _unused_equations(source: str, proposal: Proposal, uses: Sequence[EquationUse]) -> list[str]:
    text = _squeezed(source)
    found, faults = set(), []
    for use in uses:
        if len(_squeezed(use.code)) >= 8 and _squeezed(use.code) in text:
            found.add(use.number)
        else:
            faults.append(f"equation {use.number}: the line {use.code!r} does not stand in the file")
    for number, equation in enumerate(proposal.equations, start=1):
        if number not in found and not any(fault.startswith(f"equation {number}:") for fault in faults):
            faults.append(f"equation {number} ({equation}): no line of the file is named that computes it")
    return [fault for fault in faults if int(fault.split()[1].rstrip(":")) not in found]


def _wrong_parts(tree: ast.Module, proposal: Proposal, parent_source: str) -> list[str]:
    if not proposal.touches:
        return []
    mine, theirs = _parts(tree), _parts(ast.parse(parent_source))
    if mine == theirs:
        return ["the file does the same as the parent's"]
    changed = {part for part in PARTS if mine.get(part) != theirs.get(part)}
    helpers = mine.get("") != theirs.get("")  # a part that calls a changed helper changes with it
    faults = [
        f"{part} differs from the parent's, but the proposal changes only {', '.join(proposal.touches)}"
        for part in PARTS
        if part in changed and part not in proposal.touches and part not in _FREE
    ]
    if not helpers:
        faults += [
            f"{part} is as in the parent, but the proposal changes it"
            for part in proposal.touches
            if part not in changed and part not in _FREE
        ]
    return faults


def _parts(tree: ast.Module) -> dict[str, str]:
    """Each part's syntax without docstrings and line numbers; everything else but imports and MECHANISMS under ''."""
    written = [(name, ast.dump(value)) for name, value in constants(tree).items() if name != "MECHANISMS"]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            if ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
            written.append((node.name, ast.dump(node)))
    found: dict[str, str] = {}
    for name, text in written:
        key = name if name in PARTS else ""
        found[key] = found.get(key, "") + f"{name} = {text}\n"
    return found


def _squeezed(text: str) -> str:
    return "".join(text.split("#")[0].split()) if "\n" not in text else "".join(text.split())
