"""Renders a composition as a candidate file that reads as if written by hand, and reads the composition back.

Only the code of the chosen mechanisms is written. The docstring ends in the composition's text form;
``composition_of`` trusts it only if rendering it again gives the same code, so a file that was edited afterwards is
recognised as no longer that composition.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterable, Sequence
from importlib import resources

from poise_core.mechanisms.catalogue import SLOTS
from poise_core.mechanisms.composition import Composition
from poise_core.mechanisms.model import ADVANTAGE_STAGES, LOCALS, LOSS_STAGES, Choice

WIDTH = 118
HEADING = "Composition: "
_REDUCTIONS = sorted(  # read, not imported: a search that writes files needs no torch
    node.name
    for node in ast.parse((resources.files("poise_core") / "reductions.py").read_text(encoding="utf-8")).body
    if isinstance(node, ast.FunctionDef)
)
_ROW_LEVEL = ("sequence", "geometric")  # ratios through which every token of a row reaches every other


def render(
    composition: Composition, name: str, hypothesis: str = "", change: str = "", parents: Sequence[str] = ()
) -> str:
    """The candidate file of a composition.

    Args:
        composition: what the file does; the caller checks ``incompatibilities`` first.
        name: for the title.
        hypothesis: why it should be better; part of the docstring.
        change: what differs from the parent; part of the docstring.
        parents: names of the parents.
    """
    body = "\n\n\n".join(
        part
        for part in (
            f"{_constants(composition)}\n\n\n{_hyperparameters(composition)}",
            _advantages(composition),
            _loss(composition),
            _controller(composition),
        )
        if part
    )
    docstring = _docstring(composition, name, hypothesis, change, parents)
    return f"{docstring}\n\n{_imports(body)}\n\n{body}\n"


def composition_of(source: str) -> Composition | None:
    """The composition that a rendered file carries; None where it carries none, or where its code is not that of it."""
    try:
        tree = ast.parse(source)
        docstring = ast.get_docstring(tree) or ""
        _, found, text = docstring.rpartition(HEADING)
        if not found:
            return None
        composition = Composition.from_text(text)
        again = ast.parse(render(composition, "again"))
    except (SyntaxError, ValueError):
        return None
    return composition if ast.dump(_without_docstring(tree)) == ast.dump(_without_docstring(again)) else None


def _without_docstring(tree: ast.Module) -> ast.Module:
    return ast.Module(body=tree.body[1:], type_ignores=[])


def _docstring(composition: Composition, name: str, hypothesis: str, change: str, parents: Sequence[str]) -> str:
    """Title, hypothesis, equations, sources, and the composition."""
    ideas = [choice.idea for choice in _mechanisms(composition)]
    paragraphs = [_wrap(f"{name}: {_one_line(hypothesis) or 'a composition of the mechanism catalogue.'}")]
    if ideas:
        paragraphs.append(_wrap("This candidate " + "; ".join(ideas) + "."))
    if change:
        origin = f" of {' and '.join(parents)}" if parents else ""
        paragraphs.append(_wrap(f"Child{origin}: {_one_line(change)}"))
    formulas = [formula for choice in composition.chosen() for formula in choice.formulas]
    paragraphs.append("\n".join(f"    {formula}" for formula in formulas))
    sources = list(dict.fromkeys(c.source for c in _mechanisms(composition) if c.source))
    if sources:
        paragraphs.append(_wrap("Sources: " + "; ".join(sources) + "."))
    paragraphs.append(_wrap(HEADING + composition.to_text()))
    text = "\n\n".join(paragraphs).replace("\\", "/").replace('"""', "'''")
    return f'"""{text}\n"""'


