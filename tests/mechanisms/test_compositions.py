"""Compositions as data: validation, text form, distance, conflicts; and the operators on them."""

from __future__ import annotations

import random

import pytest
from pydantic import ValidationError

from poise_core.agents.rules.diagnoses import DIAGNOSES
from poise_core.mechanisms.catalogue import CORE_SLOTS, SLOTS
from poise_core.mechanisms.composition import GRPO, Composition, changed_slots, compose, distance, number_distance
from poise_core.mechanisms.conflicts import conflicts, incompatibilities
from poise_core.mechanisms.model import Parameter
from poise_core.mechanisms.operators import (
    crossover,
    describe_change,
    mutate,
    mutate_numbers,
    random_composition,
    random_numbers,
)


def test_left_out_slots_are_neutral_and_left_out_numbers_have_their_defaults() -> None:
    short = Composition(choices={"clip": "symmetric"})
    assert short.choices["routing"] == "all"
    assert short.parameters["clip_eps"] == 0.2
    assert short == Composition(choices=dict(short.choices), parameters={"clip_eps": 0.2})
    assert Composition.model_validate_json(short.model_dump_json()) == short


@pytest.mark.parametrize(
    ("choices", "parameters", "message"),
    [
        ({"colour": "red"}, {}, "unknown slot colour"),
        ({"clip": "sharp"}, {}, "slot clip has no choice 'sharp'; choices: none, symmetric"),
        ({"clip": "none"}, {"clip_eps": 0.2}, "no choice has the parameter clip_eps"),
        ({"baseline": "anchor_mix"}, {"anchor_weight": 1.5}, "anchor_weight is 1.5; allowed: 0 to 1"),
        ({"kl": "k3"}, {"kl_coef": float("nan")}, "kl_coef is nan"),
    ],
)
def test_what_is_not_a_composition_is_refused(
    choices: dict[str, str], parameters: dict[str, float], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        Composition(choices=choices, parameters=parameters)


def test_text_form_survives_line_breaks_and_gives_small_numbers_back() -> None:
    composition = compose(clip="higher", numbers={"clip_eps_low": 3e-4, "clip_eps_high": 0.123456789})
    text = composition.to_text().replace("; ", ";\n")
    assert Composition.from_text(text) == composition
    with pytest.raises(ValueError, match="not a slot"):
        Composition.from_text("baseline=group_mean; and so on")


def test_parameters_check_their_own_bounds() -> None:
    with pytest.raises(ValueError, match="default must be in the grid"):
        Parameter("x", 0.3, (0.1, 0.2))
    with pytest.raises(ValueError, match="grid in"):
        Parameter("x", 0.1, (0.1, 2.0), high=1.0)
    with pytest.raises(ValueError, match="must be positive and hold the grid"):
        Parameter("x", 0.1, (0.1, 2.0), span=(0.2, 3.0))
    with pytest.raises(ValueError, match="must have one sign"):
        Parameter("x", 0.1, (-0.1, 0.1), low=-1.0)
    with pytest.raises(ValueError, match="leaves"):
        Parameter("x", 0.1, (0.1, 0.5), high=1.0, span=(0.1, 2.0))
    assert (Parameter("x", -1.0, (-2.0, -1.0), low=-9.0).span, Parameter("x", 1.0, (1.0,)).movable) == (
        (1.0, 2.0),
        False,
    )


def test_catalogue_is_consistent() -> None:
    tags = [choice.tag for slot in SLOTS.values() for choice in slot.choices]
    assert len(set(tags)) == len(tags)
    assert all(tag.isupper() or tag[0].isupper() for tag in tags)
    assert set(CORE_SLOTS) <= set(SLOTS)
    for slot in SLOTS.values():
        for choice in slot.choices:
            assert set(choice.answers) <= set(DIAGNOSES), choice.name
            fields = {*choice.switches, *(p.name for p in choice.parameters)}
            for overrides in choice.off.values():
                assert set(overrides) <= fields, choice.name
    for one in SLOTS.values():  # a name that two slots use would be one field with two meanings
        for other in SLOTS.values():
            if one.name < other.name:
                shared = parameter_names(one.name) & parameter_names(other.name)
                assert not shared, (one.name, other.name, shared)


def parameter_names(slot: str) -> set[str]:
    choices = SLOTS[slot].choices
    return {p.name for c in choices for p in c.parameters} | {name for c in choices for name in c.switches}


def test_distance_by_hand() -> None:
    assert distance(GRPO, GRPO) == 0.0
    # thirteen slots: scale differs (1), the clip's number differs (0.25)
    other = compose(scale="none").with_choices({"clip": "symmetric"}, {"clip_eps": 0.1})
    assert distance(GRPO, other) == pytest.approx(1.25 / 13)
    assert distance(other, GRPO) == distance(GRPO, other)
    assert changed_slots(GRPO, other) == ["scale", "clip"]


@pytest.mark.parametrize(
    ("changes", "numbers", "reason"),
    [
        ({"ratio": "none"}, {}, "no ratio to clip"),
        ({"ratio": "geometric"}, {}, "clipped per token already"),
        ({"ratio": "sequence", "clip": "dual"}, {}, "hardly ever reaches dual_clip"),
        ({"baseline": "batch_mean"}, {}, "a number near zero"),
        ({"scale": "beta_std"}, {}, "needs the smoothed pass rate"),
        ({"scale": "fallback_std"}, {}, "nothing to fall back on"),
        ({"reward": "signed"}, {}, "undo the signed reward"),
        ({"reward": "signed", "scale": "pass_rate"}, {}, "no pass rate"),
        ({"reward": "format_bonus", "baseline": "beta_valid", "scale": "none"}, {}, "estimates correctness"),
        ({"routing": "mixed_only", "failure": "graded_penalty"}, {}, "acts in groups of one outcome"),
        ({"routing": "mixed_and_complete", "kl": "k3_all_fail"}, {}, "acts in groups of one outcome"),
        ({"baseline": "none", "scale": "none", "bound": "damp_negative"}, {}, "no failure is negative"),
        (
            {"baseline": "none", "scale": "none", "clip": "dual", "length": "overlong_soft"},
            {},
            "acts on nothing but what other choices, such as a penalty on length, make negative",
        ),
        ({"bound": "clip"}, {"advantage_clip": 2.0}, "cuts nothing"),
        ({"bound": "clip"}, {"advantage_clip": 0.5}, "cuts them all"),
        ({"bound": "clip", "baseline": "group_median"}, {}, "two sizes of advantage"),
        ({"baseline": "group_median", "reward": "format_bonus", "format": "invalid_floor"}, {}, "overwrites"),
        ({"scale": "pass_rate", "format": "invalid_floor"}, {}, "advantage -1 already"),
        (
            {"baseline": "leave_one_out", "scale": "pass_rate", "format": "invalid_floor"},
            {},
            "under pass_rate with the group's mean failures have advantage -1 already",
        ),
        (
            {"reward": "signed", "baseline": "none", "scale": "fixed", "format": "invalid_floor"},
            {"fixed_std": 0.5, "invalid_advantage": -2.0},
            "advantage -2 already",
        ),
        ({"bound": "tanh", "scale": "fixed"}, {"fixed_std": 0.3, "advantage_bound": 0.5}, "tanh makes them all 0.5"),
    ],
)
def test_each_conflict_is_stated(changes: dict[str, str], numbers: dict[str, float], reason: str) -> None:
    found = incompatibilities(GRPO.with_choices(changes, numbers))
    assert len(found) == 1
    assert reason in found[0]


def test_a_clip_at_two_does_nothing_to_group_std_in_groups_of_eight() -> None:
    """The largest advantage there is (1 - 1/8) / sqrt(1/8) = 2.475; the bound allows clips up to 0.6 of it."""
    assert not conflicts(compose(bound="clip", numbers={"advantage_clip": 1.0}))
    assert conflicts(compose(bound="clip", numbers={"advantage_clip": 1.5}))
    wide = compose(bound="clip", scale="pass_rate", numbers={"advantage_clip": 2.0})
    assert not conflicts(wide)


def test_mutation_changes_what_it_says_and_nothing_else() -> None:
    rng = random.Random(0)
    parent, sizes = GRPO, set()
    for step in range(300):
        strength = 1 + step % 4
        variation = mutate(parent, rng, strength)
        child = variation.composition
        assert not conflicts(child)
        slots = changed_slots(parent, child)
        assert strength <= len(slots) <= strength + 3
        assert [part.split(":")[0] for part in variation.change.split("; ")] == slots
        sizes.add(len(slots))
        parent = child if step % 10 else GRPO
    assert {1, 2} <= sizes


def test_mutation_reaches_what_needs_a_second_change() -> None:
    rng = random.Random(1)
    children = [mutate(GRPO, rng, 1).composition for _ in range(600)]
    assert {c.choices["ratio"] for c in children} == {"token", "sequence", "geometric", "none"}
    assert all(c.choices["clip"] == "none" for c in children if c.choices["ratio"] in ("none", "geometric"))
    assert any(c.choices["scale"] == "beta_std" and c.choices["baseline"] == "beta_valid" for c in children)


def test_mutation_is_deterministic_and_follows_weights() -> None:
    assert mutate(GRPO, random.Random(5), 2) == mutate(GRPO, random.Random(5), 2)
    only = {slot: float(slot == "entropy") for slot in SLOTS}
    for seed in range(20):
        child = mutate(GRPO, random.Random(seed), 1, slot_weights=only).composition
        assert changed_slots(GRPO, child) == ["entropy"]
    to_bonus = {("entropy", c.name): float(c.name == "bonus") for c in SLOTS["entropy"].choices}
    child = mutate(GRPO, random.Random(0), 1, slot_weights=only, choice_weights=to_bonus).composition
    assert child.choices["entropy"] == "bonus"
    with pytest.raises(ValueError, match="strength is 5"):
        mutate(GRPO, random.Random(0), 5)
    with pytest.raises(ValueError, match="weight"):
        mutate(GRPO, random.Random(0), 1, slot_weights=dict.fromkeys(SLOTS, 0.0))


def test_crossover_takes_slots_with_their_numbers() -> None:
    reference = compose(baseline="anchor_mix", scale="fixed", entropy="bonus", numbers={"entropy_coef": 0.05})
    rng = random.Random(2)
    seen = set()
    for _ in range(60):
        found = crossover(GRPO, reference, rng)
        assert found is not None
        child = found.composition
        assert not conflicts(child)
        for slot in changed_slots(GRPO, child):
            taken = child.describe(slot) == reference.describe(slot)
            assert taken or slot == "scale"  # an anchor without its scale is repaired to no scale
        seen |= set(changed_slots(GRPO, child))
    assert seen == {"baseline", "scale", "entropy"}
    before = rng.getstate()
    assert crossover(GRPO, GRPO, rng) is None
    assert crossover(GRPO, compose(scale="none"), rng) is None  # all that there is to take is the reference
    assert rng.getstate() == before, "known without trying"


def test_numbers_move_by_a_factor_within_their_spans_and_choices_stay() -> None:
    spans = {p.name: p.span for slot in SLOTS.values() for choice in slot.choices for p in choice.parameters}
    parent, counts = compose(format="invalid_floor", entropy="bonus"), set()
    for seed in range(200):
        found = mutate_numbers(parent, random.Random(seed))
        assert found is not None
        assert found == mutate_numbers(parent, random.Random(seed))
        child = found.composition
        assert child.choices == parent.choices
        changed = {name for name, value in child.parameters.items() if value != parent.parameters[name]}
        counts.add(len(changed))
        for name in changed:
            factor = child.parameters[name] / parent.parameters[name]  # positive, so a sign stays
            assert 1.2 < max(factor, 1 / factor) < 4.1, name  # two digits
            low, high = spans[name]
            assert low <= abs(child.parameters[name]) <= high, name
            assert child.parameters[name] == float(f"{child.parameters[name]:.2g}")
    assert counts == {1, 2}
    only = {slot: float(slot == "kl") for slot in SLOTS}
    child = mutate_numbers(GRPO, random.Random(0), slot_weights=only)
    assert child is not None
    assert changed_slots(GRPO, child.composition) == ["kl"]
    assert mutate_numbers(GRPO, random.Random(0), slot_weights=dict.fromkeys(SLOTS, 0.0)) is None


def test_a_number_outside_its_span_moves_no_further_out() -> None:
    """GSPO's clip range is a hundred times smaller than that of the token ratio's."""
    parent = compose(ratio="sequence", numbers={"clip_eps": 3e-4})
    clip = {slot: float(slot == "clip") for slot in SLOTS}
    for seed in range(30):
        child = mutate_numbers(parent, random.Random(seed), 1, slot_weights=clip)
        assert child is not None
        assert 3e-4 < child.composition.parameters["clip_eps"] <= 1.2e-3


def test_random_numbers_keep_the_algorithm() -> None:
    found = [random_numbers(GRPO, random.Random(seed)).composition for seed in range(100)]
    assert {tuple(one.choices.items()) for one in found} == {tuple(GRPO.choices.items())}
    values = sorted(one.parameters["kl_coef"] for one in found)
    assert values[0] < 0.002
    assert values[-1] > 0.15
    assert 0.01 < values[50] < 0.03  # uniform in the logarithm: the middle of 0.001 to 0.3 is 0.017


def test_crossover_mixes_numbers_of_what_both_have() -> None:
    reference = compose(numbers={"kl_coef": 0.04})
    kinds = {crossover(GRPO, reference, random.Random(seed)) for seed in range(40)}
    assert {found.composition.parameters["kl_coef"] for found in kinds if found} == {0.02}  # sqrt(0.01 * 0.04)
    other = compose(scale="none", numbers={"kl_coef": 0.04})
    seen = {
        found.composition.parameters["kl_coef"]
        for seed in range(60)
        if (found := crossover(GRPO, other, random.Random(seed)))
    }
    assert seen == {0.01, 0.02, 0.04}


def test_number_distance_by_hand() -> None:
    other = compose(numbers={"kl_coef": 0.02, "clip_eps": 0.25})
    assert number_distance(GRPO, other) == pytest.approx(0.5)  # log 2 / log 4, the larger of the two
    assert number_distance(GRPO, compose(numbers={"kl_coef": 1.0})) == 1.0
    assert number_distance(GRPO, compose(numbers={"kl_coef": 0.0})) == 1.0
    assert number_distance(GRPO, GRPO) == 0.0


def test_random_compositions_vary_and_are_free_of_conflicts() -> None:
    rng = random.Random(3)
    found = [random_composition(rng) for _ in range(300)]
    assert len({c.key for c in found}) == 300
    assert not any(conflicts(c) for c in found)
    for name, slot in SLOTS.items():
        assert {c.choices[name] for c in found} == {choice.name for choice in slot.choices}, name


def test_describe_change_names_both_sides() -> None:
    assert describe_change(GRPO, compose(scale="none")) == "scale: group_std(std_eps=0.0001) -> none"
    assert describe_change(GRPO, GRPO) == "nothing"


def test_a_variation_is_what_the_class_would_have_made_of_it() -> None:
    """``with_choices`` checks only what changes; the result is the class's own in every respect, texts and order included."""
    rng = random.Random(7)
    one = GRPO
    for _ in range(400):
        one, other = mutate(one, rng, rng.randint(1, 4)).composition, random_composition(rng)
        slots = rng.sample(list(SLOTS), rng.randint(0, 4))
        changes = {slot: other.choices[slot] for slot in slots}
        numbers = {name: value for slot in slots if rng.random() < 0.5 for name, value in other.numbers(slot).items()}
        if moved := mutate_numbers(one, rng):  # numbers of slots that are kept, of which the others stay as they are
            kept = [name for slot in SLOTS if slot not in slots for name in one.numbers(slot)]
            numbers |= {n: moved.composition.parameters[n] for n in kept if rng.random() < 0.5}
        own = {name: value for slot in SLOTS if slot not in slots for name, value in one.numbers(slot).items()}
        made = one.with_choices(changes, numbers)
        plain = Composition(choices={**one.choices, **changes}, parameters={**own, **numbers})
        assert made == plain
        assert list(made.parameters) == list(plain.parameters)
        assert [made.describe(slot) for slot in SLOTS] == [plain.describe(slot) for slot in SLOTS]
        assert (made.key, hash(made), made.to_text()) == (plain.key, hash(plain), plain.to_text())


@pytest.mark.parametrize(
    ("changes", "numbers", "said"),
    [
        ({"nowhere": "none"}, {}, "unknown slot nowhere"),
        ({"kl": "huge"}, {}, "slot kl has no choice 'huge'"),
        ({"kl": "k3"}, {"kl_coef": -1.0}, "kl_coef is -1"),
        ({}, {"std_eps": -1.0}, "std_eps is -1"),
        ({}, {"beta": 1.0}, "no choice has the parameter beta"),
    ],
)
def test_a_variation_that_is_none_is_refused(changes: dict[str, str], numbers: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        GRPO.with_choices(changes, numbers)
