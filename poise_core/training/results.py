"""What a training leaves in its folder, read as the files of a stranger.

The process that wrote them ran candidate code: no link is followed, no pipe or device is opened, and what the trainer itself would
not have written is a failure of the candidate.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from poise_core.candidate.identity import name_fault
from poise_core.evaluation.kept import COMPLETION_CHARACTERS, KINDS, PROMPT_CHARACTERS, TRAINING, KeptCompletion, cut
from poise_core.failures import CandidateFailure, FailureKind
from poise_core.files import (
    UntrustedFileError,
    json_lines,
    open_untrusted,
    read_untrusted,
    require_plain_folder,
    write_atomically,
)
from poise_core.sandbox.command import GRANTED
from poise_core.training.job import TrainingJob
from poise_core.trajectory import CANDIDATE, CONTROLLER

LINE_CHARACTERS = 1 << 20  # limit for a line of a trajectory; the trainer writes a few hundred
COMPLETIONS = (
    "completions.jsonl"  # in a seed's folder: a few completions to read; a step that was repeated stands twice
)
COMPLETIONS_BYTES, MOST_COMPLETIONS = 1 << 20, 64
PAUSED_POLICY = "paused-policy"  # in a seed's folder until its training has finished


@dataclass(frozen=True)
class SeedTraining:
    """A training of one seed that is finished or paused."""

    seed: int
    policy_folder: Path  # holds no policy before the training has finished
    trajectory_path: Path  # one JSON object per step
    seconds: float
    tokens: int  # completion tokens sampled
    confinement: Mapping[str, str] = field(default_factory=dict)  # measure -> "granted" or why it was not

    @property
    def last_policy(self) -> Path | None:
        """The trained policy, or that of the pause; None where an earlier version paused and kept none."""
        paused = self.policy_folder.with_name(PAUSED_POLICY)
        return next((folder for folder in (self.policy_folder, paused) if folder.is_dir()), None)

    def trajectory(self) -> list[dict[str, float]]:
        """Read the rows of the trajectory, one per step.

        Raises:
            CandidateFailure: the file is not as the trainer writes it.
        """
        with suspected():
            return [_step_of(line) for _, line in json_lines(read_untrusted(self.trajectory_path))]


def unfinished_trajectory(job: TrainingJob, seed: int) -> tuple[list[dict[str, float]], dict[str, str]]:
    """Return the steps of a failed training as far as its file can be read, and the confinement of the process."""
    steps: list[dict[str, float]] = []
    with contextlib.suppress(FileNotFoundError, CandidateFailure), suspected():
        text = read_untrusted(job.folder / f"seed-{seed}" / "trajectory.jsonl")
        whole = text.rpartition("\n")[0]  # the last line may be incomplete
        steps.extend(_step_of(line) for _, line in json_lines(whole))
    return steps, recorded_confinement(job.folder)


def kept_completions(folder: Path) -> list[KeptCompletion]:
    """A few completions of a training, from the folder of its seed; none where the file is not as the trainer writes it.

    They are for reading and decide nothing, so what is wrong with them is no failure of the candidate.
    """
    found: dict[tuple[int, str], KeptCompletion] = {}
    try:
        lines = list(json_lines(read_untrusted(folder / COMPLETIONS, COMPLETIONS_BYTES)))
    except (OSError, UntrustedFileError, UnicodeDecodeError):
        return []
    for _, line in lines:
        with contextlib.suppress(CandidateFailure), suspected():
            one = _completion_of(line)
            if len(found) < MOST_COMPLETIONS or (one.step, one.kind) in found:
                found[one.step, one.kind] = one
    return list(found.values())


def _completion_of(line: str) -> KeptCompletion:
    """Parse one line of kept completions."""
    one = json.loads(line)
    step, kind, tokens, correctness = int(one["step"]), str(one["kind"]), int(one["tokens"]), float(one["correctness"])
    if kind not in KINDS or not (0 <= step < 2**31 and 0 <= tokens < 2**31 and 0.0 <= correctness <= 1.0):
        raise ValueError(f"{kind} at step {step}")
    prompt, text = cut(str(one["prompt"]), PROMPT_CHARACTERS), cut(str(one["completion"]), COMPLETION_CHARACTERS)
    valid, truncated = bool(one["format_valid"]), bool(one["truncated"])
    return KeptCompletion(TRAINING, step, kind, prompt, text, correctness, valid, truncated, tokens)


def record_path(job: TrainingJob, seed: int) -> Path | None:
    """Return the file that the worker wrote at the end of this seed or, where the job has a pause, at that or a later pause.

    Raises:
        CandidateFailure: the record of a pause is not as the worker writes it.
    """
    folder = job.folder / f"seed-{seed}"
    finished, paused = folder / "result.json", folder / "paused.json"
    if finished.exists():
        return finished
    if job.pause_after is None or not paused.exists():
        return None
    with suspected():
        steps = int(json.loads(read_untrusted(paused))["steps"])
    return paused if steps >= job.pause_after else None


@contextmanager
def suspected() -> Iterator[None]:
    """Turn the errors of a file that the trainer itself would not have written into a failure of the candidate."""
    try:
        yield
    except (
        UntrustedFileError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        message = f"the training left files that the trainer does not write: {error or type(error).__name__}"
        raise CandidateFailure(FailureKind.CRASHED, "train", message) from error


def _step_of(line: str) -> dict[str, float]:
    """Parse one line of a trajectory: metric -> number, ``step`` among them."""
    row = {str(name): float(value) for name, value in json.loads(line).items()}
    for name, value in (("step", row["step"]), ("tokens", row.get("tokens", 0.0))):
        if not (value.is_integer() and 0 <= value < 2**53):
            raise ValueError(f"{name} is {value}")
    own = [[name.removeprefix(prefix) for name in row if name.startswith(prefix)] for prefix in (CANDIDATE, CONTROLLER)]
    for names in (*own, [name for name in row if not name.startswith((CANDIDATE, CONTROLLER))]):
        if fault := name_fault("metric", names):
            raise ValueError(fault)
    return row


def read_training(job: TrainingJob, seed: int) -> SeedTraining:
    """Read a seed that is finished or paused.

    Raises:
        CandidateFailure: its files are not as the worker writes them.
    """
    folder = job.folder / f"seed-{seed}"
    record = record_path(job, seed)
    assert record is not None
    with suspected():
        document = json.loads(read_untrusted(record))
        seconds, tokens = float(document["seconds"]), int(document["tokens"])
        if record.name == "result.json":
            require_plain_folder(folder / "policy")
            # they are still there where the worker was killed after its last step
            for name in ("checkpoints", PAUSED_POLICY):
                shutil.rmtree(folder / name, ignore_errors=True)
            (folder / "paused.json").unlink(missing_ok=True)
        elif (folder / PAUSED_POLICY).exists():
            require_plain_folder(folder / PAUSED_POLICY)
    return SeedTraining(
        seed=seed,
        policy_folder=folder / "policy",
        trajectory_path=folder / "trajectory.jsonl",
        seconds=seconds,
        tokens=tokens,
        confinement=recorded_confinement(job.folder),
    )


def _confinement_path(folder: Path) -> Path:
    return folder / "confinement.json"


def recorded_confinement(folder: Path) -> dict[str, str]:
    """Read how the processes of a training were confined; empty before the first start."""
    path = _confinement_path(folder)
    return dict(json.loads(path.read_text())) if path.exists() else {}


def record_confinement(folder: Path, granted: Mapping[str, str]) -> None:
    """Record the measures that were missing at any start, because a training may be resumed on another machine."""
    missing = {name: text for name, text in recorded_confinement(folder).items() if text != GRANTED}
    write_atomically(_confinement_path(folder), json.dumps({**granted, **missing}))


class Follower:
    """A reader of the growing trajectories of the running seeds, which reports every step once.

    A resumed worker replaces the file by a new one that ends at its checkpoint; reading then starts again.
    """

    def __init__(self, folder: Path, seeds: list[int], on_step: Callable[[int, dict[str, float]], None] | None) -> None:
        self._on_step = on_step
        self._paths = {seed: folder / f"seed-{seed}" / "trajectory.jsonl" for seed in seeds}
        self._places = dict.fromkeys(seeds, (0, 0))  # inode, position
        self._next_step = dict.fromkeys(seeds, 0)

    def poll(self) -> None:
        """Report the complete lines that were written since the last call."""
        if self._on_step is None:
            return
        for seed, path in self._paths.items():
            with suspected(), contextlib.suppress(FileNotFoundError), open_untrusted(path) as stream:
                self._read(seed, stream)

    def _read(self, seed: int, stream: TextIO) -> None:
        inode, position = self._places[seed]
        if os.fstat(stream.fileno()).st_ino == inode:
            stream.seek(position)
        while (line := stream.readline(LINE_CHARACTERS)).endswith("\n"):
            self._places[seed] = (os.fstat(stream.fileno()).st_ino, stream.tell())
            row = _step_of(line)
            if row["step"] >= self._next_step[seed] and self._on_step is not None:
                self._next_step[seed] = int(row["step"]) + 1
                self._on_step(seed, row)
        if len(line) == LINE_CHARACTERS:
            raise UntrustedFileError(f"a line of trajectory.jsonl has more than {LINE_CHARACTERS} characters")
