"""Repeated random ``kill -9`` of processes of a real evolution, whose archive must equal that of an undisturbed one.

    python tests/support/kill.py --kills 50 --seed 1 --folder /tmp/kills

An undisturbed evolution comes first. Then evolutions in directories of their own are disturbed: a process of one kind is
chosen (the flow, its Prefect server, a training, an evaluation or the gate at work), waited for, and killed after a random
delay. A killed flow is started again with the same command, at once and without waiting for its children to be gone. When an
evolution has come to its end, its archive is compared with the undisturbed one, row by row, and the next one begins, until
the wanted number of kills is reached. ``--llm`` makes the roles LLM-backed, by a model on loopback, and counts what it is asked.

What counts as a fault: another archive; a fault found by ``check()``; a stage that says twice that it has finished; an end
of the command that is neither done (0), nor a fault of the machine (3), nor the kill itself; a traceback; a process that
is still there half a minute after its flow has ended; a question to the language model that was answered and asked again.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from laboratory import contents, with_problems_of

from poise_core.archive import Archive

POISE = Path(sys.executable).parent / "poise"

VICTIMS = {
    "flow": "",  # the command itself
    "server": "flows.server_process",
    "training": "poise_core.training.startup",
    "evaluation": "poise_core.evaluation.worker",
    "gate": "poise_core.verification.worker",
    "fork server": "poise_core.sandbox.forkserver",
}
"""Kind of process -> what its command line contains."""

SHARES = (
    "flow",
    "flow",
    "flow",
    "server",
    "server",
    "training",
    "training",
    "training",
    "evaluation",
    "evaluation",
    "gate",
    "fork server",
)
"""How often each kind is drawn, in random order, before it is drawn again."""

REACH = {"flow": 0.35, "server": 0.2}
"""Longest delay before a kill, in lengths of an evolution; 0.05 for processes that work for one stage."""

PATIENT = [
    argument
    for key in ("train_timeout_seconds", "evaluate_timeout_seconds", "verify_timeout_seconds")
    for argument in ("--set", f"resources.{key}=3600")
]
"""A machine that is busy with other things must not look like a candidate that takes too long."""

HANG_SECONDS = 1800.0
FINISHED = re.compile(
    r"""^[\d:]+\s\s(?:
        (?P<verify>verify)\s+(?P<verified>.+?)\s\s(?:admitted|refused)
      | (?P<train>train)\s+(?P<trained>.+?)\s\s\d+\ (?:seed|step)s?\ in
      | (?P<evaluate>evaluate)\s+(?P<evaluated>.+?)\s\sOverall
    )""",
    re.MULTILINE | re.VERBOSE,
)
"""The lines that say that a stage with real work has finished; what is only read back says nothing."""


@dataclass(frozen=True)
class Kill:
    """One kill that was delivered."""

    evolution: int
    kind: str
    command: int  # the how manieth start of this evolution's command
    seconds: float  # since that start
    at: float  # UNIX time


@dataclass
class Report:
    """What happened."""

    seed: int
    undisturbed_seconds: float = 0.0
    kills: list[Kill] = field(default_factory=list)
    evolutions: int = 0
    starts: int = 0
    ends: collections.Counter[str] = field(
        default_factory=collections.Counter
    )  # exit status of the command -> how often
    equal: int = 0  # evolutions whose archive is the undisturbed one's
    faults: list[str] = field(default_factory=list)
    questions: int = 0  # different ones that the language model was asked
    in_flight: int = 0  # asked again because the answer was on its way when the flow was killed

    def summary(self) -> dict[str, Any]:
        """For the documentation."""
        kinds = collections.Counter(kill.kind for kill in self.kills)
        document = {**asdict(self), "kills": len(self.kills), "by_kind": dict(kinds), "ends": dict(self.ends)}
        return {**document, "resumes": self.starts - self.evolutions}


class Command:
    """One start of ``poise evolve``, with what it prints."""

    def __init__(self, arguments: Sequence[object], log: Path) -> None:
        self.log, self.began = log, time.time()
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                [str(POISE), "evolve", *map(str, arguments)],
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "400"},
                start_new_session=True,
            )
        self.known: dict[int, psutil.Process] = {}

    @property
    def ended(self) -> bool:
        """Whether the command has ended, by itself or by a kill."""
        return self.process.poll() is not None

    def family(self) -> list[psutil.Process]:
        """All descendants that there are now; those seen before are remembered."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                self.known.setdefault(child.pid, child)
        return [child for child in self.known.values() if child.is_running()]

    def of_kind(self, kind: str) -> list[psutil.Process]:
        """Processes of a kind; of the flow the command itself."""
        if kind == "flow":
            return [psutil.Process(self.process.pid)]
        found = []
        for child in self.family():
            with contextlib.suppress(psutil.Error):
                if VICTIMS[kind] in " ".join(child.cmdline()) and child.status() != psutil.STATUS_ZOMBIE:
                    found.append(child)
        return found

    def left_behind(self, seconds: float = 30.0) -> list[str]:
        """Command lines of descendants that are still there after so many seconds; they are ended here."""
        _, alive = psutil.wait_procs(list(self.known.values()), timeout=seconds)
        lines = []
        for process in alive:
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE:
                    lines.append(" ".join(process.cmdline())[-200:])
                    process.kill()
        return lines


