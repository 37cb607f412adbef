"""Configurations that the tests of checkpoints share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pvc_ref import CompressorConfig, LLMConfig, PVCConfig
from pvc_ref.config import CompressorKind

CopyOf = Callable[[Path], Path]
"""Copies a folder to where it may be damaged."""

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
"""A layer of the ViT in a checkpoint."""
