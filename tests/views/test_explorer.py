"""``poise explore``: the document behind the page, the page as data that cannot run, and the page in a real browser."""

from __future__ import annotations

import base64
import difflib
import gzip
import hashlib
import json
import math
import queue
import re
import shutil
import socket
import statistics
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import archive_samples as samples
import pytest
from typer.testing import CliRunner

from poise_core.archive import Archive, candidate_row, completion_rows, trajectory_rows
from poise_core.archive.encoding import build_table
from poise_core.archive.schema import TRAJECTORIES
from poise_core.archive.trajectories import trained_steps
from poise_core.cli import app
from poise_core.config.protocol import Protocol
from poise_core.evaluation.kept import KeptCompletion
from poise_core.evidence.run_evidence import RunEvidence
from poise_core.render.explorer import columns, explorer_page, run_page
from poise_core.run_directory import RunDirectory
from poise_core.views.candidate import mean_curves, view_candidate
from poise_core.views.explorer import (
    CURVE_LEVELS,
    CURVE_POINTS,
    Place,
    curves,
    details,
    line_changes,
    overview,
    thinned,
    tree_places,
)

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "docs" / "results" / "laptop-64"
HEADLINE = ROOT / "docs" / "results" / "headline"
HOSTILE = "</script><script>document.title='run'</script><img src=x onerror=\"document.title='run'\">\u202e<!--"


@pytest.fixture
def evidence(tmp_path: Path) -> RunEvidence:
    archive, protocol = samples.filled_archive(tmp_path)
    return RunEvidence.load(archive, protocol)


def page_of(evidence: RunEvidence, title: str = "a run", **options: Any) -> str:
    return run_page(title, evidence, **options)


# ---- the document


