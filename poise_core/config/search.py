"""The settings of the search, with their defaults; ``docs/search.md`` gives the reasons for them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from poise_core.config.protocol import FrozenModel

Arm = Literal["evolution", "random", "greedy", "best-of-n", "tune"]


class AcquisitionSpec(FrozenModel):
    """s(d) = pareto * U_pareto + performance * U_perf + diversity * U_div + potential * alpha_GP, all terms on one scale."""

    pareto: NonNegativeFloat = Field(0.2, description="weight of the share of the dominated hypervolume")
    performance: NonNegativeFloat = Field(0.4, description="weight of the normalised shrunken Overall")
    diversity: NonNegativeFloat = Field(0.1, description="weight of novelty in mechanisms and behaviour")
    potential: NonNegativeFloat = Field(0.3, description="weight of the upper confidence bound on descendant gain")
    scale: Literal["deviation", "rank", "none"] = Field(
        "deviation",
        description="common scale of the terms over the nodes: standard deviations, ranks, or none, each as it is",
    )
    regress: bool = Field(
        True, description="whether what a node's own score makes of its descendants' gain is taken out"
    )
    impute: bool = Field(
        True, description="whether children that the ladder stopped without a score count in their ancestors' gain"
    )
    top_descendants: PositiveInt = Field(3, description="K: descendants that make up a node's descendant gain")
    discount: float = Field(0.8, gt=0, le=1, description="gamma: discount per generation between node and descendant")
    gain_scale: PositiveFloat = Field(
        3.0, description="beta: points of Overall that count as a large gain (the scale of the tanh)"
    )
    kernel: Literal["matern", "rbf"] = Field("matern", description="kernel over node features; matern: nu = 5/2")
    confidence: NonNegativeFloat = Field(1.0, description="UCB coefficient: standard deviations added to the mean")
    target_noise: PositiveFloat = Field(
        0.3, description="standard deviation of one descendant's discounted gain around the process's mean"
    )
    prior_std: PositiveFloat = Field(
        0.5, description="prior standard deviation of gains, used until the tree has enough nodes to fit it"
    )
    min_targets: PositiveInt = Field(6, description="nodes with scored descendants from which the process is fitted")
    max_targets: PositiveInt = Field(256, description="training points of the process at most")
    neighbours: PositiveInt = Field(5, description="nearest nodes whose mean distance is a node's novelty")
    lineage_penalty: NonNegativeFloat = Field(
        0.3, description="taken off a node per round for the ancestry it shares with parents chosen before it"
    )


class PromiseSpec(FrozenModel):
    """How the catalogue's proposals are chosen by what they are expected to score, of all that the run has measured."""

    draws: PositiveInt = Field(
        128, description="variations of a parent that are drawn for one slot, of which the most promising are proposed"
    )
    confidence: NonNegativeFloat = Field(
        1.0, description="UCB coefficient: standard deviations added to what a variation is expected to score"
    )
    reach: int = Field(4, ge=1, le=4, description="slots that a variation of a parent changes at most")
    weight: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of the same in the rank of proposals; the rest is relevance, novelty, variety, simplicity",
    )


class PlateauSpec(FrozenModel):
    """The definition of a plateau, and how the search answers one."""

    window: PositiveInt = Field(3, description="generations without a recognisable gain that make a plateau")
    answer: bool = Field(
        True, description="whether a plateau widens mutations and gives one slot to an unexplored branch"
    )
    worth: NonNegativeFloat = Field(
        0.1, description="expected gain of a generation, as a share of the noise floor, below which it is not worth it"
    )


