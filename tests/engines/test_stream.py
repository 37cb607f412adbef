"""PVCStream: what a user with one camera relies on. Runs the exported float32 bundle in ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engines import PVCStream, open_bundle
from engines.bundle import Bundle
from engines.errors import FrameError, NonFiniteError, StreamError, StreamFull
from engines.spec import StreamLimits
from engines.target import load_target
from pvc_export.graphs.models import LoadedModel
from pvc_ref.preprocess import resize_frame
from pvc_ref.prompt import STOP_TOKEN

from ..conftest import few_layers
from .doubles import poisoned, struck

Frames = list[np.ndarray]
QUESTION = "What moves?"


@pytest.fixture(scope="module")
def bundle(bundle_fp32: Path) -> Bundle:
    return open_bundle(bundle_fp32)


def reference_tokens(tiny: LoadedModel, frames: Frames, question: str, *, window: int, num_tokens: int) -> list[int]:
    """Greedy tokens of the reference: the whole clip and the whole prompt at once."""
    model = tiny.model
    size = model.config.vision.image_size
    ids = tiny.prompt_ids(num_frames=len(frames), question=question)
    with torch.no_grad():
        if not frames:
            embeds = model.llm.embed_tokens(ids)[None]
        else:
            pixels = torch.from_numpy(np.stack([resize_frame(frame[..., ::-1], size=size) for frame in frames]))
            embeds = tiny.prompt_embeds(ids, model.encode_clip(pixels[None], window=window)[0])
        return model.generate(embeds, max_new_tokens=num_tokens, stop_ids=[tiny.token_id(STOP_TOKEN)])


@pytest.mark.parametrize("num_frames", [0, 1, 3, 4, 5, 12], ids=lambda n: f"T={n}")
@pytest.mark.parametrize("question", ["What moves?", "", "Frame3: «ü» \n\n é"], ids=["plain", "empty", "odd"])
def test_the_answer_is_the_reference_s_greedy_text(
    bundle: Bundle, tiny: LoadedModel, frames: Frames, num_frames: int, question: str
) -> None:
    stream = PVCStream(bundle)
    for frame in frames[:num_frames]:
        stream.push(frame)
    answer = stream.ask(question, max_new_tokens=12)
    window = bundle.manifest.limits.window
    expected = reference_tokens(tiny, frames[:num_frames], question, window=window, num_tokens=12)
    assert list(answer.token_ids) == expected
    assert answer.text == tiny.tokenizer.decode(expected, skip_special_tokens=True)


def test_different_videos_give_different_tokens(bundle: Bundle, frames: Frames) -> None:
    """Otherwise the test above would also pass for a model that ignores its frames."""
    answers = set()
    for first in (0, 4, 8):
        stream = PVCStream(bundle)
        for frame in frames[first : first + 4]:
            stream.push(frame)
        answers.add(stream.ask(QUESTION, max_new_tokens=12).token_ids)
    assert len(answers) == 3


def test_two_streams_on_one_set_of_sessions_do_not_mix(bundle: Bundle, frames: Frames) -> None:
    alone = [PVCStream(bundle), PVCStream(bundle)]
    for stream, clip in zip(alone, (frames[:6], frames[6:]), strict=True):
        for frame in clip:
            stream.push(frame)
    first, second = PVCStream(bundle), PVCStream(bundle)
    for a, b in zip(frames[:6], frames[6:], strict=True):
        first.push(a)
        second.push(b)
    expected = [stream.ask(QUESTION, max_new_tokens=8).token_ids for stream in alone]
    assert [
        first.ask(QUESTION, max_new_tokens=8).token_ids,
        second.ask(QUESTION, max_new_tokens=8).token_ids,
    ] == expected
    assert expected[0] != expected[1]


def test_asking_leaves_no_trace(bundle: Bundle, frames: Frames) -> None:
    asked, silent = PVCStream(bundle), PVCStream(bundle)
    for frame in frames[:5]:
        asked.push(frame)
        asked.ask("Anything new?", max_new_tokens=5)
        silent.push(frame)
    assert asked.context_rows == silent.context_rows
    assert asked.ask(QUESTION, max_new_tokens=8).token_ids == silent.ask(QUESTION, max_new_tokens=8).token_ids


def test_keep_leaves_question_and_answer_in_the_context(bundle: Bundle, frames: Frames) -> None:
    stream = PVCStream(bundle)
    stream.push(frames[0])
    before = stream.context_rows
    first = stream.ask(QUESTION, max_new_tokens=5, keep=True)
    assert stream.context_rows > before + len(first.token_ids)
    kept = stream.ask("And now?", max_new_tokens=8)
    fresh = PVCStream(bundle)
    fresh.push(frames[0])
    assert kept.token_ids != fresh.ask("And now?", max_new_tokens=8).token_ids
    stream.push(frames[1])
    assert stream.num_frames == 2


def test_a_reset_stream_is_a_fresh_stream(bundle: Bundle, frames: Frames) -> None:
    stream = PVCStream(bundle)
    for frame in frames[:7]:
        stream.push(frame)
    stream.ask(QUESTION, max_new_tokens=3, keep=True)
    stream.reset()
    fresh = PVCStream(bundle)
    for frame in frames[7:]:
        stream.push(frame)
        fresh.push(frame)
    assert stream.ask(QUESTION, max_new_tokens=8).token_ids == fresh.ask(QUESTION, max_new_tokens=8).token_ids


@pytest.mark.parametrize("graph", ["trunk", "temporal", "compressor", "embed", "llm"])
def test_a_frame_that_fails_leaves_the_stream_as_it_was(bundle: Bundle, frames: Frames, graph: str) -> None:
    failing, _ = struck(bundle, graph, "lost", 6)
    stream = PVCStream(failing)
    healthy = PVCStream(bundle)
    for frame in frames[:5]:
        stream.push(frame)
        healthy.push(frame)
    with pytest.raises(RuntimeError, match="device lost"):
        stream.push(frames[5])
    assert (stream.num_frames, stream.context_rows) == (5, healthy.context_rows)
    stream.push(frames[5])
    healthy.push(frames[5])
    assert stream.ask(QUESTION, max_new_tokens=8).token_ids == healthy.ask(QUESTION, max_new_tokens=8).token_ids


@pytest.mark.parametrize("num_before", [0, 2], ids=["first frame", "third frame"])
@pytest.mark.parametrize("before_it_counts", [True, False], ids=["before it counts", "right after"])
def test_an_interrupted_frame_is_in_both_caches_or_in_none(
    bundle: Bundle, frames: Frames, monkeypatch: pytest.MonkeyPatch, before_it_counts: bool, num_before: int
) -> None:
    """Ctrl-C between the LLM's rows and the ring's: the LLM must not know a frame that the vision side never saw."""
    stream, healthy = PVCStream(bundle), PVCStream(bundle)
    for frame in frames[:num_before]:
        stream.push(frame)
        healthy.push(frame)
    push = stream.vision.ring.push

    def interrupted(rows: Any) -> None:
        if not before_it_counts:
            push(rows)
        raise KeyboardInterrupt

    monkeypatch.setattr(stream.vision.ring, "push", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stream.push(frames[num_before])
    monkeypatch.undo()
    if before_it_counts:
        assert (stream.num_frames, stream.context_rows) == (num_before, healthy.context_rows)
        stream.push(frames[num_before])
    healthy.push(frames[num_before])
    assert (stream.num_frames, stream.context_rows) == (num_before + 1, healthy.context_rows)
    for frame in frames[num_before + 1 : 5]:
        stream.push(frame)
        healthy.push(frame)
    assert stream.ask(QUESTION, max_new_tokens=8).token_ids == healthy.ask(QUESTION, max_new_tokens=8).token_ids
    for mine, theirs in zip(caches_of(stream), caches_of(healthy), strict=True):
        assert np.array_equal(mine, theirs)


def caches_of(stream: PVCStream) -> list[np.ndarray]:
    feeds = [stream.vision.ring.feeds(), stream.language.cache.feeds(1)]
    return [np.asarray(feed[name]) for feed in feeds for name in sorted(feed)]


@pytest.mark.parametrize("keep", [True, False], ids=["keep", "rolled back"])
def test_a_question_interrupted_at_its_very_end_leaves_the_stream_as_it_was(
    bundle: Bundle, frames: Frames, keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, healthy = PVCStream(bundle), PVCStream(bundle)
    stream.push(frames[0])
    healthy.push(frames[0])
    last = "next_turn" if keep else "end_branch"
    original, interrupts = getattr(stream.context, last), iter([KeyboardInterrupt])

    def interrupted(*args: Any, **options: Any) -> None:
        original(*args, **options)
        for error in interrupts:
            raise error

    monkeypatch.setattr(stream.context, last, interrupted)
    with pytest.raises(KeyboardInterrupt):
        stream.ask(QUESTION, max_new_tokens=3, keep=keep)
    assert stream.context_rows == healthy.context_rows
    stream.push(frames[1])
    healthy.push(frames[1])
    assert stream.ask(QUESTION, max_new_tokens=8).token_ids == healthy.ask(QUESTION, max_new_tokens=8).token_ids


def test_a_question_that_fails_leaves_the_stream_as_it_was(bundle: Bundle, frames: Frames) -> None:
    failing, _ = struck(bundle, "head", "lost", 3)
    stream = PVCStream(failing)
    stream.push(frames[0])
    rows = stream.context_rows
    with pytest.raises(RuntimeError, match="device lost"):
        stream.ask(QUESTION, keep=True)
    assert stream.context_rows == rows


def test_a_full_stream_says_which_flag_makes_it_longer(bundle: Bundle, frames: Frames) -> None:
    stream = PVCStream(bundle)
    with pytest.raises(StreamFull, match="the context is full: .* of 512 LLM rows") as info:
        for _ in range(100):
            stream.push(frames[0])
    assert "--context" in info.value.fix
    pushed, rows = stream.num_frames, stream.context_rows
    assert pushed > 20 and rows <= 512
    with pytest.raises(StreamFull):
        stream.ask("x" * 600)
    assert (stream.num_frames, stream.context_rows) == (pushed, rows)


def test_a_prompt_longer_than_a_chunk_is_fed_in_pieces_with_the_same_result(bundle: Bundle, tiny: LoadedModel) -> None:
    question = "z" * 300  # one token per byte: longer than the chunk of 256 rows, and across a bucket edge
    answer = PVCStream(bundle).ask(question, max_new_tokens=8)
    assert list(answer.token_ids) == reference_tokens(tiny, [], question, window=4, num_tokens=8)


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
    ],
    ids=["gray", "alpha", "float", "empty"],
)
def test_a_frame_of_another_kind_is_refused(bundle: Bundle, frame: np.ndarray) -> None:
    stream = PVCStream(bundle)
    with pytest.raises(FrameError):
        stream.push(frame)
    assert stream.num_frames == 0


def test_total_frames_is_refused_where_time_is_absolute(bundle: Bundle) -> None:
    with pytest.raises(StreamError, match="time mode is 'absolute'") as info:
        PVCStream(bundle, total_frames=8)
    assert info.value.fix == "leave total_frames out"


def test_two_rows_of_one_batch_equal_two_runs(bundle: Bundle) -> None:
    """The fp32 bundle has a dynamic batch: every vision graph gives each stream what it would get alone."""
    rng = np.random.default_rng(0)
    for name in ("trunk", "temporal", "compressor"):
        session = bundle.sessions[name]
        feeds = {t.name: _random(rng, t.resolve({"batch": 2}), t.dtype) for t in session.spec.inputs}
        both = session.run(feeds)
        for row in range(2):
            single = session.run({key: value[row : row + 1] for key, value in feeds.items()})
            for key, value in single.items():
                np.testing.assert_allclose(both[key][row : row + 1], value, rtol=0, atol=2e-5)  # worst 4e-6


def _random(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    if dtype == "uint8":
        return rng.integers(0, 256, shape, dtype=np.uint8)
    if dtype == "bool":
        return rng.random(shape) < 0.5
    return rng.normal(size=shape).astype(dtype)


@pytest.mark.parametrize("graph", ["trunk", "temporal", "compressor", "llm"])
def test_an_overflow_costs_one_frame_and_not_the_stream(bundle: Bundle, frames: Frames, graph: str) -> None:
    stream, healthy = PVCStream(poisoned(bundle, graph, at=3)), PVCStream(bundle)
    for frame in frames[:2]:
        stream.push(frame)
        healthy.push(frame)
    with pytest.raises(NonFiniteError, match=f"graph '{graph}' returned NaN or infinity"):
        stream.push(frames[2])
    for frame in frames[2:5]:
        stream.push(frame)
        healthy.push(frame)
    assert stream.ask(QUESTION, max_new_tokens=8).token_ids == healthy.ask(QUESTION, max_new_tokens=8).token_ids


def test_what_a_stream_forgets_is_cleared(bundle: Bundle, frames: Frames) -> None:
    """A masked infinity would still become NaN in the softmax, so forgotten rows must be cleared."""
    stream = PVCStream(bundle)
    stream.push(frames[0])
    used = stream.context_rows
    stream.ask("x" * 40, max_new_tokens=4)
    feeds = stream.language.cache.feeds(1)
    caches = [state.as_rows(feeds[state.input]) for state in bundle.manifest.graphs["llm"].states]
    assert all(np.any(cache[:, :used]) and not np.any(cache[:, used:]) for cache in caches)
    stream.reset()
    assert not any(np.any(cache) for name, cache in stream.language.cache.feeds(1).items() if name.startswith("past."))


@pytest.mark.parametrize("token", ["<IMG_CONTEXT>", "<|im_end|>", "<img>"])
def test_a_question_with_a_special_token_is_refused(bundle: Bundle, token: str) -> None:
    stream = PVCStream(bundle)
    with pytest.raises(StreamError, match="a special token of the conversation"):
        stream.ask(f"Why {token}?")
    assert stream.context_rows == 0


@pytest.mark.parametrize("num_frames", [0, 1, 12])
def test_the_rows_a_stream_needs_are_known_before_it_starts(bundle: Bundle, frames: Frames, num_frames: int) -> None:
    stream = PVCStream(bundle)
    needed = stream.rows_needed(num_frames, question=QUESTION, max_new_tokens=6)
    for frame in frames[:num_frames]:
        stream.push(frame)
    used = []
    truncate = stream.language.cache.truncate
    stream.language.cache.truncate = lambda length: (used.append(stream.language.cache.length), truncate(length))  # type: ignore[method-assign,assignment,func-returns-value]
    answer = stream.ask(QUESTION, max_new_tokens=6)
    assert used[0] == needed - (6 - len(answer.token_ids))


def test_a_clip_of_fixed_length_ends_with_it(tmp_path: Path, frames: Frames) -> None:
    from pvc_export.bundles.export import ExportRequest, export
    from pvc_export.graphs.models import loaded_model
    from pvc_ref import PVC, PVCConfig
    from pvc_ref.prompt import byte_tokenizer

    config = replace(few_layers(PVCConfig.preset("tiny")), time_mode="fixed")
    loaded = loaded_model(PVC.random(config, seed=0), byte_tokenizer(), name="fixed")
    limits = StreamLimits(window=3, context=512)
    export(loaded, ExportRequest(out=tmp_path / "b", target=load_target("cpu"), precision="fp32", limits=limits))
    fixed = open_bundle(tmp_path / "b")
    with pytest.raises(StreamError, match="time mode is 'fixed'") as info:
        PVCStream(fixed)
    assert info.value.fix == "pass total_frames, the clip's number of frames"
    with pytest.raises(StreamError, match="total_frames is 0") as info:
        PVCStream(fixed, total_frames=0)
    assert info.value.expected.startswith("at least 1")
    stream = PVCStream(fixed, total_frames=2)
    for frame in frames[:2]:
        stream.push(frame)
    with pytest.raises(StreamError, match="all 2 frames of this stream have been pushed"):
        stream.push(frames[2])
