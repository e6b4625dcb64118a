"""Chooses, for each place of a generation, which of several models and prompts proposes, by measured gain per dollar.

An arm is a model with a prompt file. What it has earned is what its children gained over their parents, in points of Overall
and 0 where a child lost, failed or was never measured; what it has cost is every call that it was asked in those places. Arms are
drawn by Thompson's rule with the Bayesian bootstrap (Rubin 1981, Ann. Statist. 9, 130): the places of an arm are weighed by
independent exponential numbers, and the arm with the largest weighed gain per weighed cost proposes. One imagined place of average
gain and cost stands beside the real ones, so that a new arm is tried and a dear failure is not tried for ever.

Only earlier generations count, and the draw follows from the search's seed and the place: a run that goes on chooses as before.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from poise_core.agents.llm.faults import Outcome
from poise_core.agents.llm.prompts import Prompt, load_prompt
from poise_core.agents.roles import Proposal, ProposalContext
from poise_core.archive import Archive
from poise_core.config.agents import AgentSettings

_NOTHING = (
    1e-9  # points, where no child of any arm has gained anything yet: then what was tried least or cost least is tried
)


@dataclass(frozen=True)
class Arm:
    """A model with a prompt file."""

    model: str
    prompt: Prompt


@dataclass(frozen=True)
class Place:
    """What one place of an earlier generation gave and cost."""

    gain: float  # points of Overall over the parent; 0 where there is none
    cost: float  # US dollars, or tokens where a call has no price


class Bandit:
    """The arms of a run."""

    def __init__(self, archive: Archive, settings: AgentSettings, seed: int) -> None:
        """Read the prompt files.

        Raises:
            PromptError: one of them cannot be used.
        """
        models = dict.fromkeys(settings.models_of("proposer"))
        folders = dict.fromkeys([settings.prompts_folder, *settings.choices.prompts_folders])
        prompts = {prompt.label: prompt for prompt in (load_prompt("proposer", folder) for folder in folders)}
        self.arms = tuple(Arm(model, prompt) for model in models for prompt in prompts.values())
        self._archive, self._seed = archive, seed

    def choose(self, context: ProposalContext) -> Arm:
        """The arm that proposes for this place."""
        if len(self.arms) == 1:
            return self.arms[0]
        places = self.places(context)
        drawn = random.Random(f"{self._seed}:{context.scope}")
        found = {(arm.model, arm.prompt.label): places[arm.model, arm.prompt.label] for arm in self.arms}
        worth = draws(found, drawn)
        shuffled = drawn.sample(self.arms, len(self.arms))  # before anything is known, all are worth the same
        return max(shuffled, key=lambda arm: worth[arm.model, arm.prompt.label])

    def places(self, context: ProposalContext) -> Mapping[tuple[str, str], list[Place]]:
        """What each arm, by model and prompt label, gave and cost in each place of earlier generations."""
        calls = [
            row
            for row in self._archive.rows("calls")
            if row["generation"] < context.generation and row["role"] == "proposer" and row["outcome"] != Outcome.BUDGET
        ]
        priced = all(row["dollars"] is not None for row in calls)
        gains = self._gains(context)
        found: dict[tuple[str, str, str], Place] = {}
        for row in calls:
            key = (row["model"], row["prompt"], row["scope"])
            paid = row["dollars"] if priced else row["input_tokens"] + row["output_tokens"]
            before = found.get(key, Place(0.0, 0.0))
            found[key] = replace(
                before, gain=max(before.gain, gains.get(row["call_id"], 0.0)), cost=before.cost + (paid or 0.0)
            )
        arms: dict[tuple[str, str], list[Place]] = defaultdict(list)
        for (model, prompt, _), place in sorted(found.items()):
            arms[model, prompt].append(place)
        return arms

    def _gains(self, context: ProposalContext) -> dict[str, float]:
        """Call id -> points that the child of its answer gained over its parent, by the table's differences to the baseline."""
        deltas = {line.name: line.delta.estimate for line in context.table if line.delta is not None}
        candidates = self._archive.rows("candidates")
        names = {row["candidate_id"]: row["name"] for row in candidates}
        children = {row["proposal_id"]: row["name"] for row in candidates if row["proposal_id"]}
        gains: dict[str, float] = {}
        for row in self._archive.rows("proposals"):
            child = children.get(row["proposal_id"])
            if child not in deltas or row["generation"] >= context.generation:
                continue
            proposal = Proposal.model_validate_json(row["content"])
            parent = names.get(next(iter(proposal.parent_ids), ""), "")
            gain = deltas[child] - deltas.get(parent, 0.0)
            gains[proposal.call_id] = max(gains.get(proposal.call_id, 0.0), gain)
        return gains


def draws(
    places: Mapping[tuple[str, str], Sequence[Place]], random_numbers: random.Random
) -> dict[tuple[str, str], float]:
    """One draw of the gain per cost of every arm."""
    everything = [place for own in places.values() for place in own]
    gain = sum(place.gain for place in everything) / len(everything) if everything else 0.0
    cost = sum(place.cost for place in everything) / len(everything) if everything else 0.0
    imagined = Place(max(gain, _NOTHING), cost if cost > 0 else 1.0)
    worth = {}
    for arm, own in places.items():
        weighed = [(random_numbers.expovariate(1.0), place) for place in [imagined, *own]]
        total = sum(weight * place.cost for weight, place in weighed)
        worth[arm] = sum(weight * place.gain for weight, place in weighed) / total
    return worth
