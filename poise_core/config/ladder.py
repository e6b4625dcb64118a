"""Settings of the ladder and of the health rules, by which the training of a child may end early."""

from __future__ import annotations

from pydantic import Field, PositiveFloat, PositiveInt

from poise_core.config.protocol import FrozenModel


class LadderSpec(FrozenModel):
    """Rules that may end a child's training before its last seed; docs/evidence.md derives them and their error rates."""

    enabled: bool = Field(
        False, description="whether children pass rungs; without them every child trains with all seeds"
    )
    proxy_steps: int = Field(
        30, ge=0, description="length of the proxy, the first steps of the first seed's training; 0 for no proxy"
    )
    proxy_window: PositiveInt = Field(10, description="steps at the end of the proxy over which the reward is averaged")
    proxy_stop_below: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="a child ends at the proxy where P(its reward beats that of its parent or the baseline) is below; 0: none "
        "does. It counts only where every benchmark is single-sample accuracy, which is what the reward measures",
    )
    forecast_stop_below: float = Field(
        0.10,
        ge=0,
        lt=1,
        description="the same of the Overall that the proxy's dynamics forecast, once earlier generations allow a forecast",
    )
    first_stop_below: float = Field(
        0.10, ge=0, lt=1, description="the same after the first whole training and its evaluation"
    )
    leader_stop_below: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="a child ends after the first whole training where P(it beats the best of earlier generations) is below; "
        "0: only parent and baseline count",
    )
    evaluate_stopped: bool = Field(
        True,
        description="score the last policy of a child that was stopped, once, so that the stop can be checked; the child itself "
        "gets no score by it",
    )
    reward_noise: PositiveFloat = Field(
        5.0, description="seed standard deviation of the proxy's reward, percent points, before any was measured"
    )
    overall_noise: PositiveFloat = Field(
        2.0, description="seed standard deviation of Overall, percent points, before any was measured"
    )
    noise_weight: PositiveFloat = Field(
        4.0, description="degrees of freedom of those two priors, weighed against what the run measures"
    )
    shared_noise: float = Field(
        0.06,
        gt=0,
        lt=1,
        description="prior share of the seed variance that is common to all candidates; 6 % on the first testbed (18 candidates, "
        "six seeds), so pairing by seed buys little",
    )


class HealthSpec(FrozenModel):
    """Limits at which a child's training is stopped because its policy degenerates; see poise_core.evolution.health."""

    enabled: bool = True
    grace_steps: int = Field(5, ge=0, description="number of first steps in which no rule is checked")
    patience: PositiveInt = Field(
        5, description="consecutive steps that must break a rule before it stops the training"
    )
    kl_limit: PositiveFloat = Field(
        3.0,
        description="upper limit of the KL, nats per token; without KL penalty and clipping the first testbed reached 0.7",
    )
    entropy_floor: float = Field(
        0.003,
        ge=0,
        description="lower limit of the entropy, nats per token; GRPO on the first testbed ended at 0.03",
    )
    truncated_limit: float = Field(
        0.9,
        gt=0,
        description="share of completions that hit the length limit; the panel of the first testbed stayed below 0.12",
    )
    length_factor: float = Field(
        4.0,
        gt=1,
        description="mean length against the parent's at the same step, either way; learning to reason is 2 to 3",
    )
    clip_limit: float = Field(
        0.7,
        gt=0,
        description="share of clipped tokens; the first panel stayed below 0.03, above 0.5 most of a rollout is wasted",
    )
    loss_margin: float = Field(
        0.15,
        gt=0,
        description="reward below the parent's, mean over the window, from which a loss can be certain; judged only where every "
        "benchmark is single-sample accuracy",
    )
    loss_window: PositiveInt = Field(15, description="steps, with the parent's prompts, over which the loss is judged")
    loss_errors: PositiveFloat = Field(
        4.0,
        description="standard errors by which the loss must exceed half the margin; 4 over 15 steps is one chance in 1,500 a look",
    )
