"""A model's rounding counterpart rounds as specified, shares matmul weights with it, and its noise gives the limits."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from engines.spec import Precision
from pvc_export.graphs.models import LoadedModel
from pvc_export.graphs.precision import cast_model
from pvc_export.parity.decoder_runs import NEIGHBOURS, DecoderRun, DecoderRuns, Span
from pvc_export.parity.float16_on_cpu import Float16Products
from pvc_export.parity.places import Place
from pvc_export.parity.rounding import Reference, rounding_twin
from pvc_ref import PVC


@pytest.fixture(scope="module")
def embeds(tiny: LoadedModel) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(1, 12, tiny.config.llm.hidden_size))).half().float()


@torch.no_grad()
def hidden_of(model: PVC, embeds: torch.Tensor, first: int = 0) -> torch.Tensor:
    with Float16Products():
        return model.llm(embeds, torch.arange(first, first + embeds.shape[1])[None])[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("islands", [(), ("llm.layers.0.mlp", "trunk.layers.1.attn")], ids=["", "islands"])
def test_a_narrow_twin_computes_what_a_cast_model_does_bit_for_bit(
    precision: Precision, islands: tuple[str, ...], tiny: LoadedModel, embeds: torch.Tensor
) -> None:
    twin, cast = rounding_twin(tiny.model, precision, islands), cast_model(tiny.model, precision, islands)
    dtype = cast.llm.lm_head.weight.dtype
    assert torch.equal(hidden_of(twin, embeds.to(dtype)), hidden_of(cast, embeds.to(dtype)))
    frame = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (1, 112, 112, 3), dtype=np.uint8))
    with torch.no_grad(), Float16Products():
        assert torch.equal(twin.encode_frame(frame)[0], cast.encode_frame(frame)[0])


def test_a_wide_twin_differs_from_float64_in_the_angles_alone(tiny: LoadedModel, embeds: torch.Tensor) -> None:
    twin, double = rounding_twin(tiny.model, "fp32"), copy.deepcopy(tiny.model).double()
    near, far = 0, 1900
    assert (hidden_of(twin, embeds.double(), near) - hidden_of(double, embeds.double(), near)).abs().max() < 1e-6
    shared = (hidden_of(twin, embeds.double(), far) - hidden_of(double, embeds.double(), far)).abs().max()
    own = (hidden_of(twin, embeds.double(), far) - hidden_of(tiny.model, embeds, far)).abs().max()
    assert shared > 5 * own  # so plain float64 would hide a slightly wrong angle


def test_a_twin_shares_every_matrix_and_leaves_the_model_as_it_is(tiny: LoadedModel) -> None:
    before = {name: (value.data_ptr(), value.dtype) for name, value in tiny.model.named_parameters()}
    twin = rounding_twin(tiny.model, "fp32")
    assert {name: (value.data_ptr(), value.dtype) for name, value in tiny.model.named_parameters()} == before
    own = [value for name, value in twin.named_parameters() if value.data_ptr() != before[name][0]]
    assert sum(value.numel() for value in own) < 0.1 * sum(value.numel() for value in twin.parameters())


def test_noise_is_that_of_the_coarser_side(tiny: LoadedModel) -> None:
    fine, coarse = np.ones((1, 2)), np.full((1, 2), 1.5)
    at = {"graph": "llm", "tensor": "hidden", "where": Place("row")}
    wide, narrow = Reference.of(tiny.model, "fp32"), Reference.of(tiny.model, "fp16")
    assert wide.noise(coarse, fine, **at).rel_l2 == narrow.noise(fine, coarse, **at).rel_l2 == pytest.approx(0.5)  # type: ignore[arg-type]


def test_the_noise_of_a_span_looks_at_the_hidden_rows_before_its_end(tiny: LoadedModel) -> None:
    own = np.ones((1, 40, 4))
    twin = own.copy()
    twin[0, 30] = 2.0
    runs = DecoderRuns(Reference.of(tiny.model, "fp16"), DecoderRun({"hidden": own}), DecoderRun({"hidden": twin}))

    def worst(stop: int) -> float:
        return max(one.rel_l2 for one in runs.noise([Span(Place("pass"), 0, stop)]))

    assert worst(31) == worst(30 + NEIGHBOURS - 6) == pytest.approx(1.0) and worst(30) == 0.0
