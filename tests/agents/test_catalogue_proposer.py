"""Proposals from the mechanism catalogue: new, named, diverse, guided by diagnoses, and screened."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
from gate_fixtures import WITH_TUPLES

from poise_core.agents.catalogue.compositions import composition_of_record, wanted_answers
from poise_core.agents.catalogue.implementer import CatalogueImplementer
from poise_core.agents.catalogue.promising import bounds, most_promising
from poise_core.agents.catalogue.proposer import CatalogueProposer
from poise_core.agents.catalogue.screener import CatalogueScreener
from poise_core.agents.roles import (
    Attempt,
    CandidateRecord,
    Diagnosis,
    Proposal,
    ProposalContext,
    Reference,
    Reflection,
    ScoredComposition,
    Tried,
)
from poise_core.algorithms import algorithm_path
from poise_core.candidate.loading import load_candidate_source, source_digest
from poise_core.config.search import PromiseSpec
from poise_core.evidence.promise import Promise
from poise_core.failures import CandidateFailure, FailureKind
from poise_core.mechanisms.catalogue import SLOTS
from poise_core.mechanisms.composition import GRPO, Composition, changed_slots, compose
from poise_core.mechanisms.features import encode_all
from poise_core.mechanisms.known import KNOWN
from poise_core.mechanisms.operators import random_composition
from poise_core.mechanisms.render import composition_of
from poise_core.trajectory import RUN_METRICS


def shipped(name: str) -> CandidateRecord:
    return CandidateRecord(f"{name}-0", name.upper().replace("_", "-"), algorithm_path(name).read_text())


def reflected(record: CandidateRecord, *codes: str) -> CandidateRecord:
    diagnoses = tuple(Diagnosis(code=code, text=f"Found {code}: 0.5.") for code in codes)
    reflection = Reflection(
        candidate_id=record.candidate_id, parent_id=None, reflector="rules", summary="s", diagnoses=diagnoses
    )
    return dataclasses.replace(record, reflection=reflection)


GRPO_CONTEXT = ProposalContext(shipped("grpo"))


def composition(proposal: Proposal) -> Composition:
    return Composition.model_validate(proposal.composition)


def test_the_baseline_file_is_mutated_in_one_to_four_slots() -> None:
    proposals = CatalogueProposer().propose(GRPO_CONTEXT, 8, seed=0)
    assert len(proposals) == 8
    assert len({p.name for p in proposals}) == 8
    assert len({composition(p).key for p in proposals}) == 8
    for proposal in proposals:
        slots = changed_slots(GRPO, composition(proposal))
        assert 1 <= len(slots) <= 4  # one or two are drawn, and whatever conflicts with them changes too
        assert proposal.direction == slots[0]
        assert all(slot in proposal.mechanism_change for slot in slots)
        assert proposal.parent_ids == ("grpo-0",)
        assert proposal.proposer == "catalogue"
        assert proposal.expectations[-1].metric == "Overall"
        metrics = [e.metric for e in proposal.expectations]
        assert len(set(metrics)) == len(metrics)
        assert set(metrics) <= {*RUN_METRICS, "Overall"}


def test_a_parent_with_a_tuple_is_mutated_as_grpo_and_the_proposals_say_so() -> None:
    parent = CandidateRecord("c", "CHILD", WITH_TUPLES, generation=1, parent_ids=("p",))
    proposals = CatalogueProposer().propose(ProposalContext(parent), 4, seed=0)
    assert len(proposals) == 4
    for proposal in proposals:
        assert "everything in which CHILD differs from GRPO" in proposal.mechanism_change
        assert "tuple" not in CatalogueImplementer().implement(proposal, ProposalContext(parent))


def test_equal_seeds_give_equal_proposals_and_others_differ() -> None:
    proposer = CatalogueProposer()
    first = proposer.propose(GRPO_CONTEXT, 4, seed=3)
    assert proposer.propose(GRPO_CONTEXT, 4, seed=3) == first
    assert proposer.propose(GRPO_CONTEXT, 4, seed=4) != first
    later = dataclasses.replace(GRPO_CONTEXT, generation=2)
    assert proposer.propose(later, 4, seed=3) != first


def test_nothing_that_was_tried_comes_again() -> None:
    proposer = CatalogueProposer()
    tried: list[Tried] = []
    for generation in range(12):
        context = dataclasses.replace(GRPO_CONTEXT, avoid=tuple(tried))
        for proposal in proposer.propose(context, 5, seed=0):
            assert proposal.name not in {t.name for t in tried}
            assert proposal.composition not in [t.composition for t in tried]
            tried.append(Tried(proposal.name, "evaluated" if generation % 2 else "diverged", proposal.composition))
    assert len({composition_key(t) for t in tried}) == len(tried) == 60


def scored(count: int = 40) -> tuple[ScoredComposition, ...]:
    """Random compositions; each point of difference is that of one mechanism, a sequence-level ratio."""
    drawn = [random_composition(random.Random(number)) for number in range(count)]
    return tuple(
        ScoredComposition(one, 80.0 + 5.0 * (one.choices["ratio"] == "sequence") + 0.01 * number, 2)
        for number, one in enumerate(drawn)
    )


def test_many_are_drawn_and_the_most_promising_proposed() -> None:
    context = dataclasses.replace(GRPO_CONTEXT, scored=scored())
    without = CatalogueProposer().propose(context, 4, seed=0)
    assert without == CatalogueProposer().propose(GRPO_CONTEXT, 4, seed=0), "whose promise counts is said"
    proposer = CatalogueProposer(promise=PromiseSpec(draws=400, confidence=0.0))
    proposals = proposer.propose(context, 4, seed=0)
    found = [composition(one).choices["ratio"] for one in proposals]
    assert found[:2] == ["sequence"] * 2, "of several hundred draws a few have what pays"
    assert proposer.propose(context, 4, seed=0) == proposals
    few = dataclasses.replace(context, scored=context.scored[:3])
    assert proposer.propose(few, 4, seed=0) == without, "three scores tell nothing"


def test_the_most_promising_of_the_draws_come_first() -> None:
    """Of the draws that are there, whether more or fewer than were asked for, and none where there are none."""
    some = [random_composition(random.Random(number)) for number in range(60)]
    scores = np.array([70.0 + 9.0 * (one.choices["ratio"] == "sequence") for one in some])
    promise = Promise.learn(*encode_all(some), scores, np.full(60, 2.0))
    assert promise is not None
    asked: list[int] = []

    def draws(limit: int, have: int) -> Iterator[tuple[str, Composition]]:
        asked.append(limit)
        return iter([(f"draw {n}", random_composition(random.Random(f"new {n}"))) for n in range(have)])

    for have, n in ((300, 4), (300, 50), (7, 4), (0, 4)):
        spec = PromiseSpec(draws=40, confidence=1.0)
        found, high = most_promising(partial(draws, have=have), promise, spec, n, lambda drawn: drawn[1])
        assert asked[-1] == max(40, n)
        assert len(found) == len(high) == min(have, max(40, n))
        assert np.array_equal(high, np.sort(high)[::-1])
        if have:
            assert high == pytest.approx(bounds(promise, [one for _, one in found], 1.0))
            assert found[0][1].choices["ratio"] == "sequence"


def test_of_the_immigrants_the_most_promising_are_proposed() -> None:
    """A sixth of the catalogue's compositions has a sequence-level ratio; of 100 draws the four best all do."""
    from poise_core.agents.catalogue.random_search import RandomProposer

    context = dataclasses.replace(GRPO_CONTEXT, scored=scored())
    proposer = RandomProposer(promise=PromiseSpec(draws=100, confidence=0.0))
    proposals = proposer.propose(context, 4, seed=0)
    assert {composition(one).choices["ratio"] for one in proposals} == {"sequence"}
    apart = [len(changed_slots(GRPO, composition(one))) for one in proposals]
    assert max(apart) > 4, "no variation of the parent is as far from it"
    assert "among the most promising of many" in proposals[0].hypothesis
    assert proposer.propose(GRPO_CONTEXT, 4, seed=0) == RandomProposer().propose(GRPO_CONTEXT, 4, seed=0)


