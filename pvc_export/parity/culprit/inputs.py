"""Expected inputs of each graph, built from the reference. Masks and slots are derived here again, independently of the
runtime, so that a runtime's inputs can be compared with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from engines.graph_specs import graph_specs
from engines.manifest import Manifest
from engines.memory import Array
from engines.spec import GraphSpec
from engines.target import load_target

from ...graphs.models import LoadedModel
from ..clip import QUESTION
from ..places import Place, positions_place
from ..recording import Frames, Recording, check_frames, run_torch, window_of
from ..value_states import encoded, of_values


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpectedCall:
    """One run of a graph. `feeds`: each input; floats are float32 whatever the bundle's dtype, states are in the
    bundle's form."""

    graph: str
    where: Place
    feeds: dict[str, Array]


def reference_stream(manifest: Manifest, loaded: LoadedModel) -> Recording:
    """The reference's outputs for two windows and two frames."""
    return run_torch(loaded.model, check_frames(manifest), manifest.graphs["temporal"])


@torch.no_grad()
def expected_calls(manifest: Manifest, loaded: LoadedModel, graph: str, recording: Recording) -> Iterator[ExpectedCall]:
    """A few representative runs of a graph, from the recording of reference_stream.

    Vision graphs: the first frame, the last of a full window and the last of the clip. The LLM: its first pass, and one
    row after all others.
    """
    graph_spec, frames = float32_specs(manifest)[graph], check_frames(manifest)
    spec = of_values(graph_spec)
    if graph in ("trunk", "temporal", "compressor"):
        window, last = manifest.limits.window, len(frames.times) - 1
        for index in dict.fromkeys((0, min(window, last), last)):
            feeds = vision_feeds(spec, frames, recording, index)
            feeds = encoded(graph_spec, feeds)
            yield ExpectedCall(graph=graph, where=Place("frame", frames.times[index]), feeds=feeds)
        return
    for call in _language_calls(manifest, loaded, spec, recording):
        yield replace(call, feeds=encoded(graph_spec, call.feeds))


def float32_specs(manifest: Manifest) -> dict[str, GraphSpec]:
    target = load_target(manifest.target)
    return graph_specs(
        manifest.shape, manifest.limits, "fp32", target.spelling,
        cache_update=target.update_of(manifest.int8_states), int8_states=manifest.int8_states,
    )  # fmt: skip


def vision_feeds(spec: GraphSpec, frames: Frames, recording: Recording, index: int) -> dict[str, Array]:
    """Inputs of a vision graph at frame `index`: frame t is in slot t % W, and W - 1 earlier frames are visible."""
    time = frames.times[index]
    seen = recording[index]
    values: dict[str, Array] = {
        "frame": frames.pixels[index][None],
        "frame_time": np.array([time / (frames.total_frames or 1)], np.float32),
        "trunk_features": seen["trunk/trunk_features"],
        "features": seen["temporal/features"],
    }
    if spec.states:
        window = window_of(spec)
        earlier = range(max(index - window + 1, 0), index)
        mask = np.zeros((1, window), bool)
        mask[0, [frames.times[i] % window for i in earlier]] = True
        values["slot_mask"] = mask
        for state in spec.states:
            ring = np.zeros(spec.input(state.input).resolve({"batch": 1}), np.float32)
            slots = np.moveaxis(ring, state.slot_axis, 1)
            for i in earlier:
                slots[:, frames.times[i] % window] = recording[i][f"temporal/{state.output}"]
            values[state.input] = ring
    return {tensor.name: values[tensor.name] for tensor in spec.inputs}


def _language_calls(
    manifest: Manifest, loaded: LoadedModel, spec: GraphSpec, recording: Recording
) -> Iterator[ExpectedCall]:
    embeds = _conversation(manifest, loaded, recording)
    length = embeds.shape[1]
    hidden, new = loaded.model.llm(embeds, torch.arange(length)[None])
    if spec.name == "head":
        where = positions_place(length - 1, length - 1)
        yield ExpectedCall(graph="head", where=where, feeds={"hidden": hidden[:, -1:].numpy()})
        return
    rows = [row.numpy() for pair in new for row in pair]
    for start, stop in ((0, min(length, manifest.limits.chunk)), (length - 1, length)):
        feeds = language_feeds(spec, embeds.numpy(), rows, start, stop)
        yield ExpectedCall(graph="llm", where=positions_place(start, stop - 1), feeds=feeds)


def _conversation(manifest: Manifest, loaded: LoadedModel, recording: Recording) -> torch.Tensor:
    """Embeddings (1, L, E) of as many frames as fit in the context, and a question."""
    for count in range(len(recording), 0, -1):
        ids = loaded.prompt_ids(num_frames=count, question=QUESTION)
        if len(ids) <= manifest.limits.context:
            break
    frame_embeds = np.concatenate([frame["compressor/frame_embeds"] for frame in recording[:count]])
    return loaded.prompt_embeds(ids, torch.from_numpy(frame_embeds))


def language_feeds(spec: GraphSpec, embeds: Array, rows: list[Array], start: int, stop: int) -> dict[str, Array]:
    """Inputs of the LLM for rows start..stop - 1. `rows` (1, L, K, D) has every cache's rows; those before start are
    the past."""
    values: dict[str, Array] = {
        "inputs_embeds": embeds[:, start:stop],
        "position_ids": np.arange(start, stop, dtype=np.int64)[None],
    }
    if spec.aliases:
        step = spec.dims["past"].min if "past" in spec.dims else 1
        past = -(-stop // step) * step
        values["write_index"] = np.array([start], np.int64)
    else:
        bucket = spec.dims["past"].min
        past = max(-(-start // bucket), 1) * bucket
        mask = np.ones((1, past + stop - start), np.int64)
        mask[:, start:past] = 0
        values["attention_mask"] = mask
    for state, row in zip(spec.states, rows, strict=True):
        cache = np.zeros(spec.input(state.input).resolve({"batch": 1, "past": past}), np.float32)
        state.as_rows(cache)[:, :start] = row[:, :start]
        values[state.input] = cache
    return {tensor.name: values[tensor.name] for tensor in spec.inputs}