class Storm:
    """Kills processes of evolutions until there have been enough."""

    def __init__(
        self, folder: Path, arguments: Sequence[object], kills: int, seed: int, say: Callable[[str], None] = print
    ) -> None:
        self.folder, self.arguments, self.wanted, self.say = folder, list(arguments), kills, say
        self.random, self.report = random.Random(seed), Report(seed)
        self._bag: list[str] = []
        self._length = (
            math.inf
        )  # of the shortest evolution so far, seconds: the machine may have other work, now or then

    def run(self) -> Report:
        """The undisturbed evolution, then the disturbed ones."""
        done = self.folder / "undisturbed.json"
        if not done.exists():  # otherwise it is that of an earlier storm in this folder
            began = time.monotonic()
            calm = self._start(self.folder / "undisturbed", self.folder / "undisturbed.log")
            if calm.process.wait(HANG_SECONDS) != 0:
                raise RuntimeError(f"the undisturbed evolution failed: {calm.log.read_text()}")
            done.write_text(json.dumps({"seconds": round(time.monotonic() - began, 1)}))
        self._length = self.report.undisturbed_seconds = json.loads(done.read_text())["seconds"]
        self.say(f"undisturbed: {self.report.undisturbed_seconds} s")
        expected = contents(Archive(self.folder / "undisturbed" / "archive"))
        while len(self.report.kills) < self.wanted:
            self._evolve(self.report.evolutions, expected)
            self.report.evolutions += 1
            (self.folder / "report.json").write_text(json.dumps(self.report.summary(), indent=1) + "\n")
        return self.report

    def _start(self, run_dir: Path, log: Path) -> Command:
        return Command([*self.arguments, "--run-dir", run_dir], log)

    def _evolve(self, number: int, expected: dict[str, dict[str, str]]) -> None:
        """One disturbed evolution, to its end."""
        run_dir, logs = self.folder / f"disturbed-{number}", []
        with_problems_of(self.folder / "undisturbed", run_dir)
        before: list[Command] = []
        while True:
            command = self._start(run_dir, self.folder / f"disturbed-{number}-{len(logs):02d}.log")
            logs.append(command.log)
            self.report.starts += 1
            self._disturb(command, number, len(logs))
            status = command.process.wait()
            self.report.ends[str(status)] += 1
            self._look_at_end(command, status, f"evolution {number}, start {len(logs)}")
            before.append(command)
            for earlier in before[:-1]:  # had the time of a whole further start to end
                self._fault_if(earlier.left_behind(30.0), "left behind")
            if status == 0:
                self._length = min(self._length, time.time() - before[0].began)
                break
        self._fault_if(command.left_behind(), "left behind")
        archive = Archive(run_dir / "archive")
        same = contents(archive) == expected
        self.report.equal += same
        self.say(f"evolution {number}: {len(logs)} starts, archive {'equal' if same else 'DIFFERS'}")
        self._fault_if([] if same else differences(expected, contents(archive)), f"evolution {number} differs")
        self._fault_if(archive.check(), f"evolution {number}, check()")
        self._fault_if(told_twice([log.read_text() for log in logs]), f"evolution {number}, finished twice")

    def _disturb(self, command: Command, number: int, start: int) -> None:
        """Deliver kills to one running command until it ends or enough were delivered."""
        while not command.ended and len(self.report.kills) < self.wanted:
            kind = self._next_kind()
            moment = self.random.uniform(0, self._length * REACH.get(kind, 0.05))
            if not self._wait(command, lambda kind=kind: bool(command.of_kind(kind))):
                self._bag.append(kind)  # its turn comes in the next evolution
                return
            self._wait(command, None, moment)
            victims = command.of_kind(kind) if not command.ended else []
            if not victims:
                self._bag.insert(0, kind)  # too late; later again
                continue
            command.family()
            with contextlib.suppress(psutil.NoSuchProcess):
                self.random.choice(victims).send_signal(signal.SIGKILL)
                kill = Kill(number, kind, start, round(time.time() - command.began, 1), time.time())
                self.report.kills.append(kill)
                self.say(f"kill {len(self.report.kills)}: {kind} after {kill.seconds} s of start {start}")
            if kind == "flow":
                return
        deadline = time.monotonic() + HANG_SECONDS
        while not self._wait(command, None, 10.0) and not command.ended:
            if time.monotonic() > deadline:
                self.report.faults.append(f"evolution {number}, start {start}: no end within {HANG_SECONDS:.0f} s")
                command.process.kill()

    def _wait(self, command: Command, ready: Callable[[], bool] | None, seconds: float = HANG_SECONDS) -> bool:
        """Until it is ready (True), the command has ended, or the time is up (False)."""
        now = time.monotonic()
        deadline, look = now + seconds, now
        while not command.ended and now < deadline:
            if ready is not None and ready():
                return True
            if now >= look:  # who was there is known when the command has ended; looking costs time that it needs
                command.family()
                look = now + 2.0
            time.sleep(min(0.2, deadline - now))
            now = time.monotonic()
        return False

    def _next_kind(self) -> str:
        if not self._bag:
            self._bag = self.random.sample(SHARES, len(SHARES))
        return self._bag.pop()

    def _look_at_end(self, command: Command, status: int, where: str) -> None:
        text = command.log.read_text()
        if status not in (0, 3, -signal.SIGKILL):
            self.report.faults.append(f"{where}: ended with status {status}: {text[-500:]}")
        if re.search(r"^Traceback", text, re.MULTILINE):
            self.report.faults.append(f"{where}: a traceback, see {command.log}")
        if status == 3:
            self.say(f"{where}: status 3: {text.strip().splitlines()[-1]}")

    def _fault_if(self, found: Sequence[str], what: str) -> None:
        self.report.faults += [f"{what}: {one}" for one in found]


