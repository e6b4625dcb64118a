"""One process and two train to the same weights, under every ZeRO stage, with a group split between the processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from loopback import free_port
from safetensors.torch import load_file
from training_jobs import assert_same, job_of, nothing_stays
from training_samples import assert_weights_close, largest_move

from poise_core import heartbeat
from poise_core.algorithms import algorithm_path
from poise_core.cli.common import plain_errors
from poise_core.config import ResourceSpec
from poise_core.failures import Cancelled, InfrastructureError, NodeFault, NodeFaultKind
from poise_core.sandbox.command import NETWORK_NEEDED
from poise_core.sandbox.run import require_own_network
from poise_core.training import nodes, startup
from poise_core.training.job import NO_RENDEZVOUS, Meeting, TrainingJob
from poise_core.training.launcher import train_candidate

ALGORITHMS = ("grpo", "dapo", "gspo")  # sequence-mean, token-mean, sequence-level ratio
STAGES = (0, 1, 2, 3)


def run(
    processes: int, policy: Path, out: Path, stages: tuple[int, ...], algorithms: tuple[str, ...], *extra: str
) -> None:
    script = Path(__file__).parents[1] / "support" / "train_combinations.py"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    arguments = [str(policy), str(out), ",".join(algorithms), ",".join(map(str, stages)), *extra]
    done = subprocess.run([*torchrun, str(script), *arguments], capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def results(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("weights")
    run(1, tiny_policy, out, (0,), ALGORITHMS)
    run(2, tiny_policy, out, STAGES, ALGORITHMS)
    run(2, tiny_policy, out, STAGES, ("dapo",), "30")  # 30 tokens a forward pass: two or three sequences
    run(1, tiny_policy, out, (1,), ("grpo",), "bfloat16")
    run(2, tiny_policy, out, (1, 2, 3), ("grpo",), "bfloat16")
    return out


@pytest.mark.exhaustive
@pytest.mark.timeout(600)
@pytest.mark.xdist_group("processes")  # one run of each kind for all
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_two_processes_train_to_the_weights_of_one(
    results: Path, tiny_policy: Path, algorithm: str, stage: int
) -> None:
    one = load_file(results / f"{algorithm}-zero0-1.safetensors")
    two = load_file(results / f"{algorithm}-zero{stage}-2.safetensors")
    assert torch.equal(one.pop("trajectory/tokens"), two.pop("trajectory/tokens"))
    for name in [name for name in one if name.startswith("trajectory/")]:
        torch.testing.assert_close(two.pop(name), one.pop(name), atol=1e-6, rtol=1e-4)
    # sums run in another order: float32 round-off, grown by three steps of four updates of about 1e-3 each
    assert_weights_close(two, one, atol=2e-5)
    assert largest_move(one, tiny_policy) > 2e-3  # these are no policies that stood still


@pytest.mark.exhaustive
@pytest.mark.timeout(600)
@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("stage", STAGES)
def test_a_budget_of_tokens_changes_no_weight(results: Path, tiny_policy: Path, stage: int) -> None:
    """The processes have different numbers of parts before they are made equal; with ZeRO they would wait for ever."""
    one = load_file(results / "dapo-zero0-1.safetensors")
    two = load_file(results / f"dapo-zero{stage}-2-30.safetensors")
    assert torch.equal(one.pop("trajectory/tokens"), two.pop("trajectory/tokens"))
    for name in [name for name in one if name.startswith("trajectory/")]:
        torch.testing.assert_close(two.pop(name), one.pop(name), atol=1e-6, rtol=1e-4)
    assert_weights_close(two, one, atol=2e-5)


@pytest.mark.exhaustive
@pytest.mark.timeout(600)
@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("stage", STAGES[1:])
def test_bfloat16_trains_alike_under_every_stage(results: Path, stage: int) -> None:
    """Weights in bfloat16 are rounded float32 originals; by the order of sums they may differ in their last digit, 2^-8 of them."""
    one = load_file(results / "grpo-zero1-1-bfloat16.safetensors")
    two = load_file(results / f"grpo-zero{stage}-2-bfloat16.safetensors")
    first = [name for name in one if name.startswith("trajectory/")]
    for name in first:  # of the first step, before weights differ
        torch.testing.assert_close(two.pop(name)[0], one.pop(name)[0], atol=1e-4, rtol=2e-2, msg=name)
    moved = {name: value.float() for name, value in two.items()}
    assert_weights_close(moved, {name: value.float() for name, value in one.items()}, atol=2e-2)


DECODING = """
import torch
from poise_core.config import ResourceSpec
from poise_core.config.protocol import TrainingSpec
from poise_core.policies.libraries import leave
from poise_core.training.engine import Engine, start_processes
rank, _, device = start_processes(60)
torch.manual_seed(0)
model = torch.nn.Sequential(*(torch.nn.Linear(400, 400) for _ in range(2))).to(device)
plain = [parameter.detach().clone() for parameter in model.parameters()]
training = TrainingSpec(steps=1, prompts_per_step=2, group_size=2, learning_rate=1e-3, max_completion_length=8)
engine = Engine(model, training, ResourceSpec(zero_stage=3, micro_batch_size=2))
row = torch.ones(1, 400, device=device)
for _ in range(2):
    with engine.whole_model() as whole, torch.no_grad():
        for _ in range(3 + 3 * rank):  # each process as many steps as its longest completion
            found = whole(row)
        middle = torch.nn.functional.linear(row, *plain[:2])
        assert torch.allclose(found, torch.nn.functional.linear(middle, *plain[2:]), atol=1e-5)
        assert whole[0].weight.shape == (400, 400)
    assert model[0].weight.numel() == 0, "parted again"
    engine.backward(engine.model(row).sum(), last=True)
    assert engine.step() > 0
    with engine.whole_model() as whole:
        assert not torch.equal(whole[0].weight, plain[0])
        plain = [parameter.detach().clone() for parameter in whole.parameters()]
