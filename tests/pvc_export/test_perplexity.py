"""Perplexity on text of a model and of its quantised versions."""

from __future__ import annotations

import math

import pytest
import torch

from pvc_export.graphs.eight_bit_rows import RoundedCausalAttention
from pvc_export.graphs.eight_bits import RowsLinear
from pvc_export.graphs.models import LoadedModel
from pvc_export.graphs.quantize import Quantizer
from pvc_export.studies.perplexity import perplexity, ways


def test_a_model_that_knows_nothing_is_as_surprised_as_its_vocabulary_is_large(small: LoadedModel) -> None:
    llm = Quantizer.of(small.model, {}, "fp32").model().llm
    rows = torch.randint(0, 256, (3, 17), generator=torch.Generator().manual_seed(0))
    flat = torch.nn.Linear(llm.config.hidden_size, llm.config.vocab_size, bias=False)
    torch.nn.init.zeros_(flat.weight)
    head, llm.lm_head = llm.lm_head, flat
    try:
        assert perplexity(llm, rows) == pytest.approx(llm.config.vocab_size, rel=1e-5)
    finally:
        llm.lm_head = head


def test_every_row_is_scored_on_its_own_and_every_token_but_its_first(small: LoadedModel) -> None:
    llm = small.model.llm
    rows = torch.randint(0, 256, (2, 9), generator=torch.Generator().manual_seed(1))
    logs = [math.log(perplexity(llm, row[None])) for row in rows]
    assert math.log(perplexity(llm, rows)) == pytest.approx(sum(logs) / 2, rel=1e-5)
    ids = rows[0]
    with torch.no_grad():
        hidden, _ = llm(llm.embed_tokens(ids)[None], torch.arange(9)[None])
        log_p = torch.log_softmax(llm.logits(hidden[0]), dim=-1)
    by_hand = -sum(float(log_p[i, ids[i + 1]]) for i in range(8)) / 8
    assert logs[0] == pytest.approx(by_hand, rel=1e-5)


def test_the_ways_are_the_model_itself_its_cache_eight_bits_smoothed_or_not_and_four_by_both_methods() -> None:
    first, *others = ways()
    assert str(first) == "as it is" and str(others[0]) == "cache in int8"
    found = {
        (how.bits, how.zero_points, how.method, how.wide_codes) for way in others for how in way.quantization.values()
    }
    four = {(4, zero_points, method, False) for zero_points in (False, True) for method in ("round", "search")}
    assert found == four | {(8, False, "search", wide) for wide in (False, True)}
    assert len({str(way) for way in ways()}) == len(list(ways())), "two ways have the same name"
    assert sum("not smoothed" in str(way) for way in ways()) == sum("head" in str(way) for way in ways()) == 2


def test_a_way_is_the_model_that_a_bundle_would_be_held_to(small: LoadedModel) -> None:
    as_it_is, cache, *others = ways()
    assert as_it_is.held(small, "fp32") is small.model
    assert isinstance(cache.held(small, "fp32").llm.layers[0].attn, RoundedCausalAttention)
    smooth, plain = (next(way for way in others if str(way).endswith(end)) for end in ("by row", "not smoothed"))
    norms = [way.held(small, "fp32").llm.layers[0].mlp_norm.weight for way in (smooth, plain)]
    assert torch.equal(norms[1], small.model.llm.layers[0].mlp_norm.weight)
    assert isinstance(smooth.held(small, "fp32").llm.layers[0].mlp.down_proj, RowsLinear)
    assert not torch.equal(norms[0], norms[1])
