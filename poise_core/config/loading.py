"""Loading presets, the YAML files that describe a run, which are validated before anything is written.

A ``Preset`` holds the protocol, which decides comparability, and the settings of search, resources and
tracking, which do not. A file may begin with ``extends: NAME`` and give only its differences. ``load_preset`` takes the name of a
shipped preset or a path, applies ``key=value`` overrides and raises ``PresetError`` with one line that names the key and the
allowed values.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from poise_core.config.preset import Preset
from poise_core.config.protocol import Protocol
from poise_core.files import expanded
from poise_core.policies.locate import PolicyNotFoundError, policy_digest, tokenizer_digest


class _UniqueKeys(yaml.SafeLoader):
    """YAML that refuses a key given twice, of which PyYAML would drop the first without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """The mapping, or ``ConstructorError`` with the line of the second key."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key has to be a word", key.start_mark)
            if key.tag != "tag:yaml.org,2002:merge" and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _parsed(text: str) -> Any:
    """The document in a text.

    Raises:
        ValueError: it is no YAML; one line says why.
    """
    try:
        return yaml.load(text, Loader=_UniqueKeys)  # a safe loader
    except RecursionError:
        raise ValueError("it nests too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(" ".join(str(error).split())) from error


class PresetError(ValueError):
    """The preset cannot be used; the message is one line that names the key."""


def shipped_presets() -> list[str]:
    """Return the names of the presets that come with the package."""
    folder = resources.files("poise_core") / "presets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_preset(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Preset:
    """Read, override and validate a preset.

    Args:
        name_or_path: a name from ``shipped_presets``, or the path of a YAML file.
        overrides: ``dotted.key=value`` strings; values are read as YAML.

    Raises:
        PresetError: unknown preset, unknown key, wrong type or impossible combination.
    """
    return _validated(_read_document(name_or_path), overrides, new=True)


def read_preset(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Preset:
    """Read a preset without the files that it names, which may not have been fetched yet; its digests are not filled in.

    Raises:
        PresetError: see ``load_preset``.
    """
    return _preset_of(_read_document(name_or_path), overrides, new=True)


def with_overrides(preset: Preset, overrides: Sequence[str]) -> Preset:
    """Return the preset with some keys changed, as ``load_preset`` would have made it.

    Raises:
        PresetError: see ``load_preset``.
    """
    return _validated(preset.model_dump(mode="json"), overrides) if overrides else preset


def _preset_of(document: dict[str, Any], overrides: Sequence[str], *, new: bool = False) -> Preset:
    """Validate a document; with ``new``, one that a person has written and no run has kept."""
    for override in overrides:
        _apply_override(document, override)
    if new:
        _stop_while_sampling(document)
    try:
        preset = Preset.model_validate(_with_home(document))
    except RecursionError:
        raise PresetError("the document holds itself (an alias within what it names)") from None
    except ValidationError as error:
        raise PresetError(_first_error(error)) from error
    if new:
        _refuse_partial_credit(preset)
    return preset


def _refuse_partial_credit(preset: Preset) -> None:
    for benchmark in (*preset.protocol.benchmarks, *preset.examination.procedural):
        source = benchmark.source or preset.protocol.environment.source
        if source is not None and source.environment is None and source.grader.threshold is None:
            raise PresetError(
                f"benchmark {benchmark.name}: its grader keeps partial credit (threshold: null), and a benchmark counts right "
                "completions; give it a source of its own whose grader has a threshold"
            )


def _stop_while_sampling(document: dict[str, Any]) -> None:
    """Have the stop texts of prompts end completions while they are sampled, as they did not in runs of before."""
    protocol = document.get("protocol")
    if not isinstance(protocol, dict):
        return  # validation says what is wrong
    benchmarks = protocol.get("benchmarks")
    for owner in (protocol, *(benchmarks if isinstance(benchmarks, list) else ())):
        prompt = owner.get("prompt") if isinstance(owner, dict) else None
        if isinstance(prompt, dict) and prompt.get("stop"):
            prompt.setdefault("stopping", "sampling")


def _validated(document: dict[str, Any], overrides: Sequence[str], *, new: bool = False) -> Preset:
    preset = _preset_of(document, overrides, new=new)
    try:
        digest = policy_digest(preset.protocol.policy)
    except PolicyNotFoundError as error:
        raise PresetError(f"protocol.policy: {error}") from error
    prompted = preset.protocol.prompt is not None
    if new or preset.protocol.tokenizer_digest:  # a run of before that has prompts of benchmarks only keeps its digest
        prompted = prompted or any(benchmark.prompt for benchmark in preset.protocol.benchmarks)
    words = tokenizer_digest(preset.protocol.policy) if prompted else ""
    protocol = preset.protocol.model_copy(update={"policy_digest": digest, "tokenizer_digest": words})
    return preset.model_copy(update={"protocol": _with_pinned_environment(protocol)})


def _with_pinned_environment(protocol: Protocol) -> Protocol:
    """Fill in the digests of the files from which problems come."""
    where = f"protocol.environment.{'source' if protocol.environment.source else 'name'}"
    try:
        environment = protocol.environment.pinned()
        benchmarks = []
        for benchmark in protocol.benchmarks:
            where = f"protocol.benchmarks.{benchmark.name}.source"
            source = benchmark.source.pinned() if benchmark.source else None
            benchmarks.append(benchmark.model_copy(update={"source": source}))
    except OSError as error:
        name = protocol.environment.name if where.endswith("name") else error.filename
        raise PresetError(f"{where}: {name}: {error.strerror or error}") from error
    except ValueError as error:
        raise PresetError(f"{where}: {error}") from error
    return protocol.model_copy(update={"environment": environment, "benchmarks": tuple(benchmarks)})


def _read_document(name_or_path: str | Path, extended_by: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the keys of a preset file, merged over those of the file that it extends.

    Args:
        name_or_path: see ``load_preset``; ``extends`` takes a shipped name, or a path relative to the file's folder.
        extended_by: the files that led to this one through ``extends``, beginning with the one that the user named.
    """
    name = str(expanded(name_or_path))
    if name in extended_by:
        raise PresetError(f"extends goes in a circle: {' extends '.join((*extended_by, name))}")
    document = _read_yaml(name, f"{extended_by[-1]}: extends: " if extended_by else "")
    base, tuned = document.pop("extends", None), document.pop("tuned", None)
    if tuned is not None:  # what was found by tuning stands above the file's own numbers, from which the tuning began
        document = _merged(document, _read_tuned(_beside(name, tuned)))
    if base is None:
        return document
    if not isinstance(base, str):
        raise PresetError(f"{name}: extends takes the name of a shipped preset or the path of a file (given: {base!r})")
    if base not in shipped_presets():
        base = os.path.normpath(Path(name).parent / expanded(base))
    return _merged(_without_other_problems(_read_document(base, (*extended_by, name)), document), document)


