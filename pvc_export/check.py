"""Parity: a bundle, run as users run it, against the reference model.

A rendered stream that wraps the ring twice goes through PVCStream; every output of every graph is recorded, every cache
row too, and compared with the PyTorch reference in float32:
    vision    frame by frame against the reference's own streaming form, and frame_embeds against the whole clip at once
    language  every pass, cached, against one pass over the whole conversation without any cache
Unusual: the reference makes its own resize, its own prompt and its own past, so a fault of the runtime (a mask, a slot,
a resize, a prompt) fails like a fault of a graph. What is not compared fails as well: each output must have been seen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engines import PVCStream, open_bundle
from engines.bundle import Bundle
from engines.errors import ModelError, ParityError, SpecError
from engines.session import Array, Session
from engines.vision import VisionEncoder
from pvc_ref.preprocess import resize_frame
from pvc_ref.prompt import IMAGE_CONTEXT

from .frames import Frame, render_clip
from .models import LoadedModel

PARITY_NAME = "parity.json"
THRESHOLDS = Path(__file__).with_name("thresholds.json")
QUESTION = "What do you see?"
NUM_NEW_TOKENS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One tensor of one run against its reference.

    rel_l2       |a - b| / |b| over the whole tensor
    worst_token  the largest |a_i - b_i| of any token's vector, over the root mean square of |b_i|
    """

    graph: str
    tensor: str
    index: int
    max_abs: float
    rel_l2: float
    worst_token: float
    finite: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """The worst of one tensor over the stream, held against its committed limits."""

    graph: str
    tensor: str
    num_compared: int
    worst: Difference
    rel_l2_limit: float
    worst_token_limit: float

    @property
    def passed(self) -> bool:
        worst = self.worst
        return worst.finite and worst.rel_l2 <= self.rel_l2_limit and worst.worst_token <= self.worst_token_limit

    def share(self) -> float:
        """How much of its limit the worst difference uses; above 1 fails."""
        worst = self.worst
        if not worst.finite:
            return float("inf")
        return max(worst.rel_l2 / self.rel_l2_limit, worst.worst_token / self.worst_token_limit)


@dataclass(frozen=True, kw_only=True, slots=True)
class ParityReport:
    """What was compared, and how it came out."""

    precision: str
    computed_in: str
    num_frames: int
    rows: tuple[Row, ...]
    missing: tuple[str, ...]
    num_tokens: int
    num_equal_tokens: int
    engines: str

    @property
    def passed(self) -> bool:
        return not self.missing and all(row.passed for row in self.rows)

    def summary(self) -> str:
        worst = max(self.rows, key=Row.share)
        return (
            f"{'pass' if self.passed else 'FAIL'}: {len(self.rows)} tensors over {self.num_frames} frames, worst uses "
            f"{worst.share():.0%} of its limit, {self.num_equal_tokens}/{self.num_tokens} tokens equal"
        )

    def failure_text(self) -> str:
        lines = [f"the bundle differs from the reference ({self.precision}, computed in {self.computed_in}):"]
        failed = sorted((row for row in self.rows if not row.passed), key=Row.share, reverse=True)
        lines += [
            f"  {row.graph}: {row.tensor} at {row.worst.index}: relative L2 {row.worst.rel_l2:.1e} (limit "
            f"{row.rel_l2_limit:.1e}), worst token {row.worst.worst_token:.1e} (limit {row.worst_token_limit:.1e})"
            + ("" if row.worst.finite else ", NaN or infinity")
            for row in failed[:6]
        ]
        lines += [f"  never seen, so never compared: {', '.join(self.missing)}"] if self.missing else []
        first = next((row for row in self.rows if not row.passed), None)
        lines += [
            f"The first graph on the way that leaves its limits is '{first.graph if first else '?'}'. Likely a "
            "wrong weight, "
            "mask or slot, or a dtype too narrow there. Compare in float32: pvc-export onnx --fp32"
        ]
        return "\n".join(lines)

    def receipt(self) -> dict[str, Any]:
        """The lines of the manifest that say how this bundle was checked."""
        worst = max(self.rows, key=Row.share)
        return {
            "passed": self.passed,
            "precision": self.precision,
            "computed_in": self.computed_in,
            "num_frames": self.num_frames,
            "num_tensors": len(self.rows),
            "worst_tensor": f"{worst.graph}/{worst.tensor}",
            "worst_share_of_limit": round(worst.share(), 4),
            "equal_tokens": f"{self.num_equal_tokens}/{self.num_tokens}",
            "engines": self.engines,
        }

    def to_json(self) -> dict[str, Any]:
        return {**self.receipt(), "rows": [{**asdict(row), "passed": row.passed} for row in self.rows]}


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
    if bundle.manifest.model.weights_sha256 != loaded.source.weights_sha256:
        raise ModelError(
            f"{folder} was made from '{bundle.manifest.model.name}' with weights "
            f"{bundle.manifest.model.weights_sha256[:12]}, "
            f"but the reference '{loaded.source.name}' has {loaded.source.weights_sha256[:12]}. Name the model it "
            "was made "
            "from with -m, or export the bundle again"
        )
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
    differences = Comparison(bundle=bundle, loaded=loaded, total_frames=total)
    frame_embeds = differences.vision(recorder.calls, clip, progress=lambda x: progress(0.5 + 0.4 * x))
    equal = differences.language(language_calls, frame_embeds[:num_frames], tokens)
    progress(1.0)
    return _report(bundle, differences.found, len(clip), num_tokens=len(tokens), num_equal=equal)


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
        ids = torch.cat([prompt, torch.tensor(tokens, dtype=torch.long)])
        text_embeds = model.llm.embed_tokens(ids[ids != self.loaded.token_id(IMAGE_CONTEXT)])
        embeds = self.loaded.prompt_embeds(ids, frame_embeds)
        hidden, new = model.llm(embeds, torch.arange(len(ids))[None])
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
        logits = model.llm.logits(hidden[0, len(ids) - len(tokens) - 1 :])
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
                "runtime fed "
                "other rows than the reference: a different prompt, frame count or chunk"
            )
        self.found.append(compare_arrays(got, want, graph=graph, tensor=tensor, index=index))


