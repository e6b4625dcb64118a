"""Containers, compose file, cluster examples: valid by their schemas, pinned, and in agreement with what this repository pins."""

from __future__ import annotations

import copy
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
INFRA, SCHEMAS, BIN = ROOT / "infra", Path(__file__).parent / "schemas", Path(sys.executable).parent
DOCKERFILES = sorted(INFRA.glob("Dockerfile.*"))
SCRIPTS = [INFRA / "local-stack.sh", *sorted((INFRA / "slurm").glob("*.sbatch"))]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


PINNED = {
    normal(name): version
    for name, version in re.findall(r"^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)
}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((INFRA / "compose.yaml").read_text())
    return document


def manifests() -> list[dict[str, Any]]:
    paths = sorted((INFRA / "kubernetes").glob("*.yaml"))
    return [document for path in paths for document in yaml.safe_load_all(path.read_text())]


def kubernetes_validator(kind: str) -> jsonschema.Draft7Validator:
    bundle = json.loads((SCHEMAS / "kubernetes-1.37.json").read_text())
    return jsonschema.Draft7Validator({**bundle["kinds"][kind], "$defs": bundle["$defs"]})


# --- compose ---


def test_the_compose_file_is_valid(compose: dict[str, Any]) -> None:
    validator = jsonschema.Draft202012Validator(json.loads((SCHEMAS / "compose-spec.json").read_text()))
    assert [f"{list(error.path)}: {error.message}" for error in validator.iter_errors(compose)] == []
    wrong = copy.deepcopy(compose)
    wrong["services"]["worker"]["restarts"] = "always"
    assert list(validator.iter_errors(wrong)), "the schema lets anything through"


def test_the_compose_file_has_the_five_services_and_they_wait_for_each_other(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert {"postgres", "prefect", "mlflow", "storage", "worker", "worker-gpu"} <= services.keys()
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            assert other in services, name
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[other], f"{name} waits for the health of {other}, which tells none"
    named = {volume.split(":")[0] for service in services.values() for volume in service.get("volumes", ())}
    assert named == set(compose["volumes"])


def test_nothing_in_the_compose_file_is_reached_from_outside_and_no_password_is_in_it(compose: dict[str, Any]) -> None:
    text = (INFRA / "compose.yaml").read_text()
    example = dict(
        line.split("=", 1) for line in (INFRA / "compose.env.example").read_text().splitlines() if "=" in line
    )
    assert {*re.findall(r"(?<!\$)\$\{(\w+)", text), "COMPOSE_PROFILES"} == set(example)
    assert [name for name, one in compose["services"].items() if example["COMPOSE_PROFILES"] in one.get("profiles", ())]
    for name, service in compose["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        for key, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|API_KEY", key):
                assert str(value).startswith("${"), f"{name}: {key}"


def test_images_are_pinned_and_ours_carry_the_version_of_the_package(compose: dict[str, Any]) -> None:
    images = [service["image"] for service in compose["services"].values()]
    pods = [one["spec"]["template"]["spec"] for one in manifests() if one["kind"] == "Deployment"]
    images += [container["image"] for pod in pods for container in pod["containers"]]
    bases = [
        line.split()[1] for path in DOCKERFILES for line in path.read_text().splitlines() if line.startswith("FROM ")
    ]
    for image in images + bases:
        name, _, tag = image.partition(":")
        assert re.search(r"\d+[.-]\d+", tag), f"{image} is not pinned"
        if name.startswith("poise"):
            assert tag.removesuffix("-cpu").removesuffix("-cuda") == PROJECT["version"], image
    for name, service in compose["services"].items():
        if "build" in service:
            path = ROOT / service["build"]["dockerfile"]
            assert path in DOCKERFILES, name
            assert f"-t {service['image']} ." in path.read_text(), (
                f"{name}: its Dockerfile says how to build another image"
            )
    assert {image for image in images if image.startswith("poise-worker")} == {
        f"poise-worker:{PROJECT['version']}-cpu",
        f"poise-worker:{PROJECT['version']}-cuda",
    }


# --- Dockerfiles ---


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles_install_what_the_constraints_pin(path: Path) -> None:
    text = path.read_text().replace("\\\n", " ")
    installs = re.findall(r"pip install ([^&\n]+)", text)
    assert installs
    for arguments in installs:
        assert "--constraint constraints.txt" in arguments
        words = re.sub(r"--constraint \S+|--extra-index-url \S+|--editable", "", arguments).split()
        for name, _, version in (word.partition("==") for word in words if not word.startswith("'.[")):
            assert normal(name) in PINNED, f"{name} has no pinned version"
            assert not version or version == PINNED[normal(name)], name
    if "worker" in path.read_text():
        assert "torch==2.13.0" in text
        assert "'.[llm,server]'" in text
        for needed in ("poise_core", "flows", "tasks", "constraints.txt", "pyproject.toml", "prefect.yaml"):
            assert re.search(rf"^COPY .*\b{re.escape(needed)} ", text, re.M), needed
    (base,) = re.findall(r"^FROM python:(\d+\.\d+)", text, re.M)
    assert base == "3.11", "the constraints are resolved for this one"


def test_the_images_for_cpu_and_cuda_differ_where_they_must_only() -> None:
    def lines(kind: str) -> set[str]:
        text = (INFRA / f"Dockerfile.{kind}").read_text()
        return {line for line in text.splitlines() if not line.startswith("#")}

    cpu, cuda = lines("cpu"), lines("cuda")
    own = {"NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_DRIVER_CAPABILITIES=compute,utility", "LANGSMITH_TRACING=false"}
    assert {line.split()[0] for line in cpu ^ cuda} <= {"ARG", "RUN", *own}


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles_pass_hadolint(path: Path) -> None:
    command = [BIN / "hadolint", "--config", INFRA / ".hadolint.yaml", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_the_servers_need_is_pinned_and_installed_by_make() -> None:
    extras = PROJECT["optional-dependencies"]
    for requirement in [*extras["server"], *extras["dev"]]:
        name = normal(re.split(r"[<>=\[]", requirement)[0])
        assert name in PINNED or name == PROJECT["name"], requirement
    assert "'.[dev,llm,server]'" in (ROOT / "Makefile").read_text()


# --- workers ---


def worker_commands(compose: dict[str, Any]) -> dict[str, list[str]]:
    """Every way in which this repository starts a worker, as words."""
    pods = [one for one in manifests() if one["kind"] == "Deployment"]
    found = {one["metadata"]["name"]: one["spec"]["template"]["spec"]["containers"][0]["args"] for one in pods}
    for path in DOCKERFILES:
        for words in re.findall(r"^CMD (.*)$", path.read_text(), re.M):
            found[path.name] = json.loads(words)
    found.update(
        {name: one["command"] for name, one in compose["services"].items() if "worker" in one.get("command", ())}
    )
    slurm = (INFRA / "slurm" / "worker.sbatch").read_text().replace("\\\n", " ")
    words = re.findall(r"^\S*prefect (worker start [^&]*)", slurm, re.M)[0].split()
    return {**found, "slurm": [re.sub(r'^"\$\{\w+:-([^}]*)\}"$', r"\1", word) for word in words]}


def test_workers_serve_the_pool_and_the_queues_that_the_deployments_name(compose: dict[str, Any]) -> None:
    pools = [one["work_pool"] for one in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]]
    named = {(pool["name"], pool["work_queue_name"]) for pool in pools}
    (pool,) = {name for name, _ in named}
    queues = {queue for _, queue in named}
    commands = worker_commands(compose)
    assert commands.keys() == {"Dockerfile.cpu", "Dockerfile.cuda", "poise-worker", "poise-worker-gpu", "slurm"}
    served: dict[str, set[str]] = {}
    for where, words in commands.items():
        options = list(itertools.pairwise(words))
        assert [value for option, value in options if option == "--pool"] == [pool], where
        served[where] = {value for option, value in options if option == "--work-queue"} or queues
        assert served[where] <= queues, where
    assert served["Dockerfile.cpu"] == served["Dockerfile.cuda"] == queues, "compose has one worker, for all"
    assert served["poise-worker"] | served["poise-worker-gpu"] == queues
    assert f"[WORK_POOL]={pool} " in (INFRA / "local-stack.sh").read_text()


# --- clusters ---


@pytest.mark.parametrize("manifest", manifests(), ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_kubernetes_manifests_are_valid(manifest: dict[str, Any]) -> None:
    validator = kubernetes_validator(manifest["kind"])
    assert [f"{list(error.path)}: {error.message}" for error in validator.iter_errors(manifest)] == []
    assert manifest["metadata"]["namespace"] == "poise"


def test_the_kubernetes_schema_refuses_what_the_api_does_not_know() -> None:
    wrong = copy.deepcopy(next(one for one in manifests() if one["kind"] == "Deployment"))
    wrong["spec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    (error,) = kubernetes_validator("Deployment").iter_errors(wrong)
    assert "imagePullPolice" in error.message


@pytest.mark.parametrize(
    "manifest",
    [one for one in manifests() if one["kind"] == "Deployment"],
    ids=lambda one: str(one["metadata"]["name"]),
)
def test_deployments_select_their_own_pods_mount_what_exists_and_run_unprivileged(manifest: dict[str, Any]) -> None:
    spec, documents = manifest["spec"], manifests()
    pod = spec["template"]["spec"]
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    claims = {one["metadata"]["name"] for one in documents if one["kind"] == "PersistentVolumeClaim"}
    assert {v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v} <= claims
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["automountServiceAccountToken"] is False
    (container,) = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]


def test_cluster_and_compose_workers_are_given_the_same_settings(compose: dict[str, Any]) -> None:
    (settings,) = (one["data"] for one in manifests() if one["kind"] == "ConfigMap")
    secrets = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY"}
    assert compose["services"]["worker"]["environment"].keys() == settings.keys() | secrets
    script = (INFRA / "local-stack.sh").read_text()
    for setting in ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "MLFLOW_BACKEND_STORE_URI", "--artifacts-destination"):
        assert setting in script
        assert setting in (INFRA / "compose.yaml").read_text()


# --- scripts ---


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_pass_shellcheck(path: Path) -> None:
    done = subprocess.run([BIN / "shellcheck", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("status", [0, 3])
def test_the_slurm_script_passes_a_stop_on_and_returns_the_status_of_the_worker(tmp_path: Path, status: int) -> None:
    """Slurm signals the batch shell only, two minutes before the time is over; a shell that waits in the foreground sleeps on."""
    stub = tmp_path / ".venv" / "bin" / "prefect"
    stub.parent.mkdir(parents=True)
    stub.write_text(
        f"#!/bin/bash\necho \"$PREFECT_HOME $*\" > started\ntrap 'sleep 0.3; touch stopped; exit {status}' TERM\n"
        "while true; do sleep 0.1; done\n"
    )
    stub.chmod(0o755)
    environment = {
        **os.environ,
        "PREFECT_API_URL": "http://127.0.0.1:1/api",
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:2",
        "SLURM_JOB_ID": "17",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "TMPDIR": str(tmp_path),
    }
    process = subprocess.Popen(["bash", INFRA / "slurm" / "worker.sbatch"], env=environment)
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists() or not (tmp_path / "started").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)  # the stub sets its trap
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == status
    assert (tmp_path / "stopped").exists(), "the worker was not told"
    home, words = (tmp_path / "started").read_text().split(" ", 1)
    assert home == f"{tmp_path}/prefect-17"
    assert words.strip() == "worker start --type process --pool poise --work-queue candidates --limit 1 --name slurm-17"


# --- DeepSpeed ---


def test_the_deepspeed_examples_are_what_the_engine_makes() -> None:
    sys.path.insert(0, str(INFRA / "deepspeed"))
    try:
        from write import configurations
    finally:
        sys.path.pop(0)
    files = {path.stem: json.loads(path.read_text()) for path in (INFRA / "deepspeed").glob("*.json")}
    made = configurations()
    assert files == made, "run infra/deepspeed/write.py"
    assert {one["zero_optimization"]["stage"] for one in made.values()} == {0, 1, 2, 3}
