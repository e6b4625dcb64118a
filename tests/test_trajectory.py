"""The columns of a training: named once, and the same for the trainer, the archive and whoever reads them."""

from typing import get_args

from poise_core.archive.schema import TRAJECTORIES
from poise_core.trajectory import COLUMNS, RUN_METRICS, Column


def test_every_name_is_described() -> None:
    assert set(get_args(Column)) == set(COLUMNS)
    assert all(quantity.meaning for quantity in COLUMNS.values())
    assert {metric.column for metric in RUN_METRICS.values()} <= set(COLUMNS)


def test_the_archive_has_a_column_for_each() -> None:
    """What it has beside them says whose row it is, how it was confined, and holds the metrics that only some rows have."""
    others = {"protocol", "candidate_id", "seed", "confinement", "metrics"}
    assert {field.name for field in TRAJECTORIES.own_fields} - others == set(COLUMNS)
