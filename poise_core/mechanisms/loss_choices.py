"""Choices that act in ``compute_loss`` and ``update_controller``: entropy, ratio, clip, KL and aggregation.

r_t is the ratio of the current policy to the one that sampled, H_t the token entropy, ref the frozen initial policy.
In the code, ``ADVANTAGES`` stands for the advantages and ``RATIO`` for what they multiply; the renderer puts in the
names that fit the ratio's level.
"""

from __future__ import annotations

from poise_core.mechanisms.model import Choice, Effect, Parameter, Slot

POISE = "POISE, arXiv 2603.23951"

ENTROPY_TERM = ("- hp.entropy_coef * inputs.entropies",)
CONTROLLED_TERM = ("- entropy_coef * inputs.entropies",)
CONTROLLED_COEF = 'entropy_coef = hp.entropy_coef * dynamics.controller.get("entropy_scale", 1.0)'
ENTROPY_STATE = {"initial_entropy": "initial", "entropy_scale": "min(max(scale, 0.0), 10.0)"}
INITIAL_ENTROPY = """\
initial = state.get("initial_entropy", 0.0) or dynamics.entropy
level = dynamics.entropy / initial if initial > 0.0 else 1.0"""
RISES = Effect("entropy_end", "increase", "the loss pays for entropy")

ENTROPY = Slot(
    "entropy",
    "What keeps the policy exploring?",
    (
        Choice("none", "NE", "has no entropy control"),
        Choice(
            "bonus",
            "EB",
            "pays a fixed entropy bonus",
            ("loss_t <- loss_t - entropy_coef H_t",),
            "A3C, arXiv 1602.01783",
            (Parameter("entropy_coef", 0.003, (0.001, 0.003, 0.01), high=1.0, span=(0.0003, 0.03)),),
            off={"entropy_bonus": {"entropy_coef": 0.0}},
            loss_terms=ENTROPY_TERM,
            answers=("entropy_collapse",),
            effects=(RISES,),
        ),
        Choice(
            "adaptive",
            "AE",
            "pays an entropy bonus whose size follows how far entropy has fallen below a share of its initial value",
            (
                "loss_t <- loss_t - entropy_coef scale H_t",
                "scale <- clip(scale + entropy_gain (entropy_target - H / H_initial), 0, 10)",
            ),
            f"{POISE} (VM-AV; controller is this project's)",
            (
                Parameter("entropy_coef", 0.003, (0.001, 0.003, 0.01), high=1.0, span=(0.0003, 0.03)),
                Parameter("entropy_target", 0.5, (0.3, 0.5, 0.8), high=2.0),
                Parameter("entropy_gain", 0.1, (0.05, 0.1, 0.3), high=10.0),
            ),
            off={"entropy_control": {"entropy_coef": 0.0}},
            code={"regularizers": CONTROLLED_COEF},
            loss_terms=CONTROLLED_TERM,
            controller=f"""\
{INITIAL_ENTROPY}
scale = state.get("entropy_scale", 1.0) + hp.entropy_gain * (hp.entropy_target - level)""",
            controller_state=ENTROPY_STATE,
            answers=("entropy_collapse", "entropy_explosion"),
            effects=(RISES,),
        ),
        Choice(
            "annealed",
            "AT",
            "steers entropy along a target that falls over the run: explore first, then commit",
            (
                "loss_t <- loss_t - entropy_coef scale H_t",
                "target = target_start + (target_end - target_start) progress",
                "scale <- clip(scale + entropy_gain (target - H / H_initial), 0, 10)",
            ),
            f"{POISE} (DACE; controller is this project's)",
            (
                Parameter("entropy_coef", 0.003, (0.001, 0.003, 0.01), high=1.0, span=(0.0003, 0.03)),
                Parameter("target_start", 1.0, (0.8, 1.0), high=2.0),
                Parameter("target_end", 0.3, (0.1, 0.3, 0.5), high=2.0),
                Parameter("entropy_gain", 0.1, (0.05, 0.1, 0.3), high=10.0),
            ),
            off={"annealed_entropy": {"entropy_coef": 0.0}},
            code={"regularizers": CONTROLLED_COEF},
            loss_terms=CONTROLLED_TERM,
            controller=f"""\
{INITIAL_ENTROPY}
target = hp.target_start + (hp.target_end - hp.target_start) * dynamics.progress
scale = state.get("entropy_scale", 1.0) + hp.entropy_gain * (target - level)""",
            controller_state=ENTROPY_STATE,
            answers=("entropy_collapse", "reward_plateau"),
            effects=(RISES,),
        ),
        Choice(
            "shaped_advantage",
            "EA",
            "adds a bounded share of each token's entropy to its advantage, so that decisive tokens count more",
            ("A_t <- A_t + min(entropy_weight H_t, |A_t| / entropy_bound)",),
            "Entropy-shaped advantage, arXiv 2506.14758",
            (
                Parameter("entropy_weight", 0.4, (0.1, 0.2, 0.4), high=10.0),
                Parameter("entropy_bound", 2.0, (2.0, 4.0), low=1.0, high=100.0),
            ),
            off={"entropy_shaping": {"entropy_weight": 0.0}},
            code={
                "tokens": """\
entropy = torch.where(batch.completion_mask, batch.entropies, 0.0)
values = values + torch.minimum(hp.entropy_weight * entropy, values.abs() / hp.entropy_bound)"""
            },
            answers=("entropy_collapse", "reward_plateau"),
            effects=(Effect("entropy_end", "increase", "uncertain tokens are credited, and punished less"),),
        ),
    ),
)

