"""What the contract asks of every candidate file, checked on every shipped algorithm."""

from __future__ import annotations

import ast
import dataclasses
import math

import pytest
import torch
from algorithm_batches import (
    DYNAMICS,
    LIMIT,
    ROW_FIELDS,
    TOKEN_FIELDS,
    Update,
    current_policy,
    gradients,
    loss_inputs,
    random_batch,
    run_update,
    take_rows,
)
from torch import Tensor

from poise_core.algorithms import algorithm_path, list_algorithms
from poise_core.candidate.loading import Candidate, load_candidate
from poise_core.contract import RolloutBatch
from poise_core.reductions import aggregate_loss

ALLOWED_IMPORTS = {"math", "dataclasses", "torch", "poise_core.contract", "poise_core.reductions"}
WITHOUT_CLIP = {"reinforce_group_baseline", "rloo", "sapo"}
CONTROLLED = {"dace", "dcbe", "vm_av"}


@pytest.fixture(params=list_algorithms())
def candidate(request: pytest.FixtureRequest) -> Candidate:
    return load_candidate(algorithm_path(request.param))


def fill_outside(batch: RolloutBatch, value: float) -> RolloutBatch:
    """The batch with another value in every floating point position outside the mask."""
    fields = ("old_logprobs", "ref_logprobs", "entropies")
    filled = {name: torch.where(batch.completion_mask, getattr(batch, name), value) for name in fields}
    return dataclasses.replace(batch, **filled)


