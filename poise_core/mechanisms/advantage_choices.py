"""Choices for the size of an advantage: what is rewarded, against what, in which unit, within which bounds.

R is the reward, c correctness, V format validity (0 or 1), L completion length in tokens, p the group's mean
correctness; mean_g, std_g are over the group, mean_b over the batch, mean_V over the group's format-valid completions,
mean_C over its correct ones. Constants that a source does not publish are this project's.
"""

from __future__ import annotations

from poise_core.mechanisms.model import Choice, Effect, Parameter, Slot

POISE = "POISE, arXiv 2603.23951"
DAPO = "DAPO, arXiv 2503.14476"

REWARD = Slot(
    "reward",
    "Which number does a completion earn before it is compared with others?",
    (
        Choice(
            "correctness",
            "CR",
            "rewards the verifier's outcome alone",
            ("R = c",),
            code={"reward": "reward = batch.correctness  # (B,)"},
        ),
        Choice(
            "signed",
            "SR",
            "rewards success by 1 and failure by -1, so that failures are pushed down even without a baseline",
            ("R = 2 c - 1",),
            f"{DAPO}, eq. 7",
            switches={"signed_reward": True},
            off={"signed_reward": {"signed_reward": False}},
            code={
                "reward": "reward = 2.0 * batch.correctness - 1.0 if hp.signed_reward else batch.correctness  # (B,)"
            },
            answers=("reward_plateau",),
        ),
        Choice(
            "format_bonus",
            "FB",
            "adds a bonus for a parseable answer to the reward, so that format and outcome are normalised together",
            ("R = c + format_bonus V",),
            "DeepSeek-R1, arXiv 2501.12948",
            (Parameter("format_bonus", 0.2, (0.1, 0.2, 0.5)),),
            off={"format_bonus": {"format_bonus": 0.0}},
            needs=("valid",),
            code={"reward": "reward = batch.correctness + hp.format_bonus * valid  # (B,)"},
            answers=("format_decay", "format_invalid", "all_fail_high"),
            effects=(Effect("format_valid_end", "increase", "a parseable answer earns reward of its own"),),
        ),
        Choice(
            "hierarchical",
            "HR",
            "grades failures: a parseable wrong answer earns more than an unparseable one, a correct one earns 1",
            ("R = c + wrong_reward V (1 - c)",),
            f"{POISE} (RF, in words)",
            (Parameter("wrong_reward", 0.1, (0.05, 0.1, 0.2)),),
            off={"graded_failures": {"wrong_reward": 0.0}},
            needs=("valid",),
            code={"reward": "reward = batch.correctness + hp.wrong_reward * valid * (1.0 - batch.correctness)  # (B,)"},
            answers=("format_decay", "format_invalid", "all_fail_high"),
            effects=(Effect("format_valid_end", "increase", "failures are ranked by format"),),
        ),
    ),
)

