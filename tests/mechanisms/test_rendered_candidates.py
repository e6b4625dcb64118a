"""Every composition renders to a file that keeps the contract: 200 random ones here, 1,000 in the slow test."""

from __future__ import annotations

import ast
import dataclasses
import random

import pytest
import torch
from mechanism_probes import DYNAMICS, LIMIT, Update, batch_of, current, edges, gradients, inputs_of, take, update_of

from poise_core.candidate.loading import Candidate, load_candidate_source
from poise_core.contract import Dynamics
from poise_core.mechanisms.catalogue import SLOTS
from poise_core.mechanisms.composition import GRPO, Composition, compose
from poise_core.mechanisms.conflicts import conflicts
from poise_core.mechanisms.operators import random_composition
from poise_core.mechanisms.render import composition_of, render
from poise_core.reductions import aggregate_loss

START = Dynamics(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, LIMIT)


def load(composition: Composition) -> Candidate:
    return load_candidate_source(render(composition, "PROBE", "A hypothesis."), "probe")


def every_choice() -> list[Composition]:
    """Each choice of each slot in an otherwise plain composition."""
    found = []
    for name, slot in SLOTS.items():
        for choice in slot.choices:
            changes = {name: choice.name}
            if choice.name == "beta_std":
                changes["baseline"] = "beta_valid"
            elif choice.name == "fallback_std":
                changes["reward"] = "format_bonus"
            elif (name == "baseline" and conflicts(GRPO.with_choices(changes))) or (
                name == "reward" and choice.name == "signed"
            ):
                changes["scale"] = "none"
            elif name == "ratio" and conflicts(GRPO.with_choices(changes)):
                changes["clip"] = "none"
            found.append(GRPO.with_choices(changes))
    return found


def check_contract(composition: Composition) -> None:
    """What the admission gate asks, in one pass that stays fast."""
    candidate, text = load(composition), composition.to_text()
    batch = batch_of(1)
    logprobs = current(batch)
    base = update_of(candidate, batch, logprobs)
    assert base.finite, text
    assert torch.equal(base.gradient[~base.mask], torch.zeros_like(base.gradient[~base.mask])), text
    assert base.gradient.abs().sum() > 0, text
    assert not (base.mask & ~batch.completion_mask).any(), text
    assert update_of(candidate, batch, logprobs).same_as(base, 0, 0), text
    check_switches(candidate, base, text)
    check_rows_only(candidate, base, text)
    check_order(candidate, base, text)
    for case, (edge, moved) in edges().items():
        assert update_of(candidate, edge, moved).finite, (case, text)
    assert update_of(candidate, batch, logprobs, START).finite, text
    state: dict[str, float] = {}
    for entropy in (0.0, 0.8, 0.1):
        state = candidate.update_controller(state, dataclasses.replace(DYNAMICS, entropy=entropy))
    assert update_of(candidate, batch, logprobs, dataclasses.replace(DYNAMICS, controller=state)).finite, text


def check_switches(candidate: Candidate, base: Update, text: str) -> None:
    """Each off-switch changes something, near the sampling policy or far from it, and stays finite."""
    batch = batch_of(1)
    far = batch.old_logprobs + 1.5
    base_far = update_of(candidate, batch, far)
    for mechanism, overrides in candidate.mechanisms.items():
        switched = candidate.with_overrides(**overrides)
        near_off, far_off = update_of(switched, batch, current(batch)), update_of(switched, batch, far)
        assert near_off.finite, (mechanism, text)
        assert not (near_off.same_as(base) and far_off.same_as(base_far)), f"{mechanism} off changes nothing: {text}"


def check_rows_only(candidate: Candidate, base: Update, text: str) -> None:
    """Micro-batches that split groups, with other garbage outside the mask, add up to the same gradient."""
    batch = batch_of(1)
    with torch.no_grad():
        whole = candidate.compute_advantages(batch, DYNAMICS)
    logprobs, mask = current(batch), base.mask
    for rows in (torch.arange(0, 11), torch.arange(11, 32)):
        garbage = torch.where(mask, whole.values, 1e30)[rows]
        part = dataclasses.replace(whole, values=garbage, carry={k: v[rows] for k, v in whole.carry.items()})
        part = dataclasses.replace(part, train_mask=mask[rows])
        inputs = inputs_of(take(batch, rows), part, logprobs[rows])
        outputs = candidate.compute_loss(inputs, DYNAMICS)
        loss = aggregate_loss(
            outputs.token_loss,
            inputs.mask,
            candidate.loss_aggregation,
            token_count=mask.sum(),
            sequence_count=mask.any(-1).sum(),
            max_length=LIMIT,
        )
        gradient, _ = gradients(loss, inputs)
        torch.testing.assert_close(gradient, base.gradient[rows], rtol=1e-5, atol=1e-7, msg=text)


