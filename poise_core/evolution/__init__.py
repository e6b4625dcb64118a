"""The stages of one evolution, each idempotent and recorded when finished; knows nothing of what schedules them."""

from poise_core.evolution.events import Event, Observer
from poise_core.evolution.evolution import Evolution, EvolutionError
from poise_core.evolution.ladder import Ladder, Rung
from poise_core.evolution.records import ChildSlot, Draft
from poise_core.evolution.roles import Roles, default_roles
from poise_core.evolution.trials import CandidateRef, Trials

__all__ = [
    "CandidateRef",
    "ChildSlot",
    "Draft",
    "Event",
    "Evolution",
    "EvolutionError",
    "Ladder",
    "Observer",
    "Roles",
    "Rung",
    "Trials",
    "default_roles",
]