BASELINE = Slot(
    "baseline",
    "Against what is a completion's reward compared?",
    (
        Choice(
            "group_mean",
            "GM",
            "centres rewards by the group mean",
            ("A = R - mean_g R",),
            "GRPO, arXiv 2402.03300, eq. 4",
            code={"baseline": "advantage = reward - group_mean(reward, batch.group_ids)  # (B,)"},
        ),
        Choice(
            "none",
            "NB",
            "uses the reward itself, without a baseline",
            ("A = R",),
            "Williams 1992 (REINFORCE)",
            code={"baseline": "advantage = reward  # (B,)"},
        ),
        Choice(
            "leave_one_out",
            "LOO",
            "compares each completion with the mean of the others in its group, an unbiased baseline",
            ("A_i = R_i - mean_{j != i} R_j over the group",),
            "RLOO, arXiv 2402.14740",
            switches={"leave_one_out": True},
            off={"leave_one_out_baseline": {"leave_one_out": False}},
            code={
                "baseline": """\
advantage = reward - group_mean(reward, batch.group_ids)  # (B,)
if hp.leave_one_out:  # R_i - (sum - R_i) / (n - 1) = (R_i - mean) n / (n - 1)
    size = group_count(batch.group_ids)
    advantage = advantage * size / (size - 1.0).clamp(min=1.0)"""
            },
            answers=("gradient_spikes",),
        ),
        Choice(
            "batch_mean",
            "BM",
            "compares with the mean of the whole batch, so that all-fail and all-pass groups also carry a signal",
            ("A = R - mean_b R",),
            "REINFORCE++, arXiv 2501.03262",
            switches={"batch_baseline": True},
            off={"batch_baseline": {"batch_baseline": False}},
            code={
                "baseline": """\
baseline = reward.mean() if hp.batch_baseline else group_mean(reward, batch.group_ids)
advantage = reward - baseline  # (B,)"""
            },
            answers=("all_fail_high", "reward_plateau"),
        ),
        Choice(
            "anchor_mix",
            "AM",
            "mixes the group mean with the batch mean, so that uniform groups carry some signal",
            ("A = R - (anchor_weight mean_g R + (1 - anchor_weight) mean_b R)",),
            f"{POISE} (SA)",
            (Parameter("anchor_weight", 0.7, (0.5, 0.7, 0.9), high=1.0),),
            off={"batch_anchor": {"anchor_weight": 1.0}},
            code={
                "baseline": """\
anchor = hp.anchor_weight * group_mean(reward, batch.group_ids) + (1.0 - hp.anchor_weight) * reward.mean()
advantage = reward - anchor  # (B,)"""
            },
            answers=("all_fail_high", "reward_plateau"),
        ),
        Choice(
            "beta_valid",
            "VM",
            "estimates the pass rate on format-valid completions only and smooths it with a Beta prior",
            ("mu = (sum_V c + prior_success) / (|V| + prior_success + prior_failure)", "A = R - mu"),
            f"{POISE} (VM-AV)",
            (
                Parameter("prior_success", 1.0, (0.5, 1.0, 2.0), high=100.0),
                Parameter("prior_failure", 1.0, (0.5, 1.0, 2.0), high=100.0),
            ),
            off={"beta_smoothing": {"prior_success": 0.0, "prior_failure": 0.0}},
            code={
                "baseline": """\
successes = group_sum(batch.correctness, batch.group_ids, where=batch.format_valid)
trials = group_count(batch.group_ids, where=batch.format_valid) + hp.prior_success + hp.prior_failure
smoothed_rate = (successes + hp.prior_success) / trials.clamp(min=1e-6)  # (B,), 0 where nothing is valid
advantage = reward - smoothed_rate  # (B,)"""
            },
            answers=("format_invalid", "all_fail_high"),
        ),
        Choice(
            "running_mean",
            "RM",
            "compares with the running mean correctness of earlier steps",
            ("A = R - running mean of c over earlier steps",),
            "Williams 1992 (reinforcement comparison)",
            switches={"running_baseline": True},
            off={"running_baseline": {"running_baseline": False}},
            code={
                "baseline": """\
baseline = dynamics.reward_mean if hp.running_baseline else group_mean(reward, batch.group_ids)
advantage = reward - baseline  # (B,)"""
            },
            answers=("all_fail_high",),
        ),
        Choice(
            "group_median",
            "MD",
            "compares with the group median, so that only the minority outcome of a group trains",
            ("A = R - median_g R",),
            "robust location in place of GRPO's mean",
            switches={"median_baseline": True},
            off={"median_baseline": {"median_baseline": False}},
            code={
                "baseline": """\
median = group_quantile(reward, batch.group_ids, 0.5)
advantage = reward - (median if hp.median_baseline else group_mean(reward, batch.group_ids))  # (B,)"""
            },
            answers=("gradient_spikes",),
        ),
    ),
)

