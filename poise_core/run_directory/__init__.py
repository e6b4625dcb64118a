"""The folder of one run: its frozen preset, its lock, and the places of its files.

::

    RUN_DIR/ preset.yaml       the preset of the first start and the protocol's digest; never changed
             settings.json     what later starts changed beside the protocol
             archive/          the Parquet tables, unless the preset names another place for them
             .archive-owner    this run's name in such a place
             mlflow.db         tracking, with mlartifacts/
             candidates/<id>/  files of each candidate: candidate.py, verification.json, train/, evaluate/
             .lock             held while an evolution runs
"""

from poise_core.run_directory.directory import RunDirectory, candidate_id, require_usable_place
from poise_core.run_directory.records import RunDirectoryError

__all__ = ["RunDirectory", "RunDirectoryError", "candidate_id", "require_usable_place"]