def test_the_screener_weighs_what_is_promised() -> None:
    context = dataclasses.replace(GRPO_CONTEXT, scored=scored())
    proposals = CatalogueProposer(promise=PromiseSpec(draws=400, confidence=0.0)).propose(context, 2, seed=0)
    others = [
        one
        for one in CatalogueProposer().propose(GRPO_CONTEXT, 8, seed=1)
        if composition(one).choices["ratio"] != "sequence"
    ]
    outside = others[0].model_copy(update={"composition": None, "name": "OUTSIDE"})
    plain = CatalogueScreener().rank([*others, *proposals], context)
    assert CatalogueScreener(promise=PromiseSpec(weight=0.0)).rank([*others, *proposals], context) == plain
    ranked = CatalogueScreener(promise=PromiseSpec(weight=1.0, confidence=0.0)).rank(
        [*others, outside, *proposals], context
    )
    assert {one.proposal.name for one in ranked[:2]} == {one.name for one in proposals}
    terms = {one.proposal.name: one.terms for one in ranked}
    assert terms["OUTSIDE"]["promise"] == 0.5
    assert all(one.score == pytest.approx(one.terms["promise"]) for one in ranked)
    assert "promise" in ranked[0].reasons[-1]
    half = CatalogueScreener(promise=PromiseSpec(weight=0.5, confidence=0.0)).rank(
        [*others, outside, *proposals], context
    )
    before = {one.proposal.name: one.score for one in CatalogueScreener().rank([*others, outside, *proposals], context)}
    for one in half:
        assert one.score == pytest.approx((before[one.proposal.name] + terms[one.proposal.name]["promise"]) / 2)


