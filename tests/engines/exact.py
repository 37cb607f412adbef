"""A whole-number model as a bundle: six graphs without files or a runtime, a tenth of a millisecond each.

Every value is a whole number below a prime, which float32 represents exactly. So neither the order of sums nor the cut
into passes changes a bit, and a stream's state must equal what `Whole` computes from a plain list, without ring, slots,
masks or caches. Attention is linear (q * sum of k * v), over the rows that the mask or index marks as readable.

Dimension key: as in engines/spec.py, one stream
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from engines.bundle import TOKENIZER_NAME, Bundle
from engines.graph_specs import graph_specs
from engines.manifest import FORMAT_VERSION, ImageSpec, Manifest, ModelSource
from engines.many.slab import part
from engines.memory import Array, HostMemory, Memory, Tensor
from engines.prompt import PromptSpec, PromptTokenizer
from engines.spec import CacheUpdate, GraphSpec, ModelShape, Spelling, StateSpec, StreamLimits
from pvc_ref.prompt import byte_tokenizer

P = 65521  # a prime; a sum of a million products of two values still fits in int64
SHAPE = ModelShape(
    image_size=4,
    num_positions=3,
    vision_width=4,
    num_trunk_layers=1,
    num_temporal_layers=2,
    vision_heads=2,
    vision_head_dim=2,
    num_frame_tokens=2,
    num_compressor_attentions=0,
    llm_width=4,
    num_llm_layers=2,
    num_kv_heads=2,
    llm_head_dim=2,
    vocab_size=264,
    max_positions=1024,
)
LIMITS = StreamLimits(window=3, context=96, chunk=6, bucket=32)  # a ring that wraps soon, frames in several passes
PROMPT = PromptSpec(
    start="<s>",
    frame_prefix="F{index}:",
    image_prefix="I{index}:",
    image_tag="<image>",
    image_start="<img>",
    image_end="</img>",
    after_frame="\n",
    ask_suffix="<|im_end|>",
    next_turn="<|im_start|>",
    stop_tokens=("</s>",),
)
STOP_ID = 257
Rows = list[Array]
"""Keys and values of every layer, in the order of the graph's states."""


def exact_bundle(
    folder: Path,
    *,
    trained_frames: int = 96,
    cache_update: CacheUpdate = "rows",
    spelling: Spelling = "split",
    memory: Memory | None = None,
    limits: StreamLimits = LIMITS,
) -> Bundle:
    """Return a bundle in `memory`, by default the host's. Its tokenizer is written into `folder`."""
    (folder / TOKENIZER_NAME).write_text(byte_tokenizer().to_str(), encoding="utf-8")
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        created_utc="2026-01-01T00:00:00+00:00",
        model=ModelSource(name="exact", random_weights=True, seed=0, weights_sha256="", config={}),
        shape=SHAPE,
        limits=limits,
        target="cpu",
        precision="fp32",
        islands=(),
        time_mode="absolute",
        trained_frames=trained_frames,
        prompt=PROMPT,
        images=ImageSpec(num_repeats=2, layout="tile_streams", max_tiles=1),
        graphs=graph_specs(SHAPE, limits, "fp32", spelling, cache_update=cache_update),
        engines={},
        versions={},
        files={},
        parity={"passed": True},
    )
    memory = memory or HostMemory()
    sessions = {
        name: ExactSession(spec, HostMemory() if name == "embed" else memory) for name, spec in manifest.graphs.items()
    }
    tokenizer = PromptTokenizer(folder / TOKENIZER_NAME, PROMPT)
    return Bundle(folder=folder, manifest=manifest, sessions=sessions, tokenizer=tokenizer, runs_on="whole numbers")


