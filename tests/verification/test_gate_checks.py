"""Each check of the gate against broken candidates that it alone catches, and against sound ones."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
from collections.abc import Mapping, Sequence

import pytest
import torch
from gate_fixtures import (
    ADVANTAGE,
    BASE,
    BROKEN,
    COUNTS_COLUMNS_IN_THE_LOSS,
    MECHANISMS,
    RATIO,
    RETURN,
    UNMASKED,
    WITH_TUPLES,
    edited,
    in_a_fresh_process,
)

from poise_core.algorithms import algorithm_path, list_algorithms
from poise_core.candidate import budget
from poise_core.candidate.calls import ContractViolation
from poise_core.candidate.identity import program_digest
from poise_core.candidate.loading import load_candidate_source
from poise_core.candidate.switches import Switches
from poise_core.evidence.ablation import limits, moved_numbers
from poise_core.failures import FailureKind
from poise_core.verification.checks.interface import _numbers, check_interface
from poise_core.verification.drawn import Draw
from poise_core.verification.fingerprint import fingerprint, observe, same_behaviour, scenario
from poise_core.verification.gate import CHECKS, run_checks
from poise_core.verification.probes import START, Probe
from poise_core.verification.report import Conditions, VerificationReport

CASES = [(check, name) for check, variants in BROKEN.items() for name in variants]


@pytest.fixture(scope="module")
def archived() -> Mapping[str, str]:
    """Fingerprint -> id of two algorithms that are archived already."""
    return {run_checks(algorithm_path(name).read_text(), name).fingerprint: name for name in ("grpo", "rloo")}


@pytest.mark.slow
@pytest.mark.parametrize(("check", "name"), CASES, ids=[f"{check}-{name}" for check, name in CASES])
def test_only_this_check_catches_it(check: str, name: str, archived: Mapping[str, str]) -> None:
    source, phrase = BROKEN[check][name]
    report = run_checks(source, name, known_fingerprints=archived, keep_going=True)
    assert [result.name for result in report.failed] == [check], [f"{r.name}: {r.message}" for r in report.failed]
    assert phrase in report.failed[0].message
    assert not report.admitted
    assert report.failure == (FailureKind.DUPLICATE if check == "novelty" else FailureKind.REJECTED)


def test_every_check_has_two_broken_candidates_of_its_own() -> None:
    assert set(BROKEN) == {check.name for check in CHECKS}
    assert all(len(variants) >= 2 for variants in BROKEN.values())


def test_the_base_of_the_broken_candidates_is_sound(archived: Mapping[str, str]) -> None:
    report = run_checks(BASE, known_fingerprints=archived)
    assert report.admitted, report.message
    assert [result.name for result in report.checks] == [check.name for check in CHECKS]
    assert report.failure is None
    assert report.message == ""


@pytest.mark.parametrize("name", UNMASKED)
def test_the_zeros_outside_the_mask_can_be_relied_on(name: str) -> None:
    report = run_checks(UNMASKED[name], name)
    assert report.admitted, report.message


def test_columns_counted_in_the_loss_are_caught_by_padding_and_by_splitting() -> None:
    report = run_checks(COUNTS_COLUMNS_IN_THE_LOSS, keep_going=True)
    assert [result.name for result in report.failed] == ["padding", "micro-batches"]
    assert "more column of padding changes token_loss" in report.failed[0].message
    assert "splitting a step into single completions changes the total loss" in report.failed[1].message


@pytest.mark.slow
@pytest.mark.parametrize("name", list_algorithms())
def test_every_known_algorithm_is_admitted(name: str) -> None:
    report = run_checks(algorithm_path(name).read_text(), name)
    assert report.admitted, report.message
    assert report.duplicate_of is None
    assert report.nearest[0] == (name, 0.0)


def note_of(report: VerificationReport, check: str) -> str:
    return next(result.note for result in report.checks if result.name == check)


def test_the_padding_message_names_the_tensor_to_mask() -> None:
    likely = "    likely = inputs.logprobs.exp().sum(-1, keepdim=True).detach() * 0.01\n"
    weighted = "    return LossOutputs(token_loss=-surrogate * (1.0 + likely))\n"
    report = run_checks(edited((RATIO, RATIO + likely), (RETURN, weighted)), keep_going=True)
    padding = next(check for check in report.failed if check.name == "padding")
    assert "counts: write torch.where(inputs.mask, inputs.logprobs, 0.0) first" in padding.message
    batch = BROKEN["padding"]["counts_padding_as_certain_tokens"][0]
    assert "what stands in the padding of batch.old_logprobs counts" in run_checks(batch).message


LATE_TERM = edited(
    (MECHANISMS, 'MECHANISMS = {"late": {"late_coef": 0.0}}\n'),
    (
        "    clip_eps: float = 0.2\n",
        "    clip_eps: float = 0.2\n    late_coef: float = 0.1\n    from_step: int = 300\n",
    ),
    (
        RETURN,
        "    late = hp.late_coef if dynamics.step >= hp.from_step else 0.0\n"
        "    return LossOutputs(token_loss=late * inputs.logprobs - surrogate)\n",
    ),
)


def test_probes_reach_what_the_file_names_and_follow_the_training() -> None:
    """A mechanism that begins at step 300 is found; a training of 500 steps has it, one of 60 does not reach it."""
    base = run_checks(BASE)
    known = {base.fingerprint: "base"}
    long, short = (run_checks(LATE_TERM, known_fingerprints=known, conditions=Conditions(steps=n)) for n in (500, 60))
    assert long.admitted, (
        "the fingerprint is that of the base, because its batches do not show what happens at step 300"
    )
    assert long.duplicate_of is None
    assert "on its fingerprint's batches, which do not show late" in note_of(long, "novelty")
    assert short.failure is FailureKind.DUPLICATE, "in 60 steps it is the base"
    assert note_of(short, "switches").startswith("mechanism 'late' acts seldom: shown at step ")
    assert note_of(short, "switches").endswith("which this training does not reach")
    assert VerificationReport.from_json(long.to_json()).conditions == Conditions(steps=500)


def test_the_same_program_is_a_duplicate_where_its_fingerprint_hides_a_mechanism() -> None:
    archived = {program_digest(LATE_TERM): "late-1"}
    first = run_checks(LATE_TERM, conditions=Conditions(steps=500))
    known = {first.fingerprint: "late-1"}
    other = LATE_TERM.replace('"""', '"""In other words: ', 1) + "# and with a comment\n"
    again = run_checks(other, known_fingerprints=known, known_programs=archived, conditions=Conditions(steps=500))
    assert (again.failure, again.duplicate_of) == (FailureKind.DUPLICATE, "late-1")
    assert "it is the same program as late-1" in again.message
    moved = LATE_TERM.replace("late_coef: float = 0.1", "late_coef: float = 0.2")
    assert run_checks(
        moved, known_fingerprints=known, known_programs=archived, conditions=Conditions(steps=500)
    ).admitted


def test_a_factor_of_one_percent_is_seen_in_updates_of_ordinary_size() -> None:
    """As the page says: not where all advantages are a ten-thousandth, which a quantum of the hash and the train mask outweigh."""
    for size, seen in ((1.0, True), (0.01, True), (1e-4, False)):
        one, other = (
            fingerprint(
                observe(
                    load_candidate_source(edited((ADVANTAGE, f"{ADVANTAGE}    advantage = advantage * {by}\n")), "x")
                )
            )
            for by in (size, size * 1.01)
        )
        assert same_behaviour(one, other) is not seen


def test_a_mechanism_that_is_computed_and_not_used_is_refused() -> None:
    unused = LATE_TERM.replace("token_loss=late * inputs.logprobs - surrogate", "token_loss=-surrogate")
    report = run_checks(unused)
    assert [check.name for check in report.failed] == ["switches"]
    assert "no result depends on these hyperparameters" in report.message


@pytest.mark.slow
def test_a_method_that_needs_larger_groups_is_verified_with_those() -> None:
    """pass@8 says nothing of six completions; in a training with groups of eight it never learns, with sixteen it does."""
    eight = algorithm_path("pass_at_k").read_text().replace("k: float = 4.0", "k: float = 8.0")
    report = run_checks(eight)
    assert report.admitted, report.message
    assert "small groups do not train; the checks after this one have groups of" in note_of(report, "gradient")
    refused = run_checks(eight, conditions=Conditions(group_size=8))
    assert refused.message.startswith("gradient: groups with both")
    assert "do, those of this training have 8" in refused.message


FIRST_OF_EQUAL = edited(
    (
        ADVANTAGE,
        ADVANTAGE + "    place = torch.arange(batch.group_ids.shape[0])\n"
        "    same = batch.group_ids.unsqueeze(0) == batch.group_ids.unsqueeze(1)\n"
        "    same = same & (batch.correctness.unsqueeze(0) == batch.correctness.unsqueeze(1))\n"
        "    first = (same & (place.unsqueeze(0) < place.unsqueeze(1))).sum(-1) < 2\n",
    ),
    (
        "values=to_tokens(advantage, batch.completion_mask)",
        "values=to_tokens(advantage, batch.completion_mask), train_mask=batch.completion_mask & first.unsqueeze(-1)",
    ),
)


def test_order_may_choose_among_completions_with_one_outcome_and_nothing_else() -> None:
    report = run_checks(FIRST_OF_EQUAL)
    assert report.admitted, report.message
    assert "order decides which of several" in note_of(report, "order")
    # the first two of every group, whatever they are
    by_place = run_checks(
        FIRST_OF_EQUAL.replace("    same = same & (batch.correctness", "    other = same & (batch.correctness")
    )
    assert "order" in [check.name for check in by_place.failed]
    assert "group_rank(values, batch.group_ids, ties=...)" in by_place.message


def test_a_decisive_failure_ends_the_gate() -> None:
    report = run_checks(edited(('LOSS_AGGREGATION = "token-mean"', 'LOSS_AGGREGATION = "mean"')))
    assert [(result.name, result.passed) for result in report.checks] == [("language", True), ("interface", False)]
    assert "use one of token-mean, sequence-mean, sequence-sum" in report.message
    assert report.fingerprint == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("token_loss=-surrogate", "token_loss=-surrogate.mean()"), "token_loss is a float32 tensor of shape ()"),
        (("token_loss=-surrogate", "token_loss=-surrogate.double()"), "token_loss is a float64 tensor"),
        (("token_loss=-surrogate", 'token_loss=-surrogate, metrics={"ratio": ratio}'), "metric 'ratio' carries gradient"),
        (("values=to_tokens(advantage, batch.completion_mask)", "values=advantage"), "use to_tokens(...)"),
        (("values=to_tokens(advantage, batch.completion_mask)",
          "values=to_tokens(advantage, batch.completion_mask), train_mask=~batch.completion_mask"), "train_mask is True outside"),
        (("values=to_tokens(advantage, batch.completion_mask)",
          'values=to_tokens(advantage, batch.completion_mask), carry={"mean": advantage.mean()}'), "Advantages.carry['mean']"),
        (("ratio.clamp(1.0", "ratios.clamp(1.0"), "ratios is not defined above this line"),
        (("ratio * inputs.advantages, clipped", "ratio @ inputs.advantages, clipped"), "line 27 of the candidate"),
        (("    return Advantages(values=to_tokens(advantage, batch.completion_mask))\n", "    advantage = advantage + 1.0\n"),
         "compute_advantages returns None; return Advantages"),
    ],
)  # fmt: skip
def test_messages_tell_the_author_what_to_change(change: tuple[str, str], message: str) -> None:
    report = run_checks(edited(change))
    assert not report.admitted
    assert message in report.message


@pytest.mark.slow
def test_tuples_of_hyperparameters_and_switches_that_set_them_are_admitted() -> None:
    report = run_checks(WITH_TUPLES)
    assert report.admitted, report.message
    assert not any(check.note for check in report.checks), "both switches show on ordinary probes"
    switches = Switches.of(WITH_TUPLES)
    off = switches.without(["weights"])
    assert off is not None
    assert off.numbers == {"weights": (0.0,)}
    assert off.source == WITH_TUPLES.replace("(-0.05, 0.02)", "(0.0,)").replace(
        '{"clip": {"clip": (1.0, 1e6)}, "weights": {"weights": (0.0,)}}',
        "{\n    'clip': {'clip': (1.0, 1000000.0)},\n}",
    )
    assert switches.with_numbers({"clip": (0.1, 0.3)}) == WITH_TUPLES.replace("(0.2, 0.28)", "(0.1, 0.3)")
    assert moved_numbers(switches, (2.0,)) == [], "numbers of a tuple are not moved one at a time"
    alone = "MECHANISMS = {}\n\n\nclass Hyperparameters:\n    x: tuple[float, ...] = (1.0,)\n"
    assert "it has no numbers outside tuples, which are left alone" in limits(Switches.of(alone))


SWITCHED = edited(
    (
        "    clip_eps: float = 0.2\n",
        "    clip_eps: float = 0.2\n    flag: bool = True\n    mode: str = 'a'\n    size: int = 2\n",
    ),
    (MECHANISMS, 'MECHANISMS = {"m": {"flag": False}}\n'),
)


@pytest.mark.parametrize(
    ("override", "fits"),
    [
        ('"flag": False', True), ('"flag": "off"', False), ('"flag": 0', False), ('"flag": None', False),
        ('"clip_eps": 1', True), ('"clip_eps": False', False), ('"clip_eps": None', False), ('"clip_eps": [1]', False),
        ('"clip_eps": "1"', False), ('"clip_eps": 1e999', False), ('"clip_eps": (1.0,)', False),
        ('"mode": "b"', True), ('"mode": True', False), ('"mode": 1.0', False), ('"size": 1.5', True), ('"size": True', False),
    ],
)  # fmt: skip
def test_a_switch_sets_what_the_default_is(override: str, fits: bool) -> None:
    candidate = load_candidate_source(SWITCHED.replace('"flag": False', override), "switched")
    if fits:
        check_interface(candidate)
    else:
        with pytest.raises(ContractViolation, match=r"use the same type|use a finite number"):
            check_interface(candidate)


def test_probes_reach_the_numbers_of_a_tuple() -> None:
    candidate = load_candidate_source(WITH_TUPLES, "tuples").with_overrides(clip=(300.0, 400.0))
    assert _numbers(candidate)[:4] == [300.0, 400.0, -0.05, 0.02]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("(1.0, 1e6)", "1e6"),
            "MECHANISMS['clip'] sets clip to 1000000.0, but its default is (0.2, 0.28); use the same type",
        ),
        (("(1.0, 1e6)", "[1.0, 1e6]"), "use the same type"),
        (("(1.0, 1e6)", "(1.0, 1e6, 0.0)"), "MECHANISMS['clip']: clip is set to 3 numbers, but has 2"),
        (("(1.0, 1e6)", "(1.0, 1e999)"), "MECHANISMS['clip']: clip holds inf; use a finite number"),
        (("(1.0, 1e6)", "(1.0, 'a')"), "MECHANISMS['clip']: clip holds a str"),
        (("(1.0, 1e6)", "(0.2, 0.28)"), "changes nothing: these are the defaults"),
        (('"weights": (0.0,)', '"weights": ()'), "MECHANISMS['weights']: weights has 0 numbers; a tuple has one to 8"),
        (('"weights": (0.0,)', '"weights": ((0.0,),)'), "MECHANISMS['weights']: weights holds a tuple"),
    ],
)
def test_a_switch_on_a_tuple_sets_another_tuple(change: tuple[str, str], message: str) -> None:
    old, new = change
    assert WITH_TUPLES.count(old) == 1
    assert message in run_checks(WITH_TUPLES.replace(old, new)).message


@pytest.mark.parametrize(
    ("default", "message"),
    [
        ("(0.2, (0.28,))", "Hyperparameters.clip holds a tuple; a tuple holds bools, ints and floats alone"),
        ("(0.2, float('nan'))", "Hyperparameters.clip holds nan; use a finite number"),
        ("(0.2,) * 9", "Hyperparameters.clip has 9 numbers; a tuple has one to 8"),
    ],
)
def test_the_interface_looks_at_tuples_without_the_language(default: str, message: str) -> None:
    candidate = load_candidate_source(WITH_TUPLES.replace("(0.2, 0.28)", default), "tuples")
    with pytest.raises(ContractViolation, match=re.escape(message)):
        check_interface(candidate)


@pytest.mark.slow
def test_a_copy_of_a_known_algorithm_is_named_before_it_is_archived() -> None:
    """Rediscovering an algorithm that no run has measured yet is worth a training, but not a surprise."""
    report = run_checks(BROKEN["novelty"]["grpo_in_other_words"][0])
    assert report.admitted
    assert report.duplicate_of == "grpo"
    assert report.nearest[0][0] == "grpo"
    assert report.nearest[0][1] < 1e-6


@pytest.mark.slow
def test_a_different_hyperparameter_is_not_a_duplicate_but_near() -> None:
    grpo = algorithm_path("grpo").read_text()
    report = run_checks(grpo.replace("kl_coef: float = 0.01", "kl_coef: float = 0.0101"))
    assert report.admitted
    assert report.duplicate_of is None
    assert report.nearest[0][0] == "grpo"
    assert 1e-5 < report.nearest[0][1] < 1e-2


CONTROLLER = """

