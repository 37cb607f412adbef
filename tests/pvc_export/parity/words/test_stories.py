"""Whole conversations: second questions, waiting frames, re-anchors. Each of their gates can fail."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engines import PVCStream, open_bundle
from engines.answer import Answer
from engines.bundle import Bundle
from engines.context import Context, FrameRows
from engines.episodes import Episodes
from engines.errors import StreamError
from engines.session import OrtSession
from pvc_export.controls import runtime_patches as runtime
from pvc_export.controls.runtime_patches import replaces
from pvc_export.graphs.models import LoadedModel, loaded_model
from pvc_export.parity.answers import Conversation
from pvc_export.parity.evidence import Evidence
from pvc_export.parity.limits import kl_limit
from pvc_export.parity.words.further import ask_further
from pvc_export.parity.words.past import Past
from pvc_export.parity.words.stories import (
    NUM_NEW_TOKENS,
    SHORT_STORIES,
    STORIES,
    Story,
    Turn,
    tell,
    tell_stories,
)
from pvc_ref import PVC
from pvc_ref.prompt import byte_tokenizer, video_prompt

Fault = Callable[[], AbstractContextManager[None]]
BY_KIND = {story.kind: story for story in STORIES}


@pytest.fixture(scope="module", params=["bundle_fp32", "bundle_fp16"])
def any_bundle(request: pytest.FixtureRequest) -> Bundle:
    return open_bundle(request.getfixturevalue(request.param), runtime="cpu")


@pytest.fixture(scope="module")
def bundle(bundle_fp32: Path) -> Bundle:
    return open_bundle(bundle_fp32, runtime="cpu")


def broken(evidence: Evidence) -> dict[str, str]:
    """Return the broken rules by level."""
    return {rule.level: rule.detail for rule in evidence.rules if not rule.passed}


def faults(conversations: tuple[Conversation, ...]) -> list[str]:
    return [fault for one in conversations if (fault := one.fault(kl_limit("fp32")))]


@pytest.mark.parametrize("story", [*STORIES, *SHORT_STORIES], ids=lambda story: f"{story.kind}-{story.ingest}")
def test_a_faithful_bundle_tells_every_story_as_the_reference_does(
    story: Story, any_bundle: Bundle, tiny: LoadedModel
) -> None:
    evidence = tell(any_bundle, tiny, story)
    assert [rule.level for rule in evidence.rules] == ["G", "K"] and broken(evidence) == {}
    limit = kl_limit(any_bundle.manifest.precision)
    assert [one.question for one in evidence.conversations] == [turn.question for turn in story.turns]
    assert all(one.fault(limit) is None and one.text == one.reference_text for one in evidence.conversations)
    assert sum(one.equal for one in evidence.conversations) == len(story.turns)
    assert all(one.num_steps >= one.num_said > 0 and one.max_kl > 0 for one in evidence.conversations)


def test_answers_of_a_story_depend_on_what_came_before(bundle: Bundle, tiny: LoadedModel) -> None:
    """If they did not, equal answers would prove nothing."""
    told = tell(bundle, tiny, BY_KIND["turns"]).conversations
    alone = tell(bundle, tiny, Story(kind="turns", turns=(Turn(num_frames=2, question=told[1].question),)))
    assert told[1].text != alone.conversations[0].text


@replaces(OrtSession, "run")
def loud_head(run: Callable[..., dict[str, np.ndarray]], session: OrtSession, inputs: object) -> dict[str, np.ndarray]:
    """Make logits 1 % too large, which leaves every greedy token correct."""
    outputs = run(session, inputs)
    return {"logits": outputs["logits"] * np.float32(1.01)} if session.spec.name == "head" else outputs


@replaces(Context, "restart")
def a_question_survives_the_anchor(restart: Callable[..., None], context: Context, notes: str = "") -> None:
    """Keep the LLM's cache when a stream re-anchors, so that old rows precede the replayed frames."""
    length = context.language.cache.length
    context.language.cache.truncate, truncate = lambda _: None, context.language.cache.truncate  # type: ignore[method-assign]
    try:
        restart(context, notes)
    finally:
        context.language.cache.truncate = truncate  # type: ignore[method-assign]
    assert context.language.cache.length == length


@replaces(Episodes, "frames_left")
def one_frame_too_late(frames_left: Callable[..., int], episodes: Episodes, most: int) -> int:
    left = frames_left(episodes, most)
    return left or int(episodes.current.num_frames <= episodes._trained)


