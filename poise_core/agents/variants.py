"""Children without a model call: knock-outs of a candidate's mechanisms, and sweeps of one of its numbers.

Both are edits of the parent's own file (``poise_core.candidate.switches``). A knock-out asks whether a mechanism earns its place. A
sweep halves or doubles one number: it asks whether the parent's gain hangs on it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from poise_core.agents.roles import CandidateRecord, Expectation, Proposal, ProposalContext
from poise_core.candidate.identity import source_digest
from poise_core.candidate.switches import Switches

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
        switches = Switches.of(parent.source)
    except ValueError:
        return
    mechanisms, defaults = switches.mechanisms, switches.defaults
    for name in switches.switchable:
        found = switches.without([name])
        if found is None or not found.mechanisms:
            continue  # without its only mechanism a file is what its parent was
        shown = ", ".join(f"{key} = {value!r}" for key, value in found.numbers.items())
        yield _proposal(
            parent, f"NO-{name}", found.source, KNOCK_OUT, found.mechanisms,
            f"{parent.name} without {name}: {shown}",
            f"{name} earns its place: without it Overall falls",
            Expectation(metric="Overall", direction="decrease", why=f"{name} helps", probability=0.6),
        )  # fmt: skip
    for key, value in defaults.items():  # tuples stay: which of their numbers to move, and whether alone, is not known
        if isinstance(value, bool) or not isinstance(value, float) or value == 0.0:
            continue
        for factor in FACTORS:
            moved = float(f"{value * factor:.6g}")
            if switches.switches_off(key, moved):
                continue
            source = switches.with_number(key, moved)
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