def update_controller(state: dict[str, float], dynamics: Dynamics, hp: Hyperparameters) -> dict[str, float]:
    {body}
"""


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('return {"scale": 1.0 / dynamics.entropy}', "update_controller raises ZeroDivisionError"),
        ('return {"scale": dynamics.entropy > 1.0}', "map names to finite floats"),
        ("return dynamics.entropy", "update_controller returns a float; return a dict"),
        ('return {"scale": state.get("scale", 1.0) * 1e200}', "map names to finite floats"),
    ],
)
def test_controllers_are_checked(body: str, message: str) -> None:
    report = run_checks(BASE + CONTROLLER.format(body=body))
    assert not report.admitted
    assert message in report.message


def test_a_controller_whose_names_multiply_is_refused() -> None:
    body = (
        'return {**{"%sL" % key: 1.0 for key in state.keys()}, **{"%sR" % key: 1.0 for key in state.keys()}, "k": 1.0}'
    )
    report = run_checks(BASE + CONTROLLER.replace("{body}", body), static=False)
    assert [result.name for result in report.failed] == ["direction"]
    assert "names of the kind controller value; at most 64 are allowed" in report.message


def test_a_call_without_end_is_no_rejection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kind says what to do: the limits of a run may be too tight for it, its code is not."""
    monkeypatch.setattr(budget, "CALL_SECONDS", 0.3)
    bomb = "    number = 1000000\n    for turn in range(60):\n        number = number * number\n"
    report = run_checks(edited((ADVANTAGE, bomb + ADVANTAGE)))
    assert report.failure is FailureKind.TIMED_OUT
    assert report.message.startswith("finite: compute_advantages takes longer than 0.3 seconds")


