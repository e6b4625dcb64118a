"""Known algorithms as compositions compute what the shipped files compute."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from mechanism_probes import DYNAMICS, batch_of, current, edges, update_of

from poise_core.algorithms import algorithm_path, list_algorithms
from poise_core.candidate.loading import load_candidate, load_candidate_source
from poise_core.mechanisms.composition import GRPO, compose
from poise_core.mechanisms.conflicts import incompatibilities
from poise_core.mechanisms.known import ABOVE_HALF, KNOWN, composition_for, defaults_of, with_numbers
from poise_core.mechanisms.render import render

EXACT = sorted(name for name, known in KNOWN.items() if not known.left_out)
CONTROLLED = dataclasses.replace(DYNAMICS, controller={"initial_entropy": 0.9, "entropy_scale": 2.5})


def test_every_shipped_algorithm_can_be_varied() -> None:
    assert set(KNOWN) == set(list_algorithms())
    for name, known in KNOWN.items():
        assert incompatibilities(known.composition) == [], name


@pytest.mark.parametrize("name", EXACT)
def test_equal_to_the_shipped_file(name: str) -> None:
    shipped = load_candidate(algorithm_path(name))
    rendered = load_candidate_source(render(KNOWN[name].composition, name.upper()), name)
    assert rendered.loss_aggregation == shipped.loss_aggregation
    for seed in (1, 2, 3):
        batch = batch_of(seed)
        for dynamics in (DYNAMICS, CONTROLLED):
            for spread in (0.0, 0.001, 0.5):
                logprobs = current(batch, spread)
                found = update_of(rendered, batch, logprobs, dynamics)
                expected = update_of(shipped, batch, logprobs, dynamics)
                assert found.same_as(expected, rtol=1e-4, atol=1e-5), (seed, spread)
    state: dict[str, float] = {}
    reference: dict[str, float] = {}
    for entropy in (0.0, 0.8, 0.2, 0.1):
        dynamics = dataclasses.replace(DYNAMICS, entropy=entropy)
        state, reference = rendered.update_controller(state, dynamics), shipped.update_controller(reference, dynamics)
        assert state == pytest.approx(reference)


@pytest.mark.parametrize("name", EXACT)
def test_equal_to_the_shipped_file_with_partial_credit_but_for_what_counts_as_correct(name: str) -> None:
    shipped = load_candidate(algorithm_path(name))
    rendered = load_candidate_source(render(KNOWN[name].composition, name.upper()), name)
    batch = batch_of(1)
    part = torch.rand(batch.correctness.shape, generator=torch.Generator().manual_seed(1))
    batch = dataclasses.replace(batch, correctness=batch.correctness * (0.1 + 0.9 * part))
    found, expected = (update_of(one, batch, current(batch), DYNAMICS) for one in (rendered, shipped))
    assert found.same_as(expected, rtol=1e-4, atol=1e-5) == (name not in ABOVE_HALF)
    batch = dataclasses.replace(batch, correctness=(batch.correctness > 0) * (0.6 + 0.4 * part))
    found, expected = (update_of(one, batch, current(batch), DYNAMICS) for one in (rendered, shipped))
    assert found.same_as(expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", EXACT)
def test_each_number_of_a_shipped_file_is_that_of_its_composition(name: str) -> None:
    """``std_eps`` of DACE divides two deviations, which have a number each in the catalogue."""
    batch = batch_of(1)
    for number, value in defaults_of(name).items():
        source, composition = with_numbers(name, {number: 0.3 if value < 1e-2 else 0.7 * value})
        if composition is not None:
            candidates = load_candidate_source(source, "a"), load_candidate_source(render(composition, "B"), "b")
            found, expected = (update_of(one, batch, current(batch), CONTROLLED) for one in candidates)
            assert found.same_as(expected, rtol=1e-4, atol=1e-5), number
            if candidates[0].controller_function is not None:
                later = dataclasses.replace(DYNAMICS, entropy=0.2)
                ours, theirs = (one.update_controller(CONTROLLED.controller, later) for one in candidates)
                assert ours == pytest.approx(theirs)


def test_a_number_outside_the_bounds_of_the_catalogue_is_no_composition() -> None:
    source, composition = with_numbers("grpo", {"kl_coef": 12.0})
    assert composition is None
    assert "kl_coef: float = 12.0" in source
    assert with_numbers("grpo", {"clip_eps_low": -1.0}).composition is None
    with pytest.raises(
        ValueError, match="the catalogue, which adds entropy_coef to grpo, cannot express its other numbers"
    ):
        with_numbers("grpo", {"kl_coef": 12.0, "entropy_coef": 0.01})


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "vm_av", "sa"])
def test_equal_to_the_shipped_file_at_the_edges(name: str) -> None:
    shipped = load_candidate(algorithm_path(name))
    rendered = load_candidate_source(render(KNOWN[name].composition, name.upper()), name)
    for case, (batch, logprobs) in edges().items():
        found, expected = update_of(rendered, batch, logprobs), update_of(shipped, batch, logprobs)
        assert found.same_as(expected, rtol=1e-4, atol=1e-4), case


@pytest.mark.parametrize("name", ["fa", "bn"])
def test_the_left_out_clip_is_all_that_differs(name: str) -> None:
    """Groups of at most eight never reach the clip at +-3 of FA, nor does this batch that of BN."""
    shipped = load_candidate(algorithm_path(name)).with_overrides(advantage_clip=1e6)
    rendered = load_candidate_source(render(KNOWN[name].composition, name), name)
    batch = batch_of(4)
    assert update_of(rendered, batch, current(batch)).same_as(update_of(shipped, batch, current(batch)))


def test_a_file_is_recognised_by_its_text() -> None:
    source = algorithm_path("dapo").read_text()
    assert composition_for(source) == KNOWN["dapo"]
    assert composition_for(source.replace("0.28", "0.3")) is None
    rendered = composition_for(render(compose(kl="none"), "X"))
    assert rendered is not None
    assert rendered.composition == compose(kl="none")


def test_grpo_by_hand() -> None:
    """One group, rewards 1 0 0 0: mean 0.25, std sqrt(0.25) = 0.5, so A = 0.75 / 0.5001 and -0.25 / 0.5001."""
    candidate = load_candidate_source(render(GRPO, "GRPO"), "grpo")
    batch = batch_of(1)
    rows = torch.nonzero(batch.group_ids == -3).squeeze(-1)  # four completions
    one = dataclasses.replace(
        batch,
        **{f.name: getattr(batch, f.name)[rows] for f in dataclasses.fields(batch) if f.name != "correctness"},
        correctness=torch.tensor([1.0, 0.0, 0.0, 0.0]),
    )
    values = candidate.compute_advantages(one, DYNAMICS).values
    torch.testing.assert_close(values[:, 0], torch.tensor([0.75, -0.25, -0.25, -0.25]) / 0.5001)


def test_a_shipped_file_with_other_numbers_is_its_composition_with_them() -> None:
    numbers = {"kl_coef": 0.05, "clip_eps_low": 0.1, "clip_eps_high": 0.1, "std_eps": 0.01}
    source, composition = with_numbers("grpo", numbers)
    assert composition == compose(numbers={"kl_coef": 0.05, "clip_eps": 0.1, "std_eps": 0.01})
    shipped, edited = algorithm_path("grpo").read_text().splitlines(), source.splitlines()
    differing = [(a, b) for a, b in zip(shipped, edited, strict=True) if a != b]
    assert ("    kl_coef: float = 0.01", "    kl_coef: float = 0.05") in differing
    assert len(differing) == 4
    batch = batch_of(1)
    found = update_of(load_candidate_source(source, "a"), batch, current(batch, 0.5), DYNAMICS)
    expected = update_of(load_candidate_source(render(composition, "B"), "b"), batch, current(batch, 0.5), DYNAMICS)
    assert found.same_as(expected, rtol=1e-4, atol=1e-5)
    unchanged = update_of(load_candidate(algorithm_path("grpo")), batch, current(batch, 0.5), DYNAMICS)
    assert not found.same_as(unchanged, rtol=1e-4, atol=1e-5)
    assert with_numbers("grpo", {}) == (algorithm_path("grpo").read_text(), GRPO)
    higher = with_numbers("grpo", {"clip_eps_high": 0.3}).composition
    assert higher == compose(clip="higher", numbers={"clip_eps_low": 0.2, "clip_eps_high": 0.3})


def test_a_coefficient_of_zero_leaves_its_mechanism_out() -> None:
    """Otherwise the gate refuses the file, since a switch that is off already changes nothing."""
    source, composition = with_numbers("grpo", {"kl_coef": 0.0, "clip_eps_low": 0.1, "clip_eps_high": 0.1})
    assert composition == compose(kl="none", numbers={"clip_eps": 0.1})
    candidate = load_candidate_source(source, "a")
    assert list(candidate.mechanisms) == ["group_std_scale", "ratio_clip"]
    assert "reference_kl" in algorithm_path("grpo").read_text()
    batch = batch_of(1)
    found = update_of(candidate, batch, current(batch, 0.5), DYNAMICS)
    expected = update_of(load_candidate_source(render(composition, "B"), "b"), batch, current(batch, 0.5), DYNAMICS)
    assert found.same_as(expected, rtol=1e-4, atol=1e-5)


def test_an_entropy_bonus_is_added_where_the_catalogue_knows_the_whole_file() -> None:
    source, composition = with_numbers("grpo", {"entropy_coef": 0.002, "kl_coef": 0.03})
    assert composition == compose(entropy="bonus", numbers={"entropy_coef": 0.002, "kl_coef": 0.03})
    assert composition_for(source) == (composition, "")
    assert "entropy_coef: float = 0.004" in with_numbers("av", {"entropy_coef": 0.004}).source  # the file has its own
    assert with_numbers("grpo", {"entropy_coef": 0.0}).source == algorithm_path("grpo").read_text()
    with pytest.raises(ValueError, match="grpo has no number lambda; it has clip_eps_high"):
        with_numbers("grpo", {"lambda": 1.0})
    with pytest.raises(ValueError, match="reinforce_plus_plus has no entropy_coef"):
        with_numbers("reinforce_plus_plus", {"entropy_coef": 0.1})
    with pytest.raises(ValueError, match="no algorithm 'ppo'"):
        with_numbers("ppo", {})
