"""The stages of one evolution, each idempotent and recorded when finished; knows nothing of what schedules them."""

from poise_core.evolution.events import Event, Observer
from poise_core.evolution.evolution import Evolution
from poise_core.evolution.executor import ChildProcesses, Executor
from poise_core.evolution.ladder import Ladder, Rung
from poise_core.evolution.records import CandidateRef, ChildSlot, Draft
from poise_core.evolution.roles import Roles, default_roles
from poise_core.evolution.stages.select import EvolutionError
from poise_core.evolution.trials import Trials

__all__ = [
    "CandidateRef",
    "ChildProcesses",
    "ChildSlot",
    "Draft",
    "Event",
    "Evolution",
    "EvolutionError",
    "Executor",
    "Ladder",
    "Observer",
    "Roles",
    "Rung",
    "Trials",
    "default_roles",
]
