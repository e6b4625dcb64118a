"""Choices for which groups, completions and tokens get which signal: failed groups, routing, length and format.

Notation as in ``poise_core.mechanisms.advantage_choices``.
"""

from __future__ import annotations

from poise_core.mechanisms.model import Choice, Effect, Parameter, Slot

POISE = "POISE, arXiv 2603.23951"
DAPO = "DAPO, arXiv 2503.14476"

FAILURE = Slot(
    "failure",
    "What do groups without any success teach?",
    (
        Choice("none", "NZ", "learns nothing beyond the baseline from all-fail groups"),
        Choice(
            "graded_penalty",
            "FA",
            "penalises all-fail groups, unparseable completions more than parseable ones",
            ("A <- A - (all_fail_wrong if V else all_fail_invalid) where the whole group failed",),
            f"{POISE} (FA)",
            (
                Parameter("all_fail_invalid", 1.0, (0.5, 1.0, 2.0)),
                Parameter("all_fail_wrong", 0.1, (0.1, 0.25, 0.5)),
            ),
            off={"all_fail_penalty": {"all_fail_invalid": 0.0, "all_fail_wrong": 0.0}},
            needs=("all_fail", "valid"),
            code={
                "failure": """\
penalty = hp.all_fail_wrong * valid + hp.all_fail_invalid * (1.0 - valid)
advantage = advantage - penalty * all_fail.float()"""
            },
            answers=("all_fail_high", "format_invalid", "format_decay"),
            effects=(
                Effect(
                    "format_valid_end", "increase", "malformed failures are pushed down where nothing else is learnt"
                ),
            ),
        ),
        Choice(
            "format_contrast",
            "FC",
            "ranks the completions of all-fail groups by format, centred so that it adds no constant push",
            ("A <- A + all_fail_format (V - mean_g V) where the whole group failed",),
            f"{POISE} (PR, in words)",
            (Parameter("all_fail_format", 0.5, (0.25, 0.5, 1.0)),),
            off={"all_fail_format": {"all_fail_format": 0.0}},
            needs=("all_fail", "valid"),
            code={
                "failure": """\
contrast = valid - group_mean(valid, batch.group_ids)
advantage = advantage + hp.all_fail_format * contrast * all_fail.float()"""
            },
            answers=("all_fail_high", "format_invalid", "format_decay"),
            effects=(Effect("format_valid_end", "increase", "all-fail groups teach the format"),),
        ),
        Choice(
            "entropy_credit",
            "EC",
            "credits the uncertain tokens of all-fail groups, centred per completion, so that hard prompts explore",
            ("A_t <- A_t + all_fail_entropy (H_t - mean_t H) where the whole group failed",),
            f"{POISE} (DFR; the exact form is this project's)",
            (Parameter("all_fail_entropy", 0.2, (0.1, 0.2, 0.5)),),
            off={"all_fail_entropy_credit": {"all_fail_entropy": 0.0}},
            needs=("all_fail",),
            code={
                "tokens": """\
mean_entropy = to_tokens(masked_mean(batch.entropies, batch.completion_mask, dim=-1), batch.completion_mask)
failed_tokens = batch.completion_mask & all_fail.unsqueeze(-1)
credit = torch.where(failed_tokens, batch.entropies - mean_entropy, 0.0)  # (B, T)
values = values + hp.all_fail_entropy * credit"""
            },
            answers=("all_fail_high", "entropy_collapse", "reward_plateau"),
            effects=(Effect("entropy_end", "increase", "uncertain tokens of failed prompts are credited"),),
        ),
    ),
)

