"""Keys and values in int8: half the memory, rounded as torch does, and the same rows in graph and reference."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
import typer
from torch import Tensor

from engines.graph_specs import graph_specs
from engines.spec import GraphSpec, State, StreamLimits
from engines.target import load_target, target_names
from pvc_export.graphs.eight_bit_rows import EightBitRows, joined_states, round_states, rounded_rows, split_states
from pvc_export.graphs.models import LoadedModel
from pvc_export.graphs.modules import model_shape
from pvc_export.terminal.quantization import FewBits
from pvc_ref import PVCConfig

SHAPE = model_shape(PVCConfig.preset("pvc-internvl2-8b"))
LIMITS = StreamLimits()
BOTH: tuple[State, ...] = ("ring", "cache")


def rows(*shape: int) -> Tensor:
    """Rows of very different sizes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, generator=generator)
    return x * torch.logspace(-6, 4, shape[1])[:, None, None]


def test_rows_are_rounded_as_torch_fakes_it_with_their_own_scale() -> None:
    x = rows(2, 9, 3, 16)
    flat = x.flatten(0, -2)
    scales = flat.abs().amax(-1) / 127
    want = torch.fake_quantize_per_channel_affine(flat, scales, torch.zeros(len(flat), dtype=torch.int32), 0, -127, 127)
    # torch multiplies by the inverse of a scale, so a value halfway between two codes may take the other one.
    off = (rounded_rows(x).flatten(0, -2) - want).abs() / scales[:, None]
    assert off.max() < 1.01 and (off > 0.01).sum() <= 2
    assert ((rounded_rows(x) - x).abs() <= 0.5001 * EightBitRows.of(x).scales).all()


def test_a_row_that_was_rounded_stays_as_it_is_and_zeros_are_zeros() -> None:
    once = rounded_rows(rows(1, 9, 3, 16))
    again = EightBitRows.of(once)
    assert torch.equal(again.codes, EightBitRows.of(rows(1, 9, 3, 16)).codes)
    assert torch.allclose(again.to(torch.float32), once, rtol=1e-6, atol=0)
    assert not rounded_rows(torch.zeros(1, 2, 3, 4)).any() and rounded_rows(torch.zeros(1, 2)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scales_are_float32_or_wider_and_values_have_the_dtype_of_the_rest(dtype: torch.dtype) -> None:
    found = EightBitRows.of(rows(1, 2, 3, 4).clamp(-100, 100).to(dtype))
    assert found.codes.dtype == torch.int8 and found.to(dtype).dtype == dtype
    assert found.scales.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_states_come_in_the_order_of_their_spec() -> None:
    tensors = [rows(1, 2, 3, 4) + index for index in range(4)]
    assert all(got is want for got, want in zip(split_states(joined_states(tensors)), tensors, strict=True))
    coded = [EightBitRows.of(x) for x in tensors]
    flat = [*(one.codes for one in coded), *(one.scales for one in coded)]
    (first, second), (_, last) = joined_states(flat)
    assert first.codes is flat[0] and second.scales is flat[5] and last.codes is flat[3]
    assert all(got is want for got, want in zip(split_states(joined_states(flat)), flat, strict=True))
    assert joined_states([]) == [] and split_states([]) == []


def test_the_reference_remembers_what_its_frames_have_seen(small: LoadedModel) -> None:
    assert round_states(small.model, ()) is small.model
    model = round_states(small.model, BOTH)
    pixels = torch.randint(0, 256, (1, 112, 112, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ring = model.frame_features(pixels)[0].new
        cache = model.llm(model.llm.embed_tokens(torch.arange(5))[None], torch.arange(5)[None])[1]
        only = round_states(small.model, ("cache",)).frame_features(pixels)[0].new
    for row in (*ring[0], *cache[0]):
        assert torch.allclose(rounded_rows(row), row, rtol=1e-6, atol=0)
    assert not torch.allclose(rounded_rows(only[0][0]), only[0][0], rtol=1e-6, atol=0), "the ring was rounded too"


@pytest.mark.parametrize("name", target_names())
def test_every_target_has_them_and_tensorrt_gets_rows_back_since_it_writes_no_codes_in_place(name: str) -> None:
    target = load_target(name)
    update = target.update_of(BOTH)
    assert update == ("rows" if target.spelling == "concat" else target.cache_update)
    assert target.update_of(("ring",)) == target.cache_update
    few = FewBits(int8=["cache", "ring", "vision"] if "vision" in target.int8 else ["cache", "ring"])
    assert few.states == BOTH and set(few.of(target, streams=1)) <= {"vision"}


def specs(**options: object) -> dict[str, GraphSpec]:
    return graph_specs(SHAPE, LIMITS, "fp16", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("graph", ["temporal", "llm"])
@pytest.mark.parametrize("update", ["rows", "aliased"])
def test_they_take_half_of_the_memory_and_four_bytes_a_row_and_head(graph: str, update: str) -> None:
    plain, coded = (specs(cache_update=update, int8_states=states)[graph] for states in ((), BOTH))
    width = {"temporal": SHAPE.vision_head_dim, "llm": SHAPE.llm_head_dim}[graph]
    assert coded.state_bytes(LIMITS) / plain.state_bytes(LIMITS) == (width + 4) / (2 * width)
    assert coded.row_states == tuple(state for state in coded.states if state.dtype == "int8")
    assert [state.input for state in coded.row_states] == [state.input for state in plain.states]
    assert {state.input: state.output for state in plain.states}.items() <= {
        state.input: state.output for state in coded.states
    }.items()
    assert GraphSpec.from_json(coded.to_json()) == coded
    for state in coded.states:
        shape = coded.input(state.input).shape
        assert shape[-1] == (1 if state.holds == "scales" else width)
        assert coded.input(state.input).dtype == coded.output(state.output).dtype == state.dtype


def test_one_of_the_two_leaves_the_other_as_it_is() -> None:
    for state, graph in zip(get_args(State), ("temporal", "llm"), strict=True):
        found, plain = specs(int8_states=(state,)), specs()
        assert [name for name in found if found[name] != plain[name]] == [graph]


def test_a_word_that_is_no_part_and_no_state_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(typer.BadParameter, match="ring, cache"):
        FewBits(int8=["rings"]).of(load_target("cpu"), streams=1)
