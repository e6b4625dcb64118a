"""The steps of many trainings as arrays: what a view draws of a thousand candidates, without a dictionary for every step."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from poise_core.archive.rows import STEP_COLUMNS

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Trained:
    """The steps that the trainings of one candidate have recorded: n rows, seeds one after the other, their steps in order."""

    seed: Indices  # (n,)
    step: Indices  # (n,)
    metrics: Mapping[str, tuple[Indices, Array]]  # metric -> the rows that recorded it, and its values there
    confinement: frozenset[str]  # records of the measures of the training processes, as JSON


def trained_steps(data: pa.Table) -> dict[str, Trained]:
    """Rows of ``trajectories``, in the table's order and of one protocol, by candidate.

    Metrics are in the order in which a candidate's rows name them first, as in ``trajectory_seeds``.
    """
    candidates = data["candidate_id"].combine_chunks().dictionary_encode()
    codes = candidates.indices.to_numpy()
    names = candidates.dictionary.to_pylist()
    bounds = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)] if len(codes) else [0]
    seed, step = (data[name].to_numpy() for name in ("seed", "step"))
    recorded = [
        (metric, rows, values, np.searchsorted(rows, bounds).tolist())
        for metric, (rows, values) in _recorded(data).items()
    ]
    confinement = data["confinement"].combine_chunks().dictionary_encode()
    measures, texts = confinement.indices.fill_null(-1).to_numpy(), confinement.dictionary.to_pylist()
    found = {}
    for place, (begin, end) in enumerate(itertools.pairwise(bounds)):
        own = [
            (metric, rows[ends[place] : ends[place + 1]] - begin, values[ends[place] : ends[place + 1]])
            for metric, rows, values, ends in recorded
            if ends[place] < ends[place + 1]
        ]
        own.sort(key=lambda one: int(one[1][0]))
        found[names[codes[begin]]] = Trained(
            seed[begin:end],
            step[begin:end],
            {metric: (rows, values) for metric, rows, values in own},
            frozenset(texts[code] for code in np.unique(measures[begin:end]) if code >= 0 and texts[code]),
        )
    return found


def _recorded(data: pa.Table) -> dict[str, tuple[Indices, Array]]:
    """Metric -> the rows that have it, and its values there."""
    found: dict[str, tuple[Indices, Array]] = {}
    for name in STEP_COLUMNS:
        if name != "step":
            column = data[name].combine_chunks()
            rows = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
            found[name] = rows, column.drop_null().to_numpy().astype(np.float64)
    other = data["metrics"].combine_chunks()
    offsets = other.offsets.to_numpy()
    owner = np.repeat(np.arange(data.num_rows), np.diff(offsets))
    within = slice(int(offsets[0]), int(offsets[-1]))  # a slice of a table still has the entries of the whole
    keys, values = other.keys[within].dictionary_encode(), other.items[within].to_numpy()
    codes = keys.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    ends = np.searchsorted(codes[order], np.arange(len(keys.dictionary) + 1))
    for code, name in enumerate(keys.dictionary.to_pylist()):
        rows = order[ends[code] : ends[code + 1]]
        found[name] = owner[rows], values[rows]
    return found