class ExactSession:
    """One graph, with tensors in any memory."""

    computes_in = "whole numbers"

    def __init__(self, spec: GraphSpec, memory: Memory) -> None:
        self.spec, self.memory = spec, memory

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Raises SpecError for inputs that do not fit the spec."""
        arrays = {tensor.name: self.memory.to_host(inputs[tensor.name]) for tensor in self.spec.inputs}
        for tensor in self.spec.inputs:
            tensor.check(arrays[tensor.name], self.spec.name)
        whole = {name: array if array.dtype == bool else _whole(array) for name, array in arrays.items()}
        batch = len(arrays[self.spec.inputs[0].name])
        found = [self._compute({name: array[i : i + 1] for name, array in whole.items()}) for i in range(batch)]
        outputs: dict[str, Tensor] = {}
        for tensor in self.spec.outputs:
            rows = np.stack([one[tensor.name] for one in found]).astype(np.float32)
            if tensor.name in self.spec.aliases:
                outputs[tensor.name] = self._scatter(inputs, arrays, tensor.name, rows)
            else:
                outputs[tensor.name] = self.memory.from_host(rows, tensor.dtype)
        return outputs

    def _compute(self, x: dict[str, Array]) -> dict[str, Array]:
        name, states = self.spec.name, self.spec.states
        if name == "trunk":
            return {"trunk_features": trunk(x["frame"][0])}
        if name == "temporal":
            past = [np.moveaxis(x[s.input], s.slot_axis, 1)[0][x["slot_mask"][0]] for s in states]
            features, new = temporal(x["trunk_features"][0], int(x["frame_time"][0]), past)
            return {"features": features} | {s.output: rows for s, rows in zip(states, new, strict=True)}
        if name == "compressor":
            return {"frame_embeds": compressor(x["features"][0], int(x["frame_time"][0]))}
        if name == "embed":
            return {"inputs_embeds": embed(x["input_ids"][0])}
        if name == "llm":
            past = [s.as_rows(x[s.input])[0][self._in_use(x, s)] for s in states]
            hidden, new = llm(x["inputs_embeds"][0], x["position_ids"][0], past)
            return {"hidden": hidden[-1:]} | {s.output: rows for s, rows in zip(states, new, strict=True)}
        return {"logits": head(x["hidden"][0, 0])}

    def _in_use(self, x: dict[str, Array], state: StateSpec) -> Array:
        count = x[state.input].shape[state.slot_axis]
        return np.arange(count) < x["write_index"][0] if self.spec.aliases else x["attention_mask"][0, :count] == 1

    def _scatter(self, inputs: Mapping[str, Tensor], arrays: dict[str, Array], output: str, rows: Array) -> Tensor:
        """Write rows into the given cache, as a graph that updates it in place does."""
        state = next(state for state in self.spec.states if state.output == output)
        cache, dense = inputs[state.input], np.ascontiguousarray(np.moveaxis(rows, 1, state.slot_axis))
        for index, start in enumerate(arrays["write_index"]):
            new = self.memory.from_host(dense[index : index + 1], state.dtype)
            self.memory.place(part(cache, index, 1), new, state, int(start), rows.shape[1])
        return cache


def trunk(frame: Array) -> Array:
    """(S, S, 3) -> (N, C)."""
    flat = _whole(frame).reshape(-1)
    shape = SHAPE.num_positions, SHAPE.vision_width
    mixed: Array = (flat @ _table("trunk", flat.size, shape[0] * shape[1]) % P).reshape(shape)
    return mixed


def temporal(x: Array, time: int, past: Rows) -> tuple[Array, Rows]:
    """(N, C) and the readable rows (T, N, H, D) of every layer -> (N - 1, C), and this frame's rows (N, H, D)."""
    new: Rows = []
    for layer in range(SHAPE.num_temporal_layers):
        z = (x + (time + 1) * _table(f"time {layer}", SHAPE.vision_width)) % P
        q, k, v = _projected(z, f"temporal {layer}", SHAPE.vision_heads)
        seen = (past[2 * layer] * past[2 * layer + 1] % P).sum(0) + k * v
        x = (z + (q * (seen % P)).reshape(z.shape)) % P
        new += [k, v]
    return x[1:], new


def compressor(features: Array, time: int) -> Array:
    """(N - 1, C) -> (M, E)."""
    size = SHAPE.num_frame_tokens * SHAPE.llm_width
    mixed = (features.reshape(-1) @ _table("compressor", features.size, size) + time) % P
    return mixed.reshape(SHAPE.num_frame_tokens, SHAPE.llm_width)


def embed(ids: Array) -> Array:
    """(L,) -> (L, E)."""
    embeds: Array = (ids[:, None] + 1) ** 2 * _table("embed", SHAPE.llm_width) % P
    return embeds


def llm(x: Array, positions: Array, past: Rows) -> tuple[Array, Rows]:
    """(L, E) and the rows (S, K, D) before them in every layer -> hidden (L, E), and the new rows (L, K, D)."""
    new: Rows = []
    for layer in range(SHAPE.num_llm_layers):
        z = (x + (positions[:, None] + 1) * _table(f"position {layer}", SHAPE.llm_width)) % P
        q, k, v = _projected(z, f"llm {layer}", SHAPE.num_kv_heads)
        seen = (past[2 * layer] * past[2 * layer + 1] % P).sum(0) + np.cumsum(k * v % P, axis=0)
        x = (z + (q * (seen % P)).reshape(z.shape)) % P
        new += [k, v]
    return x, new


