import random

import pytest

from poise_core.environments import Problem, get_environment, split_of
from poise_core.environments.arithmetic import ALPHABET, KINDS
from poise_core.testbed.demonstrations import demonstrate, scratchpad

ENVIRONMENT = get_environment("arithmetic")
PROBLEM = Problem(prompt="47+385=", answer="432", kind="add3")


@pytest.mark.parametrize(
    ("completion", "correctness", "valid"),
    [
        ("#432", 1.0, True),
        (":7+5=12#432", 1.0, True),
        ("#433", 0.0, True),
        ("#-432", 0.0, True),
        ("#0432", 0.0, True),  # another numeral is another answer
        ("432", 0.0, False),
        ("432#", 0.0, False),
        ("#432#", 0.0, False),
        ("#432.", 0.0, False),
        ("#", 0.0, False),
        (":7+5=12", 0.0, False),
        ("", 0.0, False),
        ("#432\n", 0.0, False),
    ],
)
def test_verdicts(completion: str, correctness: float, valid: bool) -> None:
    outcome = ENVIRONMENT.verify(PROBLEM, completion)
    assert (outcome.correctness, outcome.format_valid) == (correctness, valid)


@pytest.mark.parametrize(
    ("prompt", "steps"),
    [
        ("47+385=", "7+5=12,4+8+1=13,0+3+1=4"),
        ("503-47=", "3-7=-4,0-4-1=-5,5-0-1=4"),
        ("348*7=", "8*7=56,4*7+5=33,3*7+3=24"),
        ("67%7=", "9*7=63,67-63=4"),
        ("5-3+9=", "5-3=2,2+9=11"),
    ],
)
def test_scratchpads(prompt: str, steps: str) -> None:
    assert scratchpad(prompt) == steps


@pytest.mark.parametrize("kind", KINDS)
def test_problems_are_right_and_reproducible(kind: str) -> None:
    count = min(60, ENVIRONMENT.pool_size(kind) // 10)
    for split in ("train", "search", "report"):
        problems = ENVIRONMENT.problems(split, [kind], count, "s")
        assert problems == ENVIRONMENT.problems(split, [kind], count, "s")
        assert len({problem.prompt for problem in problems}) == count
        for problem in problems:
            assert split_of(problem.prompt) == split
            assert eval(problem.prompt.rstrip("=")) == int(problem.answer)
            assert set(problem.prompt + problem.answer) <= set(ALPHABET)


@pytest.mark.parametrize("kind", KINDS)
def test_pool_sizes_can_be_had(kind: str) -> None:
    assert len(ENVIRONMENT.problems("train", [kind], ENVIRONMENT.pool_size(kind), "demonstrations/1"))


def test_unknown_kind_and_exhausted_pool_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown kind of problem 'div'; .*add3"):
        ENVIRONMENT.problems("train", ["div"], 1, "s")
    with pytest.raises(ValueError, match="no 120 distinct problems of the kinds mod"):
        ENVIRONMENT.problems("report", ["mod"], 120, "s")


def test_demonstrations_behave_as_named() -> None:
    rng = random.Random(0)
    for _ in range(200):
        for behaviour, valid in (("direct", True), ("scratchpad", True), ("ramble", False), ("malformed", False)):
            outcome = ENVIRONMENT.verify(PROBLEM, demonstrate(PROBLEM, behaviour, 0.0, rng))
            assert outcome.format_valid is valid
            assert outcome.correctness == float(valid)
    slips = [ENVIRONMENT.verify(PROBLEM, demonstrate(PROBLEM, "direct", 1.0, rng)).correctness for _ in range(500)]
    assert 0.05 < sum(slips) / 500 < 0.16  # a slip draws the right digit one time in ten
    with pytest.raises(ValueError, match="unknown behaviour 'guess'"):
        demonstrate(PROBLEM, "guess", 0.0, rng)
