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
    """The roles of the preset's arm that need no language model; arms differ in who selects or who proposes only."""
    from poise_core.agents.catalogue import CatalogueImplementer, CatalogueProposer, CatalogueScreener
    from poise_core.agents.random_catalogue import FirstComeScreener, RandomProposer
    from poise_core.agents.reflector import RuleReflector
    from poise_core.search.acquisition import AcquisitionSelector
    from poise_core.search.arms import GreedySelector, RootSelector

    search = preset.search
    selector: ParentSelector = RootSelector()
    if search.arm == "evolution":
        selector = AcquisitionSelector(search.acquisition, search.plateau)
    elif search.arm == "greedy":
        selector = GreedySelector()
    blind = search.arm == "random"
    return Roles(
        selector=selector,
        proposer=RandomProposer() if blind else CatalogueProposer(),
        screener=FirstComeScreener() if blind else CatalogueScreener(),
        implementer=CatalogueImplementer(),
        reflector=RuleReflector(),
    )
