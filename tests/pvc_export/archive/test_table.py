"""The table of answers: whole lines, one per video, whatever ended the run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from engines.errors import BackendUnavailable, PVCError
from pvc_export.archive.table import Row, Table


def row(name: str, **facts: object) -> Row:
    return {"video": name, "job": "a", "answers": [], "error": None} | facts


def rows_in(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_a_line_that_was_cut_short_at_any_byte_is_cut_off_and_its_video_is_answered_again(tmp_path: Path) -> None:
    path, rows = tmp_path / "t.jsonl", [row("a.mp4"), row("b.mp4", note="é"), row("c.mp4")]
    with Table(path) as table:
        for each in rows:
            table.add(each)
    whole = path.read_bytes()
    begins = whole.index(b'{"video": "c.mp4"')
    for cut in range(begins, len(whole)):
        path.write_bytes(whole[:cut])
        with Table(path) as table:
            assert list(table.rows) == ["a.mp4", "b.mp4"] and path.read_bytes() == whole[:begins]
            assert table.add(rows[2])
        assert path.read_bytes() == whole
    path.write_bytes(whole[:begins] + bytes(20) + b"\n")  # as a power cut can leave it
    with Table(path) as table:
        assert len(table.rows) == 2 and table.add(rows[2])
    assert rows_in(path) == rows


def test_a_video_that_has_a_row_gets_no_second_one(tmp_path: Path) -> None:
    with Table(tmp_path / "t.jsonl") as table:
        assert table.add(row("a.mp4", n=1)) and not table.add(row("a.mp4", n=2))
    assert rows_in(tmp_path / "t.jsonl") == [row("a.mp4", n=1)]


def test_rows_are_dropped_in_one_step_and_the_table_grows_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.jsonl"
    with Table(path) as table:
        for name in "abc":
            table.add(row(name))
        before = path.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", fails)
            with pytest.raises(BackendUnavailable):
                table.drop(lambda each: each["video"] == "b")
        assert path.read_bytes() == before
        assert table.drop(lambda each: each["video"] == "b") == 1 and table.drop(lambda each: False) == 0
        table.add(row("b", n=2))
    assert rows_in(path) == [row("a"), row("c"), row("b", n=2)]


def fails(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_row_that_cannot_be_written_leaves_nothing_of_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.jsonl"
    with Table(path) as table:
        table.add(row("a"))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fails)
            with pytest.raises(BackendUnavailable) as caught:
                table.add(row("b"))
        assert "No space left" in caught.value.what and "same command continues" in caught.value.fix
        assert rows_in(path) == [row("a")] and table.add(row("b"))
    assert rows_in(path) == [row("a"), row("b")]


def test_two_runs_do_not_share_a_table(tmp_path: Path) -> None:
    with Table(tmp_path / "t.jsonl"), pytest.raises(BackendUnavailable) as caught:
        Table(tmp_path / "t.jsonl")
    assert "another run is writing" in caught.value.what
    Table(tmp_path / "t.jsonl").close()


def test_a_file_of_another_kind_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("name,answer\na.mp4,yes\n")
    with pytest.raises(PVCError) as caught:
        Table(path)
    assert "line 1 of" in caught.value.what and path.read_text() == "name,answer\na.mp4,yes\n"