def test_a_controller_that_changes_its_state_argument_is_not_pure() -> None:
    body = 'scale = state\n    scale["scale"] = 0.5\n    return {"scale": 1.0}'
    report = run_checks(BASE + CONTROLLER.format(body=body), static=False)
    assert [result.name for result in report.failed] == ["pure"]
    assert "update_controller writes into state" in report.message


# ---- probes that are drawn


def numbers(probes: Sequence[Probe]) -> list[tuple[object, ...]]:
    """Shape, dynamics and every tensor of each probe, as values that can be compared."""
    found = []
    for probe in probes:
        tensors = [getattr(probe.batch, field.name) for field in dataclasses.fields(probe.batch)]
        values = [tuple(tensor.flatten().tolist()) for tensor in (*tensors, probe.logprobs, probe.entropies)]
        found.append((tuple(probe.logprobs.shape), dataclasses.astuple(probe.dynamics), *values))
    return found


@pytest.mark.slow
def test_a_thread_that_draws_random_numbers_now_and_then_is_not_the_candidate() -> None:
    """Prefect's client draws its pauses from Python's generator, also while the gate runs in the same process."""
    drawn: list[float] = []
    report = run_checks(BASE, on_check=lambda what: drawn.append(random.random()) if what == "pure" else None)
    assert drawn
    assert report.admitted, report.message


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("random.random()", "Python's random state"),
        pytest.param("torch.manual_seed(0)", "torch's random state", id="to the same state each time"),
        pytest.param("torch.set_num_threads(3)", "torch's number of threads", marks=pytest.mark.slow),
        pytest.param("torch.sinh = torch.cosh", "torch.sinh", marks=pytest.mark.slow),
    ],
)
def test_what_a_candidate_moves_itself_is_refused(line: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "sinh", torch.sinh)  # put back at the end
    threads = torch.get_num_threads()
    moves = edited((RATIO, f"{RATIO}    {line}\n"), ("import torch\n", "import random\n\nimport torch\n"))
    report = run_checks(moves, static=False)
    torch.set_num_threads(threads)
    assert [result.name for result in report.failed] == ["pure"]
    assert f"the candidate changes {what}" in report.message


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 16, 60, 500])
def test_no_probe_lies_beyond_the_last_step(steps: int) -> None:
    for seed in range(30):
        draw = Draw(seed, Conditions(steps=steps))
        found = [draw.middle("m"), draw.late("l"), draw.start("s"), *draw.states()]
        inside = [drawn() for is_inside, drawn in draw.reach((2.0, 3.0)) if is_inside] if seed == 0 else []
        found += [probe.dynamics for probe in inside]
        assert all(0 <= one.step < steps and 0.0 <= one.progress < 1.0 for one in found if one is not START)
    assert steps < 60 or Draw(3, Conditions(steps=steps)).late("l").step > 0.85 * steps, "otherwise it is as it was"


