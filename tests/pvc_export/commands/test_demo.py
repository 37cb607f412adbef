"""`make demo` and the bench, as far as a test can run them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from engines import open_bundle
from engines.errors import MediaError, ParityError
from engines.manifest import Manifest
from engines.video import write_video
from pvc_export.commands.demo import Asked, ask_about_card, ask_about_clip, demo, describe, scenes
from pvc_export.parity.clip import render_clip
from pvc_export.terminal.console import Console

ROOT = Path(__file__).parents[3]


@pytest.mark.usefixtures("shared_graphs")
def test_the_demo_ends_with_engines_and_the_reference_s_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pvc_export.bundles.export.NUM_QUESTIONS", 20)
    video = tmp_path / "a clip of 'mine' $5.mp4"
    write_video(video, render_clip(9, seed=2), fps=5.0)
    demo(file=video, seed=0, console=Console())
    out = capsys.readouterr().out
    assert len(Manifest.load(tmp_path / "build/demo").engines) == 5
    assert "bundle and reference give the same greedy tokens" in out
    assert "engines were built here, not executed" in out
    assert "trained only on flat shapes" in out and "answers are true" not in out, "nobody knows the truth"
    assert "'\"'\"'mine'\"'\"' $5.mp4'" in out, "the next command must be quoted for a shell"


def test_a_demo_whose_export_fails_its_check_ends_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failed:
        passed = False

        def failure_text(self) -> str:
            return "the bundle differs"

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pvc_export.commands.demo.export", lambda *_, **__: Failed())
    monkeypatch.setattr("pvc_export.commands.demo.run", lambda *_, **__: pytest.fail("the demo continued"))
    video = tmp_path / "clip.mp4"
    write_video(video, render_clip(2, seed=2), fps=5.0)
    with pytest.raises(ParityError, match="the bundle differs"):
        demo(file=video, seed=0, console=Console(quiet=True))


def test_the_demo_answers_most_questions_about_clips_of_any_seed_truly(bundle_shapes: Path) -> None:
    bundle = open_bundle(bundle_shapes)
    asked: list[Asked] = []
    for seed in range(8):
        clip, card = scenes(seed)
        asked += [*ask_about_clip(bundle, clip.bgr(), clip), *ask_about_card(bundle, card)]
    assert len(asked) > 80
    assert sum(one.is_right for one in asked) / len(asked) > 0.9, [one for one in asked if not one.is_right]


def test_the_demo_says_which_answers_are_true() -> None:
    right = Asked(question="What do you see?", answer="A red circle moves left.", truth="A red circle moves left.")
    wrong = Asked(question="What happened?", answer="Nothing happened.", truth="The red circle moved left.")
    unknown = Asked(question="Wo?", answer="A blue star.", truth=None)
    lines = list(describe([right, wrong, unknown]))
    assert lines[0].startswith("true ") and "truth:" not in lines[0]
    assert lines[1].startswith("FALSE") and lines[1].endswith("(truth: The red circle moved left.)")
    assert lines[2].startswith("     ") and lines[3] == "1 of 2 answers are true"


def test_a_seed_gives_the_demo_one_clip_and_one_card() -> None:
    clip, card = scenes(7)
    assert clip.scene.things and clip.frames.shape == (8, 448, 448, 3)
    assert card.scene.card is not None and len(card.frames) == 1
    assert (scenes(7)[0].frames == clip.frames).all() and (scenes(8)[0].frames != clip.frames).any()


def test_the_demo_refuses_a_missing_file_before_it_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    console = Console(quiet=True)
    with pytest.raises(MediaError, match="nowhere.mp4 does not exist"):
        demo(file=Path("nowhere.mp4"), seed=0, console=console)
    assert console.stages == []


def test_the_bench_prints_ratio_and_state_for_every_length() -> None:
    command = [
        sys.executable,
        "-m",
        "pvc_export.bench.recompute",
        "--size",
        "tiny",
        "--frames",
        "2",
        "5",
        "--rounds",
        "2",
        "--json",
    ]
    rows = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)["rows"]
    assert [row["num_frames"] for row in rows] == [2, 5]
    for row in rows:
        assert row["max_difference"] < 1e-5 and row["ratio"] > 0
        assert row["state_bytes"] == row["num_frames"] * 2 * 2 * 65 * 64 * 4  # frames, layers, K and V, N, C, float32
