"""The trainer against loops, invariances and hand computations; what candidates pay for; how their failures are named."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_samples import (
    TRAINING,
    assert_weights_close,
    candidate_with,
    largest_move,
    make_trainer,
    weights_of,
)

from poise_core.algorithms import algorithm_path
from poise_core.candidate.loading import Candidate, load_candidate, load_candidate_source
from poise_core.config import ResourceSpec
from poise_core.contract import Dynamics
from poise_core.failures import CandidateFailure, FailureKind
from poise_core.policies.model import load_model
from poise_core.policies.prompt import ModelSpec
from poise_core.training.batches import GlobalBatch
from poise_core.training.engine import Engine
from poise_core.training.trainer import KL_MONITOR_STRIDE, Trainer
from poise_core.trajectory import CANDIDATE, COLUMNS, CONTROLLER
from poise_core.verification.fingerprint import fingerprint, observe


def record_rollouts(trainer: Trainer) -> list[GlobalBatch]:
    """The batches that a trainer will sample, as it goes on."""
    batches: list[GlobalBatch] = []
    rollout = trainer._rollout

    def recording() -> GlobalBatch:
        batches.append(rollout())
        return batches[-1]

    trainer._rollout = recording  # type: ignore[method-assign]
    return batches


# ---- invariances


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["grpo", "dapo", "gspo", "dr_grpo", "sa"])
def test_the_size_of_micro_batches_does_not_matter(tiny_policy: Path, device: torch.device, algorithm: str) -> None:
    weights, losses = [], []
    for size in (1, 3, 128):
        trainer = make_trainer(tiny_policy, algorithm, device, resources=ResourceSpec(micro_batch_size=size))
        losses.append([row["loss"] for row in trainer.steps()])
        weights.append(weights_of(trainer))
        trainer.engine.close()
    assert largest_move(weights[0], tiny_policy) > 2e-3
    for other in (1, 2):
        # the same sums in another order: float32 round-off, grown by 12 updates of about 1e-3 each
        assert_weights_close(weights[other], weights[0], atol=2e-5)
        assert losses[other] == pytest.approx(losses[0], rel=1e-4, abs=1e-6)


def _trained(policy: Path, device: torch.device, **resources: Any) -> dict[str, Tensor]:
    trainer = make_trainer(policy, "dapo", device, resources=ResourceSpec(**resources))
    list(trainer.steps())
    weights = weights_of(trainer)
    trainer.engine.close()
    return weights


@pytest.mark.slow
def test_what_saves_memory_changes_no_weight(tiny_policy: Path, device: torch.device) -> None:
    """Budgets of tokens, of which one is below every sequence; activations computed anew; moments in main memory."""
    plain = _trained(tiny_policy, device)
    for resources in (
        {"micro_batch_tokens": 1},
        {"micro_batch_tokens": 45, "zero_stage": 2, "offload_optimizer": True},
    ):
        # float32 round-off of other orders of summing, as above
        assert_weights_close(_trained(tiny_policy, device, **resources), plain, atol=2e-5)
    recomputed = _trained(tiny_policy, device, gradient_checkpointing=True, offload_optimizer=True)
    assert all(torch.equal(recomputed[name], plain[name]) for name in plain)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_bfloat16_keeps_its_small_updates_in_float32(device: torch.device, stage: int) -> None:
    """Below 1 the numbers of bfloat16 are 1/256 apart, and an update is 1/1000: without float32 originals no weight would move."""
    model = torch.nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    torch.nn.init.ones_(model.weight)
    engine = Engine(model, TRAINING.model_copy(update={"weight_decay": 0.0}), ResourceSpec(zero_stage=stage))
    for _ in range(10):
        engine.backward(engine.model(torch.ones(1, 1, dtype=torch.bfloat16)).sum(), last=True)
        assert engine.step() == pytest.approx(1.0)  # the gradient of w * 1
    with engine.whole_model() as whole:
        moved = float(whole.weight.detach())
    engine.close()
    # Adam moves a weight whose gradient stays by the learning rate: 1 - 10 x 0.001 = 0.99, and 253/256 is its neighbour
    assert moved == 253 / 256


def test_parts_fit_the_budget_and_are_equally_many_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = torch.tensor([2, 9, 3, 3, 4, 30, 2, 2])
    mask = torch.arange(30) < lengths.unsqueeze(-1)
    column = torch.zeros(8)
    numbers = dict.fromkeys(("old_logprobs", "sampler_logprobs", "ref_logprobs", "entropies"), torch.zeros(8, 30))
    values = {
        "completion_ids": mask.long(),
        "completion_mask": mask,
        "prompt_ids": torch.zeros(8, 1, dtype=torch.int64),
    }
    named = {spec.name: {**numbers, **values}.get(spec.name, column) for spec in fields(GlobalBatch)}
    batch = GlobalBatch(**{**named, "prompt_mask": torch.zeros(8, 1, dtype=torch.bool)})
    shares = torch.arange(8).chunk(2)
    # process 0: lengths 2, 3, 3 fit 10 tokens as 3 x 3 = 9, and 9 alone; process 1: 2, 2, then 4, and 30 is above the budget
    assert [part.tolist() for part in batch.by_tokens(shares, 1, 10)] == [[6, 7], [4], [5]]
    assert [part.tolist() for part in batch.by_tokens(shares, 0, 10)] == [[0], [2, 3], [1]]  # as many, so one is halved
    assert [part.tolist() for part in batch.by_tokens(shares, 0, 1000)] == [[0, 2, 3, 1]]
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda parts, _: parts.fill_(3))  # the other process has three
    own = batch.select(shares[0])  # before the batches are joined
    assert [part.tolist() for part in own.own_by_tokens(10)] == [[0], [2, 3], [1]]


@pytest.mark.slow
def test_scoring_anew_keeps_to_the_budget_of_tokens(tiny_policy: Path, device: torch.device) -> None:
    resources = ResourceSpec(micro_batch_tokens=30)
    trainer = make_trainer(
        tiny_policy, candidate_with(), device, resources=resources, model=ModelSpec(dtype="bfloat16")
    )
    score, sizes = trainer._score, []

    def counted(model: Any, part: GlobalBatch, *, entropies: bool) -> Any:
        sizes.append(part.completion_mask.shape[0] * int(part._lengths().max()))
        return score(model, part, entropies=entropies)

    trainer._score = counted  # type: ignore[method-assign]
    batch = trainer._rollout()
    assert max(sizes) <= 30
    assert bool((batch.old_logprobs[batch.completion_mask] != 0).any())


def test_an_update_that_deepspeed_skips_is_a_divergence(tiny_policy: Path, device: torch.device) -> None:
    """It leaves an update out in silence where a gradient in bfloat16 is not finite."""
    trainer = make_trainer(
        tiny_policy, "grpo", device, model=ModelSpec(dtype="bfloat16"), resources=ResourceSpec(zero_stage=2)
    )
    backward = trainer.engine.backward
    trainer.engine.backward = lambda loss, *, last: backward(loss * 1e39, last=last)  # type: ignore[method-assign]
    with pytest.raises(CandidateFailure, match="skipped 1 update") as failure:
        list(trainer.steps())
    assert failure.value.kind == FailureKind.DIVERGED


# ---- one step of GRPO, spelled out


def naive_logprobs(model, prompt: Tensor, completion: Tensor) -> Tensor:
    """Log-probability of each token of one completion, without padding and without a cache."""
    logits = model(input_ids=torch.cat([prompt, completion]).unsqueeze(0)).logits[0].double()
    logprobs = []
    for t in range(len(completion)):
        row = logits[len(prompt) + t - 1]  # the position before the token predicts it
        logprobs.append(row[completion[t]] - torch.logsumexp(row, 0))
    return torch.stack(logprobs)


def naive_grpo_loss(model, rows, advantages, old, ref, clip: float, kl_coef: float) -> Tensor:
    """DeepSeekMath eq. 3, term by term: the mean over completions of the mean over their tokens."""
    total = torch.zeros((), dtype=torch.float64)
    for (prompt, completion), advantage, old_row, ref_row in zip(rows, advantages, old, ref, strict=True):
        current = naive_logprobs(model, prompt, completion)
        tokens = torch.zeros((), dtype=torch.float64)
        for t in range(len(completion)):
            ratio = torch.exp(current[t] - old_row[t])
            surrogate = torch.min(ratio * advantage, torch.clamp(ratio, 1 - clip, 1 + clip) * advantage)
            log_ratio = ref_row[t] - current[t]
            tokens = tokens + kl_coef * (torch.exp(log_ratio) - log_ratio - 1) - surrogate
        total = total + tokens / len(completion)
    return total / len(rows)


def naive_advantages(correctness: list[float], group_size: int) -> list[float]:
    result = []
    for first in range(0, len(correctness), group_size):
        group = correctness[first : first + group_size]
        mean = sum(group) / group_size
        std = math.sqrt(sum((value - mean) ** 2 for value in group) / (group_size - 1))
        result += [(value - mean) / (std + 1e-4) for value in group]
    return result


def naive_adamw(parameters, state, step: int, lr: float, weight_decay: float, max_norm: float) -> float:
    """Clip the gradient to ``max_norm``, then one AdamW update (Loshchilov and Hutter, algorithm 2). The norm."""
    norm = math.sqrt(sum(float((p.grad.double() ** 2).sum()) for p in parameters))
    for p in parameters:
        gradient = p.grad * min(1.0, max_norm / (norm + 1e-6))
        first, second = state.setdefault(p, (torch.zeros_like(p), torch.zeros_like(p)))
        first.mul_(0.9).add_(gradient, alpha=0.1)
        second.mul_(0.95).addcmul_(gradient, gradient, value=0.05)
        p.data.mul_(1 - lr * weight_decay)
        p.data.addcdiv_(first / (1 - 0.9**step), (second / (1 - 0.95**step)).sqrt() + 1e-8, value=-lr)
        p.grad = None
    return norm


@pytest.mark.slow
def test_one_step_is_grpo_written_out_in_loops(tiny_policy: Path, device: torch.device) -> None:
    training = TRAINING.model_copy(
        update={"steps": 1, "minibatches": 1, "inner_epochs": 4, "max_grad_norm": 0.5, "learning_rate": 3e-3}
    )
    candidate = candidate_of("grpo").with_overrides(kl_coef=0.3)
    trainer = make_trainer(
        tiny_policy, candidate, device, training=training, resources=ResourceSpec(micro_batch_size=5)
    )
    batches = record_rollouts(trainer)
    (row,) = trainer.steps()
    (batch,) = batches
    model = load_model(tiny_policy)
    rows = [
        (batch.prompt_ids[i][batch.prompt_mask[i]], batch.completion_ids[i][batch.completion_mask[i]])
        for i in range(training.batch_size)
    ]
    with torch.no_grad():
        old = [naive_logprobs(model, *pair) for pair in rows]
    advantages = naive_advantages(batch.correctness.tolist(), training.group_size)
    assert any(advantages)
    state: dict = {}
    losses, norms = [], []
    for update in range(1, training.inner_epochs + 1):
        loss = naive_grpo_loss(model, rows, advantages, old, old, clip=0.2, kl_coef=0.3)
        loss.backward()
        norms.append(naive_adamw(list(model.parameters()), state, update, 3e-3, 0.01, 0.5))
        losses.append(float(loss.detach()))
    expected = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    assert row["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    assert row["grad_norm"] == pytest.approx(sum(norms) / len(norms), rel=1e-4)
    assert max(norms) > 0.5  # the gradient was clipped
    assert row["clip_fraction"] > 0.01  # and so were ratios
    # Four updates of about 3e-3. Adam divides a gradient by its own size, so that float32 round-off of gradients near zero
    # moves a few weights by up to 5e-5 (the same against these loops in float64); nearly all agree far more closely.
    found = weights_of(trainer)
    assert_weights_close(found, expected, atol=1e-4)
    differences = torch.cat([(found[name] - value).abs().flatten() for name, value in expected.items()])
    assert float(differences.median()) < 5e-7
    assert largest_move(expected, tiny_policy) > 6e-3


# ---- denominators and masks


@pytest.mark.slow
@pytest.mark.parametrize("aggregation", ["token-mean", "sequence-mean", "sequence-sum"])
def test_loss_counts_the_tokens_that_train(
    tiny_policy: Path, device: torch.device, aggregation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Token losses are all 1 - 0 * logprob, so the loss of a minibatch is a ratio of counts."""
    # this candidate depends on the order of rows, which a training would find out
    monkeypatch.setattr("poise_core.training.behaviour.FIRST_STEPS", 0)
    monkeypatch.setattr("poise_core.training.behaviour.LATER_SHARE", 0.0)
    candidate = candidate_with(
        ('"token-mean"', f'"{aggregation}"'),
        (
            "Advantages(values=to_tokens(advantage, batch.completion_mask))",
            # every second row trains, and of it all tokens but the first; what is left out is not a number
            "Advantages(values=torch.where(keep(batch), 1.0, float('nan')), train_mask=keep(batch))",
        ),
        ("-inputs.advantages * inputs.logprobs", "inputs.advantages + 0.0 * inputs.logprobs"),
        extra="""
def keep(batch):
    rows = torch.arange(len(batch.group_ids)).unsqueeze(-1) % 2 == 0
    return batch.completion_mask & rows & (torch.arange(batch.completion_mask.shape[1]) > 0)
""",
    )
    training = TRAINING.model_copy(update={"steps": 1, "minibatches": 1, "inner_epochs": 1})
    for micro_batch_size in (2, 12):
        trainer = make_trainer(
            tiny_policy,
            candidate,
            device,
            training=training,
            resources=ResourceSpec(micro_batch_size=micro_batch_size),
        )
        batches = record_rollouts(trainer)
        (row,) = trainer.steps()
        trained = (batches[0].completion_mask.sum(-1) - 1).clamp(min=0)[::2].tolist()
        sequences = sum(count > 0 for count in trained)
        expected = {
            "token-mean": 1.0,
            "sequence-mean": 1.0,
            "sequence-sum": sum(trained) / (sequences * training.max_completion_length),
        }
        assert row["loss"] == pytest.approx(expected[aggregation], rel=1e-6)
        trainer.engine.close()


