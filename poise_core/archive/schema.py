"""The archive's tables: columns, types, keys, and what each column means.

``python -m poise_core.archive.schema`` prints the listing that stands in ``docs/archive.md``; a test compares the two.

A *part* is one Parquet file and holds the rows of one append. Its name follows from the table's ``part_keys``;
within it the ``row_keys`` tell rows apart. So a part is found without reading anything, and a row can exist only once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import pyarrow as pa

SCHEMA_VERSION: Final = 1
COMPACTED_VERSION: Final = 2
"""Stands in ``schema.parquet`` of a table that was compacted: a program that knows parts only must not take it for empty."""
WRITERS: Final = ("catalogue", "llm", "rules", "human", "poise")
SPLITS: Final = ("search", "report")
EVOLUTION_ARM: Final = "evolution"
UNTRAINED_ARM: Final = "untrained"

_TEXT, _INT, _FLOAT, _BOOL = pa.string(), pa.int64(), pa.float64(), pa.bool_()
_TEXTS, _TERMS = pa.list_(pa.string()), pa.map_(pa.string(), pa.float64())
_TIME = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True)
class Field:
    """One column."""

    name: str
    type: pa.DataType
    doc: str
    nullable: bool = False
    counts: bool = True  # False: may differ when the same row is written again; the first value stays
    finite: bool = False  # True: NaN and infinities are refused
    allowed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """One table: a folder of parts."""

    name: str
    doc: str
    part_keys: tuple[str, ...]
    row_keys: tuple[str, ...]  # beside part_keys; empty where a part has one row
    own_fields: tuple[Field, ...]
    later: bool = False  # it came after the first archives were made: one without it reads as one without rows of it

    @property
    def keys(self) -> tuple[str, ...]:
        """The columns that make ``row_key``."""
        return self.part_keys + self.row_keys

    @property
    def fields(self) -> tuple[Field, ...]:
        """All columns, those that every table has included."""
        return (*_HEAD, *self.own_fields, *_TAIL)

    @cached_property
    def schema(self) -> pa.Schema:
        """The Arrow schema, with the documentation of every column and the schema version in its metadata."""
        fields = [pa.field(f.name, f.type, f.nullable, metadata={"doc": f.doc}) for f in self.fields]
        metadata = {"poise.schema_version": str(SCHEMA_VERSION), "poise.table": self.name}
        return pa.schema(fields, metadata=metadata)


COMPUTED = frozenset({"row_key", "content_digest"})
"""Columns that the archive fills in itself."""

_HEAD = (Field("row_key", _TEXT, "the key columns, percent-encoded and joined by `/`; unique in the table"),)
_TAIL = (
    Field("written_by", _TEXT, "who wrote the content; `poise` is a measurement", allowed=WRITERS),
    Field("created_at", _TIME, "when the row was made, UTC", counts=False),
    Field("content_digest", _TEXT, "16 hex digits of SHA-256 over the columns that count", counts=False),
)
_CANDIDATE = Field("candidate_id", _TEXT, "`<name-slug>-<10 hex digits of the source's digest>`")
_PROTOCOL = Field("protocol", _TEXT, "digest of the protocol; rows with different digests are never ranked together")
EXAMINED: Final = "examination-"
"""Stands before the digest of the protocol where an examination has trained for itself, at another learning rate for example."""
ABLATED: Final = "ablation-"
"""Stands there where an ablation has trained another version of a candidate's file, which is no candidate of the search."""
_SECONDS = Field("seconds", _FLOAT, "wall-clock seconds that it took", nullable=True, counts=False)

