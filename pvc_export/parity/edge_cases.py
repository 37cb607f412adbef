"""What a short stream does not reach: full batches, streams of different lengths, and the far end of the context.

Inputs are drawn from a seed. Outputs are held to the same limits as those of a stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from engines.bundle import Bundle
from engines.cache import LinearCache
from engines.language import LanguageModel
from engines.memory import Array, host_dtype
from engines.session import Session
from engines.spec import FLOAT_OF, GraphSpec
from pvc_ref.llm import KeyValue

from ..graphs.models import LoadedModel
from .evidence import Evidence
from .metrics import Difference, compare_arrays
from .places import Place, Rung, positions_place, stream_place
from .state.trial import run_on_copies


def probe_batch(bundle: Bundle) -> Evidence:
    """Each row of a full batch against the same row run alone, for every graph. Empty for a bundle of one stream."""
    found: list[Difference] = []
    num_streams = bundle.manifest.limits.streams
    if num_streams == 1:
        return Evidence()
    for name, session in bundle.sessions.items():
        rng = np.random.default_rng(0)
        dims = {dim: size.opt for dim, size in session.spec.dims.items()}
        feeds = draw_inputs(session.spec, dims, bundle, rng)
        together = _new_rows(session, feeds)
        for row in range(num_streams):
            one = {key: value[row : row + 1] for key, value in feeds.items()}
            alone = _new_rows(session, one)
            for tensor, want in alone.items():
                got, where = together[tensor][row : row + 1], stream_place(row, num_streams)
                found.append(compare_arrays(got, want, rung=_rung(bundle), graph=name, tensor=tensor, where=where))
    return Evidence(differences=tuple(found))


@torch.no_grad()
def probe_context(bundle: Bundle, loaded: LoadedModel) -> Evidence:
    """The last rows of a context, as many as a frame has, against the reference."""
    session = bundle.sessions["llm"]
    spec, num_rows = session.spec, session.spec.dims["rows"].opt
    rng, cache = np.random.default_rng(1), LinearCache(spec, session.memory)
    length = cache.capacity - num_rows
    inputs = draw_inputs(spec, {"batch": 1, "rows": num_rows, "past": cache.capacity}, bundle, rng)
    past = {s.input: np.ascontiguousarray(inputs[s.input][s.rows(0, length)]) for s in spec.states}
    cache.restore({name: array.view(f"u{array.itemsize}") for name, array in past.items()}, length)
    embeds = inputs["inputs_embeds"]
    outputs = session.run({"inputs_embeds": embeds, **cache.feeds(num_rows)})
    got = {"hidden": session.memory.to_host(outputs["hidden"])}
    new = cache.new_rows(outputs, num_rows)
    got |= {s.output: s.as_rows(session.memory.to_host(new[s.output])) for s in spec.states}
    caches = [torch.from_numpy(state.as_rows(past[state.input])).float() for state in spec.states]
    pairs = list(zip(caches[0::2], caches[1::2], strict=True))
    want = _expected(loaded, spec, embeds, torch.arange(length, cache.capacity), pairs)
    return Evidence(differences=_compare_llm(bundle, got, want, positions_place(length, cache.capacity - 1)))


@torch.no_grad()
def probe_lengths(bundle: Bundle, loaded: LoadedModel) -> Evidence:
    """Streams of different lengths in one pass, at and around the edges of the cache's buckets, against the reference's
    one pass over everything without a cache. One row (decode) and a frame's rows (ingest)."""
    session, limits = bundle.sessions["llm"], bundle.manifest.limits
    rng, found = np.random.default_rng(2), tuple[Difference, ...]()
    for num_rows in (1, session.spec.dims["rows"].opt):
        edges = [limits.bucket - 1, limits.bucket, limits.bucket + 1, 1, 0]
        lengths = [length for length in edges if length + num_rows <= limits.context]
        for start in range(0, len(lengths), limits.streams):
            group = lengths[start : start + limits.streams]
            dims = {"batch": len(group), "rows": max(group) + num_rows, "past": limits.bucket}
            embeds = draw_inputs(session.spec, dims, bundle, rng)["inputs_embeds"]
            outputs = _run_together(bundle, group, embeds, num_rows)
            for row, length in enumerate(group):
                count = length + num_rows
                want = _expected(loaded, session.spec, embeds[row : row + 1, :count], torch.arange(count))
                want = {name: rows[:, -num_rows:] for name, rows in want.items()}
                got = {name: array[row : row + 1] for name, array in outputs.items()}
                where = Place("rows", row, f"{num_rows} rows behind {length}, {stream_place(row, len(group))}")
                found += _compare_llm(bundle, got, want, where)
    return Evidence(differences=found)


