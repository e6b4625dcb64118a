"""What a candidate changes in the baseline, slot by slot, where the catalogue expresses both.

A mechanism that a file has can be switched off in it. One that it lacks cannot, and yet to have left out the baseline's
normalisation, penalty or clipping may be what carries a candidate. So every change is undone alone in the candidate, and made
alone in the baseline. Slots that do not go together when one of them is changed (a clip of a ratio that is not there) are
changed together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from poise_core.mechanisms.composition import Composition, changed_slots
from poise_core.mechanisms.conflicts import conflicts
from poise_core.mechanisms.known import composition_for
from poise_core.mechanisms.operators import describe_change


@dataclass(frozen=True)
class SlotChange:
    """One change to the baseline."""

    slots: tuple[str, ...]  # in the order of the catalogue
    before: str  # the baseline's choices in them, for example ``kl=k3(kl_coef=0.01)``
    after: str  # the candidate's
    says: str  # ``kl: k3(kl_coef=0.01) -> none``
    undone: Composition | None  # the candidate with the baseline's choices in these slots; None where that is excluded
    alone: Composition | None  # the baseline with the candidate's choices in them; None where that is excluded


def source_changes(source: str, baseline: str) -> list[SlotChange]:
    """The changes between two files; none where the catalogue does not express the whole of either."""
    own, base = composition_for(source), composition_for(baseline)
    if own is None or base is None or own.left_out or base.left_out:
        return []
    return slot_changes(own.composition, base.composition)


def slot_changes(own: Composition, base: Composition) -> list[SlotChange]:
    """Every change of one slot, or of as few as go together, in the order of the catalogue."""
    changed = changed_slots(base, own)
    undone, alone = _exchanged(own, base, changed), _exchanged(base, own, changed)
    return [
        SlotChange(
            slots, _text(base, slots), _text(own, slots), _says(base, own, slots), undone.get(slots), alone.get(slots)
        )
        for slots in dict.fromkeys([*undone, *alone])
    ]


def _exchanged(into: Composition, donor: Composition, changed: Sequence[str]) -> dict[tuple[str, ...], Composition]:
    """Slots -> the composition with the donor's choices in them."""
    units = [_together(into, donor, slot, changed) for slot in changed]
    return {slots: _with(into, donor, slots) for slots in units if slots}


def _together(into: Composition, donor: Composition, slot: str, changed: Sequence[str]) -> tuple[str, ...]:
    """The slot, and those that must come from the donor with it; empty where it does not go at all, or only with all of them."""
    taken = {slot}
    while found := conflicts(_with(into, donor, sorted(taken))):
        further = [one for conflict in found for one in conflict.slots if one in changed and one not in taken]
        if not further:
            return ()
        taken.add(further[0])
    return tuple(one for one in changed if one in taken) if len(taken) < len(changed) else ()


def _with(into: Composition, donor: Composition, slots: Sequence[str]) -> Composition:
    numbers = {name: value for slot in slots for name, value in donor.numbers(slot).items()}
    return into.with_choices({slot: donor.choices[slot] for slot in slots}, numbers)


def _text(composition: Composition, slots: Sequence[str]) -> str:
    return "; ".join(composition.describe(slot) for slot in slots)


def _says(base: Composition, own: Composition, slots: Sequence[str]) -> str:
    return describe_change(base, _with(base, own, slots))
