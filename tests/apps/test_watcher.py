"""The endless stream: asked on time, once more before it forgets frames, and restarted when it is full."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from apps.capture import Captured
from apps.notes import Notes
from apps.triggers import Schedule
from apps.watcher import MOST_WAITING, NOTICE_S, Reply, Watcher
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
    watcher, stream = Watcher(bundle, QUESTION, trigger=Schedule(9.0), max_new_tokens=8), PVCStream(bundle)
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
    watcher = Watcher(bundle, QUESTION, trigger=Schedule(ask_every_s), max_new_tokens=2)
    asked = []
    for index in range(18):
        watcher.push(captured(frames, index))
        if watcher.is_due(captured(frames, index)):
            asked.append(watcher.ask(captured(frames, index)).frame_index)
    assert asked == asked_at and watcher.num_replies == len(asked_at)


def rolled_over(watcher: Watcher, frames: list[np.ndarray], num_frames: int) -> tuple[list[int], list[int]]:
    """Return the frames at which it was asked, and the frames that began a new context."""
    asked, begun = [], []
    for index in range(num_frames):
        before = watcher.num_rollovers
        watcher.push(captured(frames, index))
        begun += [index] * (watcher.num_rollovers - before)
        if watcher.is_due(captured(frames, index)):
            asked.append(watcher.ask(captured(frames, index)).frame_index)
        assert watcher.context_rows <= watcher.context == 512
    return asked, begun


def test_a_full_context_is_asked_about_and_continues_from_its_last_frames(
    bundle: Bundle, frames: list[np.ndarray]
) -> None:
    watcher = Watcher(bundle, QUESTION, trigger=Schedule(1e9), max_new_tokens=16)
    asked, begun = rolled_over(watcher, frames, 70)
    assert len(begun) >= 3 and asked == [index - 1 for index in begun]
    assert watcher.num_restarts == 0 and watcher.stream.num_frames == 70  # no frame is lost
    retained = watcher.stream.episodes.num_retained
    assert watcher.stream.num_context_frames == 70 - begun[-1] + retained
    told = f"the context is used up: continuing from its last {retained} frames at frame {begun[-1]}"
    assert watcher.notice(begun[-1] / 10) == told and watcher.notice(begun[-1] / 10 + NOTICE_S + 0.1) == ""


def once(bundle: Bundle) -> Bundle:
    """Declare one trained frame: the stream cannot re-anchor on its last frames, so its clock runs on."""
    return replace(bundle, manifest=replace(bundle.manifest, trained_frames=1))


def test_a_model_that_cannot_re_anchor_is_started_again_and_that_is_told(
    bundle: Bundle, frames: list[np.ndarray]
) -> None:
    watcher = Watcher(once(bundle), QUESTION, trigger=Schedule(1e9), max_new_tokens=2)
    asked, begun = rolled_over(watcher, frames, 4)
    assert watcher.num_restarts == 3 and begun == [1, 2, 3] and asked == [0, 1, 2, 3]
    assert watcher.notice(0.3) == "the 1 trained frames are used up: restarted at frame 3"


def test_a_question_that_comes_while_frames_do_is_answered_about_those_before_it(
    bundle: Bundle, frames: list[np.ndarray]
) -> None:
    """One token per frame. People's questions come first, in order."""
    watcher, twin = Watcher(bundle, QUESTION, trigger=Schedule(1e9), max_new_tokens=4), PVCStream(bundle)
    watcher.push(captured(frames, 0))
    for frame in frames[:2]:
        twin.push(frame)
    expected = twin.ask("Who?", max_new_tokens=4)
    watcher.want()
    watcher.want("Who?")
    watcher.want("Where?")
    replies: list[Reply] = []
    for index in range(1, 30):
        watcher.push(captured(frames, index))
        reply = watcher.step(captured(frames, index))
        replies += [reply] if reply is not None else []
    assert [reply.question for reply in replies] == ["Who?", "Where?", QUESTION]
    assert replies[0].text == expected.text and replies[0].frame_index == 1
    assert [reply.standing for reply in replies] == [False, False, True] and not watcher.has_work
    assert watcher.stream.num_frames == 30


