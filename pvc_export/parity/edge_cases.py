"""Cases that a short stream does not reach: full batches, streams of different lengths, and every part of the context.

Inputs are drawn from a seed. Outputs have limits like a stream's, from the noise on the same inputs.
The LLM is fed tokens of its vocabulary, and a past computed from such tokens. With plain noise as its past, a trained
LLM behaves chaotically: rounding errors are a hundred times those in a text and hide faults as large (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch

from engines.bundle import Bundle
from engines.cache import LinearCache
from engines.language import LanguageModel
from engines.memory import Array, host_dtype
from engines.session import Session
from engines.spec import FLOAT_OF, GraphSpec, StreamLimits
from pvc_ref import PVC
from pvc_ref.layers import visible_to_bias
from pvc_ref.llm import Decoder, KeyValue, rotate

from .decoder_runs import NEIGHBOURS, Decoded, Span, run_both
from .evidence import Evidence
from .metrics import Difference, compare_arrays
from .places import Place, PlaceKind, Rung, positions_place, stream_place
from .rounding import Reference
from .state.trial import run_on_copies

NUM_PAST = 256
"""Computed rows of a past; a longer past repeats them at later positions."""
NUM_SPREAD = 16
"""Places spread over the whole context, in addition to the edges of its buckets."""
NUM_EARLY = 16
"""Rows at the beginning of a context, of which 0, 1, 2, 4 and 8 are checked."""


@torch.no_grad()
def probe_batch(bundle: Bundle, reference: Reference) -> Evidence:
    """Compare each row of a full batch with the same row run alone, for every graph. Empty for a bundle of one
    stream."""
    found: list[Difference] = []
    num_streams = bundle.manifest.limits.streams
    if num_streams == 1:
        return Evidence()
    for name, session in bundle.sessions.items():
        rng = np.random.default_rng(0)
        dims = {dim: size.opt for dim, size in session.spec.dims.items()}
        feeds = draw_inputs(session.spec, dims, bundle, rng)
        if name == "llm":
            feeds |= _as_in_a_text(feeds, session.spec, bundle, reference, rng)
        together = new_rows(session, feeds)
        for row in range(num_streams):
            one = {key: value[row : row + 1] for key, value in feeds.items()}
            alone = new_rows(session, one)
            for tensor, want in alone.items():
                got, where = together[tensor][row : row + 1], stream_place(row, num_streams)
                found.append(compare_arrays(got, want, rung=_rung(bundle), graph=name, tensor=tensor, where=where))
    return Evidence(differences=tuple(found))


@torch.no_grad()
def probe_context(bundle: Bundle, reference: Reference) -> Evidence:
    """Check a full cache: a frame's rows at its far end, then single rows at every bucket edge, on both sides of it,
    and spread over the whole context."""
    spec, num_rows = bundle.sessions["llm"].spec, bundle.sessions["llm"].spec.dims["rows"].opt
    rng, cache = np.random.default_rng(1), LinearCache(spec, bundle.sessions["llm"].memory)
    length = cache.capacity - num_rows
    past = drawn_past(bundle, reference, rng, 1, cache.capacity)
    behind = Span(positions_place(length, cache.capacity - 1), 0, num_rows)
    embeds = _draw_embeds(bundle, reference, rng, 1, num_rows)
    runs = run_both(reference, spec, partial(_rows_behind, embeds, length, past))
    (got,) = _rows_at(bundle, cache, past, [length], embeds[None], num_rows)
    found = [*runs.compare(got, behind), *runs.noise([behind])]
    lengths = edge_lengths(bundle.manifest.limits, cache.capacity)
    each = _draw_embeds(bundle, reference, rng, 1, len(lengths))
    runs = run_both(reference, spec, partial(_single_rows, each, lengths, past))
    answers = _rows_at(bundle, cache, past, lengths, each[0, :, None, None], 1)
    for row, (at, got) in enumerate(zip(lengths, answers, strict=True)):
        span = Span(_position(at), row, row + 1)
        found += [*runs.compare(got, span), *runs.noise([span])]
    return Evidence(differences=tuple(found))


def _position(at: int) -> Place:
    """The place of a single row. After only a few rows a trained LLM amplifies rounding more than anywhere else, so
    early rows are a kind of their own and do not set the limits of the others."""
    return Place("early", at, f"position {at}") if at < NUM_EARLY else Place("position", at)


def edge_lengths(limits: StreamLimits, capacity: int) -> list[int]:
    """Numbers of rows before a new one: a few, every multiple of a bucket and both sides of it, and NUM_SPREAD over
    the whole cache; the longest first."""
    early = {0, 1, 2, 4, 8}
    edges = {edge + side for edge in range(0, capacity + 1, limits.bucket) for side in (-1, 0, 1)}
    spread = {int(length) for length in np.linspace(0, capacity - 1, NUM_SPREAD)}
    return sorted((length for length in early | edges | spread if 0 <= length < capacity), reverse=True)


def _rows_at(
    bundle: Bundle, cache: LinearCache, past: Mapping[str, Array], lengths: Sequence[int], embeds: Array, num_rows: int
) -> Iterator[dict[str, Array]]:
    """Run the graph on embeds[i] (1, num_rows, E) after the first lengths[i] rows of the past.

    The longest length comes first, so that truncating the cache never drops a row that is still needed.
    """
    session = bundle.sessions["llm"]
    spec, longest = session.spec, lengths[0]
    fill_cache(cache, spec, past, longest)
    for length, new in zip(lengths, embeds, strict=True):
        cache.truncate(length)
        outputs = session.run({"inputs_embeds": new, **cache.feeds(num_rows)})
        made = cache.new_rows(outputs, num_rows)
        host = {s.output: s.as_rows(session.memory.to_host(made[s.output])).copy() for s in spec.states}
        yield {"hidden": session.memory.to_host(outputs["hidden"])} | host
        cache.discard(num_rows)


def fill_cache(cache: LinearCache, spec: GraphSpec, past: Mapping[str, Array], length: int) -> None:
    """Fill a cache with the first `length` rows (1, P, K, D) of a past, named by the graph's inputs."""
    rows = {s.input: np.ascontiguousarray(np.moveaxis(past[s.input][:, :length], 1, s.slot_axis)) for s in spec.states}
    cache.restore({name: array.view(f"u{array.itemsize}") for name, array in rows.items()}, length)


