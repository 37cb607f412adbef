"""`pvc-export batch` turns a folder of videos into a table of answers, one row per video, whatever ends the run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from engines import PVCStream, open_bundle
from engines.errors import BackendUnavailable
from engines.synthetic import render_clip
from engines.video import VideoReader, probe_video, write_video
from pvc_export.archive import on_ray, workers
from pvc_export.archive.job import Job, Video

from ..conftest import Run
from . import deadly

ROOT = Path(__file__).parents[3]
NUM_CLIPS = 50


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    (folder / "gate").mkdir()
    for index in range(NUM_CLIPS):
        path = folder / ("gate" if index % 2 else "") / f"{index:02}.mp4"
        write_video(path, render_clip(3, seed=index, width=32, height=32), fps=5.0)
    return folder


@pytest.fixture
def few(clips: Path, tmp_path: Path) -> Path:
    """A folder with copies of three clips, which a test may change."""
    folder = tmp_path / "few"
    folder.mkdir()
    for name in ("00.mp4", "02.mp4", "04.mp4"):
        (folder / name).write_bytes((clips / name).read_bytes())
    return folder


def rows_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_a_run_that_is_killed_twice_answers_every_video_once(bundle_fp32: Path, clips: Path, tmp_path: Path) -> None:
    """The run is killed at random moments: between rows and in the middle of one."""
    table, chance = tmp_path / "answers.jsonl", random.Random(7)
    command = [
        sys.executable, "-m", "pvc_export.cli", "batch", bundle_fp32, clips, "-o", table, "--ask", "What happened?",
        "--frames", "2", "--max-new-tokens", "3", "--json",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    kept = b""
    for least in (12, 30):
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            until = time.monotonic() + 60
            while not table.exists() or table.read_bytes().count(b"\n") < least:
                assert process.poll() is None and time.monotonic() < until, process.communicate()
                time.sleep(0.005)
            time.sleep(chance.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
            assert process.wait(10) == -signal.SIGKILL
        left = table.read_bytes()
        assert left.startswith(kept) and least <= left.count(b"\n") < NUM_CLIPS
        kept = left[: left.rindex(b"\n") + 1]
        table.write_bytes(left + b'{"video": "gate/')  # what a kill in the middle of a line leaves
    last = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert json.loads(last.stdout)["answered"] == NUM_CLIPS - kept.count(b"\n")
    assert table.read_bytes().startswith(kept)
    rows = rows_in(table)
    assert Counter(row["video"] for row in rows) == Counter(
        p.relative_to(clips).as_posix() for p in clips.rglob("*.mp4")
    )
    bundle = open_bundle(bundle_fp32)
    for row in rows[::7]:
        assert row["error"] is None and row["frames"] == 2
        assert row["answers"][0]["answer"] == answer_to(clips / row["video"], PVCStream(bundle))


def answer_to(path: Path, stream: PVCStream) -> str:
    with VideoReader(path) as reader:
        for frame in reader.shown_at(probe_video(path).sample_times(2)):
            stream.push(frame.bgr)
    return stream.ask("What happened?", max_new_tokens=3).text


def test_a_video_that_cannot_be_read_is_a_row_and_not_the_end(
    pvc_export: Run, bundle_fp32: Path, few: Path, tmp_path: Path
) -> None:
    (few / "01.mp4").write_bytes(b"no video" * 9)
    table = tmp_path / "t.jsonl"
    arguments = ["batch", bundle_fp32, few, "-o", table, "--frames", 1, "--max-new-tokens", 1, "--json"]
    result = pvc_export(*arguments)
    assert result.exit_code == 0 and json.loads(result.out)["failed"] == 1
    by_name = {row["video"]: row for row in rows_in(table)}
    assert len(by_name) == 4 and by_name["01.mp4"]["error"]["error"] == "MediaError"
    assert by_name["01.mp4"]["answers"] == [] and by_name["02.mp4"]["error"] is None
    assert json.loads(pvc_export(*arguments).out)["answered"] == 0  # it already has a row
    again = json.loads(pvc_export(*arguments, "--retry").out)
    assert (again["retried"], again["answered"], again["rows"]) == (1, 1, 4)


def test_a_video_that_has_changed_is_answered_again_and_one_that_is_gone_keeps_its_row(
    pvc_export: Run, bundle_fp32: Path, few: Path, tmp_path: Path
) -> None:
    table = tmp_path / "t.jsonl"
    arguments = ["batch", bundle_fp32, few, "-o", table, "--frames", 1, "--max-new-tokens", 1, "--json"]
    pvc_export(*arguments)
    before = {row["video"]: row for row in rows_in(table)}
    (few / "04.mp4").unlink()
    write_video(few / "02.mp4", render_clip(5, seed=99, width=32, height=32), fps=5.0)
    result = json.loads(pvc_export(*arguments).out)
    assert (result["changed"], result["answered"], result["rows"]) == (1, 1, 3)
    after = {row["video"]: row for row in rows_in(table)}
    assert after["00.mp4"] == before["00.mp4"] and after["04.mp4"] == before["04.mp4"]
    assert after["02.mp4"]["bytes"] == (few / "02.mp4").stat().st_size != before["02.mp4"]["bytes"]


def test_another_question_is_another_table(pvc_export: Run, bundle_fp32: Path, few: Path, tmp_path: Path) -> None:
    arguments = ["batch", bundle_fp32, few, "-o", tmp_path / "t.jsonl", "--frames", 1, "--max-new-tokens", 1, "--json"]
    assert pvc_export(*arguments, "--ask", "Why?", "--ask", "Who?").exit_code == 0
    assert [each["question"] for each in rows_in(tmp_path / "t.jsonl")[0]["answers"]] == ["Why?", "Who?"]
    pvc_export(*arguments, "--ask", "Why?").refuses(6, "PVCError", what="3 rows of another job", fix="-o")


def test_a_folder_without_videos_is_refused(pvc_export: Run, bundle_fp32: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("none")
    (tmp_path / ".hidden.mp4").write_bytes(b"x")
    arguments = ["batch", bundle_fp32, "-o", tmp_path / "t.jsonl", "--json"]
    pvc_export(*arguments, tmp_path).refuses(6, "MediaError", what="contains no videos", expected=".mp4")
    pvc_export(*arguments, tmp_path / "none").refuses(6, "MediaError", what="is not a folder")


def test_workers_share_the_videos(pvc_export: Run, bundle_fp32: Path, few: Path, tmp_path: Path) -> None:
    arguments = ["batch", bundle_fp32, few, "--frames", 1, "--max-new-tokens", 2, "--json", "-o"]
    pvc_export(*arguments, tmp_path / "one.jsonl")
    assert pvc_export(*arguments, tmp_path / "two.jsonl", "--workers", 2).exit_code == 0
    one, two = (
        {row["video"]: row | {"seconds": 0} for row in rows_in(tmp_path / f"{n}.jsonl")} for n in ("one", "two")
    )
    assert one == two and len(one) == 3


def test_a_video_that_kills_its_worker_is_a_row_with_an_error(
    bundle_fp32: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(bundle=bundle_fp32, folder=few, questions=("What?",), frames=1, max_new_tokens=1)
    videos = [Video(name=f"0{n}.mp4", num_bytes=1, modified="") for n in (0, 2, 4)]
    monkeypatch.setattr(workers, "work", deadly.work)
    rows = {row["video"]: row for row in workers.rows_of_workers(job, "a", videos, num_workers=2)}
    assert len(rows) == 3 and rows["00.mp4"]["error"] is rows["04.mp4"]["error"] is None
    assert "ended twice: signal 9" in rows["02.mp4"]["error"]["what"]

    monkeypatch.setattr(workers, "work", deadly.die)
    with pytest.raises(BackendUnavailable, match="while it opened the bundle: signal 9"):
        list(workers.rows_of_workers(job, "a", videos, num_workers=1))


def test_without_ray_the_error_names_what_to_install(
    pvc_export: Run, bundle_fp32: Path, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(on_ray, "import_ray", on_ray.import_ray)
    result = pvc_export("batch", bundle_fp32, few, "-o", tmp_path / "t.jsonl", "--ray", "local", "--json")
    result.refuses(4, "BackendUnavailable", what="ray", fix="pip install 'ray[data]>=2.60'")
