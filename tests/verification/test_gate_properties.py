"""Properties of the gate over random batches, random algorithms and random texts."""

from __future__ import annotations

import contextlib
import random
import string
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from gate_fixtures import BASE, in_a_fresh_process
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poise_core.algorithms import algorithm_path, list_algorithms
from poise_core.candidate.calls import ContractViolation
from poise_core.candidate.loading import Candidate, CandidateError, load_candidate, load_candidate_source
from poise_core.contract import Dynamics, RolloutBatch
from poise_core.mechanisms.composition import Composition
from poise_core.mechanisms.operators import random_composition
from poise_core.mechanisms.render import render
from poise_core.verification.checks import invariance
from poise_core.verification.drawn import Draw
from poise_core.verification.drawn import permuted as in_order
from poise_core.verification.fingerprint import distance, fingerprint, observe, same_behaviour
from poise_core.verification.gate import run_checks
from poise_core.verification.harness import Run, loss_and_gradient, loss_inputs, run_candidate
from poise_core.verification.language.check import check_language
from poise_core.verification.language.vocabulary import LanguageError
from poise_core.verification.probes import Probe

FEW = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@lru_cache
def algorithm(name: str) -> Candidate:
    return load_candidate(algorithm_path(name))


@st.composite
def probes(draw: st.DrawFn) -> Probe:
    """Any batch that training could meet: sizes, lengths, empty completions, uniform groups, drifts and dynamics."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    length = draw(st.integers(1, 7))
    seed = draw(st.integers(0, 2**20))
    drift = draw(st.sampled_from([0.0, 0.1, 1.0, 15.0]))
    rate = draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))
    generator = torch.Generator().manual_seed(seed)
    rows = sum(sizes)

    def noise(scale: float) -> torch.Tensor:
        return scale * torch.randn((rows, length), generator=generator)

    lengths = torch.randint(0, length + 1, (rows,), generator=generator)
    lengths[0] = length  # at least one token in the batch
    correctness = (torch.rand(rows, generator=generator) < rate).float() * (lengths > 0)
    if draw(st.booleans()):
        correctness = correctness * torch.rand(rows, generator=generator)
    valid = (correctness > 0) | ((torch.rand(rows, generator=generator) < 0.5) & (lengths > 0))
    old = noise(1.0) - 2.0
    batch = RolloutBatch(
        correctness=correctness,
        format_valid=valid,
        truncated=(lengths == length) & ~valid,
        group_ids=torch.repeat_interleave(torch.randperm(100, generator=generator)[: len(sizes)], torch.tensor(sizes)),
        completion_mask=torch.arange(length).expand(rows, length) < lengths.unsqueeze(-1),
        old_logprobs=old,
        ref_logprobs=old + noise(drift),
        entropies=noise(0.5).abs(),
    )
    dynamics = Dynamics(
        step=draw(st.integers(0, 100)),
        progress=draw(st.sampled_from([0.0, 0.5, 0.99])),
        entropy=draw(st.sampled_from([0.0, 0.8])),
        kl=draw(st.sampled_from([0.0, 0.5])),
        reward_mean=rate,
        completion_length=float(lengths.float().mean()),
        clip_fraction=0.1,
        all_fail_fraction=0.2,
        grad_norm=draw(st.sampled_from([0.0, 3.0])),
        max_completion_length=length,
    )
    return Probe("random", batch, old + noise(drift), noise(0.5).abs() + 0.01, dynamics)


def assert_close(first: torch.Tensor, second: torch.Tensor, mask: torch.Tensor) -> None:
    scale = float(first[mask].abs().max()) if bool(mask.any()) else 0.0
    torch.testing.assert_close(first[mask], second[mask], rtol=2e-4, atol=2e-4 * scale + 1e-9)


@pytest.mark.parametrize(
    "name",
    [
        "grpo",
        *(
            pytest.param(one, marks=pytest.mark.slow)
            for one in ("dapo", "vm_av", "gmpo", "gspo", "reinforce_plus_plus")
        ),
    ],
)
@FEW
@given(probe=probes(), seed=st.integers(0, 2**20))
def test_algorithms_keep_the_promises_that_the_gate_checks(name: str, probe: Probe, seed: int) -> None:
    """What the fixed probes of the checks `finite` to `micro-batches` show also holds on random batches."""
    candidate = algorithm(name)
    run = run_candidate(candidate, probe)
    assert bool(torch.isfinite(run.outputs.token_loss.detach()[run.mask]).all())
    assert bool(torch.isfinite(run.grad_logprobs).all())
    assert not bool(run.grad_logprobs[~run.mask].any())
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(run.mask.shape[0], generator=generator)
    permuted = run_candidate(candidate, in_order(probe, order))
    assert torch.equal(permuted.mask, run.mask[order])
    assert_close(run.grad_logprobs[order], permuted.grad_logprobs, permuted.mask)
    assert_split(candidate, probe, run, order, seed)


def assert_split(candidate: Candidate, probe: Probe, run: Run, order: torch.Tensor, seed: int) -> None:
    """Any random split of the rows gives the gradient and the loss of the whole."""
    cuts = sorted(random.Random(seed).sample(range(1, len(order)), min(3, len(order) - 1))) if len(order) > 1 else []
    total, gradient = torch.zeros(()), torch.zeros_like(run.grad_logprobs)
    for part in order.tensor_split(cuts):
        call = loss_and_gradient(
            candidate, loss_inputs(candidate, probe, run.advantages, part), probe.dynamics, run.mask
        )
        gradient[part] = call.grad_logprobs
        total += call.total
    assert_close(run.grad_logprobs, gradient, run.mask)
    torch.testing.assert_close(
        run.total, total, rtol=2e-4, atol=1e-5 * (1.0 + float(run.outputs.token_loss.detach().abs()[run.mask].sum()))
    )


@pytest.mark.slow
@FEW
@given(scale=st.floats(0.5, 2.0), other=st.sampled_from(list_algorithms()))
def test_distance_is_zero_only_to_itself_and_symmetric(scale: float, other: str) -> None:
    first, second = observe(algorithm("grpo")), observe(algorithm(other))
    assert distance(first, second) == pytest.approx(distance(second, first))
    assert (distance(first, second) == 0.0) == (other == "grpo")
    assert same_behaviour(fingerprint(first), fingerprint(second)) == (other == "grpo")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(text=st.text(max_size=300) | st.text(alphabet=string.printable, max_size=300))
def test_any_text_is_a_candidate_error(text: str) -> None:
    """Whatever text comes, the loader raises CandidateError and nothing else."""
    with pytest.raises(CandidateError):
        load_candidate_source(text, "fuzz")


TOKENS = [
    "(",
    ")",
    "[",
    "]",
    ":",
    ",",
    "=",
    "\n",
    "    ",
    "0",
    "1e400",
    "''",
    "None",
    "def",
    "class",
    "return",
    "-",
    "@",
    "*",
    "\\",
    "\0",
    "\ud800",
]


@pytest.mark.slow
@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_mutilated_candidate_loads_or_is_a_candidate_error(data: st.DataObject) -> None:
    """Cuts, repeats and replacements in a sound candidate; none may end in another exception, in the loader or the reader."""
    source = BASE
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(source)))
        end = min(len(source), start + data.draw(st.integers(0, 40)))
        middle = data.draw(st.sampled_from([*TOKENS, source[start:end] * 2]))
        source = source[:start] + middle + source[end:]
    try:
        loaded = load_candidate_source(source, "fuzz")
    except CandidateError:
        pass
    else:
        assert loaded.source == source
    with contextlib.suppress(LanguageError):
        check_language(source)


def test_loading_leaves_no_module_behind(tmp_path: Path) -> None:
    import sys

    before = set(sys.modules)
    load_candidate_source(BASE, "x")
    with pytest.raises(CandidateError):
        load_candidate_source("raise ValueError('no')", "y")
    assert {name for name in set(sys.modules) - before if "candidate" in name} == set()


def compositions(seed: int, count: int) -> list[str]:
    """Messages of the random compositions that the gate does not admit."""
    rng = random.Random(seed)
    messages = []
    for number in range(count):
        composition = random_composition(rng)
        report = run_checks(render(composition, f"composition {number}"), f"composition-{seed}-{number}")
        if not report.admitted:
            messages.append(f"{report.candidate_name}: {report.message}\n{composition.model_dump_json()}")
    return messages


@pytest.mark.slow
def test_random_compositions_are_admitted() -> None:
    assert in_a_fresh_process(compositions, 7, 6) == []


@pytest.mark.exhaustive
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seed", [11, 12, 13, 14])
def test_a_thousand_random_compositions_are_admitted(seed: int) -> None:
    """A check that rejects an honest algorithm is a bug of the check."""
    assert in_a_fresh_process(compositions, seed, 250) == []


# the KL to the reference is all that tells rewards of a group apart, and is divided by its deviation
ILL_CONDITIONED = {
    "choices": {
        "reward": "hierarchical", "baseline": "leave_one_out", "scale": "group_std", "bound": "damp_positive",
        "routing": "all", "length": "ratio_power", "format": "none", "failure": "none", "ratio": "none", "clip": "none",
        "kl": "k1_reward", "entropy": "none", "aggregation": "sequence-mean",
    },
    "parameters": {"wrong_reward": 0.08, "std_eps": 1e-4, "positive_weight": 0.32, "length_power": 0.34, "kl_coef": 1.9e-3},
}  # fmt: skip


def test_the_last_digit_is_no_dependence_on_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    candidate = load_candidate_source(render(Composition.model_validate(ILL_CONDITIONED), "ill-conditioned"), "kl")
    for seed in range(40):
        assert not invariance.check_order(candidate, Draw(seed))
        invariance.check_padding(candidate, Draw(seed))
    monkeypatch.setattr(invariance, "AGAIN", 0)
    told = []
    for seed in range(40):
        try:
            invariance.check_order(candidate, Draw(seed))
        except ContractViolation as violation:
            told.append(str(violation))
    assert told, "or the composition shows nothing any more"
    assert all("permuting the completions changes" in message for message in told)


def test_garbage_does_not_reach_a_probe() -> None:
    """The harness hands out copies: a candidate that writes into its inputs cannot spoil the probe of the next check."""
    probe = replace(compositions_probe(), name="copied")
    source = BASE.replace("    advantage = batch", "    batch.correctness.zero_()\n    advantage = batch")
    before = probe.batch.correctness.clone()
    run_candidate(load_candidate_source(source, "writes"), probe)
    assert torch.equal(probe.batch.correctness, before)


def compositions_probe() -> Probe:
    """An ordinary probe."""
    from poise_core.verification.probes import ordinary

    return ordinary()
