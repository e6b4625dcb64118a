"""All slots, in the order in which a composition is read."""

from __future__ import annotations

from collections.abc import Mapping

from poise_core.mechanisms.advantage_choices import BASELINE, BOUND, REWARD, SCALE
from poise_core.mechanisms.loss_choices import AGGREGATION, CLIP, ENTROPY, KL, RATIO
from poise_core.mechanisms.model import Slot
from poise_core.mechanisms.routing_choices import FAILURE, FORMAT, LENGTH, ROUTING

SLOTS: Mapping[str, Slot] = {
    slot.name: slot
    for slot in (
        REWARD, BASELINE, SCALE, BOUND, ROUTING, LENGTH, FORMAT, FAILURE,
        RATIO, CLIP, KL, ENTROPY, AGGREGATION,
    )
}  # fmt: skip

CORE_SLOTS = ("baseline", "scale", "ratio", "clip", "aggregation")
"""Slots that every algorithm has to answer; the others may stay neutral."""
