"""The synthetic source: scenes and truth depend only on the seed, play at their own speed, and wait for the model."""

from __future__ import annotations

import sys
import time
from itertools import islice

import numpy as np
import pytest

from apps.addresses import parse_address
from apps.capture import Captured, EveryFrame, Source, open_source
from apps.synthetic import FPS, HOLD_S, SIZE, KnownScene, Shown, SyntheticDevice
from engines.errors import BackendUnavailable
from pvc_ref.shapes import answer_to, question_of, watch

ADDRESS = parse_address("synthetic")


def read(device: SyntheticDevice, num_frames: int) -> list[tuple[np.ndarray, KnownScene]]:
    pairs = []
    for _ in range(num_frames):
        shown = device.read()
        assert shown is not None and shown.scene is not None
        pairs.append((shown.bgr, shown.scene))
    return pairs


def scene_of(captured: Captured) -> KnownScene:
    assert captured.scene is not None
    return captured.scene


def take_scene(source: Source) -> list[Captured]:
    """Take every frame up to the end of the scene."""
    taken: list[Captured] = []
    while not taken or not scene_of(taken[-1]).is_last:
        if (captured := source.take(0.02)) is not None:
            taken.append(captured)
    return taken


def test_the_same_seed_gives_the_same_frames_and_questions_and_another_does_not() -> None:
    first, again, other = (read(SyntheticDevice(seed=seed), 20) for seed in (5, 5, 6))
    for (frame, known), (same_frame, same_scene) in zip(first, again, strict=True):
        assert np.array_equal(frame, same_frame) and known == same_scene
    assert not any(np.array_equal(ours[0], theirs[0]) for ours, theirs in zip(first, other, strict=True))
    assert [known for _, known in first] != [known for _, known in other]


def test_it_shows_the_world_in_a_camera_s_order_of_colours() -> None:
    for (frame, known), shown in zip(read(SyntheticDevice(seed=2), 20), watch(2), strict=False):
        assert frame.shape == (SIZE, SIZE, 3) and frame.flags.c_contiguous
        assert np.array_equal(frame[..., ::-1], shown.frame)
        assert (known.frame_index, known.num_frames) == (shown.frame_index, len(shown.clip.frames))
        assert (known.is_first, known.is_last) == (shown.frame_index == 0, shown.is_last)


def test_every_scene_brings_a_question_of_its_own_and_the_right_answer() -> None:
    scenes = [known for _, known in read(SyntheticDevice(), 120)]
    ends = [shown.clip for shown in islice(watch(0), 120) if shown.is_last]
    asked = [known for known in scenes if known.is_last]
    for known, clip in zip(asked, ends, strict=True):
        assert known.answer == answer_to(clip.scene, known.question) is not None
        assert known.topic in {question.topic for question in clip.questions if question.text == known.question}
    assert len({known.topic for known in asked}) >= 4 and len({known.question for known in asked}) > len(asked) // 2
    assert asked[0].question == question_of(ends[0], 0).text


def test_within_a_scene_the_question_stays() -> None:
    scenes = [known for _, known in read(SyntheticDevice(), 30)]
    for before, after in zip(scenes, scenes[1:], strict=False):
        assert after.is_first == before.is_last and (after.is_first or after.question == before.question)


def test_a_person_s_question_is_asked_of_every_scene_with_its_answer_there() -> None:
    scenes = [known for _, known in read(SyntheticDevice(question="how many shapes are there"), 60)]
    ends = [shown.clip for shown in islice(watch(0), 60) if shown.is_last]
    asked = [known for known in scenes if known.is_last]
    assert [known.answer for known in asked] == [answer_to(clip.scene, "How many shapes are there?") for clip in ends]
    assert len({known.answer for known in asked}) > 1
    assert {(known.question, known.topic) for known in scenes} == {("how many shapes are there", None)}


def test_the_world_does_not_know_everything() -> None:
    scenes = [known for _, known in read(SyntheticDevice(question="What is the weather?"), 10)]
    assert {known.answer for known in scenes} == {None}


def test_without_the_world_the_source_is_refused_and_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pvc_ref.shapes", None)
    with pytest.raises(BackendUnavailable, match="--source synthetic needs pvc_ref, OpenCV and Pillow: ") as caught:
        open_source(ADDRESS)
    assert "--source 0, or a video file" in caught.value.fix


def test_it_is_shown_at_its_own_speed_and_the_last_frame_is_held() -> None:
    source = open_source(ADDRESS, seed=3)
    started = time.monotonic()
    scene = take_scene(source)
    ended = time.monotonic()
    following = next(captured for _ in range(1000) if (captured := source.take(0.02)) is not None)
    assert ended - started >= (len(scene) - 1) / FPS and time.monotonic() - ended >= HOLD_S
    assert [captured.time_s for captured in scene] == [index / FPS for index in range(len(scene))]
    assert following.time_s == len(scene) / FPS + HOLD_S and following.index == len(scene)


class SlowDevice:
    """One frame every ten seconds, so that a busy machine does not affect the test."""

    name, fps, waits, notice, num_reconnects, damage = "slow", 0.1, True, "", 0, None

    def read(self) -> Shown:
        return Shown(np.zeros((4, 4, 3), np.uint8))

    def close(self) -> None:
        pass


def test_a_frame_that_is_not_due_does_not_hold_up_the_keys() -> None:
    source = EveryFrame(SlowDevice(), paced=True)
    assert source.take(5.0) is not None
    started = time.monotonic()
    assert source.take(0.02) is None and time.monotonic() - started < 5.0


def test_the_world_waits_for_a_slow_model_and_an_answer_that_took_long_is_held_as_well() -> None:
    source, seen = open_source(ADDRESS, seed=3), []
    for _ in range(3):
        seen.append(next(captured for _ in range(1000) if (captured := source.take(0.02)) is not None))
        time.sleep(1.5 / FPS)  # longer than a frame lasts
    assert [captured.index for captured in seen] == [0, 1, 2]
    take_scene(source)
    time.sleep(HOLD_S)  # the model answers
    answered = time.monotonic()
    assert source.take(HOLD_S / 2) is None and source.take(HOLD_S) is not None
    assert time.monotonic() - answered >= HOLD_S


def test_every_frame_does_not_wait_but_keeps_the_same_time() -> None:
    source = open_source(ADDRESS, every_frame=True)
    assert isinstance(source, EveryFrame)
    started = time.monotonic()
    first, second = take_scene(source), take_scene(source)
    assert time.monotonic() - started < HOLD_S
    assert second[0].time_s - first[-1].time_s == 1 / FPS + HOLD_S
