"""The model equals the paper's equations, implemented a second time in numpy, and each of their parts matters.

Note: most tests here break the model on purpose and require the difference to exceed 100 times the tolerance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pvc_ref.layers
import pvc_ref.temporal
import pvc_ref.vision
from pvc_ref import PVC, CompressorConfig, LLMConfig, PVCConfig, VisionConfig
from pvc_ref.init import randomize
from pvc_ref.layers import MLP, attention
from pvc_ref.temporal import TemporalAttention, TemporalLayer, sinusoid
from pvc_ref.vision import SpatialAttention

from . import equations

CONFIG = PVCConfig(
    vision=VisionConfig(
        image_size=56, patch_size=7, hidden_size=24, num_layers=4, num_heads=3, mlp_size=40, num_temporal_layers=2
    ),
    compressor=CompressorConfig(num_tokens=4),  # 8 x 8 patches, 4 x 4 of them per token
    llm=LLMConfig(vocab_size=8, hidden_size=20, num_layers=1, num_heads=2, num_kv_heads=1, mlp_size=8),
)
NUM_FRAMES = 5
ATOL = 1e-10  # worst 2.4e-14; values reach 13


pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.mark.parametrize(
    ("window", "qkv_bias"),
    [(1, True), (3, True), (None, True), (3, False)],
    ids=["window=1", "window=3", "window=None", "window=3,qkv_bias=False"],
)
def test_model_equals_the_equations_in_float64(window: int | None, qkv_bias: bool) -> None:
    config = dataclasses.replace(CONFIG, vision=dataclasses.replace(CONFIG.vision, qkv_bias=qkv_bias))
    model = make_model(config)
    actual = model.encode_clip(torch.from_numpy(FRAMES), window=window).numpy()
    assert actual.shape == (2, NUM_FRAMES, 4, 20)
    np.testing.assert_allclose(actual, expected_embeds(model, window=window), rtol=0, atol=ATOL)


# -- parts the equality depends on -----------------------------------------------------------------------------------

Breakage = Callable[[PVC, pytest.MonkeyPatch], None]


def all_ones(suffix: str) -> Breakage:
    def apply(model: PVC, _: pytest.MonkeyPatch) -> None:
        for name, parameter in model.named_parameters():
            if name.endswith(suffix):
                parameter.fill_(1.0)

    return apply


def zeroed(place: str, layer: str) -> Breakage:
    """Set weight and bias of `layer` to zero, in the ViT (`temporal.`) or in the compressor (`compressor.`)."""

    def apply(model: PVC, _: pytest.MonkeyPatch) -> None:
        hits = [p for name, p in model.named_parameters() if name.startswith(place) and f".{layer}." in name]
        assert hits
        for parameter in hits:
            parameter.zero_()

    return apply


def no_time(place: str) -> Breakage:
    def apply(model: PVC, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, module in model.named_modules():
            if name.startswith(place) and name.endswith("time_embedding"):
                size = module.w2.out_features
                monkeypatch.setattr(module, "forward", lambda times, n=size: times.new_zeros(*times.shape, n))

    return apply


def norm_eps(place: str, eps: float) -> Breakage:
    def apply(model: PVC, _: pytest.MonkeyPatch) -> None:
        for name, module in model.named_modules():
            if name.startswith(place) and hasattr(module, "eps"):
                module.eps = eps

    return apply


def unscaled_softmax(module: type[SpatialAttention | TemporalAttention]) -> Breakage:
    def unscaled(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        return attention(q * q.shape[-1] ** 0.5, k, v, bias)

    def apply(_: PVC, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "mix", staticmethod(unscaled))

    return apply


def no_causal_mask(_: PVC, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        pvc_ref.temporal, "visible_to_bias", lambda visible, dtype: torch.zeros(visible.shape, dtype=dtype)
    )


def other_window(model: PVC, monkeypatch: pytest.MonkeyPatch) -> None:
    encode_clip = model.encode_clip
    monkeypatch.setattr(model, "encode_clip", lambda frames, *, window: encode_clip(frames, window=4))


def no_class_token(model: PVC, _: pytest.MonkeyPatch) -> None:
    model.trunk.embeddings.class_embedding.zero_()


def last_position_dropped(model: PVC, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drop the last position instead of the class token."""
    temporal_layers = model.temporal.layers
    step = temporal_layers[-1].step

    def rolled(*args: Any) -> Any:
        x, new = step(*args)
        return x.roll(1, dims=2), new

    monkeypatch.setattr(temporal_layers[-1], "step", rolled)


def tanh_gelu(_: PVC, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MLP, "forward", lambda mlp, x: mlp.fc2(F.gelu(mlp.fc1(x), approximate="tanh")))


def v1_shuffle(model: PVC, _: pytest.MonkeyPatch) -> None:
    model.compressor.order = "v1"