def test_every_table_is_read_once_for_all_candidates(evidence: RunEvidence, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many parts of a run are in memory one after the other; trainings twice, for what they cost and for their curves."""
    from poise_core.archive.reader import PartReader
    from poise_core.views import explorer

    reads: Counter[str] = Counter()
    scan = PartReader.scan

    def counting(reader: PartReader, table: Any, *arguments: Any, **named: Any) -> Any:
        reads[table.name] += 1
        return scan(reader, table, *arguments, **named)

    monkeypatch.setattr(PartReader, "scan", counting)
    whole = page_of(evidence)
    monkeypatch.setattr(explorer, "TOGETHER", 1)
    reads.clear()
    assert page_of(replace(evidence)) == whole
    assert reads == dict.fromkeys(("calls", "proposals", "verifications", "reflections", "completions"), 1) | {
        "trajectories": 2
    }


def curves_by_rows(seeds: dict[int, list[dict[str, Any]]]) -> dict[str, dict[str, list[float]]]:
    """The double of ``curves``: one number after the other."""
    points: dict[str, dict[int, list[float]]] = {}
    for rows in seeds.values():
        for row in rows:
            for name in row.keys() - {"step"}:
                points.setdefault(name, {}).setdefault(row["step"], [])
                points[name][row["step"]] += [row[name]] if math.isfinite(row[name]) else []
    found = {}
    for name, by_step in points.items():
        steps = thinned(sorted(step for step, values in by_step.items() if values))
        if steps:
            low, high = min(min(by_step[step]) for step in steps), max(max(by_step[step]) for step in steps)
            step = (high - low) / CURVE_LEVELS or max(abs(low), abs(high)) * 1e-5
            digits = math.ceil(-math.log10(step)) if step else 0
            found[name] = {"step": [float(step) for step in steps]} | {
                part: [round(float(of(by_step[step])), digits) for step in steps]
                for part, of in (("mean", statistics.fmean), ("low", min), ("high", max))
            }
    return found


def test_the_published_run_is_drawn_as_number_by_number() -> None:
    evidence = RunDirectory.read(PUBLISHED).evidence()
    ids = sorted(evidence.candidates)
    for one, told in zip(ids, details(evidence, ids), strict=True):
        seeds = evidence.archive.trajectory(one, evidence.protocol.digest)
        assert told["curves"] == curves_by_rows(seeds), one
        assert list(told["curves"]) == list(mean_curves(seeds)), "in the order in which steps name them"
        assert told["unconfined"] == view_candidate(evidence, one).unconfined


def test_a_leaf_takes_the_next_row_and_a_parent_the_middle_of_its_children() -> None:
    #   0 - 1 - 3      rows: 3 -> 0, 4 -> 1, so 1 -> 0.5; 2 -> 2; 0 -> (0.5 + 2) / 2; 5 is a root of its own
    #     \   \ 4
    #       2
    places = tree_places([[], [0], [0], [1], [1, 2], []], [0, 1, 1, 2, 2, 0])
    assert places == [Place(0, 1.25), Place(1, 0.5), Place(1, 2.0), Place(2, 0.0), Place(2, 1.0), Place(0, 3.0)]


def test_a_long_line_of_descent_is_laid_out() -> None:
    count = 20_000  # deeper than Python calls within each other
    places = tree_places([[], *([i] for i in range(count - 1))], list(range(count)))
    assert {place.row for place in places} == {0.0}


def drawn(seeds: dict[int, list[dict[str, float]]]) -> dict[str, dict[str, list[float]]]:
    rows = [row for seed, steps in seeds.items() for row in trajectory_rows("c", "p", seed, steps)]
    return curves(trained_steps(build_table(TRAJECTORIES, rows))["c"])


def test_curves_have_the_mean_and_the_range_of_the_seeds() -> None:
    seeds = {
        0: [{"step": 0, "reward_mean": 0.2}, {"step": 1, "reward_mean": 0.6}],
        1: [{"step": 0, "reward_mean": 0.4}, {"step": 1, "reward_mean": float("nan")}],
    }
    assert drawn(seeds) == {
        "reward_mean": {"step": [0.0, 1.0], "mean": [0.3, 0.6], "low": [0.2, 0.6], "high": [0.4, 0.6]}
    }


def test_a_long_curve_keeps_its_ends() -> None:
    kept = thinned(range(1000))
    assert (len(kept), kept[0], kept[-1]) == (CURVE_POINTS, 0, 999)
    assert len(set(kept)) == CURVE_POINTS
    assert thinned([3, 5]) == [3, 5]


def test_the_document_says_what_the_archive_says(evidence: RunEvidence) -> None:
    document = overview(evidence)
    found = {one["id"]: one for one in document["candidates"]}
    assert document["candidates"][document["baseline"]]["id"] == samples.GRPO
    assert found[samples.GRPO]["outcome"] == "baseline"
    assert found[samples.BROKEN]["outcome"] == "failed"
    assert found[samples.WAITING]["outcome"] == "unfinished"
    child = found[samples.VM_AV]
    assert [document["candidates"][p]["id"] for p in child["parents"]] == [samples.AV, samples.SA]
    overall = evidence.overall(samples.VM_AV)
    assert overall is not None
    assert child["overall"] == pytest.approx([overall.estimate, overall.low, overall.high, overall.seeds], rel=1e-4)
    scores = [
        result.score
        for one in evidence.evaluations[samples.VM_AV]
        for result in one.benchmarks
        if result.name == "chain"
    ]
    assert child["metrics"]["chain"] == pytest.approx(sum(scores) / 3, abs=1e-3)
    (detail,) = details(evidence, [samples.VM_AV])
    assert detail["source"] == evidence.candidates[samples.VM_AV]["source"]
    before = evidence.candidates[samples.AV]["source"]
    assert detail["changed"] == {"from": samples.AV, "lines": line_changes(before, detail["source"])}
    assert detail["changed"]["lines"]
    assert "KL ended at 0.38 nats" in json.dumps(detail["reflection"])
    json.dumps([document, detail], allow_nan=False)


def test_changes_are_the_lines_that_differ_and_none_between_equals() -> None:
    assert line_changes("a\nb\n", "a\nc\n") == [[1, 2, 1, 2]]
    assert line_changes("a\nb\nc\nd", "b\nc\ne\nf\nd") == [[0, 1, 0, 0], [3, 3, 2, 4]]
    assert line_changes("a\n", "a\n") == []


def test_equal_places_of_records_stand_together() -> None:
    assert columns([{"a": 1, "b": [2]}, None, {"a": "x"}]) == {
        "d": 3,
        "n": [1],
        "k": {"a": [[], [1, "x"]], "b": [[2], {"l": [1], "i": [2]}]},
    }
    assert columns([1, {"a": 2}, []]) == [1, {"a": 2}, []]  # of different shapes
    assert columns([]) == []


# ---- the page


def test_nothing_but_the_two_scripts_can_run_and_nothing_is_loaded(tmp_path: Path) -> None:
    protocol = samples.make_protocol()
    archive = hostile_archive(tmp_path, protocol)
    page = page_of(RunEvidence.load(archive, protocol), HOSTILE)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    assert policy[1].startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy[1].split("style-src")[0]
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in scripts] == re.findall(
        r"sha256-([^']*)'", policy[1]
    )
    outside = page.replace(scripts[0], "").replace(scripts[1], "")
    assert outside.count("<script") == 2 + 1 + 1  # ours, the overview, one part of details
    assert "onerror=" not in re.sub(r"<script.*?</script>", "", outside, flags=re.DOTALL).replace("onerror=&quot;", "")
    assert "\u202e" not in page
    assert not re.search(r'(?:src|href)="(?:https?:)?//', outside)


def hostile_archive(folder: Path, protocol: Protocol) -> Archive:
    archive = Archive(folder / "archive").initialise()
    samples.add_candidate(archive, protocol, samples.GRPO, "GRPO", 0, (), 0.45)
    samples.add_candidate(archive, protocol, samples.AV, HOSTILE, 1, (samples.GRPO,), 0.5)
    archive.append("trajectories", trajectory_rows(samples.AV, protocol.digest, 7, samples.make_steps(5, 7)))
    return archive


def rows_of(packed: Any) -> list[Any]:
    """What ``columns`` was given."""
    if isinstance(packed, list):
        return packed
    if "l" in packed:
        items = iter(rows_of(packed["i"]))
        return [None if length < 0 else [next(items) for _ in range(length)] for length in packed["l"]]
    rows: list[Any] = [None if place in packed["n"] else {} for place in range(packed["d"])]
    for name, (without, values) in packed["k"].items():
        having = (row for place, row in enumerate(rows) if row is not None and place not in without)
        for row, value in zip(having, rows_of(values), strict=True):
            row[name] = value
    return rows


@pytest.mark.slow
def test_details_are_unpacked_as_they_were(evidence: RunEvidence) -> None:
    page = page_of(evidence)
    (packed,) = re.findall(r'<script id="details-0" type="text/plain">(.*?)</script>', page)
    ids = [one["id"] for one in overview(evidence)["candidates"]]
    assert rows_of(json.loads(gzip.decompress(base64.b64decode(packed)))) == list(details(evidence, ids))


@pytest.mark.slow
def test_the_command_writes_the_page_and_says_where(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["explore", str(PUBLISHED), "--out", str(tmp_path / "run.html")])
    assert done.exit_code == 0, done.output
    assert str(tmp_path / "run.html") in done.stdout
    assert "AM-HT-SQ" in (tmp_path / "run.html").read_text()
    missing = CliRunner().invoke(app, ["explore", str(tmp_path / "nothing")])
    assert (missing.exit_code, missing.output.count("\n")) == (2, 1)


@contextmanager
def served(page: Callable[[], str], revision: Callable[[], object]) -> Iterator[str]:
    """The address at which it answers."""
    from poise_core.render.explorer_server import serve_pages

    address: queue.Queue[str] = queue.Queue()
    options = {"revision": revision, "on_ready": address.put}
    threading.Thread(target=serve_pages, args=(page, 0), kwargs=options, daemon=True).start()
    yield address.get(timeout=10)


def test_served_pages_are_for_this_machine_alone() -> None:
    with served(lambda: "<p>page</p>", lambda: 0) as address:
        assert urllib.request.urlopen(address).read() == b"<p>page</p>"
        for request, status in (
            (urllib.request.Request(address, headers={"Host": "example.org:80"}), 403),
            (urllib.request.Request(address + "other"), 404),
        ):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request)
            assert refused.value.code == status


def test_a_served_page_is_made_again_when_the_archive_has_changed(tmp_path: Path) -> None:
    protocol, made = samples.make_protocol(), list[int]()
    archive = hostile_archive(tmp_path, protocol)

    def page() -> str:
        made.append(len(Archive(tmp_path / "archive").rows("rungs")))
        if len(made) == 2:  # a row that comes while a page is made is in the next one
            archive.append("rungs", [samples.rung(protocol, samples.SA, "proxy", "stopped")])
        return str(made[-1])

    with served(page, lambda: Archive(tmp_path / "archive").revision()) as address:

        def read() -> str:
            return urllib.request.urlopen(address).read().decode()

        assert [read(), read()] == ["0", "0"]
        archive.refresh_snapshots()
        assert (read(), made) == ("0", [0]), "nobody has added a row"
        archive.append("rungs", [samples.rung(protocol, samples.AV, "proxy", "promoted")])
        assert [read(), read(), read()] == ["1", "2", "2"]
        assert made == [0, 1, 2]
        (path,) = (tmp_path / "archive" / "rungs").glob(f"*{samples.AV}*")
        content = path.read_bytes()
        path.unlink()
        assert read() == "1"
        path.write_bytes(content)  # the same name and size, from another moment
        assert read() == "2"
        archive.compact(lambda _: None)
        assert read() == "2"
        archive.append("rungs", [samples.rung(protocol, samples.GRPO, "proxy", "promoted")])
        assert read() == "3", "beside the compacted file"
        shutil.rmtree(tmp_path / "archive")
        with pytest.raises(urllib.error.HTTPError) as unreadable:
            read()
        assert unreadable.value.code == 503


def test_a_port_that_is_taken_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused = CliRunner().invoke(app, ["explore", str(PUBLISHED), "--serve", "--port", port])
    assert (refused.exit_code, refused.output.count("\n")) == (2, 1)
    assert f"port {port}: " in refused.output


# ---- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield found
        found.close()


def opened(browser: Any, path: Path, complaints: list[str]) -> Any:
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(path.as_uri())
    page.wait_for_selector(".plot .main-svg")
    return page


@pytest.mark.exhaustive
def test_a_reader_finds_everything_by_clicks_links_and_words(browser: Any, tmp_path: Path) -> None:
    path, complaints = tmp_path / "run.html", list[str]()
    assert CliRunner().invoke(app, ["explore", str(PUBLISHED), "--out", str(path)]).exit_code == 0
    page = opened(browser, path, complaints)
    assert "65 of 65 shown" in page.text_content("#shown")
    page.fill("#words", "am-ht-sq")
    page.wait_for_selector("#shown >> text=1 of 65 shown")
    page.click("nav >> text=Table")
    page.click("tbody a >> text=AM-HT-SQ")
    page.wait_for_selector("text=Changes to the parent's file")
    assert page.locator("pre .added").count() > 0
    assert page.locator("pre .k").count() > 5
    assert "replicated" in page.text_content("main")
    page.click("text=compare with the parent")
    page.wait_for_selector("text=Side by side")
    assert page.locator("section pre").count() == 2
    page.fill("#words", "")
    for view in ("Two metrics", "Search and cost", "Curves", "Tree"):
        page.click(f"nav >> text={view}")
        page.wait_for_selector(".plot .main-svg")
        assert page.locator("nav a[aria-current=page]").text_content() == view
    page.goto(path.as_uri() + "#/plot?x=generation&y=long-chains")
    page.wait_for_selector("text=candidates that no other beats in both")
    page.click("nav >> text=Failures")
    page.wait_for_selector("h2 >> text=Failures")
    assert complaints == []


@pytest.mark.exhaustive
def test_a_champions_page_has_its_examination_and_what_carries_it(browser: Any) -> None:
    complaints = list[str]()
    page = opened(browser, HEADLINE / "explorer.html", complaints)
    page.goto((HEADLINE / "explorer.html").as_uri() + "#/candidate/nb-fx-hw-63e7c4842e")
    rates = page.locator("section", has_text="Examination").locator("tr", has_text="rates").first
    rates.wait_for()
    cells = [rates.locator("th,td").nth(i).text_content() for i in range(7)]
    assert cells == [
        "rates",
        "89.8 at x1",
        "80.5 at x1",
        "+9.4 [+6.2, +12.6]",
        "89.0 (78.3)",
        "0 of 6, at most 39 %",
        "holds",
    ]
    undone = page.locator("tr", has_text="aggregation: sequence-mean -> sequence-sum").first.text_content()
    assert "+70.6 [+68.2, +72.9]" in undone
    assert "+3.6 [+1.9, +5.3]" in undone
    page.click("nav >> text=Search and cost")
    for arm in ("evolution-seed-2", "tune-seed-2"):
        page.wait_for_selector(f".legend >> text={arm}")
    assert complaints == []


def test_the_published_page_is_that_of_the_published_archive() -> None:
    """But for the other arms, whose archives are not kept beside it."""
    kept = (HEADLINE / "explorer.html").read_text()
    again = run_page("random-seed-2", RunDirectory.read(HEADLINE).evidence())
    parts = [re.findall(r'<script id="details-\d+" type="text/plain">([^<]+)</script>', page) for page in (kept, again)]
    told, expected = ([gzip.decompress(base64.b64decode(one)) for one in packed] for packed in parts)
    assert told == expected != []  # unpacked: two versions of zlib may pack otherwise


@pytest.mark.exhaustive
def test_hostile_text_runs_nowhere(browser: Any, tmp_path: Path) -> None:
    protocol, complaints = samples.make_protocol(), list[str]()
    path = tmp_path / "run.html"
    path.write_text(page_of(RunEvidence.load(hostile_archive(tmp_path, protocol), protocol), "a title"))
    page = opened(browser, path, complaints)
    own = f"candidate/{samples.AV}"
    for view in ("tree", "plot", "search", "curves", "table", "failures", own, f"compare/{samples.GRPO}/{samples.AV}"):
        page.goto(path.as_uri() + "#/" + view)
        page.wait_for_timeout(300)
        assert page.locator("main img").count() == page.locator("main script").count() == 0
        assert page.title() != "run"
    assert complaints == []


def with_evidence_to_read(folder: Path, protocol: Protocol) -> Archive:
    """A run of two candidates, the second with an ablation and with completions, all of it with hostile text."""
    archive = hostile_archive(folder, protocol)
    keys = {"protocol": protocol.digest, "candidate_id": samples.AV, "written_by": "poise"}
    kept = [
        KeptCompletion("chain", -1, "wrong", f"1+1 {HOSTILE}", HOSTILE, 0.0, True, False, 7),
        KeptCompletion("chain", -1, "longest", "2+2", "4" * 30, 1.0, True, True, 30),
    ]
    archive.append("completions", completion_rows(samples.AV, protocol.digest, 7, "search", kept))
    archive.append(
        "completions",
        completion_rows(samples.AV, protocol.digest, 7, "train", [replace(kept[0], benchmark="training", step=3)]),
    )
    version = {
        "version": "without:scale",
        "dropped": ["scale"],
        "numbers": "{}",
        "name": "v",
        "source": "",
        "seeds": [7],
    }
    outcome = {"outcome": "refused", "generation": 1, "message": HOSTILE}
    archive.append("ablations", [{**keys, **version, **outcome}])
    source = "MECHANISMS = {'scale': {'x': 0.0}}\n\n\nclass Hyperparameters:\n    x: float = 1.0\n"
    columns = {"candidate_id": "full-0123456789", "name": "FULL", "source_digest": "0123456789", "written_by": "llm"}
    archive.append("candidates", [candidate_row(source=source, generation=1, parent_ids=[samples.GRPO], **columns)])
    archive.append("ablations", [{**keys, **version, **outcome, "candidate_id": "full-0123456789"}])
    return archive


def test_the_document_has_the_ablation_the_credit_and_what_was_kept_to_be_read(tmp_path: Path) -> None:
    protocol = samples.make_protocol()
    evidence = RunEvidence.load(with_evidence_to_read(tmp_path, protocol), protocol)
    full, read = details(evidence, ["full-0123456789", samples.AV])
    (mechanism,) = full["ablation"]["mechanisms"]
    assert (mechanism["name"], mechanism["verdict"], mechanism["message"]) == ("scale", "needed", HOSTILE)
    told = [(one["origin"], one["step"], one["kind"]) for one in read["completions"]]
    assert told == [("search", -1, "wrong"), ("search", -1, "longest"), ("train", 3, "wrong")]
    document = overview(evidence, {"other": evidence})
    assert document["beside"]["other"] == document["best"]
    assert "too few" in document["credit"]["says"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_rules_of_accessibility_hold_in_every_view(browser: Any, tmp_path: Path, scheme: str) -> None:
    """axe-core's rules (WCAG 2 A and AA, and its best practices)."""
    from axe_playwright_python.sync_playwright import Axe

    path, complaints = tmp_path / "run.html", list[str]()
    assert CliRunner().invoke(app, ["explore", str(PUBLISHED), "--out", str(path)]).exit_code == 0
    protocol = samples.make_protocol()
    other = tmp_path / "other.html"
    other.write_text(page_of(RunEvidence.load(with_evidence_to_read(tmp_path, protocol), protocol)))
    page = browser.new_page(viewport={"width": 1300, "height": 900}, color_scheme=scheme)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    champion = next(one["id"] for one in overview_of_published()["candidates"] if one["name"] == "AM-HT-SQ")
    views = [(path, view) for view in ("tree", "plot", "search", "curves", "table", "credit", "failures")]
    views += [(path, f"candidate/{champion}"), (path, f"compare/{champion}/{champion}")]
    views += [(other, f"candidate/{samples.AV}"), (other, "candidate/full-0123456789")]
    for file, view in views:
        page.goto(file.as_uri() + "#/" + view)
        page.wait_for_selector("main h2")
        page.wait_for_timeout(300)
        for summary in page.locator("main summary").all():
            summary.click()
        assert page.locator("main img").count() == page.locator("main script").count() == 0
        found = Axe().run(page).response
        told = [(one["id"], [node["html"][:120] for node in one["nodes"][:2]]) for one in found["violations"]]
        assert told == [], f"{view}, {scheme}"
        assert len(found["passes"]) > 10
    page.evaluate("document.querySelector('main').append(document.createElement('img'))")
    assert "image-alt" in [one["id"] for one in Axe().run(page).response["violations"]], "what is wrong is found"
    assert complaints == []


def overview_of_published() -> dict[str, Any]:
    return overview(RunDirectory.read(PUBLISHED).evidence())


def cost_of(browser: Any, path: Path, count: int) -> dict[str, float]:
    """Megabytes, and the seconds of the page's own thread until the first drawing, for a search, and until a candidate is shown."""
    page, complaints = browser.new_page(viewport={"width": 1300, "height": 900}), list[str]()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    counters = page.context.new_cdp_session(page)
    counters.send("Performance.enable", {"timeDomain": "threadTicks"})

    def spent() -> float:
        found = counters.send("Performance.getMetrics")["metrics"]
        return next(float(one["value"]) for one in found if one["name"] == "ThreadTime")

    cost = {"MB": path.stat().st_size / 1e6}
    page.goto(path.as_uri(), wait_until="commit", timeout=100_000)
    page.wait_for_selector(".plot .main-svg", timeout=100_000)
    cost["open"] = spent()
    page.wait_for_load_state("load", timeout=100_000)
    before = spent()
    page.fill("#words", "entropy")
    page.wait_for_selector(f"#shown:not(:has-text('{count} of {count}'))")
    page.wait_for_selector(".plot .main-svg")
    cost["search"], before = spent() - before, spent()
    last = page.evaluate("all.findLastIndex((c) => c.outcome === 'scored')")
    page.evaluate(f"location.hash = candidateHash(all[{last}])")
    page.wait_for_selector("h3 >> text=Changes to the parent's file")
    cost["click"] = spent() - before
    assert complaints == []
    page.close()
    return cost


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("candidates", "megabytes", "opening", "using"), [(1_000, 12, 2.5, 12), (10_000, 60, 3.5, 25)])
def test_a_large_run_opens_in_a_few_times_what_a_small_one_takes(
    browser: Any, tmp_path: Path, candidates: int, megabytes: float, opening: float, using: float
) -> None:
    """The published run's 65 candidates, and others made from them, opened in one browser one after the other."""
    document, evidence = overview_of_published(), RunDirectory.read(PUBLISHED).evidence()
    few = document["candidates"]
    known = list(details(evidence, [one["id"] for one in few]))
    costs = {}
    for count in (len(few), candidates):
        many, more = samples.many_candidates(few, known, count) if count > len(few) else (few, iter(known))
        path = tmp_path / f"run-{count}.html"
        path.write_text(explorer_page("run", {**document, "candidates": many}, more))
        costs[count] = cost_of(browser, path, count)
    small, large = costs.values()
    print({count: {name: round(value, 2) for name, value in cost.items()} for count, cost in costs.items()})
    assert large["MB"] <= megabytes
    assert large["open"] <= opening * small["open"]
    assert max(large["search"], large["click"]) <= using * max(small["search"], small["click"])