@pytest.mark.slow
def test_a_candidate_sees_its_own_rows(tiny_policy: Path, device: torch.device) -> None:
    """Carried signals, correctness and old log-probabilities stay with their row through shuffling and splitting."""
    candidate = candidate_with(
        (
            "Advantages(values=to_tokens(advantage, batch.completion_mask))",
            "Advantages(values=batch.old_logprobs, carry={'row': batch.correctness, 'tokens': batch.old_logprobs})",
        ),
        (
            "return LossOutputs(token_loss=-inputs.advantages * inputs.logprobs)",
            """wrong = (inputs.advantages != inputs.old_logprobs) | (inputs.carry['tokens'] != inputs.old_logprobs)
    wrong = wrong | (inputs.carry['row'] != inputs.correctness).unsqueeze(-1)
    far = (inputs.logprobs - inputs.old_logprobs).detach().abs() > 1e-5
    return LossOutputs(token_loss=0.0 * inputs.logprobs, metrics={'wrong': wrong.float(), 'far': far.float()})""",
        ),
    )
    training = TRAINING.model_copy(update={"weight_decay": 0.0})
    trainer = make_trainer(
        tiny_policy, candidate, device, training=training, resources=ResourceSpec(micro_batch_size=2)
    )
    for row in trainer.steps():
        assert row["candidate/wrong"] == 0.0
        assert row["candidate/far"] == 0.0  # the weights do not move, so the policy is the one that sampled
    assert largest_move(weights_of(trainer), tiny_policy) == 0.0