def check_order(candidate: Candidate, base: Update, text: str) -> None:
    """Another order of the completions and other group numbers give the same, reordered."""
    batch = batch_of(1)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(3))
    shuffled = take(batch, order)
    shuffled = dataclasses.replace(shuffled, group_ids=1000 - 3 * shuffled.group_ids)
    found = update_of(candidate, shuffled, current(batch)[order])
    torch.testing.assert_close(found.gradient, base.gradient[order], rtol=1e-4, atol=1e-6, msg=text)


@pytest.mark.slow
@pytest.mark.parametrize("composition", every_choice(), ids=lambda c: c.to_text().replace(" ", ""))
def test_each_choice_alone_keeps_the_contract(composition: Composition) -> None:
    assert not conflicts(composition)
    check_contract(composition)


@pytest.mark.slow
def test_random_compositions_keep_the_contract() -> None:
    rng = random.Random(0)
    for _ in range(15):
        check_contract(random_composition(rng))


@pytest.mark.exhaustive
def test_a_thousand_random_compositions_keep_the_contract() -> None:
    rng = random.Random(1)
    for _ in range(1000):
        check_contract(random_composition(rng))


@pytest.mark.slow
def test_a_rendered_file_gives_its_composition_back() -> None:
    rng = random.Random(2)
    for _ in range(100):
        composition = random_composition(rng)
        source = render(composition, "A-B", "Because x > 1.\n\nAnd y.", "scale: a -> b", ["GRPO"])
        assert composition_of(source) == composition


@pytest.mark.parametrize(
    "numbers", [{"kl_coef": 0.01 * 2**0.5}, {"clip_eps": 1.25e6}, {"clip_eps": 1e6 / 3}, {"std_eps": 0.1 + 0.2}]
)
def test_a_number_is_read_back_to_its_last_digit(numbers: dict[str, float]) -> None:
    source = render(compose(numbers=numbers), "X")
    assert composition_of(source) == compose(numbers=numbers)
    ((name, value),) = numbers.items()
    assert getattr(load_candidate_source(source, "x").hyperparameters, name) == value


def test_short_numbers_stay_as_recorded_files_have_them() -> None:
    composition = compose(numbers={"kl_coef": 0.000141, "std_eps": 1e-5, "clip_eps": 2e6})
    assert "std_eps=1e-05" in composition.to_text()
    assert "kl_coef=0.000141" in composition.to_text()
    source = render(composition, "X")
    for field in ("kl_coef: float = 0.000141", "std_eps: float = 1e-05", "clip_eps: float = 2e6"):
        assert field in source
    assert '"ratio_clip": {"clip_eps": 1e6}' in source


def test_an_edited_file_is_no_longer_its_composition() -> None:
    source = render(GRPO, "GRPO")
    assert composition_of(source.replace("-surrogate + ", "-2.0 * surrogate + ")) is None
    assert composition_of(source.replace("kl_coef: float = 0.01", "kl_coef: float = 0.02")) is None
    assert composition_of("x = 1\n") is None
    assert composition_of("def broken(:\n") is None
    assert composition_of(source.replace("baseline=group_mean", "baseline=nonsense")) is None


def test_title_hypothesis_and_change_stand_in_the_docstring_and_cannot_break_out_of_it() -> None:
    source = render(GRPO, "X", 'Ends """ early \\N{SNOWMAN}', "a -> b", ["P", "Q"])
    docstring = ast.get_docstring(ast.parse(source)) or ""
    assert docstring.startswith("X: Ends ''' early /N{SNOWMAN}")
    assert "Child of P and Q: a -> b" in docstring
    assert composition_of(source) == GRPO


def test_only_the_chosen_mechanisms_are_written() -> None:
    source = render(compose(scale="none", kl="none"), "DR")
    for absent in ("std", "kl_coef", "ref_logprobs", "entropies", "update_controller", "length", "train_mask"):
        assert absent not in source.split('"""')[2], absent
    assert "import math" not in source
    assert "import math" in render(compose(kl="k3_adaptive"), "KA")


@pytest.mark.slow
def test_lines_stay_within_the_width() -> None:
    rng = random.Random(4)
    compositions = [random_composition(rng) for _ in range(150)] + every_choice()
    for composition in compositions:
        for line in render(composition, "NAME", "hypothesis " * 40).splitlines():
            assert len(line) <= 120, line
