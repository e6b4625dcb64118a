"""The code that stands below the candidate in an exported file: the calls as POISE makes them, and one adapter per trainer.

These are texts, not modules: they run where this package is not installed, and all their names begin with "poise".
 The extension points are those of TRL 1.16 (``trl/trainer/grpo_trainer.py``), verl 0.9.1 (``verl/trainer/ppo/core_algos.py``),
prime-rl (``docs/bring-your-own-algorithms.md``) and OpenRLHF (``openrlhf/models/loss.py``).
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

TRL = '''
class PoiseTrainerMixin:
    """What PoiseGRPOTrainer adds to trl.GRPOTrainer; arguments are the same.

    Rewards: the weighted sum of the reward functions is ``correctness`` and must lie in [0, 1]. A reward function named
    ``format_valid`` does not count in it; its value, 0 or 1, says whether an answer parses.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._poise_state = {"running": {}, "controller": {}, "grad_norm": 0.0}
        self._poise_clips, self._poise_now, self._poise_rewards = [], None, None
        settings, names = self.args, list(self.reward_func_names)
        refused = {
            "beta must not be 0: reference log-probabilities are computed only then (its value is not used)": POISE_NEEDS_REFERENCE
            and self.beta == 0.0,
            "a reward function named format_valid is needed (1.0 where the answer parses)": POISE_NEEDS_FORMAT
            and "format_valid" not in names,
            "steps_per_generation must be a multiple of gradient_accumulation_steps": settings.steps_per_generation
            % settings.gradient_accumulation_steps
            != 0,
            "mask_truncated_completions must be False: the algorithm decides what trains": self.mask_truncated_completions,
            "top_entropy_quantile must be 1.0": self.top_entropy_quantile < 1.0,
            "off_policy_mask_threshold must be None": self.off_policy_mask_threshold is not None,
            "entropy_coef must be 0: the algorithm has its own": getattr(self, "_entropy_bonus_enabled", False),
            "the router's auxiliary loss cannot be added": getattr(self, "aux_loss_enabled", False),
            "logging_steps must be 1: the algorithm reads the gradient norm": POISE_NEEDS_GRAD_NORM
            and settings.logging_steps != 1,
        }
        wrong = [sentence for sentence, found in refused.items() if found]
        if wrong:
            raise ValueError("this algorithm cannot train so: " + "; ".join(wrong))

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        self._poise_rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        return self._poise_rewards

    def _poise_outcome(self):
        rewards, names = self._poise_rewards, list(self.reward_func_names)
        scored = [i for i, name in enumerate(names) if name != "format_valid"]
        if bool(torch.isnan(rewards).any()):
            raise ValueError("every reward function must score every completion; one returned None")
        correctness = (rewards[:, scored] * self.reward_weights.to(rewards.device)[scored]).sum(1).float()
        if bool(((correctness < 0) | (correctness > 1)).any()):
            raise ValueError("correctness, the weighted sum of the reward functions, must lie in [0, 1]; set reward_weights")
        valid = torch.ones_like(correctness, dtype=torch.bool)
        if "format_valid" in names:
            valid = rewards[:, names.index("format_valid")] > 0.5
        return correctness, valid

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        train = self.model.training
        if train:
            self._poise_end_step()
        mask = _poise_completion_mask(output)
        ids, attention = output["completion_ids"], output["completion_mask"]
        last = ids.gather(1, (attention.sum(1).long() - 1).clamp(min=0).unsqueeze(1)).squeeze(1)
        ends = torch.tensor([*self.eos_token_ids, self._tokenizer.pad_token_id], device=ids.device)
        truncated = ~torch.isin(last, ends)
        old, entropies = output.get("old_per_token_logps"), None
        if POISE_NEEDS_SCORING:
            with torch.no_grad():
                scored, entropies, _ = self._poise_score(self.model, output)
            old = scored if old is None else old
        zeros = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
        old, entropies = (zeros if one is None else one.float() for one in (old, entropies))
        reference = output.get("ref_per_token_logps")
        reference = zeros if reference is None else reference.float()
        rows, width = mask.shape
        correctness, valid = self._poise_outcome()
        valid = valid & ~self._poise_gather(truncated)
        if "format_valid" in self.reward_func_names:
            correctness = torch.where(valid, correctness, torch.zeros_like(correctness))
        size = self.num_generations if train else self.num_generations_eval
        batch = RolloutBatch(
            correctness=correctness,
            format_valid=valid,
            truncated=self._poise_gather(truncated),
            group_ids=torch.arange(len(correctness), device=mask.device) // size,
            completion_mask=self._poise_gather(mask),
            old_logprobs=self._poise_gather(old),
            ref_logprobs=self._poise_gather(reference),
            entropies=self._poise_gather(entropies),
        )
        now = self._poise_begin_step(batch, train)
        values, trained, carry = poise_advantages(batch, now)
        first = self.accelerator.process_index * rows
        own = slice(first, first + rows)
        output["advantages"] = values[own, :width]
        output["poise_mask"] = trained[own, :width]
        output["poise_correctness"], output["poise_format_valid"] = correctness[own], valid[own]
        for name, value in carry.items():
            output["poise_carry/" + name] = value[own] if value.dim() == 1 else value[own, :width]
        log = self._logs["advantages"]  # of the completions' table, in which TRL has put its own
        for _ in range(min(len(log), len(values))):
            log.pop()
        log.extend(masked_mean(values, trained, -1).tolist())
        return output

    def _poise_gather(self, values):
        if values.dim() == 2:
            values = self.accelerator.pad_across_processes(values.to(torch.uint8) if values.dtype == torch.bool else values, dim=1)
            gathered = self.accelerator.gather(values)
            return gathered.bool() if gathered.dtype == torch.uint8 else gathered
        return self.accelerator.gather(values)

    def _poise_score(self, model, inputs, batch_size=None):
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        names = ("pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles",
                 "image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids")
        extra = {name: inputs[name] for name in names if inputs.get(name) is not None}
        width = inputs["completion_ids"].size(1)
        return self._get_per_token_logps_and_entropies(model, ids, attention, width, compute_entropy=True, **extra)

    # the state that an algorithm may react to

    def _poise_follow(self, **values):
        running = self._poise_state["running"]
        for name, value in values.items():
            running[name] = 0.9 * running[name] + 0.1 * value if name in running else value

    def _poise_dynamics_now(self):
        settings, state = self.args, self.state
        updates = max(1, settings.steps_per_generation // settings.gradient_accumulation_steps * self.num_iterations)
        return _poise_dynamics(
            self.max_completion_length,
            step=state.global_step // updates,
            progress=state.global_step / max(1, state.max_steps),
            controller=dict(self._poise_state["controller"]),
            **self._poise_state["running"],
        )

    def _poise_begin_step(self, batch, train):
        if not train:
            return self._poise_now or _poise_dynamics(self.max_completion_length)
        mask, groups = batch.completion_mask, batch.group_ids
        distance = (batch.ref_logprobs - batch.old_logprobs).clamp(-20, 20)
        best = torch.zeros(len(groups), device=groups.device).index_reduce(0, groups, batch.correctness, "amax")
        self._poise_follow(
            entropy=float(masked_mean(batch.entropies, mask)),
            kl=float(masked_mean(distance.exp() - distance - 1, mask)),
            reward_mean=float(batch.correctness.mean()),
            completion_length=float(mask.sum(-1).float().mean()),
            all_fail_fraction=float((best[groups] <= 0).float().mean()),
        )
        self._poise_now = self._poise_dynamics_now()
        return self._poise_now

    def _poise_end_step(self):
        if self._poise_now is None:
            return
        clips = torch.tensor([sum(self._poise_clips), len(self._poise_clips)], device=self.accelerator.device)
        clips = self.accelerator.reduce(clips, reduction="sum")
        self._poise_clips = []
        self._poise_follow(clip_fraction=float(clips[0] / clips[1].clamp(min=1)), grad_norm=self._poise_state["grad_norm"])
        if POISE_CONTROLLER:
            import dataclasses

            state = self._poise_state
            now = dataclasses.replace(self._poise_now, controller=dict(state["controller"]), **state["running"])
            found = update_controller(dict(state["controller"]), now, _POISE_HP)
            self._poise_state["controller"] = {str(name): float(value) for name, value in found.items()}

    def log(self, logs, *args, **kwargs):
        if "grad_norm" in logs:
            self._poise_state["grad_norm"] = float(logs["grad_norm"])
        logs.update({"poise/" + name: value for name, value in self._poise_state["controller"].items()})
        return super().log(logs, *args, **kwargs)

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            import json
            import os

            folder = os.path.join(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}")
            with open(os.path.join(folder, "poise_state.json"), "w") as stream:
                json.dump(self._poise_state, stream)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        import json
        import os

        path = os.path.join(resume_from_checkpoint, "poise_state.json")
        if os.path.exists(path):
            with open(path) as stream:
                self._poise_state = json.load(stream)

    # the update

    def _prepare_inputs(self, generation_batch):
        inputs = super()._prepare_inputs(generation_batch)
        if self.model.training:  # denominators are those of all micro-batches of this update, on all processes
            whole = self.args.gradient_accumulation_steps
            first = self._step % self.args.steps_per_generation // whole * whole
            window = self._buffered_inputs[first : first + self.current_gradient_accumulation_steps]
        else:
            window = [inputs]
        counts = torch.stack([
            torch.stack([one["poise_mask"].sum() for one in window]).sum(),
            torch.stack([one["poise_mask"].any(-1).sum() for one in window]).sum(),
        ])
        inputs["poise_counts"] = self.accelerator.reduce(counts, reduction="sum").float()
        return inputs

    def _compute_loss(self, model, inputs):
        logprobs, entropies, _ = self._poise_score(model, inputs)
        old = inputs.get("old_per_token_logps")
        reference = inputs.get("ref_per_token_logps")
        tokens, sequences = inputs["poise_counts"]
        rows = LossInputs(
            logprobs=logprobs,
            entropies=entropies,
            old_logprobs=logprobs.detach() if old is None else old,
            ref_logprobs=torch.zeros_like(logprobs) if reference is None else reference,
            advantages=inputs["advantages"],
            mask=inputs["poise_mask"],
            carry={name[len("poise_carry/"):]: value for name, value in inputs.items() if name.startswith("poise_carry/")},
            correctness=inputs["poise_correctness"],
            format_valid=inputs["poise_format_valid"],
        )
        loss, metrics = poise_loss(
            rows,
            _poise_completion_mask(inputs),
            self._poise_now or _poise_dynamics(self.max_completion_length),
            poise_reduction(tokens, sequences, self.max_completion_length),
            inputs.get("importance_sampling_ratio"),
        )
        mode = "train" if self.model.training else "eval"
        for name, value in {**metrics, "entropy": masked_mean(entropies.detach(), rows.mask)}.items():
            self._metrics[mode][name].append(self.accelerator.gather(value).mean().item())
        if mode == "train" and "clip_fraction" in metrics:
            self._poise_clips.append(float(metrics["clip_fraction"]))
        return loss * self.accelerator.num_processes  # gradients are averaged over processes


def _poise_completion_mask(inputs):
    mask = inputs["completion_mask"].bool()
    return mask & inputs["tool_mask"].bool() if "tool_mask" in inputs else mask


def __getattr__(name):
    if name == "PoiseGRPOTrainer":  # TRL is imported only when it is wanted
        from trl import GRPOTrainer

        found = globals()[name] = type(name, (PoiseTrainerMixin, GRPOTrainer), {"__module__": __name__})
        return found
    raise AttributeError(name)
'''

VERL = '''
_POISE_MODE = {"token-mean": "token-mean", "sequence-mean": "seq-mean-token-mean", "sequence-sum": "seq-mean-token-sum-norm"}[
    LOSS_AGGREGATION
]


def _poise_verl_limit(value, needed, setting, width):
    """The length limit. verl pads to the longest completion at hand, so that no width of a tensor tells it."""
    if needed and (value is None or int(value) < width):
        raise ValueError(f"the algorithm needs the length limit: set {setting}=${{data.max_response_length}}; it is {value}")
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
    limit = _poise_verl_limit(limit, POISE_ADVANTAGES_NEED_LIMIT, "+algorithm.max_response_length", width)
    truncated = mask[:, limit - 1] if limit <= mask.shape[-1] else torch.zeros_like(mask[:, 0])
    batch = RolloutBatch(
        correctness=correctness,
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
    from openrlhf.models.loss import PolicyLoss

    original = PolicyLoss.forward
    if getattr(original, "poise", False):
        return

    def forward(self, log_probs, old_log_probs, advantages, action_mask=None, *args, **kwargs):
        mask = torch.ones_like(log_probs, dtype=torch.bool) if action_mask is None else action_mask.bool()
        rows = _poise_rows(mask, log_probs, old_log_probs, advantages)
        loss, _ = poise_loss(rows, mask, _poise_dynamics(mask.shape[-1]), poise_reduction(max_length=mask.shape[-1]))
        with torch.no_grad():
            found = original(self, log_probs, old_log_probs, advantages, action_mask, *args, **kwargs)
        return (loss, *found[1:]) if isinstance(found, tuple) else loss

    forward.poise = True
    PolicyLoss.forward = forward


import importlib.util  # noqa: E402

if importlib.util.find_spec("openrlhf") is not None:
    poise_patch_openrlhf()
'''
