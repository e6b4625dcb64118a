"""The code that stands below the candidate in an exported file: the calls as POISE makes them, and one adapter per trainer.

These are texts, not modules: they run where this package is not installed, and all their names begin with "poise".
The extension points are those of verl 0.9.1 (``verl/trainer/ppo/core_algos.py``), prime-rl
(``docs/bring-your-own-algorithms.md``) and OpenRLHF (``openrlhf/models/loss.py``); TRL's adapter is in ``trl_adapter.py``.
"""

from __future__ import annotations

RUNTIME = '''
_POISE_HP = Hyperparameters(**POISE_OVERRIDES)


def _poise_zero_outside(mask, values):
    return torch.where(mask, values, torch.zeros_like(values))


def _poise_dynamics(max_completion_length, **values):
    fields = dict(step=0, progress=0.0, entropy=0.0, kl=0.0, reward_mean=0.0, completion_length=0.0, clip_fraction=0.0)
    fields.update(all_fail_fraction=0.0, grad_norm=0.0, max_completion_length=int(max_completion_length), controller={})
    return Dynamics(**{**fields, **values})


def _poise_rows(mask, logprobs, old_logprobs, advantages):
    """Rows of a trainer that hands nothing else to a loss; what is 0 here is not read, or the export was refused."""
    zeros = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    return LossInputs(
        logprobs=logprobs,
        entropies=zeros,
        old_logprobs=old_logprobs,
        ref_logprobs=zeros,
        advantages=advantages,
        mask=mask,
        carry={},
        correctness=zeros[:, 0],
        format_valid=mask[:, 0],
    )


@torch.no_grad()
def poise_advantages(batch, dynamics):
    """(B, T) advantages, 0 outside the mask; (B, T) mask of what trains; the carried signals. ``batch`` holds whole groups."""
    mask = batch.completion_mask
    found = compute_advantages(
        RolloutBatch(
            correctness=batch.correctness.clone(),
            format_valid=batch.format_valid.clone(),
            truncated=batch.truncated.clone(),
            group_ids=batch.group_ids.clone(),
            completion_mask=mask.clone(),
            old_logprobs=_poise_zero_outside(mask, batch.old_logprobs),
            ref_logprobs=_poise_zero_outside(mask, batch.ref_logprobs),
            entropies=_poise_zero_outside(mask, batch.entropies),
        ),
        _POISE_HP,
        dynamics,
    )
    trained = mask if found.train_mask is None else found.train_mask & mask
    values = _poise_zero_outside(trained, found.values)
    if not bool(torch.isfinite(values).all()):
        raise FloatingPointError("an advantage is not finite")
    return values, trained, dict(found.carry)


def poise_loss(inputs, completion_mask, dynamics, reduce, weights=None):
    """Scalar whose value and gradient are those of ``reduce(token_loss)``, and the candidate's metrics.

    The candidate works on leaves of its own, and the gradient at them is set to 0 outside ``inputs.mask``. ``inputs.logprobs`` and
    ``inputs.entropies`` may be part of a model's graph. ``weights`` (B, T) multiply token losses, for importance sampling.
    """
    mask = inputs.mask
    with torch.enable_grad():
        leaves = [
            _poise_zero_outside(completion_mask, one.detach().float()).requires_grad_()
            for one in (inputs.logprobs, inputs.entropies)
        ]
        outputs = compute_loss(
            LossInputs(
                logprobs=leaves[0],
                entropies=leaves[1],
                old_logprobs=_poise_zero_outside(completion_mask, inputs.old_logprobs.detach().float()),
                ref_logprobs=_poise_zero_outside(completion_mask, inputs.ref_logprobs.detach().float()),
                advantages=_poise_zero_outside(mask, inputs.advantages.float()),
                mask=mask.clone(),
                carry={
                    name: _poise_zero_outside(completion_mask, value) if value.dim() == 2 else value.clone()
                    for name, value in inputs.carry.items()
                },
                correctness=inputs.correctness.clone(),
                format_valid=inputs.format_valid.clone(),
            ),
            _POISE_HP,
            dynamics,
        )
        token_loss = outputs.token_loss if weights is None else outputs.token_loss * weights
        total = reduce(_poise_zero_outside(mask, token_loss), mask)
        grads = torch.autograd.grad(total, leaves, allow_unused=True) if total.requires_grad else (None, None)
        result = total.detach()
        for number, live in enumerate((inputs.logprobs, inputs.entropies)):
            inside = _poise_zero_outside(mask, live.float())
            grad = torch.zeros_like(inside) if grads[number] is None else _poise_zero_outside(mask, grads[number])
            if live.requires_grad:
                result = result + (grad * (inside - inside.detach())).sum()
    metrics = {name: masked_mean(value.detach(), mask) for name, value in outputs.metrics.items()}
    return result, metrics


def poise_reduction(token_count=None, sequence_count=None, max_length=None):
    """The reduction that LOSS_AGGREGATION names, with the counts of all rows whose losses are added up."""

    def reduce(token_loss, mask):
        return aggregate_loss(
            token_loss, mask, LOSS_AGGREGATION, token_count=token_count, sequence_count=sequence_count, max_length=max_length
        )

    return reduce


def _poise_self_check():
    """Refuse to be imported where what the trainer cannot give still matters."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(6, 4, 5, generator=generator)
    mask = torch.arange(5) < torch.tensor([[5], [3], [4], [1]])
    old = -noise[0].abs() - 0.1
    answers = []
    for one in (False, True):
        extra = noise[4:6].abs() + 0.5 if one else torch.zeros(2, 4, 5)
        keys = {key: 0.37 for key in POISE_CONTROLLER_KEYS} if one and "controller" in POISE_ABSENT else {}
        inputs = LossInputs(
            logprobs=(old + 0.3 * noise[1]).requires_grad_(),
            entropies=extra[0] if "entropies" in POISE_ABSENT else noise[3].abs(),
            old_logprobs=old,
            ref_logprobs=old - extra[1] if "ref_logprobs" in POISE_ABSENT else old + 0.1 * noise[3],
            advantages=noise[2],
            mask=mask,
            carry={},
            correctness=torch.tensor([1.0, 0.0, 1.0, 0.0]),
            format_valid=torch.ones(4, dtype=torch.bool),
        )
        loss, _ = poise_loss(inputs, mask, _poise_dynamics(5, controller=keys), poise_reduction(max_length=5))
        answers.append((loss.detach(), torch.autograd.grad(loss, inputs.logprobs)[0]))
    for first, second in zip(*answers):
        if not torch.allclose(first, second, rtol=1e-5, atol=1e-7):
            raise ImportError(f"the loss still depends on {', '.join(POISE_ABSENT)}, which this trainer does not give; "
                              "export again and leave out the mechanism that reads it (--without)")


if POISE_ABSENT:
    _poise_self_check()
'''

