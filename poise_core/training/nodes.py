"""One training over several nodes: how they find each other, start its parts, and learn that one of them has failed.

Every node runs the same command. The node of rank 0 leads: the run lives there, and it hosts torchrun's rendezvous (c10d) of every
training. The others serve: they start their part of each training that the leader announces, until its command ends. All of them
see the run directory at the same path. In its folder ``.nodes`` every node rewrites a file of its own once a second, with a
count that grows; the others judge by their own clocks whether it still does. Whatever is wrong with a node is a ``NodeFault``,
which is no failure of the candidate.
"""

from __future__ import annotations

import atexit
import os
import socket
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from poise_core.config import ResourceSpec
from poise_core.failures import Cancelled, InfrastructureError, NodeFault, NodeFaultKind
from poise_core.heartbeat import Heartbeat, Listener
from poise_core.sandbox.command import Limits
from poise_core.sandbox.kernel import memory_bytes
from poise_core.sandbox.run import POLL_SECONDS, quiet_environment, require_own_network, run_confined
from poise_core.training.job import Meeting

FOLDER = ".nodes"
STARTUP = [sys.executable, "-I", "-m", "poise_core.training.startup"]
SILENT_SECONDS = 30.0  # without a sign of life, after which a node is taken for dead
TELL_SECONDS = 5.0  # for which a node repeats its fault before it ends
GRACE_SECONDS = 10.0  # for a node to report that its part has ended, and for files to appear on shared storage
_RANKS = (("POISE_NODE_RANK", "POISE_NODES"), ("SLURM_NODEID", "SLURM_NNODES"), ("JOB_COMPLETION_INDEX", "POISE_NODES"))


def own_place(resources: ResourceSpec) -> int:
    """Return the rank of this node, from POISE_NODE_RANK or the variables of Slurm or of an indexed Job of Kubernetes.

    Raises:
        NodeFault: none of them is set, or they speak of another number of nodes than ``resources.nodes``.
    """
    for rank_name, count_name in _RANKS:
        if rank_name not in os.environ:
            continue
        rank, count = os.environ[rank_name], os.environ.get(count_name, str(resources.nodes))
        if count != str(resources.nodes):
            raise NodeFault(
                NodeFaultKind.WRONG_COUNT, f"resources.nodes is {resources.nodes} and {count_name} is {count}"
            )
        if not rank.isdecimal() or int(rank) >= resources.nodes:
            raise NodeFault(NodeFaultKind.WRONG_COUNT, f"{rank_name} is {rank}; it must be 0 to {resources.nodes - 1}")
        return int(rank)
    raise NodeFault(
        NodeFaultKind.WRONG_COUNT,
        f"resources.nodes is {resources.nodes} and this node has no rank: set POISE_NODE_RANK, 0 where the run lives",
    )


def endpoint(resources: ResourceSpec) -> str:
    """Return host and port for a rendezvous on this machine: of the preset, of the scheduler, or its name and a free port."""
    given = resources.rendezvous or os.environ.get("MASTER_ADDR") or socket.gethostname()
    host, _, port = given.partition(":")
    port = port or (os.environ.get("MASTER_PORT", "") if not resources.rendezvous else "")
    if not port:
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = str(probe.getsockname()[1])
    return f"{host}:{port}"


@dataclass(frozen=True)
class Part:
    """What every node runs of one training; as JSON in the leader's file."""

    number: str
    command: list[str]  # the startup module's arguments before those of the meeting
    meeting: Meeting
    log: str  # a file beside which nodes keep their own
    readable: list[str]
    writable: list[str]
    limits: dict[str, Any]
    memory_gib: float | None
    processes: int
    threads: int
    shared_network: bool

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Part:
        """Read the announcement of a leader, for a node that does not hold the store."""
        return cls(**{**document, "meeting": replace(Meeting(**document["meeting"]), hosts=False)})

    def argv(self) -> list[str]:
        """The command of this node's part."""
        return [*STARTUP, *self.command, *self.meeting.words()]


class PartEnded(Exception):
    """Another node's part of the training has ended with a failure, and this node's goes on."""


