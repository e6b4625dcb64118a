"""Predictions of one table from another, where what pays is known."""

from __future__ import annotations

import numpy as np
import pytest
from made_up_tables import compositions_that_pay

from studies.unseen import predictions, table


def test_only_what_is_new_and_does_not_fall_is_predicted() -> None:
    known, others = compositions_that_pay(150), compositions_that_pay(190)
    true, said = predictions(known, others)
    new = [row for row in range(150, 190) if others.overall[row] >= known.floor]
    assert 0 < len(new) < 40, "some of them fall"
    assert true == pytest.approx(others.overall[new])
    for guess in said.values():
        assert np.corrcoef(guess, true)[0, 1] > 0.5
    pairs, trees, both = said.values()
    assert ((np.minimum(pairs, trees) - 1e-9 <= both) & (both <= np.maximum(pairs, trees) + 1e-9)).all()


def test_the_table_by_hand() -> None:
    """Half of every difference is predicted, in the right order: slope 2; errors 1, 0 and 1."""
    shown = table(np.array([68.0, 70.0, 72.0]), {"half": np.array([69.0, 70.0, 71.0])})
    assert shown.splitlines()[-1] == "| half | 1.00 | 2.00 | 0.82 |"
