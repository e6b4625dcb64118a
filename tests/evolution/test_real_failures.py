"""Candidates that slip through the gate and go wrong in a real training: a typed row each, and nothing left running."""

from pathlib import Path

import psutil
import pytest
from training_jobs import command_of

from poise_core.algorithms import algorithm_path
from poise_core.config import load_preset
from poise_core.evolution import Trials
from poise_core.failures import CandidateFailure
from poise_core.run_directory import RunDirectory

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

HEAD = "def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:\n"
CRASH = HEAD + "    if dynamics.step >= 2:\n        raise RuntimeError('boom at step 2')\n"
HANG = HEAD + "    while dynamics.step >= 2:\n        pass\n"
DIVERGE = (
    HEAD + "    inputs.logprobs.register_hook(lambda grad: grad * (float('nan') if dynamics.step >= 2 else 1.0))\n"
)


@pytest.mark.parametrize(
    ("sabotage", "kind", "says"),
    [
        (CRASH, "crashed", "boom at step 2"),
        pytest.param(DIVERGE, "diverged", "", marks=pytest.mark.exhaustive),
        pytest.param(HANG, "timed_out", "limit of", marks=pytest.mark.exhaustive),
    ],
)
def test_a_candidate_that_goes_wrong(tmp_path: Path, sabotage: str, kind: str, says: str) -> None:
    limit = 30 if kind == "timed_out" else 240
    preset = load_preset("smoke", [f"resources.train_timeout_seconds={limit}", "search.seeds_per_candidate=1"])
    source = algorithm_path("grpo").read_text().replace(HEAD, sabotage)
    assert sabotage in source
    with RunDirectory.open(tmp_path / "run", preset) as run:
        trials = Trials(run)
        candidate = trials.register("SABOTEUR", source, written_by="human", arm="manual")
        with pytest.raises(CandidateFailure) as raised:
            trials.train(candidate, (0,))
        assert str(raised.value.kind) == kind
        (row,) = run.archive.rows("failures")
        assert (row["kind"], row["stage"], row["name"]) == (kind, "train", "SABOTEUR")
        assert says in row["message"] + row["detail"]
        assert run.archive.rows("evaluations") == []
        assert len(run.archive.rows("trajectories")) == 2  # the steps before it went wrong
    left = [command_of(process) for process in psutil.Process().children(recursive=True)]
    assert not [command for command in left if "poise_core.training." in command]
