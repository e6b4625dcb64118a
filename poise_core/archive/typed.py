"""Rows of the archive's tables, column by column. Made by ``python -m poise_core.archive.typed_source``; do not edit.

Every column is there in a row that was read. Of a row that is to be written, those that are computed or may be null may be
left out.
"""

import datetime as dt
from typing import NotRequired, TypedDict


class CandidateRow(TypedDict):
    """One row per implemented algorithm, admitted or not."""

    row_key: NotRequired[str]
    candidate_id: str
    name: str
    generation: int
    parent_ids: list[str]
    arm: str
    source: str
    source_digest: str
    mechanisms: str
    composition: NotRequired[str | None]
    hypothesis: NotRequired[str | None]
    change: NotRequired[str | None]
    proposal_id: NotRequired[str | None]
    revises: NotRequired[str | None]
    written_by: str
    created_at: NotRequired[dt.datetime]
    content_digest: NotRequired[str]


class ProposalRow(TypedDict):
    """One row per idea, taken or not; a part holds one proposer's answer for one slot of a generation."""

    row_key: NotRequired[str]
    proposal_id: str
    arm: str
    generation: int
    slot: int
    index: int
    name: str
    parent_ids: list[str]
    hypothesis: str
    change: str
    content: str
    rank: NotRequired[int | None]
    score: NotRequired[float | None]
    terms: NotRequired[dict[str, float] | None]
    feasible: NotRequired[bool | None]
    taken: bool
    reasons: list[str]
    screened_by: NotRequired[str | None]
    written_by: str
    created_at: NotRequired[dt.datetime]
    content_digest: NotRequired[str]


class VerificationRow(TypedDict):
    """One row per candidate that went through the admission gate."""

    row_key: NotRequired[str]
    candidate_id: str
    admitted: bool
    fingerprint: NotRequired[str | None]
    report: str
    seconds: NotRequired[float | None]
    written_by: str
    created_at: NotRequired[dt.datetime]
    content_digest: NotRequired[str]


class EvaluationRow(TypedDict):
    """One row per benchmark of a trained policy; a part holds one seed on one split."""

    row_key: NotRequired[str]
    protocol: str
    candidate_id: str
    split: str
    seed: int
    benchmark: str
    metric: str
    score: float
    correct: list[int]
    samples: int
    format_valid: float
    completion_length: float
    graded: NotRequired[dict[str, int] | None]
    overall: float
    problems: NotRequired[str | None]
    seconds: NotRequired[float | None]
    written_by: str
    created_at: NotRequired[dt.datetime]
    content_digest: NotRequired[str]


class TrajectoryRow(TypedDict):
    """One row per training step; a part holds one seed of one candidate."""

    row_key: NotRequired[str]
    protocol: str
    candidate_id: str
    seed: int
    step: int
    reward_mean: NotRequired[float | None]
    format_valid: NotRequired[float | None]
    completion_length: NotRequired[float | None]
    truncated: NotRequired[float | None]
    entropy: NotRequired[float | None]
    kl: NotRequired[float | None]
    clip_fraction: NotRequired[float | None]
    grad_norm: NotRequired[float | None]
    loss: NotRequired[float | None]
    all_fail_fraction: NotRequired[float | None]
    all_pass_fraction: NotRequired[float | None]
    learning_rate: NotRequired[float | None]
    tokens: NotRequired[int | None]
    sampler_kl: NotRequired[float | None]
    sampler_ess: NotRequired[float | None]
    sampler_gap: NotRequired[float | None]
    seconds_rollout: NotRequired[float | None]
    seconds_update: NotRequired[float | None]
    confinement: NotRequired[str | None]
    metrics: dict[str, float]
    written_by: str
    created_at: NotRequired[dt.datetime]
    content_digest: NotRequired[str]


class ReflectionRow(TypedDict):
    """One row per reflected candidate: what it taught."""

    row_key: NotRequired[str]
    protocol: str
    candidate_id: str
    parent_id: NotRequired[str | None]
    summary: str
    markdown: str
    content: str
    written_by: str
    created_at: NotRequired[dt.datetime]
    content_digest: NotRequired[str]


class SelectionRow(TypedDict):
    """One row per node and generation: how it was judged as a parent; a part holds one generation."""

    row_key: NotRequired[str]
    protocol: str
    arm: str
    generation: int
    candidate_id: str
    total: NotRequired[float | None]
    terms: dict[str, float]
    selected: bool
    slots: list[int]
    reason: NotRequired[str | None]
    written_by: str
    created_at: NotRequired[dt.datetime]
    content_digest: NotRequired[str]