LOGPROBS = "logprobs = torch.where(inputs.mask, inputs.logprobs, torch.zeros_like(inputs.logprobs))"
SAFE_ADVANTAGES = """\
# every token feeds the row's ratio, so an advantage outside the mask must not reach it through the gradient
advantages = torch.where(inputs.mask, inputs.advantages, torch.zeros_like(inputs.advantages))"""

RATIO = Slot(
    "ratio",
    "On which level does the loss correct for the policy having moved since it sampled?",
    (
        Choice(
            "token",
            "TR",
            "corrects every token by its own ratio",
            ("r_t = exp(logp_t - old_t)",),
            "PPO, arXiv 1707.06347",
            code={"ratio": "ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)"},
        ),
        Choice(
            "sequence",
            "SQ",
            "corrects the completion as a whole by the geometric mean of its token ratios",
            ("r = exp(mean_t (logp_t - old_t)), the same at every token",),
            "GSPO, arXiv 2507.18071, eq. 7",
            switches={"sequence_level": True},
            off={"sequence_ratio": {"sequence_level": False}},
            code={
                "ratio": f"""\
change = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask)  # (B, T)
if hp.sequence_level:
    change = masked_mean(change, inputs.mask, dim=-1).unsqueeze(-1).expand_as(change)
ratio = change.exp()
{SAFE_ADVANTAGES}"""
            },
            answers=("kl_spike", "reward_collapse", "gradient_spikes", "clip_saturation"),
            effects=(Effect("kl_end", "decrease", "one token with a large ratio no longer dominates its completion"),),
        ),
        Choice(
            "geometric",
            "GP",
            "multiplies the clipped token ratios of a completion into their geometric mean",
            ("r = exp(mean_t of logp_t - old_t, clipped to +-clip_log where that lowers r A)",),
            "GMPO, arXiv 2507.20673",
            (Parameter("clip_log", 0.4, (0.2, 0.4), low=1e-6),),
            {"geometric_mean": True},
            {"geometric_mean": {"geometric_mean": False}, "ratio_clip": {"clip_log": 1e6}},
            code={
                "ratio": f"""\
{SAFE_ADVANTAGES}
sign = advantages.sign()
change = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask)  # (B, T)
clipped = change.clamp(-hp.clip_log, hp.clip_log)
pessimistic = sign * torch.minimum(sign * change, sign * clipped)
if hp.geometric_mean:
    pessimistic = masked_mean(pessimistic, inputs.mask, dim=-1).unsqueeze(-1).expand_as(change)
ratio = pessimistic.exp()"""
            },
            metrics={"clip_fraction": "(clipped != change).float()"},
            answers=("kl_spike", "reward_collapse", "gradient_spikes", "clip_saturation"),
            effects=(Effect("kl_end", "decrease", "outlying tokens are averaged in log space"),),
        ),
        Choice(
            "none",
            "PG",
            "is the plain policy gradient, without a ratio",
            ("r_t A_t is replaced by logp_t A_t",),
            "Williams 1992 (REINFORCE)",
            code={"ratio": f"{LOGPROBS}  # (B, T)"},
            answers=("clip_saturation",),
        ),
    ),
)

