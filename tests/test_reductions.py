"""Reductions over groups and masks against loops, and by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from poise_core.contract import LOSS_AGGREGATIONS
from poise_core.reductions import (
    aggregate_loss,
    group_count,
    group_max,
    group_mean,
    group_min,
    group_quantile,
    group_rank,
    group_std,
    group_sum,
    log_ratio,
    masked_mean,
    masked_sum,
    sequence_lengths,
    to_tokens,
)

GROUPS = torch.tensor([70, -1, 70, 5, -1, 70])
VALUES = torch.tensor([1.0, 10.0, 2.0, -4.0, 30.0, 6.0])
NAN = float("nan")


def test_group_statistics_by_hand() -> None:
    # group 70: 1 2 6; group -1: 10 30; group 5: -4
    assert group_sum(VALUES, GROUPS).tolist() == [9, 40, 9, -4, 40, 9]
    assert group_count(GROUPS).tolist() == [3, 2, 3, 1, 2, 3]
    assert group_mean(VALUES, GROUPS).tolist() == [3, 20, 3, -4, 20, 3]
    assert group_max(VALUES, GROUPS).tolist() == [6, 30, 6, -4, 30, 6]
    assert group_min(VALUES, GROUPS).tolist() == [1, 10, 1, -4, 10, 1]
    # squares around 3: 4 + 1 + 9 = 14; / 2 = 7; around 20: 100 + 100 = 200; / 1 = 200; one member: 0
    expected = torch.tensor([7.0, 200.0, 7.0, 0.0, 200.0, 7.0]).sqrt()
    torch.testing.assert_close(group_std(VALUES, GROUPS), expected)
    # population: 14 / 3 and 200 / 2
    expected = torch.tensor([14 / 3, 100.0, 14 / 3, 0.0, 100.0, 14 / 3]).sqrt()
    torch.testing.assert_close(group_std(VALUES, GROUPS, correction=0), expected)
    # the middle between the lowest two of 1 2 6 lies at 0.25 * (3 - 1) = 0.5, so 1.5; for 10 30 at 0.25, so 15
    assert group_quantile(VALUES, GROUPS, 0.25).tolist() == [1.5, 15, 1.5, -4, 15, 1.5]


def test_group_rank_by_hand() -> None:
    # group 70: 1 2 6 rank 0 1 2; group -1: 10 30; group 5 alone
    assert group_rank(VALUES, GROUPS).tolist() == [0, 0, 1, 0, 1, 2]
    assert group_rank(-VALUES, GROUPS).tolist() == [2, 1, 1, 0, 0, 0]
    # one right of four: the three wrong ones share (0 + 1 + 2) / 3 = 1; of the other group two share 0.5 and two 2.5
    groups = torch.tensor([4, 9, 4, 9, 4, 9, 4, 9])
    right = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0])
    assert group_rank(right, groups).tolist() == [3, 2.5, 1, 0.5, 1, 2.5, 1, 0.5]
    # ties decided by other numbers: in group 4 by 3 2 1, in group 9 by 7 7, which share still, and by 0 1
    ties = torch.tensor([0.0, 1.0, 3.0, 7.0, 2.0, 0.0, 1.0, 7.0])
    assert group_rank(right, groups, ties=ties).tolist() == [3, 3, 2, 0.5, 1, 2, 0, 0.5]
    # the two that share 2.5 and 0.5 have places 2 3 and 0 1; the three that share 1 have 0 1 2
    assert group_rank(right, groups, reduce="amin").tolist() == [3, 2, 0, 0, 0, 2, 0, 0]
    assert group_rank(right, groups, reduce="amax").tolist() == [3, 3, 2, 1, 2, 3, 2, 1]
    assert group_rank(right, groups).dtype == torch.float32
    assert group_rank(torch.zeros(0), torch.zeros(0, dtype=torch.int64)).tolist() == []


def test_the_largest_and_smallest_of_a_group_are_kept_with_what_equals_them() -> None:
    groups = torch.zeros(4, dtype=torch.int64)

    def kept(values: list[float], k: int) -> tuple[list[bool], list[bool]]:
        given = torch.tensor(values)
        largest = group_rank(given, groups, reduce="amax") >= group_count(groups) - k
        return largest.tolist(), (group_rank(given, groups, reduce="amin") < k).tolist()

    # two largest: 1 and, of three equal ones, any; so all of them
    assert kept([1, 0, 0, 0], 2) == ([True] * 4, [False, True, True, True])
    assert kept([1, 0, 0, 0], 1) == ([True, False, False, False], [False, True, True, True])
    assert kept([0, 0, 0, 0], 2) == ([True] * 4, [True] * 4)
    assert kept([3, 2, 2, 0], 2) == ([True, True, True, False], [False, True, True, True])
    with pytest.raises(ValueError, match="reduce is 'max'; use 'mean', 'amin' or 'amax'"):
        group_rank(torch.zeros(4), groups, reduce="max")


def test_where_selects_members_and_nothing_else_matters() -> None:
    where = torch.tensor([True, False, True, False, False, False])
    spoiled = torch.where(where, VALUES, NAN)
    # group 70 keeps 1 2; the other groups keep none
    assert group_sum(spoiled, GROUPS, where).tolist() == [3, 0, 3, 0, 0, 3]
    assert group_count(GROUPS, where).tolist() == [2, 0, 2, 0, 0, 2]
    assert group_mean(spoiled, GROUPS, where, empty=-7.0).tolist() == [1.5, -7, 1.5, -7, -7, 1.5]
    assert group_max(spoiled, GROUPS, where, empty=9.0).tolist() == [2, 9, 2, 9, 9, 2]
    assert group_min(spoiled, GROUPS, where, empty=9.0).tolist() == [1, 9, 1, 9, 9, 1]
    std = math.sqrt(0.5)
    assert group_std(spoiled, GROUPS, where).tolist() == pytest.approx([std, 0, std, 0, 0, std])


def loop(function: Callable[[Tensor], Tensor], values: Tensor, groups: Tensor) -> Tensor:
    return torch.stack([function(values[groups == group]) for group in groups])


def sample_std(values: Tensor) -> Tensor:
    return values.std() if len(values) > 1 else torch.zeros((), dtype=values.dtype)


def rank_among(members: Tensor, value: Tensor) -> Tensor:
    return (members < value).sum() + ((members == value).sum() - 1) / 2


members = st.lists(
    st.tuples(st.integers(-(2**62), 2**62) | st.integers(0, 3), st.floats(-100, 100, width=32)), min_size=1, max_size=24
)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(members=members, q=st.floats(0, 1))
def test_group_statistics_equal_a_loop(members: list[tuple[int, float]], q: float) -> None:
    groups = torch.tensor([group for group, _ in members])
    values = torch.tensor([value for _, value in members], dtype=torch.float64)
    for found, expected in (
        (group_sum(values, groups), loop(torch.sum, values, groups)),
        (group_mean(values, groups), loop(torch.mean, values, groups)),
        (group_max(values, groups), loop(torch.amax, values, groups)),
        (group_min(values, groups), loop(torch.amin, values, groups)),
        (group_std(values, groups), loop(sample_std, values, groups)),
        (
            group_rank(values, groups),
            torch.stack([rank_among(values[groups == g], v) for g, v in zip(groups, values, strict=True)]),
        ),
        (group_quantile(values, groups, q), loop(lambda member: torch.quantile(member, q), values, groups)),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_group_quantile_refuses_a_share_outside_the_unit_interval() -> None:
    for q in (-0.01, 1.01, NAN):
        with pytest.raises(ValueError, match=r"q must lie in \[0, 1\]"):
            group_quantile(VALUES, GROUPS, q)


def test_masked_reductions_do_not_see_what_is_outside() -> None:
    mask = torch.tensor([[True, True, False], [False, False, False], [False, True, False]])
    values = torch.tensor([[1.0, 3.0, NAN], [NAN, NAN, NAN], [float("inf"), 5.0, NAN]])
    assert masked_sum(values, mask).item() == 9
    assert masked_mean(values, mask).item() == 3
    assert masked_sum(values, mask, dim=-1).tolist() == [4, 0, 5]
    assert masked_mean(values, mask, dim=-1).tolist() == [2, 0, 5]
    assert sequence_lengths(mask).tolist() == [2, 0, 1]
    assert sequence_lengths(mask).dtype == torch.float32
    assert masked_mean(values, torch.zeros_like(mask)).item() == 0


def test_to_tokens_repeats_each_number_along_its_row() -> None:
    mask = torch.ones(2, 3, dtype=torch.bool)
    assert to_tokens(torch.tensor([4.0, -1.0]), mask).tolist() == [[4, 4, 4], [-1, -1, -1]]


def test_log_ratio_is_bounded_and_shields_its_gradient() -> None:
    mask = torch.tensor([[True, True, True, False, False]])
    now = torch.tensor([[-1.0, 0.0, -90.0, NAN, -2.0]], requires_grad=True)
    old = torch.tensor([[-1.5, -90.0, 0.0, 0.0, float("-inf")]])
    found = log_ratio(now, old, mask)
    assert found.tolist() == [[0.5, 20.0, -20.0, 0.0, 0.0]]
    found.exp().sum().backward()
    assert now.grad is not None
    # exp(0.5) inside; nothing where the bound holds or outside the mask
    assert now.grad.tolist() == [[pytest.approx(math.exp(0.5)), 0.0, 0.0, 0.0, 0.0]]


# a completion of 3 tokens, one of 1, and one that does not train; the length limit is 5
LOSSES = torch.tensor([[1.0, 2.0, 6.0, NAN], [10.0, NAN, NAN, NAN], [NAN, NAN, NAN, NAN]])
MASK = torch.tensor([[True, True, True, False], [True, False, False, False], [False] * 4])


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("token-mean", 19 / 4),  # (1 + 2 + 6 + 10) over 4 tokens
        ("sequence-mean", (3 + 10) / 2),  # the means of two completions
        ("sequence-sum", 19 / (2 * 5)),  # over two completions of at most 5 tokens
    ],
)
def test_aggregate_loss_by_hand(aggregation: str, expected: float) -> None:
    assert aggregate_loss(LOSSES, MASK, aggregation, max_length=5).item() == pytest.approx(expected)


def test_sequence_sum_takes_the_width_where_no_limit_is_given() -> None:
    assert aggregate_loss(LOSSES, MASK, "sequence-sum").item() == pytest.approx(19 / (2 * 4))


@pytest.mark.parametrize("aggregation", LOSS_AGGREGATIONS)
def test_parts_add_up_under_global_counts(aggregation: str) -> None:
    def part(row: int) -> float:
        losses, mask = LOSSES[row : row + 1], MASK[row : row + 1]
        counts = {"token_count": torch.tensor(4), "sequence_count": torch.tensor(2.0)}
        return aggregate_loss(losses, mask, aggregation, max_length=5, **counts).item()

    whole = aggregate_loss(LOSSES, MASK, aggregation, max_length=5)
    assert sum(part(row) for row in range(3)) == pytest.approx(whole.item())


@pytest.mark.parametrize("aggregation", LOSS_AGGREGATIONS)
def test_aggregate_loss_of_nothing_is_zero_and_nan_outside_stays_outside(aggregation: str) -> None:
    losses = LOSSES.clone().requires_grad_()
    assert aggregate_loss(losses, torch.zeros_like(MASK), aggregation).item() == 0
    aggregate_loss(losses, MASK, aggregation).backward()
    assert losses.grad is not None
    assert torch.equal(losses.grad != 0, MASK)
    assert torch.isfinite(losses.grad).all()


def test_aggregate_loss_names_the_choices() -> None:
    with pytest.raises(ValueError, match="unknown aggregation 'mean'; use 'token-mean'"):
        aggregate_loss(LOSSES, MASK, "mean")
