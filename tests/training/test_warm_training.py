"""A training that is forked from the server against one in an interpreter of its own; and what is trained is what was admitted."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from training_jobs import assert_same, children, command_of, job_of, nothing_stays
from training_samples import REINFORCE

from poise_core.algorithms import algorithm_path
from poise_core.candidate.identity import source_digest
from poise_core.config import load_preset
from poise_core.evolution.trials import Trials
from poise_core.failures import InfrastructureError
from poise_core.run_directory import RunDirectory
from poise_core.sandbox import warm
from poise_core.training.launcher import TrainingJob, train_candidate

forked_only = pytest.mark.skipif(warm._has_accelerator(), reason="trainings are not forked where there is CUDA")


@pytest.mark.exhaustive
@forked_only
@pytest.mark.parametrize("threads", [1, 2])
def test_forked_and_fresh_trainings_agree_bit_for_bit(
    threads: int, tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm = algorithm_path("vm_av")
    seen: list[str] = []

    def look(seed: int, row: dict[str, float]) -> None:
        seen.extend(command_of(process) for process in psutil.Process(warm.server_pid()).children())

    forked = job_of(tiny_policy, tmp_path / "forked", algorithm, threads_per_process=threads)
    with nothing_stays(str(forked.folder)):
        found = train_candidate(forked, on_step=look)
    named = [
        line for line in seen if line and "poise_core.sandbox.forkserver" not in line
    ]  # not yet, or no longer, a training
    assert named
    assert all("poise_core.training.startup" in line and str(forked.folder) in line for line in named)

    monkeypatch.setenv("POISE_WARM", "0")
    expected = train_candidate(job_of(tiny_policy, tmp_path / "fresh", algorithm, threads_per_process=threads))
    assert_same(found, expected)


@pytest.mark.slow
@forked_only
def test_a_training_leaves_nothing_for_the_next(tiny_policy: Path, tmp_path: Path) -> None:
    """Modules, variables, hooks and files of the first are not there in the second."""
    spoil = (
        "\n\n__builtins__ = torch.__builtins__  # past the wall of built-ins, as a hostile file might get\n\n\n"
        "def _spoil():\n"
        "    import builtins, linecache, os, sys\n"
        "    own = sys.argv[2]  # the training loads its file twice, and may find what it has left itself\n"
        "    found = [getattr(builtins, 'spoiled', own), sys.modules.get('spoiled', own), os.environ.get('SPOILED', own)]\n"
        "    found += linecache.cache.get('spoiled', (own,))\n"
        "    found.append(open('/tmp/spoiled').read() if os.path.exists('/tmp/spoiled') else own)\n"
        "    if set(found) != {own} or torch.get_default_dtype() != torch.float32:\n"
        "        raise ValueError('something is left')\n"
        "    builtins.spoiled = sys.modules['spoiled'] = os.environ['SPOILED'] = own\n"
        "    linecache.cache['spoiled'] = (own,)\n"
        "    open('/tmp/spoiled', 'w').write(own)\n\n\n"
        "_spoil()\n"
    )
    server = None
    for name in ("first", "second"):
        train_candidate(job_of(tiny_policy, tmp_path / name, REINFORCE + spoil))
        assert warm.server_pid() is not None
        assert server in (None, warm.server_pid())
        server = warm.server_pid()
    assert not Path("/tmp/spoiled").exists()


@pytest.mark.exhaustive
def test_a_server_that_dies_takes_its_training_along_and_the_next_gets_another(
    tiny_policy: Path, tmp_path: Path
) -> None:
    if warm._has_accelerator():
        pytest.skip("trainings are not forked where there is CUDA")
    job = job_of(tiny_policy, tmp_path, REINFORCE)
    others = children()  # a server that another test of this worker has started
    killed: list[int] = []

    def kill(seed: int, row: dict[str, float]) -> None:
        if not killed:
            killed.append(warm.server_pid() or 0)
            psutil.Process(killed[0]).kill()

    with (
        nothing_stays(str(job.folder)),
        pytest.raises(InfrastructureError, match="forks candidates' processes has died"),
    ):
        train_candidate(job, on_step=kill)
    assert children() <= others
    (trained,) = train_candidate(job)
    assert len(trained.trajectory()) == 6
    assert warm.server_pid() not in (None, killed[0])


# ---- what is trained is what the gate admitted


def admitted(job: TrainingJob, digest: str) -> TrainingJob:
    return TrainingJob(**{**vars(job), "source_digest": digest})


@pytest.mark.slow
def test_a_file_that_was_changed_after_the_gate_is_not_trained(tiny_policy: Path, tmp_path: Path) -> None:
    """It is no failure of the candidate, whose text is another; with the admitted text the training goes on."""
    job = admitted(job_of(tiny_policy, tmp_path, REINFORCE), source_digest(REINFORCE))
    job.candidate_path.write_text(REINFORCE.replace("scale: float = 1.0", "scale: float = 2.0"))
    with pytest.raises(
        InfrastructureError, match=r"candidate\.py has changed since the gate admitted it; put the admitted"
    ):
        train_candidate(job)
    assert not (job.folder / "seed-0" / "trajectory.jsonl").exists()
    job.candidate_path.write_text(REINFORCE)
    (trained,) = train_candidate(job)
    assert len(trained.trajectory()) == 6


@pytest.mark.slow
def test_a_run_trains_and_files_what_its_gate_has_read(tmp_path: Path) -> None:
    """The gate's verdict and the training are of the same bytes, or there is neither."""
    preset = load_preset("smoke", ["search.seeds_per_candidate=1"])
    source = algorithm_path("grpo").read_text()
    with RunDirectory.open(tmp_path / "run", preset) as run:
        trials = Trials(run)
        subject = trials.register("changed", source, written_by="human", arm="manual")
        path = run.candidate_folder(subject.candidate_id) / "candidate.py"
        other = algorithm_path("rloo").read_text()
        path.write_text(other)
        with pytest.raises(InfrastructureError, match=r"candidate\.py is not the text that was registered as changed"):
            trials.verify(subject)
        assert run.archive.rows("verifications") == []
        path.write_text(source)
        trials.verify(subject)
        path.write_text(other)
        with pytest.raises(InfrastructureError, match="has changed since the gate admitted it"):
            trials.train(subject, (0,))
        assert run.archive.rows("failures") == []
        path.write_text(source)
        trials.train(subject, (0,))
        assert run.archive.rows("trajectories")
