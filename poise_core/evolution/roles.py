"""Who selects, proposes, screens, implements and reflects in a run."""

from __future__ import annotations

from dataclasses import dataclass

from poise_core.agents.base import Implementer, Proposer, Reflector, Screener
from poise_core.config import Preset
from poise_core.search.selection import ParentSelector


@dataclass(frozen=True)
class Roles:
    """One implementation of every role."""

    selector: ParentSelector
    proposer: Proposer
    screener: Screener
    implementer: Implementer
    reflector: Reflector


def default_roles(preset: Preset) -> Roles:
    """The roles that need no language model."""
    from poise_core.agents.catalogue import CatalogueImplementer, CatalogueProposer, CatalogueScreener
    from poise_core.agents.reflector import RuleReflector
    from poise_core.search.selection import ScoreExplorationSelector

    return Roles(
        selector=ScoreExplorationSelector(preset.search.exploration),
        proposer=CatalogueProposer(),
        screener=CatalogueScreener(),
        implementer=CatalogueImplementer(),
        reflector=RuleReflector(),
    )
