"""Smoothing moves large values into the weights, and does not change a bit of the model's outputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import pvc_ref
from engines.errors import ModelError
from engines.manifest import Calibration
from engines.spec import Part, Quantization, StreamLimits
from engines.video import write_video
from pvc_export.bundles.calibrate import CalibrationRequest, calibrate
from pvc_export.graphs.models import LoadedModel, loaded_model
from pvc_export.graphs.quantize import Quantizer, prepared
from pvc_export.graphs.smoothing import ALPHA, LETTERS, ZERO, exponents_of, largest_inputs, layer_sites, smoothed
from pvc_export.parity.clip import render_clip
from pvc_ref import PVC, PVCConfig
from pvc_ref.prompt import byte_tokenizer

from ...conftest import few_layers

LIMITS = StreamLimits(window=3, context=256)
EIGHT = Quantization(bits=8, block=None, zero_points=False, method="search", inputs="rows")
IN_EIGHT: dict[Part, Quantization] = {"llm": EIGHT}


def model_of(family: str, *, tied: bool = False) -> PVC:
    """A model with one key/value head per two query heads, and nonzero biases where the family has biases."""
    config = few_layers(PVCConfig.preset("tiny"))
    llm = replace(config.llm, family=family, qkv_bias=family == "qwen2", tie_embeddings=tied)
    model = PVC.random(replace(config, llm=llm), seed=3)
    for name, weight in model.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(len(name)))
    return model


def some_exponents(model: PVC) -> dict[str, str]:
    """Random exponents for every channel of every site."""
    generator = torch.Generator().manual_seed(1)
    sizes = {
        site.source: len(model.get_parameter(f"{site.source}.weight"))
        for index in range(model.config.llm.num_layers)
        for site in layer_sites(model.config.llm, index)
    }
    return {
        name: "".join(LETTERS[int(i)] for i in torch.randint(ZERO - 6, ZERO + 7, (size,), generator=generator))
        for name, size in sizes.items()
    }


@torch.no_grad()
def hidden_of(model: PVC) -> Tensor:
    ids = torch.arange(40)[None]
    hidden, _ = model.llm(model.llm.embed_tokens(ids), torch.arange(40)[None])
    return model.llm.logits(hidden)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("family", "tied"), [("qwen2", False), ("qwen2", True), ("internlm2", False)])
def test_the_smoothed_model_is_the_model_bit_for_bit(family: str, tied: bool) -> None:
    model = model_of(family, tied=tied)
    other = smoothed(model, some_exponents(model))
    changed = {name for name, weight in other.named_parameters() if not torch.equal(weight, model.get_parameter(name))}
    parts = ("attn_norm", "q_proj", "k_proj", "v_proj", "o_proj", "mlp_norm", "gate_proj", "up_proj", "down_proj")
    assert {name.split(".")[-2] for name in changed} == set(parts)
    assert any(name.endswith("v_proj.bias") for name in changed) == (family == "qwen2")
    assert torch.equal(hidden_of(other), hidden_of(model))


def test_a_model_that_stays_in_its_files_is_smoothed_as_it_is_read(tmp_path: Path) -> None:
    model = model_of("qwen2")
    pvc_ref.save(model, tmp_path, tokenizer=byte_tokenizer())
    on_disk, exponents = pvc_ref.load(tmp_path, on_disk=True), some_exponents(model)
    want, got = smoothed(model, exponents), smoothed(on_disk, exponents)
    assert got.llm.layers[0].mlp.down_proj.weight.is_meta
    assert all(torch.equal(got.weight(name), want.weight(name)) for name, _ in want.named_parameters())


def test_exponents_are_those_of_the_paper_rounded_to_powers_of_two() -> None:
    """SmoothQuant, arXiv 2211.10438, equation 4: s = max|X|^alpha / max|W|^(1 - alpha), relative to the median."""
    rng, model = np.random.default_rng(0), model_of("qwen2")
    site = layer_sites(model.config.llm, 0)[2]
    size = model.config.llm.hidden_size
    inputs, weights = rng.lognormal(0, 2, size), [rng.normal(0, np.geomspace(0.1, 3, size), (9, size)) for _ in "gu"]
    s = inputs**ALPHA / np.abs(np.concatenate(weights)).max(0) ** (1 - ALPHA)
    got = exponents_of(site, torch.from_numpy(inputs), map(torch.from_numpy, weights))
    median = np.sort(np.log2(s))[(size - 1) // 2]
    want = np.rint(np.log2(s) - median)
    assert np.ptp(want) > 4
    # Weights are read in float32, so a value halfway between two powers may take the other one.
    off = np.abs([LETTERS.index(letter) - ZERO for letter in got] - want)
    assert off.max() <= 1 and off.sum() <= 1


def test_query_heads_that_share_a_value_head_share_its_exponents() -> None:
    model = model_of("qwen2")
    config = model.config.llm
    site, head = layer_sites(config, 0)[1], config.attention_head_dim
    assert config.num_heads == 2 * config.num_kv_heads
    channels = torch.arange(config.num_kv_heads * head)
    spread = site.spread(channels).view(config.num_heads, head)
    assert torch.equal(spread[0], spread[1]) and torch.equal(spread[2], channels[head : 2 * head])
    assert torch.equal(site.largest(site.spread(channels)), channels)


def test_a_channel_that_is_never_used_stays_as_it_is() -> None:
    site = layer_sites(model_of("qwen2").config.llm, 0)[2]
    inputs = torch.tensor([0.0, 1.0, 1e30, 1e-30])
    assert exponents_of(site, inputs, [torch.ones(2, 4)]) == "mm" + LETTERS[-1] + LETTERS[0], "exponents are limited"
    assert exponents_of(site, torch.zeros(4), [torch.ones(2, 4)]) == "mmmm"


def test_one_large_channel_costs_a_product_of_eight_bits_less_once_it_is_smoothed() -> None:
    model = model_of("qwen2")
    layer = model.llm.layers[0]
    with torch.no_grad():  # as real models have it: large inputs, small weights
        layer.mlp_norm.weight[5] *= 256
        for product in (layer.mlp.gate_proj, layer.mlp.up_proj):
            product.weight[:, 5] /= 256
    loaded = loaded_model(model, byte_tokenizer(), name="one large channel")
    quantizer = Quantizer.of(model, IN_EIGHT, "fp32")
    found = calibrate(loaded, quantizer, CalibrationRequest(), LIMITS, lambda _: None)
    letters = found.smoothing["llm.layers.0.mlp_norm"]
    assert max(letters) == letters[5] > "o"
    want = hidden_of(model)
    plain, better = (hidden_of(quantizer.with_calibration(how).model()) for how in (None, found))
    assert (better - want).square().mean() < 0.3 * (plain - want).square().mean()


def test_what_is_found_on_text_and_frames_is_the_same_on_disk_and_other_for_a_user_s_clip(
    small: LoadedModel, tmp_path: Path
) -> None:
    def found(loaded: LoadedModel, *clips: Path) -> Calibration:
        quantizer = Quantizer.of(loaded.model, IN_EIGHT, "fp32")
        return calibrate(loaded, quantizer, CalibrationRequest(clips=clips), LIMITS, lambda _: None)

    own = found(small)
    assert not own.scales and own.num_frames == 4 and len(own.smoothing) == 4
    pvc_ref.save(small.model, tmp_path, tokenizer=small.tokenizer)
    on_disk = replace(small, model=pvc_ref.load(tmp_path, on_disk=True))
    assert found(on_disk) == own
    clip = tmp_path / "dark.mp4"
    write_video(clip, [frame // 8 for frame in render_clip(5)], fps=25)
    assert found(small, clip).clips == ("dark.mp4",)


def test_inputs_are_seen_while_it_lasts_and_by_channel(small: LoadedModel) -> None:
    name = "llm.layers.0.mlp.down_proj"
    with largest_inputs(small.model, [name]) as seen:
        hidden_of(small.model)
        first = seen[name].clone()
        hidden_of(small.model)
    assert torch.equal(seen[name], first) and first.shape == (small.config.llm.mlp_size,)
    assert not small.model.get_submodule(name)._forward_pre_hooks


@pytest.mark.parametrize(
    ("source", "letters"),
    [
        ("llm.layers.0.attn_norm", "m"),
        ("llm.layers.9.attn_norm", "m" * 64),
        ("llm.norm", "m" * 64),
        ("llm.layers.0.attn_norm", "M" * 64),
    ],
    ids=["too few", "no such layer", "nothing to move", "no letters"],
)
def test_smoothing_of_another_model_is_refused(source: str, letters: str, small: LoadedModel) -> None:
    with pytest.raises(ModelError, match=f"smooths {len(letters)} channels of '{source}'"):
        smoothed(small.model, {source: letters})


def test_what_is_exported_is_smoothed_and_its_matrices_are_never_in_memory(small: LoadedModel) -> None:
    from pvc_export.graphs.hollow import hollow

    exponents = some_exponents(small.model)
    calibration = Calibration(method="error", clips=(), num_frames=1, smoothing=exponents)
    bare = prepared(hollow(small.model, keep_clock=False), IN_EIGHT, calibration)
    norm = "llm.layers.0.attn_norm.weight"
    assert torch.equal(bare.get_parameter(norm), smoothed(small.model, exponents).get_parameter(norm))
    assert bare.llm.layers[0].attn.o_proj.weight.is_meta
