"""Files that are whole or absent."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from poise_core.files import json_lines, write_atomically


@pytest.mark.parametrize("content", ["Überall\n", b"\x00\xff\n", ""])
def test_text_and_bytes_are_written_as_they_are_and_nothing_lies_beside_them(
    tmp_path: Path, content: str | bytes
) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    write_atomically(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert os.listdir(tmp_path) == ["file"]


def test_lines_of_jsonl_end_at_a_newline_alone() -> None:
    rows = ['{"a": "b\u2028c\u2029d\x85e\x0bf\x0cg\x1ch"}', '{"a": 2}\r']
    assert list(json_lines(f"{rows[0]}\n\n{rows[1]}\n")) == [(1, rows[0]), (3, rows[1])]
    assert list(json_lines("")) == []


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_what_fails_half_way_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "file"
    write_atomically(path, "before")
    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "after")
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["file"]


def test_threads_that_write_one_file_do_not_mix(tmp_path: Path) -> None:
    path, texts = tmp_path / "file", [letter * 50_000 for letter in "abcdef"]
    threads = [threading.Thread(target=write_atomically, args=(path, text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts
    assert os.listdir(tmp_path) == ["file"]