VERL = '''
_POISE_MODE = {"token-mean": "token-mean", "sequence-mean": "seq-mean-token-mean", "sequence-sum": "seq-mean-token-sum-norm"}[
    LOSS_AGGREGATION
]


def _poise_verl_limit(value, needed, setting, width):
    """The length limit. verl pads to the longest completion at hand, so that no width of a tensor tells it."""
    if needed and (value is None or int(value) < width):
        raise ValueError(f"the length limit is needed: set {setting}=${{data.max_response_length}}; it is {value}")
    return int(value) if needed else width


def poise_verl_advantages(token_level_rewards, response_mask, config=None, index=None, **kwargs):
    """Advantage estimator of verl: (B, T) rewards and mask, ``index`` names each row's prompt; gives (advantages, returns)."""
    if index is None:
        raise ValueError("the uid of every prompt is needed; verl passes it as index")
    numbers = {}
    groups = torch.tensor([numbers.setdefault(str(key), len(numbers)) for key in index], device=response_mask.device)
    everything = response_mask.bool()
    alive = torch.zeros(len(numbers), dtype=torch.bool, device=groups.device)
    alive[groups[everything.any(-1)]] = True
    rows = alive[groups]  # the others are verl's padding: groups of their own without a token
    correctness = token_level_rewards.float().sum(-1)[rows]  # the token that has the reward may be masked
    if bool(((correctness < 0) | (correctness > 1)).any()):
        raise ValueError("the reward of a completion must lie in [0, 1]; set algorithm.use_kl_in_reward=False")
    mask = everything[rows]
    zeros = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    width = int((everything.any(0) * torch.arange(1, mask.shape[-1] + 1, device=mask.device)).max())
    limit = None if config is None else config.get("max_response_length", None)
    limit = _poise_verl_limit(limit, True, "+algorithm.max_response_length", width)
    truncated = mask[:, limit - 1] if limit <= mask.shape[-1] else torch.zeros_like(mask[:, 0])
    batch = RolloutBatch(
        correctness=torch.where(truncated, torch.zeros_like(correctness), correctness),
        format_valid=~truncated,
        truncated=truncated,
        group_ids=groups[rows],
        completion_mask=mask,
        old_logprobs=zeros,
        ref_logprobs=zeros,
        entropies=zeros,
    )
    values, trained, _ = poise_advantages(batch, _poise_dynamics(limit))
    if not torch.equal(trained, mask):
        raise ValueError("the algorithm takes completions or tokens out of training, for which verl has no place here")
    result = torch.zeros(everything.shape, dtype=torch.float32, device=mask.device)
    result[rows] = values
    return result, result.clone()


def poise_verl_loss(
    old_log_prob, log_prob, advantages, response_mask, loss_agg_mode="token-mean", config=None, rollout_is_weights=None
):
    """Policy loss of verl: all (B, T); gives (loss, metrics). verl's agg_loss reduces it."""
    from verl.trainer.ppo.core_algos import agg_loss

    if loss_agg_mode != _POISE_MODE:
        raise ValueError(f"set actor_rollout_ref.actor.loss_agg_mode={_POISE_MODE}; it is {loss_agg_mode}")
    mask = response_mask.bool()
    rows = _poise_rows(mask, log_prob, old_log_prob, advantages)
    limit = None if config is None else config.loss_scale_factor
    setting = "actor_rollout_ref.actor.loss_scale_factor"
    limit = _poise_verl_limit(limit, POISE_LOSS_NEEDS_LIMIT, setting, mask.shape[-1])
    info = {**({} if config is None else config.global_batch_info), "loss_scale_factor": limit}

    def reduce(token_loss, _):
        return agg_loss(loss_mat=token_loss, loss_mask=response_mask, loss_agg_mode=loss_agg_mode, **info)

    loss, metrics = poise_loss(rows, mask, _poise_dynamics(limit), reduce, rollout_is_weights)
    return loss, {"actor/" + name: value.item() for name, value in metrics.items()}


def poise_register():
    """Give both to verl under the name that the header tells."""
    from verl.trainer.ppo.core_algos import register_adv_est, register_policy_loss

    register_adv_est(POISE_NAME)(poise_verl_advantages)
    register_policy_loss(POISE_NAME)(poise_verl_loss)


import importlib.util  # noqa: E402

if importlib.util.find_spec("verl") is not None:
    poise_register()
'''

