"""Champions in MLflow's model registry, drawn from the archive. The client is an argument; MLflow is not imported here.

One registered model per protocol, with one version per champion candidate: a version points to the folder
``algorithm/`` of the candidate's run, which holds the algorithm file. The alias ``champion`` is set on a version only after
that candidate was declared, trained again with fresh seeds and confirmed, which is a row of ``replications``. Of several such
candidates the one with the highest Overall of the search has it: the sealed split confirms, it does not choose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from poise_core.config.protocol import Protocol
from poise_core.escaping import markdown, one_line
from poise_core.evidence.examination import conclude
from poise_core.evidence.format import format_interval, format_level, format_overall
from poise_core.evidence.run_evidence import Row, RunEvidence

ALIAS = "champion"
ALGORITHM_FOLDER = "algorithm"
NO_LONGER = "no longer declared"
_TAG_LENGTH = 5000


@dataclass(frozen=True)
class VersionPlan:
    """What one version of the registered model should hold."""

    candidate_id: str
    description: str
    tags: dict[str, str]
    overall: float  # of the search split, percent
    confirmed: bool  # declared, then replicated


def plan_versions(evidence: RunEvidence) -> list[VersionPlan]:
    """A version of every candidate that is a champion candidate, or was one when it was replicated; the oldest first."""
    declared = {one.candidate_id for one in evidence.champions}
    declared |= {name for name, row in evidence.replications.items() if row["declared"]}
    records = [row for name, row in evidence.candidates.items() if name in declared]
    records.sort(key=lambda row: (row["generation"], row["created_at"], row["candidate_id"]))
    return [_version(record, evidence) for record in records]


def _version(record: Row, evidence: RunEvidence) -> VersionPlan:
    candidate = record["candidate_id"]
    overall = evidence.overall(candidate)
    declaration, replication = evidence.declarations.get(candidate), evidence.replications.get(candidate)
    lines = [f"**{markdown(record['name'])}** {markdown(record['hypothesis'] or '')}".strip()]
    tags = {
        "candidate": candidate,
        "candidate_name": record["name"],
        "parent": ",".join(record["parent_ids"]),
        "generation": str(record["generation"]),
        "protocol": evidence.protocol.digest,
        "mechanisms": record["mechanisms"],
        "arm": record["arm"],
        "standing": evidence.state(candidate),
    }
    if overall:
        lines.append(f"Overall {format_overall(overall)}.")
    if declaration:
        delta = format_interval(declaration.delta, signed=True)
        lines.append(
            f"To the baseline {delta}, at {format_level(declaration.level)} because of all that are planned or tried."
        )
        if stable := evidence.stability(candidate):
            lines.append(f"Holds for trainings that do not collapse: {stable.sentence()} (95 %).")
    if replication:
        lines.append(f"Report split: {markdown(replication['message'])}.")
        tags["replication"] = replication["message"]
    if examined := evidence.examinations.get(candidate):
        conclusion = conclude(examined)
        lines.append(f"Examination: {conclusion.sentence}.")
        tags |= {"examination": conclusion.sentence, "examined": conclusion.standing}
    confirmed = bool(replication and replication["declared"] and replication["outcome"] == "replicated")
    return VersionPlan(
        candidate,
        "\n\n".join(lines),
        {name: one_line(value)[:_TAG_LENGTH] for name, value in tags.items()},
        overall.estimate if overall else 0.0,
        confirmed,
    )


def champion_of(plans: Sequence[VersionPlan]) -> str | None:
    """Id of the candidate whose version has the alias; None while none is confirmed."""
    confirmed = [plan for plan in plans if plan.confirmed]
    return max(confirmed, key=lambda plan: (plan.overall, plan.candidate_id)).candidate_id if confirmed else None


def model_name(experiment: str) -> str:
    """Name of the registered model of an experiment; slashes are not allowed in it."""
    return experiment.replace("/", "-")


def push_versions(
    client: Any, experiment: str, protocol: Protocol, plans: Sequence[VersionPlan], run_ids: dict[str, str]
) -> int:
    """Make the versions that are missing, update the others, and put the alias on the champion.

    Args:
        client: an ``MlflowClient``.
        experiment: name of the experiment that the runs are in.
        protocol: of the experiment.
        plans: from ``plan_versions``.
        run_ids: id of its run for every candidate of the archive.

    Returns:
        How many versions were made.
    """
    name = model_name(experiment)
    found = client.search_registered_models(filter_string=f"name = '{name}'")
    if not plans and not found:
        return 0
    if not found:
        client.create_registered_model(
            name,
            tags={"protocol": protocol.digest},
            description=f"Champion candidates of experiment `{experiment}`. The alias `{ALIAS}` is on the one that was "
            "confirmed with fresh seeds on the sealed split.",
        )
    known, champion = _known(client, name), champion_of(plans)
    made = 0
    for plan in plans:
        version = known.pop(plan.candidate_id, None)
        if version is None:
            run_id = run_ids[plan.candidate_id]
            version = client.create_model_version(
                name,
                f"runs:/{run_id}/{ALGORITHM_FOLDER}",
                run_id=run_id,
                tags=plan.tags,
                description=plan.description,
            )
            made += 1
        _mend(client, name, version, plan.tags, plan.description)
        if plan.candidate_id == champion:
            aliases = client.get_registered_model(name).aliases
            if str(aliases.get(ALIAS)) != str(version.version):
                client.set_registered_model_alias(name, ALIAS, version.version)
    for candidate, version in known.items():
        if candidate in run_ids:  # more have been tried since, and the level by which it was declared has risen
            _mend(client, name, version, {"standing": NO_LONGER}, version.description)
    return made


def _mend(client: Any, name: str, version: Any, tags: dict[str, str], description: str) -> None:
    for tag, value in tags.items():
        if version.tags.get(tag) != value:
            client.set_model_version_tag(name, version.version, tag, value)
    if version.description != description:
        client.update_model_version(name, version.version, description)


def _known(client: Any, name: str) -> dict[str, Any]:
    """Versions by candidate id; of several, the first."""
    versions = client.search_model_versions(f"name = '{name}'", max_results=1000)
    return {
        version.tags["candidate"]: version
        for version in sorted(versions, key=lambda one: -int(one.version))
        if "candidate" in version.tags
    }