def test_an_idea_that_was_only_ranked_lower_may_come_again_under_another_name() -> None:
    proposer, screener = CatalogueProposer(), CatalogueScreener()
    first = proposer.propose(GRPO_CONTEXT, 1, seed=0)[0]
    context = dataclasses.replace(GRPO_CONTEXT, avoid=(Tried(first.name, "not_taken", first.composition),))
    again = proposer.propose(context, 1, seed=0)[0]
    assert again.composition == first.composition
    assert again.name != first.name
    assert screener.rank([again], context)[0].feasible


def composition_key(tried: Tried) -> str:
    return Composition.model_validate(tried.composition).key


def test_a_source_that_was_tried_is_not_proposed_again() -> None:
    proposer, implementer = CatalogueProposer(), CatalogueImplementer()
    first = proposer.propose(GRPO_CONTEXT, 1, seed=0)[0]
    digest = source_digest(implementer.implement(first, GRPO_CONTEXT))
    context = dataclasses.replace(GRPO_CONTEXT, avoid=(Tried("OTHER", "rejected", source_digest=digest),))
    assert first.composition not in [p.composition for p in proposer.propose(context, 3, seed=0)]


@pytest.mark.slow
def test_diagnoses_steer_towards_their_answers() -> None:
    context = dataclasses.replace(GRPO_CONTEXT, parent=reflected(shipped("grpo"), "entropy_collapse"))
    plain, steered = Counter[bool](), Counter[bool]()
    for seed in range(40):
        for counter, one in ((plain, GRPO_CONTEXT), (steered, context)):
            for proposal in CatalogueProposer().propose(one, 1, seed):
                chosen = composition(proposal)
                answers = {a for slot in changed_slots(GRPO, chosen) for a in chosen.choice(slot).answers}
                counter["entropy_collapse" in answers] += 1
    assert steered[True] > 1.5 * plain[True]
    proposal = next(
        p for p in CatalogueProposer().propose(context, 6, 0) if p.addresses == "Found entropy_collapse: 0.5."
    )
    assert proposal.hypothesis.startswith("Found entropy_collapse: 0.5. ")


