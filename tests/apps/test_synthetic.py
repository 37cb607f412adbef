"""The synthetic source: the world and its truth from a seed, at its own speed, and never faster than the model."""

from __future__ import annotations

import sys
import time
from itertools import islice

import numpy as np
import pytest

from apps.capture import Captured, EveryFrame, Source, open_source
from apps.devices import open_device, parse_address
from apps.synthetic import FPS, HOLD_S, SIZE, SyntheticDevice, Truth
from engines.errors import BackendUnavailable
from pvc_ref.shapes import answer_to, question_of, watch

ADDRESS = parse_address("synthetic")


def read(device: SyntheticDevice, num_frames: int) -> list[tuple[np.ndarray, Truth]]:
    pairs = []
    for _ in range(num_frames):
        frame = device.read()
        assert frame is not None and device.truth is not None
        pairs.append((frame, device.truth))
    return pairs


def truth_of(captured: Captured) -> Truth:
    assert captured.truth is not None
    return captured.truth


def take_scene(source: Source) -> list[Captured]:
    """Every frame up to the next end of a scene."""
    taken: list[Captured] = []
    while not taken or not truth_of(taken[-1]).is_last:
        if (captured := source.take(0.02)) is not None:
            taken.append(captured)
    return taken


def test_the_same_seed_gives_the_same_frames_and_questions_and_another_does_not() -> None:
    first, again, other = (read(SyntheticDevice(seed=seed), 20) for seed in (5, 5, 6))
    for (frame, truth), (same_frame, same_truth) in zip(first, again, strict=True):
        assert np.array_equal(frame, same_frame) and truth == same_truth
    assert not any(np.array_equal(ours[0], theirs[0]) for ours, theirs in zip(first, other, strict=True))
    assert [truth for _, truth in first] != [truth for _, truth in other]


def test_it_shows_the_world_in_a_camera_s_order_of_colours() -> None:
    for (frame, truth), shown in zip(read(SyntheticDevice(seed=2), 20), watch(2), strict=False):
        assert frame.shape == (SIZE, SIZE, 3) and frame.flags.c_contiguous
        assert np.array_equal(frame[..., ::-1], shown.frame)
        assert (truth.frame_index, truth.num_frames) == (shown.frame_index, len(shown.clip.frames))
        assert (truth.is_first, truth.is_last) == (shown.frame_index == 0, shown.is_last)


def test_every_scene_brings_a_question_of_its_own_and_the_right_answer() -> None:
    truths = [truth for _, truth in read(SyntheticDevice(), 120)]
    ends = [shown.clip for shown in islice(watch(0), 120) if shown.is_last]
    asked = [truth for truth in truths if truth.is_last]
    for truth, clip in zip(asked, ends, strict=True):
        assert truth.answer == answer_to(clip.scene, truth.question) is not None
        assert truth.topic in {question.topic for question in clip.questions if question.text == truth.question}
    assert len({truth.topic for truth in asked}) >= 4 and len({truth.question for truth in asked}) > len(asked) // 2
    assert asked[0].question == question_of(ends[0], 0).text


def test_within_a_scene_the_question_stays() -> None:
    truths = [truth for _, truth in read(SyntheticDevice(), 30)]
    for before, after in zip(truths, truths[1:], strict=False):
        assert after.is_first == before.is_last and (after.is_first or after.question == before.question)


def test_a_person_s_question_is_asked_of_every_scene_with_its_answer_there() -> None:
    truths = [truth for _, truth in read(SyntheticDevice(question="how many shapes are there"), 60)]
    ends = [shown.clip for shown in islice(watch(0), 60) if shown.is_last]
    asked = [truth for truth in truths if truth.is_last]
    assert [truth.answer for truth in asked] == [answer_to(clip.scene, "How many shapes are there?") for clip in ends]
    assert len({truth.answer for truth in asked}) > 1
    assert {(truth.question, truth.topic) for truth in truths} == {("how many shapes are there", None)}


def test_the_world_does_not_know_everything() -> None:
    truths = [truth for _, truth in read(SyntheticDevice(question="What is the weather?"), 10)]
    assert {truth.answer for truth in truths} == {None}


def test_without_the_world_the_source_is_refused_and_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pvc_ref.shapes", None)
    with pytest.raises(BackendUnavailable, match=r"needs pvc_ref\.shapes, OpenCV.*--source 0, or a video file"):
        open_device(ADDRESS, wait=lambda seconds: False)


def test_it_is_shown_at_its_own_speed_and_the_last_frame_is_held() -> None:
    source = open_source(ADDRESS, seed=3)
    started = time.monotonic()
    scene = take_scene(source)
    ended = time.monotonic()
    following = next(captured for _ in range(1000) if (captured := source.take(0.02)) is not None)
    assert ended - started >= (len(scene) - 1) / FPS and time.monotonic() - ended >= HOLD_S
    assert [captured.time_s for captured in scene] == [index / FPS for index in range(len(scene))]
    assert following.time_s == len(scene) / FPS + HOLD_S and following.index == len(scene)


def test_a_frame_that_is_not_due_does_not_hold_up_the_keys() -> None:
    source = open_source(ADDRESS)
    assert source.take(5.0) is not None
    started = time.monotonic()
    assert source.take(0.02) is None and time.monotonic() - started < 0.5 / FPS


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
