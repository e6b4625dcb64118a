"""Writes ``docs/mechanisms.md``: ``python -m poise_core.mechanisms.document > docs/mechanisms.md``."""

from __future__ import annotations

import math

from poise_core.mechanisms.catalogue import CORE_SLOTS, SLOTS
from poise_core.mechanisms.known import ABOVE_HALF, KNOWN
from poise_core.mechanisms.model import Choice, Slot

INTRODUCTION = """\
# The mechanism catalogue

Made by `python -m poise_core.mechanisms.document > docs/mechanisms.md`; a test compares the two.

A candidate of the catalogue is a *composition*: one choice for each slot below, with its numbers. {core} are answered by
every algorithm; the others may stay neutral (the first choice of a table). Numbers in brackets are the span within which
mutation and random search move them, on a log scale and to two digits; one without brackets stands still. Together {slots} slots
and {choices} choices give {total:.1e} combinations before numbers, less those excluded in `poise_core/mechanisms/conflicts.py`,
each for a reason that `incompatibilities(composition)` states.

`render(composition, name, ...)` writes the candidate file with the code of the chosen mechanisms only.
The composition is kept twice: as JSON in the archive (`candidates.composition`), and as the last paragraph of the file's
docstring. `composition_of(source)` reads the latter and renders it again: a file whose code was edited since is not
recognised. `mutate`, `mutate_numbers`, `crossover` and `random_composition` vary compositions; `distance` is the mean over
slots of 1 for another choice and 0.25 for other numbers. The same choices with other numbers are another composition and
another candidate.

Notation: R reward, c correctness, V format validity (0 or 1), L completion length in tokens, p mean correctness of the
group, A advantage; mean_g and std_g over the group (divisor n - 1), mean_b over the batch, mean_V over the group's valid and
mean_C over its correct completions; r_t ratio of the current to the sampling policy, H_t token entropy, ref the frozen
initial policy. `<-` rewrites what stands left of it, in the order of the slots. *Tag* is the choice's part in a child's
name. Off-switches are the entries of the file's `MECHANISMS`.
"""


def document() -> str:
    """The whole page."""
    total = 1.0
    for slot in SLOTS.values():
        total *= len(slot.choices)
    core = ", ".join(f"`{name}`" for name in CORE_SLOTS[:-1]) + f" and `{CORE_SLOTS[-1]}`"
    choices = sum(len(slot.choices) for slot in SLOTS.values())
    head = INTRODUCTION.format(core=core, slots=len(SLOTS), choices=choices, total=total)
    return "\n".join([head, *(_slot(slot) for slot in SLOTS.values()), _known()])


def _slot(slot: Slot) -> str:
    lines = [
        f"## {slot.name}",
        "",
        slot.question,
        "",
        "| choice | tag | what it does | numbers | off-switches | source |",
    ]
    lines.append("|---|---|---|---|---|---|")
    lines += [_row(choice) for choice in slot.choices]
    return "\n".join([*lines, ""])


def _row(choice: Choice) -> str:
    what = choice.idea + "".join(f"<br>`{formula}`" for formula in choice.formulas)
    numbers = "<br>".join(
        f"`{p.name}` {p.default:g}" + (f" [{low:g} to {high:g}]" if p.movable else "")
        for p in choice.parameters
        for low, high in [sorted(math.copysign(end, p.default) for end in p.span)]
    )
    cells = [
        f"`{choice.name}`",
        choice.tag,
        what,
        numbers,
        "<br>".join(f"`{name}`" for name in choice.off),
        choice.source,
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _known() -> str:
    lines = [
        "## Shipped algorithms as compositions",
        "",
        "| file | composition | what it leaves out |",
        "|---|---|---|",
    ]
    for name, known in sorted(KNOWN.items()):
        left_out = known.left_out or "nothing: equal in every number (tested)"
        if name in ABOVE_HALF:
            left_out += "; with partial credit, that only a correctness above 1/2 counts as correct"
        lines.append(f"| `{name}` | `{known.composition.to_text()}` | {left_out} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(document())
