"""``poise fetch`` as a process, against a hub on loopback that speaks the hub's wire protocol."""

from __future__ import annotations

import io
import json
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub import COMMIT, TOKEN, Hub, poise, python, serving

from poise_core.policies.locate import resolve_policy

LARGE = "data/train-00000-of-00001.parquet"
PRESET = f"""
extends: smoke
name: rows
protocol:
  environment:
    source: {{dataset: some/lines, revision: {COMMIT}, split: train}}
    split: all
  benchmarks:
    - {{name: own, metric: accuracy, weight: 1.0, source: {{dataset: some/table, revision: {COMMIT}, subset: main}}}}
"""


def lines(count: int, padding: str = "") -> list[dict[str, str]]:
    return [{"problem": f"{n} + 1?\u2028{padding}", "answer": str(n + 1)} for n in range(count)]


def jsonl(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def parquet(rows: list[dict[str, str]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, compression="none", use_dictionary=False)
    return buffer.getvalue()


@pytest.fixture
def hub() -> Iterator[Hub]:
    shipped = resolve_policy(_smallest())
    files = {
        path.name: path.read_bytes() for path in shipped.iterdir() if path.is_file() and path.name != "__init__.py"
    }
    with serving(
        Hub({"some/model": {**files, "pytorch_model.bin": b"never read"}, "some/rows": {"a.parquet": b"rows"}})
    ) as made:
        yield made


def _smallest() -> str:
    from poise_core.policies.locate import shipped_policies

    return min(shipped_policies(), key=lambda name: (resolve_policy(name) / "model.safetensors").stat().st_size)


def fetch(hub: Hub, home: Path, policy: str, *more: str) -> subprocess.CompletedProcess[str]:
    return poise(hub, home, "fetch", "laptop", "--set", f"protocol.policy={policy}", *more)


@pytest.mark.exhaustive
def test_a_policy_is_fetched_resumed_and_then_used_offline(hub: Hub, tmp_path: Path) -> None:
    whole = 24 << 20  # the library writes what it has read every 10 MiB
    hub.repositories["some/rows"]["a.parquet"] = b"0" * whole
    hub.break_after["a.parquet"] = [16 << 20]
    done = fetch(hub, tmp_path, f"some/model@{COMMIT}", "--dataset", "some/rows")
    assert done.returncode == 0, done.stderr
    assert f"model some/model@{COMMIT}, commit {COMMIT[:12]}" in done.stdout
    assert "dataset some/rows" in done.stdout
    assert f"pin it as some/rows@{COMMIT}" in done.stdout
    # the rest of the file that broke off, and nothing of formats that are not loaded
    (first, begun, _), (second, resumed, size) = (part for part in hub.served if part[0] == "a.parquet")
    assert (first, second, begun, resumed + size) == ("a.parquet", "a.parquet", 0, whole)
    assert resumed >= 10 << 20
    assert "pytorch_model.bin" not in {name for name, _, _ in hub.served}
    asked = len(hub.served)
    again = fetch(hub, tmp_path, f"some/model@{COMMIT}")
    assert ("0.0 MB to download" in again.stdout, len(hub.served)) == (True, asked)
    hub.repositories.clear()  # from here on nothing can be had
    there = poise(
        hub, tmp_path, "evolve", "--dry-run", "--set", f"protocol.policy=some/model@{COMMIT}", "--run-dir", str(tmp_path / "run"),
        offline="1",
    )  # fmt: skip
    assert there.returncode == 0, there.stderr


@pytest.mark.exhaustive
def test_data_sets_of_a_preset_are_fetched_by_revision_resumed_and_then_used_offline(hub: Hub, tmp_path: Path) -> None:
    noise = random.Random(0)
    padded = [{**row, "note": noise.randbytes(1 << 19).hex()} for row in lines(40)]
    files = {
        "README.md": b"---\nconfigs:\n- config_name: main\n  data_files:\n  - {split: train, path: data/train-*}\n---\n"
    }
    hub.repositories["some/table"] = {**files, LARGE: parquet(padded)}
    hub.repositories["some/lines"] = {"train.jsonl": jsonl(lines(30)), "test.jsonl": jsonl(lines(3))}
    hub.moved.add(LARGE)  # to another host, as large files are
    preset = tmp_path / "rows.yaml"
    preset.write_text(PRESET)
    hub.break_after[LARGE] = [0] * 20  # however often the library tries
    broken = poise(hub, tmp_path, "fetch", str(preset))
    assert (broken.returncode, "Traceback" in broken.stderr) == (3, False), broken.stderr
    assert "dataset some/table could not be downloaded" in broken.stderr
    assert "the same command goes on" in broken.stderr.splitlines()[-1]
    hub.break_after[LARGE] = [24 << 20]
    hub.served.clear()
    done = poise(hub, tmp_path, "fetch", str(preset))
    assert done.returncode == 0, done.stderr
    (_, begun, _), (_, resumed, size) = (part for part in hub.served if part[0] == LARGE)
    assert (begun, resumed + size) == (0, len(hub.repositories["some/table"][LARGE]))
    assert resumed >= 10 << 20, "what had come before the connection ended was not read again"
    assert "train.jsonl" not in {name for name, _, _ in hub.served}, "nor what was whole"
    assert f"data set some/lines@{COMMIT}: its rows are in {tmp_path / 'poise'}" in done.stdout
    made = [path.read_text().split("\n") for path in (tmp_path / "poise" / "problems").iterdir()]
    assert sorted(len(rows) - 1 for rows in made) == [30, 40], "the split and the subset that the sources name"
    assert json.loads(made[0][0])["prompt"].endswith("\u2028")

    hub.repositories.clear()  # from here on nothing can be had
    there = poise(hub, tmp_path, "env", "validate", str(preset), "--json", offline="1")
    assert there.returncode == 0, there.stderr
    names = {"training": 30, "own": 40}
    assert {one["name"]: one["outcomes"] for one in json.loads(there.stdout)} == {
        n: {"right": c} for n, c in names.items()
    }
    pinned = (
        "--set",
        f"protocol.environment.source.revision={'a' * 40}",
    )  # of which the library would take the copy of COMMIT
    other = poise(hub, tmp_path, "env", "validate", str(preset), *pinned, offline="1")
    said = f"dataset some/lines@{'a' * 40} is not here, and HF_HUB_OFFLINE is set"
    assert (other.returncode, said in other.stderr.splitlines()[-1]) == (2, True), other.stderr


@pytest.mark.slow
def test_a_gated_data_set_is_opened_by_a_token_and_what_cannot_be_had_is_one_line(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["gated/lines"] = hub.repositories["some/lines"] = {"train.jsonl": jsonl(lines(3))}
    hub.repositories["some/table"] = {"train.parquet": parquet(lines(3))}
    hub.moved.add("train.parquet")
    expected = {
        "some/lines": (COMMIT, "train", 0, ""),
        "some/table": (COMMIT, "train", 0, ""),
        "gated/lines": (COMMIT, "train", 2, "dataset gated/lines is gated: accept its terms"),
        "some/nothing": (COMMIT, "train", 2, "there is no dataset some/nothing"),
        "some/lines ": ("v9", "train", 2, "dataset some/lines has no revision 'v9'"),
        "some/lines  ": (COMMIT, "other", 2, f"dataset some/lines@{COMMIT}: Unknown split"),
    }
    script = f"""
import json, os
from typer.testing import CliRunner
from poise_core.cli import app
for name, (revision, split, *_) in [*{expected!r}.items(), ("gated/lines", ({COMMIT!r}, "train"))]:
    source = "{{dataset: %s, revision: %s, split: %s}}" % (name.strip(), revision, split)
    done = CliRunner().invoke(app, ["fetch", {str(tmp_path / "rows.yaml")!r}, "--set", "protocol.environment.source=" + source])
    print("ANSWER", json.dumps([done.exit_code, done.stderr]))
    os.environ["HF_TOKEN"] = {TOKEN!r} * (name == list({expected!r})[-1])
"""
    (tmp_path / "rows.yaml").write_text(PRESET.replace(", subset: main", ""))
    done = python(hub, tmp_path / "home", "-c", script, HF_TOKEN="")
    *found, (opened, _) = [
        json.loads(line.removeprefix("ANSWER ")) for line in done.stdout.splitlines() if line.startswith("ANSWER")
    ]
    for (status, message), (code, text) in zip([one[2:] for one in expected.values()], found, strict=True):
        lines_of = [line for line in text.splitlines() if line.startswith("poise:")]
        assert (code, message in text, len(lines_of)) == (status, True, min(status, 1)), text
    assert opened == 0, done.stderr


@pytest.mark.slow
def test_what_cannot_be_had_is_one_line(hub: Hub, tmp_path: Path) -> None:
    own = hub.repositories["some/model"]
    config = json.loads(own["config.json"])
    coded = {**config, "model_type": "shiny", "auto_map": {"AutoModelForCausalLM": "modeling_shiny.ShinyForCausalLM"}}
    hub.repositories["some/coded"] = {
        **own,
        "config.json": json.dumps(coded).encode(),
        "modeling_shiny.py": b"raise SystemExit",
    }
    hub.repositories["some/pickled"] = {"config.json": own["config.json"], "pytorch_model.bin": b""}
    hub.repositories["some/huge"] = {**own, "model-2.safetensors": b"x"}
    hub.sizes["model-2.safetensors"] = 10**15
    expected = {
        "gated/model": (2, "is gated: accept its terms"),
        "some/nothing": (2, "there is no model some/nothing"),
        "some/model@v9": (2, "has no revision 'v9'"),
        "some/coded": (2, "is a shiny model with code of its own, which is never run"),
        "some/pickled": (2, "has no *.safetensors file"),
        "some/huge": (3, "1000000.00 GB are to be downloaded"),
        "a/b/c": (2, "OWNER/NAME"),
    }
    script = f"""
import json
from typer.testing import CliRunner
from poise_core.cli import app
for name in {list(expected)}:
    done = CliRunner().invoke(app, ["fetch", "laptop", "--set", "protocol.policy=" + name])
    print("ANSWER", json.dumps([done.exit_code, done.stderr]))
"""
    done = python(hub, tmp_path, "-c", script)
    answers = [
        json.loads(line.removeprefix("ANSWER ")) for line in done.stdout.splitlines() if line.startswith("ANSWER")
    ]
    for (found, text), (status, message) in zip(answers, expected.values(), strict=True):
        assert (found, text.count("\n"), message in text) == (status, 1, True), text
    offline = poise(hub, tmp_path, "fetch", "laptop", "--set", "protocol.policy=some/model", offline="1")
    assert (offline.returncode, "HF_HUB_OFFLINE is set" in offline.stderr) == (3, True)


@pytest.mark.slow
def test_a_tokenizer_without_a_pad_token_is_told(tmp_path: Path) -> None:
    from poise_core.policies.fetch import FetchError, remark

    folder = tmp_path / "policy"
    shutil.copytree(resolve_policy(_smallest()), folder)
    assert remark(folder) == ""
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": None}))
    assert "the tokenizer has no pad token" in remark(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": None, "eos_token": None}))
    (folder / "generation_config.json").unlink(missing_ok=True)
    with pytest.raises(FetchError, match="names no token that ends a completion"):
        remark(folder)