CANDIDATES = Table(
    "candidates",
    "One row per implemented algorithm, admitted or not.",
    ("candidate_id",),
    (),
    (
        _CANDIDATE,
        Field("name", _TEXT, "short name, for example VM-AV"),
        Field("generation", _INT, "0 for the baseline"),
        Field("parent_ids", _TEXTS, "candidate ids, the primary parent first; empty for a root"),
        Field("arm", _TEXT, "which search made it; `evolution`, a control arm, or `untrained` for the base policy"),
        Field("source", _TEXT, "the candidate file"),
        Field("source_digest", _TEXT, "SHA-256 of the normalized source, 64 hex digits"),
        Field("mechanisms", _TEXT, "JSON object, slot -> choice (or the file's own table of mechanisms)"),
        Field("composition", _TEXT, "JSON of the catalogue's composition, where there is one", nullable=True),
        Field("hypothesis", _TEXT, "what should get better, and why", nullable=True),
        Field("change", _TEXT, "what differs from the parent", nullable=True),
        Field("proposal_id", _TEXT, "the row of `proposals` that it implements", nullable=True),
        Field(
            "revises",
            _TEXT,
            "candidate id of the file of the same proposal before it, whose failure at the gate or in training it answers",
            nullable=True,
        ),
    ),
)
PROPOSALS = Table(
    "proposals",
    "One row per idea, taken or not; a part holds one proposer's answer for one slot of a generation.",
    ("arm", "generation", "slot"),
    ("index",),
    (
        Field("proposal_id", _TEXT, "`<arm>-g<generation>-s<slot>-p<index>`"),
        Field("arm", _TEXT, "which search asked for it"),
        Field("generation", _INT, "of the child it would become"),
        Field("slot", _INT, "slot of the generation, from 0"),
        Field("index", _INT, "order in which the proposer gave it, from 0"),
        Field("name", _TEXT, "proposed name"),
        Field("parent_ids", _TEXTS, "candidate ids, the primary parent first"),
        Field("hypothesis", _TEXT, "what should get better, and why"),
        Field("change", _TEXT, "what differs from the parent"),
        Field("content", _TEXT, "the whole proposal as JSON"),
        Field("rank", _INT, "the screener's rank, 0 is best", nullable=True),
        Field("score", _FLOAT, "the screener's score", nullable=True),
        Field("terms", _TERMS, "what the score is made of", nullable=True),
        Field("feasible", _BOOL, "whether the screener lets it through", nullable=True),
        Field("taken", _BOOL, "whether it was implemented"),
        Field("reasons", _TEXTS, "the screener's sentences"),
        Field("screened_by", _TEXT, "who ranked: `catalogue` or `llm`", nullable=True),
    ),
)
VERIFICATIONS = Table(
    "verifications",
    "One row per candidate that went through the admission gate.",
    ("candidate_id",),
    (),
    (
        _CANDIDATE,
        Field("admitted", _BOOL, "whether it may be trained"),
        Field("fingerprint", _TEXT, "what it does on fixed batches; equal means same behaviour", nullable=True),
        Field("report", _TEXT, "the gate's report as JSON, every check with its sentence", counts=False),
        _SECONDS,
    ),
)
EVALUATIONS = Table(
    "evaluations",
    "One row per benchmark of a trained policy; a part holds one seed on one split.",
    ("protocol", "candidate_id", "split", "seed"),
    ("benchmark",),
    (
        _PROTOCOL,
        _CANDIDATE,
        Field("split", _TEXT, "`search` drives selection; `report` is sealed until replication", allowed=SPLITS),
        Field("seed", _INT, "training seed"),
        Field("benchmark", _TEXT, "name in the protocol"),
        Field("metric", _TEXT, "`pass@<k>` or `acc@1`"),
        Field("score", _FLOAT, "percent", finite=True),
        Field("correct", pa.list_(pa.int32()), "correct completions of each problem"),
        Field("samples", _INT, "completions per problem"),
        Field("format_valid", _FLOAT, "share of completions whose answer parses"),
        Field("completion_length", _FLOAT, "mean tokens per completion"),
        Field(
            "graded",
            pa.map_(pa.string(), pa.int64()),
            "how gradings ended -> completions: right, partial, wrong, malformed, timed_out, failed, cut_off; null in older rows",
            nullable=True,
            counts=False,
        ),
        Field("overall", _FLOAT, "weighted mean over the benchmarks of this part, percent", finite=True),
        Field(
            "problems", _TEXT, "fingerprint of the problems that were asked; null for the public ones", nullable=True
        ),
        _SECONDS,
    ),
)
TRAJECTORIES = Table(
    "trajectories",
    "One row per training step; a part holds one seed of one candidate."
    " One that was stopped keeps the steps that it was stopped at, trained further by hand or not.",
    ("protocol", "candidate_id", "seed"),
    ("step",),
    (
        _PROTOCOL,
        _CANDIDATE,
        Field("seed", _INT, "training seed"),
        Field("step", _INT, "training step, from 0"),
        Field("reward_mean", _FLOAT, "mean correctness of the rollout", nullable=True),
        Field("format_valid", _FLOAT, "share of completions whose answer parses", nullable=True),
        Field("completion_length", _FLOAT, "mean tokens per completion", nullable=True),
        Field("truncated", _FLOAT, "share of completions that hit the length limit", nullable=True),
        Field("entropy", _FLOAT, "mean token entropy, nats", nullable=True),
        Field("kl", _FLOAT, "KL to the initial policy per token, nats", nullable=True),
        Field("clip_fraction", _FLOAT, "share of tokens whose ratio was clipped", nullable=True),
        Field("grad_norm", _FLOAT, "gradient norm before clipping", nullable=True),
        Field("loss", _FLOAT, "the minimized loss", nullable=True),
        Field("all_fail_fraction", _FLOAT, "share of groups without a correct completion", nullable=True),
        Field("all_pass_fraction", _FLOAT, "share of groups with only correct completions", nullable=True),
        Field("learning_rate", _FLOAT, "of this step", nullable=True),
        Field("tokens", _INT, "completion tokens sampled in this step", nullable=True),
        Field("sampler_kl", _FLOAT, "KL of the sampler to the trainer per token, nats", nullable=True),
        Field("sampler_ess", _FLOAT, "effective sample size of exp(trainer - sampler), share", nullable=True),
        Field("sampler_gap", _FLOAT, "largest difference of a log-probability, nats", nullable=True),
        Field("seconds_rollout", _FLOAT, "wall-clock seconds", nullable=True, counts=False),
        Field("seconds_update", _FLOAT, "wall-clock seconds", nullable=True, counts=False),
        Field(
            "confinement",
            _TEXT,
            "JSON, measure -> `granted` or why the machine refused it",
            nullable=True,
            counts=False,
        ),
        Field("metrics", _TERMS, "every other metric by name, such as `candidate/...` and `controller/...`"),
    ),
)
REFLECTIONS = Table(
    "reflections",
    "One row per reflected candidate: what it taught.",
    ("protocol", "candidate_id"),
    (),
    (
        _PROTOCOL,
        _CANDIDATE,
        Field("parent_id", _TEXT, "the parent it was contrasted with", nullable=True),
        Field("summary", _TEXT, "one paragraph"),
        Field("markdown", _TEXT, "the whole reflection as Markdown"),
        Field("content", _TEXT, "the whole reflection as JSON"),
    ),
)
SELECTIONS = Table(
    "selections",
    "One row per node and generation: how it was judged as a parent; a part holds one generation.",
    ("protocol", "arm", "generation"),
    ("candidate_id",),
    (
        _PROTOCOL,
        Field("arm", _TEXT, "which search selected"),
        Field("generation", _INT, "of the children to be made"),
        _CANDIDATE,
        Field("total", _FLOAT, "the acquisition value; null where the node could not be a parent", nullable=True),
        Field("terms", _TERMS, "what the value is made of"),
        Field("selected", _BOOL, "whether it became a parent"),
        Field("slots", pa.list_(pa.int32()), "the slots of the generation that it fills"),
        Field("reason", _TEXT, "why it was selected", nullable=True),
    ),
)
FAILURES = Table(
    "failures",
    "One row per failure of a candidate; never a score. Faults of the machine are retried and leave no row.",
    ("protocol", "candidate_id", "stage", "attempt"),
    (),
    (
        _PROTOCOL,
        Field("candidate_id", _TEXT, "the candidate, or the proposal where no code came to exist"),
        Field("stage", _TEXT, "implement, verify, train, evaluate"),
        Field("attempt", _INT, "from 0"),
        Field("kind", _TEXT, "a value of `poise_core.failures.FailureKind`"),
        Field("message", _TEXT, "one sentence", counts=False),
        Field("detail", _TEXT, "traceback or report", counts=False),
        Field("name", _TEXT, "name of the candidate or the proposal", nullable=True),
        Field("generation", _INT, "of the candidate", nullable=True),
        Field("parent_id", _TEXT, "the primary parent", nullable=True),
    ),
)
CALLS = Table(
    "calls",
    "One row per attempt at a language model, paid or failed: the ledger, and the recording that a replay reads.",
    ("call_id",),
    (),
    (
        Field("call_id", _TEXT, "`<scope>/<role>-<digest of the request>-<attempt>`"),
        Field("scope", _TEXT, "what was asked about: the slot of a generation, or the candidate"),
        Field("role", _TEXT, "proposer, screener, implementer or reflector"),
        Field("generation", _INT, "for the caps per generation"),
        Field("model", _TEXT, "`<provider>:<name>`"),
        Field("method", _TEXT, "json_schema, function_calling, prompt, or tools where some could be called"),
        Field("attempt", _INT, "how often the same had been asked before"),
        Field("outcome", _TEXT, "a value of `poise_core.agents.llm.faults.Outcome`"),
        Field("message", _TEXT, "what was wrong, one line", nullable=True, counts=False),
        Field("input_tokens", _INT, "tokens of the prompt"),
        Field("output_tokens", _INT, "tokens of the answer"),
        Field("estimated", _BOOL, "whether the tokens are estimates, because the server reported none"),
        Field("dollars", _FLOAT, "by the price table of the run; null where the model has no price", nullable=True),
        _SECONDS,
        Field("prompt", _TEXT, "prompt file, version and hash"),
        Field("request_digest", _TEXT, "12 hex digits of SHA-256 of the request"),
        Field("request", _TEXT, "JSON of what was sent"),
        Field("answer", _TEXT, "JSON of what came back; null where nothing did", nullable=True),
        Field("replayed", _BOOL, "whether it was read from another run's recording", counts=False),
    ),
    later=True,
)

