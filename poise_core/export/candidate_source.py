"""What a candidate file reads, found without running it, and its text with all that it imports of this package copied in."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from poise_core import contract, reductions
from poise_core.candidate.switches import constants, literal, mechanism_table
from poise_core.contract import Dynamics

ALWAYS = ("aggregate_loss", "masked_mean")
"""Reductions that the runtime of every exported file uses."""

PRELUDE = """\
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from torch import Tensor
"""


_IMPORTED = {"Mapping", "SimpleNamespace", "Tensor", "dataclass", "field", "torch"}


class ExportError(ValueError):
    """The candidate cannot be exported to this target; one line says what to do."""


@dataclass(frozen=True)
class Reading:
    """What the functions of a candidate file read, those that they call included."""

    advantages: frozenset[str]  # attributes that compute_advantages reads
    loss: frozenset[str]  # attributes that compute_loss reads
    controller: bool  # whether there is an update_controller
    masks: bool  # whether compute_advantages may give a train_mask
    aggregation: str
    mechanisms: Mapping[str, Mapping[str, Any]]  # the table MECHANISMS
    controller_keys: tuple[str, ...]  # texts of the file by which it may look up values of its controller

    @property
    def dynamics(self) -> frozenset[str]:
        """Fields of ``Dynamics`` that advantages or loss read."""
        return (self.advantages | self.loss) & {one.name for one in fields(Dynamics)}


def read_source(tree: ast.Module) -> Reading:
    """What the file reads; it must have passed the language check.

    Raises:
        ValueError: ``LOSS_AGGREGATION`` or ``MECHANISMS`` is not written out.
    """
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    named = constants(tree)
    advantages = _reachable("compute_advantages", functions)
    calls = [node for one in advantages for node in ast.walk(one) if isinstance(node, ast.Call)]
    given = [
        call for call in calls if isinstance(call.func, ast.Name | ast.Attribute) and _ends(call.func, "Advantages")
    ]
    aggregation = named.get("LOSS_AGGREGATION")
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return Reading(
        advantages=_attributes(advantages),
        loss=_attributes(_reachable("compute_loss", functions)),
        controller="update_controller" in functions,
        masks=any(
            len(call.args) > 1 or any(word.arg in ("train_mask", None) for word in call.keywords) for call in given
        ),
        aggregation=str(literal("LOSS_AGGREGATION", aggregation)) if aggregation else "",
        mechanisms=mechanism_table(tree),
        controller_keys=tuple(sorted(text for text in texts if text.isidentifier())),
    )


def _ends(function: ast.Name | ast.Attribute, name: str) -> bool:
    return (function.id if isinstance(function, ast.Name) else function.attr) == name


def _reachable(name: str, functions: dict[str, ast.FunctionDef]) -> list[ast.FunctionDef]:
    found: dict[str, ast.FunctionDef] = {}
    waiting = [name]
    while waiting:
        one = waiting.pop()
        if one in functions and one not in found:
            found[one] = functions[one]
            waiting += [node.id for node in ast.walk(functions[one]) if isinstance(node, ast.Name)]
    return list(found.values())


def _attributes(functions: Iterable[ast.FunctionDef]) -> frozenset[str]:
    return frozenset(node.attr for one in functions for node in ast.walk(one) if isinstance(node, ast.Attribute))


def inlined(source: str, tree: ast.Module) -> tuple[str, str]:
    """The shim (contract and the reductions in use) and the candidate's text without its imports of this package.

    Args:
        source: text of the candidate.
        tree: the same, parsed.

    Raises:
        ExportError: the file defines a name that the shim or the adapter also has.
    """
    lines = source.split("\n")  # as the parser counts them
    wanted = set(ALWAYS)
    bound: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module in ("poise_core.contract", "poise_core.reductions"):
            names = [(alias.name, alias.asname or alias.name) for alias in node.names]
            wanted |= {name for name, _ in names if node.module == "poise_core.reductions"}
            instead = "; ".join(f"{local} = {name}" for name, local in names if local != name)
            bound |= {local for name, local in names if local != name}
        elif isinstance(node, ast.Import) and any(alias.name.startswith("poise_core") for alias in node.names):
            raise ExportError(
                f"line {node.lineno}: export takes `from poise_core.reductions import NAME` only; import the names one by one"
            )
        elif isinstance(node, ast.ImportFrom) and node.module == "__future__":
            instead = ""
        else:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                bound.add(node.name)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                bound |= {alias.asname for alias in node.names if alias.asname and alias.asname != alias.name}
            continue
        if any(
            other is not node and other.lineno <= (node.end_lineno or 0) and node.lineno <= (other.end_lineno or 0)
            for other in tree.body
        ):
            raise ExportError(f"line {node.lineno}: several statements stand in one line; give the import its own")
        lines[node.lineno - 1 : node.end_lineno] = [instead, *[""] * ((node.end_lineno or node.lineno) - node.lineno)]
    bound |= set(constants(tree))
    shim, names_of_shim = _shim(wanted)
    twice = sorted(
        name for name in bound if name in names_of_shim | _IMPORTED or name.lower().lstrip("_").startswith("poise")
    )
    if twice:
        raise ExportError(f"the file defines {twice[0]}, which the exported file defines too; give it another name")
    return shim, "\n".join(lines).strip("\n") + "\n"


def _shim(wanted: set[str]) -> tuple[str, set[str]]:
    """Source of the contract and of these reductions with what they call, and the names that it defines."""
    text = inspect.getsource(contract)
    tree = ast.parse(text)
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    pieces = [_segment(text, node) for node in classes]
    text = inspect.getsource(reductions)
    functions = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}
    used = {one.name for name in sorted(wanted) for one in _reachable(name, functions)}
    pieces += [_segment(text, node) for name, node in functions.items() if name in used]
    return "\n\n\n".join(pieces) + "\n", {node.name for node in classes} | used


def _segment(text: str, node: ast.ClassDef | ast.FunctionDef) -> str:
    first = min([node.lineno, *[one.lineno for one in node.decorator_list]])
    return "\n".join(text.splitlines()[first - 1 : node.end_lineno])
