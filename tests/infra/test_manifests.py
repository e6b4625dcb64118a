"""Containers, compose file, cluster examples: valid by their schemas, pinned, and in agreement with what this repository pins."""

from __future__ import annotations

import copy
import ipaddress
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
import urllib.parse
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from poise_core.config import ResourceSpec, read_preset
from poise_core.sandbox import seccomp

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
            if re.search("PASSWORD|SECRET|API_KEY|AUTH_STRING", key):
                assert str(value).removeprefix("poise:").startswith("${"), f"{name}: {key}"


def test_prefect_asks_for_a_secret_and_both_servers_name_who_may_call_them(compose: dict[str, Any]) -> None:
    services = compose["services"]
    server, mlflow = services["prefect"]["environment"], services["mlflow"]["command"]
    asked = server["PREFECT_SERVER_API_AUTH_STRING"]
    assert asked == "poise:${PREFECT_PASSWORD:?set it in .env}"
    assert {services[name]["environment"]["PREFECT_API_AUTH_STRING"] for name in ("worker", "worker-gpu")} == {asked}
    (port,) = services["prefect"]["ports"]
    origins = set(server["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"].split(","))
    assert origins == {f"http://{host}:{port.split(':')[1]}" for host in ("127.0.0.1", "localhost")}
    options = dict(itertools.pairwise(mlflow))
    assert set(options["--allowed-hosts"].split(",")) == {"mlflow:5000", "127.0.0.1:5000", "localhost:5000"}
    assert "*" not in options["--allowed-hosts"] + options["--cors-allowed-origins"]
    script = (INFRA / "local-stack.sh").read_text()
    for setting in (
        "PREFECT_SERVER_API_AUTH_STRING",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS",
        "--allowed-hosts",
        "--cors-allowed-origins",
    ):
        assert setting in script


def test_model_keys_are_given_to_workers_alone(compose: dict[str, Any]) -> None:
    held = {name for name, one in compose["services"].items() if "OPENAI_API_KEY" in one.get("environment", {})}
    assert held == {"worker", "worker-gpu"}, "the one worker of compose.yaml proposes; its trainings get no variables"


@pytest.mark.parametrize("name", ["prefect", "mlflow", "worker", "worker-gpu"])
def test_our_containers_are_read_only_and_gain_no_rights(compose: dict[str, Any], name: str) -> None:
    service = compose["services"][name]
    assert service["read_only"]
    assert {place.split(":")[0] for place in service["tmpfs"]} == {"/tmp", "/home/poise"}
    assert "no-new-privileges" in service["security_opt"]
    assert service["cap_drop"] == ["ALL"]
    assert not any("seccomp=unconfined" in option for option in service["security_opt"])


def test_images_of_others_are_named_by_digest_and_ours_carry_the_version_of_the_package(
    compose: dict[str, Any],
) -> None:
    """Digests cannot be known here: a variable that must be set stands for each, and the README has the command that finds it."""
    images = [service["image"] for service in compose["services"].values()]
    bases = [
        line.split()[1] for path in DOCKERFILES for line in path.read_text().splitlines() if line.startswith("FROM ")
    ]
    pinned = {}
    for image in images + bases:
        name, _, tag = image.partition(":")
        assert re.match(r"[\w.-]*\d+[.-]\d+", tag), f"{image} is not pinned"
        if name.startswith("poise"):
            assert tag.removesuffix("-cpu").removesuffix("-cuda") == PROJECT["version"], image
            continue
        found = re.fullmatch(r"([^@]+)@\$\{(\w+_DIGEST)(:\?set it in \.env)?\}", image)
        assert found, f"{image} is not named by digest"
        pinned[found[2]] = found[1]
    commands = re.findall(r"^pin (\w+) (\S+)$", (INFRA / "README.md").read_text(), re.M)
    assert dict(commands) == pinned
    pods = [one["spec"]["template"]["spec"] for one in manifests() if one["kind"] == "Deployment"]
    given = [container["image"] for pod in pods for container in pod["containers"]]
    assert given == ["${POISE_WORKER_CPU_IMAGE}", "${POISE_WORKER_CUDA_IMAGE}"]
    head = (INFRA / "kubernetes" / "worker.yaml").read_text().split("apiVersion")[0]
    assert f"envsubst '{' '.join(image.replace('{', '').replace('}', '') for image in given)}' < worker.yaml" in head
    for name, service in compose["services"].items():
        if "build" in service:
            path = ROOT / service["build"]["dockerfile"]
            assert path in DOCKERFILES, name
            assert f"-t {service['image']} ." in path.read_text(), (
                f"{name}: its Dockerfile says how to build another image"
            )
            assert service["build"]["args"] == {"PYTHON_DIGEST": "${PYTHON_DIGEST:?set it in .env}"}
    workers = {f"poise-worker:{PROJECT['version']}-{kind}" for kind in ("cpu", "cuda")}
    assert {image for image in images if image.startswith("poise-worker")} == workers
    assert all(worker in head for worker in workers)