class SearchSpec(FrozenModel):
    """The size of a search, and how it chooses parents and implements proposals."""

    generations: PositiveInt = 2
    trainings: PositiveFloat | None = Field(
        None,
        description="budget of all children together, in whole trainings of the baseline by their tokens: no generation begins "
        "once it is spent; none for all generations",
    )
    parents: PositiveInt = Field(3, description="parents per generation; each has one implemented child")
    proposals: PositiveInt = Field(4, description="proposals per parent, of which the screener takes the best")
    seeds_per_candidate: PositiveInt = Field(
        3, description="number of the protocol's seeds that each candidate trains with"
    )
    ideas_tried: int = Field(
        3,
        ge=1,
        le=16,
        description="limit of the proposals implemented for one slot, until the gate admits one",
    )
    revisions: int = Field(
        2,
        ge=0,
        le=10,
        description="inner loop: how often the implementer may revise one file after a report of the gate",
    )
    repairs: int = Field(
        1,
        ge=0,
        le=5,
        description="outer loop: how often a child whose first training steps show a clear fault goes back to its author",
    )
    repair_steps: PositiveInt = Field(
        20, description="first steps of the first seed in which a failure of training is a clear fault of the file"
    )
    variants: int = Field(
        0,
        ge=0,
        description="of a generation's children, how many are knock-outs of a mechanism or sweeps of one number of a parent that "
        "beats the baseline, without a proposer",
    )
    immigrants: int = Field(
        0,
        ge=0,
        description="of a generation's children, how many are compositions from the whole catalogue, as children of the baseline, "
        "instead of variations of a selected parent; arm evolution only",
    )
    opening: int = Field(
        0,
        ge=0,
        description="candidates that are tried, the baseline among them, before any is varied: until then all children are "
        "immigrants; arm evolution only",
    )
    baseline: str = Field("grpo", description="the algorithm that the tree starts from")
    arm: Arm = Field("evolution", description="how to search: evolution, or a control arm to compare it with")
    acquisition: AcquisitionSpec = AcquisitionSpec()
    plateau: PlateauSpec = PlateauSpec()
    promise: PromiseSpec | None = Field(
        PromiseSpec(), description="how much is made of what compositions promise; none: nothing"
    )
    seed: int = Field(0, description="seed of selection and of the catalogue proposer")
    searches: PositiveInt = Field(
        1,
        description="searches of the experiment that this one is part of: champion candidates are corrected for all of them",
    )

    def bred(self, tried: int) -> int:
        """Children of a generation that vary a selected parent, after so many candidates; the others are immigrants."""
        if self.arm != "evolution":
            return self.parents
        return bred_of(self.parents, self.immigrants, self.opening, tried)

    @property
    def planned(self) -> int:
        """Children that the whole experiment is going to measure, this search and those beside it."""
        return self.generations * self.parents * self.searches


def bred_of(count: int, immigrants: int, opening: int, tried: int) -> int:
    """How many of ``count`` slots are for variations; see ``SearchSpec.immigrants`` and ``SearchSpec.opening``."""
    return 0 if tried < opening else max(count - immigrants, 0)


class TuningRecord(FrozenModel):
    """How the baseline's numbers were found; ``poise tune`` writes it, and nothing else should."""

    algorithm: str = Field(description="name of the baseline, as search.baseline gives it")
    digest: str = Field(
        description="of the protocol without the tuned numbers and the seeds, see Protocol.tuning_digest"
    )
    numbers: dict[str, float] = Field(description="the optimum, training's numbers among them")
    start: dict[str, float] = Field(description="where the search began")
    open: tuple[str, ...] = Field(
        (), description="sides on which the optimum is not bracketed, such as 'kl_coef above 0.3'"
    )
    date: str
    budget: PositiveInt = Field(description="trainings allowed")
    trainings: PositiveInt = Field(description="trainings done")
    tokens: int = Field(description="completion tokens sampled in them")
    points: PositiveInt = Field(description="different sets of numbers that were measured")
    chosen_by: dict[str, Any] = Field(
        description="Overall of the optimum on the seeds that chose it, which is optimistic"
    )
    overall: dict[str, Any] = Field(description="Overall of the optimum on fresh seeds: estimate, low, high, seeds")
    gain: dict[str, Any] = Field(description="the same of its difference to the start, paired by seed and problem")
    axes: dict[str, list[dict[str, Any]]] = Field(
        description="per number, the points through the optimum: value, overall, and delta to the optimum"
    )


class BaselineSpec(FrozenModel):
    """The numbers of the baseline, and how they were found."""

    hyperparameters: dict[str, float] = Field(
        default_factory=dict,
        description="in place of the defaults of its file; entropy_coef adds a bonus where it has none",
    )
    tuning: TuningRecord | None = None