PRIME_RL = '''
def poise_prime_rl_loss(inputs, **kwargs):
    """Loss of one sequence for prime-rl: a sum over its tokens, which prime-rl divides by the tokens of the batch."""
    from prime_rl.trainer.rl.loss import LossOutputs as PrimeOutputs

    mask = inputs.loss_mask.bool().unsqueeze(0)
    sequence = (inputs.trainer_logprobs, inputs.inference_logprobs, inputs.advantages)
    rows = _poise_rows(mask, *(one.unsqueeze(0) for one in sequence))
    loss, metrics = poise_loss(rows, mask, _poise_dynamics(mask.shape[-1]), lambda token_loss, _: token_loss.sum())
    return PrimeOutputs(loss=loss, metrics=metrics)


def poise_prime_rl_advantage(inputs, **kwargs):
    """Advantages for prime-rl: rewards and lengths are (examples, rollouts), and so are the advantages."""
    from prime_rl.orchestrator.advantage import AdvantageOutputs as PrimeAdvantages

    shape = inputs.rewards.shape
    correctness, lengths = inputs.rewards.reshape(-1).float(), inputs.completion_lengths.reshape(-1)
    if bool(((correctness < 0) | (correctness > 1)).any()):
        raise ValueError("the reward of a completion must lie in [0, 1]")
    mask = torch.arange(int(lengths.max()), device=lengths.device) < lengths.unsqueeze(-1)
    zeros = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    batch = RolloutBatch(
        correctness=correctness,
        format_valid=torch.ones_like(correctness, dtype=torch.bool),
        truncated=torch.zeros_like(correctness, dtype=torch.bool),
        group_ids=torch.arange(len(correctness), device=lengths.device) // shape[1],
        completion_mask=mask,
        old_logprobs=zeros,
        ref_logprobs=zeros,
        entropies=zeros,
    )
    values, trained, _ = poise_advantages(batch, _poise_dynamics(mask.shape[-1]))
    if not torch.equal(trained, mask):
        raise ValueError("the algorithm takes completions or tokens out of training, for which prime-rl has no place here")
    if not bool(torch.equal(torch.where(mask, values, values[:, :1]), values[:, :1].expand_as(values))):
        raise ValueError("the advantages differ from token to token; prime-rl takes one number per completion")
    return PrimeAdvantages(advantages=values[:, 0].reshape(shape))
'''

OPENRLHF = '''
def poise_patch_openrlhf():
    """Replace PolicyLoss.forward of OpenRLHF; what else the method returns stays its own."""
    import inspect

    from openrlhf.models.loss import PolicyLoss

    original = PolicyLoss.forward
    if getattr(original, "poise", False):
        return

    names = inspect.signature(original)

    def forward(self, log_probs, old_log_probs, advantages, action_mask=None, *args, **kwargs):
        if getattr(self, "is_correction_level", "off") != "off" or getattr(self, "enable_vllm_is_correction", False):
            raise ValueError("OpenRLHF's correction of the sampler would not act on this loss: leave algo.advantage."
                             "is_correction_level=off")
        given = names.bind(self, log_probs, old_log_probs, advantages, action_mask, *args, **kwargs).arguments
        mask = torch.ones_like(log_probs, dtype=torch.bool) if action_mask is None else action_mask.bool()
        rows = _poise_rows(mask, log_probs, old_log_probs, advantages)
        # OpenRLHF counts the tokens and completions of the whole update; DeepSpeed averages gradients over dp_size processes
        reduce = poise_reduction(given.get("batch_num_tokens"), given.get("global_batch_size"), mask.shape[-1])
        processes = given.get("dp_size", 1)
        loss, _ = poise_loss(rows, mask, _poise_dynamics(mask.shape[-1]), lambda *token_loss: processes * reduce(*token_loss))
        with torch.no_grad():
            found = original(self, log_probs, old_log_probs, advantages, action_mask, *args, **kwargs)
        return (loss, *found[1:]) if isinstance(found, tuple) else loss

    forward.poise = True
    PolicyLoss.forward = forward


import importlib.util  # noqa: E402

if importlib.util.find_spec("openrlhf") is not None:
    poise_patch_openrlhf()
'''
