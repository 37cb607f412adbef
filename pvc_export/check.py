"""Parity: a bundle, run as users run it, against the reference model.

A rendered stream that wraps the ring twice goes through PVCStream; every output of every graph is recorded, every cache
row too, and compared with the PyTorch reference in float32:
    vision    frame by frame against the reference's own streaming form, and frame_embeds against the whole clip;
              then the clock jumps to the last trained frame and beyond
    language  every pass, cached, against one pass over the whole conversation without any cache; then one pass at the
              far end of the context
    batch     where a bundle serves several streams, each row of a batch against its own run
    tokens    each is the likeliest of its logits, and the reference's choice but for near ties
    weights   every parameter of the reference, cast to the bundle's precision, bit for bit in its graph's file
Unusual: the reference makes its own resize, its own prompt and its own past, so a fault of the runtime (a mask, a slot,
a resize, a prompt) fails like a fault of a graph. What is not compared fails as well: each output must have been seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from engines import PVCStream, open_bundle
from engines.bundle import Bundle, graph_path
from engines.errors import NonFiniteError, ParityError, SpecError
from engines.session import Array, Session
from engines.vision import VisionEncoder
from pvc_ref import VisionState
from pvc_ref.preprocess import resize_frame
from pvc_ref.prompt import IMAGE_CONTEXT

from .frames import Frame, render_clip
from .graphs import graph_parameters
from .models import LoadedModel, require_same_weights
from .parity import Difference, ParityReport, compare_arrays, near_tie, worst_rows
from .precision import cast_model
from .probes import probe_batch, probe_context
from .same_weights import missing_weights

QUESTION = "What do you see?"
NUM_NEW_TOKENS = 16
FAR_FRAME = 4096
"""A frame that a stream meets after minutes: beyond float16's integers, where a narrow clock would show."""

Calls = Mapping[str, list[dict[str, Array]]]
"""What every run of every graph returned, in order."""


def check_bundle(
    folder: Path, loaded: LoadedModel, *, progress: Callable[[float], None] = lambda _: None
) -> ParityReport:
    """Run the bundle beside its reference on a rendered clip of 2 W + 2 frames.

    Raises ModelError if `loaded` is not the model the bundle was made from, and ParityError where nothing can be
    compared: other shapes, or NaN. A difference is not an error here: it is in the report.
    """
    bundle = open_bundle(folder, unchecked=True)
    require_same_weights(bundle.manifest, loaded)
    clip = list(render_clip(2 * bundle.manifest.limits.window + 2))
    comparison = Comparison(bundle=bundle, loaded=loaded)
    try:
        num_tokens = _stream_and_compare(comparison, clip, progress)
        comparison.found += probe_batch(bundle)
        comparison.found += probe_context(bundle, loaded)
    except NonFiniteError as error:
        raise ParityError(f"{error} (while checking {folder})") from error
    num_weights, wrong_weights = compare_weights(bundle, loaded)
    progress(1.0)
    outputs = {f"{spec.name}/{tensor.name}" for spec in bundle.manifest.graphs.values() for tensor in spec.outputs}
    return ParityReport(
        precision=bundle.manifest.precision,
        computed_in=bundle.sessions["trunk"].computes_in,
        num_frames=len(clip),
        rows=worst_rows(comparison.found, bundle.manifest.precision),
        missing=tuple(sorted(outputs - {f"{found.graph}/{found.tensor}" for found in comparison.found})),
        num_weights=num_weights,
        wrong_weights=wrong_weights,
        num_tokens=num_tokens,
        num_equal_tokens=comparison.num_equal_tokens,
        wrong_tokens=tuple(comparison.wrong_tokens),
        engines="built, not executed here" if bundle.manifest.engines else "none",
    )


def _stream_and_compare(comparison: Comparison, clip: list[Frame], progress: Callable[[float], None]) -> int:
    """Push the clip, ask, let the clock jump; compare all of it. Returns the number of tokens of the answer."""
    bundle = comparison.bundle
    recorder = Recorder(bundle)
    num_frames = _frames_that_fit(bundle, comparison.loaded, len(clip))
    total = len(clip) if bundle.manifest.time_mode == "fixed" else None
    stream = PVCStream(recorder.bundle, total_frames=total)
    for index, frame in enumerate(clip[:num_frames]):
        stream.push(frame)
        progress(0.4 * index / len(clip))
    tokens = stream.ask(QUESTION, max_new_tokens=NUM_NEW_TOKENS).token_ids
    language_calls, encoder = recorder.calls, stream.vision
    if num_frames < len(clip):  # the context is short: the vision side still sees the whole clip
        recorder.calls = {name: [] for name in bundle.sessions}
        encoder = VisionEncoder(recorder.bundle.sessions, time_divisor=total or 1)
        for frame in clip:
            encoder.commit(encoder.encode(_pixels(frame, bundle)))
    jumps = [] if total else _jump(encoder, clip, bundle)
    frame_embeds = comparison.vision(recorder.calls, clip, jumps, total, lambda x: progress(0.4 + 0.5 * x))
    comparison.language(language_calls, frame_embeds[:num_frames], tokens)
    return len(tokens)


