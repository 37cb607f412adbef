"""A stream's whole context, bucket by bucket, on a small LLM graph: each pass against one pass of the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engines.language import LanguageModel
from engines.memory import Array
from engines.spec import StreamLimits
from engines.target import load_target
from pvc_export.graphs import sessions as graph_sessions
from pvc_export.graphs.models import LoadedModel

from ..conftest import ExportGraph

LIMITS = StreamLimits(window=4, context=1536)
FRAME = 64
"""Rows per frame."""


@pytest.fixture(scope="module", params=["cuda", "cpu"], ids=["rows", "in place"])
def language(
    request: pytest.FixtureRequest,
    small: LoadedModel,
    export_once: ExportGraph,
    tmp_path_factory: pytest.TempPathFactory,
) -> LanguageModel:
    """Both cache updates, each exported for a target that uses it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph_sessions, "export_graph", export_once)
        folder, target = tmp_path_factory.mktemp("llm"), load_target(request.param)
        llm = graph_sessions.open_graphs(small.model, ("llm",), target, LIMITS, folder)["llm"]
    return LanguageModel(dict.fromkeys(("embed", "llm", "head"), llm))  # the other two are never run


@pytest.fixture(scope="module")
def embeds(small: LoadedModel) -> Array:
    shape = LIMITS.context, small.config.llm.hidden_size
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def want(small: LoadedModel, embeds: Array) -> Array:
    """hidden (context, E) of a single pass without a cache."""
    with torch.no_grad():
        hidden, _ = small.model.llm(torch.from_numpy(embeds)[None], torch.arange(LIMITS.context)[None])
    return hidden[0].numpy()  # type: ignore[no-any-return]


def edges(num_rows: int) -> list[int]:
    """Lengths at every edge of a bucket and on both sides of it that leave space for `num_rows` more."""
    lengths = [k * LIMITS.bucket + d for k in range(LIMITS.context // LIMITS.bucket + 1) for d in (-1, 0, 1)]
    return sorted({min(max(length, 0), LIMITS.context - num_rows) for length in lengths})


@pytest.mark.parametrize("num_rows", [1, FRAME], ids=["a token", "a frame"])
def test_every_edge_of_a_bucket_is_passed_as_one_pass_would(
    language: LanguageModel, embeds: Array, want: Array, num_rows: int
) -> None:
    """Append up to each edge, then `num_rows` more, which are rolled back. Measured: 3e-6 of the largest value."""
    cache = language.cache
    cache.truncate(0)
    for length in edges(num_rows):
        if length > cache.length:
            language.append(embeds[cache.length : length])
        hidden = language.append(embeds[length : length + num_rows])[0, 0]
        assert np.abs(hidden - want[length + num_rows - 1]).max() < 2e-5 * np.abs(want).max(), f"after {length} rows"
        cache.truncate(length)
    assert edges(num_rows)[-1] + num_rows == cache.capacity == LIMITS.context