class Leader:
    """The other nodes, from the side of the one where the run lives."""

    def __init__(self, folder: Path, resources: ResourceSpec) -> None:
        """Take over the folder, and say every second that this node leads."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._resources, self._run = resources, uuid.uuid4().hex
        self._ears = {rank: Listener(folder / f"node-{rank}.json") for rank in range(1, resources.nodes)}
        self._folder, self._failed_since = folder, 0.0
        self._voice = Heartbeat(
            folder / "leader.json", run=self._run, nodes=resources.nodes, folder=str(folder), open=True, part=None
        )

    def await_nodes(self, should_stop: Callable[[], bool] | None) -> None:
        """Wait until all other nodes have reported and have nothing to do.

        Raises:
            Cancelled: ``should_stop`` returned True.
            NodeFault: MISSING, or what a node says of itself.
        """
        limit = self._resources.rendezvous_seconds
        deadline = time.monotonic() + limit
        while missing := [rank for rank, state in self._states().items() if not state or state["part"] is not None]:
            if should_stop is not None and should_stop():
                raise Cancelled("stopped while nodes are awaited")
            if time.monotonic() > deadline:
                raise NodeFault(
                    NodeFaultKind.MISSING,
                    f"{_named(missing)} of {self._resources.nodes} did not report in {self._folder} within {limit:g} s: run "
                    "the same command there, on storage that all nodes share",
                )
            time.sleep(POLL_SECONDS)

    def begin(self, part: Part) -> None:
        """Announce a part to all nodes."""
        self._failed_since = 0.0
        self._voice.say(part=asdict(part))

    def look(self, part: Part) -> None:
        """Look whether the others still work on it.

        Raises:
            NodeFault: one is silent, or cannot take part.
            PartEnded: one's part has failed a while ago.
        """
        for rank, state in self._states().items():
            if self._ears[rank].silent_seconds > SILENT_SECONDS:
                raise NodeFault(
                    NodeFaultKind.DIED, f"node {rank} has given no sign of life for {SILENT_SECONDS:g} seconds"
                )
            if state and state["part"] == part.number and state["status"]:
                self._failed_since = self._failed_since or time.monotonic()
                if time.monotonic() - self._failed_since > GRACE_SECONDS:
                    raise PartEnded

    def finish(self, part: Part, *, wait: bool) -> tuple[dict[int, int | None], dict[str, str]]:
        """End what is left of the part; with ``wait``, after waiting a while for the reports of the others.

        Returns:
            The statuses by rank, None where a node has reported none; and the measures that any of them was not granted.
        """
        deadline = time.monotonic() + (GRACE_SECONDS if wait else 0.0)
        found: dict[int, int | None] = dict.fromkeys(self._ears)
        missing: dict[str, str] = {}
        while None in found.values() and time.monotonic() < deadline:
            for rank, state in self._states(faults=False).items():
                if state and state["part"] == part.number:
                    found[rank] = state["status"]
                    missing |= state["missing"]
            time.sleep(POLL_SECONDS)
        self._voice.say(part=None)
        return found, missing

    def end(self, *, finished: bool = False) -> None:
        """Tell the others that the command has ended, and whether it has done its work."""
        self._voice.end(open=False, finished=finished, part=None)

    def _states(self, *, faults: bool = True) -> dict[int, dict[str, Any]]:
        states = {}
        for rank, ear in self._ears.items():
            state = ear.hear()
            if state.get("run") != self._run:  # what it said to an earlier leader
                state = {}
            if faults and state.get("fault"):
                kind, message = state["fault"]
                raise NodeFault(NodeFaultKind(kind), f"node {rank} on {state['host']}: {message}")
            states[rank] = state
        return states


def _named(ranks: list[int]) -> str:
    return ("node " if len(ranks) == 1 else "nodes ") + ", ".join(map(str, ranks))


class _Follower:
    """This node, which serves the run of another."""

    def __init__(self, folder: Path, rank: int, resources: ResourceSpec) -> None:
        self._folder, self._rank, self._resources = folder, rank, resources
        self._ear, self._run = Listener(folder / "leader.json"), ""
        self._voice: Heartbeat | None = None
        self._done = ""

    def serve(self) -> None:
        """Take part in trainings until the leader's command ends."""
        limit = self._resources.rendezvous_seconds
        while True:
            state = self._ear.hear()
            if not self._ear.alive and self._ear.silent_seconds > limit:
                raise NodeFault(
                    NodeFaultKind.NOT_SHARED,
                    f"no leading node has written {self._folder}/leader.json within {limit:g} s: run the same command on the node "
                    "of rank 0, on storage that all nodes share",
                )
            if self._ear.alive:
                self._require_life()
                if not state["open"]:
                    self._require_end(state)
                    return
                self._follow(state)
            time.sleep(POLL_SECONDS)

    @staticmethod
    def _require_end(state: Mapping[str, Any]) -> None:
        """A scheduler must not take this node's part for done while the leader's is to be started again."""
        if not state["finished"]:
            raise NodeFault(
                NodeFaultKind.DIED,
                "the leading node's command has ended without doing its work; the same command on all nodes goes on",
            )

    def _follow(self, state: Mapping[str, Any]) -> None:
        voice = self._voice_to(state)
        document = state["part"]
        if document is None:
            if self._done:
                self._done = ""
                voice.say(part=None, status=None, missing={})
        elif document["number"] != self._done:
            self._done = document["number"]
            voice.say(part=self._done, status=None)
            try:
                voice.say(status=self._take_part(voice, Part.from_document(document)))
            except _Over:
                voice.say(status=None)
            except InfrastructureError as error:
                kind = error.kind if isinstance(error, NodeFault) else NodeFaultKind.REFUSED
                raise self._told(voice, NodeFault(kind, str(error))) from error

    def _voice_to(self, state: Mapping[str, Any]) -> Heartbeat:
        """Return the file in which this node answers this leader, after comparing what both believe."""
        if self._voice is not None and state["run"] == self._run:
            return self._voice
        if self._voice is not None:
            self._voice.end()
        self._run, self._done = state["run"], ""
        path = self._folder / f"node-{self._rank}.json"
        fault = self._disagreement(state)
        voice = Heartbeat(
            path,
            run=self._run,
            host=socket.gethostname(),
            part=None,
            status=None,
            missing={},
            fault=[fault.kind, fault.message] if fault else None,
        )
        self._voice = voice
        if fault:
            raise self._told(voice, fault)
        return voice

    def _disagreement(self, state: Mapping[str, Any]) -> NodeFault | None:
        if state["nodes"] != self._resources.nodes:
            told = f"resources.nodes is {self._resources.nodes} here and {state['nodes']} where the run lives"
            return NodeFault(NodeFaultKind.WRONG_COUNT, told)
        if state["folder"] != str(self._folder):
            told = f"the run directory is {self._folder.parent} here and {Path(state['folder']).parent} where the run lives"
            return NodeFault(NodeFaultKind.NOT_SHARED, told)
        return None

    def _told(self, voice: Heartbeat, fault: NodeFault) -> NodeFault:
        """Tell the leader of a fault for long enough that it hears it."""
        voice.say(fault=[fault.kind, fault.message])
        time.sleep(TELL_SECONDS)
        voice.end()
        return fault

    def _require_life(self) -> None:
        if self._ear.silent_seconds > SILENT_SECONDS:
            raise NodeFault(
                NodeFaultKind.DIED, f"the leading node has given no sign of life for {SILENT_SECONDS:g} seconds"
            )

    def _take_part(self, voice: Heartbeat, part: Part) -> int:
        self._require_files(part)

        def start(granted: Mapping[str, str]) -> None:
            measures = require_own_network(granted, "training", allowed=part.shared_network)
            voice.say(
                missing={f"node {self._rank}: {name}": text for name, text in measures.items() if text != "granted"}
            )

        def poll() -> None:
            state = self._ear.hear()
            self._require_life()
            announced = state["part"] or {}
            if state["run"] != self._run or announced.get("number") != part.number:
                raise _Over

        limits = Limits(**part.limits)
        memory = part.memory_gib * 2**30 if part.memory_gib else memory_bytes() / part.processes
        log = Path(part.log)
        return run_confined(
            part.argv(),
            log=log.with_name(f"{log.stem}-node-{self._rank}{log.suffix}"),
            writable=[Path(path) for path in part.writable],
            readable=[Path(path) for path in part.readable],
            # the leader is to be the one that says that time is over
            limits=replace(
                limits, memory_bytes=int(memory), wall_seconds=(limits.wall_seconds or 0) + 2 * SILENT_SECONDS
            ),
            env=quiet_environment(part.threads),
            network=True,
            on_start=start,
            on_poll=poll,
        )

    def _require_files(self, part: Part) -> None:
        """Wait for files that the leader has made a moment ago.

        Raises:
            NodeFault: this node does not see them.
        """
        deadline = time.monotonic() + GRACE_SECONDS
        while missing := [path for path in (*part.writable, *part.readable) if not Path(path).exists()]:
            if time.monotonic() > deadline:
                raise NodeFault(
                    NodeFaultKind.NOT_SHARED, f"{missing[0]} is not there: put it on storage that all nodes share"
                )
            time.sleep(POLL_SECONDS)


