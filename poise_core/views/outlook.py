"""The outlook of a run: whether its search is on a plateau, and whether another generation is worth its cost."""

from __future__ import annotations

from poise_core.config import Preset
from poise_core.evidence.run_evidence import RunEvidence
from poise_core.evolution.history import History
from poise_core.search.plateau import Plateau, assess_plateau


def outlook(evidence: RunEvidence, preset: Preset) -> Plateau:
    """The plateau state of the search after its last generation, with the mean training tokens of a generation.

    Raises:
        poise_core.archive.ArchiveError: a file cannot be read.
    """
    nodes = History(evidence.archive, evidence.protocol).nodes(10**9)
    made = max((node.generation for node in nodes), default=0)
    spent = evidence.training_tokens
    children = sum(spent.get(node.candidate_id, 0) for node in nodes if node.generation > 0)
    tokens = children / made if made and children else None
    return assess_plateau(nodes, preset.search.plateau, parents=preset.search.parents, tokens=tokens)
