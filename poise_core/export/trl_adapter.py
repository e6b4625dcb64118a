"""The adapter for TRL 1.16 (``trl/trainer/grpo_trainer.py``): a subclass of its trainer; a text, as those of ``adapters.py``."""

from __future__ import annotations

TRL = '''
class PoiseTrainerMixin:
    """What PoiseGRPOTrainer adds to trl.GRPOTrainer; arguments are the same.

    Rewards: the weighted sum of the reward functions is ``correctness`` and must lie in [0, 1]. A reward function named
    ``format_valid`` does not count in it; its value, 0 or 1, says whether an answer parses.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._poise_state = {"running": {}, "controller": {}, "grad_norm": 0.0}
        self._poise_clips, self._poise_now, self._poise_rewards = [0.0, 0], None, None  # clip fractions: their sum, how many
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
        clipped, count = self._poise_all_clips()
        self._poise_clips = [0.0, 0]
        self._poise_follow(clip_fraction=clipped / max(1.0, count), grad_norm=self._poise_state["grad_norm"])
        if POISE_CONTROLLER:
            import dataclasses

            state = self._poise_state
            now = dataclasses.replace(self._poise_now, controller=dict(state["controller"]), **state["running"])
            found = update_controller(dict(state["controller"]), now, _POISE_HP)
            self._poise_state["controller"] = {str(name): float(value) for name, value in found.items()}

    def _poise_all_clips(self):
        clips = torch.tensor(self._poise_clips, dtype=torch.float32, device=self.accelerator.device)
        return self.accelerator.reduce(clips, reduction="sum").tolist()

    def log(self, logs, *args, **kwargs):
        if "grad_norm" in logs:
            self._poise_state["grad_norm"] = float(logs["grad_norm"])
        logs.update({"poise/" + name: value for name, value in self._poise_state["controller"].items()})
        return super().log(logs, *args, **kwargs)

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        clips = self._poise_all_clips()
        if self.args.should_save:
            import dataclasses
            import json
            import os

            now = None if self._poise_now is None else dataclasses.asdict(self._poise_now)
            folder = os.path.join(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}")
            with open(os.path.join(folder, "poise_state.json"), "w") as stream:
                # the end of this generation is reckoned when the next one begins
                json.dump({**self._poise_state, "now": now, "clips": clips}, stream)

    def _load_optimizer_and_scheduler(self, checkpoint):  # also called where DeepSpeed loads the weights
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        import json
        import os

        path = os.path.join(checkpoint, "poise_state.json")
        if os.path.exists(path):
            with open(path) as stream:
                self._poise_state = json.load(stream)
            now, clips = self._poise_state.pop("now", None), self._poise_state.pop("clips", [0.0, 0])
            self._poise_now = None if now is None else Dynamics(**now)
            self._poise_clips = clips if self.accelerator.is_main_process else [0.0, 0]  # they are those of all processes

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
            clipped, count = self._poise_clips
            self._poise_clips = [clipped + float(metrics["clip_fraction"]), count + 1]
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
