"""Tensor names of a checkpoint: InternVL2's, and this package's names for what PVC adds.

One list of tensors serves reading and writing. It is in the order in which InternVL2 is saved (vision_model,
language_model, mlp1), because shards are cut along it. InternLM2 packs q, k and v of a layer into one `wqkv`.
Source: tensor names of the released InternVL2, InternLM2 and Qwen2. The names in the released PVC checkpoint are not
known, so PVC's additions have the names that they have in this package.
Dimension key:  H heads   K key/value heads   G = H / K query heads that share one   D head dim   E width
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import LLMConfig, PVCConfig
from ..model import PVC


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointTensor:
    """One tensor of a checkpoint, and the model parameters it contains: one, or the q, k and v of a wqkv."""

    name: str
    shape: tuple[int, ...]
    parameters: tuple[str, ...]


def checkpoint_tensors(model: PVC) -> list[CheckpointTensor]:
    """List every tensor of a checkpoint of `model`, in saved order. Reads no weight, so `model` may be on `meta`."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    tensors = []
    for stem, parts in _stems(model.config, shapes):
        for leaf in ("", ".weight", ".bias"):
            parameters = tuple(part + leaf for part in parts)
            if parameters[0] in shapes:  # a bias, or a tied head, may not exist
                rows = sum(shapes[name][0] for name in parameters)
                shape = (rows, *shapes[parameters[0]][1:])
                tensors.append(CheckpointTensor(name=stem + leaf, shape=shape, parameters=parameters))
    listed = sorted(name for tensor in tensors for name in tensor.parameters)
    assert listed == sorted(shapes), f"parameters without exactly one name: {set(listed) ^ set(shapes)}"
    return tensors


def head_names(llm: LLMConfig) -> tuple[str, str]:
    """Names of the token embeddings and the head in a checkpoint. A tied model may store both."""
    whole = INTERNLM2 if llm.family == "internlm2" else LLAMA
    return f"language_model.{whole['embed_tokens']}.weight", f"language_model.{whole['lm_head']}.weight"


def pack_qkv(q: Tensor, k: Tensor, v: Tensor, *, head_dim: int) -> Tensor:
    """q (H * D, E), k and v (K * D, E) -> wqkv (K * (G + 2) * D, E): per key/value head [q_0 .. q_{G-1}, k, v]."""
    num_kv_heads = k.shape[0] // head_dim
    heads = [x.reshape(num_kv_heads, -1, head_dim, x.shape[-1]) for x in (q, k, v)]
    return torch.cat(heads, dim=1).flatten(0, 2)


def unpack_qkv(wqkv: Tensor, *, num_kv_heads: int, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """The inverse of `pack_qkv`. The three share no memory with wqkv or with each other."""
    heads = wqkv.reshape(num_kv_heads, -1, head_dim, wqkv.shape[-1])  # (K, G + 2, D, E)
    q, k, v = (x.flatten(0, 2).clone() for x in (heads[:, :-2], heads[:, -2:-1], heads[:, -1:]))
    return q, k, v


EMBEDDINGS = ("class_embedding", "position_embedding", "patch_embedding")
SPATIAL_PARTS = ("ls1", "ls2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "norm1", "norm2")
TEMPORAL_PARTS = (
    *("alpha", "temporal_attn.qkv", "temporal_attn.proj"),
    *("adaln.w3", "adaln.w4", "adaln.w5", "adaln.w6", "time_embedding.w1", "time_embedding.w2"),
)
SHUFFLE_PARTS = {"norm": "0", "mlp.fc1": "1", "mlp.fc2": "3"}  # positions in InternVL2's mlp1; 2 is the GELU

INTERNLM2 = {"embed_tokens": "model.tok_embeddings", "norm": "model.norm", "lm_head": "output"}
INTERNLM2_LAYER = {
    "attention.wqkv": ("attn.q_proj", "attn.k_proj", "attn.v_proj"),
    "attention.wo": ("attn.o_proj",),
    "feed_forward.w1": ("mlp.gate_proj",),
    "feed_forward.w3": ("mlp.up_proj",),
    "feed_forward.w2": ("mlp.down_proj",),
    "attention_norm": ("attn_norm",),
    "ffn_norm": ("mlp_norm",),
}
LLAMA = {"embed_tokens": "model.embed_tokens", "norm": "model.norm", "lm_head": "lm_head"}  # and Qwen2
LLAMA_LAYER = {
    "self_attn.q_proj": ("attn.q_proj",),
    "self_attn.k_proj": ("attn.k_proj",),
    "self_attn.v_proj": ("attn.v_proj",),
    "self_attn.o_proj": ("attn.o_proj",),
    "mlp.gate_proj": ("mlp.gate_proj",),
    "mlp.up_proj": ("mlp.up_proj",),
    "mlp.down_proj": ("mlp.down_proj",),
    "input_layernorm": ("attn_norm",),
    "post_attention_layernorm": ("mlp_norm",),
}

Stems = Iterator[tuple[str, tuple[str, ...]]]
"""(name in the checkpoint, names in the model), both without .weight and .bias."""


def _stems(config: PVCConfig, parameters: Mapping[str, object]) -> Stems:
    yield from _vision_stems(config)
    yield from _language_stems(config)
    yield from _compressor_stems(config, parameters)


def _vision_stems(config: PVCConfig) -> Stems:
    for part in EMBEDDINGS:
        yield f"vision_model.embeddings.{part}", (f"trunk.embeddings.{part}",)
    for layer_index in range(config.vision.num_layers):
        temporal_index = layer_index - config.vision.num_trunk_layers
        ours = f"trunk.layers.{layer_index}" if temporal_index < 0 else f"temporal.layers.{temporal_index}"
        for part in SPATIAL_PARTS if temporal_index < 0 else SPATIAL_PARTS + TEMPORAL_PARTS:
            yield f"vision_model.encoder.layers.{layer_index}.{part}", (f"{ours}.{part}",)


def _language_stems(config: PVCConfig) -> Stems:
    fused = config.llm.family == "internlm2"
    whole, layer = (INTERNLM2, INTERNLM2_LAYER) if fused else (LLAMA, LLAMA_LAYER)
    yield f"language_model.{whole['embed_tokens']}", ("llm.embed_tokens",)
    for layer_index in range(config.llm.num_layers):
        for name, parts in layer.items():
            ours = tuple(f"llm.layers.{layer_index}.{part}" for part in parts)
            yield f"language_model.model.layers.{layer_index}.{name}", ours
    for part in ("norm", "lm_head"):
        yield f"language_model.{whole[part]}", (f"llm.{part}",)


def _compressor_stems(config: PVCConfig, parameters: Mapping[str, object]) -> Stems:
    renamed = SHUFFLE_PARTS if config.compressor.kind in ("pvc", "pixel_shuffle") else {}
    ours = [name for name in parameters if name.startswith("compressor.")]
    for stem in dict.fromkeys(name.removesuffix(".weight").removesuffix(".bias") for name in ours):
        part = stem.removeprefix("compressor.")
        yield f"mlp1.{renamed.get(part, part)}", (stem,)
