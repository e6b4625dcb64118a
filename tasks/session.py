"""The evolution that this process runs, found by tasks through the path of its run directory.

Tasks take paths and names, never the object: Prefect stores and shows their parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from poise_core.agents.llm.ledger import Allowance
from poise_core.archive import Archive
from poise_core.config import Preset, PresetError, load_preset, with_overrides
from poise_core.environments.validate import require_fit
from poise_core.evolution import (
    CandidateRef,
    ChildProcesses,
    Event,
    Evolution,
    Executor,
    Observer,
    Roles,
    default_roles,
)
from poise_core.evolution.events import ignore
from poise_core.evolution.executor import default_executor
from poise_core.files import expanded
from poise_core.run_directory import RunDirectory, RunDirectoryError
from poise_core.views import find_candidate
from tasks.progress import ProgressArtifacts
from tasks.run_log import log_event
from tasks.slots import hold_slots
from tasks.suspension import stopped_when_suspended
from tasks.work_pool import WorkPool

_open: dict[Path, Evolution] = {}


@contextmanager
def evolution_session(
    run_dir: str | Path,
    preset: Preset | Callable[[], Preset] | None = None,
    *,
    observer: Observer = ignore,
    replay: Archive | None = None,
    allowance: Allowance | None = None,
    roles: Roles | None = None,
) -> Iterator[Evolution]:
    """The run's evolution for the length of the block; within another such block of this process, the same one.

    An exception that leaves the block first asks all running stages to end, so that none is waited for. A flow run that is
    suspended does the same.

    Args:
        run_dir: made where it is missing.
        preset: as loaded, or what loads it; not needed where the session is open already, or the run is there.
        observer: called with every event.
        replay: the archive of a recorded run to take all language models' answers from.
        allowance: the cost budget of language models.
        roles: instead of those of the preset.

    Raises:
        RunDirectoryError: the directory cannot be used for this preset, or is in use.
        PresetError: the preset cannot be used.
    """
    path = expanded(run_dir).absolute()
    if path in _open:
        with _stopping(_open[path]) as evolution:
            yield evolution
        return
    if preset is None:
        preset = RunDirectory.read(path).current_preset
    with (
        RunDirectory.open(path, preset() if callable(preset) else preset) as run,
        _bound(run, executor_for(run.preset), observer, replay, allowance, roles) as evolution,
    ):
        yield evolution


@contextmanager
def candidate_session(run_dir: str | Path, seeds: int | None = None) -> Iterator[Evolution]:
    """The evolution of a run that another process may have open, to work on single candidates of it.

    Args:
        run_dir: of an existing run.
        seeds: how many of the protocol's seeds to train with; by default as many as the run.

    Raises:
        RunDirectoryError: it is no run directory.
        PresetError: the protocol does not list so many seeds.
    """
    path = expanded(run_dir).absolute()
    if path in _open:
        with _stopping(_open[path]) as evolution:
            yield evolution
        return
    run = RunDirectory.join(path)
    if seeds is not None:
        run.preset = with_overrides(run.preset, [f"search.seeds_per_candidate={seeds}"])
    with _bound(run, default_executor()) as evolution:
        yield evolution


def executor_for(preset: Preset) -> Executor:
    """The work pool where the preset dispatches to one; otherwise child processes."""
    return default_executor(WorkPool if preset.resources.dispatch == "pool" else ChildProcesses)


def chosen_preset(run_dir: str | Path, preset: str, overrides: Sequence[str] = ()) -> Preset:
    """The preset of a run that is there, else the named one; with ``key=value`` changes.

    Raises:
        RunDirectoryError: the files of the run cannot be read.
        PresetError: the preset or a change cannot be used, or prompts of a new run do not fit into what its policy sees.
    """
    if RunDirectory.exists(run_dir):
        return with_overrides(RunDirectory.read(run_dir).current_preset, overrides)
    loaded = load_preset(preset, overrides)
    try:
        require_fit(loaded.protocol)
    except ValueError as error:
        raise PresetError(str(error)) from error
    return loaded


def next_generation(run_dir: str | Path) -> int:
    """The generation that a run goes on with: the one that was left unfinished, or the one after the last.

    Raises:
        RunDirectoryError: the files of the run cannot be read.
    """
    if not RunDirectory.exists(run_dir):
        return 1
    run = RunDirectory.join(run_dir)
    return Evolution(run, roles=default_roles(run.preset)).first_unfinished()


def make_run(run_dir: str | Path, preset: str) -> None:
    """Make the run directory where it is missing.

    Raises:
        RunDirectoryError: it cannot be made.
        PresetError: the preset cannot be used.
    """
    if not RunDirectory.exists(run_dir):
        RunDirectory.open(run_dir, load_preset(preset)).close()


def find_candidate_ref(archive: Archive, wanted: str) -> CandidateRef:
    """The candidate with this id, name, or beginning of an id.

    Raises:
        ArchiveError: none or several match.
    """
    (row,) = archive.rows("candidates", candidate_id=find_candidate(archive, wanted))
    return CandidateRef.of_row(row)


@contextmanager
def _bound(
    run: RunDirectory,
    executor: Executor,
    observer: Observer = ignore,
    replay: Archive | None = None,
    allowance: Allowance | None = None,
    roles: Roles | None = None,
) -> Iterator[Evolution]:
    """Register the evolution of a run for the length of the block."""
    resources = run.preset.resources
    with ProgressArtifacts(run.preset.protocol.training.steps) as progress:

        def tell(event: Event) -> None:
            observer(event)
            log_event(event)
            progress(event)

        slot = partial(hold_slots, resources.slots_limit, resources.training_processes, lambda: _open[run.path].stopped)
        evolution = Evolution(
            run,
            executor=executor,
            roles=roles,
            observer=tell,
            replay=replay,
            compute_slot=slot,
            allowance=allowance,
        )
        _open[run.path] = evolution
        try:
            with stopped_when_suspended(evolution.stop), _stopping(evolution):
                yield evolution
        finally:
            del _open[run.path]


def current_evolution(run_dir: str | Path) -> Evolution:
    """The evolution whose session is open.

    Raises:
        RunDirectoryError: none is open for this directory.
    """
    path = expanded(run_dir).absolute()
    if path not in _open:
        raise RunDirectoryError(f"{path}: no evolution of this run is open in this process")
    return _open[path]


@contextmanager
def _stopping(evolution: Evolution) -> Iterator[Evolution]:
    try:
        yield evolution
    except BaseException as error:
        evolution.stop(str(error))
        raise


def retry_limit() -> int:
    """How often a stage may be retried after a fault of the machine, by the presets of the open sessions."""
    return max((evolution.preset.resources.infrastructure_retries for evolution in _open.values()), default=0)


def parallel_candidates() -> int:
    """How many candidates may be worked on side by side, by the presets of the open sessions."""
    return max((evolution.preset.resources.parallel_candidates for evolution in _open.values()), default=1)