leave(0)
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_processes_may_decode_different_numbers_of_tokens_under_zero_3(tmp_path: Path) -> None:
    """Matrices of more than 1e5 numbers, below which DeepSpeed leaves them whole; its hooks part others in a forward pass."""
    script = tmp_path / "decode.py"
    script.write_text(DECODING)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*torchrun, str(script)], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]


# --- several nodes


RESOURCES = {"nodes": 2, "parallel_candidates": 1, "rendezvous": "127.0.0.1", "allow_shared_network": True}


def node(run: Path, rank: int, **resources: Any) -> subprocess.Popen[str]:
    """A node that serves: a process group of its own, as another machine would have."""
    code = (
        "import json, sys\nfrom pathlib import Path\nfrom poise_core.cli.common import plain_errors\n"
        "from poise_core.config import ResourceSpec\nfrom poise_core.training.nodes import take_part\n"
        "with plain_errors(): take_part(Path(sys.argv[1]), ResourceSpec(**json.loads(sys.argv[2])))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(run), json.dumps({**RESOURCES, **resources})],
        env={**os.environ, "POISE_NODE_RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@contextmanager
def leading(run: Path, monkeypatch: pytest.MonkeyPatch, **resources: Any) -> Iterator[ResourceSpec]:
    spec = ResourceSpec(**{**RESOURCES, **resources})
    monkeypatch.setenv("POISE_NODE_RANK", "0")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert not nodes.take_part(run, spec)
    try:
        yield spec
        nodes.end_leading(finished=True)  # as a command does that has done its work
    finally:
        nodes.end_leading()


@pytest.mark.exhaustive
@pytest.mark.timeout(600)
def test_two_nodes_train_to_the_weights_of_two_processes_on_one(
    tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 may be on either node, and all files of the training pass through the folder that they share."""
    algorithm = algorithm_path("vm_av")
    (one,) = train_candidate(job_of(tiny_policy, tmp_path / "one", algorithm, processes_per_training=2))
    run = tmp_path / "run"
    other = node(run, 1)
    with leading(run, monkeypatch):
        rows: list[float] = []
        job = job_of(tiny_policy, run / "first", algorithm, **RESOURCES)
        (two,) = train_candidate(job, on_step=lambda _, row: rows.append(row["step"]))
        (again,) = train_candidate(
            job_of(tiny_policy, run / "second", algorithm, **RESOURCES)
        )  # the same nodes serve on
    assert other.wait(60) == 0, other.communicate()[1]
    assert rows == [0, 1, 2, 3, 4, 5]
    assert_same([two], [one])
    assert_same([again], [one])
    assert (job.folder / "train-node-1.log").exists()
    assert "sharing the machine's was allowed" in two.confinement["network"]


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_a_node_that_dies_is_no_failure_of_the_candidate_and_the_training_goes_on_with_another(
    tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def longer(job: TrainingJob) -> TrainingJob:
        """It must not have ended when the row of its fourth step has been read, however busy this machine is."""
        training = job.protocol.training.model_copy(update={"steps": 30})
        return replace(job, protocol=job.protocol.model_copy(update={"training": training}))

    algorithm, run = algorithm_path("vm_av"), tmp_path / "run"
    (expected,) = train_candidate(longer(job_of(tiny_policy, tmp_path / "one", algorithm, processes_per_training=2)))
    other = node(run, 1)
    job = longer(job_of(tiny_policy, run, algorithm, **RESOURCES))

    def kill(_: int, row: dict[str, float]) -> None:
        if row["step"] == 3:
            os.killpg(other.pid, signal.SIGKILL)

    with leading(run, monkeypatch):
        with nothing_stays(str(job.folder)), pytest.raises(NodeFault) as died:
            train_candidate(job, on_step=kill)
        assert died.value.kind == NodeFaultKind.DIED
        other.wait()
        with socket.socket() as taken:  # a port of somebody else: the nodes see the folder and not each other
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            other = node(run, 1)
            place = f"127.0.0.1:{taken.getsockname()[1]}"
            unmet = replace(job, resources=job.resources.model_copy(update={"rendezvous": place}))
            with pytest.raises(NodeFault) as fault:
                train_candidate(unmet)
            assert fault.value.kind == NodeFaultKind.NO_RENDEZVOUS
        (found,) = train_candidate(job)
    assert other.wait(60) == 0, other.communicate()[1]
    assert_same([found], [expected])


@pytest.mark.exhaustive
@pytest.mark.timeout(600)
def test_the_same_command_on_two_nodes_trains_and_scores_one_candidate(tmp_path: Path) -> None:
    run, poise = tmp_path / "run", Path(sys.executable).with_name("poise")
    words = [
        "evaluate",
        str(algorithm_path("grpo")),
        "--preset",
        "smoke",
        "--seeds",
        "1",
        "--run-dir",
        str(run),
        "--json",
    ]
    words += ["--allow-shared-network", "--set", "protocol.training.steps=2", "--set", "resources.nodes=2"]
    words += ["--set", "resources.parallel_candidates=1", "--set", "resources.rendezvous=127.0.0.1"]
    started = [
        subprocess.Popen(
            [poise, *words],
            env={**os.environ, "POISE_NODE_RANK": rank, "GLOO_SOCKET_IFNAME": "lo"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("1", "0")
    ]
    (served, said), (result, trouble) = (one.communicate() for one in started)
    assert [one.returncode for one in started] == [0, 0], said + trouble
    assert json.loads(result)["overall"]["seeds"] == 1
    assert served == said == ""
    assert list(run.glob("candidates/*/train/train-node-1.log"))


@pytest.mark.exhaustive
def test_processes_that_wait_for_others_in_vain_end_in_time(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    meeting = Meeting(2, f"127.0.0.1:{free_port()}", "lonely", 0.5, hosts=True)
    assert startup.main(1, str(tmp_path / "none.json"), meeting) == NO_RENDEZVOUS
    assert "the nodes have not met" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("variables", "rank"),
    [
        ({"POISE_NODE_RANK": "1"}, 1),
        ({"SLURM_NODEID": "1", "SLURM_NNODES": "2"}, 1),
        ({"JOB_COMPLETION_INDEX": "0", "POISE_NODES": "2"}, 0),
        ({"POISE_NODE_RANK": "0", "SLURM_NODEID": "1", "SLURM_NNODES": "4"}, 0),  # ours wins
    ],
)
def test_a_node_finds_its_rank(variables: dict[str, str], rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _set(variables, monkeypatch)
    assert nodes.own_place(ResourceSpec(**RESOURCES)) == rank


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, "this node has no rank: set POISE_NODE_RANK"),
        ({"SLURM_NODEID": "1", "SLURM_NNODES": "4"}, "resources.nodes is 2 and SLURM_NNODES is 4"),
        ({"POISE_NODE_RANK": "2"}, "POISE_NODE_RANK is 2; it must be 0 to 1"),
        ({"JOB_COMPLETION_INDEX": "-1"}, "JOB_COMPLETION_INDEX is -1"),
    ],
)
def test_a_wrong_number_of_nodes_is_said(variables: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _set(variables, monkeypatch)
    with pytest.raises(NodeFault, match=said) as fault:
        nodes.own_place(ResourceSpec(**RESOURCES))
    assert fault.value.kind == NodeFaultKind.WRONG_COUNT


def _set(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("POISE_NODE_RANK", "POISE_NODES", "SLURM_NODEID", "SLURM_NNODES", "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(nodes, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(nodes, "TELL_SECONDS", 0.4)
    monkeypatch.setattr(nodes, "SILENT_SECONDS", 1.0)


def _both(run: Path, other: ResourceSpec, own: ResourceSpec, place: Path | None = None) -> list[NodeFault]:
    """What a node that serves and its leader raise."""
    raised: list[NodeFault] = []

    def serve() -> None:
        try:
            nodes._Follower((place or run) / nodes.FOLDER, 1, other).serve()
        except NodeFault as fault:
            raised.append(fault)

    thread = threading.Thread(target=serve)
    leader = nodes.Leader(run / nodes.FOLDER, own)
    thread.start()
    try:
        leader.await_nodes(None)
    except NodeFault as fault:
        raised.append(fault)
    finally:
        leader.end(finished=True)
        thread.join()
    return raised


@pytest.mark.usefixtures("hasty")
def test_nodes_meet_in_the_run_directory_whatever_an_earlier_run_has_left_there(tmp_path: Path) -> None:
    spec = ResourceSpec(**RESOURCES, rendezvous_seconds=5)
    for name in ("leader", "node-1"):
        path = tmp_path / nodes.FOLDER / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            json.dumps({"beat": 7, "run": "old", "open": False, "part": None, "fault": ["died", "long ago"]})
        )
    assert _both(tmp_path, spec, spec) == []


@pytest.mark.usefixtures("hasty")
def test_nodes_that_disagree_say_so_on_both_sides(tmp_path: Path) -> None:
    spec = ResourceSpec(**RESOURCES, rendezvous_seconds=5)
    faults = _both(tmp_path, spec.model_copy(update={"nodes": 3}), spec)
    assert [fault.kind for fault in faults] == [NodeFaultKind.WRONG_COUNT] * 2
    assert all("resources.nodes is 3 here and 2 where the run lives" in str(fault) for fault in faults)
    (tmp_path / "elsewhere").symlink_to(tmp_path)
    faults = _both(tmp_path, spec, spec, tmp_path / "elsewhere")
    assert [fault.kind for fault in faults] == [NodeFaultKind.NOT_SHARED] * 2


@pytest.mark.usefixtures("hasty")
def test_who_does_not_come_is_missed(tmp_path: Path) -> None:
    spec = ResourceSpec(**RESOURCES, rendezvous_seconds=0.2)
    leader = nodes.Leader(tmp_path / nodes.FOLDER, spec)
    with pytest.raises(NodeFault, match="node 1 of 2 did not report in") as fault:
        leader.await_nodes(None)
    assert fault.value.kind == NodeFaultKind.MISSING
    with pytest.raises(Cancelled):
        leader.await_nodes(lambda: True)
    leader.end()
    with pytest.raises(
        NodeFault, match="no leading node has written"
    ) as fault:  # another folder, as where it is not shared
        nodes._Follower(tmp_path / "other", 1, spec).serve()
    assert fault.value.kind == NodeFaultKind.NOT_SHARED


@pytest.mark.usefixtures("hasty")
def test_a_silent_leader_ends_the_nodes_that_serve_it(tmp_path: Path) -> None:
    spec = ResourceSpec(**RESOURCES, rendezvous_seconds=5)
    leader = nodes.Leader(tmp_path / nodes.FOLDER, spec)
    follower = nodes._Follower(tmp_path / nodes.FOLDER, 1, spec)
    follower._ear.hear()
    time.sleep(0.05)
    leader._voice._over.set()  # killed: it says nothing more
    with pytest.raises(NodeFault, match="the leading node has given no sign of life") as fault:
        follower.serve()
    assert fault.value.kind == NodeFaultKind.DIED


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("finished", [True, False])
def test_nodes_end_as_the_leaders_command_ends(finished: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler that starts the leader again must start them again, too."""
    ends: list[NodeFault | None] = []

    def serve() -> None:
        try:
            nodes._Follower((tmp_path / nodes.FOLDER).resolve(), 1, ResourceSpec(**RESOURCES)).serve()
            ends.append(None)
        except NodeFault as fault:
            ends.append(fault)

    thread = threading.Thread(target=serve)
    with leading(tmp_path, monkeypatch):
        thread.start()
        assert nodes._leader is not None
        nodes._leader.await_nodes(None)
        try:
            with plain_errors():
                if not finished:
                    raise InfrastructureError("the disk is full")
        except typer.Exit:
            nodes.end_leading()  # as when the process ends
        thread.join()
    (end,) = ends
    assert (end is None) == finished
    assert finished or "has ended without doing its work" in str(end)


def test_nodes_are_refused_where_they_would_be_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POISE_ALLOW_SHARED_NETWORK", raising=False)
    for wrong in ({"parallel_candidates": 2}, {"dispatch": "pool"}):
        with pytest.raises(ValueError, match="a training over several nodes has them for itself"):
            ResourceSpec(**{**RESOURCES, **wrong})
    job = job_of(tmp_path, tmp_path, "", **RESOURCES)
    with pytest.raises(NodeFault, match="this command leads no nodes"):
        nodes.current_leader(job.resources)
    needed = {"network": NETWORK_NEEDED}
    with pytest.raises(InfrastructureError, match=r"over several nodes is refused.*--allow-shared-network"):
        require_own_network(needed, "training")
    assert "sharing the machine's was allowed" in require_own_network(needed, "training", allowed=True)["network"]


def test_where_nodes_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert nodes.endpoint(ResourceSpec(rendezvous="a:1")) == "a:1"
    host, _, port = nodes.endpoint(ResourceSpec()).partition(":")
    assert host == socket.gethostname()
    assert 0 < int(port) < 2**16
    monkeypatch.setenv("MASTER_ADDR", "b")
    monkeypatch.setenv("MASTER_PORT", "2")
    assert nodes.endpoint(ResourceSpec()) == "b:2"
    assert nodes.endpoint(ResourceSpec(rendezvous="a")).startswith("a:")
    meeting = Meeting(4, "b:2", "n", 1.5, hosts=True)
    assert Meeting.parse(meeting.words()) == meeting
