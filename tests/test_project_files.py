"""The files that hosts and tools read about the project are well-formed, and agree with the project."""

import ast
import importlib
import re
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from poise_core.cli import app

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "poise_core",
    "flows",
    "tasks",
    "studies",
    *(path.stem for path in (ROOT / "tests" / "support").glob("*.py")),
}
SCRIPTS = sorted(
    path
    for folder in ("tests/benchmarks", "tests/support", "studies", "infra")
    for path in (ROOT / folder).rglob("*.py")
)
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")


def read(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


def test_the_citation_names_this_version_and_licence() -> None:
    citation = read("CITATION.cff")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    # required by the schema of Citation File Format 1.2.0
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    assert citation["type"] == "software"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", citation["date-released"])
    (paper,) = citation["references"]
    assert {"type", "title", "authors"} <= paper.keys()
    assert paper["title"] in " ".join((ROOT / "README.md").read_text().split())
    assert all(person.keys() <= {"name", "website"} for one in (citation, paper) for person in one["authors"])


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_has_what_the_host_asks_for(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    assert form.keys() <= {"name", "description", "title", "labels", "body"}
    assert form["name"]
    assert form["description"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert fields
    names = [field["id"] for field in fields]
    assert len(set(names)) == len(names)
    for field in form["body"]:
        assert field["type"] in {"markdown", "textarea", "input", "dropdown", "checkboxes"}
        attributes = field["attributes"]
        assert attributes["value"] if field["type"] == "markdown" else attributes["label"]
        if field["type"] in {"dropdown", "checkboxes"}:
            options = [one["label"] if isinstance(one, dict) else one for one in attributes["options"]]
            assert all(options)
            assert len(set(options)) == len(options)


def test_there_is_a_form_for_faults_ideas_and_algorithms() -> None:
    assert {path.stem for path in FORMS} == {"bug", "idea", "algorithm"}
    assert read(".github/ISSUE_TEMPLATE/config.yml") == {"blank_issues_enabled": True}
    assert "CHANGELOG.md" in (ROOT / ".github" / "pull_request_template.md").read_text()


def test_hooks_need_no_network_and_their_tools_are_of_the_project() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    tools = {re.split(r"[><=\[ ]", one)[0] for one in settings["project"]["optional-dependencies"]["dev"]}
    (repository,) = read(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    for hook in repository["hooks"]:
        assert hook["language"] == "system"
        program = hook["entry"].split()[0]
        assert program.startswith(".venv/bin/")
        assert {"lint-imports": "import-linter"}.get(Path(program).name, Path(program).name) in tools


def test_the_changelog_has_the_version_and_a_place_for_the_next() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## (\S+)", text, re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert versions[:2] == ["Unreleased", project["version"]]
    kinds = set(re.findall(r"^### (\S+)", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


@pytest.mark.parametrize(
    "page", ["CONTRIBUTING.md", "SECURITY.md", "README.md", "examples/README.md", "docs/architecture.md"]
)
def test_links_and_paths_lead_to_something(page: str) -> None:
    text = (ROOT / page).read_text()
    folder = (ROOT / page).parent
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    assert not [link for link in links if not (folder / link).exists()]
    named = re.findall(r"`((?:poise_core|tests|docs|examples|infra|studies|flows|tasks)/[\w./-]*)`", text)
    assert not [path for path in named if not (ROOT / path).exists() and not path.startswith("docs/results/")]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_script_imports_of_the_project_is_there(path: Path) -> None:
    """Most of them are started by hand alone, and import what they need where they need it."""
    imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in imports:
        names = [alias.name for alias in node.names]
        for module in names if isinstance(node, ast.Import) else [node.module or ""]:
            if module.partition(".")[0] in PACKAGES:
                found = importlib.import_module(module)
                for name in names if isinstance(node, ast.ImportFrom) else ():
                    assert hasattr(found, name) or find_spec(f"{module}.{name}"), f"{module} has no {name}"


@pytest.mark.slow
def test_what_a_text_names_by_its_module_is_there() -> None:
    """Docstrings and pages name parts of the program by their full name in backticks."""
    folders = ("poise_core", "flows", "tasks", "studies", "tests", "docs")
    files = [
        *ROOT.glob("*.md"),
        *(path for folder in folders for path in (ROOT / folder).rglob("*.*") if path.suffix in (".py", ".md")),
    ]
    named = {
        name: path
        for path in files
        for name in re.findall(r"`((?:poise_core|flows|tasks|studies)(?:\.\w+)+)`", path.read_text(encoding="utf-8"))
    }
    assert len(named) > 80
    assert not {name: path for name, path in named.items() if not is_there(name)}


def is_there(name: str) -> bool:
    """Whether a dotted name is a module, or something in one; fields of dataclasses and of pydantic's models count."""
    parts, found = name.split("."), None
    for number, part in enumerate(parts, 1):
        try:
            found = importlib.import_module(".".join(parts[:number]))
        except ModuleNotFoundError:
            if not hasattr(found, part):
                return part in getattr(found, "__annotations__", {})
            found = getattr(found, part)
    return True


def test_the_glossary_is_sorted_and_short() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text().partition("## Glossary")[2]
    terms = re.findall(r"^- \*\*(.+?)\*\*", text, re.MULTILINE)
    assert terms == sorted(terms, key=str.lower)
    assert 20 <= len(terms) <= 40
    assert len(set(terms)) == len(terms)


def test_the_changelog_and_the_contributors_name_real_commands() -> None:
    commands = {command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands}
    listed = (ROOT / "CHANGELOG.md").read_text().partition("- The command `poise` with ")[2]
    assert set(re.findall(r"`([\w-]+)`", listed.partition("\n\n")[0])) <= commands
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = set(re.findall(r"`make ([\w-]+)`", (ROOT / "CONTRIBUTING.md").read_text())) - {"test-all"}
    assert asked <= targets
