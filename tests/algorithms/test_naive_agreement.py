"""Every shipped algorithm equals its loop-per-token double: advantages, what trains, loss and gradients."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from algorithm_batches import DYNAMICS, LIMIT, current_policy, random_batch, run_update
from naive_algorithms import LOSSES, aggregate, assign_advantages, unpack
from torch import Tensor

from poise_core.algorithms import algorithm_path, list_algorithms
from poise_core.candidate.loading import load_candidate


def assert_equal(found: Tensor, expected: list[float]) -> None:
    """float32 against float64, after sums of at most nine columns and eight members."""
    torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), rtol=2e-5, atol=2e-6)


def test_every_algorithm_has_a_double() -> None:
    assert sorted(LOSSES) == list_algorithms()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", list_algorithms())
def test_agrees_with_the_loops(name: str, seed: int) -> None:
    candidate = load_candidate(algorithm_path(name))
    dynamics = dataclasses.replace(DYNAMICS, controller={"entropy_scale": 1.7, "initial_entropy": 0.9})
    batch = random_batch(seed)
    update = run_update(candidate, batch, current_policy(batch), dynamics)

    members = unpack(batch, *current_policy(batch))
    assign_advantages(name, members, candidate.hyperparameters)
    for row, c in enumerate(members):
        assert_equal(update.advantages.values[row, c.positions], c.advantage)
        assert update.mask[row].nonzero().flatten().tolist() == (c.positions if c.trains else [])

    losses = [LOSSES[name](c, candidate.hyperparameters, dynamics) if c.trains else [] for c in members]
    for row, (c, expected) in enumerate(zip(members, losses, strict=True)):
        found = update.outputs.token_loss[row, c.positions[: len(expected)]]
        assert_equal(found, [float(x.detach()) for x in expected])

    loss = aggregate(name, [row for row in losses if row], LIMIT)
    assert_equal(update.loss.unsqueeze(0), [float(loss.detach())])
    loss.backward()
    for row, c in enumerate(members):
        for grads, leaves in ((update.logprobs_grad, c.now), (update.entropies_grad, c.entropy)):
            expected_grads = [0.0 if leaf.grad is None else float(leaf.grad) for leaf in leaves]
            assert_equal(grads[row, c.positions], expected_grads)
    assert update.logprobs_grad.abs().max() > 1e-4  # the comparison compared something