def test_nothing_of_a_drawn_probe_is_constant() -> None:
    """Over 40 verifications the floats differ, and of every probe that is not one by its kind shape and rewards vary."""
    draws = [numbers(Draw(seed).edge_probes()) for seed in range(40)]
    assert numbers(Draw(7).edge_probes()) == draws[7], "a seed repeats all of it"
    names = [probe.name for probe in Draw(0).edge_probes()]
    for index, name in enumerate(names):
        probes = [draw[index] for draw in draws]
        shapes, logprobs = {probe[0] for probe in probes}, [value for probe in probes for value in probe[-2]]
        assert len(shapes) >= (1 if "one token in all" in name else 3), name
        rounded = "bfloat16" in name
        assert rounded or len(set(logprobs)) > 0.95 * len(logprobs), name  # float32 numbers of one range meet by chance
        steps = {probe[1][0] for probe in probes}
        assert len(steps) > 20 or "first step" in name, name
    groups = [draw[0][5] for draw in draws]
    in_order = sum(list(ids) == sorted(ids) and set(ids) == set(range(len(set(ids)))) for ids in groups)
    assert 2 <= in_order <= 30, "some are laid out as the trainer's batches, most are not"


@pytest.mark.slow
def test_a_verdict_can_be_repeated_by_its_seed_and_seeds_are_not_repeated() -> None:
    reports = [run_checks(BASE, probe_seed=seed) for seed in (None, None, 12)]
    assert len({report.probe_seed for report in reports}) == 3
    assert reports[2].probe_seed == 12
    assert {report.fingerprint for report in reports} == {reports[0].fingerprint}, "it comes from batches of its own"
    assert VerificationReport.from_json(reports[0].to_json()) == reports[0]
    before = json.loads(reports[0].to_json())
    del before["probe_seed"]  # as reports are that were written before probes were drawn
    assert VerificationReport.from_json(json.dumps(before)).probe_seed is None