def test_the_command_of_the_readme_fills_in_the_digests(tmp_path: Path) -> None:
    (tmp_path / "docker").write_text('#!/bin/bash\necho "sha256:$(echo "$4" | sha256sum | cut -c 1-64)"\n')
    (tmp_path / "docker").chmod(0o755)
    (tmp_path / ".env").write_text((INFRA / "compose.env.example").read_text())
    (block,) = re.findall(r"^pin\(\) .*?(?=^```)", (INFRA / "README.md").read_text(), re.M | re.S)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-euc", block], cwd=tmp_path, env=environment, check=True)
    lines = (tmp_path / ".env").read_text().splitlines()
    filled = dict(line.split("=", 1) for line in lines if "_DIGEST=" in line)
    assert len(filled) == len(set(filled.values())) == 4
    assert all(re.fullmatch("sha256:[0-9a-f]{64}", digest) for digest in filled.values())


# --- the profile of system calls


PROFILE = json.loads((INFRA / "seccomp-worker.json").read_text())

CONFINES = {
    "mount", "umount2", "pivot_root", "chroot", "open_tree", "move_mount", "fsopen", "fsconfig", "fsmount", "fspick",
    "mount_setattr", "unshare", "personality",
}  # fmt: skip
"""Calls that the worker's profile allows, because the confinement is made of them or the libraries use them, and that no
candidate may make."""


def test_the_profile_refuses_to_workers_what_candidates_may_not_do_but_for_making_the_confinement() -> None:
    (rule,) = PROFILE["syscalls"]
    assert (PROFILE["defaultAction"], rule["action"]) == ("SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO")
    assert rule["names"] == sorted(set(rule["names"]))
    assert seccomp._CALLS.keys() - set(rule["names"]) == CONFINES
    compose = yaml.safe_load((INFRA / "compose.yaml").read_text())
    for name in ("worker", "worker-gpu"):
        assert "seccomp=./seccomp-worker.json" in compose["services"][name]["security_opt"]


def test_the_confinement_can_be_made_under_the_profile() -> None:
    """The profile as a filter of this machine; what the machine grants without it, it grants below it."""
    code = f"""
import errno, json, sys
sys.path.insert(0, {str(ROOT)!r})
from poise_core.sandbox import confine, seccomp
refused = [numbers[seccomp._machine()] for name, numbers in seccomp._CALLS.items() if name in sys.argv[1].split()]
before = confine.probe()
steps = [step for number in refused for step in seccomp._refuse(number, errno.EPERM)]
seccomp._install([*seccomp._prologue(), *steps, seccomp._return(seccomp._ALLOW)])
print(json.dumps([len(refused), before, confine.probe()]))
"""
    names = " ".join(PROFILE["syscalls"][0]["names"])
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code, names], capture_output=True, text=True, check=False)
    if "seccomp" in done.stderr:
        pytest.skip("this machine takes no filter")
    refused, before, after = json.loads(done.stdout)
    assert refused == len(seccomp._CALLS) - len(CONFINES)
    assert after == before


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
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/runs", "/tmp", "/home/poise", "/dev/shm"}
    profile = f"localhostProfile: {pod['securityContext']['seccompProfile']['localhostProfile']}"
    assert pod["securityContext"]["seccompProfile"]["type"] == "Localhost"
    assert profile == "localhostProfile: poise-worker.json"
    assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]


def test_the_key_of_a_language_model_is_in_the_pod_that_proposes_alone() -> None:
    deployed = {
        one["metadata"]["name"]: one["spec"]["template"]["spec"] for one in manifests() if one["kind"] == "Deployment"
    }
    held = {
        name: {source["secretRef"]["name"] for source in pod["containers"][0]["envFrom"] if "secretRef" in source}
        for name, pod in deployed.items()
    }
    common = {"poise-prefect", "poise-storage"}
    assert held == {"poise-worker": common | {"poise-model"}, "poise-worker-gpu": common}
    head = (INFRA / "kubernetes" / "worker.yaml").read_text().split("apiVersion")[0]
    assert set(re.findall(r"create secret generic ([\w-]+) ", head)) == common | {"poise-model"}
    assert "--from-literal" not in head, "arguments are visible to everybody"


