"""Places a short stream does not reach: all trained times and some later ones, bucket edges, the whole context."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engines import open_bundle
from engines.bundle import Bundle
from engines.cache import LinearCache
from engines.manifest import Manifest
from engines.spec import StreamLimits
from pvc_export.controls.graph_edits import begin_time_anew, edit_graph, repeat_a_frame_time, shift_positions_midway
from pvc_export.graphs.models import LoadedModel
from pvc_export.parity.clock import BEYOND, NUM_OF_LARGE, clock_times, probe_clock
from pvc_export.parity.edge_cases import NUM_EARLY, NUM_PAST, NUM_SPREAD, drawn_past, edge_lengths, probe_context
from pvc_export.parity.evidence import Evidence
from pvc_export.parity.limits import NoiseTable, beyond_limits
from pvc_export.parity.recording import check_frames, run_torch
from pvc_export.parity.rounding import Reference

Copy = Callable[[Path], Path]


def places_beyond(evidence: Evidence) -> set[str]:
    """Return the places where a difference exceeds the noise of the same probe."""
    noise = NoiseTable(evidence.differences)
    return {str(one.where) for one in beyond_limits(map(noise.judged, evidence.differences))}


def ask_the_clock(bundle: Bundle, tiny: LoadedModel) -> set[str]:
    frames = check_frames(bundle.manifest)
    first = replace(frames, pixels=frames.pixels[:1], times=[0])
    own = run_torch(tiny.model, first, bundle.manifest.graphs["temporal"])
    return places_beyond(probe_clock(bundle, Reference.of(tiny.model, "fp32"), own))


def ask_the_context(bundle: Bundle, tiny: LoadedModel) -> set[str]:
    return places_beyond(probe_context(bundle, Reference.of(tiny.model, "fp32")))


@pytest.mark.parametrize("graph", ["temporal", "compressor"])
def test_every_trained_time_is_asked_and_one_that_is_looked_up_wrongly_is_named(
    graph: str, bundle_fp32: Path, tiny: LoadedModel, copy_bundle: Copy
) -> None:
    assert ask_the_clock(open_bundle(bundle_fp32), tiny) == set()
    broken = copy_bundle(bundle_fp32)
    edit_graph(broken, graph, repeat_a_frame_time)
    assert ask_the_clock(open_bundle(broken), tiny) == {"time 13"}


def test_a_clock_that_starts_over_is_wrong_from_there_on(
    bundle_fp32: Path, tiny: LoadedModel, copy_bundle: Copy
) -> None:
    broken = copy_bundle(bundle_fp32)
    edit_graph(broken, "compressor", begin_time_anew)
    times = clock_times(Manifest.load(broken))
    assert ask_the_clock(open_bundle(broken), tiny) == {f"time {time:g}" for time in times if time >= 64}


def test_times_end_with_a_table_and_are_parts_of_a_fixed_clip(bundle_fp32: Path) -> None:
    manifest = Manifest.load(bundle_fp32)
    last = manifest.trained_frames
    assert clock_times(manifest) == [*map(float, range(last)), *(float(last + time) for time in BEYOND)]
    table = replace(manifest, limits=replace(manifest.limits, num_times=last + 3))
    assert clock_times(table) == [float(time) for time in range(last + 3)]
    assert clock_times(replace(manifest, time_mode="fixed")) == [time / last for time in range(last)]
    assert len(clock_times(manifest, is_large=True)) == NUM_OF_LARGE


def test_lengths_are_every_edge_of_a_bucket_both_its_sides_and_the_spread_between_longest_first() -> None:
    lengths = edge_lengths(StreamLimits(context=1024, bucket=256), 1024)
    edges = {0, 1, 2, 4, 8, 255, 256, 257, 511, 512, 513, 767, 768, 769, 1023}
    assert edges <= set(lengths) and lengths == sorted(lengths, reverse=True)
    assert max(np.diff(sorted(lengths))) <= 1024 / (NUM_SPREAD - 1) + 1


@pytest.mark.parametrize("bundle_name", ["bundle_fp32", "bundle_rows"])
@pytest.mark.parametrize("length", [255, 256, 257, 511])
def test_a_newest_row_that_is_hidden_at_one_edge_alone_is_found(
    bundle_name: str, length: int, tiny: LoadedModel, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = open_bundle(request.getfixturevalue(bundle_name))
    feeds = LinearCache.feeds

    def hide(cache: LinearCache, num_rows: int) -> dict[str, Any]:
        fed = feeds(cache, num_rows)
        if cache.length == length and "write_index" in fed:
            return fed | {"write_index": np.asarray(fed["write_index"]) - 1}
        if cache.length == length:
            np.asarray(fed["attention_mask"])[:, length - 1] = 0
        return fed

    monkeypatch.setattr(LinearCache, "feeds", hide)
    assert ask_the_context(bundle, tiny) == {f"position {length}"}


def test_positions_that_are_wrong_midway_are_found(bundle_fp32: Path, tiny: LoadedModel, copy_bundle: Copy) -> None:
    assert ask_the_context(open_bundle(bundle_fp32), tiny) == set()
    broken = copy_bundle(bundle_fp32)
    edit_graph(broken, "llm", shift_positions_midway)
    wrong = {int(place.removeprefix("position ")) for place in ask_the_context(open_bundle(broken), tiny)}
    assert wrong and all(290 <= position <= 350 for position in wrong)


def test_single_rows_are_held_against_rows_that_the_reference_computes_one_by_one(
    bundle_fp32: Path, tiny: LoadedModel
) -> None:
    """As in the graph: a one-row matmul rounds differently from one with many rows, considerably so after few rows."""
    bundle, reference = open_bundle(bundle_fp32), Reference.of(tiny.model, "fp32")
    num_rows = list[int]()
    layer = reference.model.llm.layers[0]
    with layer.register_forward_pre_hook(lambda _, args: num_rows.append(args[0].shape[1])):
        found = probe_context(bundle, reference).differences
    lengths = edge_lengths(bundle.manifest.limits, bundle.manifest.limits.context)
    assert num_rows[-len(lengths) :] == [1] * len(lengths)
    kinds = {kind: {one.where.index for one in found if one.where.kind == kind} for kind in ("early", "position")}
    assert kinds == {"early": {0, 1, 2, 4, 8}, "position": {length for length in lengths if length >= NUM_EARLY}}


@torch.no_grad()
def test_a_drawn_past_is_what_the_reference_makes_of_tokens_further_on_too(
    bundle_fp32: Path, tiny: LoadedModel
) -> None:
    """First-layer keys depend only on token and position, so a rotated key equals the token's key at that position."""
    bundle, reference = open_bundle(bundle_fp32), Reference.of(tiny.model, "fp32")
    past = drawn_past(bundle, reference, np.random.default_rng(7), 2, NUM_PAST + 40)
    ids = torch.from_numpy(np.random.default_rng(7).integers(0, tiny.config.llm.vocab_size, (2, NUM_PAST)))
    embeds = tiny.model.llm.embed_tokens(ids)
    _, new = tiny.model.llm(embeds, torch.arange(NUM_PAST).expand(2, -1))
    for (key, value), index in zip(new, range(len(new)), strict=True):
        assert np.array_equal(past[f"past.{index}.key"][:, :NUM_PAST], key.numpy())
        assert np.array_equal(past[f"past.{index}.value"][:, NUM_PAST:], value[:, :40].numpy())
    _, ((further, _), *_) = tiny.model.llm(embeds[:, :40], torch.arange(NUM_PAST, NUM_PAST + 40).expand(2, -1))
    assert np.allclose(
        past["past.0.key"][:, NUM_PAST:], further.numpy(), atol=1e-3
    )  # float32 angles; a wrong rotation is off by 1