def _without_other_problems(base: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of the file that is extended, without kinds of problems that another environment does not know."""

    def environment(document: Mapping[str, Any]) -> Any:
        protocol = document.get("protocol")
        return protocol.get("environment") if isinstance(protocol, Mapping) else None

    theirs, mine = environment(base), environment(own)
    if isinstance(theirs, dict) and isinstance(mine, dict) and {"source", "name"} & set(mine):
        kept = {key: value for key, value in theirs.items() if key == "train_problems"}
        return {**base, "protocol": {**base["protocol"], "environment": kept}}
    return base


def tuned_file(name_or_path: str | Path) -> Path | None:
    """The file from which a preset takes its tuned baseline, there or not: the key ``tuned`` of the preset, or of the nearest
    one that it extends; None where none of them has the key.

    Raises:
        PresetError: a file cannot be read.
    """
    name: str | None = str(expanded(name_or_path))
    while name is not None:
        document = _read_yaml(name, "")
        if (tuned := document.get("tuned")) is not None:
            return _beside(name, tuned)
        base = document.get("extends")
        name = (
            base if base is None or base in shipped_presets() else os.path.normpath(Path(name).parent / expanded(base))
        )
    return None


def _beside(name: str, tuned: object) -> Path:
    """The path of a preset's ``tuned`` file, which is relative to the preset's own folder."""
    if not isinstance(tuned, str):
        raise PresetError(f"{name}: tuned takes the path of a file that poise tune has written (given: {tuned!r})")
    folder = Path(str(resources.files("poise_core") / "presets")) if name in shipped_presets() else Path(name).parent
    return folder / expanded(tuned)


def _read_tuned(path: Path) -> dict[str, Any]:
    """The keys of a tuned baseline; none where there is no such file yet, and then the preset counts as never tuned."""
    if not path.exists():
        return {}
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise PresetError(f"{path}: cannot be read ({' '.join(str(error).split())}); run poise tune again") from error
    if not isinstance(document, dict) or not set(document) <= {"protocol", "baseline"}:
        raise PresetError(f"{path}: not a file that poise tune has written; it may hold 'protocol' and 'baseline' only")
    return document


def _read_yaml(name: str, where: str) -> dict[str, Any]:
    if name in shipped_presets():
        text = (resources.files("poise_core") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        path = Path(name)
        if not path.is_file():
            raise PresetError(
                f"{where}no preset {name!r}; shipped presets: {', '.join(shipped_presets())}, or give a YAML file"
            )
        try:
            text = _decoded(path.read_bytes())
        except UnicodeDecodeError as error:
            raise PresetError(f"{where}{name}: not UTF-8 (byte {error.start}); save it as UTF-8") from error
        except OSError as error:
            raise PresetError(f"{where}{name}: cannot be read: {error.strerror or error}") from error
    try:
        document = _parsed(text)
    except ValueError as error:
        raise PresetError(f"{where}{name}: not valid YAML: {error}") from error
    if not isinstance(document, dict):
        raise PresetError(f"{where}{name}: expected keys such as 'protocol' and 'search' at the top level")
    return document


def _decoded(content: bytes) -> str:
    """The text of a YAML file: UTF-8, or UTF-16 with the mark that YAML asks for there (PowerShell writes it)."""
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if utf16 else "utf-8-sig")


_PATHS = frozenset(
    {
        "archive",
        "dataset",
        "environment",
        "file",
        "function",
        "literature_folder",
        "name",
        "policies",
        "policy",
        "prompts_folder",
    }
)
"""Keys whose values may be paths; a leading ~ in them is the user's home."""


def _with_home(node: Any, key: str = "") -> Any:
    if isinstance(node, dict):
        return {name: _with_home(value, str(name)) for name, value in node.items()}
    if isinstance(node, list):
        return [_with_home(value, key) for value in node]
    return str(expanded(node)) if isinstance(node, str) and key in _PATHS and node.startswith("~") else node


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two mappings key by key through all levels; where both have a value, ``own`` wins."""
    merged = {**base, **own}
    for key in base.keys() & own.keys():
        if isinstance(base[key], dict) and isinstance(own[key], dict):
            merged[key] = _merged(base[key], own[key])
    return merged


def _apply_override(document: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise PresetError(f"--set {override!r}: expected key=value, for example protocol.training.steps=20")
    *parents, leaf = key.split(".")
    target: Any = document
    for part in parents:
        target = _below(target, part, key)
    if not isinstance(target, dict):
        raise PresetError(f"--set {key}: {parents[-1]!r} has no keys below it{_one_of(target)}")
    try:
        target[leaf] = _parsed(value)
    except ValueError as error:
        raise PresetError(
            f"--set {key}: the value is not valid YAML; put it in quotes within the shell's ({error})"
        ) from error


def _below(target: Any, part: str, key: str) -> Any:
    """What stands at one part of a dotted key; of a list, such as the benchmarks, the entry of that name."""
    if isinstance(target, list):
        found = [entry for entry in target if isinstance(entry, dict) and entry.get("name") == part]
        if not found:
            raise PresetError(f"--set {key}: there is no {part!r}{_one_of(target)}")
        return found[0]
    if not isinstance(target, dict):
        raise PresetError(f"--set {key}: {part!r} has no keys below it")
    if target.get(part) is None:  # a section that a resolved preset writes as null, such as protocol.model
        target[part] = {}
    inner = target[part]
    if not isinstance(inner, dict | list):
        raise PresetError(f"--set {key}: {part!r} has no keys below it")
    return inner


def _one_of(target: Any) -> str:
    names = [str(entry["name"]) for entry in target if isinstance(entry, dict) and "name" in entry]
    return f"; name one of {', '.join(names)}" if names else ""


def _first_error(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        allowed = ", ".join(_fields_at(first["loc"][:-1]))
        return f"{key}: unknown key; allowed here: {allowed}"
    message = first["msg"].removeprefix("Value error, ")
    given = "" if isinstance(first.get("input"), dict) else f" (given: {first.get('input')!r})"
    return f"{key}: {message}{given}" if key else message


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    model: Any = Preset
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        arguments = [a for a in getattr(annotation, "__args__", ()) if hasattr(a, "model_fields")]
        model = arguments[0] if arguments else annotation
    return sorted(model.model_fields)
