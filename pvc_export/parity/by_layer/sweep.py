"""Sweep over the LLM's layers, one after the other: each piece of the graph runs on the reference's input.

Two texts go through the reference: a conversation about the clip, and drawn tokens whose cache rows are repeated, with
rotated keys, to fill a whole context. At each layer the reference, its twin and the piece run the same rows after the
same caches; the difference between the first two is the noise from which the piece's limits come.
Dimension key:  B streams   L rows   K key/value heads   D head dim   E width
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engines.cache import LinearCache
from engines.manifest import Manifest
from engines.memory import Array
from engines.session import Session
from engines.spec import GraphSpec
from pvc_ref import PVC
from pvc_ref.llm import KeyValue, causal_bias

from ...graphs.precision import TORCH_DTYPE
from ..edge_cases import NUM_EARLY, NUM_PAST, edge_lengths, fill_cache, joined_feeds, new_rows, repeated_rows
from ..evidence import Evidence
from ..float16_on_cpu import Float16Products
from ..metrics import Difference, compare_arrays
from ..places import Place, Rung, positions_place, stream_place
from ..recording import Progress, to_numpy
from ..rounding import Reference
from .cut import CutDecoder
from .held import held

NUM_SINGLE = 4
"""Last rows of the conversation, fed one by one as in decoding."""
EDGES_A_LAYER = 6
"""Places at bucket edges checked per layer; the layers take turns, so that together they cover all."""
OVERFLOW = "the reference's values overflow the bundle's dtype before these layers"


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """Rows x (1, L, E) after the first `length` rows of past, a key and a value (1, P, K, D). All are float32, rounded
    to the bundle's dtype."""

    where: Place
    x: Tensor
    past: KeyValue
    length: int

    @property
    def positions(self) -> Tensor:
        return torch.arange(self.length, self.length + self.x.shape[1])[None]


@dataclass(frozen=True, slots=True)
class Swept:
    """The evidence, and the reference's hidden rows of the conversation (1, L, E); None if the sweep ended early."""

    evidence: Evidence
    hidden: Tensor | None


@torch.no_grad()
def sweep(cut: CutDecoder, manifest: Manifest, reference: Reference, conversation: Tensor, progress: Progress) -> Swept:
    """Check every layer. conversation: embeddings (1, L, E) in float32."""
    texts = [conversation, _drawn(reference, min(NUM_PAST, manifest.limits.context))]
    found = list[Difference]()
    for layer in range(cut.num_layers):
        with held(reference, f"llm.layers.{layer}", cast=True):
            step = _Layer(layer, cut, manifest, reference)
            conversation, drawn = (step.rounded(x) for x in texts)
            texts, pasts = map(list, zip(*map(step.whole, (conversation, drawn)), strict=True))
            for call in (*step.of_a_text(conversation, pasts[0]), *step.of_a_context(drawn, pasts[1])):
                found += step.compare(call)
            found += step.compare_streams(drawn, pasts[1])
        if not all(torch.isfinite(step.rounded(x)).all() for x in texts):
            left = f"layers {layer + 1} to {cut.num_layers - 1}"
            return Swept(Evidence(differences=tuple(found), not_executed={left: OVERFLOW}), None)
        progress((layer + 1) / cut.num_layers)
    return Swept(Evidence(differences=tuple(found)), reference.model.llm.norm(texts[0]))


def _drawn(reference: Reference, num_rows: int) -> Tensor:
    """Embeddings (1, L, E) of drawn tokens."""
    llm = reference.model.llm
    ids = np.random.default_rng(1).integers(0, llm.config.vocab_size, (1, num_rows))
    return llm.embed_tokens(torch.from_numpy(ids))  # type: ignore[no-any-return]