def test_proposals_of_one_round_go_in_different_directions() -> None:
    for seed in range(5):
        directions = [p.direction for p in CatalogueProposer().propose(GRPO_CONTEXT, 5, seed)]
        assert len(set(directions)) >= 3, directions


def test_a_directive_counts_as_a_diagnosis() -> None:
    context = dataclasses.replace(GRPO_CONTEXT, directive="Shorten responses substantially, keep accuracy")
    assert wanted_answers(context) == {"length_growth"}
    proposals = [p for seed in range(10) for p in CatalogueProposer().propose(context, 3, seed)]
    share = sum("length" in changed_slots(GRPO, composition(p)) for p in proposals) / len(proposals)
    assert share > 0.25


def test_crossover_names_its_donor() -> None:
    context = ProposalContext(shipped("grpo"), (Reference(shipped("dace"), "pareto"),))
    proposals = CatalogueProposer(crossover_share=1.0).propose(context, 3, seed=0)
    dace = KNOWN["dace"].composition
    assert proposals
    for proposal in proposals:
        assert proposal.parent_ids == ("grpo-0", "dace-0")
        assert "(taken from DACE)" in proposal.mechanism_change
        taken = changed_slots(GRPO, composition(proposal))
        assert all(composition(proposal).describe(slot) == dace.describe(slot) for slot in taken)


def test_a_reference_equal_to_the_parent_donates_nothing_and_does_not_block() -> None:
    context = ProposalContext(shipped("grpo"), (Reference(shipped("grpo"), "pareto"),))
    assert CatalogueProposer(crossover_share=1.0).propose(context, 3, seed=0) == []
    assert len(CatalogueProposer(crossover_share=0.5).propose(context, 3, seed=0)) == 3


def test_names_join_the_new_tag_with_the_parents_name() -> None:
    parent = CandidateRecord("av-1", "AV", "", composition=compose(scale="analytic_std").model_dump(mode="json"))
    names = [p.name for seed in range(6) for p in CatalogueProposer().propose(ProposalContext(parent), 4, seed)]
    tags = {choice.tag for slot in SLOTS.values() for choice in slot.choices}
    for name in names:
        assert all(part in tags or part.isdigit() for part in name.split("-"))
        assert len(name) <= 14
    assert sum("AV" in name.split("-") for name in names) > len(names) / 2


def test_what_the_catalogue_cannot_express_is_said() -> None:
    stranger = CandidateRecord("llm-1", "LLM", "x = 1\n")
    assert composition_of_record(stranger)[0] == GRPO
    proposal = CatalogueProposer().propose(ProposalContext(stranger), 1, 0)[0]
    assert "Not carried over: everything in which LLM differs from GRPO" in proposal.mechanism_change
    bn = CatalogueProposer().propose(ProposalContext(shipped("bn")), 1, 0)[0]
    assert "Not carried over: its clip at +-3" in bn.mechanism_change
    outdated = dataclasses.replace(shipped("rloo"), composition={"choices": {"no": "longer"}})
    assert composition_of_record(outdated)[0] == KNOWN["rloo"].composition


@pytest.mark.slow
def test_removing_a_mechanism_reverses_its_effect() -> None:
    for seed in range(200):
        for proposal in CatalogueProposer().propose(GRPO_CONTEXT, 2, seed):
            if proposal.mechanism_change.startswith("kl: k3(kl_coef=0.01) -> none"):
                kl = next(e for e in proposal.expectations if e.metric == "kl_end")
                assert kl.direction == "increase"
                return
    pytest.fail("the KL term was never removed")


def test_rendered_proposals_load_and_carry_their_composition() -> None:
    implementer = CatalogueImplementer()
    for proposal in CatalogueProposer().propose(GRPO_CONTEXT, 6, seed=1):
        source = implementer.implement(proposal, GRPO_CONTEXT)
        assert load_candidate_source(source, proposal.name).mechanisms
        assert composition_of(source) == composition(proposal)
        assert "Child of GRPO: " in source