def assert_same_update(found: Update, expected: Update, rtol: float = 0.0, atol: float = 0.0) -> None:
    mask = expected.mask
    assert torch.equal(found.mask, mask)
    for a, b in (
        (found.advantages.values[mask], expected.advantages.values[mask]),
        (found.outputs.token_loss[mask], expected.outputs.token_loss[mask]),
        (found.loss, expected.loss),
        (found.logprobs_grad[mask], expected.logprobs_grad[mask]),
        (found.entropies_grad[mask], expected.entropies_grad[mask]),
    ):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def test_imports_only_what_the_contract_allows(candidate: Candidate) -> None:
    tree = ast.parse(candidate.source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert {alias.name for alias in node.names} <= ALLOWED_IMPORTS
        if isinstance(node, ast.ImportFrom):
            assert node.module in ALLOWED_IMPORTS


def test_states_idea_source_and_equations(candidate: Candidate) -> None:
    docstring = " ".join((ast.get_docstring(ast.parse(candidate.source)) or "").split())
    assert "Source: " in docstring
    assert "arXiv" in docstring or "Machine Learning" in docstring
    assert " A_i = " in docstring or " A_t = " in docstring
    assert " loss_" in docstring
    if candidate.reads_reference:
        assert "KL estimator k" in docstring or "k3_t = exp(ref - logp)" in docstring


def test_hyperparameters_are_frozen_and_switches_name_them(candidate: Candidate) -> None:
    fields = {field.name for field in dataclasses.fields(candidate.hyperparameters)}
    assert fields
    assert candidate.mechanisms
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(candidate.hyperparameters, next(iter(fields)), 0)
    for overrides in candidate.mechanisms.values():
        assert set(overrides) <= fields


def test_every_switch_changes_the_update(candidate: Candidate) -> None:
    batch = random_batch(0)
    base = run_update(candidate, batch, current_policy(batch))
    for mechanism, overrides in candidate.mechanisms.items():
        off = run_update(candidate.with_overrides(**overrides), batch, current_policy(batch))
        mask = base.mask & off.mask
        same = (
            torch.equal(off.mask, base.mask)
            and torch.allclose(off.advantages.values[mask], base.advantages.values[mask])
            and torch.allclose(off.outputs.token_loss[mask], base.outputs.token_loss[mask])
        )
        assert not same, f"switching {mechanism} off changes nothing"


@pytest.mark.slow
def test_deterministic_and_leaves_its_inputs_alone(candidate: Candidate) -> None:
    batch = random_batch(1)
    before = {name: getattr(batch, name).clone() for name in ROW_FIELDS + TOKEN_FIELDS}
    first, second = (
        run_update(candidate, batch, current_policy(batch)),
        run_update(candidate, batch, current_policy(batch)),
    )
    assert_same_update(second, first)
    for name, tensor in before.items():
        torch.testing.assert_close(getattr(batch, name), tensor, rtol=0, atol=0, equal_nan=True)
    inputs = loss_inputs(batch, first.advantages, *current_policy(batch))
    kept = {name: getattr(inputs, name).detach().clone() for name in ("logprobs", "entropies", "advantages", "mask")}
    candidate.compute_loss(inputs, DYNAMICS)
    for name, tensor in kept.items():
        torch.testing.assert_close(getattr(inputs, name).detach(), tensor, rtol=0, atol=0, equal_nan=True)


@pytest.mark.slow
@pytest.mark.parametrize("garbage", [7.0, -1e30, float("inf"), float("nan")])
def test_nothing_outside_the_mask_matters(candidate: Candidate, garbage: float) -> None:
    """A gradient of exactly zero outside, even for NaN: a NaN there would reach every weight of the policy."""
    clean, batch = fill_outside(random_batch(2), 0.0), fill_outside(random_batch(2), garbage)
    expected = run_update(candidate, clean, current_policy(clean))
    found = run_update(candidate, batch, current_policy(batch))
    assert_same_update(found, expected)

    # advantages and carry are the candidate's own, but the trainer may pad them with anything as well
    mask = found.mask
    values = torch.where(mask, found.advantages.values, garbage)
    carry = {
        name: torch.where(mask, signal, garbage)
        if signal.shape == mask.shape and signal.is_floating_point()
        else signal
        for name, signal in found.advantages.carry.items()
    }
    advantages = dataclasses.replace(found.advantages, values=values, carry=carry)
    inputs = loss_inputs(batch, advantages, *current_policy(batch))
    outputs = candidate.compute_loss(inputs, DYNAMICS)
    loss = aggregate_loss(outputs.token_loss, inputs.mask, candidate.loss_aggregation, max_length=LIMIT)
    logprobs_grad, entropies_grad = gradients(loss, inputs)
    for grad, reference in ((logprobs_grad, expected.logprobs_grad), (entropies_grad, expected.entropies_grad)):
        assert torch.equal(grad[mask], reference[mask])
        assert torch.equal(grad[~mask], torch.zeros_like(grad[~mask]))


def test_more_padding_changes_nothing(candidate: Candidate) -> None:
    batch = random_batch(3)

    def widen(values: Tensor, fill: float) -> Tensor:
        return torch.nn.functional.pad(values, (0, 5), value=fill)

    tokens = {name: widen(getattr(batch, name), 9.0) for name in TOKEN_FIELDS if name != "completion_mask"}
    wide = dataclasses.replace(batch, completion_mask=widen(batch.completion_mask, 0.0), **tokens)
    logprobs, entropies = current_policy(batch)
    narrow = run_update(candidate, batch, (logprobs, entropies))
    padded = run_update(candidate, wide, (widen(logprobs, 9.0), widen(entropies, 9.0)))
    width = narrow.mask.shape[1]
    torch.testing.assert_close(padded.advantages.values[:, :width][narrow.mask], narrow.advantages.values[narrow.mask])
    torch.testing.assert_close(padded.loss, narrow.loss)
    torch.testing.assert_close(padded.logprobs_grad[:, :width], narrow.logprobs_grad)


def test_order_of_completions_and_names_of_groups_do_not_matter(candidate: Candidate) -> None:
    batch = random_batch(4)
    order = torch.randperm(len(batch.correctness), generator=torch.Generator().manual_seed(9))
    shuffled = take_rows(dataclasses.replace(batch, group_ids=1000 - 3 * batch.group_ids), order)
    logprobs, entropies = current_policy(batch)
    base = run_update(candidate, batch, (logprobs, entropies))
    found = run_update(candidate, shuffled, (logprobs[order], entropies[order]))
    mask = base.mask[order]
    assert torch.equal(found.mask, mask)
    for a, b in (
        (found.advantages.values, base.advantages.values[order]),
        (found.outputs.token_loss, base.outputs.token_loss[order]),
        (found.logprobs_grad, base.logprobs_grad[order]),
        (found.entropies_grad, base.entropies_grad[order]),
    ):
        torch.testing.assert_close(a[mask], b[mask], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 5])