def _rows_behind(embeds: Array, length: int, past: Mapping[str, Array], model: PVC, dtype: torch.dtype) -> Decoded:
    """Run the reference on rows (1, L, E) right after the first `length` rows of the past."""
    positions = torch.arange(length, length + embeds.shape[1])[None]
    rows = torch.from_numpy(embeds).to(dtype)
    return model.llm(rows, positions, _pairs(past, length, dtype))  # type: ignore[no-any-return]


def _single_rows(
    embeds: Array, lengths: Sequence[int], past: Mapping[str, Array], model: PVC, dtype: torch.dtype
) -> Decoded:
    """Run rows (1, R, E), each of which sees the first lengths[r] rows of the past and itself; in float32 one by one.

    A matmul of one row uses another kernel than one of twenty and rounds differently, as the graph's does: after one
    row of a real LLM by 20 times as much (docs/log.md). In float64 and in narrow dtypes this makes no difference.
    """
    if dtype != torch.float32:
        return _each_alone(embeds, lengths, past, model, dtype)
    parts = [_rows_behind(embeds[:, r : r + 1], length, past, model, dtype) for r, length in enumerate(lengths)]
    layers = zip(*(new for _, new in parts), strict=True)
    pairs = [(torch.cat([k for k, _ in rows], dim=1), torch.cat([v for _, v in rows], dim=1)) for rows in layers]
    return torch.cat([hidden for hidden, _ in parts], dim=1), pairs


def _each_alone(
    embeds: Array, lengths: Sequence[int], past: Mapping[str, Array], model: PVC, dtype: torch.dtype
) -> Decoded:
    """Run rows (1, R, E) in one pass, each of which sees the first lengths[r] rows of the past and itself."""
    longest = max(lengths)
    behind = torch.arange(longest) < torch.tensor(lengths)[:, None]
    visible = torch.cat([behind, torch.eye(len(lengths), dtype=torch.bool)], dim=1)
    bias = visible_to_bias(visible[None, None], dtype)
    x, new = torch.from_numpy(embeds).to(dtype), list[KeyValue]()
    rope = model.llm.angles(torch.tensor([lengths]), dtype)
    for layer, pair in zip(model.llm.layers, _pairs(past, longest, dtype), strict=True):
        x, rows = layer(x, rope, pair, bias)
        new.append(rows)
    return model.llm.norm(x), new


def _pairs(past: Mapping[str, Array], length: int, dtype: torch.dtype) -> list[KeyValue]:
    """The first `length` rows of every cache, as one key and value pair per layer."""
    rows = [torch.from_numpy(array[:, :length]).to(dtype) for array in past.values()]
    return list(zip(rows[0::2], rows[1::2], strict=True))