class _Layer:
    """One layer of the model and of its twin, and the graph's piece for it."""

    def __init__(self, index: int, cut: CutDecoder, manifest: Manifest, reference: Reference) -> None:
        self.index, self.is_last = index, index == cut.num_layers - 1
        self.limits, self.precision, self.reference = manifest.limits, manifest.precision, reference
        self.session: Session = cut.open(index, manifest.precision)
        self.spec: GraphSpec = self.session.spec
        self.cache = LinearCache(self.spec, self.session.memory)

    def rounded(self, x: Tensor) -> Tensor:
        """Round to the bundle's dtype, as float32."""
        return x.to(TORCH_DTYPE[self.precision]).float()

    def whole(self, x: Tensor) -> tuple[Tensor, KeyValue]:
        """Run a text (1, L, E) through the reference's layer without a cache. Returns the next layer's input and this
        layer's cache rows."""
        out, (key, value) = self._run(self.reference.model, torch.float32, x, None, torch.arange(x.shape[1])[None])
        return out, (self.rounded(key), self.rounded(value))

    def _run(
        self, model: PVC, dtype: torch.dtype, x: Tensor, past: KeyValue | None, positions: Tensor
    ) -> tuple[Tensor, KeyValue]:
        x, llm = x.to(dtype), model.llm
        pair = None if past is None else (past[0].to(dtype), past[1].to(dtype))
        bias = causal_bias(x, 0 if pair is None else pair[0].shape[1], None)
        with Float16Products():
            found: tuple[Tensor, KeyValue] = llm.layers[self.index](x, llm.angles(positions, dtype), pair, bias)
        return found

    # -- what is tried -------------------------------------------------------------------------------------------

    def of_a_text(self, x: Tensor, past: KeyValue) -> Iterator[Call]:
        """The calls of a stream with this text: a first pass of at most `chunk` rows, a second one, and single rows."""
        ends = [0, min(self.limits.chunk, x.shape[1] // 2), x.shape[1] - NUM_SINGLE]
        for index, (start, stop) in enumerate(zip(ends, ends[1:], strict=False)):
            yield Call(where=Place("pass", index), x=x[:, start:stop], past=past, length=start)
        for row in range(ends[-1], x.shape[1]):
            yield Call(where=Place("row", row), x=x[:, row : row + 1], past=past, length=row)

    def of_a_context(self, x: Tensor, rows: KeyValue) -> Iterator[Call]:
        """A frame's rows at the far end of a full cache, and single rows at bucket edges and between them."""
        capacity, num_rows = self.cache.capacity, min(self.spec.dims["rows"].opt, x.shape[1])
        past = repeated_rows(self.reference.model.llm, rows, capacity)
        past = self.rounded(past[0]), self.rounded(past[1])
        length = capacity - num_rows
        yield Call(where=positions_place(length, capacity - 1), x=x[:, :num_rows], past=past, length=length)
        edges = edge_lengths(self.limits, capacity)
        step = max(len(edges) // EDGES_A_LAYER, 1)
        for at in edges[self.index % step :: step]:
            where = Place("early", at, f"position {at}") if at < NUM_EARLY else Place("position", at)
            yield Call(where=where, x=x[:, at % x.shape[1]][:, None], past=past, length=at)

    # -- how it is held ------------------------------------------------------------------------------------------

    def compare(self, call: Call) -> Iterator[Difference]:
        """Compare the piece with the reference's layer, and measure that layer's rounding noise."""
        yield from self._held(call, new_rows(self.session, self._feeds(call)))

    def compare_streams(self, x: Tensor, past: KeyValue) -> Iterator[Difference]:
        """Compare streams of different lengths in one pass with the reference's runs of each. Empty for one stream."""
        num_streams = self.limits.streams
        if num_streams == 1:
            return
        lengths = [(x.shape[1] - 1) * stream // (num_streams - 1) for stream in range(num_streams)]
        calls = [
            Call(where=stream_place(stream, num_streams), x=x[:, at : at + 1], past=past, length=at)
            for stream, at in enumerate(lengths)
        ]
        # The same cache is filled for each call, so its arrays are copied before the next.
        feeds = [{name: array.copy() for name, array in self._feeds(call).items()} for call in calls]
        entries = np.concatenate([feed.pop("inputs_embeds") for feed in feeds])
        together = new_rows(self.session, {"inputs_embeds": entries, **joined_feeds(self.spec, feeds, 1)})
        for stream, call in enumerate(calls):
            yield from self._held(call, {name: array[stream : stream + 1] for name, array in together.items()})

    @property
    def _end(self) -> str:
        """Name of the output that is the next layer's input."""
        return self.spec.outputs[0].name

    def _feeds(self, call: Call) -> dict[str, Array]:
        """Fill the cache and return the piece's inputs."""
        past = {
            state.input: rows[:, : call.length].numpy().astype(state.dtype)
            for state, rows in zip(self.spec.states, call.past, strict=True)
        }
        fill_cache(self.cache, self.spec, past, call.length)
        entry, fed = self.spec.input("inputs_embeds"), self.cache.feeds(call.x.shape[1])
        host = {name: self.session.memory.to_host(tensor) for name, tensor in fed.items()}
        return {"inputs_embeds": call.x.numpy().astype(entry.dtype), **host}

    def _held(self, call: Call, got: dict[str, Array]) -> Iterator[Difference]:
        own, twin = (
            self._named(model, self._run(model, dtype, call.x, _first(call.past, call.length), call.positions))
            for model, dtype in (
                (self.reference.model, torch.float32), (self.reference.twin, self.reference.dtype),
            )
        )  # fmt: skip
        for name, array in got.items():
            yield compare_arrays(
                array, own[name], rung=Rung("bundle", self.precision), graph="llm", tensor=name, where=call.where
            )
            yield self.reference.noise(own[name], twin[name], graph="llm", tensor=name, where=call.where)

    def _named(self, model: PVC, result: tuple[Tensor, KeyValue]) -> dict[str, Array]:
        out, (key, value) = result
        out = model.llm.norm(out)[:, -1:] if self.is_last else out
        tensors = zip((self._end, *(state.output for state in self.spec.states)), (out, key, value), strict=True)
        return {name: to_numpy(tensor) for name, tensor in tensors}


def _first(past: KeyValue, length: int) -> KeyValue | None:
    return (past[0][:, :length], past[1][:, :length]) if length else None
