"""Whether the search of a run still gets anywhere, in a sentence or two."""

from __future__ import annotations

from poise_core.archive import Archive
from poise_core.config import Preset
from poise_core.evolution.history import Memory
from poise_core.search.plateau import Plateau, assess_plateau
from poise_core.views.arms import training_tokens


def outlook(archive: Archive, preset: Preset) -> Plateau:
    """The state of the search after all generations there are, with the training tokens that one has cost on average.

    Raises:
        poise_core.archive.ArchiveError: a file cannot be read.
    """
    nodes = Memory(archive, preset.protocol).nodes(10**9)
    made = max((node.generation for node in nodes), default=0)
    spent = training_tokens(archive, preset.protocol)
    children = sum(spent.get(node.candidate_id, 0) for node in nodes if node.generation > 0)
    tokens = children / made if made and children else None
    return assess_plateau(nodes, preset.search.plateau, parents=preset.search.parents, tokens=tokens)


def outlook_note(archive: Archive, preset: Preset) -> str:
    """For people; empty while there are too few generations to say anything."""
    state = outlook(archive, preset)
    described = state.describe()
    if not described:
        return ""
    return f"{'Plateau' if state.stalled else 'No plateau'}: {described}"