# ---- what a candidate pays for


class Counter:
    """Counts a model's forward passes and the sequences in them; several may lie in one row, each from position 0 on."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.calls = self.rows = 0
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module, args, kwargs) -> None:
        self.calls += 1
        self.rows += int((kwargs["position_ids"] == 0).sum())


def run_counted(policy: Path, candidate: Candidate, device: torch.device, monkeypatch) -> tuple[int, set[bool]]:
    """Rows scored with the reference in one step, and whether entropies of the current policy were asked for."""
    training = TRAINING.model_copy(update={"steps": 1, "prompts_per_step": 8})
    trainer = make_trainer(policy, candidate, device, training=training)
    counter = Counter(trainer.reference)
    entropies: set[bool] = set()
    import poise_core.training.trainer as module

    score = module.score_completions

    def watching(model, *args, **kwargs):
        if model is not trainer.reference:
            entropies.add(kwargs["entropies"])
        return score(model, *args, **kwargs)

    monkeypatch.setattr(module, "score_completions", watching)
    list(trainer.steps())
    trainer.engine.close()
    return counter.rows, entropies


def test_what_is_not_read_is_not_computed(tiny_policy: Path, device: torch.device, monkeypatch) -> None:
    size = 8 * TRAINING.group_size
    rows, entropies = run_counted(tiny_policy, candidate_with(), device, monkeypatch)
    assert rows == size / KL_MONITOR_STRIDE
    assert entropies == {False}


def test_what_is_read_is_computed(tiny_policy: Path, device: torch.device, monkeypatch) -> None:
    reader = candidate_with(
        (
            "-inputs.advantages * inputs.logprobs",
            "-inputs.advantages * inputs.logprobs - 0.01 * inputs.entropies + 0.1 * (inputs.logprobs - inputs.ref_logprobs)",
        )
    )
    rows, entropies = run_counted(tiny_policy, reader, device, monkeypatch)
    assert rows == 8 * TRAINING.group_size
    assert entropies == {True}


def test_what_is_read_past_the_source_is_not_a_number(tiny_policy: Path, device: torch.device) -> None:
    """A candidate that gets at a field without naming it finds nothing there, instead of stale numbers."""
    for field in ("ref_logprobs", "entropies"):
        source = candidate_with().source.replace("inputs.advantages *", f"getattr(inputs, {field!r}) *")
        sly = load_candidate_source(source, "sly", wall=False)
        with pytest.raises(CandidateFailure) as failure:
            list(make_trainer(tiny_policy, sly, device).steps())
        assert failure.value.kind == FailureKind.DIVERGED


@pytest.mark.slow
def test_entropies_carry_gradient(tiny_policy: Path, device: torch.device) -> None:
    bonus = candidate_with(("-inputs.advantages * inputs.logprobs", "-inputs.entropies"))
    training = TRAINING.model_copy(update={"steps": 15})
    rows = list(make_trainer(tiny_policy, bonus, device, training=training).steps())
    assert rows[-1]["entropy"] > rows[0]["entropy"] + 0.1


# ---- the trajectory


@pytest.mark.slow
@pytest.mark.parametrize("reads_reference", [True, False])
def test_kl_is_zero_at_first_and_then_as_computed_by_hand(
    tiny_policy: Path, device: torch.device, reads_reference: bool
) -> None:
    candidate = candidate_of("grpo") if reads_reference else candidate_with()
    training = TRAINING.model_copy(update={"steps": 4, "prompts_per_step": 6})
    trainer = make_trainer(tiny_policy, candidate, device, training=training)
    batches = record_rollouts(trainer)
    rows = list(trainer.steps())
    initial = load_model(tiny_policy)
    stride = 1 if reads_reference else KL_MONITOR_STRIDE
    for row, batch in zip(rows, batches, strict=True):
        total = tokens = 0.0
        for i in range(0, training.batch_size, stride):
            kept = batch.completion_mask[i]
            with torch.no_grad():
                ref = naive_logprobs(initial, batch.prompt_ids[i][batch.prompt_mask[i]], batch.completion_ids[i][kept])
            for r, o in zip(ref.tolist(), batch.old_logprobs[i][kept].tolist(), strict=True):
                total += math.exp(r - o) - (r - o) - 1
                tokens += 1
        assert row["kl"] == pytest.approx(total / tokens, rel=1e-3, abs=1e-7)
    assert rows[0]["kl"] < 1e-9
    assert rows[-1]["kl"] > 1e-4


@pytest.mark.slow
def test_metrics_of_the_rollout(tiny_policy: Path, device: torch.device) -> None:
    trainer = make_trainer(tiny_policy, "grpo", device)
    batches = record_rollouts(trainer)
    for row, batch in zip(trainer.steps(), batches, strict=False):
        groups = batch.correctness.view(-1, TRAINING.group_size)
        assert row["reward_mean"] == pytest.approx(sum(batch.correctness.tolist()) / TRAINING.batch_size)
        assert row["tokens"] == batch.completion_mask.sum()
        assert row["completion_length"] == pytest.approx(row["tokens"] / TRAINING.batch_size)
        assert row["all_fail_fraction"] == pytest.approx(sum(max(g) == 0 for g in groups.tolist()) / len(groups))
        assert row["all_pass_fraction"] == pytest.approx(sum(min(g) == 1 for g in groups.tolist()) / len(groups))


@pytest.mark.slow
def test_controller_state_is_carried(tiny_policy: Path, device: torch.device) -> None:
    """The state of step n reaches advantages and loss of step n + 1, and starts empty."""
    controlled = candidate_with(
        (
            "-inputs.advantages * inputs.logprobs)",
            "-inputs.advantages * inputs.logprobs, metrics={'seen': torch.full_like(inputs.old_logprobs, "
            "dynamics.controller.get('count', -1.0))})",
        ),
        extra="""