ROUTING = Slot(
    "routing",
    "Which groups, completions or tokens train, and with what weight?",
    (
        Choice("all", "RA", "trains on every token alike"),
        Choice(
            "mixed_only",
            "MX",
            "trains on groups with both outcomes only, so that uniform groups do not dilute the loss",
            ("only groups with max_g c > min_g c train",),
            f"{DAPO}, eq. 11 (without resampling); {POISE} (PR, in words)",
            switches={"mixed_groups_only": True},
            off={"mixed_groups_only": {"mixed_groups_only": False}},
            code={
                "train_mask": """\
mixed = group_max(batch.correctness, batch.group_ids) > group_min(batch.correctness, batch.group_ids)
train_mask = batch.completion_mask
if hp.mixed_groups_only:
    train_mask = train_mask & mixed.unsqueeze(-1)"""
            },
            answers=("all_fail_high", "reward_plateau"),
        ),
        Choice(
            "hard_weighted",
            "HW",
            "weights groups up the lower their pass rate",
            ("A <- A (1 + hard_weight (1 - p))",),
            f"{POISE} (DACE)",
            (Parameter("hard_weight", 0.5, (0.25, 0.5, 1.0, 2.0)),),
            off={"hard_group_weight": {"hard_weight": 0.0}},
            needs=("pass_rate",),
            code={"routing": "advantage = advantage * (1.0 + hp.hard_weight * (1.0 - pass_rate))"},
            answers=("all_fail_high", "reward_plateau"),
            effects=(Effect("all_fail_end", "decrease", "hard prompts get more of the gradient"),),
        ),
        Choice(
            "learnability",
            "LW",
            "weights groups up whose outcome is most uncertain, where there is most to learn",
            ("A <- A (1 + learnability_weight 4 p (1 - p))",),
            "after learnability sampling, arXiv 2502.12272",
            (Parameter("learnability_weight", 1.0, (0.5, 1.0, 2.0)),),
            off={"learnability_weight": {"learnability_weight": 0.0}},
            needs=("pass_rate",),
            code={
                "routing": """\
uncertainty = 4.0 * pass_rate * (1.0 - pass_rate)
advantage = advantage * (1.0 + hp.learnability_weight * uncertainty)"""
            },
            answers=("reward_plateau",),
        ),
        Choice(
            "overlong_filter",
            "OF",
            "leaves truncated completions out, because a cut-off says nothing about the reasoning",
            ("truncated completions do not train",),
            f"{DAPO}, section 3.4",
            switches={"drop_truncated": True},
            off={"overlong_filter": {"drop_truncated": False}},
            code={
                "train_mask": """\
train_mask = batch.completion_mask
if hp.drop_truncated:
    train_mask = train_mask & ~batch.truncated.unsqueeze(-1)"""
            },
            answers=("truncation_high", "length_growth"),
        ),
        Choice(
            "mixed_and_complete",
            "MC",
            "trains on complete answers of groups with both outcomes only",
            ("only groups with max_g c > min_g c train, and of them no truncated completion",),
            f"{DAPO}, eq. 11 (without resampling) and section 3.4",
            switches={"mixed_groups_only": True, "drop_truncated": True},
            off={
                "mixed_groups_only": {"mixed_groups_only": False},
                "overlong_filter": {"drop_truncated": False},
            },
            code={
                "train_mask": """\
mixed = group_max(batch.correctness, batch.group_ids) > group_min(batch.correctness, batch.group_ids)
train_mask = batch.completion_mask
if hp.mixed_groups_only:
    train_mask = train_mask & mixed.unsqueeze(-1)
if hp.drop_truncated:
    train_mask = train_mask & ~batch.truncated.unsqueeze(-1)"""
            },
            answers=("truncation_high", "reward_plateau"),
        ),
        Choice(
            "high_entropy_tokens",
            "HT",
            "trains on the most uncertain tokens only, the forks at which a completion is decided",
            ("only tokens with H_t >= the entropy_quantile of the batch train",),
            "Forking tokens, arXiv 2506.01939",
            (Parameter("entropy_quantile", 0.5, (0.2, 0.5, 0.8), high=0.99),),
            off={"high_entropy_tokens": {"entropy_quantile": 0.0}},
            code={
                "train_mask": """\
sampled = batch.entropies[batch.completion_mask].sort().values  # (tokens,)
rank = int(hp.entropy_quantile * max(sampled.numel() - 1, 0))
train_mask = batch.completion_mask
if sampled.numel() > 0:
    train_mask = train_mask & (batch.entropies >= sampled[rank])"""
            },
            answers=("entropy_collapse",),
            effects=(Effect("entropy_end", "increase", "tokens that are already certain are not sharpened further"),),
        ),
    ),
)