def compare_arrays(got: Array, want: Array, *, graph: str, tensor: str, index: int) -> Difference:
    """The difference of two arrays of one shape; a token's vector is the last axis."""
    error = got.astype(np.float64) - want
    errors, sizes = np.linalg.norm(error, axis=-1), np.linalg.norm(want, axis=-1)
    scale = max(float(np.sqrt(np.mean(sizes**2))), np.finfo(np.float64).tiny)
    return Difference(
        graph=graph,
        tensor=tensor,
        index=index,
        max_abs=float(np.abs(error).max()),
        rel_l2=float(np.linalg.norm(error) / max(np.linalg.norm(want), np.finfo(np.float64).tiny)),
        worst_token=float(errors.max()) / scale,
        finite=bool(np.isfinite(got).all()),
    )


def _frames_that_fit(bundle: Bundle, loaded: LoadedModel, num_frames: int) -> int:
    """How many frames, question and answer fit in the bundle's context."""
    for count in range(num_frames, 0, -1):
        rows = len(loaded.prompt_ids(num_frames=count, question=QUESTION)) + NUM_NEW_TOKENS
        if rows <= bundle.manifest.limits.context:
            return count
    raise SpecError(
        f"--context {bundle.manifest.limits.context} does not hold one frame, a question and {NUM_NEW_TOKENS} "
        "tokens of answer; "
        "export with a larger --context"
    )


def _report(
    bundle: Bundle, found: list[Difference], num_frames: int, *, num_tokens: int, num_equal: int
) -> ParityReport:
    manifest = bundle.manifest
    limits = load_thresholds()[manifest.precision]
    by_tensor: dict[tuple[str, str], list[Difference]] = {}
    for difference in found:
        by_tensor.setdefault((difference.graph, difference.tensor), []).append(difference)
    rows = []
    for (graph, tensor), differences in by_tensor.items():
        limit = limits[limit_key(graph, tensor)]
        share = [max(d.rel_l2 / limit["rel_l2"], d.worst_token / limit["worst_token"], 0.0 if d.finite else np.inf)
                 for d in differences]  # fmt: skip
        rows.append(
            Row(
                graph=graph,
                tensor=tensor,
                num_compared=len(differences),
                worst=differences[int(np.nanargmax(np.nan_to_num(share, nan=np.inf)))],
                rel_l2_limit=limit["rel_l2"],
                worst_token_limit=limit["worst_token"],
            )
        )
    expected = {(spec.name, tensor.name) for spec in manifest.graphs.values() for tensor in spec.outputs}
    missing = tuple(sorted(f"{graph}/{tensor}" for graph, tensor in expected - set(by_tensor)))
    return ParityReport(
        precision=manifest.precision,
        computed_in=bundle.sessions["trunk"].computes_in,
        num_frames=num_frames,
        rows=tuple(rows),
        missing=missing,
        num_tokens=num_tokens,
        num_equal_tokens=num_equal,
        engines="built, not executed here" if manifest.engines else "none",
    )


def limit_key(graph: str, tensor: str) -> str:
    """Cache rows of all layers share one limit: 'temporal/new', 'llm/new'."""
    return f"{graph}/{'new' if tensor.startswith('new.') else tensor}"


def load_thresholds() -> dict[str, dict[str, dict[str, float]]]:
    """The committed limits: precision -> 'graph/tensor' -> limits and the measured values they come from."""
    limits: dict[str, dict[str, dict[str, float]]] = json.loads(THRESHOLDS.read_text(encoding="utf-8"))["limits"]
    return limits
