"""Shared parts of the checkpoint tests: configurations, damage to files, and the expected refusal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pvc_ref import CompressorConfig, LLMConfig, PVCConfig, load
from pvc_ref.config import CompressorKind
from pvc_ref.errors import CheckpointError

CopyOf = Callable[[Path], Path]
"""Copies a folder so that a test may damage it."""

TINY = PVCConfig.preset("tiny")
KINDS: tuple[CompressorKind, ...] = ("pvc", "pixel_shuffle", "pool", "conv", "q_former")
INTERNLM2 = replace(TINY.llm, family="internlm2", qkv_bias=False)
LLMS = {
    "internlm2": INTERNLM2,
    "internlm2-one-kv-head": replace(INTERNLM2, num_kv_heads=1),
    "internlm2-tied": replace(INTERNLM2, tie_embeddings=True),
    "qwen2": TINY.llm,
    "qwen2-tied": replace(TINY.llm, tie_embeddings=True),
    "qwen2-wide-heads": replace(TINY.llm, head_dim=32),
    "llama": replace(TINY.llm, family="llama", qkv_bias=False),
}


def with_compressor(kind: CompressorKind) -> PVCConfig:
    return replace(TINY, compressor=CompressorConfig(kind=kind, num_tokens=4, shuffle="v1", num_q_former_layers=1))


def with_llm(llm: LLMConfig) -> PVCConfig:
    return replace(TINY, llm=llm)


def plain_internvl2(config: PVCConfig, *, num_tokens: int = 256) -> PVCConfig:
    return replace(
        config,
        vision=replace(config.vision, num_temporal_layers=0),
        compressor=CompressorConfig(kind="pixel_shuffle", num_tokens=num_tokens),
        num_image_repeats=1,
    )


def leaves(*stems: str) -> list[str]:
    return [f"{stem}.{leaf}" for stem in stems for leaf in ("weight", "bias")]


VISION_PARTS = ["ls1", "ls2", *leaves("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "norm1", "norm2")]
"""Prefix of a ViT layer's tensors in a checkpoint."""


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def refusal(folder: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as info:
        load(folder)
    assert str(folder) in info.value.what
    return info.value


def internvl2_8b_json(**changes: Any) -> dict[str, Any]:
    """The content of InternVL2-8B's config.json. A change names its key, nested by __: `llm_config__bias=True`."""
    data: dict[str, Any] = {
        "architectures": ["InternVLChatModel"],
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": 448,
        "llm_config": {
            "architectures": ["InternLM2ForCausalLM"],
            "bias": False,
            "hidden_act": "silu",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "max_position_embeddings": 32768,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {"factor": 2.0, "type": "dynamic"},
            "rope_theta": 1000000,
            "tie_word_embeddings": False,
            "vocab_size": 92553,
        },
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internlm2-chat",
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "hidden_act": "gelu",
            "hidden_size": 1024,
            "image_size": 448,
            "intermediate_size": 4096,
            "layer_norm_eps": 1e-06,
            "norm_type": "layer_norm",
            "num_attention_heads": 16,
            "num_channels": 3,
            "num_hidden_layers": 24,
            "patch_size": 14,
            "qk_normalization": False,
            "qkv_bias": True,
        },
    }
    for place, value in changes.items():
        section, _, key = place.rpartition("__")
        target = data[section] if section else data
        if value is ...:
            del target[key]
        else:
            target[key] = value
    return data
