"""The job of a training, as data only, so that code which plans one needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from poise_core.config import ResourceSpec
from poise_core.config.protocol import Protocol

NO_RENDEZVOUS = 75  # status of a process that has not met those of other nodes; EX_TEMPFAIL of sysexits.h


@dataclass(frozen=True)
class TrainingJob:
    """The training of one candidate with some of the protocol's seeds."""

    candidate_path: Path  # the .py file
    candidate_name: str
    folder: Path  # gets seed-<s>/ for every seed
    protocol: Protocol
    resources: ResourceSpec
    seeds: tuple[int, ...]
    pause_after: int | None = None  # steps after which every seed stops at a checkpoint; None: it trains to its end
    source_digest: str | None = None  # of the text that the gate admitted; None trains the file unchecked
    fingerprint: str | None = None  # with which the gate admitted it, and which it must still have in training


@dataclass(frozen=True)
class Meeting:
    """Where the parts of one training meet; every node's process is given it as words of its command."""

    nodes: int
    endpoint: str  # host:port of c10d's store
    name: str  # of the rendezvous; another one for every training
    seconds: float  # within which all nodes must have come
    hosts: bool  # whether this node holds the store

    def words(self) -> list[str]:
        """Return it as arguments of ``poise_core.training.startup``."""
        return [str(self.nodes), self.endpoint, self.name, str(self.seconds), str(int(self.hosts))]

    @classmethod
    def parse(cls, words: list[str]) -> Meeting:
        """Read what ``words`` has written."""
        nodes, endpoint, name, seconds, hosts = words
        return cls(int(nodes), endpoint, name, float(seconds), hosts == "1")
