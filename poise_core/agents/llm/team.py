"""Puts a language model behind those of the four roles for which the preset names one."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

from poise_core.agents.llm.bandit import Bandit
from poise_core.agents.llm.call import Caller
from poise_core.agents.llm.implementer import ModelImplementer
from poise_core.agents.llm.ledger import Allowance
from poise_core.agents.llm.literature import load_notes
from poise_core.agents.llm.prompts import Prompt, load_prompt
from poise_core.agents.llm.proposer import ModelProposer
from poise_core.agents.llm.reflector import ModelReflector
from poise_core.agents.llm.screener import ModelScreener
from poise_core.agents.roles import Implementer, Proposer, Reflector, Screener
from poise_core.archive import Archive
from poise_core.config.agents import AgentSettings

Team = tuple[Proposer, Screener, Implementer, Reflector]
"""The four roles of a run."""


def began_on(archive: Archive) -> dt.date:
    """The day on which a run began, in UTC: that of its first candidate's row, today where there is none yet."""
    rows = archive.rows("candidates")
    return min((row["created_at"] for row in rows), default=dt.datetime.now(dt.UTC)).date()


def with_language_model(
    team: Team,
    settings: AgentSettings,
    archive: Archive,
    *,
    replay: Archive | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    allowance: Allowance | None = None,
    seed: int = 0,
    protocol: str = "",
) -> Team:
    """The team with a language model behind every role for which the settings name one.

    Args:
        team: the roles without a language model; they answer where the model cannot.
        settings: of the run.
        archive: where calls are recorded.
        replay: the archive of a recorded run to take all answers from.
        should_stop: ends every wait.
        allowance: the cost budget of the models' calls.
        seed: of the search.
        protocol: digest of the run's, for notes that were measured under another.

    Raises:
        PromptError, LiteratureError: a file of the user cannot be used.
    """
    proposer, screener, implementer, reflector = team
    caller = Caller(archive, settings, replay=replay, should_stop=should_stop, allowance=allowance)
    notes = load_notes(settings.literature_folder, today=began_on(replay or archive), protocol=protocol)
    falls_back = settings.on_failure == "catalogue"

    def prompt(role: str) -> Prompt:
        return load_prompt(role, settings.prompts_folder)

    if settings.for_role("proposer").model:
        chooses = settings.choices.models or settings.choices.prompts_folders
        bandit = Bandit(archive, settings, seed) if chooses else None
        proposer = ModelProposer(caller, prompt("proposer"), notes, proposer if falls_back else None, seed, bandit)
    if settings.for_role("screener").model:
        screener = ModelScreener(caller, prompt("screener"), screener, falls_back)
    if settings.for_role("implementer").model:
        implementer = ModelImplementer(caller, prompt("implementer"), implementer)
    if settings.for_role("reflector").model:
        reflector = ModelReflector(caller, prompt("reflector"), reflector, falls_back)
    return proposer, screener, implementer, reflector
