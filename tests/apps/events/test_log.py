"""The log contains only whole lines, however the process ends."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from apps.events.log import EventLog
from apps.lines import BLOCK, Lines
from engines.errors import BackendUnavailable

from .fakes import captured, event


def lines_of(path: Path) -> list[dict[str, Any]]:
    content = path.read_bytes()
    assert content == b"" or content.endswith(b"\n")
    return [json.loads(line) for line in content.splitlines()]


def test_an_event_is_a_line_that_is_there_at_once(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "log.jsonl", trouble=pytest.fail)
    log.happened(event("Brände, 火.", frame=7, margin=0.5), captured(7))
    (line,) = lines_of(tmp_path / "log.jsonl")
    assert datetime.fromisoformat(line.pop("at")).tzinfo is not None
    assert line == {
        "kind": "answer", "text": "Brände, 火.", "frame": 7, "time_s": 0.7, "question": "What is there?",
        "answer": "Brände, 火.", "margin": 0.5,
    }  # fmt: skip
    assert "火".encode() in (tmp_path / "log.jsonl").read_bytes()
    log.close()


@pytest.mark.parametrize("text", ["a\nb\r\u2028c", "\udc80", 'quote " and \\'], ids=["breaks", "half a pair", "quotes"])
def test_no_text_breaks_a_line(tmp_path: Path, text: str) -> None:
    log = EventLog(tmp_path / "log.jsonl", trouble=pytest.fail)
    log.happened(event(text, margin=float("nan")), captured())
    log.close()
    (line,) = (tmp_path / "log.jsonl").read_bytes().split(b"\n")[:-1]
    assert json.loads(line)["answer"] == text and json.loads(line)["margin"] is None


def test_a_second_session_adds_to_the_log_of_the_first(tmp_path: Path) -> None:
    for text in ("one", "two"):
        log = EventLog(tmp_path / "log.jsonl", trouble=pytest.fail)
        log.happened(event(text), captured())
        log.close()
    assert [line["text"] for line in lines_of(tmp_path / "log.jsonl")] == ["one", "two"]


@pytest.mark.parametrize("cut", [b'{"kind": "ans', b"x" * (3 * BLOCK), b"\x00" * 10], ids=["short", "long", "zeros"])
@pytest.mark.parametrize("before", [b"", b'{"kind":"end"}\n'], ids=["alone", "after a line"])
def test_a_line_that_was_cut_short_is_removed_and_said(tmp_path: Path, before: bytes, cut: bytes) -> None:
    path, said = tmp_path / "log.jsonl", list[str]()
    path.write_bytes(before + cut)
    log = EventLog(path, trouble=said.append)
    assert path.read_bytes() == before
    assert said == [f"{path}: its last line was incomplete ({len(cut)} bytes) and was removed"]
    log.happened(event(), captured())
    assert len(lines_of(path)) == (2 if before else 1)
    log.close()


def test_a_process_that_is_killed_leaves_whole_lines(tmp_path: Path) -> None:
    program = """
import os, sys
from pathlib import Path
from apps.lines import Lines
lines = Lines(Path(sys.argv[1]))
for number in range(500):
    lines.append({"number": number, "text": "x" * 200})
print("written", flush=True)
while True:
    lines.append({"number": -1, "text": "x" * 200})
"""
    path = tmp_path / "log.jsonl"
    with subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"written\n"
        process.send_signal(signal.SIGKILL)
    found = lines_of(path)
    assert [line["number"] for line in found[:500]] == list(range(500))
    assert Lines(path).num_cut == 0


def test_on_a_full_disk_lines_are_lost_and_counted_and_the_session_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, said, room, write = tmp_path / "log.jsonl", list[str](), [10**6], os.write

    def limited(file: int, data: bytes) -> int:
        """A disk that writes as much as fits, and fails when full."""
        taken = data[: room[0]]
        if not taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room[0] -= len(taken)
        return write(file, taken)

    monkeypatch.setattr("apps.lines.os.write", limited)
    log = EventLog(path, trouble=said.append)
    log.happened(event("one"), captured())
    room[0] = 20
    for text in ("two", "three", "four"):
        log.happened(event(text), captured())
    assert [line["text"] for line in lines_of(path)] == ["one"]
    assert (
        said == [f"{path} cannot be written: No space left on device; log lines are being lost"] and log.num_lost == 3
    )
    room[0] = 10**6
    log.happened(event("five"), captured())
    assert said[1:] == [f"{path} can be written again; 3 lines were lost"]
    room[0] = 0
    log.happened(event("six"), captured())
    room[0] = 10**6
    log.happened(event("seven"), captured())
    assert len(said) == 4 and said[-1].endswith("; 1 lines were lost") and log.num_lost == 4
    log.close()
    monkeypatch.undo()
    assert [line["text"] for line in lines_of(path)] == ["one", "five", "seven"]


def test_a_place_that_cannot_be_written_is_refused_before_the_first_frame(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match="missing/log.jsonl cannot be written: No such file") as caught:
        EventLog(tmp_path / "missing" / "log.jsonl", trouble=pytest.fail)
    assert f"mkdir -p {tmp_path}/missing" in caught.value.fix


def test_a_week_of_answers_takes_as_much_as_the_docstring_says(tmp_path: Path) -> None:
    text = "A man in a red coat walks past a door."
    log = EventLog(tmp_path / "log.jsonl", trouble=pytest.fail)
    log.happened(event(text, frame=123456, margin=1.2345678, question="What happens?"), captured())
    log.close()
    assert (tmp_path / "log.jsonl").stat().st_size == pytest.approx(260, rel=0.05)
    assert EventLog.__doc__ is not None and "260 bytes" in EventLog.__doc__
    num_bytes = 260 * 7 * 86400 / 5
    assert num_bytes == pytest.approx(31e6, rel=0.02)
