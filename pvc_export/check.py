"""Parity: a bundle, run as users run it, against the reference model, and every step of the way there.

A stream of rendered and real frames that wraps the ring twice goes through PVCStream; every output of every graph is
recorded, every cache row too, and compared with the PyTorch reference in float32:
    vision    frame by frame against the reference's own streaming form, and frame_embeds against the whole clip;
              then the clock jumps past the last trained frame, and past frame 4096
    ladder    the steps between reference and bundle, each against its neighbour (ladder.py)
    language  every pass, cached, against one pass over the whole conversation without any cache; then one pass at the
              far end of the context
    batch     where a bundle serves several streams, each row of a batch against its own run; streams of different
              lengths, at the edges of the cache's buckets, against one pass without a cache
    words     twenty prompts, answered and scored (conversations.py)
    answers   a thousand questions with known answers, on every rung, for a model that was taught them (semantic.py)
    tokens    each is the likeliest of its logits, and the reference's choice but for near ties
    weights   every parameter of the reference, cast to the bundle's precision, bit for bit in its graph's file
Unusual: the reference makes its own resize, its own prompt and its own past, so a fault of the runtime (a mask, a slot,
a resize, a prompt) fails like a fault of a graph. What is not compared fails as well: each output must have been seen.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from engines import PVCStream
from engines.bundle import Bundle
from engines.errors import NonFiniteError, ParityError, SpecError
from engines.memory import Array
from engines.vision import VisionEncoder
from pvc_ref.preprocess import resize_frame
from pvc_ref.prompt import IMAGE_CONTEXT

from .conversations import converse
from .expected import pixels_rule
from .frames import QUESTION, Frame, check_clip
from .graded import WORLD, RungAnswers
from .ladder import (
    Frames,
    Progress,
    Recording,
    climb,
    compare_recordings,
    fitting_threads,
    is_small,
    recording_of,
    require_same_shape,
    run_torch,
)
from .levels import Rule
from .models import LoadedModel, require_same_weights
from .parity import Conversation, Difference, compare_arrays, near_tie, worst_rows
from .precision import TORCH_DTYPE
from .probes import probe_batch, probe_context, probe_lengths
from .prompts import KINDS
from .recorder import Calls, Recorder
from .report import ParityReport
from .same_weights import compare_weights
from .state_rules import check_rules
from .widen import open_on_cpu

if TYPE_CHECKING:
    from .html.heat import HeatMap

NUM_NEW_TOKENS = 16
MIN_DECODED = 4
NUM_QUESTIONS = 1000
PER_KIND = 5
"""Prompts of each kind: 20 in all. A large model is asked one of each."""
FAR_FRAME = 4096
"""A frame that a stream meets after minutes: beyond float16's integers, where a narrow clock would show."""


def check_bundle(
    folder: Path,
    loaded: LoadedModel,
    *,
    ladder: bool = True,
    num_questions: int = NUM_QUESTIONS,
    scratch: Path | None = None,
    progress: Progress = lambda _: None,
) -> ParityReport:
    """Run the bundle beside its reference on a clip of 2 W + 2 frames, in ONNX Runtime on the CPU.

    Without `ladder` only the bundle itself is compared, not the steps between. num_questions are asked of a model
    whose world is known (semantic.py); 0 asks none. Graphs that a rung needs are written to
    a temporary folder in `scratch`, by default the system's. Raises ModelError if `loaded` is not
    the model the bundle was made from, and ParityError where nothing can be compared: other shapes, or NaN. A
    difference is not an error here: it is in the report.
    """
    with fitting_threads(loaded.model):
        outcome = _check_bundle_itself(folder, loaded, scratch, progress)
        comparison, manifest = outcome.comparison, outcome.comparison.bundle.manifest
        num_weights, wrong_weights = compare_weights(comparison.bundle, loaded)
        progress(0.5)
        not_executed = {"engine": "this check left out the ladder"} if manifest.engines else {}
        if ladder:
            onnx = recording_of(outcome.recorded.vision_calls)
            frames, reference = outcome.recorded.frames, outcome.reference
            found, not_executed = climb(
                comparison.bundle,
                loaded.model,
                frames,
                fp32=reference,
                onnx=onnx,
                scratch=scratch,
                progress=lambda x: progress(0.5 + 0.3 * x),
            )
            comparison.found = found + comparison.found
        answers: tuple[RungAnswers, ...] = ()
        if num_questions and loaded.model.trained_on == WORLD:
            from .semantic import answer_all  # needs OpenCV, which other models do not

            answers = answer_all(
                folder, loaded, num_questions=num_questions, ladder=ladder, scratch=scratch,
                progress=lambda x: progress(0.8 + 0.2 * x),
            )  # fmt: skip
    progress(1.0)
    return _report(
        outcome, num_weights, wrong_weights, not_executed | _left_out(outcome.conversations, loaded), answers
    )