def test_micro_batches_add_up_to_the_whole(candidate: Candidate, size: int) -> None:
    """Rows are split without regard to groups, as the trainer does; denominators are the whole batch's."""
    batch = random_batch(5)
    whole = run_update(candidate, batch, current_policy(batch))
    logprobs, entropies = current_policy(batch)
    total, grads = torch.zeros(()), []
    for rows in torch.randperm(len(batch.correctness), generator=torch.Generator().manual_seed(1)).split(size):
        part = dataclasses.replace(
            whole.advantages,
            values=whole.advantages.values[rows],
            train_mask=whole.mask[rows],
            carry={name: signal[rows] for name, signal in whole.advantages.carry.items()},
        )
        inputs = loss_inputs(take_rows(batch, rows), part, logprobs[rows], entropies[rows])
        outputs = candidate.compute_loss(inputs, DYNAMICS)
        loss = aggregate_loss(
            outputs.token_loss,
            inputs.mask,
            candidate.loss_aggregation,
            token_count=whole.mask.sum(),
            sequence_count=whole.mask.any(-1).sum(),
            max_length=LIMIT,
        )
        total = total + loss.detach()
        grads.append((rows, *gradients(loss, inputs)))
    torch.testing.assert_close(total, whole.loss, rtol=1e-5, atol=1e-6)
    for rows, logprobs_grad, entropies_grad in grads:
        torch.testing.assert_close(logprobs_grad, whole.logprobs_grad[rows], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(entropies_grad, whole.entropies_grad[rows], rtol=1e-5, atol=1e-7)


def test_on_policy_every_algorithm_is_the_policy_gradient(candidate: Candidate) -> None:
    """Where the policy has not moved, every ratio device must vanish: d loss / d logp = -A / denominator."""
    off = {name: 0.0 for name in ("kl_coef", "entropy_coef") if hasattr(candidate.hyperparameters, name)}
    batch = random_batch(6)
    # rloo and reinforce_plus_plus use kl_coef in the advantages only: theirs stay in place
    keep = candidate.name in ("rloo", "reinforce_plus_plus")
    update = run_update(candidate if keep else candidate.with_overrides(**off), batch, current_policy(batch, 0.0))
    surrogate = (-update.advantages.values).requires_grad_()
    loss = aggregate_loss(surrogate, update.mask, candidate.loss_aggregation, max_length=LIMIT)
    (weight,) = torch.autograd.grad(loss, surrogate)  # (B, T) what the reduction gives each token
    expected = torch.where(update.mask, weight * surrogate.detach(), 0.0)
    torch.testing.assert_close(update.logprobs_grad, expected, rtol=1e-4, atol=1e-7)


def constant(batch: RolloutBatch, **rows: float) -> RolloutBatch:
    changed = {name: torch.full_like(getattr(batch, name), value) for name, value in rows.items()}
    return dataclasses.replace(batch, **changed)


def edge_batches() -> dict[str, RolloutBatch]:
    batch = random_batch(7)
    no_tokens = batch.completion_mask.clone()
    no_tokens[:3] = False
    return {
        "all pass": constant(batch, correctness=1, format_valid=True),
        "all fail": constant(batch, correctness=0),
        "all invalid": constant(batch, correctness=0, format_valid=False),
        "all truncated": constant(batch, truncated=True),
        "none truncated": constant(batch, truncated=False),
        "one group": constant(batch, group_ids=4),
        "groups of one": dataclasses.replace(batch, group_ids=torch.arange(len(batch.correctness))),
        "partial credit": dataclasses.replace(batch, correctness=torch.linspace(0, 1, len(batch.correctness))),
        "some without tokens": dataclasses.replace(batch, completion_mask=no_tokens),
        "one completion": take_rows(batch, torch.tensor([0])),
    }


@pytest.mark.parametrize("case", list(edge_batches()))
def test_finite_at_the_edges(candidate: Candidate, case: str) -> None:
    batch = edge_batches()[case]
    update = run_update(candidate, batch, current_policy(batch))
    assert torch.isfinite(update.advantages.values[update.mask]).all()
    assert torch.isfinite(update.outputs.token_loss[update.mask]).all()
    assert torch.isfinite(update.loss)
    assert torch.isfinite(update.logprobs_grad).all()
    assert torch.isfinite(update.entropies_grad).all()


def test_finite_when_the_policy_has_run_away(candidate: Candidate) -> None:
    batch = random_batch(8)
    for shift in (-200.0, 200.0):
        with torch.no_grad():
            advantages = candidate.compute_advantages(batch, DYNAMICS)
        inputs = loss_inputs(batch, advantages, batch.old_logprobs + shift, batch.entropies)
        outputs = candidate.compute_loss(inputs, DYNAMICS)
        loss = aggregate_loss(outputs.token_loss, inputs.mask, candidate.loss_aggregation, max_length=LIMIT)
        assert torch.isfinite(loss)
        assert all(torch.isfinite(grad).all() for grad in gradients(loss, inputs))


def test_metrics_are_detached_and_clip_fraction_is_reported(candidate: Candidate) -> None:
    batch = random_batch(9)
    metrics = run_update(candidate, batch, current_policy(batch)).outputs.metrics
    assert ("clip_fraction" in metrics) == (candidate.name not in WITHOUT_CLIP)
    for values in metrics.values():
        assert values.shape == batch.completion_mask.shape
        assert not values.requires_grad
    if "clip_fraction" in metrics:
        mask = batch.completion_mask
        on_policy = run_update(candidate, batch, current_policy(batch, 0.0)).outputs.metrics["clip_fraction"]
        assert on_policy[mask].sum() == 0
        assert 0 < metrics["clip_fraction"][mask].mean() < 1 or candidate.name == "gspo"
        assert set(metrics["clip_fraction"][mask].unique().tolist()) <= {0.0, 1.0}


def test_advantages_and_shapes_follow_the_contract(candidate: Candidate) -> None:
    batch = random_batch(10)
    update = run_update(candidate, batch, current_policy(batch))
    shape = batch.completion_mask.shape
    assert update.advantages.values.shape == shape
    assert update.advantages.values.dtype == torch.float32
    assert not update.advantages.values.requires_grad
    assert update.outputs.token_loss.shape == shape
    assert not (update.mask & ~batch.completion_mask).any()
    for signal in update.advantages.carry.values():
        assert signal.shape in (shape, shape[:1])


def closed_loop(candidate: Candidate, entropies: list[float]) -> list[dict[str, float]]:
    """The controller's states over a run whose running entropy takes these values."""
    states: list[dict[str, float]] = [{}]
    for step, entropy in enumerate(entropies):
        before = dict(states[-1])
        progress = step / len(entropies)
        dynamics = dataclasses.replace(DYNAMICS, step=step, progress=progress, entropy=entropy, controller=states[-1])
        states.append(candidate.update_controller(states[-1], dynamics))
        assert states[-2] == before  # a controller returns a new state
    return states


def test_controllers_are_where_they_are_documented(candidate: Candidate) -> None:
    assert (candidate.controller_function is not None) == (candidate.name in CONTROLLED)


@pytest.mark.parametrize("name", sorted(CONTROLLED))
def test_controller_raises_the_bonus_when_entropy_falls(name: str) -> None:
    candidate = load_candidate(algorithm_path(name))
    fallen = closed_loop(candidate, [0.8] + [0.05] * 50)
    risen = closed_loop(candidate, [0.8] + [2.4] * 50)
    assert fallen[-1]["entropy_scale"] > 1.0 > risen[-1]["entropy_scale"]
    for state in fallen + risen:
        assert all(isinstance(value, float) and math.isfinite(value) for value in state.values())
    limit = closed_loop(candidate, [0.8] + [0.0] * 2000)[-1]["entropy_scale"]
    assert limit <= 100.0
    assert closed_loop(candidate, [0.8] + [8.0] * 2000)[-1]["entropy_scale"] >= 0.0


@pytest.mark.parametrize("name", sorted(CONTROLLED))
def test_controller_waits_for_a_first_entropy(name: str) -> None:
    """Before the first step the running entropy is 0, which must not become the initial level."""
    states = closed_loop(load_candidate(algorithm_path(name)), [0.0, 0.8, 0.4])
    assert states[1]["initial_entropy"] == 0.0
    assert states[2]["initial_entropy"] == states[3]["initial_entropy"] == 0.8


@pytest.mark.parametrize("name", sorted(CONTROLLED))
def test_loss_follows_the_controller(name: str) -> None:
    candidate = load_candidate(algorithm_path(name))
    batch = random_batch(11)

    def entropy_gradient(state: dict[str, float]) -> Tensor:
        dynamics = dataclasses.replace(DYNAMICS, controller=state)
        return run_update(candidate, batch, current_policy(batch), dynamics).entropies_grad

    torch.testing.assert_close(entropy_gradient({"entropy_scale": 3.0}), 3.0 * entropy_gradient({}))
    assert entropy_gradient({}).abs().sum() > 0
