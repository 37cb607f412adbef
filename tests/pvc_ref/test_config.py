"""Presets have the published sizes, and errors about contradictions name both sides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from pvc_ref import PVC, CompressorConfig, ConfigError, LLMConfig, PVCConfig, VisionConfig
from pvc_ref.config import PRESETS
from pvc_ref.vision import SpatialLayer


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def internvl2(name: str) -> PVCConfig:
    """The InternVL2 that a PVC preset starts from: no temporal layers, 256 tokens per frame."""
    config = PVCConfig.preset(name)
    return replace(
        config,
        vision=replace(config.vision, num_temporal_layers=0),
        compressor=CompressorConfig(kind="pixel_shuffle", num_tokens=256),
    )


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_valid_and_can_be_built(name: str) -> None:
    config = PVCConfig.preset(name)
    assert replace(config) == config  # validated again
    assert isinstance(on_meta(lambda: PVC(config)), PVC)


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no model named 'pvc-internvl2-8B'") as info:
        PVCConfig.preset("pvc-internvl2-8B")
    assert info.value.fix == "did you mean 'pvc-internvl2-8b'?"


@pytest.mark.parametrize(
    ("make", "sides"),
    [
        (lambda: VisionConfig(image_size=450), ("450", "14")),
        (lambda: VisionConfig(hidden_size=1000), ("1000", "16")),
        (lambda: VisionConfig(num_layers=4, num_temporal_layers=5), ("= 5", "= 4")),
        (lambda: VisionConfig(num_temporal_layers=-1), ("-1", "24")),
        (lambda: VisionConfig(sinusoid_size=255), ("255", "two")),
        (lambda: VisionConfig(num_heads=0), ("num_heads is 0", "positive")),
        (lambda: CompressorConfig(num_tokens=0), ("num_tokens is 0", "positive")),
        (lambda: CompressorConfig(kind="pixelshuffle"), ("'pixelshuffle'", "'pixel_shuffle'")),
        (lambda: LLMConfig(num_heads=32, num_kv_heads=5), ("32", "5")),
        (lambda: LLMConfig(hidden_size=4100), ("4100", "32")),
        (lambda: LLMConfig(head_dim=127), ("127", "two")),
        (lambda: LLMConfig(family="internlm2", qkv_bias=True), ("qkv_bias is True", "internlm2")),
        (lambda: PVCConfig(compressor=CompressorConfig(num_tokens=81)), ("9 x 9", "32 x 32")),
        (lambda: PVCConfig(compressor=CompressorConfig(kind="pool", num_tokens=37)), ("1 x 37", "32 x 32")),
        (lambda: PVCConfig(time_mode="absolut"), ("'absolut'", "'absolute'")),
        (lambda: PVCConfig(trained_frames=0), ("trained_frames is 0", "positive")),
    ],
)
def test_contradiction_names_both_sides(make: Callable[[], object], sides: tuple[str, str]) -> None:
    with pytest.raises(ConfigError) as error:
        make()
    for side in sides:
        assert side in str(error.value)


@pytest.mark.parametrize(("num_tokens", "grid"), [(64, (8, 8)), (32, (4, 8)), (1, (1, 1)), (7, (1, 7)), (12, (3, 4))])
def test_token_grid_is_as_square_as_it_can_be(num_tokens: int, grid: tuple[int, int]) -> None:
    assert CompressorConfig(num_tokens=num_tokens).token_grid == grid


def test_pvc_8b_has_the_parameters_that_the_published_shards_leave_room_for() -> None:
    config = PVCConfig.preset("pvc-internvl2-8b")
    model = on_meta(lambda: PVC(config))
    compressor = num_parameters(model.compressor)
    assert compressor == 1_430_364_160
    assert abs(compressor - 1_430.5e6) < 2.5e6
    plain_layers = config.vision.num_temporal_layers * num_parameters(on_meta(lambda: SpatialLayer(config.vision)))
    temporal = num_parameters(model.temporal) - plain_layers
    assert temporal == 77_684_736
    assert 73.0e6 < temporal < 78.25e6
    assert num_parameters(model) == pytest.approx(9.55e9, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("pvc-internvl2-1b", 938_158_976),  # published: 0.938 B
        ("pvc-internvl2-2b", 2_205_754_368),  # 2.206 B
        ("pvc-internvl2-8b", 8_075_365_376),  # 8.075 B
    ],
)
def test_without_time_a_preset_is_the_internvl2_of_that_size(name: str, count: int) -> None:
    assert num_parameters(on_meta(lambda: PVC(internvl2(name)))) == count
    assert num_parameters(on_meta(lambda: PVC(PVCConfig.preset(name.removeprefix("pvc-"))))) == count


@pytest.mark.parametrize(
    ("name", "billions"),
    [("internvl2_5-4b", 3.71), ("internvl3-1b", 0.94), ("internvl3-2b", 2.09), ("internvl3-8b", 7.94)],
)
def test_presets_have_the_parameters_that_their_model_cards_state(name: str, billions: float) -> None:
    assert round(num_parameters(on_meta(lambda: PVC(PVCConfig.preset(name)))) / 1e9, 2) == billions