LENGTH = Slot(
    "length",
    "How does the length of a completion count?",
    (
        Choice("none", "NL", "lets length count only through the aggregation"),
        Choice(
            "brevity_zscore",
            "BZ",
            "rewards brevity among the correct completions of a group, gated by its pass rate",
            ("A <- A + length_coef p (mean_C L - L) / (std_C L + length_eps) for correct completions",),
            f"{POISE} (DACE)",
            (Parameter("length_coef", 0.2, (0.1, 0.2, 0.3)), Parameter("length_eps", 1e-4, (1e-4, 1.0), low=1e-6)),
            off={"gated_brevity": {"length_coef": 0.0}},
            needs=("correct", "pass_rate", "lengths"),
            code={
                "length": """\
spread = group_std(lengths, batch.group_ids, where=correct) + hp.length_eps
brevity = pass_rate * (group_mean(lengths, batch.group_ids, where=correct) - lengths) / spread
advantage = advantage + hp.length_coef * torch.where(correct, brevity, 0.0)"""
            },
            answers=("length_growth", "truncation_high"),
            effects=(
                Effect("length_end", "decrease", "shorter correct completions earn more, where most are correct"),
            ),
        ),
        Choice(
            "brevity_relative",
            "BR",
            "rewards relative brevity among correct completions by the square of the pass rate",
            ("A <- A + length_coef p^2 (mean_C L - L) / mean_C L for correct completions",),
            f"{POISE} (DCBE)",
            (Parameter("length_coef", 0.5, (0.25, 0.5, 1.0)),),
            off={"gated_brevity": {"length_coef": 0.0}},
            needs=("correct", "pass_rate", "lengths"),
            code={
                "length": """\
mean_length = group_mean(lengths, batch.group_ids, where=correct).clamp(min=1.0)
brevity = pass_rate.square() * (mean_length - lengths) / mean_length
advantage = advantage + hp.length_coef * torch.where(correct, brevity, 0.0)"""
            },
            answers=("length_growth", "truncation_high"),
            effects=(Effect("length_end", "decrease", "relative brevity earns advantage in solved groups"),),
        ),
        Choice(
            "excess_penalty",
            "XL",
            "charges correct completions for exceeding their group's mean, without paying for brevity",
            ("A <- A + length_coef p^2 min((mean_C L - L) / mean_C L, 0) for correct completions",),
            f"{POISE} (CAG)",
            (Parameter("length_coef", 0.5, (0.25, 0.5, 1.0)),),
            off={"gated_length_penalty": {"length_coef": 0.0}},
            needs=("correct", "pass_rate", "lengths"),
            code={
                "length": """\
mean_length = group_mean(lengths, batch.group_ids, where=correct).clamp(min=1.0)
excess = pass_rate.square() * ((mean_length - lengths) / mean_length).clamp(max=0.0)
advantage = advantage + hp.length_coef * torch.where(correct, excess, 0.0)"""
            },
            answers=("length_growth", "truncation_high"),
            effects=(Effect("length_end", "decrease", "correct completions above the mean length are charged"),),
        ),
        Choice(
            "ratio_power",
            "LP",
            "reweights by relative length: long successes count more, long failures less",
            ("A <- A (L / mean_g L)^(length_power sgn A)",),
            f"{POISE} (MSA)",
            (Parameter("length_power", 0.2, (0.1, 0.2, 0.5), high=2.0),),
            off={"length_reweighting": {"length_power": 0.0}},
            needs=("lengths",),
            code={
                "length": """\
tokens = lengths.clamp(min=1.0)
weight = (tokens / group_mean(tokens, batch.group_ids)).pow(hp.length_power)
advantage = torch.where(advantage > 0, advantage * weight, advantage / weight)"""
            },
            answers=("length_collapse",),
            effects=(Effect("length_end", "increase", "long successes weigh more and long failures less"),),
        ),
        Choice(
            "failure_discount",
            "LD",
            "divides the penalty of parseable failures by their relative length, so that trying longer costs less",
            ("A <- A / clip(L / mean_V L, length_low, length_high) for valid completions with A < 0",),
            f"{POISE} (VM-AV)",
            (
                Parameter("length_low", 0.5, (0.5, 0.8), low=0.1, high=1.0),
                Parameter("length_high", 2.0, (1.25, 2.0), low=1.0, high=10.0),
            ),
            off={"length_discount": {"length_low": 1.0, "length_high": 1.0}},
            needs=("lengths",),
            code={
                "length": """\
mean_length = group_mean(lengths, batch.group_ids, where=batch.format_valid, empty=1.0).clamp(min=1.0)
relative = (lengths / mean_length).clamp(hp.length_low, hp.length_high)
advantage = torch.where(batch.format_valid & (advantage < 0), advantage / relative, advantage)"""
            },
            answers=("length_collapse",),
            effects=(Effect("length_end", "increase", "a failed completion is pushed down less the longer it is"),),
        ),
        Choice(
            "overlong_soft",
            "OL",
            "punishes completions softly as they approach the length limit",
            (
                "L_max = length limit, cache = overlong_cache L_max",
                "R <- R + overlong_coef clip((L_max - cache - L) / cache, -1, 0)",
            ),
            f"{DAPO}, eq. 13",
            (
                Parameter("overlong_coef", 0.5, (0.25, 0.5, 1.0)),
                Parameter("overlong_cache", 0.2, (0.2, 0.4), low=0.01, high=0.99),
            ),
            off={"overlong_punishment": {"overlong_coef": 0.0}},
            needs=("lengths",),
            code={
                "reward_shaping": """\
limit = dynamics.max_completion_length
cache = max(hp.overlong_cache * limit, 1.0)
overlong = ((limit - cache - lengths) / cache).clamp(-1.0, 0.0)
reward = reward + hp.overlong_coef * overlong"""
            },
            answers=("truncation_high", "length_growth"),
            effects=(Effect("truncated_end", "decrease", "completions near the limit lose reward"),),
        ),
    ),
)

