"""The names of a trajectory's columns, and of the numbers that summarize a whole training.

A trajectory has one row per training step, a mapping of metric to number. The trainer writes every column of ``COLUMNS``, and
may add metrics of the candidate's loss under ``candidate/...`` and the state of its controller under ``controller/...``. A
reader of the archive must expect missing columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

TrajectoryRows = Sequence[Mapping[str, float]]
"""The rows of one seed's trajectory, one mapping of metric to number per step."""

Column = Literal[
    "step", "reward_mean", "format_valid", "completion_length", "truncated", "entropy", "kl", "clip_fraction", "grad_norm",
    "loss", "all_fail_fraction", "all_pass_fraction", "learning_rate", "tokens", "sampler_kl", "sampler_ess", "sampler_gap",
    "seconds_rollout", "seconds_update",
]  # fmt: skip
"""A standard column, as a type with which the type checker finds misspelt names."""

CANDIDATE, CONTROLLER = "candidate/", "controller/"
"""Prefixes of a candidate's own metrics, and of the entries of its controller's state."""


class Quantity(NamedTuple):
    """The unit and the meaning of a column."""

    unit: str
    meaning: str


COLUMNS: Mapping[Column, Quantity] = {
    "step": Quantity("", "training step, from 0"),
    "reward_mean": Quantity("share", "mean correctness of the rollout"),
    "format_valid": Quantity("share", "completions whose answer parses"),
    "completion_length": Quantity("tokens", "mean per completion"),
    "truncated": Quantity("share", "completions that hit the length limit"),
    "entropy": Quantity("nats", "mean token entropy of the policy that sampled"),
    "kl": Quantity("nats", "KL to the initial policy per token (estimator k3)"),
    "clip_fraction": Quantity("share", "trained tokens whose ratio was clipped, as the candidate counts them"),
    "grad_norm": Quantity("", "norm of the gradient before clipping, mean over the step's updates"),
    "loss": Quantity("", "minimized loss, mean over the step's updates"),
    "all_fail_fraction": Quantity("share", "groups without a correct completion"),
    "all_pass_fraction": Quantity("share", "groups with only correct completions"),
    "learning_rate": Quantity("", "of the optimizer in this step"),
    "tokens": Quantity("tokens", "completion tokens sampled in this step, all processes together"),
    "sampler_kl": Quantity(
        "nats", "KL of the sampler to the trainer per sampled token (estimator k3); 0 where they are one"
    ),
    "sampler_ess": Quantity(
        "share", "effective sample size of the importance weights exp(trainer - sampler), per token"
    ),
    "sampler_gap": Quantity("nats", "largest difference of sampler and trainer in the log-probability of a token"),
    "seconds_rollout": Quantity("seconds", "wall-clock time of sampling and grading"),
    "seconds_update": Quantity("seconds", "wall-clock time of advantages and updates"),
}
"""Column -> its unit and meaning."""


class RunMetric(NamedTuple):
    """One number of a whole training, with its column and the way it is computed from the steps."""

    column: Column
    reading: Literal["end", "mean", "median"]  # end: the mean over the last tenth of the steps


RUN_METRICS: Mapping[str, RunMetric] = {
    "reward_end": RunMetric("reward_mean", "end"),
    "entropy_end": RunMetric("entropy", "end"),
    "kl_end": RunMetric("kl", "end"),
    "length_end": RunMetric("completion_length", "end"),
    "format_valid_end": RunMetric("format_valid", "end"),
    "truncated_end": RunMetric("truncated", "end"),
    "all_fail_end": RunMetric("all_fail_fraction", "end"),
    "clip_fraction_mean": RunMetric("clip_fraction", "mean"),
    "grad_norm_median": RunMetric("grad_norm", "median"),
}
"""Numbers of a single training, by name, which a proposal's expectation or a secondary aim can refer to."""