def test_the_implementer_does_not_repeat_a_refused_file() -> None:
    proposal = CatalogueProposer().propose(GRPO_CONTEXT, 1, 0)[0]
    with pytest.raises(CandidateFailure, match="no other way to write it") as failure:
        CatalogueImplementer().implement(proposal, GRPO_CONTEXT, [Attempt("x", "verify", "the report")])
    assert failure.value.kind is FailureKind.REJECTED
    assert failure.value.detail == "the report"
    with pytest.raises(CandidateFailure, match="no composition"):
        CatalogueImplementer().implement(proposal.model_copy(update={"composition": None}), GRPO_CONTEXT)
    own = proposal.model_copy(update={"composition": None, "source": "x = 1\n"})
    assert CatalogueImplementer().implement(own, GRPO_CONTEXT) == "x = 1\n"


def made(name: str, child: Composition, direction: str) -> Proposal:
    return Proposal(
        name=name,
        hypothesis="h",
        mechanism_change="c",
        parent_ids=("grpo-0",),
        direction=direction,
        proposer="catalogue",
        composition=child.model_dump(mode="json"),
    )


def test_the_screener_prefers_relevance_novelty_variety_and_simplicity() -> None:
    context = dataclasses.replace(
        GRPO_CONTEXT,
        parent=reflected(shipped("grpo"), "entropy_collapse"),
        avoid=(Tried("OLD", "evaluated", compose(kl="k2").model_dump(mode="json"), parent_ids=("grpo-0",)),),
    )
    relevant = made("A", compose(entropy="bonus"), "entropy")
    irrelevant = made("B", compose(length="ratio_power"), "length")
    stale = made("C", compose(kl="k2", numbers={"kl_coef": 0.03}), "kl")
    broken = made("D", compose(ratio="none"), "ratio")
    repeated = made("E", compose(kl="k2"), "kl")
    ranked = CatalogueScreener().rank([broken, stale, repeated, irrelevant, relevant], context)
    assert [s.proposal.name for s in ranked[:3]] == ["A", "B", "C"]
    assert [s.feasible for s in ranked] == [True, True, True, False, False]
    by_name = {s.proposal.name: s for s in ranked}
    # one slot of thirteen from GRPO; entropy and kl apart from OLD; three slots would be full novelty
    assert by_name["A"].terms == pytest.approx(
        {"relevance": 1.0, "novelty": 1 / 3, "variety": 1.0, "simplicity": 9 / 13}
    )
    assert by_name["C"].terms["novelty"] == pytest.approx(1 / 3)  # from GRPO; a factor of 3 from OLD is further
    near = made(
        "N", compose(numbers={"kl_coef": 0.015}), "kl"
    )  # a factor of 1.5 from GRPO, where one of 4 counts as two slots
    (screened,) = CatalogueScreener().rank([near], context)
    assert screened.terms["novelty"] == pytest.approx(2 / 3 * math.log(1.5) / math.log(4))
    assert by_name["C"].terms["variety"] == 0.5
    assert "no ratio to clip" in by_name["D"].reasons[0]
    assert "the same composition as OLD (evaluated)" in by_name["E"].reasons[0]
    assert by_name["A"].score == pytest.approx(0.35 + 0.3 / 3 + 0.2 + 0.15 * 9 / 13)


def test_the_screener_takes_proposals_from_outside_the_catalogue() -> None:
    foreign = made("L", GRPO, "entropy").model_copy(update={"composition": None, "source": "x"})
    unknown = made("U", GRPO, "entropy").model_copy(update={"composition": {"choices": {"a": "b"}}})
    ranked = CatalogueScreener().rank([unknown, foreign], GRPO_CONTEXT)
    assert [(s.proposal.name, s.feasible) for s in ranked] == [("L", True), ("U", False)]


