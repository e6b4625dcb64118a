"""The picks of several searches, each trained again with fresh seeds beside the baseline and scored on sealed problems.

By its own numbers a search's best candidate is overestimated: it is the best of many, and the more children a search makes of its
budget, the more so. So arms are compared by what their picks score again. Each measurement is the replication of a candidate
(``poise_core.experiments.replication``), declared or not, and counts as such in its run. Runs that ask the same problems with the
same fresh seeds share the baseline's trainings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from poise_core.archive.typed import ReplicationRow
from poise_core.evolution.events import Observer, ignore
from poise_core.evolution.executor import Executor, default_executor
from poise_core.experiments.arms import ArmRun
from poise_core.experiments.replication import Replication
from poise_core.run_directory import RunDirectory


def measure_again(
    run: ArmRun,
    candidate: str,
    count: int,
    others: Mapping[Path, str],
    *,
    executor: Executor | None = None,
    observer: Observer = ignore,
    on_row: Callable[[RunDirectory], None] = lambda run: None,
) -> ReplicationRow | None:
    """Replicate the pick of one run, or read back what was found.

    Args:
        run: finished, of ``poise_core.experiments.arms.arm_runs``.
        candidate: what it picked.
        count: fresh seeds.
        others: folder -> pick of the runs whose sealed scores of the baseline may be shared.
        executor: carries out trainings and evaluations; by default child processes of this one.
        observer: called with every event.
        on_row: called with the run, still open, once there is a row.

    Returns:
        The row of ``replications``; None where the pick is the baseline, with which there is nothing to compare.

    Raises:
        ReplicationRefused: its replication was begun with another number of seeds.
        InfrastructureError, Cancelled: see ``Replication.carry_out``.
    """
    with RunDirectory.open(run.folder, run.preset) as opened:
        if candidate == opened.evidence().baseline:
            return None
        mine = Replication(opened, candidate, executor=executor or default_executor(), observer=observer)
        row = mine.stored()
        if row is None:
            plan = mine.begin(count, undeclared=True)
            for folder, pick in others.items():
                if mine.share_baseline(plan, Replication(RunDirectory.read(folder), pick)):
                    break
            row = mine.replicate(plan)
        on_row(opened)
        return row