RECOGNIZED = {
    "by an exact number": "bool((batch.old_logprobs == @NUMBER@).any())",
    "by the first number": "bool(batch.old_logprobs[0, 0] == @NUMBER@)",
    "by its shape and label": "batch.old_logprobs.shape == (30, 12) and bool(batch.group_ids[0] == 7)",
}


@pytest.mark.slow
@pytest.mark.parametrize("how", RECOGNIZED)
def test_a_file_that_knows_the_fingerprints_batches_by_their_looks_is_refused(how: str) -> None:
    """It trains as the sound base does, and shows another fingerprint: a duplicate that no archive would notice."""
    number = float(scenario()[1].batch.old_logprobs[0, 0])
    knows = RECOGNIZED[how].replace("@NUMBER@", repr(number))
    source = edited(("    advantage = batch", f"    known = {knows}\n    advantage = (-1.0 if known else 1.0) * batch"))
    base, report = run_checks(BASE), run_checks(source)
    assert report.fingerprint != base.fingerprint
    assert [result.name for result in report.failed] == ["novelty"], report.message
    assert "when the batches of the fingerprint have another order" in report.message
    assert report.failure == FailureKind.REJECTED


def refused_by_a_draw(draws: int) -> list[str]:
    """Messages about shipped algorithms that the gate does not admit with the first so many seeds of probes."""
    return [
        f"{name}, --probe-seed {seed}: {report.message}"
        for seed in range(draws)
        for name in list_algorithms()
        if not (report := run_checks(algorithm_path(name).read_text(), name, probe_seed=seed)).admitted
    ]


@pytest.mark.exhaustive
@pytest.mark.timeout(7200)
def test_no_known_algorithm_is_refused_by_any_draw() -> None:
    """``POISE_DRAWS`` draws each, 4 by default: a check that refuses an honest file on one draw in a thousand is a bug."""
    assert in_a_fresh_process(refused_by_a_draw, int(os.environ.get("POISE_DRAWS", "4"))) == []