SCALE = Slot(
    "scale",
    "In which unit is the difference measured?",
    (
        Choice(
            "none",
            "NS",
            "leaves the advantage unscaled, so that no group counts more than its spread",
            (),
            "Dr. GRPO, arXiv 2503.20783",
            answers=("gradient_spikes", "kl_spike", "reward_collapse"),
            effects=(Effect("grad_norm_median", "decrease", "advantages are no longer divided by a number below 1"),),
        ),
        Choice(
            "group_std",
            "GS",
            "divides by the group's sample standard deviation",
            ("A <- A / (std_g R + std_eps)",),
            "GRPO, arXiv 2402.03300, eq. 4",
            (Parameter("std_eps", 1e-4, (1e-4, 0.1)),),
            {"scale_by_std": True},
            {"group_std_scale": {"scale_by_std": False}},
            code={
                "scale": """\
if hp.scale_by_std:
    advantage = advantage / (group_std(reward, batch.group_ids) + hp.std_eps)"""
            },
        ),
        Choice(
            "analytic_std",
            "AV",
            "divides by the population deviation with a floor, which bounds the advantage of near-uniform groups",
            ("A <- A / max(sqrt(mean_g R^2 - (mean_g R)^2), std_floor)",),
            f"{POISE} (AV)",
            (Parameter("std_floor", 0.1, (0.1, 0.4, 0.45), low=1e-6),),
            {"scale_by_std": True},
            {"analytic_std_scale": {"scale_by_std": False}},
            code={
                "scale": """\
if hp.scale_by_std:
    variance = group_mean(reward.square(), batch.group_ids) - group_mean(reward, batch.group_ids).square()
    advantage = advantage / variance.clamp(min=hp.std_floor**2).sqrt()"""
            },
            answers=("gradient_spikes", "kl_spike", "reward_collapse"),
            effects=(
                Effect("grad_norm_median", "decrease", "the floor bounds what a nearly uniform group contributes"),
            ),
        ),
        Choice(
            "beta_std",
            "BS",
            "divides by the standard deviation of the smoothed pass rate",
            ("A <- A / max(sqrt(mu (1 - mu)), std_floor)",),
            f"{POISE} (VM-AV)",
            (Parameter("std_floor", 0.1, (0.1, 0.4, 0.45), low=1e-6),),
            {"scale_by_std": True},
            {"smoothed_std_scale": {"scale_by_std": False}},
            code={
                "scale": """\
if hp.scale_by_std:
    variance = smoothed_rate * (1.0 - smoothed_rate)
    advantage = advantage / variance.clamp(min=hp.std_floor**2).sqrt()"""
            },
            answers=("gradient_spikes",),
        ),
        Choice(
            "batch_std",
            "BN",
            "divides by one number for the whole batch, so that groups keep their relative size",
            ("A <- A / (sqrt(mean_b A^2) + std_eps)",),
            f"{POISE} (BN); REINFORCE++, arXiv 2501.03262",
            (Parameter("std_eps", 1e-4, (1e-4, 0.1)),),
            {"scale_by_batch": True},
            {"batch_scale": {"scale_by_batch": False}},
            code={
                "scale": """\
if hp.scale_by_batch:
    advantage = advantage / (advantage.square().mean().sqrt() + hp.std_eps)"""
            },
            answers=("gradient_spikes", "kl_spike", "reward_collapse"),
        ),
        Choice(
            "fixed",
            "FX",
            "divides by a fixed number, so that the advantage does not depend on how the group turned out",
            ("A <- A / fixed_std",),
            f"{POISE} (SA)",
            (Parameter("fixed_std", 0.5, (0.3, 0.5), low=1e-6),),
            off={"fixed_scale": {"fixed_std": 1.0}},
            code={"scale": "advantage = advantage / hp.fixed_std"},
            answers=("gradient_spikes", "kl_spike", "reward_collapse"),
        ),
        Choice(
            "fallback_std",
            "FS",
            "divides by the outcome's deviation, and in groups of one outcome by the reward's, damped",
            (
                "sigma = std_g c if positive, else std_g R",
                "A <- A / (sigma + std_eps), times uniform_weight in groups of one outcome",
            ),
            f"{POISE} (MSA)",
            (Parameter("std_eps", 1e-4, (1e-4, 0.1)), Parameter("uniform_weight", 0.3, (0.1, 0.3, 0.5), high=1.0)),
            off={"uniform_groups": {"uniform_weight": 0.0}},
            code={
                "scale": """\
outcome_std = group_std(batch.correctness, batch.group_ids)
uniform = outcome_std <= hp.std_eps
deviation = torch.where(uniform, group_std(reward, batch.group_ids), outcome_std) + hp.std_eps
advantage = torch.where(uniform, hp.uniform_weight * advantage, advantage) / deviation"""
            },
            answers=("format_invalid", "all_fail_high"),
        ),
        Choice(
            "pass_rate",
            "MR",
            "divides by the group's mean reward, which weights rare successes most",
            ("A <- A / max(mean_g R, rate_floor)",),
            "MaxRL, arXiv 2602.02710",
            (Parameter("rate_floor", 0.1, (0.1, 0.2, 0.3), low=1e-6),),
            {"scale_by_rate": True},
            {"pass_rate_scale": {"scale_by_rate": False}},
            code={
                "scale": """\
if hp.scale_by_rate:
    advantage = advantage / group_mean(reward, batch.group_ids).clamp(min=hp.rate_floor)"""
            },
            answers=("all_fail_high", "reward_plateau"),
            effects=(Effect("all_fail_end", "decrease", "a rare success on a hard prompt weighs most"),),
        ),
    ),
)

