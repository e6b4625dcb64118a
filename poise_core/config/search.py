"""The settings of the search, with their defaults; ``docs/search.md`` says why they are what they are."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from poise_core.config.protocol import FrozenModel

Arm = Literal["evolution", "random", "greedy", "best-of-n"]


class AcquisitionSpec(FrozenModel):
    """s(d) = pareto * U_pareto + performance * U_perf + diversity * U_div + potential * alpha_GP."""

    pareto: NonNegativeFloat = Field(0.2, description="weight of the share of the dominated hypervolume")
    performance: NonNegativeFloat = Field(0.4, description="weight of the normalised shrunken Overall")
    diversity: NonNegativeFloat = Field(0.1, description="weight of novelty in mechanisms and behaviour")
    potential: NonNegativeFloat = Field(0.3, description="weight of the upper confidence bound on descendant gain")
    top_descendants: PositiveInt = Field(3, description="K: descendants that make up a node's descendant gain")
    discount: float = Field(0.8, gt=0, le=1, description="gamma: discount per generation between node and descendant")
    gain_scale: PositiveFloat = Field(3.0, description="beta: points of Overall that count as a large gain")
    kernel: Literal["matern", "rbf"] = Field("matern", description="kernel over node features; matern: nu = 5/2")
    confidence: NonNegativeFloat = Field(1.0, description="UCB coefficient: standard deviations added to the mean")
    target_noise: PositiveFloat = Field(
        0.3, description="standard deviation of one descendant's discounted gain around what the node's features say"
    )
    prior_std: PositiveFloat = Field(
        0.5, description="standard deviation of gains where the tree is too young to learn"
    )
    min_targets: PositiveInt = Field(6, description="nodes with scored descendants from which the process is fitted")
    max_targets: PositiveInt = Field(256, description="training points of the process at most")
    neighbours: PositiveInt = Field(5, description="nearest nodes whose mean distance is a node's novelty")
    lineage_penalty: NonNegativeFloat = Field(
        0.3, description="taken off a node per round for the ancestry it shares with parents chosen before it"
    )


class PlateauSpec(FrozenModel):
    """When the search counts as stuck, and what it does then."""

    window: PositiveInt = Field(3, description="generations without a recognisable gain that make a plateau")
    answer: bool = Field(True, description="mutate wider and give a slot to an unexplored branch on a plateau")
    worth: NonNegativeFloat = Field(
        0.1, description="expected gain of a generation, as a share of the noise floor, below which it is not worth it"
    )