def _expected(
    loaded: LoadedModel, spec: GraphSpec, embeds: Array, positions: torch.Tensor, past: Sequence[KeyValue] | None = None
) -> dict[str, torch.Tensor]:
    """What the reference's LLM returns, by the graph's names: hidden of the last row, and all new cache rows."""
    hidden, new = loaded.model.llm(torch.from_numpy(embeds).float(), positions[None], past)
    rows = [row for pair in new for row in pair]
    return {"hidden": hidden[:, -1:]} | {state.output: row for state, row in zip(spec.states, rows, strict=True)}


def _compare_llm(
    bundle: Bundle, got: Mapping[str, Array], want: Mapping[str, torch.Tensor], where: Place
) -> tuple[Difference, ...]:
    return tuple(
        compare_arrays(got[name], value.numpy(), rung=_rung(bundle), graph="llm", tensor=name, where=where)
        for name, value in want.items()
    )


def _run_together(bundle: Bundle, lengths: list[int], embeds: Array, num_rows: int) -> dict[str, Array]:
    """Fill a cache for each stream alone, then run `num_rows` rows of all of them in one pass.

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
    joined = {"inputs_embeds": np.concatenate(new), **_joined(session.spec, feeds, num_rows)}
    return _new_rows(session, joined)


def _new_rows(session: Session, feeds: dict[str, Array]) -> dict[str, Array]:
    """What a run returns, but of a cache that it updates in place the rows that were new, and all rows as
    (B, L, K, D)."""
    spec, outputs = session.spec, run_on_copies(session, feeds)
    for state in (state for state in spec.states if state.order == "linear"):
        rows = state.as_rows(outputs[state.output])
        if spec.aliases:
            count = feeds["inputs_embeds"].shape[1]
            rows = np.stack([rows[i, start : start + count] for i, start in enumerate(feeds["write_index"])])
        outputs[state.output] = rows
    return outputs


def _joined(spec: GraphSpec, feeds: list[dict[str, Array]], num_rows: int) -> dict[str, Array]:
    """The feeds of several streams, each with its own mask, as one batch. Where pasts are fed in buckets, all get as
    many as the longest."""
    if spec.aliases:
        return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
    masks = [feed["attention_mask"] for feed in feeds]
    fed = max(mask.shape[1] for mask in masks) - num_rows
    longer = [np.pad(mask[:, :-num_rows], ((0, 0), (0, fed + num_rows - mask.shape[1]))) for mask in masks]
    mask = np.concatenate([np.hstack([past, mask[:, -num_rows:]]) for past, mask in zip(longer, masks, strict=True)])
    joined = {"attention_mask": mask, "position_ids": np.concatenate([feed["position_ids"] for feed in feeds])}
    for state in spec.states:
        pasts = [np.moveaxis(feed[state.input], state.slot_axis, 0) for feed in feeds]
        filled = [np.concatenate([p, np.zeros((fed - len(p), *p.shape[1:]), p.dtype)]) for p in pasts]
        joined[state.input] = np.ascontiguousarray(np.moveaxis(np.concatenate(filled, axis=1), 0, state.slot_axis))
    return joined


def _rung(bundle: Bundle) -> Rung:
    return Rung("bundle", bundle.manifest.precision)


def draw_inputs(spec: GraphSpec, dims: dict[str, int], bundle: Bundle, rng: np.random.Generator) -> dict[str, Array]:
    """Plausible inputs of a graph: every dtype in its range, no two streams alike."""
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
        elif tensor.name == "write_index":  # every stream has another length
            room = bundle.manifest.limits.context - dims["rows"]
            feeds[tensor.name] = np.arange(shape[0], dtype=np.int64) * max(room // shape[0], 1) % (room + 1)
        elif tensor.dtype == "int64":
            feeds[tensor.name] = (rng.random(shape) < 0.7).astype(np.int64)
        elif tensor.name == "frame_time":
            feeds[tensor.name] = np.arange(1, shape[0] + 1, dtype=np.float32) / 2
        else:
            exact = rng.normal(size=shape).astype(host_dtype(FLOAT_OF[bundle.manifest.precision]))
            feeds[tensor.name] = exact.astype(tensor.dtype)  # a widened bfloat16 graph rounds what it is given
    return feeds