def test_workers_reach_the_servers_and_names_and_the_one_that_proposes_the_internet() -> None:
    """The egress rules, read as Kubernetes does: what any policy of a pod allows."""
    policies = [one["spec"] for one in manifests() if one["kind"] == "NetworkPolicy"]
    pods = {
        one["metadata"]["name"]: one["spec"]["template"]["metadata"]["labels"]
        for one in manifests()
        if one["kind"] == "Deployment"
    }
    servers = {"prefect": 4200, "mlflow": 5000, "storage": 9000}

    def allowed(
        pod: str, port: int, *, labels: dict[str, str] | None = None, address: str = "", protocol: str = "TCP"
    ) -> bool:
        mine = [one for one in policies if one["podSelector"]["matchLabels"].items() <= pods[pod].items()]
        assert any("Egress" in one["policyTypes"] for one in mine), "without a policy everything is allowed"
        for rule in (rule for one in mine for rule in one.get("egress", ())):
            assert rule["to"], "a rule without a destination allows all of them"
            if {"protocol": protocol, "port": port} not in rule["ports"]:
                continue
            for peer in rule["to"]:
                if "ipBlock" in peer and address:
                    where = ipaddress.ip_address(address)
                    if where in ipaddress.ip_network(peer["ipBlock"]["cidr"]) and not any(
                        where in ipaddress.ip_network(one) for one in peer["ipBlock"]["except"]
                    ):
                        return True
                elif "podSelector" in peer and labels and peer["podSelector"]["matchLabels"].items() <= labels.items():
                    return True
        return False

    for pod in pods:
        for name, port in servers.items():
            server = {"app.kubernetes.io/name": name}
            assert allowed(pod, port, labels=server)
            assert not allowed(pod, 22, labels=server)
        assert all(allowed(pod, 53, labels={"k8s-app": "kube-dns"}, protocol=one) for one in ("UDP", "TCP"))
        assert not allowed(pod, 5432, labels={"app.kubernetes.io/name": "postgres"})
        for address in ("169.254.169.254", "10.96.0.1", "192.168.1.1"):  # a cloud's own keys; the cluster's API
            assert not allowed(pod, 443, address=address)
            assert not allowed(pod, 80, address=address)
    assert allowed("poise-worker", 443, address="203.0.113.7")
    assert not allowed("poise-worker", 80, address="203.0.113.7")
    assert not allowed("poise-worker-gpu", 443, address="203.0.113.7"), "a candidate's machine calls nobody"
    ingress = [one for one in policies if "Ingress" in one["policyTypes"] and "ingress" not in one]
    assert [one["podSelector"]["matchLabels"] for one in ingress] == [{"app.kubernetes.io/name": "poise"}]
    addresses = next(one["data"] for one in manifests() if one["kind"] == "ConfigMap")
    ports = {str(urllib.parse.urlsplit(value).port) for value in addresses.values() if "://" in value}
    assert ports == {str(port) for port in servers.values()}


def test_cluster_and_compose_workers_are_given_the_same_settings(compose: dict[str, Any]) -> None:
    (settings,) = (one["data"] for one in manifests() if one["kind"] == "ConfigMap")
    secrets = {"PREFECT_API_AUTH_STRING", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY"}
    assert compose["services"]["worker"]["environment"].keys() == settings.keys() | secrets
    script = (INFRA / "local-stack.sh").read_text()
    for setting in ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "MLFLOW_BACKEND_STORE_URI", "--artifacts-destination"):
        assert setting in script
        assert setting in (INFRA / "compose.yaml").read_text()


# --- scripts ---