def _report(
    outcome: Outcome,
    num_weights: int,
    wrong_weights: dict[str, list[str]],
    not_executed: dict[str, str],
    answers: tuple[RungAnswers, ...],
) -> ParityReport:
    comparison, manifest = outcome.comparison, outcome.comparison.bundle.manifest
    outputs = {f"{spec.name}/{tensor.name}" for spec in manifest.graphs.values() for tensor in spec.outputs}
    return ParityReport(
        precision=manifest.precision,
        computed_in=outcome.computed_in,
        num_frames=outcome.recorded.frames.num_consecutive,
        window=manifest.limits.window,
        rows=worst_rows(comparison.found),
        found=tuple(comparison.found),
        missing=tuple(sorted(outputs - comparison.seen)),
        num_weights=num_weights,
        wrong_weights=wrong_weights,
        num_tokens=len(outcome.recorded.tokens),
        num_equal_tokens=comparison.num_equal_tokens,
        wrong_tokens=tuple(comparison.wrong_tokens),
        not_executed=not_executed,
        conversations=outcome.conversations,
        answers=answers,
        rules=outcome.rules,
        heat=comparison.heat,
    )


def _per_kind(loaded: LoadedModel) -> int:
    return PER_KIND if is_small(loaded.model) else 1


def _left_out(conversations: tuple[Conversation, ...], loaded: LoadedModel) -> dict[str, str]:
    """Kinds of prompts of which some did not fit in the context."""
    per_kind = _per_kind(loaded)
    asked = Counter(conversation.kind for conversation in conversations)
    return {
        f"prompts about {kind}": f"{per_kind - asked[kind]} of {per_kind} do not fit in this bundle's context"
        for kind in KINDS
        if asked[kind] < per_kind
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What is left of a bundle that was run: numbers, and no session. At 8B the other rungs need the memory."""

    comparison: Comparison
    recorded: RecordedStream
    reference: Recording
    computed_in: str
    conversations: tuple[Conversation, ...]
    rules: tuple[Rule, ...]


def _check_bundle_itself(folder: Path, loaded: LoadedModel, scratch: Path | None, progress: Progress) -> Outcome:
    with open_on_cpu(folder, scratch=scratch) as bundle:
        require_same_weights(bundle.manifest, loaded)
        clip = check_clip(2 * bundle.manifest.limits.window + 2)
        comparison = Comparison(bundle=bundle, loaded=loaded)
        try:
            rules = check_rules(bundle, scratch=scratch)
            num_frames = _frames_that_fit(bundle, loaded, len(clip))
            recorded = stream_clip(bundle, clip, num_frames=num_frames, progress=lambda x: progress(0.2 * x))
            reference = comparison.vision(recorded, progress=lambda x: progress(0.2 + 0.2 * x))
            progress(0.4)
            comparison.language(recorded, reference)
            comparison.seen = {f"{found.graph}/{found.tensor}" for found in comparison.found}
            comparison.found += probe_batch(bundle)
            comparison.found += probe_context(bundle, loaded)
            comparison.found += probe_lengths(bundle, loaded)
            conversations = converse(
                bundle, loaded, per_kind=_per_kind(loaded), progress=lambda x: progress(0.4 + 0.1 * x)
            )
        except NonFiniteError as error:
            raise ParityError(f"{error} (while checking {folder})") from error
        computed_in = bundle.sessions["trunk"].computes_in
        comparison.bundle = replace(bundle, sessions={})
    return Outcome(
        comparison=comparison,
        recorded=recorded,
        reference=reference,
        computed_in=computed_in,
        conversations=tuple(conversations),
        rules=(*rules, pixels_rule(recorded.fed, recorded.frames.pixels), *comparison.rules),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedStream:
    """What a stream returned: its vision calls on every frame, its language calls on those that fit, its answer.

    fed     frames as they reached the trunk
    forced  tokens fed behind an answer that was too short to show decoding
    """

    frames: Frames
    fed: list[Array]
    num_streamed: int
    vision_calls: Calls
    language_calls: Calls
    tokens: tuple[int, ...]
    forced: tuple[int, ...]


def stream_clip(
    bundle: Bundle, clip: list[Frame], *, num_frames: int, progress: Progress = lambda _: None
) -> RecordedStream:
    """Push the first num_frames frames, ask, and let the clock jump. The vision side sees the whole clip anyway."""
    recorder = Recorder(bundle.sessions)
    total = len(clip) if bundle.manifest.time_mode == "fixed" else None
    # One clip under one clock, so that every frame has its counterpart; what a re-anchor does is the runtime's tests'.
    stream = PVCStream(replace(bundle, sessions=recorder.sessions), total_frames=total, clock="run-on")
    for index, frame in enumerate(clip[:num_frames]):
        stream.push(frame)
        progress((index + 1) / num_frames)
    tokens = stream.ask(QUESTION, max_new_tokens=NUM_NEW_TOKENS, keep=True).token_ids
    forced = _decode_a_little_more(stream, tokens)
    language_calls, encoder, fed = recorder.calls, stream.vision, recorder.frames[:num_frames]
    pixels = [resize_frame(frame[..., ::-1], size=bundle.manifest.shape.image_size) for frame in clip]
    if num_frames < len(clip):  # the context is short
        recorder.restart()
        encoder = VisionEncoder(recorder.sessions, time_divisor=total or 1)
        for image in pixels:
            encoder.commit(encoder.encode(image))
    times = list(range(len(clip)))
    if total is None:
        times += _jump(encoder, pixels, bundle)
    frames = Frames(pixels=[*pixels, *pixels[: len(times) - len(clip)]], times=times, total_frames=total)
    return RecordedStream(
        frames=frames,
        fed=fed,
        num_streamed=num_frames,
        vision_calls=recorder.calls,
        language_calls=language_calls,
        tokens=tokens,
        forced=forced,
    )


def _decode_a_little_more(stream: PVCStream, tokens: tuple[int, ...]) -> tuple[int, ...]:
    """Feed tokens behind an answer of a word or none, so that decoding is compared whatever the model says."""
    forced = tuple(range(max(MIN_DECODED - len(tokens), 0)))
    for token in forced:
        stream.language.logits(stream.language.append(stream.language.embed([token])))
    return forced


def _jump(encoder: VisionEncoder, pixels: list[Array], bundle: Bundle) -> list[int]:
    """Let the clock run ahead to frames that a clip does not reach, and encode one there. Slots stay where they are."""
    ring, times = encoder.ring, list[int]()
    for target in (bundle.manifest.trained_frames - 1, FAR_FRAME):
        if target > ring.num_frames:  # a model of few frames has passed the first one already
            ring.num_frames += -(-(target - ring.num_frames) // ring.window) * ring.window
            encoder.commit(encoder.encode(pixels[len(times)]))
            times.append(encoder.num_frames - 1)
    return times


@dataclass(slots=True)
class Comparison:
    """The reference's side of a stream, and every difference found. `seen`: outputs that the stream itself returned."""

    bundle: Bundle
    loaded: LoadedModel
    found: list[Difference] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    num_equal_tokens: int = 0
    wrong_tokens: list[str] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    heat: tuple[HeatMap, ...] = ()

    @property
    def stage(self) -> str:
        return f"bundle {self.bundle.manifest.precision}"

    @torch.no_grad()
    def vision(self, recorded: RecordedStream, progress: Progress = lambda _: None) -> Recording:
        """Compare every frame; return what the reference said. The embeddings of the clip come from the whole clip."""
        frames, window = recorded.frames, self.bundle.manifest.limits.window
        reference = run_torch(self.loaded.model, frames, window, self.bundle.manifest.graphs["temporal"], progress)
        num_frames = frames.num_consecutive
        pixels = torch.from_numpy(np.stack(frames.pixels[:num_frames]))[None]
        whole = self.loaded.model.encode_clip(pixels, window=window, total_frames=frames.total_frames)[0]
        expected = list(reference)
        for index in range(num_frames):
            expected[index] = expected[index] | {"compressor/frame_embeds": whole[index : index + 1].numpy()}
        got = recording_of(recorded.vision_calls)
        self.found += compare_recordings(self.stage, got, expected, frames.times)
        from .html.heat import worst_heat_maps  # a page is made from this check

        self.heat = worst_heat_maps(
            self.stage, got, expected, pixels=frames.pixels, times=frames.times, config=self.loaded.config
        )
        return reference

    @torch.no_grad()
    def language(self, recorded: RecordedStream, reference: Recording) -> None:
        """Compare every LLM pass with one uncached pass, and every token with what both sides' logits say."""
        model, calls, tokens = self.loaded.model, recorded.language_calls, recorded.tokens
        embeds_of_frames = [frame["compressor/frame_embeds"] for frame in reference[: recorded.num_streamed]]
        frame_embeds = torch.from_numpy(np.concatenate(embeds_of_frames))
        prompt = self.loaded.prompt_ids(num_frames=len(frame_embeds), question=QUESTION)
        # The answer is embedded on its own: a random model may well say <IMG_CONTEXT> itself.
        answer = torch.tensor([*tokens, *recorded.forced], dtype=torch.long)
        text = torch.cat([prompt[prompt != self.loaded.token_id(IMAGE_CONTEXT)], answer])
        # A table lookup rounds nothing but the table.
        text_embeds = model.llm.embed_tokens(text).to(TORCH_DTYPE[self.bundle.manifest.precision])
        embeds = torch.cat(
            [self.loaded.prompt_embeds(prompt, frame_embeds), model.llm.embed_tokens(answer)[None]], dim=1
        )
        hidden, new = model.llm(embeds, torch.arange(embeds.shape[1])[None])
        seen = np.concatenate([call["inputs_embeds"] for call in calls["embed"]], axis=1)
        if not self._is_the_prompt(seen.shape[1], len(text)):
            return
        self._difference("embed", "inputs_embeds", "the whole text", seen, text_embeds[None])
        states = self.bundle.manifest.graphs["llm"].states
        rows = [row for pair in new for row in pair]
        start = 0
        for index, call in enumerate(calls["llm"]):
            stop = start + call[states[0].output].shape[1]
            self._difference("llm", "hidden", f"pass {index}", call["hidden"], hidden[:, stop - 1 : stop])
            for state, row in zip(states, rows, strict=True):
                self._difference("llm", state.output, f"pass {index}", call[state.output], row[:, start:stop])
            start = stop
        logits = model.llm.logits(hidden[0, len(prompt) - 1 :])
        for index, call in enumerate(calls["head"]):
            self._difference("head", "logits", f"token {index}", call["logits"], logits[index : index + 1])
        for index, token in enumerate(tokens):
            self._token(index, token, calls["head"][index]["logits"][0], logits[index].numpy())

    def _is_the_prompt(self, num_fed: int, num_expected: int) -> bool:
        """Whether the runtime fed as many tokens of text as the reference's prompt and answer have."""
        alike = num_fed == num_expected
        detail = f"{num_fed} tokens of text" + ("" if alike else f", the reference's prompt and answer {num_expected}")
        self.rules.append(Rule(level="K", name="prompt", passed=alike, detail=detail))
        return alike

    def _token(self, index: int, token: int, own: Array, reference: Array) -> None:
        """A greedy token must be the likeliest of its own logits, and of the reference's unless those nearly tie."""
        margin = float(reference.max() - reference[token])
        self.num_equal_tokens += margin == 0
        if token != int(own.argmax()):
            self.wrong_tokens.append(f"token {index}: {token} was said, but its logits prefer {int(own.argmax())}")
        elif margin > near_tie(reference, self.bundle.manifest.precision):
            self.wrong_tokens.append(f"token {index}: {token} was said, the reference prefers another by {margin:.2g}")

    def _difference(self, graph: str, tensor: str, where: str, got: Array, expected: torch.Tensor) -> None:
        want = expected.double().numpy()
        require_same_shape(got, want, f"{graph}/{tensor}", where)
        self.found.append(compare_arrays(got, want, stage=self.stage, graph=graph, tensor=tensor, where=where))


def _frames_that_fit(bundle: Bundle, loaded: LoadedModel, num_frames: int) -> int:
    """How many frames, question and answer fit in the bundle's context."""
    for count in range(num_frames, 0, -1):
        rows = len(loaded.prompt_ids(num_frames=count, question=QUESTION)) + NUM_NEW_TOKENS
        if rows <= bundle.manifest.limits.context:
            return count
    raise SpecError(
        f"--context {bundle.manifest.limits.context} does not hold one frame, a question and {NUM_NEW_TOKENS} tokens "
        "of answer; export with a larger --context"
    )
