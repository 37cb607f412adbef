"""Parts that also exist elsewhere, compared with transformers and torch: same weights, eager attention.

Note: weights are copied with strict state dicts, so a tensor that is missing on either side is an error.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    InternVLVisionConfig,
    InternVLVisionModel,
)
from transformers.models.internvl.modeling_internvl import (
    InternVLModel,
    InternVLMultiModalProjector,
    InternVLVisionLayer,
)

from pvc_ref import PVC, CompressorConfig, LLMConfig, PVCConfig, VisionConfig
from pvc_ref.compressor import QFormerLayer, pixel_shuffle
from pvc_ref.init import randomize
from pvc_ref.vision import SpatialLayer

VISION = VisionConfig(
    image_size=56, patch_size=7, hidden_size=48, num_layers=3, num_heads=6, mlp_size=80, num_temporal_layers=0
)
DECODERS = {
    "qwen2": LLMConfig(
        family="qwen2",
        vocab_size=97,
        hidden_size=48,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        mlp_size=80,
        qkv_bias=True,
        rope_theta=1e4,
        rms_norm_eps=1e-6,
    ),
    "qwen2-tied": LLMConfig(
        family="qwen2",
        vocab_size=97,
        hidden_size=48,
        num_layers=2,
        num_heads=6,
        num_kv_heads=1,
        mlp_size=80,
        qkv_bias=True,
        tie_embeddings=True,
    ),
    "internlm2": LLMConfig(  # a Llama, once its fused weights are split; a head wider than hidden_size / num_heads
        family="internlm2",
        vocab_size=97,
        hidden_size=48,
        num_layers=3,
        num_heads=6,
        num_kv_heads=2,
        head_dim=16,
        mlp_size=80,
        rope_theta=1e6,
        rms_norm_eps=1e-5,
    ),
}


pytestmark = pytest.mark.usefixtures("no_grad")


# -- vision ----------------------------------------------------------------------------------------------------------


def test_spatial_vit_equals_internvl_vision_model() -> None:
    ours = PVC.random(
        PVCConfig(vision=VISION, compressor=CompressorConfig(num_tokens=4), llm=DECODERS["qwen2"]), seed=1
    )
    theirs = vision_model_like(ours)
    assert isinstance(theirs.layernorm, nn.Identity)  # use_mean_pooling: InternVL2 has no final norm
    frames = random_frames(3, seed=2)
    expected = theirs(normalized_by_hand(frames)).last_hidden_state[:, 1:]
    actual = ours.frame_outputs(frames)[0].features
    assert actual.shape == (3, 64, 48)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)  # worst 1.4e-6


def test_internvl2_vision_side_equals_vision_model_shuffle_and_projector() -> None:
    config = PVCConfig(
        vision=VISION, compressor=CompressorConfig(kind="pixel_shuffle", num_tokens=4), llm=DECODERS["qwen2"]
    )
    ours = PVC.random(config, seed=3)
    projector = projector_like(ours)
    frames = random_frames(2, seed=4)
    features = vision_model_like(ours)(normalized_by_hand(frames)).last_hidden_state[:, 1:]
    shuffled = shuffled_by_transformers(features.unflatten(1, (8, 8)), scale_factor=0.25)
    actual, _ = ours.encode_frame(frames)
    torch.testing.assert_close(actual, projector(shuffled), rtol=0, atol=1e-5)  # worst 2.4e-6


@pytest.mark.parametrize("side", [2, 4], ids=lambda n: f"{n}x{n}")
def test_pixel_shuffle_v2_is_transformers_to_the_bit_and_v1_lists_its_tokens_column_by_column(side: int) -> None:
    patches = torch.randn(3, 64, 5, generator=seeded(5))
    tokens = 8 // side
    expected = shuffled_by_transformers(patches.unflatten(1, (8, 8)), scale_factor=1 / side)
    v2 = pixel_shuffle(patches, rows=tokens, columns=tokens, order="v2")
    v1 = pixel_shuffle(patches, rows=tokens, columns=tokens, order="v1")
    assert torch.equal(v2, expected)
    assert torch.equal(v1, expected.unflatten(1, (tokens, tokens)).transpose(1, 2).flatten(1, 2))
    assert not torch.equal(v1, v2)


def test_spatial_layer_equals_internvl_vision_layer_in_float64() -> None:
    ours = randomize(SpatialLayer(VISION).double(), seed=6)
    theirs = InternVLVisionLayer(internvl_config(VISION)).double().eval()
    theirs.load_state_dict(internvl_layer_names(ours.state_dict(), prefix=""))
    x = torch.randn(2, 65, 48, generator=seeded(7), dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-10)  # worst 8.9e-16


def test_q_former_layer_equals_torch_transformer_decoder_layer() -> None:
    ours = randomize(QFormerLayer(24, num_heads=3, mlp_size=40).double(), seed=8)
    theirs = nn.TransformerDecoderLayer(
        24, 3, 40, dropout=0.0, activation="gelu", batch_first=True, norm_first=True, dtype=torch.float64
    ).eval()
    weights = {
        "self_attn.in_proj_": "self_qkv.",
        "self_attn.out_proj.": "self_proj.",
        "multihead_attn.out_proj.": "cross_proj.",
        "linear1.": "mlp.fc1.",
        "linear2.": "mlp.fc2.",
        **{f"norm{i}.": f"norm{i}." for i in (1, 2, 3)},
    }
    state = {
        f"{to}{leaf}": ours.state_dict()[f"{of}{leaf}"] for to, of in weights.items() for leaf in ("weight", "bias")
    }
    for leaf in ("weight", "bias"):
        parts = [ours.state_dict()[f"cross_q.{leaf}"], ours.state_dict()[f"cross_kv.{leaf}"]]
        state[f"multihead_attn.in_proj_{leaf}"] = torch.cat(parts)
    theirs.load_state_dict(state)
    queries = torch.randn(2, 5, 24, generator=seeded(9), dtype=torch.float64)
    patches = torch.randn(2, 16, 24, generator=seeded(10), dtype=torch.float64)
    torch.testing.assert_close(ours(queries, patches), theirs(queries, patches), rtol=0, atol=1e-10)  # worst 8.9e-16


# -- language --------------------------------------------------------------------------------------------------------


# -- sampling --------------------------------------------------------------------------------------------------------


# -- helpers ---------------------------------------------------------------------------------------------------------


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_frames(count: int, *, seed: int) -> Tensor:
    return torch.randint(0, 256, (count, 56, 56, 3), dtype=torch.uint8, generator=seeded(seed))


def normalized_by_hand(frames: Tensor) -> Tensor:
    """(B, S, S, 3) uint8 -> (B, 3, S, S), one channel at a time, with ImageNet's numbers written out."""
    channels = [(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]
    return torch.stack([(frames[..., c].float() / 255 - mean) / std for c, (mean, std) in enumerate(channels)], dim=1)


def shuffled_by_transformers(features: Tensor, *, scale_factor: float) -> Tensor:
    return InternVLModel.pixel_shuffle(None, features, scale_factor=scale_factor).flatten(1, 2)


def internvl_config(vision: VisionConfig) -> InternVLVisionConfig:
    return InternVLVisionConfig(
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        hidden_size=vision.hidden_size,
        num_hidden_layers=vision.num_layers,
        num_attention_heads=vision.num_heads,
        intermediate_size=vision.mlp_size,
        attention_bias=True,
        layer_norm_eps=vision.layer_norm_eps,
        use_mean_pooling=True,
        attn_implementation="eager",
    )


def vision_model_like(ours: PVC) -> InternVLVisionModel:
    theirs = InternVLVisionModel(internvl_config(ours.config.vision)).eval()
    weights = ours.trunk.state_dict()
    state = {
        "embeddings.cls_token": weights["embeddings.class_embedding"],
        "embeddings.position_embeddings": weights["embeddings.position_embedding"],
        "embeddings.patch_embeddings.projection.weight": weights["embeddings.patch_embedding.weight"],
        "embeddings.patch_embeddings.projection.bias": weights["embeddings.patch_embedding.bias"],
    }
    for index, layer in enumerate(ours.trunk.layers):
        state |= internvl_layer_names(layer.state_dict(), prefix=f"encoder.layer.{index}.")
    theirs.load_state_dict(state)
    return theirs


def internvl_layer_names(layer: dict[str, Tensor], *, prefix: str) -> dict[str, Tensor]:
    """The weights of one SpatialLayer under transformers' names."""
    state = {"lambda_1": layer["ls1"], "lambda_2": layer["ls2"]}
    for leaf in ("weight", "bias"):
        for name, part in zip("qkv", layer[f"attn.qkv.{leaf}"].chunk(3), strict=True):
            state[f"attention.{name}_proj.{leaf}"] = part
        state[f"attention.projection_layer.{leaf}"] = layer[f"attn.proj.{leaf}"]
        state[f"layernorm_before.{leaf}"] = layer[f"norm1.{leaf}"]
        state[f"layernorm_after.{leaf}"] = layer[f"norm2.{leaf}"]
        state |= {f"mlp.{fc}.{leaf}": layer[f"mlp.{fc}.{leaf}"] for fc in ("fc1", "fc2")}
    return {prefix + name: weight for name, weight in state.items()}


def projector_like(ours: PVC) -> InternVLMultiModalProjector:
    config = SimpleNamespace(
        vision_config=SimpleNamespace(hidden_size=ours.config.vision.hidden_size),
        text_config=SimpleNamespace(hidden_size=ours.config.llm.hidden_size),
        downsample_ratio=0.25,
        projector_hidden_act="gelu",
    )
    theirs = InternVLMultiModalProjector(config).eval()
    renamed = {"norm": "layer_norm", "mlp.fc1": "linear_1", "mlp.fc2": "linear_2"}
    weights = ours.compressor.state_dict()
    theirs.load_state_dict(
        {f"{renamed[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": weight for name, weight in weights.items()}
    )
    return theirs