def update_controller(state, dynamics, hp):
    return {"count": state.get("count", 0.0) + 1.0, "step": float(dynamics.step), "reward": dynamics.reward_mean}
""",
    )
    trainer = make_trainer(tiny_policy, controlled, device)
    rows = list(trainer.steps())
    assert [row["controller/count"] for row in rows] == [1.0, 2.0, 3.0]
    assert [row["controller/step"] for row in rows] == [0.0, 1.0, 2.0]
    assert [round(row["candidate/seen"], 5) for row in rows] == [-1.0, 1.0, 2.0]
    # the running mean starts with the first value and keeps nine tenths of the past
    own = (CANDIDATE, CONTROLLER)
    assert {key for key in rows[0] if not key.startswith(own)} == set(COLUMNS)
    first, second = rows[0]["reward_mean"], rows[1]["reward_mean"]
    assert rows[0]["controller/reward"] == pytest.approx(first)
    assert rows[1]["controller/reward"] == pytest.approx(0.9 * first + 0.1 * second)


@pytest.mark.slow
def test_warm_up_is_linear_in_updates(tiny_policy: Path, device: torch.device) -> None:
    training = TRAINING.model_copy(update={"warmup_steps": 2})  # 8 updates, of 4 a step
    rates = [row["learning_rate"] for row in make_trainer(tiny_policy, "grpo", device, training=training).steps()]
    assert rates == pytest.approx([1e-3 * 1 / 9, 1e-3 * 5 / 9, 1e-3])


# ---- failures

FAILURES = {
    "advantages raise": (
        [("advantage = hp.scale * (", "advantage = [][0] * (")],
        FailureKind.CRASHED,
        "compute_advantages raises IndexError",
    ),
    "loss raises": ([("-inputs.advantages", "inputs.nothing")], FailureKind.CRASHED, "compute_loss raises"),
    "loss exits": ([("return LossOutputs(", "raise SystemExit(0)\n    return LossOutputs(")], FailureKind.CRASHED, "SystemExit"),
    "advantages of another shape": (
        [("values=to_tokens(advantage, batch.completion_mask)", "values=advantage")],
        FailureKind.CRASHED,
        "Advantages.values",
    ),
    "loss of another shape": (
        [("-inputs.advantages * inputs.logprobs", "-(inputs.advantages * inputs.logprobs).sum(-1)")],
        FailureKind.CRASHED,
        "LossOutputs.token_loss",
    ),
    "no Advantages": (
        [("Advantages(values=to_tokens(advantage, batch.completion_mask))", "advantage")],
        FailureKind.CRASHED,
        "compute_advantages returns",
    ),
    "gradient is spoiled": (
        [("LossOutputs(token_loss=-inputs.advantages * inputs.logprobs)", "LossOutputs(token_loss=spoiled(inputs.logprobs))")],
        FailureKind.CRASHED,
        "the gradient of token_loss raises",
    ),
    "advantage is not a number": (
        [("hp.scale * (", "float('nan') * (")],
        FailureKind.DIVERGED,
        "an advantage is not finite at step 0",
    ),
    "loss is not a number": (
        [("-inputs.advantages * inputs.logprobs", "inputs.logprobs / 0.0")],
        FailureKind.DIVERGED,
        "the loss is not finite at step 0",
    ),
    "gradient is not a number": (
        [("-inputs.advantages * inputs.logprobs", "(inputs.logprobs - inputs.logprobs.detach()).sqrt()")],
        FailureKind.DIVERGED,
        "the gradient of the loss is not finite at step 0",
    ),
    "out of memory": (
        [("-inputs.advantages * inputs.logprobs", "torch.zeros(1 << 46) + inputs.logprobs")],
        FailureKind.OUT_OF_MEMORY,
        "out of memory at step 0",
    ),
}  # fmt: skip

SPOILED = """
def spoiled(logprobs):
    result = logprobs.exp()
    result.mul_(2.0)
    return result
