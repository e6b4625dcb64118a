"""The stages of one evolution, each idempotent and recorded when finished; knows nothing of what schedules them."""

from poise_core.evolution.events import Event, Observer
from poise_core.evolution.evolution import Evolution, EvolutionError
from poise_core.evolution.ladder import Ladder, Rung
from poise_core.evolution.records import Draft, Place
from poise_core.evolution.roles import Roles, default_roles
from poise_core.evolution.trials import Subject, Trials

__all__ = [
    "Draft",
    "Event",
    "Evolution",
    "EvolutionError",
    "Ladder",
    "Observer",
    "Place",
    "Roles",
    "Rung",
    "Subject",
    "Trials",
    "default_roles",
]
