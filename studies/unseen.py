"""How far the surrogate of a table may be trusted where searches go: fitted to one table, it predicts the compositions of another.

``python -m studies.unseen docs/results/table.parquet docs/results/searched.parquet`` fits to the first, of random compositions, and
predicts those of the second, which searches have chosen by scores. Cross-validation on one table does not tell this. The parts of
the surrogate, pairs and trees, are shown beside their mean (``poise_core.experiments.surrogate``). Compositions that fall in either
table are left out.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy import stats

from poise_core.evidence.noise import Array
from poise_core.experiments.surrogate import Cells, Surrogate, from_line


def predictions(known: Cells, others: Cells) -> tuple[Array, Mapping[str, Array]]:
    """(m,) Overall of the compositions that are in the second table alone, percent, and (m,) what each part predicts.

    Args:
        known: cells that are fitted to.
        others: cells to predict, of the same protocol and so with the same outputs.
    """
    surrogate = Surrogate.fit(known.upright())
    seen = set(known.compositions)
    kept = [
        row for row, one in enumerate(others.compositions) if one not in seen and others.overall[row] >= known.floor
    ]
    codes, numbers = others.codes[kept], others.numbers[kept]
    lines = {
        "pairs": surrogate.effects.at(codes, numbers),
        "trees": surrogate.forest.predict(codes, numbers),
        "their mean (in use)": surrogate.at(codes, numbers),
    }
    said = {name: from_line(line, known.weights) @ known.weights for name, line in lines.items()}
    return others.standing().overall[kept], said


def table(true: Array, said: Mapping[str, Array]) -> str:
    """A Markdown table: Spearman's correlation, slope of what was measured on what was predicted, root mean square error."""
    lines = ["| predicted by | rank correlation | slope | error |", "|---|---|---|---|"]
    for name, guess in said.items():
        rank = float(stats.spearmanr(guess, true).statistic)
        slope = float(np.polyfit(guess, true, 1)[0])
        lines.append(f"| {name} | {rank:.2f} | {slope:.2f} | {math.sqrt(float(((guess - true) ** 2).mean())):.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m studies.unseen", description=__doc__)
    parser.add_argument("known", type=Path, help="table that is fitted to")
    parser.add_argument("others", type=Path, help="table whose compositions are predicted")
    given = parser.parse_args()
    true, said = predictions(*(Cells.read([path]) for path in (given.known, given.others)))
    print(f"{len(true)} compositions.\n\n{table(true, said)}")


if __name__ == "__main__":
    main()
