"""What a training run did, condensed to the numbers a diagnosis needs.

Input are the rows of ``trajectory.jsonl`` (one mapping of metric to number per step, for each seed); output is a
:class:`TrajectoryDigest`. Nothing here judges: thresholds and wording are in :mod:`poise_core.agents.reflector`.
"""

from __future__ import annotations

from poise_core.evaluation.protocol import FrozenModel


class Spike(FrozenModel):
    """The step at which a metric stood out most from its own run."""

    step: int
    seed: int
    value: float
    ratio: float  # value / median of the metric over that seed's run


class TrajectoryDigest(FrozenModel):
    """Numbers of one candidate's training; start and end are means over the first and the last tenth of the steps.

    Curves are averaged over seeds step by step before they are read; spikes and gaps are looked for in every seed. A
    metric that the trajectory does not hold is ``None``, never zero.
    """

    steps: int  # steps of the longest seed
    seeds: int
    complete: bool  # every seed reached the last step
    non_finite_steps: int  # rows with a NaN or an infinity in any metric, over all seeds

    reward_start: float | None = None
    reward_end: float | None = None
    reward_best: float | None = None
    reward_plateau_step: int | None = None  # first step within 2 % (of the total rise) of the best smoothed reward
    entropy_start: float | None = None
    entropy_end: float | None = None
    entropy_slope: float | None = None  # nats per step, least squares over the run
    kl_end: float | None = None
    kl_peak: float | None = None
    kl_spike: Spike | None = None
    length_start: float | None = None
    length_end: float | None = None
    clip_fraction_mean: float | None = None
    clip_fraction_end: float | None = None
    all_fail_start: float | None = None
    all_fail_end: float | None = None
    all_pass_end: float | None = None
    format_valid_start: float | None = None
    format_valid_end: float | None = None
    truncated_start: float | None = None
    truncated_end: float | None = None
    grad_norm_median: float | None = None
    grad_norm_spike: Spike | None = None
