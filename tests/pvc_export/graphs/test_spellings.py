"""Spellings of attention keep the reference's arithmetic, weights and float32 islands."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from engines.graph_specs import graph_specs
from engines.spec import CacheUpdate, Spelling, StreamLimits
from engines.target import load_target, target_names
from pvc_export.graphs.models import LoadedModel
from pvc_export.graphs.modules import graph_module, model_shape
from pvc_export.graphs.precision import cast_model, spelled
from pvc_export.graphs.sessions import open_graphs
from pvc_export.graphs.spellings import CACHE_UPDATES, SPELLINGS


def test_the_tables_have_every_spelling_and_every_target_names_one_of_each() -> None:
    assert set(SPELLINGS) == set(get_args(Spelling))
    assert set(CACHE_UPDATES) == set(itertools.product(get_args(CacheUpdate), get_args(Spelling)))
    targets = [load_target(name) for name in target_names()]
    assert {target.spelling for target in targets} == set(SPELLINGS)
    assert {target.cache_update for target in targets} == set(get_args(CacheUpdate))


def test_an_island_is_one_in_every_spelling(tiny: LoadedModel) -> None:
    """The input is widened and the output rounded, and nothing in between is rounded."""
    name = "layers.1.attn"
    plain, island = cast_model(tiny.model, "fp16"), cast_model(tiny.model, "fp16", (f"trunk.{name}",))
    x = torch.randn(1, 65, 64, generator=torch.Generator().manual_seed(0)).half()
    with torch.no_grad():
        want, got, rounded = (
            spelled(model.trunk, SPELLINGS["split"]).get_submodule(name)(x.to(dtype)).half()
            for model, dtype in ((tiny.model, torch.float32), (island, torch.float16), (plain, torch.float16))
        )
    assert torch.equal(got, want) and not torch.equal(got, rounded)


def test_the_two_spellings_of_attention_compute_the_same(tiny: LoadedModel) -> None:
    """Compared in float64, so that only the arithmetic matters: equal features and new rows in both ring layouts."""
    model = copy.deepcopy(tiny.model).double()
    spellings: tuple[Spelling, ...] = ("concat", "split")
    concat, split = (graph_specs(model_shape(tiny.config), StreamLimits(window=5), "fp32", name) for name in spellings)
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (2, 112, 112, 3), dtype=torch.uint8, generator=generator)
    rings = [torch.randn(2, 5, 65, 4, 16, dtype=torch.float64, generator=generator) for _ in concat["temporal"].states]
    time, mask = torch.tensor([6.0, 7.0]), torch.tensor([[True, False, True, True, False]] * 2)
    with torch.no_grad():
        features = graph_module(model, concat["trunk"])(frames)
        other_features = graph_module(model, split["trunk"], "split")(frames)
        a = graph_module(model, concat["temporal"])(features, time, mask, *rings)
        by_slot = (ring.permute(0, 2, 3, 1, 4) for ring in rings)
        b = graph_module(model, split["temporal"], "split")(features, time, mask, *by_slot)
    for left, right in zip((features, *a), (other_features, *b), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-12)  # worst 5e-15


def test_a_second_spelling_leaves_the_model_as_it_is_and_copies_no_weight(tiny: LoadedModel) -> None:
    spec = graph_specs(model_shape(tiny.config), StreamLimits(), "fp32", "split")["trunk"]
    before = str(tiny.model.trunk)
    split = graph_module(tiny.model, spec, "split")
    assert str(tiny.model.trunk) == before != str(split)
    assert {id(p) for p in split.parameters()} == {id(p) for p in tiny.model.trunk.parameters()}
    assert graph_module(tiny.model, spec) is tiny.model.trunk


@pytest.mark.parametrize("starts", [(5,), (0, 40), (61,), (1, 62)], ids=str)
def test_on_a_cpu_attention_goes_over_the_rows_that_it_is_fed_and_writes_new_ones_among_them(
    starts: tuple[int, ...], small: LoadedModel, tmp_path: Path
) -> None:
    """Equal to attention over the whole cache, although it reads at most 64 rows past the longest stream."""
    limits = StreamLimits(context=256, streams=len(starts))
    fed = -(-(max(starts) + 3) // 64) * 64
    found = []
    for name in ("rtx", "cpu"):
        (tmp_path / name).mkdir(exist_ok=True)
        llm = open_graphs(small.model, ("llm",), load_target(name), limits, tmp_path / name)["llm"]
        assert ("past" in llm.spec.dims) == (name == "cpu")
        rng = np.random.default_rng(0)
        index = np.array(starts)
        feeds = {
            "inputs_embeds": rng.normal(size=(len(starts), 3, small.config.llm.hidden_size)).astype(np.float32),
            "position_ids": index[:, None] + np.arange(3),
            "write_index": index,
        }
        for state in llm.spec.states:
            shape = llm.spec.input(state.input).resolve({"batch": len(starts), "past": 256})
            cache = rng.normal(size=shape).astype(np.float32)
            feeds[state.input] = np.ascontiguousarray(cache[:, :, :fed]) if name == "cpu" else cache
        outputs = llm.run(feeds)
        found.append([outputs["hidden"], *(outputs[state.output][:, :, :fed] for state in llm.spec.states)])
    for whole, part in zip(*found, strict=True):
        np.testing.assert_allclose(part, whole, atol=1e-5 * np.abs(whole).max())
