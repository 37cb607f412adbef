"""pvc-live on synthetic scenes with known answers: marks, score, and what is not counted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from apps import live, session
from apps.capture import Captured
from apps.overlay import Status
from apps.synthetic import HOLD_S, KnownScene, SyntheticDevice
from apps.watcher import Watcher
from engines import open_bundle
from engines.video import probe_video

from .conftest import Run
from .fakes import answers, trained

SYNTHETIC = ("--source", "synthetic", "--every-frame", "--headless")


def scenes_of(seed: int, num_frames: int) -> list[KnownScene]:
    device, scenes = SyntheticDevice(seed=seed), []
    for _ in range(num_frames):
        shown = device.read()
        assert shown is not None and shown.scene is not None
        scenes.append(shown.scene)
    return scenes


def know_the_truth(monkeypatch: pytest.MonkeyPatch, *, wrong: int) -> None:
    """Make pvc-live open a trained bundle that is right about every scene except number `wrong`."""
    push, scenes = Watcher.push, list[KnownScene]()

    def noted_push(self: Watcher, captured: Captured) -> None:
        assert captured.scene is not None
        scenes.append(captured.scene)
        push(self, captured)

    def reply_to(question: str) -> str:
        num_scenes = sum(scene.is_last for scene in scenes)
        return "I do not know." if num_scenes == wrong else scenes[-1].answer or "It is cold."

    monkeypatch.setattr(Watcher, "push", noted_push)
    monkeypatch.setattr(live, "open_bundle", lambda *args, **kwargs: trained(open_bundle(*args, **kwargs)))
    answers(monkeypatch, reply_to)


def test_the_synthetic_source_is_graded_line_by_line_and_in_the_summary(
    pvc_live: Run, bundle_fp32: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know_the_truth(monkeypatch, wrong=2)
    scenes = scenes_of(4, 30)
    asked = [scene for scene in scenes if scene.is_last]
    out = pvc_live(bundle_fp32, *SYNTHETIC, "--seed", 4, "--frames", 30).out
    for index, scene in enumerate(asked):
        line = next(line for line in out.splitlines() if f"  frame {scenes.index(scene):<6}" in line)
        said, mark = ("I do not know.", "\N{BALLOT X}") if index == 1 else (scene.answer, "\N{CHECK MARK}")
        num_right = index + 1 - (index >= 1)
        assert f"{scene.question} -> {said}  {mark} truth: {scene.answer}  right {num_right} of {index + 1}, " in line
    assert f"\nright {len(asked) - 1} of {len(asked)}, " in out
    assert "trained frames: restarted at frame" in out


def test_the_score_is_in_the_json_summary(pvc_live: Run, bundle_fp32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    know_the_truth(monkeypatch, wrong=1)
    data = json.loads(pvc_live(bundle_fp32, *SYNTHETIC, "--seed", 4, "--frames", 30, "--json").out)
    score, topics = data["score"], [scene.topic for scene in scenes_of(4, 30) if scene.is_last]
    assert data["seed"] == 4 and score["num_graded"] == data["num_answers"] == len(topics)
    assert score["num_right"] == len(topics) - 1 and score["accuracy"] == (len(topics) - 1) / len(topics)
    assert {topic: part["num_graded"] for topic, part in score["by_topic"].items()} == dict(Counter(topics))
    last = data["last_answer"]
    assert last["is_right"] is True and last["truth"] == last["text"] and last["question"] == data["question"]


def test_a_question_that_the_world_cannot_answer_is_shown_and_not_counted(
    pvc_live: Run, bundle_fp32: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know_the_truth(monkeypatch, wrong=0)
    out = pvc_live(bundle_fp32, *SYNTHETIC, "--frames", 20, "--ask", "What is the weather?").out
    assert out.count("It is cold.") >= 2 and "right" not in out and "truth" not in out


def test_random_weights_get_no_grade(pvc_live: Run, bundle_fp32: Path) -> None:
    result = pvc_live(bundle_fp32, *SYNTHETIC, "--frames", 20)
    assert "truth: " in result.out and "right" not in result.out and "\N{BALLOT X}" not in result.out
    assert json.loads(pvc_live(bundle_fp32, *SYNTHETIC, "--frames", 20, "--json").out)["score"]["num_graded"] == 0


def test_the_recording_shows_the_question_first_and_the_graded_answer_at_the_end_of_the_scene(
    pvc_live: Run, bundle_fp32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know_the_truth(monkeypatch, wrong=2)
    out, scenes = tmp_path / "out.mp4", scenes_of(4, 20)
    statuses: list[Status] = []
    monkeypatch.setattr(session, "annotate", lambda frame, status: statuses.append(status) or frame)
    pvc_live(bundle_fp32, *SYNTHETIC, "--seed", 4, "--frames", 20, "--record", out)
    assert len(statuses) == 20 and all(f"frame {at}" in status.figures for at, status in enumerate(statuses))
    num_asked = 0
    for scene, status in zip(scenes, statuses, strict=True):
        num_asked += scene.is_last
        grade = status.reply and (status.reply.grade.truth, status.reply.grade.is_right)
        shown = (scene.answer, num_asked != 2) if scene.is_last else None
        assert (status.question, grade) == (scene.question, shown)
    num_held = sum(scene.is_last for scene in scenes[:-1])
    assert probe_video(out).num_frames == 20 + round(num_held * HOLD_S * 4)  # 4 frames per second