@pytest.mark.slow
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_pass_shellcheck(path: Path) -> None:
    done = subprocess.run([BIN / "shellcheck", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


KEYS = (
    "OPENAI_API_KEY",
    "ANTHROPIC_API_KEY",
    "HF_TOKEN",
    "GITHUB_TOKEN",
    "WANDB_API_KEY",
    "SSH_AUTH_SOCK",
    "A_NEW_KIND_OF_KEY",
)


def test_the_slurm_script_asks_for_the_secret_of_the_server(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PREFECT_API_URL": "http://127.0.0.1:1/api",
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:2",
        "SLURM_JOB_ID": "17",
        "SLURM_SUBMIT_DIR": str(tmp_path),
    }
    command = ["bash", INFRA / "slurm" / "worker.sbatch"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "PREFECT_API_AUTH_STRING: the Prefect server asks for its secret" in done.stderr


@pytest.mark.parametrize("status", [0, 3])
def test_the_slurm_script_passes_a_stop_on_and_returns_the_status_of_the_worker(tmp_path: Path, status: int) -> None:
    """Slurm signals the batch shell only, two minutes before the time is over; a shell that waits in the foreground sleeps on."""
    stub = tmp_path / ".venv" / "bin" / "prefect"
    stub.parent.mkdir(parents=True)
    stub.write_text(
        f"#!/bin/bash\nenv > given\necho \"$PREFECT_HOME $*\" > started\ntrap 'sleep 0.3; touch stopped; exit {status}' TERM\n"
        "while true; do sleep 0.1; done\n"
    )
    stub.chmod(0o755)
    environment = {
        **os.environ,
        "PREFECT_API_URL": "http://127.0.0.1:1/api",
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:2",
        "PREFECT_API_AUTH_STRING": "poise:secret",
        "AWS_SECRET_ACCESS_KEY": "of the store",
        **dict.fromkeys(KEYS, "of a person"),
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
    given = dict(line.split("=", 1) for line in (tmp_path / "given").read_text().splitlines() if "=" in line)
    assert given.keys() >= {"PATH", "PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "AWS_SECRET_ACCESS_KEY"}
    assert given.keys() & set(KEYS) == set()
    assert words.strip() == "worker start --type process --pool poise --work-queue candidates --limit 1 --name slurm-17"


# --- one training over several nodes ---


def settings_of(words: list[str]) -> ResourceSpec:
    """The resources that the options of a command give to a preset."""
    options = {word for word in words if word.startswith("resources.")}
    options |= {word.removeprefix("--set=") for word in words if word.startswith("--set=")}
    return read_preset("math-1x80", sorted(options)).resources


def test_the_slurm_job_runs_one_command_on_all_nodes_that_meet_on_the_first(tmp_path: Path) -> None:
    stubs = {
        "srun": "env > given\nprintf '%s\\n' \"$@\" > words",
        "scontrol": 'test "$*" = "show hostnames node[7-8]" && echo node7 && seq -f "node%.0f" 8 99999',
    }
    for name, text in stubs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "123456", "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_NODELIST": "node[7-8]"}
    slurm |= {"SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    environment = {**os.environ, **slurm, **dict.fromkeys(KEYS, "of a person")}
    command = ["bash", INFRA / "slurm" / "training.sbatch"]
    assert b"say what to run" in subprocess.run(command, env=environment, capture_output=True, check=False).stderr
    subprocess.run([*command, "evolve", "--preset", "my.yaml"], env=environment, check=True)
    words = (tmp_path / "words").read_text().split()
    assert words[:5] == ["--kill-on-bad-exit=1", ".venv/bin/poise", "evolve", "--preset", "my.yaml"]
    assert "--allow-shared-network" in words
    spec = settings_of(words)
    assert (spec.nodes, spec.processes_per_training, spec.training_processes) == (2, 8, 16)
    given = dict(line.split("=", 1) for line in (tmp_path / "given").read_text().splitlines() if "=" in line)
    assert (given["MASTER_ADDR"], given["MASTER_PORT"]) == ("node7", "23456")
    assert given.keys() & set(KEYS) == set()


def test_the_pods_of_the_job_are_confined_as_workers_and_meet_at_the_first() -> None:
    documents = {(one["kind"], one["metadata"]["name"]): one for one in manifests()}
    job, service = documents["Job", "poise-training"]["spec"], documents["Service", "poise-training"]["spec"]
    pod, worker = job["template"]["spec"], documents["Deployment", "poise-worker-gpu"]["spec"]["template"]["spec"]
    same = ("securityContext", "automountServiceAccountToken", "enableServiceLinks", "volumes")
    assert {key: pod[key] for key in same} == {key: worker[key] for key in same}
    (container,), (other,) = pod["containers"], worker["containers"]
    assert {key: container[key] for key in ("image", "securityContext", "volumeMounts")} == {
        key: other[key] for key in ("image", "securityContext", "volumeMounts")
    }
    labels = job["template"]["metadata"]["labels"]
    assert service["selector"] == labels
    assert service["clusterIP"] == "None"
    spec = settings_of(container["args"])
    variables = {one["name"]: one["value"] for one in container["env"]}
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"] == spec.nodes == int(variables["POISE_NODES"])
    assert str(spec.processes_per_training) == container["resources"]["limits"]["nvidia.com/gpu"]
    assert (
        variables["MASTER_ADDR"] == f"poise-training-0.{pod['subdomain']}"
    )  # the name of a Job's pod, and its service
    policy = documents["NetworkPolicy", "poise-training"]["spec"]
    peers = [policy["podSelector"], *(peer["podSelector"] for rule in policy["ingress"] for peer in rule["from"])]
    peers += [peer["podSelector"] for rule in policy["egress"] for peer in rule["to"]]
    assert [peer["matchLabels"] for peer in peers] == [labels] * 3


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