@pytest.mark.exhaustive
def test_the_page_has_every_detail_and_draws_the_diffs_that_python_does(browser: Any, tmp_path: Path) -> None:
    evidence = RunDirectory.read(PUBLISHED).evidence()
    document, path = overview(evidence), tmp_path / "run.html"
    told = list(details(evidence, [one["id"] for one in document["candidates"]]))
    path.write_text(explorer_page("run", document, iter(told)))
    page = opened(browser, path, [])
    assert json.loads(page.evaluate("JSON.stringify(all)")) == document["candidates"]
    place = {one["id"]: i for i, one in enumerate(document["candidates"])}
    for number, one in enumerate(told):
        read = page.evaluate(f"detail({number}).then((found) => JSON.stringify(found))")
        assert json.loads(read) == json.loads(json.dumps(one)), number
        if not one or not one["changed"] or number % 8:
            continue
        above = told[place[one["changed"]["from"]]]["source"]
        drawn = page.evaluate(
            "([lines, before, after]) => diffOf(lines, before, after, 'old', 'new').textContent",
            [one["changed"]["lines"], above, one["source"]],
        )
        lines = difflib.unified_diff(above.split("\n"), one["source"].split("\n"), "old", "new", lineterm="")
        assert drawn.splitlines() == "\n".join(lines).splitlines()