FORMAT = Slot(
    "format",
    "What does an unparseable answer cost, beside being wrong?",
    (
        Choice("none", "NF", "treats an unparseable answer as a wrong one"),
        Choice(
            "strict_penalty",
            "SP",
            "subtracts a fixed penalty from the advantage of unparseable completions",
            ("A <- A - invalid_penalty (1 - V)",),
            f"{POISE} (AV; there inside the reward)",
            (Parameter("invalid_penalty", 0.5, (0.25, 0.5, 1.0)),),
            off={"format_penalty": {"invalid_penalty": 0.0}},
            needs=("valid",),
            code={"format": "advantage = advantage - hp.invalid_penalty * (1.0 - valid)"},
            answers=("format_decay", "format_invalid"),
            effects=(Effect("format_valid_end", "increase", "unparseable completions are always pushed down"),),
        ),
        Choice(
            "stream",
            "FM",
            "adds a separate, separately normalised format advantage",
            ("A <- A + format_weight (V - mean_g V) / (std_g V + format_eps)",),
            f"{POISE} (DFR, CDA)",
            (
                Parameter("format_weight", 0.2, (0.1, 0.2, 0.5)),
                Parameter("format_eps", 1e-4, (1e-4,), low=1e-8),
            ),
            off={"format_stream": {"format_weight": 0.0}},
            needs=("valid",),
            code={
                "format": """\
format_advantage = valid - group_mean(valid, batch.group_ids)
format_advantage = format_advantage / (group_std(valid, batch.group_ids) + hp.format_eps)
advantage = advantage + hp.format_weight * format_advantage"""
            },
            answers=("format_decay", "format_invalid", "all_fail_high"),
            effects=(Effect("format_valid_end", "increase", "format has a stream of its own"),),
        ),
        Choice(
            "invalid_floor",
            "IF",
            "gives every unparseable completion the same fixed advantage",
            ("A <- invalid_advantage where V = 0",),
            f"{POISE} (VM-AV)",
            (Parameter("invalid_advantage", -1.0, (-2.0, -1.0, -0.5), low=-10.0, high=0.0),),
            {"fixed_invalid": True},
            {"invalid_floor": {"fixed_invalid": False}},
            code={
                "format": """\
if hp.fixed_invalid:
    advantage = torch.where(batch.format_valid, advantage, hp.invalid_advantage)"""
            },
            answers=("format_decay", "format_invalid", "all_fail_high"),
            effects=(Effect("format_valid_end", "increase", "unparseable completions are pushed down in every group"),),
        ),
    ),
)
