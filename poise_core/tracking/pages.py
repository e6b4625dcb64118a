"""The pages that MLflow shows beside the numbers: what ``poise show`` and ``poise leaderboard`` print, as HTML."""

from __future__ import annotations

from collections.abc import Collection

from poise_core.evidence.run_evidence import RunEvidence
from poise_core.render.html import WIDTH, html_page
from poise_core.render.terminal import render_candidate, render_leaderboard
from poise_core.views import leaderboard, view_candidate


def candidate_page(evidence: RunEvidence, candidate_id: str) -> str:
    """One candidate: admission, idea, scores, evidence, training, reflection, failures. The source is an artifact of its own.

    Raises:
        poise_core.archive.ArchiveError: no such candidate, or a file cannot be read.
    """
    return html_page(render_candidate(view_candidate(evidence, candidate_id), code=False))


def generation_page(evidence: RunEvidence, members: Collection[str]) -> str:
    """The leaderboard, as far as the members of one generation and the baseline stand on it."""
    rows = leaderboard(evidence)
    shown = [row for row in rows if row.candidate_id in members or row.verdict == "baseline"]
    return html_page(render_leaderboard(shown, evidence.protocol, evidence=evidence, width=WIDTH))