RUNGS = Table(
    "rungs",
    "One row per rung of the ladder that a candidate has stood on: what was measured there, and what was decided.",
    ("protocol", "candidate_id", "rung"),
    (),
    (
        _PROTOCOL,
        _CANDIDATE,
        Field("rung", _TEXT, "how far training went", allowed=("proxy", "first", "all")),
        Field("generation", _INT, "of the candidate"),
        Field("seeds", pa.list_(pa.int32()), "training seeds so far"),
        Field("steps", _INT, "steps of the longest training so far"),
        Field("tokens", _INT, "completion tokens sampled in training so far"),
        Field("decision", _TEXT, "no failure, no score", allowed=("promoted", "stopped", "finished")),
        Field("cause", _TEXT, "why it was stopped: `race` or `certain_loss`", nullable=True),
        Field("value", _FLOAT, "reward at the proxy, Overall above it, percent", nullable=True),
        Field("reference", _TEXT, "candidate id that it compared worst with", nullable=True),
        Field("difference", _FLOAT, "to the reference at the same seeds, percent points", nullable=True),
        Field("probability", _FLOAT, "that it is truly better than the reference", nullable=True),
        Field("noise_std", _FLOAT, "standard error of that difference, percent points", nullable=True),
        Field("noise_freedom", _FLOAT, "degrees of freedom behind it", nullable=True),
        Field("message", _TEXT, "the decision in one sentence"),
        Field(
            "stopped_overall",
            _FLOAT,
            "Overall of the policy at which training was stopped, percent, to check the stop by; no score of the candidate",
            nullable=True,
            counts=False,
        ),
        Field("stopped_step", _INT, "steps that this policy was trained", nullable=True, counts=False),
    ),
    later=True,
)
REPLICATIONS = Table(
    "replications",
    "One row per candidate that was replicated: trained again with fresh seeds, beside the baseline, and read on `report`.",
    ("protocol", "candidate_id"),
    (),
    (
        _PROTOCOL,
        _CANDIDATE,
        Field("baseline_id", _TEXT, "the candidate that it was compared with"),
        Field("declared", _BOOL, "whether it was a champion candidate when it was replicated"),
        Field("seeds", pa.list_(pa.int32()), "fresh training seeds"),
        Field("outcome", _TEXT, "what the sealed split says", allowed=("replicated", "refuted", "failed")),
        Field("overall", _FLOAT, "on the report split, percent", nullable=True),
        Field("baseline_overall", _FLOAT, "on the report split, percent", nullable=True),
        Field("delta", _FLOAT, "paired difference to the baseline, percent points", nullable=True),
        Field("low", _FLOAT, "lower limit of its 95 % interval", nullable=True),
        Field("high", _FLOAT, "upper limit of its 95 % interval", nullable=True),
        Field("message", _TEXT, "the outcome in one sentence"),
    ),
    later=True,
)
VERDICTS: Final = ("holds", "does not hold", "not distinguishable", "not measured")
EXAMINATIONS = Table(
    "examinations",
    "One row per condition under which a candidate was examined beside the baseline, with fresh seeds, on sealed problems.",
    ("protocol", "candidate_id", "condition"),
    (),
    (
        _PROTOCOL,
        _CANDIDATE,
        Field(
            "condition", _TEXT, "`primary`, `rates`, `policy:<name>`, `pass@<k>`, `greedy`, `procedural` or `collapse`"
        ),
        Field("baseline_id", _TEXT, "the candidate that it was compared with"),
        Field("verdict", _TEXT, "whether the candidate is better under this condition", allowed=VERDICTS),
        Field("declared", _BOOL, "whether it was a champion candidate when its examination began"),
        Field("overall", _FLOAT, "what the condition compares, mean over seeds, percent", nullable=True),
        Field("baseline_overall", _FLOAT, "the same of the baseline", nullable=True),
        Field("delta", _FLOAT, "paired difference to the baseline, percent points", nullable=True),
        Field("low", _FLOAT, "lower limit of its interval", nullable=True),
        Field("high", _FLOAT, "upper limit of its interval", nullable=True),
        Field("level", _FLOAT, "confidence level of the interval", nullable=True),
        Field("worst", _FLOAT, "of the candidate's seeds, the lowest", nullable=True),
        Field("baseline_worst", _FLOAT, "of the baseline's seeds, the lowest", nullable=True),
        Field("collapsed", _INT, "trainings of the candidate that collapsed", nullable=True),
        Field("collapse_bound", _FLOAT, "upper 95 % limit of the chance of a collapse, 0 to 1", nullable=True),
        Field("rate", _FLOAT, "factor on the learning rate with which the candidate trained", nullable=True),
        Field("baseline_rate", _FLOAT, "the same of the baseline", nullable=True),
        Field("seeds", pa.list_(pa.int32()), "fresh training seeds of the comparison"),
        Field("choice_seeds", pa.list_(pa.int32()), "fresh training seeds with which learning rates were chosen"),
        Field("sealed_set", _INT, "which set of the report split was read; every examination of a run has its own"),
        Field("planned", _TEXTS, "all conditions of this examination"),
        Field(
            "examination", _TEXT, "digest of what was settled before it began: settings, seeds, sealed set, baseline"
        ),
        Field("detail", _TEXT, "JSON: settings, digests of the protocols trained under, scores of all learning rates"),
        Field("message", _TEXT, "the verdict in one sentence"),
    ),
    later=True,
)
ABLATIONS = Table(
    "ablations",
    "One row per version of a candidate's file that its ablation has measured, or that the gate or training has refused.",
    ("protocol", "candidate_id", "version"),
    (),
    (
        _PROTOCOL,
        Field("candidate_id", _TEXT, "the candidate that is ablated"),
        Field(
            "version",
            _TEXT,
            "`without:<mechanism>+<mechanism>`, `number:<name>=<value>`, `undone:<slot>=<choice of the baseline>` or "
            "`alone:<slot>=<choice of the candidate>`, which is the baseline with it; several slots with `; `",
        ),
        Field("dropped", _TEXTS, "mechanisms that are switched off, in the order of the file"),
        Field("numbers", _TEXT, "JSON object, hyperparameter -> its other default"),
        Field("name", _TEXT, "of the version"),
        Field("source", _TEXT, "its file"),
        Field(
            "measured",
            _TEXT,
            "id under which its evaluations lie; another version's, or a candidate's, where it trains exactly as that",
            nullable=True,
        ),
        Field("outcome", _TEXT, "what became of it", allowed=("measured", "refused", "failed")),
        Field("seeds", pa.list_(pa.int32()), "training seeds, those of the candidate"),
        Field("overall", _FLOAT, "mean over seeds, percent", nullable=True),
        Field("delta", _FLOAT, "paired difference to the candidate, percent points", nullable=True),
        Field("low", _FLOAT, "lower limit of its 95 % interval, when the row was made", nullable=True),
        Field("high", _FLOAT, "upper limit", nullable=True),
        Field("generation", _INT, "the newest one then; later ones are told of it", counts=False),
        Field("message", _TEXT, "the outcome in one sentence"),
    ),
    later=True,
)
COMPLETIONS = Table(
    "completions",
    "One row per completion that was kept to be read; a part holds a few of one training, or of its evaluation on `search`.",
    ("protocol", "candidate_id", "seed", "origin"),
    ("benchmark", "step", "kind"),
    (
        _PROTOCOL,
        _CANDIDATE,
        Field("seed", _INT, "training seed"),
        Field("origin", _TEXT, "where it was sampled; never on `report`", allowed=("train", "search")),
        Field("benchmark", _TEXT, "name in the protocol; `training` in training"),
        Field("step", _INT, "training step; -1 in an evaluation"),
        Field(
            "kind",
            _TEXT,
            "why it was kept: the first of its kind, or the longest",
            allowed=("right", "wrong", "malformed", "longest"),
        ),
        Field("prompt", _TEXT, "of a long one the beginning and the end"),
        Field("completion", _TEXT, "the same"),
        Field("correctness", _FLOAT, "the verifier's outcome, 0 to 1"),
        Field("format_valid", _BOOL, "whether its answer parses"),
        Field("truncated", _BOOL, "whether it hit the length limit"),
        Field("tokens", _INT, "its length"),
    ),
    later=True,
)

TABLES: Final[dict[str, Table]] = {
    table.name: table
    for table in (
        CANDIDATES,
        PROPOSALS,
        VERIFICATIONS,
        EVALUATIONS,
        TRAJECTORIES,
        REFLECTIONS,
        SELECTIONS,
        FAILURES,
        RUNGS,
        REPLICATIONS,
        EXAMINATIONS,
        ABLATIONS,
        COMPLETIONS,
        CALLS,
    )
}


def listing() -> str:
    """The tables as Markdown, for ``docs/archive.md``."""
    lines = []
    for table in TABLES.values():
        lines += [f"### {table.name}", "", table.doc, ""]
        rows = f", row within it: `{', '.join(table.row_keys)}`" if table.row_keys else ""
        lines += [f"Part: `{', '.join(table.part_keys)}`{rows}.", ""]
        lines += ["| column | type | meaning |", "|---|---|---|"]
        for field in table.fields:
            notes = [field.doc]
            if field.allowed:
                notes.append("one of " + ", ".join(f"`{value}`" for value in field.allowed))
            if field.nullable:
                notes.append("may be null")
            if not field.counts:
                notes.append("not compared")
            lines.append(f"| `{field.name}` | `{field.type}` | {'; '.join(notes)} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(listing())