@torch.no_grad()
def probe_lengths(bundle: Bundle, reference: Reference) -> Evidence:
    """Compare streams of different lengths in one pass with the reference's single pass without a cache.

    Lengths are at and around the edge of the first bucket; one row (decode) and a frame's rows (ingest) are run.
    """
    spec, limits = bundle.sessions["llm"].spec, bundle.manifest.limits
    most = spec.dims["rows"].opt
    longest = min(limits.bucket + 1 + most, limits.context)
    embeds = _draw_embeds(bundle, reference, np.random.default_rng(2), limits.streams, longest)

    def whole(model: PVC, dtype: torch.dtype) -> Decoded:
        positions = torch.arange(longest).expand(limits.streams, -1)
        return model.llm(torch.from_numpy(embeds).to(dtype), positions)  # type: ignore[no-any-return]

    runs, found = run_both(reference, spec, whole), list[Difference]()
    kinds: tuple[tuple[int, PlaceKind], ...] = ((1, "single"), (most, "rows"))
    for num_rows, kind in kinds:
        edges = [limits.bucket - 1, limits.bucket, limits.bucket + 1, 1, 0]
        lengths = [length for length in edges if length + num_rows <= limits.context]
        for start in range(0, len(lengths), limits.streams):
            group = lengths[start : start + limits.streams]
            outputs = _run_together(bundle, group, embeds, num_rows)
            for row, length in enumerate(group):
                words = f"{num_rows} rows after {length}, {stream_place(row, len(group))}"
                where = Place("early" if length < NUM_EARLY else kind, row, words)
                span = Span(where, length, length + num_rows)
                found += runs.compare({name: array[row : row + 1] for name, array in outputs.items()}, span, stream=row)
                found += runs.noise([span])
        if num_rows == 1:
            found += runs.noise_of_rows(Place(kind), range(NUM_EARLY, longest, max(longest // NEIGHBOURS, 1)))
    return Evidence(differences=tuple(found))


def _draw_embeds(
    bundle: Bundle, reference: Reference, rng: np.random.Generator, num_streams: int, num_rows: int
) -> Array:
    """Embeddings of drawn tokens (num_streams, num_rows, E), rounded to the bundle's precision."""
    table = reference.model.llm.embed_tokens.weight
    ids = torch.from_numpy(rng.integers(0, len(table), (num_streams, num_rows)))
    return _in_precision(bundle, table[ids], bundle.sessions["llm"].spec.input("inputs_embeds").dtype)


def drawn_past(
    bundle: Bundle, reference: Reference, rng: np.random.Generator, num_streams: int, num_rows: int
) -> dict[str, Array]:
    """Cache rows (num_streams, num_rows, K, D), named by the graph's inputs, that the reference computes from NUM_PAST
    drawn tokens. After those the same rows repeat, with keys rotated to their new positions."""
    llm, states = reference.model.llm, bundle.sessions["llm"].spec.states
    embeds = torch.from_numpy(_draw_embeds(bundle, reference, rng, num_streams, min(num_rows, NUM_PAST)))
    _, new = llm(embeds.float(), torch.arange(embeds.shape[1]).expand(num_streams, -1))
    rows = [row for pair in new for row in repeated_rows(llm, pair, num_rows)]
    dtype = bundle.sessions["llm"].spec.input(states[0].input).dtype
    return {state.input: _in_precision(bundle, row, dtype) for state, row in zip(states, rows, strict=True)}


def repeated_rows(llm: Decoder, pair: KeyValue, num_rows: int) -> KeyValue:
    """Repeat a key and a value (B, P, K, D) of positions 0.. up to num_rows, with keys rotated to their new
    positions."""
    key, value = pair
    index = torch.arange(num_rows) % key.shape[1]
    turn = llm.angles((torch.arange(num_rows) - index)[None], torch.float32)
    return rotate(key[:, index], *turn), value[:, index]


def _as_in_a_text(
    feeds: Mapping[str, Array], spec: GraphSpec, bundle: Bundle, reference: Reference, rng: np.random.Generator
) -> dict[str, Array]:
    """Replace the drawn values among the inputs of the LLM's graph by values computed from drawn tokens."""
    num_streams, num_rows = feeds["inputs_embeds"].shape[:2]
    caches = {state.input: state.as_rows(feeds[state.input]).shape[1] for state in spec.states}
    past = drawn_past(bundle, reference, rng, num_streams, max(caches.values()))
    moved = {s.input: np.ascontiguousarray(np.moveaxis(past[s.input], 1, s.slot_axis)) for s in spec.states}
    return {"inputs_embeds": _draw_embeds(bundle, reference, rng, num_streams, num_rows)} | moved


def _run_together(bundle: Bundle, lengths: list[int], embeds: Array, num_rows: int) -> dict[str, Array]:
    """Fill a cache for each stream alone, then run `num_rows` rows of all streams in one pass.

    Returns `hidden` (B, 1, E), and the rows written into each cache, (B, num_rows, K, D).
    """
    session = bundle.sessions["llm"]
    feeds = []
    for row, length in enumerate(lengths):
        language = LanguageModel(bundle.sessions)
        if length:
            language.append(embeds[row, :length])
        feeds.append({name: session.memory.to_host(t) for name, t in language.cache.feeds(num_rows).items()})
    new = [embeds[row : row + 1, length : length + num_rows] for row, length in enumerate(lengths)]
    joined = {"inputs_embeds": np.concatenate(new), **joined_feeds(session.spec, feeds, num_rows)}
    return new_rows(session, joined)


def new_rows(session: Session, feeds: dict[str, Array]) -> dict[str, Array]:
    """Run a graph and return its outputs, with cache rows as (B, L, K, D) and only the new rows of a cache updated in
    place."""
    spec, outputs = session.spec, run_on_copies(session, feeds)
    for state in (state for state in spec.states if state.order == "linear"):
        rows = state.as_rows(outputs[state.output])
        if spec.aliases:
            count = feeds["inputs_embeds"].shape[1]
            rows = np.stack([rows[i, start : start + count] for i, start in enumerate(feeds["write_index"])])
        outputs[state.output] = rows
    return outputs


def joined_feeds(spec: GraphSpec, feeds: list[dict[str, Array]], num_rows: int) -> dict[str, Array]:
    """Join the feeds of several streams, each with its own mask, into one batch. All pasts are padded to the longest
    one's rows."""
    if spec.aliases:
        longest = max(state.as_rows(feed[state.input]).shape[1] for feed in feeds for state in spec.states)
        axes = {state.input: state.slot_axis for state in spec.states}
        return {
            name: np.concatenate([_lengthened(feed[name], axes[name], longest) if name in axes else feed[name]
                                  for feed in feeds])
            for name in feeds[0]
        }  # fmt: skip
    masks = [feed["attention_mask"] for feed in feeds]
    fed = max(mask.shape[1] for mask in masks) - num_rows
    longer = [np.pad(mask[:, :-num_rows], ((0, 0), (0, fed + num_rows - mask.shape[1]))) for mask in masks]
    mask = np.concatenate([np.hstack([past, mask[:, -num_rows:]]) for past, mask in zip(longer, masks, strict=True)])
    joined = {"attention_mask": mask, "position_ids": np.concatenate([feed["position_ids"] for feed in feeds])}
    for state in spec.states:
        joined[state.input] = np.concatenate([_lengthened(feed[state.input], state.slot_axis, fed) for feed in feeds])
    return joined


def _lengthened(cache: Array, axis: int, num_rows: int) -> Array:
    """A cache, padded with zeros to num_rows rows."""
    return np.pad(cache, [(0, num_rows - size if i == axis else 0) for i, size in enumerate(cache.shape)])


def _rung(bundle: Bundle) -> Rung:
    return Rung("bundle", bundle.manifest.precision)


def draw_inputs(spec: GraphSpec, dims: dict[str, int], bundle: Bundle, rng: np.random.Generator) -> dict[str, Array]:
    """Draw plausible inputs of a graph: every dtype within its range, no two streams alike."""
    feeds: dict[str, Array] = {}
    for tensor in spec.inputs:
        shape = tensor.resolve(dims)
        if tensor.dtype == "uint8":
            feeds[tensor.name] = rng.integers(0, 256, shape, dtype=np.uint8)
        elif tensor.dtype == "bool":
            feeds[tensor.name] = rng.random(shape) < 0.7
        elif tensor.name == "input_ids":
            feeds[tensor.name] = rng.integers(0, bundle.manifest.shape.vocab_size, shape)
        elif tensor.name == "position_ids":
            feeds[tensor.name] = np.broadcast_to(np.arange(shape[1], dtype=np.int64), shape).copy()
        elif tensor.name == "write_index":  # every stream has a different length
            room = dims.get("past", bundle.manifest.limits.context) - dims["rows"]
            feeds[tensor.name] = np.arange(shape[0], dtype=np.int64) * max(room // shape[0], 1) % (room + 1)
        elif tensor.dtype == "int64":
            feeds[tensor.name] = (rng.random(shape) < 0.7).astype(np.int64)
        elif tensor.name == "frame_time":
            feeds[tensor.name] = np.arange(1, shape[0] + 1, dtype=np.float32) / 2
        else:
            feeds[tensor.name] = _draw_floats(bundle, rng, shape, tensor.dtype)
    return feeds


def _draw_floats(bundle: Bundle, rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    return _in_precision(bundle, torch.from_numpy(rng.normal(size=shape)), dtype)


def _in_precision(bundle: Bundle, values: torch.Tensor, dtype: str) -> Array:
    """Round values to the bundle's precision and return them as `dtype`; a widened graph does not round its state."""
    exact = values.detach().numpy().astype(host_dtype(FLOAT_OF[bundle.manifest.precision]))
    return exact.astype(dtype)