def head(hidden: Array) -> Array:
    """(E,) -> (V,). At each token, one answer in four ends."""
    logits: Array = hidden @ _table("head", SHAPE.llm_width, SHAPE.vocab_size) % P
    if hidden[0] % 4 == 0:
        logits[STOP_ID] = P
    return logits


def _projected(z: Array, name: str, heads: int) -> list[Array]:
    """Query, key and value of each row: (..., heads, D)."""
    mixed = z + 3 * np.roll(z, 1, axis=-1)
    shape = (*z.shape[:-1], heads, z.shape[-1] // heads)
    return [((mixed * _table(f"{name} {part}", z.shape[-1]) + 7) % P).reshape(shape) for part in "qkv"]


@cache
def _table(name: str, *shape: int) -> Array:
    """The weights with this name."""
    table: Array = np.random.default_rng(zlib.crc32(name.encode())).integers(1, P, shape)
    return table


def _whole(array: Array) -> Array:
    return array.astype(np.int64)


@dataclass(frozen=True)
class Kept:
    """A kept question and its answer."""

    question: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Noted:
    """Notes at the start of a stream."""

    text: str


Event = int | Kept | Noted
"""A frame, by its number; a kept question; or, only as the first event, notes."""


class Whole:
    """The required state of a stream after a list of events: whole clip and whole conversation at once, no cache.

    frame_rows  for every frame, the rows (N, H, D) that went into its ring
    embeds      (L, E) of the conversation so far; `pending` is the text after it that still waits
    """

    def __init__(self, bundle: Bundle, frames: Sequence[Array], events: Sequence[Event]) -> None:
        self._encode, self._window = bundle.tokenizer.encode, bundle.manifest.limits.window
        self.features: list[Array] = []
        self.frame_rows: list[Rows] = []
        self.embeds, self.pending = np.zeros((0, SHAPE.llm_width), np.int64), PROMPT.start
        for event in events:
            if isinstance(event, Kept):
                self._say(self.pending + event.question + PROMPT.ask_suffix, embed(np.array(event.token_ids, np.int64)))
                self.pending = PROMPT.next_turn
            elif isinstance(event, Noted):
                self.pending += event.text + "\n"
            else:
                features, rows, embeds = self.seen(frames[event])
                self.features.append(features)
                self.frame_rows.append(rows)
                self._say(f"{self.pending}F{len(self.features)}:<img>", embeds)
                self.pending = "</img>\n"
        self.rows = self._llm(self.embeds)[1]

    def seen(self, frame: Array) -> tuple[Array, Rows, Array]:
        """The next frame's trunk features, rows, and embeddings (M, E)."""
        time, visible = len(self.frame_rows), self.frame_rows[max(len(self.frame_rows) - self._window + 1, 0) :]
        empty = np.zeros((0, SHAPE.num_positions, SHAPE.vision_heads, SHAPE.vision_head_dim), np.int64)
        num_states = 2 * SHAPE.num_temporal_layers
        past = [np.stack([rows[i] for rows in visible]) if visible else empty for i in range(num_states)]
        features = trunk(frame[..., ::-1])
        seen, rows = temporal(features, time, past)
        return features, rows, compressor(seen, time)

    def logits(self, question: str, token_ids: Sequence[int]) -> Array:
        """float32 (len(token_ids) + 1, V): the logits after a question, and after each of these tokens."""
        asked = embed(np.array(self._encode(self.pending + question + PROMPT.ask_suffix)))
        rows = np.concatenate([self.embeds, asked, embed(np.array(token_ids, np.int64))])
        hidden, _ = self._llm(rows)
        return np.stack([head(row) for row in hidden[len(rows) - len(token_ids) - 1 :]]).astype(np.float32)

    def answer(self, question: str, max_new_tokens: int) -> tuple[tuple[int, ...], bool]:
        """The likeliest tokens, and whether the answer ended by itself."""
        token_ids: tuple[int, ...] = ()
        while (token := int(self.logits(question, token_ids)[-1].argmax())) != STOP_ID:
            token_ids += (token,)
            if len(token_ids) == max_new_tokens:
                return token_ids, False
        return token_ids, True

    def num_rows(self, text: str) -> int:
        """The number of rows for the waiting text and `text`."""
        return len(self._encode(self.pending + text))

    def _say(self, text: str, behind: Array) -> None:
        self.embeds = np.concatenate([self.embeds, embed(np.array(self._encode(text))), behind])

    def _llm(self, embeds: Array) -> tuple[Array, Rows]:
        empty: Any = np.zeros((0, SHAPE.num_kv_heads, SHAPE.llm_head_dim), np.int64)
        return llm(embeds, np.arange(len(embeds)), [empty] * (2 * SHAPE.num_llm_layers))
