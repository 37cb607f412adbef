"""LLM runs on the reference's side: the model and its rounding twin on the same rows, cut into spans.

A graph returns the cache rows of all new rows but the hidden state of the last one only. The reference returns both for
every row, so one pass serves all places of a conversation, and the neighbouring rows whose noise sets the limits.
Dimension key:  B streams   L rows   K key/value heads   D head dim   E width   V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engines.memory import Array
from engines.spec import GraphSpec
from pvc_ref import PVC
from pvc_ref.llm import KeyValue

from .float16_on_cpu import Float16Products
from .metrics import Difference, compare_arrays
from .places import Place, Rung
from .recording import to_numpy
from .rounding import Reference

Decoded = tuple[Tensor, Sequence[KeyValue]]
"""A decoder's output: hidden (B, L, E), and the new keys and values of every layer, each (B, L, K, D)."""
NEIGHBOURS = 16
"""Rows whose noise sets a limit. A single row may be unusually quiet: rows vary by a factor of 20."""


@dataclass(frozen=True, slots=True)
class Span:
    """Rows start..stop - 1 of a run, and the place they stand for."""

    where: Place
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class DecoderRun:
    """`hidden` (B, L, E) and the new rows of every cache (B, L, K, D), by the names of the graph's outputs."""

    tensors: Mapping[str, Array]

    def of(self, span: Span) -> dict[str, Array]:
        """A graph's expected outputs for these rows: the last hidden row and all cache rows."""
        first = {"hidden": span.stop - 1}
        return {name: array[:, first.get(name, span.start) : span.stop] for name, array in self.tensors.items()}


@dataclass(frozen=True, slots=True)
class DecoderRuns:
    """The same run by the reference and by its twin."""

    reference: Reference
    own: DecoderRun
    twin: DecoderRun

    def compare(self, got: Mapping[str, Array], span: Span, *, stream: int | None = None) -> Iterator[Difference]:
        """Compare a graph's outputs for a span. stream: the row of a batch, None if there is only one."""
        for name, want in self.own.of(span).items():
            one = want if stream is None else want[stream : stream + 1]
            rung = Rung("bundle", self.reference.rung.dtype)
            yield compare_arrays(got[name], one, rung=rung, graph="llm", tensor=name, where=span.where)

    def noise(self, spans: Iterable[Span]) -> Iterator[Difference]:
        """Rounding noise of these spans, and of the hidden rows right before the end of each."""
        for span in spans:
            for name, own in self.own.tensors.items():
                first, step = (span.start, span.stop - span.start)
                if name == "hidden":
                    first, step = max(span.start, span.stop - NEIGHBOURS), 1
                for start in range(first, span.stop, step):
                    rows = slice(start, start + step)
                    twin = self.twin.tensors[name][:, rows]
                    yield self.reference.noise(own[:, rows], twin, graph="llm", tensor=name, where=span.where)

    def noise_of_rows(self, kind: Place, rows: Iterable[int]) -> Iterator[Difference]:
        """Rounding noise of single rows, which all count as neighbours of a place of this kind."""
        return self.noise(Span(kind, row, row + 1) for row in rows)


@torch.no_grad()
def run_both(reference: Reference, spec: GraphSpec, run: Callable[[PVC, torch.dtype], Decoded]) -> DecoderRuns:
    """Run the reference and its twin. `run` takes a model and the dtype it computes in."""
    runs = []
    for model, dtype in ((reference.model, torch.float32), (reference.twin, reference.dtype)):
        with Float16Products():
            hidden, new = run(model, dtype)
        names = ["hidden", *(state.output for state in spec.row_states)]
        tensors = [hidden, *(row for pair in new for row in pair)]
        runs.append(DecoderRun({name: to_numpy(tensor) for name, tensor in zip(names, tensors, strict=True)}))
    return DecoderRuns(reference, *runs)