@replaces(Context, "add")
def told_twice(add: Callable[..., None], context: Context, frame: FrameRows, *, wait: bool) -> None:
    """Queue a waiting frame twice."""
    add(context, frame, wait=wait)
    if wait and frame.index == 3:
        context.waiting += (frame,)


@replaces(Context, "next_turn")
def the_frames_go_on(_: Callable[..., None], context: Context) -> None:
    """After an answer that is kept, continue the text as after a frame."""
    context.pending, context.branch = context._prompt.frame_end(), None


@replaces(Context, "say")
def the_last_token_is_not_kept(say: Callable[..., np.ndarray], context: Context, token: int) -> np.ndarray:
    hidden = say(context, token)
    length = context.language.cache.length
    if getattr(context, "_said", 0) % NUM_NEW_TOKENS == NUM_NEW_TOKENS - 1:
        context.language.cache.truncate(length - 1)
    context._said = getattr(context, "_said", 0) + 1  # type: ignore[attr-defined]
    return hidden


@replaces(PVCStream, "ask")
def never_finished(ask: Callable[..., Answer], stream: PVCStream, question: str, **options: object) -> Answer:
    answer = ask(stream, question, **options)
    return replace(answer, finished=not answer.finished)


@replaces(PVCStream, "ask")
def refuses(ask: Callable[..., Answer], stream: PVCStream, question: str, **options: object) -> Answer:
    if stream.context_rows > 100:
        raise StreamError("too much was said")
    return ask(stream, question, **options)


@pytest.mark.parametrize(
    ("fault", "kind", "level", "said"),
    [
        (runtime.answer_without_its_end, "turns", "K", "expected '<|im_end|><|im_start|>user"),
        (runtime.answer_without_its_end, "pictures", "K", "expected '<|im_end|><|im_start|>user"),
        (the_frames_go_on, "turns", "K", "the LLM is fed '</img>"),
        (the_last_token_is_not_kept, "turns", "K", "turn 1: at token"),
        (never_finished, "turns", "K", "an answer of 8 tokens has finished=True"),
        (runtime.frames_counted_from_zero, "turns", "K", "the LLM is fed '0: <img>"),
        (runtime.questions_are_kept, "lazy", "", ""),
        (runtime.waiting_frames_out_of_order, "lazy", "G", "fed row 0 of frame 2, expected row 0 of frame 1"),
        (runtime.a_waiting_frame_dropped, "lazy", "G", "fed row 0 of frame 3, expected row 0 of frame 2"),
        (told_twice, "lazy", "G", "every frame once, in order"),
        (runtime.newest_frame_lost, "reanchor", "G", "fed row 0 of frame 2, expected row 0 of frame 3"),
        (runtime.replay_without_time, "reanchor", "G", "fed row 0 of frame 2, expected row 0 of frame 1"),
        (runtime.first_frames_counted_on, "reanchor", "K", "the LLM is fed '2: <img>"),
        (a_question_survives_the_anchor, "reanchor", "K", "turn 4: at token"),
        (one_frame_too_late, "reanchor", "G", "the stream has 5 frames since anchor 0, expected 3 since 1"),
        (refuses, "turns", "G", "turn 3 ended with an error: too much was said"),
    ],
    ids=lambda value: value.__name__ if callable(value) else value,
)
def test_a_fault_of_a_conversation_breaks_the_rule_of_its_level(
    fault: Fault, kind: str, level: str, said: str, bundle: Bundle, tiny: LoadedModel
) -> None:
    with fault():
        found = broken(tell(bundle, tiny, BY_KIND[kind]))
    if not level:  # a story rolls nothing back
        assert found == {}
        return
    assert said in found[level], found
    assert "Check " in found[level] and found[level].startswith("turn ")


def test_what_is_told_rightly_and_answered_wrongly_is_a_fault_of_the_answer(bundle: Bundle, tiny: LoadedModel) -> None:
    for fault, said in (
        (loud_head, "KL / mean square"),
        (runtime.least_likely_token, "the reference prefers its likeliest token"),
    ):
        with fault():
            evidence = tell(bundle, tiny, BY_KIND["turns"])
        assert broken(evidence) == {} and any(said in fault for fault in faults(evidence.conversations)), said


def test_another_model_s_stories_are_not_ours(bundle: Bundle, tiny: LoadedModel) -> None:
    other = replace(tiny, model=PVC.random(tiny.config, seed=1))
    evidence = tell(bundle, other, BY_KIND["turns"])
    assert broken(evidence) == {} and len(faults(evidence.conversations)) == len(BY_KIND["turns"].turns)


