"""Group-relative advantages at B = 4096 in groups of 8: the vectorized reductions against a loop over groups.

    python tests/benchmarks/bench_group_advantages.py

Prints the median time of each and their ratio; both are run in turn, and must agree, before anything is timed.
"""

import statistics
import time

import torch

from poise_core.reductions import group_mean, group_std

COMPLETIONS, GROUP_SIZE, ROUNDS = 4096, 8, 30


def vectorized(rewards: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    return (rewards - group_mean(rewards, groups)) / (group_std(rewards, groups) + 1e-4)


def loop(rewards: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    advantages = torch.empty_like(rewards)
    for group in groups.unique():
        members = groups == group
        own = rewards[members]
        advantages[members] = (own - own.mean()) / (own.std() + 1e-4)
    return advantages


def seconds(function, *arguments) -> float:
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand(COMPLETIONS, generator=generator)
    groups = torch.arange(COMPLETIONS // GROUP_SIZE).repeat_interleave(GROUP_SIZE)
    groups = groups[torch.randperm(COMPLETIONS, generator=generator)]
    torch.testing.assert_close(vectorized(rewards, groups), loop(rewards, groups), atol=1e-5, rtol=1e-5)
    pairs = [(seconds(vectorized, rewards, groups), seconds(loop, rewards, groups)) for _ in range(ROUNDS)]
    fast, slow = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    print(f"vectorized {1e3 * fast:.2f} ms, loop {1e3 * slow:.2f} ms, ratio {ratio:.1f} (median of {ROUNDS} pairs)")


if __name__ == "__main__":
    main()