BOUND = Slot(
    "bound",
    "How is a large or a negative advantage limited?",
    (
        Choice("none", "NA", "does not limit advantages"),
        Choice(
            "clip",
            "AC",
            "clips the advantage, so that one rare outcome cannot dominate an update",
            ("A <- clip(A, -advantage_clip, advantage_clip)",),
            f"{POISE} (BN, FA)",
            (Parameter("advantage_clip", 1.0, (0.5, 1.0, 1.5, 2.0), low=1e-3),),
            off={"advantage_clip": {"advantage_clip": 1e6}},
            code={"bound": "advantage = advantage.clamp(-hp.advantage_clip, hp.advantage_clip)"},
            answers=("gradient_spikes", "kl_spike", "reward_collapse"),
            effects=(Effect("grad_norm_median", "decrease", "large advantages are cut"),),
        ),
        Choice(
            "tanh",
            "TH",
            "squashes the advantage smoothly, keeping the order of outcomes",
            ("A <- advantage_bound tanh(A / advantage_bound)",),
            "smooth form of POISE's advantage clip",
            (Parameter("advantage_bound", 1.0, (0.5, 1.0, 2.0), low=1e-3),),
            off={"advantage_squash": {"advantage_bound": 1e6}},
            code={"bound": "advantage = hp.advantage_bound * torch.tanh(advantage / hp.advantage_bound)"},
            answers=("gradient_spikes", "kl_spike", "reward_collapse"),
            effects=(Effect("grad_norm_median", "decrease", "large advantages are squashed"),),
        ),
        Choice(
            "damp_negative",
            "DN",
            "weakens negative advantages, because pushing down off-policy failures is what destabilises",
            ("A <- negative_weight A where A < 0",),
            "after Asymmetric REINFORCE, arXiv 2506.20520, which lowers the baseline instead",
            (Parameter("negative_weight", 0.5, (0.25, 0.5, 0.75), high=1.0),),
            off={"negative_damping": {"negative_weight": 1.0}},
            code={"bound": "advantage = torch.where(advantage < 0, hp.negative_weight * advantage, advantage)"},
            answers=("kl_spike", "reward_collapse", "format_decay", "gradient_spikes"),
            effects=(Effect("kl_end", "decrease", "less probability is pushed away from sampled tokens"),),
        ),
        Choice(
            "damp_positive",
            "DP",
            "weakens positive advantages: suppressing failures keeps more of the policy's diversity",
            ("A <- positive_weight A where A > 0",),
            "W-REINFORCE, arXiv 2506.01347",
            (Parameter("positive_weight", 0.5, (0.25, 0.5, 0.75), high=1.0),),
            off={"positive_damping": {"positive_weight": 1.0}},
            code={"bound": "advantage = torch.where(advantage > 0, hp.positive_weight * advantage, advantage)"},
            answers=("entropy_collapse",),
            effects=(Effect("entropy_end", "increase", "successes are sharpened less"),),
        ),
    ),
)
