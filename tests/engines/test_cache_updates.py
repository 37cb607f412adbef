"""Both ways to update the LLM's cache are the same model: same rows, logits and text, however the rows are fed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engines import PVCStream, open_bundle
from engines.bundle import Bundle
from engines.errors import NonFiniteError, SpecError
from engines.language import LanguageModel
from engines.memory import Array

Frames = list[np.ndarray]
BUCKET = 256  # of bundle_rows


@pytest.fixture(scope="module")
def rows(bundle_rows: Path) -> Bundle:
    return open_bundle(bundle_rows, runtime="cpu")


@pytest.fixture(scope="module")
def in_place(bundle_fp32: Path) -> Bundle:
    return open_bundle(bundle_fp32)


def embeds(count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(count, 64)).astype(np.float32)


def dense(language: LanguageModel) -> list[Array]:
    """Return the rows in use of every cache, as (1, rows, K, D)."""
    states = language._llm.spec.states
    return [state.as_rows(language.cache.dump()[state.input]) for state in states]


def test_the_bundles_differ_in_their_cache_update_alone(rows: Bundle, in_place: Bundle) -> None:
    assert rows.manifest.graphs["llm"].aliases == {} and in_place.manifest.graphs["llm"].aliases
    assert rows.manifest.limits == in_place.manifest.limits
    assert rows.manifest.model.weights_sha256 == in_place.manifest.model.weights_sha256


@pytest.mark.parametrize("length", [1, BUCKET - 1, BUCKET, BUCKET + 1, 2 * BUCKET - 2], ids=lambda n: f"rows={n}")
def test_both_updates_make_the_same_rows_and_logits_at_every_edge_of_a_bucket(
    rows: Bundle, in_place: Bundle, length: int
) -> None:
    """Fed in chunks of 1, 64 and the rest, then two decoded tokens. Measured: 3e-6 of the largest value."""
    found = []
    for bundle in (rows, in_place):
        language, fed = LanguageModel(bundle.sessions), embeds(length)
        logits = [
            language.logits(language.append(piece)) for piece in np.split(fed, [1, min(64, length)]) if len(piece)
        ]
        for token in (5, 7) if length < 2 * BUCKET - 2 else (5,):
            logits.append(language.logits(language.append(language.embed([token]))))
        found.append([*logits, *dense(language)])
    for a, b in zip(*found, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(a).max())


def test_both_updates_say_the_same_about_a_video(rows: Bundle, in_place: Bundle, frames: Frames) -> None:
    said = []
    for bundle in (rows, in_place):
        stream = PVCStream(bundle)
        for frame in frames:
            stream.push(frame)
        first = stream.ask("What moves?", max_new_tokens=12, keep=True)
        said.append((first.token_ids, stream.ask("And now?", max_new_tokens=12).token_ids))
    assert said[0] == said[1]


@pytest.mark.parametrize("name", ["rows", "in_place"])
def test_ingest_and_decode_equal_one_prefill(name: str, request: pytest.FixtureRequest) -> None:
    language = LanguageModel(request.getfixturevalue(name).sessions)
    fed = embeds(140, seed=3)
    whole = language.logits(language.append(fed))
    want = dense(language)
    language.cache.truncate(0)
    for piece in (fed[:64], fed[64:128], *fed[128:, None]):  # two frames, twelve tokens
        hidden = language.append(piece)
    np.testing.assert_allclose(language.logits(hidden), whole, atol=2e-5 * np.abs(whole).max())
    for a, b in zip(dense(language), want, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max())


def test_a_row_that_is_not_finite_never_stays_in_a_cache_that_a_graph_writes(in_place: Bundle) -> None:
    """When it is noticed it is already in the cache; past the length, even a masked NaN would spoil the next pass."""
    language = LanguageModel(in_place.sessions)
    language.append(embeds(5))
    clean = language.logits(language.append(embeds(3, seed=1)))
    language.cache.truncate(5)
    bad = embeds(3, seed=1)
    bad[1] = np.nan
    with pytest.raises(NonFiniteError, match="'llm' returned NaN"):
        language.append(bad)
    assert language.cache.length == 5
    caches = [feed for name, feed in language.cache.feeds(1).items() if name.startswith("past.")]
    assert all(np.isfinite(cache).all() and not cache[:, :, 5:].any() for cache in caches)
    assert np.array_equal(language.logits(language.append(embeds(3, seed=1))), clean)


def test_a_cache_that_is_no_whole_array_is_refused(in_place: Bundle) -> None:
    """ONNX Runtime would copy it, and the rows would be written into the copy."""
    session = in_place.sessions["llm"]
    language = LanguageModel(in_place.sessions)
    feeds = language.cache.feeds(1)
    strided = {n: np.asfortranarray(a) if n == "past.0.key" else a for n, a in feeds.items()}
    with pytest.raises(SpecError, match="cache 'past.0.key' is not contiguous"):
        session.run({"inputs_embeds": embeds(1)[None], **strided})