CLIPPED = """\
clipped = ratio.clamp(1.0 - {low}, 1.0 + {high})
surrogate = torch.minimum(ratio * ADVANTAGES, clipped * ADVANTAGES)"""
OUTSIDE = {"clip_fraction": "(clipped != ratio).float()"}
CLIP_GRID = (0.05, 0.1, 0.2, 0.3)

CLIP = Slot(
    "clip",
    "What limits how far one batch of samples can move the policy?",
    (
        Choice(
            "none",
            "NC",
            "does not clip the ratio",
            ("loss_t = -r_t A_t",),
            code={"surrogate": "surrogate = RATIO * ADVANTAGES"},
            answers=("clip_saturation",),
        ),
        Choice(
            "symmetric",
            "PC",
            "clips the ratio on both sides alike",
            ("loss_t = -min(r_t A, clip(r_t, 1 - clip_eps, 1 + clip_eps) A)",),
            "PPO, arXiv 1707.06347, eq. 7",
            (Parameter("clip_eps", 0.2, CLIP_GRID, low=1e-6, span=(0.03, 0.6)),),
            off={"ratio_clip": {"clip_eps": 1e6}},
            code={"surrogate": CLIPPED.format(low="hp.clip_eps", high="hp.clip_eps")},
            metrics=OUTSIDE,
            answers=("kl_spike", "reward_collapse", "gradient_spikes"),
        ),
        Choice(
            "higher",
            "CH",
            "clips later above than below, which leaves room for unlikely tokens to grow",
            ("loss_t = -min(r_t A, clip(r_t, 1 - clip_eps_low, 1 + clip_eps_high) A)",),
            "DAPO, arXiv 2503.14476, eq. 10",
            (
                Parameter("clip_eps_low", 0.2, CLIP_GRID, low=1e-6),
                Parameter("clip_eps_high", 0.28, (0.15, 0.28, 0.4), low=1e-6),
            ),
            off={"ratio_clip": {"clip_eps_low": 1e6, "clip_eps_high": 1e6}},
            code={"surrogate": CLIPPED.format(low="hp.clip_eps_low", high="hp.clip_eps_high")},
            metrics=OUTSIDE,
            answers=("entropy_collapse", "clip_saturation"),
            effects=(Effect("entropy_end", "increase", "unlikely tokens may grow further before the clip stops them"),),
        ),
        Choice(
            "dual",
            "DC",
            "also bounds the loss of negative advantages at large ratios",
            (
                "s_t = min(r_t A, clip(r_t, 1 - clip_eps, 1 + clip_eps) A)",
                "loss_t = -max(s_t, dual_clip A) where A < 0, else -s_t",
            ),
            "Dual-clip PPO, arXiv 1912.09729, eq. 5",
            (
                Parameter("clip_eps", 0.2, CLIP_GRID, low=1e-6, span=(0.03, 0.6)),
                Parameter("dual_clip", 3.0, (2.0, 3.0), low=1.0),
            ),
            off={"ratio_clip": {"clip_eps": 1e6}, "dual_clip": {"dual_clip": 1e9}},
            code={
                "surrogate": CLIPPED.format(low="hp.clip_eps", high="hp.clip_eps")
                + "\nfloor = torch.where(ADVANTAGES < 0, hp.dual_clip * ADVANTAGES, surrogate)"
                + "\nsurrogate = torch.maximum(surrogate, floor)"
            },
            metrics=OUTSIDE,
            answers=("gradient_spikes", "kl_spike", "reward_collapse"),
            effects=(Effect("kl_end", "decrease", "a failure that became likelier cannot cause an unbounded push"),),
        ),
        Choice(
            "detached_weight",
            "CW",
            "clips and detaches the ratio as a weight, so that every token keeps its gradient",
            ("loss_t = -stop_gradient(min(r_t, 1 + clip_eps_high)) A logp_t",),
            "CISPO, arXiv 2506.13585, eq. 4",
            (Parameter("clip_eps_high", 0.28, (0.1, 0.28, 1.0), low=1e-6),),
            off={"weight_clip": {"clip_eps_high": 1e9}},
            code={
                "surrogate": f"""\
weight = ratio.detach().clamp(max=1.0 + hp.clip_eps_high)
{LOGPROBS}
surrogate = weight * ADVANTAGES * logprobs"""
            },
            metrics={"clip_fraction": "(ratio > 1.0 + hp.clip_eps_high).float()"},
            answers=("clip_saturation", "entropy_collapse", "reward_plateau"),
        ),
        Choice(
            "soft_gate",
            "SG",
            "fades tokens out smoothly as their ratio leaves 1, faster where the advantage is negative",
            ("loss_t = -(4 / tau) sigmoid(tau (r_t - 1)) A, tau = tau_pos if A > 0 else tau_neg",),
            "SAPO, arXiv 2511.20347",
            (
                Parameter("tau_pos", 1.0, (0.5, 1.0, 2.0), low=0.01, high=100.0),
                Parameter("tau_neg", 1.05, (1.05, 2.0, 4.0), low=0.01, high=100.0),
            ),
            {"soft_gate": True},
            {"soft_gate": {"soft_gate": False}},
            code={
                "surrogate": """\
tau = torch.where(ADVANTAGES > 0, hp.tau_pos, hp.tau_neg)
gate = 4.0 / tau * torch.sigmoid(tau * (ratio - 1.0)) if hp.soft_gate else ratio
surrogate = gate * ADVANTAGES"""
            },
            answers=("clip_saturation", "kl_spike", "reward_collapse"),
        ),
    ),
)

