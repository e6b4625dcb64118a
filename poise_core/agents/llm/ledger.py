"""What every call cost, and the caps that are checked before the next one. The archive's table ``calls`` is the ledger.

A row is written with the call, holds request and reply, and is keyed by the request: the same request for the same child
slot is answered from the row. So a resumed run pays for no call twice, and a recorded run can be replayed.
"""

from __future__ import annotations

import datetime as dt
import math
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from poise_core.agents.llm.faults import AgentsUnusable, CallFailed, Outcome
from poise_core.archive import Archive
from poise_core.config.agents import AgentSettings, Cap, Price
from poise_core.failures import Cancelled


def price_table(settings: AgentSettings) -> dict[str, Price]:
    """Model -> price: the shipped table with the user's entries over it."""
    text = (resources.files("poise_core") / "agents" / "llm" / "prices.yaml").read_text(encoding="utf-8")
    shipped = {model: Price.model_validate(price) for model, price in yaml.safe_load(text).items()}
    return {**shipped, **settings.prices}


def cost(price: Price | None, input_tokens: int, output_tokens: int) -> float | None:
    """US dollars; None where the model has no price."""
    if price is None:
        return None
    return (input_tokens * price.input + output_tokens * price.output) / 1e6


@dataclass(frozen=True)
class Spent:
    """Sums over calls."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    dollars: float = 0.0
    unpriced: int = 0  # calls of models without a price
    seconds: float = 0.0  # of waiting for answers

    @property
    def tokens(self) -> int:
        """Input and output."""
        return self.input_tokens + self.output_tokens

    def plus(self, other: Spent) -> Spent:
        """The sum."""
        return Spent(
            self.calls + other.calls,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.dollars + other.dollars,
            self.unpriced + other.unpriced,
            self.seconds + other.seconds,
        )

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Spent:
        """One row of ``calls``; what was not sent counts nothing."""
        if row["outcome"] == Outcome.BUDGET:
            return cls()
        dollars = row["dollars"]
        return cls(1, row["input_tokens"], row["output_tokens"], dollars or 0.0, int(dollars is None), row["seconds"])


@dataclass
class Allowance:
    """A cost budget, for the calls made after a moment. Where a call could pass a cap of the settings, its role answers without
    the model; where it could pass this budget, the run stops and can go on later."""

    dollars: float
    since: dt.datetime  # with a time zone; calls made before that are not counted
    refused: bool = False  # whether a call was not made because of it


class Ledger:
    """The calls of one run; safe for several threads."""

    def __init__(self, archive: Archive, settings: AgentSettings, allowance: Allowance | None = None) -> None:
        self.archive = archive
        self._allowance = allowance
        self._sitting = Spent()  # what counts against the cost budget
        self.prices = price_table(settings)
        self._caps = settings.caps
        self._lock = threading.Lock()
        self._spent: dict[int, Spent] = {}  # by generation
        self._reserved: dict[int, Spent] = {}
        self._unwritten: dict[str, dict[str, Any]] = {}  # calls that were paid while the archive could not be written
        for row in archive.rows("calls"):
            self._count(row)

    def spent(self, generation: int | None = None) -> Spent:
        """What was spent in a generation, or in the run."""
        with self._lock:
            return self._sum(self._spent, generation)

    @contextmanager
    def reserved(self, model: str, generation: int, input_tokens: int, output_tokens: int) -> Iterator[None]:
        """Hold what a call may cost at most while it is made, so that calls side by side cannot pass a cap together.

        Raises:
            CallFailed: BUDGET, naming the cap that the call could pass.
            Cancelled: the call could cost more than is left of the cost budget.
            AgentsUnusable: there is a cost budget, and the model has no price.
        """
        dollars = cost(self.prices.get(model), input_tokens, output_tokens)
        most = Spent(1, input_tokens, output_tokens, dollars or 0.0)
        with self._lock:
            self._check_allowance(model, dollars)
            for name, cap, spent in (
                ("generation", self._caps.generation, self._total(generation)),
                ("run", self._caps.run, self._total(None)),
            ):
                self._check(f"agents.caps.{name}", cap, spent.plus(most), model, dollars is None)
            self._reserved[generation] = self._reserved.get(generation, Spent()).plus(most)
        try:
            yield
        finally:
            with self._lock:
                held = self._reserved[generation]
                self._reserved[generation] = held.plus(
                    Spent(-most.calls, -most.input_tokens, -most.output_tokens, -most.dollars)
                )

    def seconds_left(self, generation: int) -> float:
        """How long a call of this generation may take by the caps; infinite where none limits it."""
        with self._lock:
            return min(
                math.inf if cap.seconds is None else max(0.0, cap.seconds - self._sum(self._spent, period).seconds)
                for cap, period in ((self._caps.generation, generation), (self._caps.run, None))
            )

    def find(self, call_id: str) -> dict[str, Any] | None:
        """The row of a call.

        Raises:
            ArchiveError: it was paid and still cannot be archived; asking again would pay it twice.
        """
        if unwritten := self._unwritten.get(call_id):
            self.write(unwritten)
        if not self.archive.contains("calls", call_id=call_id):
            return None
        (row,) = self.archive.rows("calls", call_id=call_id)
        return dict[str, Any](row)

    def write(self, row: dict[str, Any]) -> None:
        """Archive a call, before its answer is used.

        Raises:
            ArchiveError: it cannot be written now; it is kept in memory, and written when ``find`` looks for it.
        """
        self._unwritten[row["call_id"]] = row
        written = self.archive.append("calls", [row], keep_existing=True)
        del self._unwritten[row["call_id"]]
        if written:
            with self._lock:
                self._count(row)

    def _check_allowance(self, model: str, dollars: float | None) -> None:
        if self._allowance is None:
            return
        if dollars is None:
            raise AgentsUnusable(f"a budget in dollars is set and {model} has no price; give one in agents.prices")
        spent = self._sitting.dollars + self._sum(self._reserved, None).dollars
        if spent + dollars > self._allowance.dollars:
            self._allowance.refused = True
            raise Cancelled(
                f"the cost budget of {self._allowance.dollars:g} dollars: {spent:.4f} are spent, and the next call may cost "
                f"{dollars:.4f}"
            )

    def _count(self, row: Mapping[str, Any]) -> None:
        if self._allowance is not None and row.get("created_at", self._allowance.since) >= self._allowance.since:
            self._sitting = self._sitting.plus(Spent.of_row(row))
        generation = row["generation"]
        self._spent[generation] = self._spent.get(generation, Spent()).plus(Spent.of_row(row))

    def _total(self, generation: int | None) -> Spent:
        return self._sum(self._spent, generation).plus(self._sum(self._reserved, generation))

    @staticmethod
    def _sum(parts: Mapping[int, Spent], generation: int | None) -> Spent:
        total = Spent()
        for number, spent in parts.items():
            if generation in (None, number):
                total = total.plus(spent)
        return total

    @staticmethod
    def _check(name: str, cap: Cap, after: Spent, model: str, unpriced: bool) -> None:
        if cap.dollars is not None and unpriced:
            raise CallFailed(
                Outcome.BUDGET, f"{name}.dollars is set and {model} has no price; give one in agents.prices"
            )
        for unit, limit, value in (
            ("dollars", cap.dollars, after.dollars),
            ("calls", cap.calls, after.calls),
            ("tokens", cap.tokens, after.tokens),
            ("seconds", cap.seconds, after.seconds),
        ):
            if limit is not None and value > limit:
                raise CallFailed(Outcome.BUDGET, f"{name}.{unit} is {limit:g} and the call could bring it to {value:g}")


def failures_of(rows: Iterable[Mapping[str, Any]]) -> str:
    """One line on the calls in these rows of ``calls`` that got no usable answer, with the first reason; "" where all did.

    A server that wants something otherwise, and then answers, has not failed; a call that a cap has forbidden was not made.
    """
    calls = sorted(rows, key=lambda row: row["created_at"])
    answered = {(row["scope"], row["role"]) for row in calls if row["outcome"] == Outcome.OK}
    failed = [
        row
        for row in calls
        if row["outcome"] not in (Outcome.OK, Outcome.BUDGET)
        and (row["outcome"] != Outcome.UNSUPPORTED or (row["scope"], row["role"]) not in answered)
    ]
    if not failed:
        return ""
    first = failed[0]
    nothing = "" if answered else "; the catalogue and the rules worked in its place"
    reason = f"{first['outcome']}: {first['message']}"
    return f"{len(failed)} of {len(calls)} calls to the language model failed{nothing}; the first: {reason}"