"""


@pytest.mark.parametrize("name", FAILURES)
def test_failures_are_the_candidates(tiny_policy: Path, device: torch.device, name: str) -> None:
    changes, kind, message = FAILURES[name]
    with pytest.raises(CandidateFailure) as failure:
        list(make_trainer(tiny_policy, candidate_with(*changes, extra=SPOILED), device).steps())
    assert failure.value.kind == kind
    assert failure.value.stage == "train"
    assert message in failure.value.message


REAL = "batch.correctness.shape[0] == 12"  # 3 prompts x 4 completions

OTHERWISE = {
    "rows count in real batches": (
        [("    return Adv", f"    advantage = advantage + (torch.arange(12) if {REAL} else 0.0)\n    return Adv")],
        "compute_advantages changes advantages by",
    ),
    "labels count in real batches": (
        [("    return Adv", f"    advantage = advantage + (batch.group_ids if {REAL} else 0.0)\n    return Adv")],
        "compute_advantages changes advantages by",
    ),
    "a mask that counts columns": (
        [("batch.completion_mask))", "batch.completion_mask), train_mask=batch.completion_mask & "
          "(torch.arange(batch.completion_mask.shape[1]) < batch.completion_mask.shape[1] - 1))")],
        "compute_advantages changes the mask by",
    ),
    "columns count at the second step": (
        [("-inputs.advantages", "-inputs.advantages * (inputs.mask.shape[1] if dynamics.step == 1 else 1.0)")],
        "compute_loss changes",
    ),
    "the micro-batch counts": (
        [("-inputs.advantages", "-inputs.advantages * inputs.correctness.mean()")],
        "compute_loss changes",
    ),
    "small micro-batches count": (  # the gradient turns round in all that the trainer ever calls with
        [("-inputs.advantages", "-inputs.advantages * (-1.0 if inputs.mask.shape[0] < 14 else 1.0)")],
        "compute_loss changes",
    ),
    "calls are counted": (
        [("MECHANISMS = {}", "MECHANISMS = {}\nCALLS = []"),
         ("    advantage = hp.scale *", "    CALLS.append(1)\n    advantage = len(CALLS) *")],
        "behaves otherwise than in the gate",
    ),
    "the fingerprint is another one after a real batch": (
        [("MECHANISMS = {}", "MECHANISMS = {}\nSEEN = []"),
         ("    advantage = hp.scale *",
          f"    SEEN.extend([1] * ({REAL}))\n    advantage = (1.0 if {REAL} or not SEEN else -1.0) *")],
        "on the batches of its fingerprint it behaves otherwise than in the gate",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERWISE)
def test_what_behaves_otherwise_on_real_batches_is_a_typed_failure(
    tiny_policy: Path, device: torch.device, name: str
) -> None:
    """Each of these could pass a gate whose batches it knows; advantages are not all zero in the first two steps."""
    changes, message = OTHERWISE[name]
    admitted = fingerprint(observe(candidate_with()))
    trainer = make_trainer(tiny_policy, candidate_with(*changes), device, fingerprint=admitted)
    with pytest.raises(CandidateFailure) as failure:
        list(trainer.steps())
    assert failure.value.kind == FailureKind.INCONSISTENT
    assert failure.value.stage == "train"
    assert message in failure.value.message


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gspo", "vm_av"])
def test_looking_again_changes_nothing_and_lets_honest_files_pass(
    name: str, tiny_policy: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every step or at none: the trajectories are equal, and torch's global random state is not used."""
    import poise_core.training.behaviour as behaviour

    found = []
    for first, share in ((0, 0.0), (3, 1.0)):
        monkeypatch.setattr(behaviour, "FIRST_STEPS", first)
        monkeypatch.setattr(behaviour, "LATER_SHARE", share)
        admitted = fingerprint(observe(load_candidate(algorithm_path(name))))
        torch.manual_seed(5)
        trainer = make_trainer(tiny_policy, name, device, fingerprint=admitted)
        before = torch.get_rng_state()
        rows = [{key: value for key, value in row.items() if "seconds" not in key} for row in trainer.steps()]
        assert torch.equal(before, torch.get_rng_state())
        found.append(rows)
    assert found[0] == found[1]