class FailureRow(TypedDict):
    """One row per failure of a candidate; never a score."""

    row_key: NotRequired[str]
    protocol: str
    candidate_id: str
    stage: str
    attempt: int
    kind: str
    message: str
    detail: str
    name: NotRequired[str | None]
    generation: NotRequired[int | None]
    parent_id: NotRequired[str | None]
    written_by: str
    created_at: NotRequired[dt.datetime]
    content_digest: NotRequired[str]


class RungRow(TypedDict):
    """One row per rung of the ladder that a candidate has stood on: what was measured there, and what was decided."""

    row_key: NotRequired[str]
    protocol: str
    candidate_id: str
    rung: str
    generation: int
    seeds: list[int]
    steps: int
    tokens: int
    decision: str
    cause: NotRequired[str | None]
    value: NotRequired[float | None]
    reference: NotRequired[str | None]
    difference: NotRequired[float | None]
    probability: NotRequired[float | None]
    noise_std: NotRequired[float | None]
    noise_freedom: NotRequired[float | None]
    message: str
    stopped_overall: NotRequired[float | None]
    stopped_step: NotRequired[int | None]
    written_by: str
    created_at: NotRequired[dt.datetime]
    content_digest: NotRequired[str]


class ReplicationRow(TypedDict):
    """One row per candidate that was replicated: trained again with fresh seeds, beside the baseline, and read on `report`."""

    row_key: NotRequired[str]
    protocol: str
    candidate_id: str
    baseline_id: str
    declared: bool
    seeds: list[int]
    outcome: str
    overall: NotRequired[float | None]
    baseline_overall: NotRequired[float | None]
    delta: NotRequired[float | None]
    low: NotRequired[float | None]
    high: NotRequired[float | None]
    message: str
    written_by: str
    created_at: NotRequired[dt.datetime]
    content_digest: NotRequired[str]


class ExaminationRow(TypedDict):
    """One row per condition under which a candidate was examined beside the baseline, with fresh seeds, on sealed problems."""

    row_key: NotRequired[str]
    protocol: str
    candidate_id: str
    condition: str
    baseline_id: str
    verdict: str
    declared: bool
    overall: NotRequired[float | None]
    baseline_overall: NotRequired[float | None]
    delta: NotRequired[float | None]
    low: NotRequired[float | None]
    high: NotRequired[float | None]
    level: NotRequired[float | None]
    worst: NotRequired[float | None]
    baseline_worst: NotRequired[float | None]
    collapsed: NotRequired[int | None]
    collapse_bound: NotRequired[float | None]
    rate: NotRequired[float | None]
    baseline_rate: NotRequired[float | None]
    seeds: list[int]
    choice_seeds: list[int]
    sealed_set: int
    planned: list[str]
    examination: str
    detail: str
    message: str
    written_by: str
    created_at: NotRequired[dt.datetime]
    content_digest: NotRequired[str]


class AblationRow(TypedDict):
    """One row per version of a candidate's file that its ablation has measured, or that the gate or training has refused."""

    row_key: NotRequired[str]
    protocol: str
    candidate_id: str
    version: str
    dropped: list[str]
    numbers: str
    name: str
    source: str
    measured: NotRequired[str | None]
    outcome: str
    seeds: list[int]
    overall: NotRequired[float | None]
    delta: NotRequired[float | None]
    low: NotRequired[float | None]
    high: NotRequired[float | None]
    generation: int
    message: str
    written_by: str
    created_at: NotRequired[dt.datetime]
    content_digest: NotRequired[str]


class CompletionRow(TypedDict):
    """One row per completion that was kept to be read; a part holds a few of one training, or of its evaluation on `search`."""

    row_key: NotRequired[str]
    protocol: str
    candidate_id: str
    seed: int
    origin: str
    benchmark: str
    step: int
    kind: str
    prompt: str
    completion: str
    correctness: float
    format_valid: bool
    truncated: bool
    tokens: int
    written_by: str
    created_at: NotRequired[dt.datetime]
    content_digest: NotRequired[str]


class CallRow(TypedDict):
    """One row per attempt at a language model, paid or failed: the ledger, and the recording that a replay reads."""

    row_key: NotRequired[str]
    call_id: str
    scope: str
    role: str
    generation: int
    model: str
    method: str
    attempt: int
    outcome: str
    message: NotRequired[str | None]
    input_tokens: int
    output_tokens: int
    estimated: bool
    dollars: NotRequired[float | None]
    seconds: NotRequired[float | None]
    prompt: str
    request_digest: str
    request: str
    answer: NotRequired[str | None]
    replayed: bool
    written_by: str
    created_at: NotRequired[dt.datetime]
    content_digest: NotRequired[str]