def test_more_questions_than_may_wait_are_refused(bundle: Bundle, frames: list[np.ndarray]) -> None:
    watcher = Watcher(bundle, QUESTION, trigger=Schedule(1e9), max_new_tokens=2)
    watcher.push(captured(frames, 0))
    for _ in range(MOST_WAITING):
        watcher.want("Who?")
    with pytest.raises(StreamError, match="16 questions are already waiting"):
        watcher.want("Who?")
    with pytest.raises(StreamError, match="special token"):
        watcher.want("<|im_end|>")
    assert watcher.num_waiting == MOST_WAITING


def test_another_standing_question_keeps_its_own_room(bundle: Bundle, frames: list[np.ndarray]) -> None:
    watcher = Watcher(bundle, QUESTION, trigger=Schedule(0.0), max_new_tokens=2)
    longer = "What is it that moves there, and where does it go, and why? " * 3
    watcher.ask_from_now_on(longer)
    for index in range(70):
        watcher.push(captured(frames, index))
        assert watcher.ask(captured(frames, index)).question == longer
    with pytest.raises(StreamError):
        watcher.ask_from_now_on("why? " * 400)
    assert watcher.question == longer


def test_a_stream_that_continues_keeps_room_for_a_longer_question_too(
    bundle: Bundle, frames: list[np.ndarray], tmp_path: Path
) -> None:
    PVCStream(bundle, clock="reanchor", reserve=40).save(tmp_path / "state.npz")
    stream = PVCStream.open(tmp_path / "state.npz", bundle)
    longer = "What is it that moves there, and where does it go, and why? " * 3
    watcher = Watcher(bundle, longer, trigger=Schedule(1e9), max_new_tokens=2, stream=stream)
    asked, begun = rolled_over(watcher, frames, 50)
    assert asked == [index - 1 for index in begun] and watcher.num_replies == len(asked) > 2


def test_answers_are_remembered_beyond_the_frames_they_were_about(
    bundle: Bundle, frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, lambda _: "a ball")
    watcher = Watcher(trained(bundle), QUESTION, trigger=Schedule(0.5), max_new_tokens=2, notes=Notes(60))
    rolled_over(watcher, frames, 40)
    assert watcher.stream.num_anchors > 0 and watcher.stream.notes == "Before: 0-4 s a ball.\n"
    watcher.reset()
    assert watcher.stream.notes == "" and watcher.stream.num_frames == 0


def test_a_reset_cuts_the_answer_and_forgets_what_waits(bundle: Bundle, frames: list[np.ndarray]) -> None:
    watcher = Watcher(bundle, QUESTION, trigger=Schedule(1e9), max_new_tokens=8)
    watcher.push(captured(frames, 0))
    watcher.want("Who?")
    watcher.want("Where?")
    watcher.step(captured(frames, 0))
    watcher.reset()
    assert not watcher.has_work and watcher.context_rows == 0
    watcher.push(captured(frames, 1))
    assert watcher.ask(captured(frames, 1)).frame_index == 1


def test_what_can_never_be_asked_is_refused_at_once(bundle: Bundle) -> None:
    with pytest.raises(StreamFull, match="one frame, the question and an answer of 500 tokens") as full:
        Watcher(bundle, QUESTION, trigger=Schedule(1.0), max_new_tokens=500)
    assert "at most 512" in full.value.expected and "--max-new-tokens" in full.value.fix
    with pytest.raises(StreamError, match="special token"):
        Watcher(bundle, "a<|im_end|>b", trigger=Schedule(1.0), max_new_tokens=8)
    fixed = replace(bundle, manifest=replace(bundle.manifest, time_mode="fixed"))
    with pytest.raises(StreamError, match=r"'fixed'.*a live stream has no end") as endless:
        Watcher(fixed, QUESTION, trigger=Schedule(1.0), max_new_tokens=8)
    assert "pvc-export run" in endless.value.fix