def _jump(encoder: VisionEncoder, clip: list[Frame], bundle: Bundle) -> list[tuple[int, Frame]]:
    """Let the clock run ahead to frames that a clip does not reach, and encode one there. Slots stay where they are."""
    ring, jumps = encoder.ring, []
    for target, frame in zip((bundle.manifest.trained_frames - 1, FAR_FRAME), clip, strict=False):
        if target > ring.num_frames:
            ring.num_frames += -(-(target - ring.num_frames) // ring.window) * ring.window
            jumps.append((ring.num_frames, frame))
            encoder.commit(encoder.encode(_pixels(frame, bundle)))
    return jumps


def _pixels(frame: Frame, bundle: Bundle) -> Array:
    return resize_frame(frame[..., ::-1], size=bundle.manifest.shape.image_size)


class Recorder:
    """Wraps a bundle's sessions and keeps what each run returned."""

    def __init__(self, bundle: Bundle) -> None:
        self.calls: dict[str, list[dict[str, Array]]] = {name: [] for name in bundle.sessions}
        self.bundle = replace(bundle, sessions={name: _Recorded(s, self) for name, s in bundle.sessions.items()})


class _Recorded:
    def __init__(self, session: Session, recorder: Recorder) -> None:
        self._session, self._recorder = session, recorder
        self.spec, self.computes_in = session.spec, session.computes_in

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        outputs = self._session.run(inputs)
        self._recorder.calls[self.spec.name].append(dict(outputs))
        return outputs


@dataclass(slots=True)
class Comparison:
    """The reference's side of a stream, and every difference found."""

    bundle: Bundle
    loaded: LoadedModel
    found: list[Difference] = field(default_factory=list)
    num_equal_tokens: int = 0
    wrong_tokens: list[str] = field(default_factory=list)

    @torch.no_grad()
    def vision(
        self,
        calls: Calls,
        clip: list[Frame],
        jumps: list[tuple[int, Frame]],
        total_frames: int | None,
        progress: Callable[[float], None],
    ) -> torch.Tensor:
        """Compare every frame, then those after the clock jumped; return the reference's embeddings (T, M, E)."""
        model, window = self.loaded.model, self.bundle.manifest.limits.window
        pixels = torch.from_numpy(np.stack([_pixels(frame, self.bundle) for frame in clip]))
        whole = model.encode_clip(pixels[None], window=window, total_frames=total_frames)[0]
        states = self.bundle.manifest.graphs["temporal"].states
        times = [*range(len(clip)), *(time for time, _ in jumps)]
        state: VisionState | None = None
        for index, time in enumerate(times):
            jumped = index >= len(clip)
            if jumped and state is not None:
                state = VisionState(past=state.past, num_frames=time)
            frame = pixels[index] if not jumped else torch.from_numpy(_pixels(jumps[index - len(clip)][1], self.bundle))
            want, state = model.frame_outputs(frame[None], state, window=window, total_frames=total_frames)
            rows = [row for pair in want.new for row in pair]
            expected = {
                "trunk": {"trunk_features": want.trunk_features},
                "temporal": {"features": want.features} | {s.output: row for s, row in zip(states, rows, strict=True)},
                "compressor": {"frame_embeds": want.frame_embeds if jumped else whole[index : index + 1]},
            }
            for graph, tensors in expected.items():
                for tensor, value in tensors.items():
                    self._difference(graph, tensor, f"frame {time}", calls[graph][index][tensor], value)
            progress((index + 1) / len(times))
        return whole

    @torch.no_grad()
    def language(self, calls: Calls, frame_embeds: torch.Tensor, tokens: tuple[int, ...]) -> None:
        """Compare every LLM pass with one uncached pass, and every token with what both sides' logits say."""
        model = self.loaded.model
        prompt = self.loaded.prompt_ids(num_frames=len(frame_embeds), question=QUESTION)
        # The answer is embedded on its own: a random model may well say <IMG_CONTEXT> itself.
        answer = torch.tensor(tokens, dtype=torch.long)
        text = torch.cat([prompt[prompt != self.loaded.token_id(IMAGE_CONTEXT)], answer])
        text_embeds = model.llm.embed_tokens(text)
        embeds = torch.cat(
            [self.loaded.prompt_embeds(prompt, frame_embeds), model.llm.embed_tokens(answer)[None]], dim=1
        )
        hidden, new = model.llm(embeds, torch.arange(embeds.shape[1])[None])
        seen = np.concatenate([call["inputs_embeds"] for call in calls["embed"]], axis=1)
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
        if got.shape != want.shape:
            raise ParityError(
                f"graph '{graph}' returned '{tensor}' as {got.shape} at {where}, the reference {want.shape}. The "
                "runtime fed other rows than the reference: a different prompt, frame count or chunk"
            )
        self.found.append(compare_arrays(got, want, graph=graph, tensor=tensor, where=where))


def compare_weights(bundle: Bundle, loaded: LoadedModel) -> tuple[int, dict[str, list[str]]]:
    """How many weights the graphs' files hold bit for bit, and by graph the names of those that they do not."""
    model = cast_model(loaded.model, bundle.manifest.precision)
    num_equal, wrong = 0, dict[str, list[str]]()
    for graph in bundle.manifest.graphs:
        parameters = graph_parameters(model, graph)
        if missing := missing_weights(bundle.folder / graph_path(graph), parameters):
            wrong[graph] = missing
        num_equal += len(parameters) - len(missing)
    return num_equal, wrong


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