def told_twice(logs: Sequence[str]) -> list[str]:
    """Stages that say more than once that they have finished."""
    told: collections.Counter[str] = collections.Counter()
    for text in logs:
        told.update(" of ".join(filter(None, found.groups())) for found in FINISHED.finditer(text))
    return [f"{stage}: {count} times" for stage, count in told.items() if count > 1]


def differences(expected: dict[str, dict[str, str]], found: dict[str, dict[str, str]]) -> list[str]:
    """One line per row that is missing, too many, or another."""
    lines = []
    for table, rows in expected.items():
        lines += [f"{table} lacks {key}" for key in rows.keys() - found[table].keys()]
        lines += [f"{table} has {key}, which nobody expected" for key in found[table].keys() - rows.keys()]
        lines += [
            f"{table}: other content in {key}"
            for key in rows.keys() & found[table].keys()
            if rows[key] != found[table][key]
        ]
    return sorted(lines)


@contextlib.contextmanager
def language_model(report: Callable[[], Report]) -> Iterator[list[object]]:
    """A model on loopback; yields the options that make a run use it. Afterwards what it was asked twice is a fault.

    An answer that was on its way when the flow was killed may be asked for again: nobody has it.
    """
    from llm_server import LoopbackServer
    from script import good_answers

    good = good_answers()
    asked: dict[str, list[tuple[float, float]]] = {}  # question -> when it came and when its answer was ready

    def answer(body: dict[str, Any]) -> Any:
        came = time.time()
        time.sleep(0.3)  # a window to be killed in
        given = good(body)
        key = f"{report().evolutions if report().starts else -1}: {json.dumps(body, sort_keys=True)}"
        asked.setdefault(key, []).append((came, time.time()))
        return given

    with LoopbackServer(answer) as server:
        yield ["--llm", "openai:test-model", "--base-url", server.base_url]
    flows = [kill.at for kill in report().kills if kill.kind == "flow"]
    report().questions = len(asked)
    for question, times in asked.items():
        for came, ready in times[:-1]:
            if any(came <= at <= ready + 2.0 for at in flows):
                report().in_flight += 1
            else:
                report().faults.append(f"paid twice: {question[:200]}")


def main() -> int:
    """Read the options, run, print the report; 1 where there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--generations", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="default: a temporary one")
    parser.add_argument("--llm", action="store_true", help="LLM-backed roles on loopback")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="kills-"))
    folder.mkdir(parents=True, exist_ok=True)
    arguments: list[object] = ["--preset", "smoke", "--generations", options.generations, *PATIENT]

    def say(text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)

    storm = Storm(folder, arguments, options.kills, options.seed, say)
    with language_model(lambda: storm.report) if options.llm else contextlib.nullcontext([]) as more:
        storm.arguments += more
        storm.run()
    print(json.dumps(storm.report.summary(), indent=1))
    return 1 if storm.report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