def sines_first(_: PVC, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        pvc_ref.temporal, "sinusoid", lambda times, size: sinusoid(times, size).roll(size // 2, dims=-1)
    )


def other_period(_: PVC, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pvc_ref.temporal, "SINUSOID_PERIOD", 9_000.0)


def final_norm(model: PVC, monkeypatch: pytest.MonkeyPatch) -> None:
    compress = model.compressor.forward
    monkeypatch.setattr(
        model.compressor, "forward", lambda patches, times: compress(F.layer_norm(patches, patches.shape[-1:]), times)
    )


def temporal_last(_: PVC, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(layer: Any, x: Tensor, times: Tensor, past: Any, bias: Tensor) -> Any:
        x = layer.feed_forward(layer.attend_in_frame(x.flatten(0, 1))).unflatten(0, x.shape[:2])
        attended, new = layer.temporal_attn(layer.adaln(x, x + layer.time_embedding(times)[:, :, None]), past, bias)
        return x + layer.alpha * attended, new

    monkeypatch.setattr(TemporalLayer, "step", step)


def temporal_first(_: PVC, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(layer: Any, x: Tensor, times: Tensor, past: Any, bias: Tensor) -> Any:
        attended, new = layer.temporal_attn(layer.adaln(x, x + layer.time_embedding(times)[:, :, None]), past, bias)
        x = (x + layer.alpha * attended).flatten(0, 1)
        return layer.feed_forward(layer.attend_in_frame(x)).unflatten(0, times.shape), new

    monkeypatch.setattr(TemporalLayer, "step", step)


def mean_and_std_of_bgr(_: PVC, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pvc_ref.vision, "IMAGENET_MEAN", pvc_ref.vision.IMAGENET_MEAN[::-1])
    monkeypatch.setattr(pvc_ref.vision, "IMAGENET_STD", pvc_ref.vision.IMAGENET_STD[::-1])


BREAKAGES: dict[str, Breakage] = {
    "LayerScale ls1": all_ones(".ls1"),
    "LayerScale ls2": all_ones(".ls2"),
    "alpha": all_ones(".alpha"),
    **{f"W{i} in the ViT": zeroed("temporal.", f"w{i}") for i in range(1, 7)},
    **{f"W{i} in the compressor": zeroed("compressor.", f"w{i}") for i in range(1, 7)},
    "TE in the ViT": no_time("temporal."),
    "TE in the compressor": no_time("compressor."),
    "the causal mask": no_causal_mask,
    "the window": other_window,
    "the class token": no_class_token,
    "dropping the class token": last_position_dropped,
    "erf in GELU": tanh_gelu,
    "shuffle order v2": v1_shuffle,
    "cosines before sines": sines_first,
    "a period of 10000": other_period,
    "the softmax scale in space": unscaled_softmax(SpatialAttention),
    "the softmax scale in time": unscaled_softmax(TemporalAttention),
    "eps of the trunk's norms": norm_eps("trunk.", 1e-5),
    "eps of the temporal layers' norms": norm_eps("temporal.", 1e-5),
    "eps of the compressor's norm": norm_eps("compressor.", 1e-6),
    "leaving out a final norm": final_norm,
    "time before the FFN": temporal_last,
    "space before time": temporal_first,
    "RGB order of the normalisation": mean_and_std_of_bgr,
}


@pytest.mark.parametrize("part", BREAKAGES)
def test_the_equations_test_fails_without(part: str, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(CONFIG)
    BREAKAGES[part](model, monkeypatch)
    assert worst_difference(model, expected) > 100 * ATOL  # smallest 1.2e-5, eps of the compressor's norm


def test_the_equations_test_fails_when_any_one_weight_is_another(expected: np.ndarray) -> None:
    model = make_model(CONFIG)
    unseen = []
    vision_side = [(name, p) for name, p in model.named_parameters() if not name.startswith("llm.")]
    for name, parameter in vision_side:
        kept = parameter.clone()
        parameter.flatten()[-1] += 0.1
        if worst_difference(model, expected) <= 100 * ATOL:  # smallest 4.5e-6, the slowest wave of a sinusoid
            unseen.append(name)
        parameter.copy_(kept)
    assert vision_side and not unseen


# -- helpers ---------------------------------------------------------------------------------------------------------

FRAMES = np.random.default_rng(1).integers(0, 256, (2, NUM_FRAMES, 56, 56, 3), dtype=np.uint8)


def make_model(config: PVCConfig) -> PVC:
    return randomize(PVC(config).double(), seed=2).eval()


def expected_embeds(model: PVC, *, window: int | None) -> np.ndarray:
    weights = {name: weight.numpy() for name, weight in model.state_dict().items() if not name.startswith("llm.")}
    vision = model.config.vision
    return np.stack(
        [equations.encode_clip(weights, vision, stream, tokens_a_side=2, window=window) for stream in FRAMES]
    )


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    with torch.no_grad():
        return expected_embeds(make_model(CONFIG), window=3)


def worst_difference(model: PVC, expected: np.ndarray) -> float:
    """Largest difference between a broken model and the equations for the intact one, at window 3."""
    return float(np.abs(model.encode_clip(torch.from_numpy(FRAMES), window=3).numpy() - expected).max())
