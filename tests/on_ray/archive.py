"""`pvc-export batch --ray` on a cluster of two nodes, killed twice: fifty clips, each answered once.

python -m pytest --noconftest tests/on_ray/archive.py (needs Ray), or make ray.
"""

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

from engines.video import write_video
from pvc_export.archive.job import Job, find_videos
from pvc_export.archive.workers import rows_here
from pvc_ref.shapes import watch

from . import add_node, one_node

pytest.importorskip("ray")
ROOT = Path(__file__).parents[2]
BUNDLE = Path(os.environ.get("SHAPES_BUNDLE", ROOT / "build/browser")).absolute()
pytestmark = [
    pytest.mark.skipif(
        not (BUNDLE / "manifest.json").exists(), reason=f"{BUNDLE} is not a bundle; make one: make browser"
    )
]
NUM_CLIPS, QUESTION = 50, "How many shapes are there?"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for index in range(NUM_CLIPS):
        shown = watch(index, size=112)
        frames = [next(shown).frame[..., ::-1].copy() for _ in range(6)]
        write_video(folder / f"{index:02}.mp4", frames, fps=4.0)
    (folder / "no-video.mp4").write_bytes(b"no video" * 99)
    return folder


def rows_in(table: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in table.read_text().splitlines()]


def test_a_run_over_a_cluster_that_is_killed_twice_answers_every_video_once(clips: Path, tmp_path: Path) -> None:
    table, chance, kept = tmp_path / "answers.jsonl", random.Random(3), b""
    with one_node() as nodes:
        add_node(nodes)
        command = [
            sys.executable, "-m", "pvc_export.cli", "batch", BUNDLE, clips, "-o", table, "--ask", QUESTION,
            "--ray", nodes.address, "--workers", "2", "--json",
        ]  # fmt: skip
        command = [str(part) for part in command]
        for least in (9, 25):
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
                until = time.monotonic() + 180
                while not table.exists() or table.read_bytes().count(b"\n") < least:
                    assert process.poll() is None and time.monotonic() < until, process.communicate()
                    time.sleep(0.01)
                time.sleep(chance.uniform(0, 0.3))
                process.send_signal(signal.SIGKILL)
            left = table.read_bytes()
            assert left.startswith(kept) and least <= left.count(b"\n") <= NUM_CLIPS
            kept = left[: left.rindex(b"\n") + 1]
        started = time.monotonic()
        last = subprocess.run(command, capture_output=True, check=True)
    told = json.loads(last.stdout)
    print("\n" + json.dumps({"killed_at": kept.count(b"\n"), "last_s": round(time.monotonic() - started, 1)} | told))
    rows = rows_in(table)
    assert table.read_bytes().startswith(kept) and told["answered"] == NUM_CLIPS + 1 - kept.count(b"\n")
    assert Counter(row["video"] for row in rows) == Counter(path.name for path in clips.iterdir())
    assert [row["video"] for row in rows if row["error"]] == ["no-video.mp4"]
    job = Job(bundle=BUNDLE, folder=clips, questions=(QUESTION,))
    here = {row["video"]: row["answers"] for row in rows_here(job, job.digest(), find_videos(clips))}
    assert {row["video"]: row["answers"] for row in rows} == here


def test_a_cluster_of_its_own_ends_with_the_run(clips: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for name in ("00.mp4", "01.mp4"):
        (few / name).write_bytes((clips / name).read_bytes())
    command = [sys.executable, "-m", "pvc_export.cli", "batch", str(BUNDLE), str(few), "-o", str(tmp_path / "t.jsonl")]
    done = subprocess.run([*command, "--ray", "local", "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == 2  # and nothing else on standard output
    nowhere = subprocess.run([*command, "--ray", "127.0.0.1:1", "--retry", "--json"], capture_output=True, text=True)
    assert nowhere.returncode == 0  # nothing is missing, so no cluster is needed