@pytest.mark.slow
def test_failed_siblings_make_their_choice_less_likely() -> None:
    bad = Tried(
        "BAD",
        "diverged",
        GRPO.with_choices({"clip": "none"}).model_dump(mode="json"),
        parent_ids=("grpo-0",),
    )
    counts = Counter[str]()
    for avoid in ((), (bad,)):
        context = dataclasses.replace(GRPO_CONTEXT, avoid=avoid)
        for seed in range(50):
            for proposal in CatalogueProposer(double_share=1.0).propose(context, 2, seed):
                chosen = composition(proposal)
                if chosen.choices["clip"] == "none" and chosen.choices["ratio"] in ("token", "sequence"):
                    counts["after" if avoid else "before"] += 1
    assert counts["after"] < 0.7 * counts["before"]


def test_on_a_plateau_mutations_change_three_or_four_slots() -> None:
    narrow = CatalogueProposer(crossover_share=0.0)
    wide_context = dataclasses.replace(GRPO_CONTEXT, wide=True)
    for seed in range(10):
        for proposal in narrow.propose(wide_context, 4, seed):
            assert len(changed_slots(GRPO, Composition.model_validate(proposal.composition))) >= 3


def test_the_tuning_arm_draws_numbers_of_the_parent_and_nothing_else() -> None:
    from poise_core.agents.catalogue.random_search import RandomProposer

    proposer = RandomProposer(numbers_only=True)
    first = proposer.propose(GRPO_CONTEXT, 40, seed=1)
    assert first == proposer.propose(GRPO_CONTEXT, 40, seed=1)
    found = [Composition.model_validate(one.composition) for one in first]
    assert len({one.key for one in found}) == 40
    for one in found:
        changed = {slot for slot in SLOTS if one.choices[slot] != GRPO.choices[slot]}
        assert changed <= {"kl", "entropy"}
        assert (one.choices["kl"], one.choices["entropy"]) in itertools.product(("k3", "none"), ("bonus", "none"))
    spread = [one.parameters["kl_coef"] for one in found if one.choices["kl"] == "k3"]
    assert 10 < len(spread) < 30
    assert min(spread) < 0.01 < 0.03 < max(spread)  # the span is 0.001 to 0.3
    assert all(0.001 <= value <= 0.3 for value in spread)


@pytest.mark.slow
def test_some_proposals_move_numbers_only() -> None:
    proposed = [one for seed in range(60) for one in CatalogueProposer().propose(GRPO_CONTEXT, 4, seed)]
    found = [Composition.model_validate(one.composition) for one in proposed]
    moved = [one for one in found if one.choices == GRPO.choices]
    assert 0.1 < len(moved) / len(found) < 0.35
    assert all(one.parameters != GRPO.parameters for one in moved)
    text = next(p for p, one in zip(proposed, found, strict=True) if one.choices == GRPO.choices)
    assert " -> " in text.mechanism_change
    assert "moves " in text.hypothesis


def test_the_random_proposer_ignores_what_was_learned_and_repeats_nothing() -> None:
    from poise_core.agents.catalogue.random_search import FirstComeScreener, RandomProposer

    context = dataclasses.replace(GRPO_CONTEXT, parent=reflected(shipped("grpo"), "entropy_collapse"))
    first = RandomProposer().propose(context, 4, seed=1)
    assert first == RandomProposer().propose(context, 4, seed=1)
    chosen = [composition(one).chosen() for one in first]
    assert any("entropy_collapse" in choice.answers for one in chosen for choice in one)
    for proposal in first:  # nobody looked at the diagnosis, so none claims to answer it
        assert proposal.addresses == "no diagnosed deficiency: drawn at random from the whole catalogue"
        assert proposal.hypothesis.startswith("Drawn at random from the whole catalogue. ")
    assert first != RandomProposer().propose(context, 4, seed=2)
    tried = tuple(Tried(p.name, "evaluated", p.composition) for p in first)
    again = RandomProposer().propose(dataclasses.replace(context, avoid=tried), 4, seed=1)
    keys = [Composition.model_validate(p.composition).key for p in (*first, *again)]
    assert len(set(keys)) == 8
    ranked = FirstComeScreener().rank(first, context)
    assert [one.proposal for one in ranked if one.feasible] == list(first)
