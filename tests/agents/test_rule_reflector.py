"""Rule-based reflection: every rule, expectations judged by paired intervals, advice."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest

from poise_core.agents.digest import Spike, TrajectoryDigest
from poise_core.agents.roles import Expectation, Measured, Proposal, Reflection, ReflectionEvidence
from poise_core.agents.rules.diagnoses import DIAGNOSES, diagnose
from poise_core.agents.rules.reflector import LABELS, RuleReflector
from poise_core.evidence.format import spell_interval
from poise_core.evidence.intervals import Interval
from poise_core.mechanisms.catalogue import SLOTS
from poise_core.mechanisms.composition import GRPO
from poise_core.trajectory import RUN_METRICS

CALM = TrajectoryDigest(steps=50, seeds=3, complete=True, non_finite_steps=0)
SPIKE = Spike(step=12, seed=1, value=0.9, ratio=7.5)


@pytest.mark.parametrize(
    ("code", "numbers", "said"),
    [
        ("entropy_collapse", {"entropy_start": 0.5, "entropy_end": 0.1, "entropy_slope": -0.008}, "0.5 to 0.1 nats"),
        ("entropy_explosion", {"entropy_start": 0.5, "entropy_end": 0.9}, "0.5 to 0.9 nats"),
        ("kl_spike", {"kl_spike": SPIKE}, "0.9 at step 12 of seed 1, 7.5 times"),
        ("gradient_spikes", {"grad_norm_spike": SPIKE}, "0.9 at step 12 of seed 1, 7.5 times"),
        (
            "reward_collapse",
            {"reward_start": 0.3, "reward_best": 0.6, "reward_end": 0.4},
            "0.400 after a best of 0.600",
        ),
        (
            "reward_plateau",
            {"reward_start": 0.3, "reward_best": 0.6, "reward_end": 0.59, "reward_plateau_step": 20},
            "at step 20 of 50",
        ),
        ("all_fail_high", {"all_fail_start": 0.5, "all_fail_end": 0.3}, "In 30% of the groups"),
        ("format_decay", {"format_valid_start": 0.99, "format_valid_end": 0.93}, "99.0% to 93.0%"),
        ("format_invalid", {"format_valid_start": 0.7, "format_valid_end": 0.8}, "20.0% of the completions"),
        ("length_growth", {"length_start": 10.0, "length_end": 14.0}, "10.0 to 14.0 tokens"),
        ("length_collapse", {"length_start": 10.0, "length_end": 5.0}, "10.0 to 5.0 tokens"),
        ("truncation_high", {"truncated_start": 0.01, "truncated_end": 0.12}, "12.0% of the completions"),
        ("clip_saturation", {"clip_fraction_mean": 0.3, "clip_fraction_end": 0.4}, "30.0% of the tokens"),
    ],
)
def test_each_rule_fires_with_its_numbers(code: str, numbers: Mapping[str, object], said: str) -> None:
    found = diagnose(CALM.model_copy(update=dict(numbers)))
    assert [diagnosis.code for diagnosis in found] == [code]
    assert said in found[0].text
    assert set(found[0].slots) <= set(SLOTS)


def test_no_rule_fires_on_a_healthy_or_an_empty_run() -> None:
    healthy = CALM.model_copy(
        update={
            "entropy_start": 0.5, "entropy_end": 0.3, "entropy_slope": -0.004,
            "kl_spike": Spike(step=1, seed=0, value=0.01, ratio=9.0),
            "reward_start": 0.3, "reward_best": 0.7, "reward_end": 0.69, "reward_plateau_step": 45, "all_fail_start": 0.3,
            "all_fail_end": 0.1, "format_valid_start": 0.8, "format_valid_end": 0.97, "length_start": 10.0, "length_end": 11.0,
            "truncated_start": 0.05, "truncated_end": 0.02, "clip_fraction_mean": 0.05, "clip_fraction_end": 0.05,
        }
    )  # fmt: skip
    assert diagnose(healthy) == ()
    assert diagnose(CALM) == ()


def test_every_diagnosis_can_be_answered_from_the_catalogue() -> None:
    answered = {code for slot in SLOTS.values() for choice in slot.choices for code in choice.answers}
    assert set(DIAGNOSES) <= answered | {"entropy_explosion"}
    assert set(LABELS) == set(RUN_METRICS)
    for code, rule in DIAGNOSES.items():
        assert any(code in choice.answers for slot in rule.slots for choice in SLOTS[slot].choices), code


def run(entropy: float, steps: int = 20) -> list[Mapping[str, float]]:
    return [{"step": s, "entropy": entropy, "reward_mean": 0.3 + 0.01 * s, "kl": 0.01} for s in range(steps)]


def evidence(delta: Interval | None, **changes: object) -> ReflectionEvidence:
    proposal = Proposal(
        name="EB",
        hypothesis="h",
        mechanism_change="entropy: none -> bonus",
        expectations=(
            Expectation(metric="entropy_end", direction="increase", why="w"),
            Expectation(metric="kl_end", direction="decrease", why="w"),
            Expectation(metric="truncated_end", direction="decrease", why="w"),
            Expectation(metric="hard", direction="increase", why="w"),
            Expectation(metric="easy", direction="increase", why="w"),
            Expectation(metric="Overall", direction="increase", why="w"),
        ),
        parent_ids=("grpo-0",),
        direction="entropy",
        proposer="catalogue",
    )
    given: dict[str, object] = {
        "candidate": Measured(
            "eb-1",
            "EB",
            {0: run(0.50), 1: run(0.52), 2: run(0.51)},
            Interval(51.0, 49.0, 53.0, 3),
            GRPO.model_dump(mode="json"),
            proposal,
        ),
        "parent": Measured("grpo-0", "GRPO", {0: run(0.30), 1: run(0.31), 2: run(0.32)}),
        "overall_delta": delta,
        "benchmark_deltas": {"hard": Interval(-4.0, -6.0, -2.0, 3), "easy": Interval(1.0, -1.0, 3.0, 3)},
    }
    return ReflectionEvidence(**{**given, **changes})  # type: ignore[arg-type]


def test_expectations_are_judged_by_paired_intervals() -> None:
    reflection = RuleReflector().reflect(evidence(Interval(2.0, 0.5, 3.5, 3)))
    outcomes = {o.expectation.metric: o for o in reflection.expectations}
    assert {metric: o.outcome for metric, o in outcomes.items()} == {
        "entropy_end": "met",  # +0.20, +0.21, +0.19
        "kl_end": "undecidable",  # the same in every seed: a difference of exactly zero
        "truncated_end": "undecidable",  # not in the trajectories
        "hard": "not met",
        "easy": "undecidable",
        "Overall": "met",
    }
    assert "+0.2 (95 % interval +0.175 to +0.225, 3 seeds)" in outcomes["entropy_end"].text
    assert "no paired measurement" in outcomes["truncated_end"].text
    assert "does not exclude zero" in outcomes["easy"].text
    assert reflection.benchmarks_up == ()
    assert reflection.benchmarks_down == ("hard",)


def test_every_claim_carries_its_numbers_and_the_summary_its_verdict() -> None:
    better = RuleReflector().reflect(evidence(Interval(2.0, 0.5, 3.5, 3)))
    assert all(claim.supported for claim in better.claims)
    texts = [claim.text for claim in better.claims]
    assert any(text.startswith("hard (percent points) is lower than GRPO's: -4.00 (95 %") for text in texts)
    assert any("entropy at the end (nats) is higher than GRPO's" in text for text in texts)
    assert "Overall 51.00 (95 % interval 49.00 to 53.00, 3 seeds)" in better.summary
    assert "Against GRPO: +2.00 (95 % interval +0.50 to +3.50, 3 seeds), better." in better.summary
    assert better.try_next[0].startswith("Build on 'entropy: none -> bonus'")
    assert better.avoid == ()
    noise = RuleReflector().reflect(evidence(Interval(2.0, -0.5, 4.5, 3)))
    assert "not distinguishable" in noise.summary
    assert noise.avoid == ()
    worse = RuleReflector().reflect(evidence(Interval(-3.0, -5.0, -1.0, 3)))
    assert worse.avoid == ("'entropy: none -> bonus' on GRPO: Overall -3.00 (95 % interval -5.00 to -1.00, 3 seeds).",)


def test_advice_names_answers_that_the_candidate_does_not_have() -> None:
    falling: list[Mapping[str, float]] = [{"step": s, "entropy": 0.5 - 0.02 * s} for s in range(25)]
    with_clip = GRPO.with_choices({"clip": "higher"}).model_dump(mode="json")
    candidate = Measured("x-1", "X", {0: falling}, composition=with_clip)
    reflection = RuleReflector(suggestions=20).reflect(ReflectionEvidence(candidate))
    assert [d.code for d in reflection.diagnoses] == ["entropy_collapse"]
    assert len(reflection.try_next) == 1
    assert "entropy=bonus" in reflection.try_next[0]
    assert "clip=detached_weight" in reflection.try_next[0]
    assert "clip=higher" not in reflection.try_next[0]
    short = RuleReflector(suggestions=1).reflect(ReflectionEvidence(candidate)).try_next[0]
    assert short.count("=") == 1


def test_a_failed_candidate_teaches_what_to_avoid() -> None:
    failed = evidence(
        None,
        failure={"kind": "diverged", "stage": "train", "message": "loss is NaN at step 7"},
        benchmark_deltas={},
    )
    reflection = RuleReflector().reflect(failed)
    assert reflection.summary == "EB was not evaluated: diverged at train: loss is NaN at step 7"
    assert reflection.avoid == ("'entropy: none -> bonus' on GRPO: diverged: loss is NaN at step 7",)


def test_the_baseline_reflects_without_a_parent_and_nothing_at_all_without_data() -> None:
    root = RuleReflector().reflect(ReflectionEvidence(Measured("grpo-0", "GRPO", {0: run(0.3)})))
    assert root.parent_id is None
    assert root.expectations == ()
    empty = RuleReflector().reflect(ReflectionEvidence(Measured("x", "X")))
    assert empty.digest is None
    assert empty.claims == ()


def test_one_seed_decides_nothing() -> None:
    one = evidence(Interval(9.0, -math.inf, math.inf, 1))
    outcome = RuleReflector().reflect(one).expectations[-1]
    assert outcome.outcome == "undecidable"
    assert "+9.00 (no interval: 1 seed)" in outcome.text


def test_reflection_survives_json_and_prints_as_text() -> None:
    reflection = RuleReflector().reflect(evidence(Interval(2.0, 0.5, 3.5, 3)))
    assert Reflection.model_validate_json(reflection.model_dump_json()) == reflection
    text = reflection.as_text()
    assert "## Expectations\n- met: entropy at the end (nats) was to increase" in text
    assert RuleReflector().reflect(evidence(Interval(2.0, 0.5, 3.5, 3))) == reflection


def test_spell_interval() -> None:
    assert spell_interval(Interval(1.2, -0.4, 2.8, 3)) == "+1.20 (95 % interval -0.40 to +2.80, 3 seeds)"