REFERENCE = "reference = log_ratio(inputs.ref_logprobs, inputs.logprobs, inputs.mask)"
K3 = f"{REFERENCE}\nk3 = reference.exp() - reference - 1.0  # (B, T)"
KL_COEF = Parameter("kl_coef", 0.01, (0.003, 0.01, 0.03, 0.1), high=10.0, span=(0.001, 0.3))
NEAR = Effect("kl_end", "decrease", "distance from the initial policy costs loss")

KL = Slot(
    "kl",
    "What ties the policy to the initial one?",
    (
        Choice("none", "NK", "does not tie the policy to the initial one", answers=("reward_plateau",)),
        Choice(
            "k3",
            "K3",
            "ties the policy to the initial one by the low-variance k3 estimate",
            ("loss_t <- loss_t + kl_coef k3_t, k3_t = exp(ref_t - logp_t) - (ref_t - logp_t) - 1",),
            "GRPO, arXiv 2402.03300, eq. 4",
            (KL_COEF,),
            off={"reference_kl": {"kl_coef": 0.0}},
            code={"regularizers": K3},
            loss_terms=("+ hp.kl_coef * k3",),
            answers=("kl_spike", "reward_collapse", "format_decay"),
            effects=(NEAR,),
        ),
        Choice(
            "k2",
            "K2",
            "ties the policy to the initial one by k2, whose gradient is that of the KL divergence",
            ("loss_t <- loss_t + kl_coef k2_t, k2_t = (logp_t - ref_t)^2 / 2",),
            "Schulman 2020 (approximating KL divergence)",
            (KL_COEF,),
            off={"reference_kl": {"kl_coef": 0.0}},
            code={"regularizers": f"{REFERENCE}\nk2 = 0.5 * reference.square()  # (B, T)"},
            loss_terms=("+ hp.kl_coef * k2",),
            answers=("kl_spike", "reward_collapse", "format_decay"),
            effects=(NEAR,),
        ),
        Choice(
            "k1_reward",
            "K1",
            "charges the reward with the completion's log-ratio to the initial policy",
            ("R <- R - kl_coef sum_t (old_t - ref_t)",),
            "RLOO, arXiv 2402.14740",
            (KL_COEF,),
            off={"kl_in_reward": {"kl_coef": 0.0}},
            code={
                "reward_shaping": """\
drift = masked_sum(batch.old_logprobs - batch.ref_logprobs, batch.completion_mask, dim=-1)  # (B,)
reward = reward - hp.kl_coef * drift"""
            },
            answers=(
                "kl_spike",
                "reward_collapse",
            ),
            effects=(Effect("kl_end", "decrease", "completions far from the initial policy earn less"),),
        ),
        Choice(
            "k3_all_fail",
            "KF",
            "falls back to the initial policy only where a whole group failed",
            ("loss_t <- loss_t + kl_coef k3_t in all-fail groups",),
            f"{POISE} (RF, in words)",
            (KL_COEF,),
            off={"all_fail_kl": {"kl_coef": 0.0}},
            needs=("all_fail",),
            code={"regularizers": f'{K3}\nall_fail = to_tokens(inputs.carry["all_fail"], inputs.mask)'},
            carry={"all_fail": "all_fail.float()"},
            loss_terms=("+ hp.kl_coef * all_fail * k3",),
            answers=("all_fail_high", "format_decay"),
        ),
        Choice(
            "k3_adaptive",
            "KA",
            "adapts the weight of the KL term so that the distance to the initial policy stays near a target",
            (
                "loss_t <- loss_t + kl_coef kl_scale k3_t",
                "kl_scale <- clip(kl_scale exp(kl_gain clip(KL / kl_target - 1, -1, 1)), 0.01, 100)",
            ),
            "after the adaptive KL of arXiv 1909.08593",
            (
                KL_COEF,
                Parameter("kl_target", 0.1, (0.03, 0.1, 0.3), low=1e-6),
                Parameter("kl_gain", 0.1, (0.05, 0.1, 0.2), high=10.0),
            ),
            off={"adaptive_kl": {"kl_coef": 0.0}},
            code={"regularizers": f'{K3}\nkl_coef = hp.kl_coef * dynamics.controller.get("kl_scale", 1.0)'},
            loss_terms=("+ kl_coef * k3",),
            controller="""\
kl_error = min(max(dynamics.kl / hp.kl_target - 1.0, -1.0), 1.0)
kl_scale = state.get("kl_scale", 1.0) * math.exp(hp.kl_gain * kl_error)""",
            controller_state={"kl_scale": "min(max(kl_scale, 0.01), 100.0)"},
            answers=("kl_spike", "reward_collapse", "reward_plateau"),
            effects=(NEAR,),
        ),
    ),
)

AGGREGATION = Slot(
    "aggregation",
    "How do token losses become one number?",
    (
        Choice(
            "sequence-mean",
            "SM",
            "averages over a completion's tokens, then over completions",
            ("loss = mean over completions of mean_t loss_t",),
            "GRPO, arXiv 2402.03300, eq. 3",
        ),
        Choice(
            "token-mean",
            "TM",
            "averages over all tokens of the batch, so that long completions count by their length",
            ("loss = sum of loss_t / number of tokens",),
            "DAPO, arXiv 2503.14476, eq. 8",
            answers=("length_growth",),
        ),
        Choice(
            "sequence-sum",
            "SS",
            "sums over a completion's tokens with a constant divisor, which removes the length bias",
            ("loss = sum of loss_t / (completions x length limit)",),
            "Dr. GRPO, arXiv 2503.20783",
            answers=("length_growth",),
        ),
    ),
)
