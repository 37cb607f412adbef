"""The endless stream: asked when it is time, asked once more before it forgets, started again when it is full."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from apps.capture import Captured
from apps.watcher import NOTICE_S, Watcher
from engines import Bundle, PVCStream, open_bundle
from engines.errors import StreamError, StreamFull

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
    assert watcher.last_reply == reply and not watcher.has_news


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
    with pytest.raises(StreamFull, match=r"one frame, the question and 500 tokens.*has 512.*--max-new-tokens"):
        Watcher(bundle, QUESTION, ask_every_s=1.0, max_new_tokens=500)
    with pytest.raises(StreamError, match="special token"):
        Watcher(bundle, "a<|im_end|>b", ask_every_s=1.0, max_new_tokens=8)
    fixed = replace(bundle, manifest=replace(bundle.manifest, time_mode="fixed"))
    with pytest.raises(StreamError, match=r"'fixed'.*a live view has no end.*pvc-export run"):
        Watcher(fixed, QUESTION, ask_every_s=1.0, max_new_tokens=8)
