"""The roles of a run: which implementations select, propose, screen, implement and reflect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from poise_core.agents.catalogue.implementer import CatalogueImplementer
from poise_core.agents.catalogue.proposer import CatalogueProposer
from poise_core.agents.catalogue.random_search import FirstComeScreener, RandomProposer
from poise_core.agents.catalogue.screener import CatalogueScreener
from poise_core.agents.llm.ledger import Allowance
from poise_core.agents.roles import Implementer, Proposer, Reflector, Screener
from poise_core.agents.rules.reflector import RuleReflector
from poise_core.archive import Archive
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
    immigrants: Proposer = field(default_factory=RandomProposer)


def default_roles(preset: Preset) -> Roles:
    """The roles of the preset's arm that need no language model; arms differ in who selects or who proposes only."""
    from poise_core.search.acquisition import AcquisitionSelector
    from poise_core.search.arms import GreedySelector, RootSelector

    search = preset.search
    selector: ParentSelector = RootSelector()
    if search.arm == "evolution":
        selector = AcquisitionSelector(search.acquisition, search.plateau, search.immigrants, search.opening)
    elif search.arm == "greedy":
        selector = GreedySelector()
    random = search.arm in ("random", "tune")
    promise = search.promise if search.arm == "evolution" else None
    return Roles(
        selector=selector,
        proposer=RandomProposer(numbers_only=search.arm == "tune") if random else CatalogueProposer(promise=promise),
        screener=FirstComeScreener() if random else CatalogueScreener(promise=promise),
        implementer=CatalogueImplementer(),
        reflector=RuleReflector(),
        immigrants=RandomProposer(promise=promise),
    )


def roles_for(
    preset: Preset,
    archive: Archive,
    *,
    replay: Archive | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    allowance: Allowance | None = None,
) -> Roles:
    """The roles of a run: those of ``default_roles``, with a language model where the preset names one.

    Args:
        preset: of the run.
        archive: where calls are recorded.
        replay: the archive of a recorded run to take all answers from.
        should_stop: ends every wait for a model.
        allowance: the cost budget of the models' calls.
    """
    roles = default_roles(preset)
    if not preset.agents.enabled:
        return roles
    from poise_core.agents.llm.team import with_language_model

    team = (roles.proposer, roles.screener, roles.implementer, roles.reflector)
    options: dict[str, Any] = {
        "replay": replay,
        "should_stop": should_stop,
        "allowance": allowance,
        "seed": preset.search.seed,
        "protocol": preset.protocol.digest,
    }
    return Roles(
        roles.selector, *with_language_model(team, preset.agents, archive, **options), immigrants=roles.immigrants
    )
