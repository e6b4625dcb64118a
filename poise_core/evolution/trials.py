"""Gate, training and evaluation of single candidates of a run, whether a person or the ladder asks for them.

Every method may be called again at any time, in this process or a later one: what is recorded is read back, what was
interrupted goes on where its files stand. A failure of the candidate is recorded once and raised again from the record.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from poise_core.evaluation.results import SeedEvaluation
from poise_core.evolution.health import HealthWatch
from poise_core.evolution.records import CandidateRef
from poise_core.evolution.run_context import RunContext
from poise_core.evolution.stages.evaluate import evaluate, evaluate_stopped
from poise_core.evolution.stages.train import train
from poise_core.evolution.stages.verify import verify
from poise_core.failures import Cancelled, InfrastructureError


class Trials(RunContext):
    """The three stages that measure one candidate, bound to one run; its arguments are those of ``RunContext``."""

    def verify(
        self, candidate: CandidateRef, *, must_be_new: bool = True, unseen: Collection[str] = frozenset()
    ) -> None:
        """Admit the candidate or refuse it; see ``poise_core.evolution.stages.verify.verify``."""
        verify(self, candidate, must_be_new=must_be_new, unseen=unseen)

    def train(
        self,
        candidate: CandidateRef,
        seeds: Sequence[int],
        *,
        pause_after: int | None = None,
        watch: HealthWatch | None = None,
    ) -> str | None:
        """Train the candidate with every seed; see ``poise_core.evolution.stages.train.train``."""
        return train(self, candidate, seeds, pause_after=pause_after, watch=watch)

    def evaluate(self, candidate: CandidateRef, seeds: Sequence[int]) -> list[SeedEvaluation]:
        """Score the trained policies; see ``poise_core.evolution.stages.evaluate.evaluate``."""
        return evaluate(self, candidate, seeds)

    def evaluate_stopped(self, candidate: CandidateRef, seed: int, steps: int) -> tuple[float, int] | None:
        """Score the policy at which a training was stopped; see ``poise_core.evolution.stages.evaluate.evaluate_stopped``."""
        return evaluate_stopped(self, candidate, seed, steps)

    def measure(self, candidate: CandidateRef, seeds: Sequence[int]) -> None:
        """Take the candidate through the gate, the training and the evaluation, where no flow does that.

        Faults of the machine are retried as ``resources.infrastructure_retries`` says.

        Raises:
            CandidateFailure: the candidate was refused or failed.
            InfrastructureError: the machine failed more often; the same call goes on.
            Cancelled: ``should_stop`` returned true.
        """
        for left in reversed(range(self.resources.infrastructure_retries + 1)):
            if self.should_stop():
                raise Cancelled("stopped")
            try:
                self.verify(candidate, must_be_new=False)
                self.train(candidate, seeds)
                self.evaluate(candidate, seeds)
                return
            except InfrastructureError:
                if not left:
                    raise
