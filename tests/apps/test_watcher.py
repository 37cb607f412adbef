"""The endless stream: asked when it is time, asked once more before it forgets, started again when it is full."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from apps.capture import Captured
from apps.watcher import NOTICE_S, Reply, Watcher
from engines import Bundle, PVCStream, open_bundle
from engines.errors import StreamError, StreamFull

from .fakes import answers, scenes, trained

QUESTION = "What moves?"


@pytest.fixture(scope="module")
def bundle(bundle_fp32: Path) -> Bundle:
    return open_bundle(bundle_fp32)


def captured(frames: list[np.ndarray], index: int) -> Captured:
    return Captured(bgr=frames[index % len(frames)], index=index, time_s=index / 10, captured_at=0.0)


def test_it_says_what_the_stream_says(bundle: Bundle, frames: list[np.ndarray]) -> None:
    watcher, stream = Watcher(bundle, QUESTION, ask_every_s=9.0, max_new_tokens=8), PVCStream(bundle)
    for index in range(5):
        watcher.push(captured(frames, index))
        stream.push(frames[index])
    reply = watcher.ask(captured(frames, 4))
    assert reply.text == stream.ask(QUESTION, max_new_tokens=8).text and (reply.frame_index, reply.time_s) == (4, 0.4)
    assert watcher.last_reply == reply and not watcher.has_news(captured(frames, 4))


@pytest.mark.parametrize(
    ("ask_every_s", "asked_at"), [(0.5, [5, 10, 15]), (0.0, list(range(18))), (9.0, [])], ids=["half", "every", "never"]
)
def test_a_question_is_due_by_the_source_s_time(
    bundle: Bundle, frames: list[np.ndarray], ask_every_s: float, asked_at: list[int]
) -> None:
    watcher = Watcher(bundle, QUESTION, ask_every_s=ask_every_s, max_new_tokens=2)
    asked = []
    for index in range(18):
        watcher.push(captured(frames, index))
        if watcher.is_due(captured(frames, index)):
            asked.append(watcher.ask(captured(frames, index)).frame_index)
    assert asked == asked_at and watcher.num_replies == len(asked_at)


def test_a_full_context_is_asked_about_before_it_is_forgotten(bundle: Bundle, frames: list[np.ndarray]) -> None:
    watcher = Watcher(bundle, QUESTION, ask_every_s=1e9, max_new_tokens=16)
    asked, restarted = [], []
    for index in range(70):
        before = watcher.num_restarts
        watcher.push(captured(frames, index))
        if watcher.num_restarts > before:
            restarted.append(index)
        if watcher.is_due(captured(frames, index)):
            asked.append(watcher.ask(captured(frames, index)).frame_index)
        assert watcher.context_rows <= watcher.context == 512
    assert len(restarted) >= 2 and asked[:2] == [index - 1 for index in restarted[:2]]
    assert watcher.stream.num_frames == 70 - restarted[-1]  # the frame that did not fit is the first of the new context


def test_a_restart_is_told_for_a_while(bundle: Bundle, frames: list[np.ndarray]) -> None:
    watcher, index = Watcher(bundle, QUESTION, ask_every_s=1e9, max_new_tokens=16), 0
    while not watcher.num_restarts:
        watcher.push(captured(frames, index))
        index += 1
    now = (index - 1) / 10
    assert watcher.notice(now) == f"context full: started again at frame {index - 1}"
    assert watcher.notice(now + NOTICE_S + 0.1) == ""


def test_a_stream_that_is_full_too_early_is_started_again_and_not_lost(
    bundle: Bundle, frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher = Watcher(bundle, QUESTION, ask_every_s=1e9, max_new_tokens=16)
    watcher._frame_rows = watcher._ask_rows = 0  # an estimate that is far too small
    for index in range(40):
        watcher.push(captured(frames, index))
    assert watcher.num_restarts == 1 and 0 < watcher.stream.num_frames < 30


def test_what_can_never_be_asked_is_refused_at_once(bundle: Bundle) -> None:
    with pytest.raises(StreamFull, match="one frame, the question and 500 tokens") as full:
        Watcher(bundle, QUESTION, ask_every_s=1.0, max_new_tokens=500)
    assert "512 rows" in full.value.expected and "--max-new-tokens" in full.value.fix
    with pytest.raises(StreamError, match="special token"):
        Watcher(bundle, "a<|im_end|>b", ask_every_s=1.0, max_new_tokens=8)
    fixed = replace(bundle, manifest=replace(bundle.manifest, time_mode="fixed"))
    with pytest.raises(StreamError, match=r"'fixed'.*a live view has no end") as endless:
        Watcher(fixed, QUESTION, ask_every_s=1.0, max_new_tokens=8)
    assert "pvc-export run" in endless.value.fix


def watch(watcher: Watcher, *lengths: int) -> tuple[list[Reply], list[int]]:
    """Every reply over scenes of such lengths, and the frames at which the context was started again."""
    replies, restarted = [], []
    for shown in scenes(*lengths):
        before = watcher.num_restarts
        watcher.push(shown)
        restarted += [shown.index] * (watcher.num_restarts - before)
        if watcher.is_due(shown):
            replies.append(watcher.ask(shown))
    return replies, restarted


def test_a_stream_re_anchors_by_itself_when_the_trained_frames_are_used_up(
    bundle: Bundle, frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engines.clock.DEFAULT_CLOCK", "reanchor")
    watcher = Watcher(trained(bundle), QUESTION, ask_every_s=1e9, max_new_tokens=2)
    for index in range(40):
        watcher.push(captured(frames, index))
        assert watcher.stream.num_context_frames <= 16
    assert watcher.stream.clock == "reanchor" and watcher.stream.num_anchors >= 2 and watcher.num_restarts == 0


def test_a_context_holds_no_more_frames_than_the_model_was_trained_on(bundle: Bundle, frames: list[np.ndarray]) -> None:
    watcher, asked, restarted = Watcher(trained(bundle), QUESTION, ask_every_s=1e9, max_new_tokens=2), [], []
    for index in range(40):
        before = watcher.num_restarts
        watcher.push(captured(frames, index))
        restarted += [index] * (watcher.num_restarts - before)
        if watcher.is_due(captured(frames, index)):
            asked.append(watcher.ask(captured(frames, index)).frame_index)
        assert watcher.stream.num_frames <= 16
    assert restarted == [16, 32] and asked == [15, 31]  # asked once more before it is forgotten
    assert watcher.notice(3.3) == "16 frames, as many as the model was trained on: started again at frame 32"


@pytest.mark.parametrize(
    ("lengths", "trained_frames", "restarted"),
    [((8, 8, 8), 16, [16]), ((6, 7, 6, 8), 16, [13]), ((7, 6, 8), 96, []), ((8, 8, 8), 8, [8, 16])],
    ids=["two fill it", "the third would not fit", "enough", "one fills it"],
)
def test_a_context_is_forgotten_between_scenes_and_not_within_one(
    bundle: Bundle, lengths: tuple[int, ...], trained_frames: int, restarted: list[int]
) -> None:
    watcher = Watcher(trained(bundle, trained_frames=trained_frames), QUESTION, ask_every_s=0.0, max_new_tokens=2)
    replies, found = watch(watcher, *lengths)
    assert found == restarted
    assert [reply.grade.is_right is not None for reply in replies] == [True] * len(lengths)  # each was seen as a whole


def test_the_notice_says_that_the_next_scene_would_be_too_much(bundle: Bundle) -> None:
    watcher = Watcher(trained(bundle), QUESTION, ask_every_s=0.0, max_new_tokens=2)
    watch(watcher, 6, 7, 6)
    expected = "the next scene would pass 16 frames, as many as the model was trained on: started again at frame 13"
    assert watcher.notice(13 / 4) == expected


def test_a_context_without_rows_for_the_next_scene_is_forgotten_at_the_cut(bundle: Bundle) -> None:
    watcher = Watcher(trained(bundle, trained_frames=96), QUESTION, ask_every_s=0.0, max_new_tokens=16)
    _, restarted = watch(watcher, *[8] * 12)
    assert restarted and all(index % 8 == 0 for index in restarted)
    assert "context full: started again at frame" in watcher.notice(restarted[-1] / 4)


def test_a_scene_is_asked_its_own_question_when_it_ends(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answers(monkeypatch, lambda question: "")
    replies, _ = watch(Watcher(trained(bundle), QUESTION, ask_every_s=0.0, max_new_tokens=2), 6, 8, 7)
    assert [reply.frame_index for reply in replies] == [5, 13, 20]
    assert asked == ["Which is 0?", "Which is 1?", "Which is 2?"] == [reply.question for reply in replies]


def test_a_question_that_is_due_within_a_scene_waits_for_its_end(bundle: Bundle) -> None:
    watcher = Watcher(trained(bundle), QUESTION, ask_every_s=2.25, max_new_tokens=2)
    replies, _ = watch(watcher, 6, 6, 6, 6)
    assert [reply.frame_index for reply in replies] == [11, 23]  # due at frames 9 and 20
    rare = Watcher(trained(bundle), QUESTION, ask_every_s=1e9, max_new_tokens=2)
    assert watch(rare, 8, 8, 8) == ([], [16])  # a full context does not bring it forward


@pytest.mark.parametrize(
    ("text", "is_right"),
    [("It is 0.", True), (" It is 0.\n", True), ("It is 1.", False), ("it is 0", False), ("", False)],
    ids=repr,
)
def test_an_answer_is_right_if_it_is_the_truth_word_for_word(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, text: str, is_right: bool
) -> None:
    answers(monkeypatch, lambda question: text)
    (reply,), _ = watch(Watcher(trained(bundle), QUESTION, ask_every_s=0.0, max_new_tokens=2), 6)
    assert (reply.grade.is_right, reply.grade.truth, reply.grade.topic) == (is_right, "It is 0.", "event")


def test_random_weights_are_not_graded(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, lambda question: "It is 0.")
    (reply,), _ = watch(Watcher(bundle, QUESTION, ask_every_s=0.0, max_new_tokens=2), 6)
    assert reply.grade.is_right is None and reply.grade.truth == "It is 0."


def test_a_question_that_the_world_cannot_answer_is_not_graded(bundle: Bundle) -> None:
    watcher, (*begin, last) = Watcher(trained(bundle), QUESTION, ask_every_s=0.0, max_new_tokens=2), scenes(6)
    assert last.scene is not None
    last = replace(last, scene=replace(last.scene, answer=None))
    for shown in (*begin, last):
        watcher.push(shown)
    reply = watcher.ask(last)
    assert (reply.grade.is_right, reply.grade.truth) == (None, None)


def test_a_scene_is_graded_once_and_not_before_its_end(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, lambda question: "It is 0.")
    watcher, replies = Watcher(trained(bundle), QUESTION, ask_every_s=0.0, max_new_tokens=2), []
    for shown in scenes(6):
        watcher.push(shown)
        replies += [watcher.ask(shown), watcher.ask(shown)] if shown.index in (2, 5) else []
    assert [(reply.grade.is_right, reply.grade.truth) for reply in replies] == [
        (None, None), (None, None), (True, "It is 0."), (None, "It is 0."),
    ]  # fmt: skip


@pytest.mark.parametrize("missed", [0, 3], ids=["the first frame", "a later frame"])
def test_a_scene_of_which_a_frame_was_missed_is_not_graded(bundle: Bundle, missed: int) -> None:
    watcher = Watcher(trained(bundle), QUESTION, ask_every_s=0.0, max_new_tokens=2)
    *_, last = seen = [shown for shown in scenes(6, 6) if shown.index != 6 + missed]
    for shown in seen:
        watcher.push(shown)
    assert watcher.ask(last).grade.is_right is None


@pytest.mark.parametrize(("clock", "expected"), [("run-on", [4, 6, 10]), ("reanchor", [6])])
def test_a_scene_longer_than_the_model_was_trained_on_is_asked_about_but_not_graded(
    bundle: Bundle, clock: str, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engines.clock.DEFAULT_CLOCK", clock)
    watcher = Watcher(trained(bundle, trained_frames=4), QUESTION, ask_every_s=0.0, max_new_tokens=2)
    replies, restarted = watch(watcher, 6, 6)
    assert restarted == expected and [reply.grade.is_right for reply in replies] == [None, None]
