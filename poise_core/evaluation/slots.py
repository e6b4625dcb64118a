"""Slots of samplers: one engine each, started once and reused by candidates, seeds and evaluations of this process.

An engine takes a minute to start and gigabytes to hold, so that it outlives the trainings that it serves. A slot has one training
or evaluation at a time. What fails in it is told as a ``SamplerFault``, its process is ended, and the next one gets a fresh one.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from poise_core.config import ResourceSpec
from poise_core.config.protocol import SamplerSpec
from poise_core.config.resources import SamplerResources
from poise_core.failures import Cancelled, FaultKind, SamplerFault
from poise_core.files import write_atomically
from poise_core.sandbox.process_tree import end_process_tree
from poise_core.sandbox.run import POLL_SECONDS, log_tail, quiet_environment

EVENT_CHARACTERS = 1 << 20
STUCK_SECONDS, STUCK_TIMES = 10.0, 5.0
CLOSE_SECONDS, CLOSE_POLL_SECONDS = 10.0, 0.005


class RefusedRollout(Exception):
    """The training handed over what is none of its policy; ``finite`` is False where its weights are no numbers."""

    def __init__(self, message: str, *, finite: bool) -> None:
        super().__init__(message)
        self.finite = finite


class Slot:
    """One process with one engine, from the side of the launcher."""

    def __init__(
        self,
        spec: SamplerSpec,
        resources: ResourceSpec,
        policy: Path,
        *,
        stops: bool = False,
        gpus: Mapping[str, str] | None = None,
    ) -> None:
        """Start the process.

        Args:
            spec: which engine.
            resources: its limits.
            policy: folder of the policy from which trainings start.
            stops: whether texts end completions, for which the engine needs the tokenizer.
            gpus: the variable that shows the engine its GPUs; by default it sees all.
        """
        self.gpus = _shown_gpus(gpus)
        self.limits: SamplerResources = resources.sampler
        self.home = Path(tempfile.mkdtemp(prefix="poise-sampler-"))
        self._lock = hold(self.home)
        config = {
            "sampler": spec.model_dump(mode="json"),
            "resources": resources.sampler.model_dump(mode="json"),
            "home": str(self.home),
            "policy": str(policy),
            "threads": resources.threads_per_process,
            "stops": stops,
        }
        write_atomically(self.home / "config.json", json.dumps(config))
        self.log = self.home / "sampler.log"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-m", "poise_core.evaluation.server", str(self.home / "config.json")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **quiet_environment(resources.threads_per_process), **(gpus or {})},
                start_new_session=True,
                text=True,
            )
        self._events: deque[dict[str, Any]] = deque()
        threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True).start()
        self._since: float | None = time.monotonic()  # of what it is doing now
        self._what, self._limit = "its start", self.limits.start_seconds
        self._longest = 0.0  # seconds of the longest rollout until now
        self.identity: dict[str, str] = {}
        self.evaluated = self.broken = self._taken = self._closed = False

    @property
    def alive(self) -> bool:
        """Whether its process lives."""
        return self._process.poll() is None

    @property
    def stuck(self) -> bool:
        """Whether what it does now takes far longer than anything before: who waits for it is not to blame."""
        return self._since is not None and time.monotonic() - self._since > max(
            STUCK_SECONDS, STUCK_TIMES * self._longest
        )

    def take(self, command: Mapping[str, Any]) -> None:
        """Give it a training to serve, or an evaluation to carry out.

        Raises:
            SamplerFault: it has one already.
        """
        if self._taken:
            raise SamplerFault(FaultKind.SLOT_TAKEN, "another training or evaluation has this slot")
        self._taken, self.evaluated = True, False
        self._send(command)

    def await_ready(self, should_stop: Callable[[], bool] | None) -> None:
        """Wait until its engine has started, which is no part of anybody's time.

        Raises:
            Cancelled: ``should_stop`` returned True.
            SamplerFault: it does not start.
        """
        while not self.identity:
            self.poll()
            if should_stop is not None and should_stop():
                raise Cancelled("stopped while the sampler starts")
            time.sleep(POLL_SECONDS)

    def release(self) -> None:
        """Let it serve another one, once it has told that it looks no more at the folder of the last."""
        self._closed = False
        self._send({"do": "close"})
        deadline = time.monotonic() + CLOSE_SECONDS
        try:
            while not self._closed:
                self.poll()
                if time.monotonic() > deadline:
                    self._fail(FaultKind.HUNG, "it does not let go of a training that has ended")
                time.sleep(CLOSE_POLL_SECONDS)
        except (SamplerFault, RefusedRollout):
            self.broken = True  # what it served has ended well, so that nobody needs to hear of it
        self._taken = False

    def poll(self) -> None:
        """Look at what it has told.

        Raises:
            RefusedRollout: the training handed over other weights than those of its policy.
            SamplerFault: it failed, ended or takes too long.
        """
        ended = self._process.poll()
        while self._events:
            self._hear(self._events.popleft())
        if ended is not None:
            self._fail(FaultKind.DIED, f"its process ended with status {ended}; {self._last_line()}")
        if self._since is not None and time.monotonic() - self._since > self._limit:
            self._fail(FaultKind.HUNG, f"{self._what} took more than {self._limit:g} s")

    def end(self) -> None:
        """End the process and remove its files."""
        self.broken = True
        end_process_tree(self._process.pid, 0.5)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()
        self._lock.close()
        shutil.rmtree(self.home, ignore_errors=True)

    def _hear(self, event: Mapping[str, Any]) -> None:
        kind = event["event"]
        if kind == "begin":
            self._since, self._what, self._limit = time.monotonic(), event["what"], self.limits.timeout_seconds
        elif kind in ("ready", "end"):
            if kind == "end" and self._since is not None:
                self._longest = max(self._longest, time.monotonic() - self._since)
            self._since = None
            self.identity = dict(event.get("identity", self.identity))
        elif kind == "evaluated":
            self.evaluated = True
        elif kind == "closed":
            self._closed = True
        elif kind == "refused":
            self.broken = True
            raise RefusedRollout(event["message"], finite=event["finite"])
        else:
            self._fail(FaultKind(event["kind"]), event["message"])

    def _fail(self, kind: FaultKind, message: str) -> None:
        self.broken = True
        raise SamplerFault(kind, message)

    def _last_line(self) -> str:
        lines = log_tail(self.log).strip().splitlines()
        return f"its log ends: {lines[-1][:300]}" if lines else "its log is empty"

    def _send(self, command: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            pass  # poll tells how it has ended

    def _listen(self, stream: IO[str]) -> None:
        with contextlib.suppress(ValueError, OSError):  # closed meanwhile
            while line := stream.readline(EVENT_CHARACTERS):
                self._events.append(json.loads(line))


def hold(folder: Path) -> IO[bytes]:
    """Lock the folder of a slot for this process.

    Raises:
        SamplerFault: another process has it.
    """
    stream = (folder / "lock").open("ab")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        stream.close()
        raise SamplerFault(FaultKind.SLOT_TAKEN, f"another process has the slot in {folder}") from None
    return stream


_idle: dict[str, list[Slot]] = {}
_guard = threading.Lock()


def _shown_gpus(gpus: Mapping[str, str] | None) -> frozenset[str]:
    """The GPUs that the variable of ``held_gpus`` names; none where it hands out none."""
    return frozenset(",".join((gpus or {}).values()).split(",")) - {""}


def _idle_slot(key: str, gpus: frozenset[str]) -> tuple[Slot | None, list[Slot]]:
    """Take an idle slot with this engine out of the idle ones; where there is none, all whose place another engine may take, which
    are those that share a GPU with it, or all where GPUs are not handed out."""
    with _guard:
        while waiting := _idle.get(key, []):
            slot = waiting.pop()
            if slot.alive:
                return slot, []
            slot.end()
        others = [slot for slots in _idle.values() for slot in slots if not gpus or not slot.gpus or gpus & slot.gpus]
        for waiting in _idle.values():
            waiting[:] = [slot for slot in waiting if slot not in others]
    return None, others


@contextmanager
def slot_for(
    spec: SamplerSpec,
    resources: ResourceSpec,
    policy: Path,
    *,
    stops: bool = False,
    gpus: Mapping[str, str] | None = None,
) -> Iterator[Slot]:
    """Yield a slot with this engine: an idle one, or a new one, for which idle ones with another policy or engine are ended.

    After a fault it is ended, else kept for the next.
    """
    said = (
        spec.model_dump(mode="json"),
        resources.sampler.model_dump(mode="json"),
        str(policy),
        stops,
        dict(gpus or {}),
    )
    key = json.dumps(said)
    slot, others = _idle_slot(key, _shown_gpus(gpus))
    for other in others:
        other.end()
    slot = slot or Slot(spec, resources, policy, stops=stops, gpus=gpus)
    try:
        yield slot
    except BaseException:
        slot.broken = True  # it may be in the middle of a rollout
        raise
    finally:
        if not slot.broken:
            slot.release()
        if slot.broken:
            slot.end()
        else:
            with _guard:
                _idle.setdefault(key, []).append(slot)


@atexit.register
def end_slots() -> None:
    """End all idle slots of this process."""
    with _guard:
        slots = [slot for waiting in _idle.values() for slot in waiting]
        _idle.clear()
    for slot in slots:
        slot.end()


def require_identity(path: Path, identity: Mapping[str, str]) -> None:
    """Record the engine of a training, whose every part must have the same.

    Raises:
        SamplerFault: an earlier part of it was sampled by another engine.
    """
    if not path.exists():
        write_atomically(path, json.dumps(dict(identity)))
    elif (before := json.loads(path.read_text())) != identity:
        differ = sorted(name for name in before.keys() | identity.keys() if before.get(name) != identity.get(name))
        told = "; ".join(f"{name} was {before.get(name)} and is {identity.get(name)}" for name in differ)
        raise SamplerFault(
            FaultKind.OTHER_ENGINE,
            f"this training began with another engine ({told}): use that one, or remove {path.parent} to start it anew",
        )