@pytest.mark.slow
def test_a_controller_that_returns_no_numbers_fails(tiny_policy: Path, device: torch.device) -> None:
    for value in ("float('nan')", "'high'", "torch.zeros(2)"):
        source = f"\ndef update_controller(state, dynamics, hp):\n    return {{'temperature': {value}}}\n"
        with pytest.raises(CandidateFailure, match="update_controller") as failure:
            list(make_trainer(tiny_policy, candidate_with(extra=source), device).steps())
        assert failure.value.kind == FailureKind.CRASHED


def test_weights_that_explode_are_a_divergence(tiny_policy: Path, device: torch.device) -> None:
    """Finite losses at first; the next rollout's numbers are not."""
    training = TRAINING.model_copy(update={"learning_rate": 1e30, "steps": 5})
    with pytest.raises(CandidateFailure) as failure:
        list(make_trainer(tiny_policy, "grpo", device, training=training).steps())
    assert failure.value.kind == FailureKind.DIVERGED


@pytest.mark.slow
def test_what_lies_outside_the_mask_does_not_matter(tiny_policy: Path, device: torch.device) -> None:
    """Not even numbers that are none, in advantages, carried signals and token losses."""
    dirty = candidate_with(
        ("values=to_tokens(advantage, batch.completion_mask)",
         "values=torch.where(batch.completion_mask, advantage.unsqueeze(-1), float('nan'))"),
        ("token_loss=-inputs.advantages * inputs.logprobs",
         "token_loss=-inputs.advantages * inputs.logprobs * torch.where(inputs.mask, 1.0, float('nan'))"),
    )  # fmt: skip
    weights = []
    for candidate in (candidate_with(), dirty):
        trainer = make_trainer(tiny_policy, candidate, device)
        assert all(math.isfinite(row["loss"]) for row in trainer.steps())
        weights.append(weights_of(trainer))
    for name, value in weights[0].items():
        assert torch.equal(weights[1][name], value)


def candidate_of(name: str) -> Candidate:
    from poise_core.algorithms import algorithm_path
    from poise_core.candidate.loading import load_candidate

    return load_candidate(algorithm_path(name))


def test_dynamics_start_at_what_the_first_rollout_says(tiny_policy: Path, device: torch.device) -> None:
    seen: list[Dynamics] = []
    trainer = make_trainer(tiny_policy, "grpo", device)
    signal = trainer.algorithm.signal

    def watching(batch, dynamics):
        seen.append(dynamics)
        return signal(batch, dynamics)

    trainer.algorithm.signal = watching  # type: ignore[method-assign]
    rows = list(trainer.steps())
    assert [d.step for d in seen] == [0, 1, 2]
    assert [d.progress for d in seen] == pytest.approx([0, 1 / 3, 2 / 3])
    assert (seen[0].clip_fraction, seen[0].grad_norm) == (0.0, 0.0)  # nothing has been updated yet
    assert seen[1].grad_norm == pytest.approx(rows[0]["grad_norm"])
    assert seen[0].entropy == pytest.approx(rows[0]["entropy"])
    assert seen[1].entropy == pytest.approx(0.9 * rows[0]["entropy"] + 0.1 * rows[1]["entropy"])