class _Over(Exception):
    """The leader has ended a training."""


_leader: Leader | None = None


def take_part(run_directory: Path, resources: ResourceSpec) -> bool:
    """Serve until the leader's command ends, and return True, where this node does not lead; else announce it and return False.

    Does nothing and returns False where a training has one node.

    Raises:
        NodeFault: this node's rank or number of nodes is wrong, or the leader is not there, has died, or has ended its command
            without doing its work.
    """
    global _leader
    if resources.nodes == 1 or _leader is not None:
        return False
    rank, folder = own_place(resources), run_directory.expanduser().resolve() / FOLDER
    if rank:
        _Follower(folder, rank, resources).serve()
        return True
    run_directory.expanduser().mkdir(mode=0o700, parents=True, exist_ok=True)
    _leader = Leader(folder, resources)
    return False


def current_leader(resources: ResourceSpec) -> Leader | None:
    """Return the nodes that this process leads; None where a training has one node.

    Raises:
        NodeFault: it needs some, and this process leads none.
    """
    if resources.nodes > 1 and _leader is None:
        raise NodeFault(
            NodeFaultKind.MISSING,
            f"resources.nodes is {resources.nodes}, and this command leads no nodes: evolve, evaluate, replicate and ablate do",
        )
    return _leader if resources.nodes > 1 else None


@atexit.register
def end_leading(*, finished: bool = False) -> None:
    """Tell the other nodes that this command has ended, and whether it has done its work."""
    global _leader
    if _leader is not None:
        _leader.end(finished=finished)
        _leader = None