def watch(watcher: Watcher, *lengths: int) -> tuple[list[Reply], list[int]]:
    """Return every reply over scenes of these lengths, and the frames at which the context was restarted."""
    replies, restarted = [], []
    for shown in scenes(*lengths):
        before = watcher.num_restarts
        watcher.push(shown)
        restarted += [shown.index] * (watcher.num_restarts - before)
        if watcher.is_due(shown):
            replies.append(watcher.ask(shown))
    return replies, restarted


def test_a_context_holds_no_more_frames_than_the_model_was_trained_on(bundle: Bundle, frames: list[np.ndarray]) -> None:
    watcher = Watcher(trained(bundle), QUESTION, trigger=Schedule(1e9), max_new_tokens=2)
    retained = watcher.stream.episodes.num_retained
    asked, begun = rolled_over(watcher, frames, 40)
    assert begun == list(range(16, 40, 16 - retained)) and asked == [index - 1 for index in (*begun, 40)]


def test_where_scenes_need_not_be_whole_no_context_is_forgotten_between_them(bundle: Bundle) -> None:
    watcher = Watcher(trained(bundle), QUESTION, trigger=Schedule(0.0), max_new_tokens=2, whole_scenes=False)
    replies, restarted = watch(watcher, *[6] * 8)
    graded = [reply.grade.is_right is not None for reply in replies]
    assert restarted == [] and watcher.stream.num_anchors > 2
    assert len(graded) == 8 and any(graded) and graded[0]


@pytest.mark.parametrize(
    ("lengths", "trained_frames", "restarted"),
    [((8, 8, 8), 16, [16]), ((6, 7, 6, 8), 16, [13]), ((7, 6, 8), 96, []), ((8, 8, 8), 8, [8, 16])],
    ids=["two fill it", "the third would not fit", "enough", "one fills it"],
)
def test_a_context_is_forgotten_between_scenes_and_not_within_one(
    bundle: Bundle, lengths: tuple[int, ...], trained_frames: int, restarted: list[int]
) -> None:
    watcher = Watcher(trained(bundle, trained_frames=trained_frames), QUESTION, trigger=Schedule(0.0), max_new_tokens=2)
    replies, found = watch(watcher, *lengths)
    assert found == restarted
    assert [reply.grade.is_right is not None for reply in replies] == [True] * len(lengths)  # each scene was seen whole


def test_the_notice_says_that_the_next_scene_would_be_too_much(bundle: Bundle) -> None:
    watcher = Watcher(trained(bundle), QUESTION, trigger=Schedule(0.0), max_new_tokens=2)
    watch(watcher, 6, 7, 6)
    expected = "the next scene would exceed the 16 trained frames: restarted at frame 13"
    assert watcher.notice(13 / 4) == expected


def test_a_context_without_rows_for_the_next_scene_is_forgotten_at_the_cut(bundle: Bundle) -> None:
    watcher = Watcher(trained(bundle, trained_frames=96), QUESTION, trigger=Schedule(0.0), max_new_tokens=16)
    _, restarted = watch(watcher, *[8] * 12)
    assert restarted and all(index % 8 == 0 for index in restarted)
    assert "context full: restarted at frame" in watcher.notice(restarted[-1] / 4)