def _mechanisms(composition: Composition) -> list[Choice]:
    """The choices that are not neutral."""
    return [choice for slot, choice in zip(SLOTS.values(), composition.chosen(), strict=True) if choice != slot.neutral]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _wrap(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def _imports(body: str) -> str:
    lines = ["import math"] if re.search(r"\bmath\.", body) else []
    lines.append("from dataclasses import dataclass\n")
    if re.search(r"\btorch\.", body):
        lines.append("import torch\n")
    lines.append("from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch")
    used = [name for name in _REDUCTIONS if re.search(rf"\b{name}\(", body)]
    line = f"from poise_core.reductions import {', '.join(used)}"
    if len(line) > WIDTH + 2:
        line = "from poise_core.reductions import (\n" + "".join(f"    {name},\n" for name in used) + ")"
    return "\n".join([*lines, line])


def _constants(composition: Composition) -> str:
    lines = [f'LOSS_AGGREGATION = "{composition.choices["aggregation"]}"']
    entries = {name: off for choice in composition.chosen() for name, off in choice.off.items()}
    if not entries:
        return "\n".join([*lines, "MECHANISMS = {}"])
    lines.append("MECHANISMS = {")
    for name, overrides in entries.items():
        inside = ", ".join(f'"{key}": {_literal(value)}' for key, value in overrides.items())
        lines.append(f'    "{name}": {{{inside}}},')
    return "\n".join([*lines, "}"])


def _literal(value: float) -> str:
    if isinstance(value, bool):
        return str(value)
    short = f"{value:.0e}".replace("e+0", "e")
    return short if value >= 1e6 and float(short) == value else repr(float(value))


def _hyperparameters(composition: Composition) -> str:
    fields = []
    for slot, choice in zip(composition.choices, composition.chosen(), strict=True):
        fields += [f"{name}: bool = {value}" for name, value in choice.switches.items()]
        fields += [f"{name}: float = {_literal(value)}" for name, value in composition.numbers(slot).items()]
    lines = ["@dataclass(frozen=True)", "class Hyperparameters:"]
    return "\n".join([*lines, *(f"    {line}" for line in fields or ["pass"])])


def _code(composition: Composition, stages: Iterable[str]) -> list[str]:
    """The lines of the chosen mechanisms, stage by stage and in slot order within one."""
    return [
        line
        for stage in stages
        for choice in composition.chosen()
        if stage in choice.code
        for line in choice.code[stage].splitlines()
    ]


def _advantages(composition: Composition) -> str:
    chosen = composition.chosen()
    split = ADVANTAGE_STAGES.index("tokens")
    needed = {name for choice in chosen for name in choice.needs}
    lines = [line for name, line in LOCALS.items() if name in needed]
    lines += _code(composition, ADVANTAGE_STAGES[:split])
    tokens = _code(composition, ["tokens"])
    values = "to_tokens(advantage, batch.completion_mask)"
    if tokens:
        lines += [f"values = {values}  # (B, T)", *tokens]
        values = "values"
    masking = _code(composition, ["train_mask"])
    arguments = [f"values={values}"] + (["train_mask=train_mask"] if masking else [])
    carry = {name: expression for choice in chosen for name, expression in choice.carry.items()}
    if carry:
        arguments.append("carry={" + ", ".join(f'"{name}": {value}' for name, value in carry.items()) + "}")
    returned = f"return Advantages({', '.join(arguments)})"
    lines += masking
    lines += (
        [returned] if len(returned) <= WIDTH - 2 else ["return Advantages(", *(f"    {a}," for a in arguments), ")"]
    )
    signature = "def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:"
    return _function(signature, lines)


def _loss(composition: Composition) -> str:
    chosen = composition.chosen()
    lines = _code(composition, LOSS_STAGES)
    terms = [term for choice in chosen for term in choice.loss_terms]
    token_loss = "-surrogate" + "".join(f" {term}" for term in terms)
    metrics = {name: value for choice in chosen for name, value in choice.metrics.items()}
    arguments = f"token_loss={token_loss}"
    if metrics:
        arguments += ", metrics={" + ", ".join(f'"{name}": {value}' for name, value in metrics.items()) + "}"
    if len(arguments) > WIDTH - 24:
        lines.append(f"token_loss = {token_loss}")
        arguments = arguments.replace(token_loss, "token_loss", 1)
    lines.append(f"return LossOutputs({arguments})")
    level = composition.choices["ratio"]
    advantages = "advantages" if level in _ROW_LEVEL else "inputs.advantages"
    ratio = "logprobs" if level == "none" else "ratio"
    lines = [line.replace("ADVANTAGES", advantages).replace("RATIO", ratio) for line in lines]
    signature = "def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:"
    return _function(signature, lines)


def _controller(composition: Composition) -> str:
    active = [choice for choice in composition.chosen() if choice.controller]
    if not active:
        return ""
    lines = [line for choice in active for line in choice.controller.splitlines()]
    state = {key: value for choice in active for key, value in choice.controller_state.items()}
    entries = [f'"{key}": {value}' for key, value in state.items()]
    returned = f"return {{{', '.join(entries)}}}"
    lines += [returned] if len(returned) <= WIDTH - 2 else ["return {", *(f"    {e}," for e in entries), "}"]
    signature = (
        "def update_controller(state: dict[str, float], dynamics: Dynamics, hp: Hyperparameters) -> dict[str, float]:"
    )
    return _function(signature, lines)


def _function(signature: str, lines: Iterable[str]) -> str:
    return "\n".join([signature, *(f"    {line}" for line in lines)])
