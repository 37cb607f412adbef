"""Parity: a bundle, run as users run it, against the reference model.

A rendered stream that wraps the ring twice goes through PVCStream; every output of every graph is recorded, every cache
row too, and compared with the PyTorch reference in float32:
    vision    frame by frame against the reference's own streaming form, and frame_embeds against the whole clip at once
    language  every pass, cached, against one pass over the whole conversation without any cache
    weights   every parameter of the reference, cast to the bundle's precision, bit for bit in its graph's file
Unusual: the reference makes its own resize, its own prompt and its own past, so a fault of the runtime (a mask, a slot,
a resize, a prompt) fails like a fault of a graph. What is not compared fails as well: each output must have been seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from engines import PVCStream, open_bundle
from engines.bundle import Bundle, graph_path
from engines.errors import ParityError, SpecError
from engines.session import Array, Session
from engines.vision import VisionEncoder
from pvc_ref.preprocess import resize_frame
from pvc_ref.prompt import IMAGE_CONTEXT

from .frames import Frame, render_clip
from .graphs import graph_parameters
from .models import LoadedModel, require_same_weights
from .parity import Difference, ParityReport, compare_arrays, worst_rows
from .precision import cast_model
from .same_weights import missing_weights

QUESTION = "What do you see?"
NUM_NEW_TOKENS = 16


def check_bundle(
    folder: Path,
    loaded: LoadedModel,
    *,
    frames: Iterable[Frame] | None = None,
    progress: Callable[[float], None] = lambda _: None,
) -> ParityReport:
    """Run the bundle beside its reference. `frames` (BGR) replaces the rendered clip of 2 W + 2 frames.

    Raises ModelError if `loaded` is not the model the bundle was made from. A difference is not an error here: it is
    in the report.
    """
    bundle = open_bundle(folder)
    require_same_weights(bundle.manifest, loaded)
    if frames is None:
        frames = render_clip(2 * bundle.manifest.limits.window + 2)
    clip = list(frames)
    recorder = Recorder(bundle)
    num_frames = _frames_that_fit(bundle, loaded, len(clip))
    total = len(clip) if bundle.manifest.time_mode == "fixed" else None
    stream = PVCStream(recorder.bundle, total_frames=total)
    for index, frame in enumerate(clip[:num_frames]):
        stream.push(frame)
        progress(0.5 * index / len(clip))
    tokens = stream.ask(QUESTION, max_new_tokens=NUM_NEW_TOKENS).token_ids
    language_calls = recorder.calls
    if num_frames < len(clip):  # the context is short: the vision side still sees the whole clip
        recorder.calls = {name: [] for name in bundle.sessions}
        encoder = VisionEncoder(recorder.bundle.sessions, time_divisor=total or 1)
        for frame in clip:
            encoder.commit(encoder.encode(resize_frame(frame[..., ::-1], size=bundle.manifest.shape.image_size)))
    comparison = Comparison(bundle=bundle, loaded=loaded, total_frames=total)
    frame_embeds = comparison.vision(recorder.calls, clip, progress=lambda x: progress(0.5 + 0.4 * x))
    num_equal_tokens = comparison.language(language_calls, frame_embeds[:num_frames], tokens)
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
        num_tokens=len(tokens),
        num_equal_tokens=num_equal_tokens,
        engines="built, not executed here" if bundle.manifest.engines else "none",
    )


class Recorder:
    """Wraps a bundle's sessions and keeps what each run took and returned."""

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
    total_frames: int | None
    found: list[Difference] = field(default_factory=list)

    @torch.no_grad()
    def vision(
        self, calls: Mapping[str, list[dict[str, Array]]], clip: list[Frame], *, progress: Callable[[float], None]
    ) -> torch.Tensor:
        """Compare every frame; return the reference's embeddings of the whole clip, (T, M, E)."""
        model, window = self.loaded.model, self.bundle.manifest.limits.window
        size = model.config.vision.image_size
        pixels = torch.from_numpy(np.stack([resize_frame(frame[..., ::-1], size=size) for frame in clip]))
        whole = model.encode_clip(pixels[None], window=window, total_frames=self.total_frames)[0]
        state = None
        for t in range(len(clip)):
            want, state = model.frame_outputs(pixels[t : t + 1], state, window=window, total_frames=self.total_frames)
            rows = [row for pair in want.new for row in pair]
            states = self.bundle.manifest.graphs["temporal"].states
            self._compare("trunk", t, calls, {"trunk_features": want.trunk_features})
            expected = {"features": want.features} | {s.output: row for s, row in zip(states, rows, strict=True)}
            self._compare("temporal", t, calls, expected)
            self._compare("compressor", t, calls, {"frame_embeds": whole[t : t + 1]})
            progress((t + 1) / len(clip))
        return whole

    @torch.no_grad()
    def language(
        self, calls: Mapping[str, list[dict[str, Array]]], frame_embeds: torch.Tensor, tokens: tuple[int, ...]
    ) -> int:
        """Compare every LLM pass with one uncached pass; return how many tokens the reference would choose too."""
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
        self._difference("embed", "inputs_embeds", 0, seen, text_embeds[None])
        states = self.bundle.manifest.graphs["llm"].states
        rows = [row for pair in new for row in pair]
        start = 0
        for index, call in enumerate(calls["llm"]):
            stop = start + call[states[0].output].shape[1]
            self._difference("llm", "hidden", index, call["hidden"], hidden[:, stop - 1 : stop])
            for state, row in zip(states, rows, strict=True):
                self._difference("llm", state.output, index, call[state.output], row[:, start:stop])
            start = stop
        logits = model.llm.logits(hidden[0, len(prompt) - 1 :])
        for index, call in enumerate(calls["head"]):
            self._difference("head", "logits", index, call["logits"], logits[index : index + 1])
        return sum(int(row.argmax()) == token for row, token in zip(logits, tokens, strict=False))

    def _compare(
        self, graph: str, index: int, calls: Mapping[str, list[dict[str, Array]]], want: dict[str, torch.Tensor]
    ) -> None:
        for tensor, expected in want.items():
            self._difference(graph, tensor, index, calls[graph][index][tensor], expected)

    def _difference(self, graph: str, tensor: str, index: int, got: Array, expected: torch.Tensor) -> None:
        want = expected.double().numpy()
        if got.shape != want.shape:
            raise ParityError(
                f"graph '{graph}' returned '{tensor}' as {got.shape} at {index}, the reference {want.shape}. The "
                "runtime fed other rows than the reference: a different prompt, frame count or chunk"
            )
        self.found.append(compare_arrays(got, want, graph=graph, tensor=tensor, index=index))


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
