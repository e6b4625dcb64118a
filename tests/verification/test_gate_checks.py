"""Each check of the gate against broken candidates that it alone catches, and against sound ones."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from gate_fixtures import ADVANTAGE, BASE, BROKEN, COUNTS_COLUMNS_IN_THE_LOSS, UNMASKED, edited

from poise_core.algorithms import algorithm_path, list_algorithms
from poise_core.candidate import budget
from poise_core.failures import FailureKind
from poise_core.verification.gate import CHECKS, run_checks

CASES = [(check, name) for check, variants in BROKEN.items() for name in variants]


@pytest.fixture(scope="module")
def archived() -> Mapping[str, str]:
    """Fingerprint -> id of two algorithms that are archived already."""
    return {run_checks(algorithm_path(name).read_text(), name).fingerprint: name for name in ("grpo", "rloo")}


@pytest.mark.parametrize(("check", "name"), CASES, ids=[f"{check}-{name}" for check, name in CASES])
def test_only_this_check_catches_it(check: str, name: str, archived: Mapping[str, str]) -> None:
    source, phrase = BROKEN[check][name]
    for _ in range(3):  # a thread that an earlier test left behind may draw a random number meanwhile
        report = run_checks(source, name, known_fingerprints=archived, keep_going=True)
        if not any("Python's random state" in result.message for result in report.failed):
            break
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


@pytest.mark.parametrize("name", list_algorithms())
def test_every_known_algorithm_is_admitted(name: str) -> None:
    report = run_checks(algorithm_path(name).read_text(), name)
    assert report.admitted, report.message
    assert report.duplicate_of is None
    assert report.nearest[0] == (name, 0.0)


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


def test_a_copy_of_a_known_algorithm_is_named_before_it_is_archived() -> None:
    """Rediscovering an algorithm that no run has measured yet is worth a training, but not a surprise."""
    report = run_checks(BROKEN["novelty"]["grpo_in_other_words"][0])
    assert report.admitted
    assert report.duplicate_of == "grpo"
    assert report.nearest[0][0] == "grpo"
    assert report.nearest[0][1] < 1e-6


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
