"""An environment of our own: how much change do you get back? Prompts are ours, and so is the check of the answers.

A prompt reads ``50-17-8=``: paid 50, for things of 17 and 8. The shipped policies know digits, signs and ``=`` only; with another
policy a prompt can be any text.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from poise_core.environments import Outcome, Problem, Split, split_of

PROBLEMS = {
    "one-item": [
        Problem(prompt=f"{paid}-{a}=", answer=str(paid - a), kind="one-item")
        for paid in (20, 50, 99)
        for a in range(1, 20)
    ],
    "two-items": [
        Problem(prompt=f"{paid}-{a}-{b}=", answer=str(paid - a - b), kind="two-items")
        for paid in (20, 50, 99)
        for a in range(1, 10)
        for b in range(1, 10)
    ],
}
"""Kind -> all its problems. A list of your own stands here just as well, with one ``Problem`` per prompt."""


class ChangeEnvironment:
    """The three methods of ``poise_core.environments.base.Environment``."""

    name = "change"

    def problems(self, split: Split, kinds: Sequence[str], count: int, seed: str) -> list[Problem]:
        """``count`` distinct problems, kinds in turn; a prompt's hash decides on its split, so that no prompt is in two."""
        decks = {kind: [problem for problem in PROBLEMS[kind] if split_of(problem.prompt) == split] for kind in kinds}
        for kind, deck in decks.items():
            random.Random(f"{kind}/{seed}").shuffle(deck)
        turns = [kinds[i % len(kinds)] for i in range(count)]
        for kind in kinds:
            if turns.count(kind) > len(decks[kind]):
                raise ValueError(f"the {split} split has {len(decks[kind])} problems of the kind {kind}, not {count}")
        return [decks[kind].pop() for kind in turns]

    def pool_size(self, kind: str) -> int:
        """How many training problems there are."""
        return sum(split_of(problem.prompt) == "train" for problem in PROBLEMS[kind])

    def verify(self, problem: Problem, completion: str) -> Outcome:
        """The number after the last ``#`` counts; what has no such number is malformed."""
        match = re.fullmatch(r".*#(-?\d+)", completion)
        if match is None:
            return Outcome(correctness=0.0, format_valid=False)
        return Outcome(correctness=float(match.group(1) == problem.answer), format_valid=True)