def test_a_large_model_is_told_one_short_story(
    bundle: Bundle, tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pvc_export.parity.words.further.is_small", lambda model: False)
    evidence = ask_further(bundle, tiny, [])
    assert [one.kind for one in evidence.conversations] == ["reanchor"] * 3
    assert "a large model" in evidence.not_executed["the largest image"]
    assert {rule.name for rule in evidence.rules if rule.level == "K"} >= {"tiles", "answers as text"}


def test_a_story_that_does_not_fit_or_cannot_be_told_says_why(bundle: Bundle, tiny: LoadedModel) -> None:
    short = replace(
        bundle, manifest=replace(bundle.manifest, limits=replace(bundle.manifest.limits, context=128, bucket=64))
    )
    told = tell_stories(short, tiny)
    assert list(told.not_executed) == [f"the story '{story.kind}'" for story in STORIES] and not told.rules
    assert all(reason.endswith("rows, but the context has 128") for reason in told.not_executed.values())
    assert tell_stories(bundle, tiny, SHORT_STORIES).not_executed == {}
    fixed = replace(tiny, model=PVC.random(replace(tiny.config, time_mode="fixed"), seed=0))
    (reason,) = tell_stories(bundle, fixed, SHORT_STORIES).not_executed.values()
    assert reason.startswith("this model cannot re-anchor")


# -- the reference's side --------------------------------------------------------------------------------------------


def test_a_past_reads_as_the_prompt_of_its_frames_and_starts_over_where_it_should(tiny: LoadedModel) -> None:
    past, pixels = Past(tiny, trained=4, retain=2), np.zeros((4, 112, 112, 3), np.uint8)
    assert [past.see(frame) for frame in pixels[:2]] == [False, False]
    past.ask("What?")
    whole = tiny.tokenizer.encode(
        video_prompt(tiny.config, num_frames=2, question="What?"), add_special_tokens=False
    ).ids
    assert past.num_rows == len(whole)
    context = tiny.token_id("<IMG_CONTEXT>")
    assert [label for label in past.labels() if isinstance(label, int)] == [
        token for token in whole if token != context
    ]
    frames = [label for label in past.labels() if not isinstance(label, int)]
    assert frames == [(frame, row) for frame in range(2) for row in range(tiny.config.compressor.num_tokens)]
    past.hear([context, 7])
    assert past.labels()[-2:] == [context, 7]  # a random model may generate this token
    assert [past.see(frame) for frame in pixels[:3]] == [False, False, True] and past.num_anchors == 1
    past.ask("And now?")
    assert len(past.frames) == 3 and past.labels()[0] == whole[0] and (2, 0) in past.labels()


def test_a_past_of_one_turn_is_embedded_as_the_reference_does(tiny: LoadedModel) -> None:
    rng = np.random.default_rng(0)
    past, pixels = Past(tiny), rng.integers(0, 256, (2, 112, 112, 3), dtype=np.uint8)
    for frame in pixels:
        past.see(frame)
    past.ask("What?")
    visual = past.encode(window=4, total_frames=None)
    with torch.no_grad():
        embeds = tiny.model.encode_clip(torch.from_numpy(pixels)[None], window=4)[0]
        want = tiny.prompt_embeds(tiny.prompt_ids(num_frames=2, question="What?"), embeds)
    assert torch.equal(past.embeds(visual), want)


@pytest.mark.usefixtures("shared_graphs")
def test_stories_are_told_under_fixed_time_too(small: LoadedModel, tmp_path: Path) -> None:
    """Fixed time is t / T, where streams cannot re-anchor."""
    from engines.spec import StreamLimits
    from engines.target import load_target
    from pvc_export.bundles.export import ExportRequest, write_graphs
    from pvc_export.terminal.console import Console

    config = replace(small.config, time_mode="fixed")
    fixed = loaded_model(PVC.random(config, seed=0), byte_tokenizer(), name="fixed")
    target = replace(load_target("cpu"), engine_graphs=(), builder=None)
    limits = StreamLimits(window=2, context=512)
    request = ExportRequest(out=tmp_path, target=target, precision="fp32", limits=limits)
    write_graphs(fixed, request, tmp_path, Console(quiet=True))
    evidence = ask_further(open_bundle(tmp_path, runtime="cpu", unchecked=True), fixed, [])
    assert broken(evidence) == {} and faults(evidence.conversations) == []
    assert list(evidence.not_executed) == ["the story 'reanchor'"]
