"""Grading in processes that can be killed, for thousands of completions.

``grade(spec, rows)`` is all that most callers need; a ``GradingPool`` keeps its processes between calls::

    with GradingPool() as pool:
        verdicts = pool.grade(spec, rows)

Every place of the pool is a process that has imported the libraries and forks a worker (milliseconds) whenever its worker has died.
The kernel ends a worker at the limit of *processor* time, so that a busy machine fails no right answer, and at a generous limit of
wall time, which only something that sleeps or waits can reach; whoever started the pool kills what ignores both. A worker whose
grading was cut off is never used again: SymPy's caches may be half filled. Rows with the same gold and the same extracted answer
are judged once.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import resource
import selectors
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from poise_core.config.problems import GraderSpec
from poise_core.grading.graders import SLOW, Row, Verdict, extracted, judge, judge_answer

CPU_SECONDS = 5.0
WALL_SECONDS = 60.0
_GRACE_SECONDS = 10.0
_MEMORY_BYTES = 4 << 30
_ROWS_PER_WORKER = 5_000  # then a fresh one, as SymPy's caches grow
_RECYCLED = 75
_BROKEN = 76


@dataclass
class _Slot:
    process: subprocess.Popen[bytes]
    job: Any = None
    deadline: float = 0.0


class GradingPool:
    """Worker processes that judge completions; a context manager, and safe to use from several threads."""

    def __init__(
        self,
        workers: int | None = None,
        *,
        cpu_seconds: float = CPU_SECONDS,
        wall_seconds: float = WALL_SECONDS,
        path: Sequence[str] = (),
    ) -> None:
        """Describe the pool; the processes start with the first rows that need them.

        Args:
            workers: how many completions are judged at a time; by default one per processor.
            cpu_seconds: processor time that one completion may take.
            wall_seconds: time by the clock that one completion may take.
            path: further folders in which the modules of users' functions are looked for.
        """
        self.workers = workers or len(os.sched_getaffinity(0))
        self.cpu_seconds, self.wall_seconds, self.path = cpu_seconds, wall_seconds, list(path)
        self._slots: list[_Slot] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes; the pool may be used again and then starts new ones."""
        for slot in self._slots:
            _kill(slot.process)
        self._slots = []

    def grade(self, spec: GraderSpec, rows: Sequence[Row]) -> list[Verdict]:
        """Judge completions; the verdicts are in the order of the rows. Nothing that a row holds raises."""
        if spec.name not in SLOW:
            return [_timed(spec, row) for row in rows]
        verdicts: list[Verdict | None] = [None] * len(rows)
        jobs: dict[Any, list[int]] = {}
        for place, row in enumerate(rows):
            if spec.name == "math":
                found = extracted(spec, row.completion)
                if found is None or not found.strip():
                    verdicts[place] = Verdict(0.0, "no_answer", found)
                else:
                    jobs.setdefault((row.gold, found), []).append(place)
            else:
                jobs.setdefault(place, []).append(place)
        with self._lock:
            for key, verdict in self._run(spec, rows, jobs):
                if spec.name == "math" and verdict.extracted is None:  # it died over this answer
                    verdict = replace(verdict, extracted=key[1][:500])
                for place in jobs[key]:
                    verdicts[place] = verdict
        return [verdict or Verdict(0.0, "failed", message="no verdict came") for verdict in verdicts]

    def _run(self, spec: GraderSpec, rows: Sequence[Row], jobs: dict[Any, list[int]]) -> list[tuple[Any, Verdict]]:
        done: list[tuple[Any, Verdict]] = []
        if not jobs:
            return done
        while len(self._slots) < min(self.workers, len(jobs)):
            self._slots.append(_Slot(self._start()))
        waiting = list(jobs)[::-1]
        document = spec.model_dump()
        with selectors.DefaultSelector() as selector:
            for slot in self._slots:
                selector.register(slot.process.stdout, selectors.EVENT_READ, slot)  # type: ignore[arg-type]
                self._give(slot, waiting, document, spec, rows, jobs, done)
            while any(slot.job is not None for slot in self._slots):
                for key, _ in selector.select(timeout=0.5):
                    self._take(key.data, done, selector)
                    self._give(key.data, waiting, document, spec, rows, jobs, done)
                now = time.monotonic()
                for slot in self._slots:
                    if slot.job is not None and now > slot.deadline:
                        done.append((slot.job, Verdict(0.0, "timed_out", message="limit of wall time", seconds=0.0)))
                        self._restart(slot, selector)
                        self._give(slot, waiting, document, spec, rows, jobs, done)
        return done

    def _give(
        self,
        slot: _Slot,
        waiting: list[Any],
        document: dict[str, Any],
        spec: GraderSpec,
        rows: Sequence[Row],
        jobs: dict[Any, list[int]],
        done: list[tuple[Any, Verdict]],
    ) -> None:
        if slot.job is not None or not waiting:
            return
        slot.job = waiting.pop()
        row = rows[jobs[slot.job][0]]
        message = {"spec": document, "gold": row.gold, "data": dict(row.data)}
        message |= {"found": slot.job[1]} if spec.name == "math" else {"completion": row.completion}
        slot.deadline = time.monotonic() + self.wall_seconds + _GRACE_SECONDS
        with contextlib.suppress(BrokenPipeError):  # then its end is read from the other pipe
            _send(slot.process.stdin, message)

    def _take(self, slot: _Slot, done: list[tuple[Any, Verdict]], selector: selectors.BaseSelector) -> None:
        answer = _receive(slot.process.stdout)
        if answer is None:
            if slot.job is not None:
                done.append((slot.job, Verdict(0.0, "failed", message="the process of the grader died")))
            self._restart(slot, selector)
        elif slot.job is not None:
            done.append((slot.job, Verdict(**answer)))
            slot.job = None

    def _restart(self, slot: _Slot, selector: selectors.BaseSelector) -> None:
        selector.unregister(slot.process.stdout)  # type: ignore[arg-type]
        _kill(slot.process)
        slot.process, slot.job = self._start(), None
        selector.register(slot.process.stdout, selectors.EVENT_READ, slot)  # type: ignore[arg-type]

    def _start(self) -> subprocess.Popen[bytes]:
        program = "from poise_core.grading.pool import serve; serve()"
        limits = [str(self.cpu_seconds), str(self.wall_seconds), json.dumps(self.path)]
        return subprocess.Popen(
            [sys.executable, "-I", "-c", program, *limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
        )


def grade(
    spec: GraderSpec, rows: Sequence[Row], *, workers: int | None = None, path: Sequence[str] = ()
) -> list[Verdict]:
    """Judge completions with a pool that lives for this call."""
    with GradingPool(workers, path=path) as pool:
        return pool.grade(spec, rows)


def outcome_counts(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """Count verdicts by their outcome, for logs and tables."""
    return dict(Counter(verdict.outcome for verdict in verdicts))


def _timed(spec: GraderSpec, row: Row, found: str | None = None) -> Verdict:
    started = time.process_time()
    try:
        verdict = judge(spec, row) if found is None else judge_answer(spec, row.gold, found)
    except Exception as error:
        verdict = Verdict(0.0, "failed", message=f"{type(error).__name__}: {error}"[:200])
    return Verdict(**{**asdict(verdict), "seconds": round(time.process_time() - started, 4)})


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    process.wait()


def _send(stream: Any, message: dict[str, Any]) -> None:
    body = json.dumps(message, default=str).encode()
    view = memoryview(struct.pack("<I", len(body)) + body)
    while view:
        view = view[os.write(stream.fileno(), view) :]


def _receive(stream: Any) -> dict[str, Any] | None:
    head = _read(stream.fileno(), 4)
    body = _read(stream.fileno(), struct.unpack("<I", head)[0]) if head else None
    return json.loads(body) if body else None


def _read(handle: int, count: int) -> bytes | None:
    parts: list[bytes] = []
    while count:
        part = os.read(handle, min(count, 1 << 20))
        if not part:
            return None
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


# in the processes


class _Pipe:
    def __init__(self, handle: int) -> None:
        self.handle = handle

    def fileno(self) -> int:
        return self.handle


def serve() -> None:
    """Be one place of a pool: import once, fork a worker, and fork the next whenever one ends; ends with its standard input."""
    cpu, wall, path = float(sys.argv[1]), float(sys.argv[2]), json.loads(sys.argv[3])
    requests, answers = _Pipe(os.dup(0)), _Pipe(os.dup(1))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # what a user's function prints must not get between the answers
    os.dup2(2, 1)
    sys.path[:0] = path
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _warm_up()
    busy = mmap.mmap(-1, 1)
    while True:
        child = os.fork()
        if child == 0:
            os._exit(_work(requests, answers, busy, cpu, wall))
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == 0:
            return
        if busy[0]:
            busy[0] = 0
            if code in (-signal.SIGPROF, -signal.SIGALRM):
                what = "processor" if code == -signal.SIGPROF else "wall"
                seconds = cpu if what == "processor" else 0.0
                verdict = Verdict(0.0, "timed_out", seconds=seconds, message=f"limit of {what} time")
            else:
                verdict = Verdict(0.0, "failed", message=f"the process of the grader died ({code})")
            _send(answers, asdict(verdict))
        elif code == _BROKEN:
            sys.exit(1)


def _warm_up() -> None:
    from poise_core.grading.equality import answers_equal

    answers_equal("\\frac{1}{2}x+1", "1+0.5x")


def _work(requests: _Pipe, answers: _Pipe, busy: mmap.mmap, cpu: float, wall: float) -> int:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    ceiling = _MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(hard, _MEMORY_BYTES)
    resource.setrlimit(resource.RLIMIT_AS, (ceiling, hard))
    sys.setrecursionlimit(10_000)
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    for _ in range(_ROWS_PER_WORKER):
        try:
            message = _receive(requests)
        except (ValueError, KeyError):
            return _BROKEN
        if message is None:
            return 0
        busy[0] = 1
        signal.setitimer(signal.ITIMER_PROF, cpu)
        signal.setitimer(signal.ITIMER_REAL, wall)
        spec = GraderSpec.model_validate(message["spec"])
        row = Row(message["gold"], message.get("completion", ""), message["data"])
        try:
            verdict = _timed(spec, row, message.get("found"))
        except BaseException as error:  # a user's function may call sys.exit
            verdict = Verdict(0.0, "failed", message=f"{type(error).__name__}: {error}"[:200])
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _send(answers, asdict(verdict))
        busy[0] = 0
    return _RECYCLED