def test_a_scene_is_asked_its_own_question_when_it_ends(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answers(monkeypatch, lambda question: "")
    replies, _ = watch(Watcher(trained(bundle), QUESTION, trigger=Schedule(0.0), max_new_tokens=2), 6, 8, 7)
    assert [reply.frame_index for reply in replies] == [5, 13, 20]
    assert asked == ["Which is 0?", "Which is 1?", "Which is 2?"] == [reply.question for reply in replies]


def test_a_question_that_is_due_within_a_scene_waits_for_its_end(bundle: Bundle) -> None:
    watcher = Watcher(trained(bundle), QUESTION, trigger=Schedule(2.25), max_new_tokens=2)
    replies, _ = watch(watcher, 6, 6, 6, 6)
    assert [reply.frame_index for reply in replies] == [11, 23]  # due at frames 9 and 20
    rare = Watcher(trained(bundle), QUESTION, trigger=Schedule(1e9), max_new_tokens=2)
    assert watch(rare, 8, 8, 8) == ([], [16])  # a full context does not ask earlier


@pytest.mark.parametrize(
    ("text", "is_right"),
    [("It is 0.", True), (" It is 0.\n", True), ("It is 1.", False), ("it is 0", False), ("", False)],
    ids=repr,
)
def test_an_answer_is_right_if_it_is_the_truth_word_for_word(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, text: str, is_right: bool
) -> None:
    answers(monkeypatch, lambda question: text)
    (reply,), _ = watch(Watcher(trained(bundle), QUESTION, trigger=Schedule(0.0), max_new_tokens=2), 6)
    assert (reply.grade.is_right, reply.grade.truth, reply.grade.topic) == (is_right, "It is 0.", "event")


def test_a_question_of_a_person_is_held_against_no_scene_s_answer(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, lambda question: "It is 0.")
    watcher, shown = Watcher(trained(bundle), QUESTION, trigger=Schedule(0.0), max_new_tokens=2), list(scenes(6, 6))
    for captured in shown[:6]:
        watcher.push(captured)
    watcher.want("Who?")
    watcher.want("Which is 0?")  # same text as the scene's question, which has a known answer
    replies = [reply for _ in range(20) if (reply := watcher.step(shown[5])) is not None]
    assert [(reply.question, reply.grade.truth) for reply in replies] == [("Who?", None), ("Which is 0?", "It is 0.")]
    watcher.ask_from_now_on("Where?")  # for the following scenes too
    for captured in shown[6:]:
        watcher.push(captured)
    reply = watcher.ask(shown[-1])
    assert (reply.question, reply.grade.truth, reply.grade.is_right) == ("Where?", None, None)


def test_random_weights_are_not_graded(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, lambda question: "It is 0.")
    (reply,), _ = watch(Watcher(bundle, QUESTION, trigger=Schedule(0.0), max_new_tokens=2), 6)
    assert reply.grade.is_right is None and reply.grade.truth == "It is 0."


def test_a_question_that_the_world_cannot_answer_is_not_graded(bundle: Bundle) -> None:
    watcher, (*begin, last) = Watcher(trained(bundle), QUESTION, trigger=Schedule(0.0), max_new_tokens=2), scenes(6)
    assert last.scene is not None
    last = replace(last, scene=replace(last.scene, answer=None))
    for shown in (*begin, last):
        watcher.push(shown)
    reply = watcher.ask(last)
    assert (reply.grade.is_right, reply.grade.truth) == (None, None)


def test_a_scene_is_graded_once_and_not_before_its_end(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, lambda question: "It is 0.")
    watcher, replies = Watcher(trained(bundle), QUESTION, trigger=Schedule(0.0), max_new_tokens=2), []
    for shown in scenes(6):
        watcher.push(shown)
        replies += [watcher.ask(shown), watcher.ask(shown)] if shown.index in (2, 5) else []
    assert [(reply.grade.is_right, reply.grade.truth) for reply in replies] == [
        (None, None), (None, None), (True, "It is 0."), (None, "It is 0."),
    ]  # fmt: skip


@pytest.mark.parametrize("missed", [0, 3], ids=["the first frame", "a later frame"])
def test_a_scene_of_which_a_frame_was_missed_is_not_graded(bundle: Bundle, missed: int) -> None:
    watcher = Watcher(trained(bundle), QUESTION, trigger=Schedule(0.0), max_new_tokens=2)
    *_, last = seen = [shown for shown in scenes(6, 6) if shown.index != 6 + missed]
    for shown in seen:
        watcher.push(shown)
    assert watcher.ask(last).grade.is_right is None


def test_a_scene_longer_than_the_model_was_trained_on_is_asked_about_but_not_graded(bundle: Bundle) -> None:
    watcher = Watcher(trained(bundle, trained_frames=4), QUESTION, trigger=Schedule(0.0), max_new_tokens=2)
    replies, restarted = watch(watcher, 6, 6)
    assert restarted == [6] and [reply.grade.is_right for reply in replies] == [None, None]
