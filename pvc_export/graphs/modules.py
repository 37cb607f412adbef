"""The six graphs as torch modules: thin wrappers that call the reference.

What a wrapper adds is the calling convention of the runtime: flat tensors instead of lists of pairs, a ring with a slot
mask instead of an ordered past, one frame instead of a clip, and the last hidden row only. The only arithmetic of its
own is a second spelling of attention, in the ViT and in the LLM, for targets where it is faster; the check holds both
to the reference.
Dimension key: as in engines/spec.py.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from engines.spec import GraphSpec, ModelShape, Spelling
from pvc_ref import PVC, PVCConfig
from pvc_ref.layers import attention, upcast, visible_to_bias
from pvc_ref.llm import CausalAttention, grouped_attention, rope_angles, rotate
from pvc_ref.temporal import KeyValue, TemporalAttention, TemporalEncoder
from pvc_ref.vision import SpatialAttention, Trunk

from .onnx_file import OPSET_IN_PLACE
from .precision import dtype_of_island, make_island

EncoderT = TypeVar("EncoderT", Trunk, TemporalEncoder)


def model_shape(config: PVCConfig) -> ModelShape:
    """What the runtime must know of a model's sizes."""
    return ModelShape(
        image_size=config.vision.image_size,
        num_positions=config.vision.num_positions,
        vision_width=config.vision.hidden_size,
        num_trunk_layers=config.vision.num_trunk_layers,
        num_temporal_layers=config.vision.num_temporal_layers,
        vision_heads=config.vision.num_heads,
        vision_head_dim=config.vision.head_dim,
        num_frame_tokens=config.compressor.num_tokens,
        # A Q-Former layer attends among its queries and to the patches; the other kinds attend to nothing.
        num_compressor_attentions=2 * config.compressor.num_q_former_layers
        if config.compressor.kind == "q_former"
        else 0,
        llm_width=config.llm.hidden_size,
        num_llm_layers=config.llm.num_layers,
        num_kv_heads=config.llm.num_kv_heads,
        llm_head_dim=config.llm.attention_head_dim,
        vocab_size=config.llm.vocab_size,
        max_positions=config.llm.max_positions,
    )


def graph_module(model: PVC, spec: GraphSpec, spelling: Spelling = "concat") -> nn.Module:
    """The torch module whose forward takes spec.inputs and returns spec.outputs, in order.

    `spelling` is the one that `spec` was made with, for it decides the layout of the rings.
    """
    assert all((state.layout == "BNHWD") == (spelling == "split") for state in spec.states if state.order == "ring")
    split = spelling == "split"
    parts: dict[str, nn.Module] = {
        "trunk": split_attention(model.trunk) if split else model.trunk,
        "temporal": TemporalGraph(split_attention(model.temporal) if split else model.temporal),
        "compressor": model.compressor,
        "embed": model.llm.embed_tokens,
        "llm": InPlaceLLMGraph(model) if spec.aliases else LLMGraph(model),
        "head": HeadGraph(model),
    }
    return parts[spec.name].eval()


def graph_parameters(model: PVC, name: str) -> dict[str, Tensor]:
    """The weights that graph `name` must hold, by their names in the model."""
    prefixes = {
        "trunk": ("trunk.",),
        "temporal": ("temporal.",),
        "compressor": ("compressor.",),
        "embed": ("llm.embed_tokens.",),
        "llm": ("llm.layers.", "llm.norm."),
        "head": ("llm.lm_head.",),
    }[name]
    parameters = model.named_parameters(remove_duplicate=False)  # a tied head is a weight of both graphs
    return {key: value for key, value in parameters if key.startswith(prefixes)}


class TemporalGraph(nn.Module):
    """One frame through the temporal layers, its past in a ring."""

    def __init__(self, encoder: TemporalEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(
        self, trunk_features: Tensor, frame_time: Tensor, slot_mask: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        """(B, N, C), (B,), bool (B, W), rings (B, W, N, H, D) -> features (B, N - 1, C), new rows (B, N, H, D)."""
        itself = torch.ones_like(slot_mask[:, :1])
        bias = visible_to_bias(torch.cat([slot_mask, itself], dim=1), trunk_features.dtype)[:, None]
        features, new = self.encoder(trunk_features[:, None], frame_time[:, None], pairs(past), bias)
        return features[:, 0], *(row[:, 0] for pair in new for row in pair)


def split_attention(part: EncoderT) -> EncoderT:
    """A copy of trunk or temporal encoder in the spelling `split`. It shares the weights of the original."""
    part = copy.deepcopy(part, memo={id(weight): weight for weight in part.parameters()})
    for layer in part.layers:
        layer.attn = _in_place_of(layer.attn, SplitSpatialAttention(cast(SpatialAttention, layer.attn)))
        if isinstance(part, TemporalEncoder):
            reference = cast(TemporalAttention, layer.temporal_attn)
            layer.temporal_attn = _in_place_of(reference, SplitTemporalAttention(reference))
    return part


def _in_place_of(reference: Any, other: nn.Module) -> nn.Module:
    """The other spelling of a module, a float32 island where the module is one."""
    dtype = dtype_of_island(reference)
    if dtype is not None:
        make_island(other, dtype)
    return other


class SplitSpatialAttention(nn.Module):
    """The reference's attention within a frame, head by head, for runtimes that write the scores to memory.

    At 1025 positions the scores of all heads together do not stay in a CPU's cache, those of one head do. A head is a
    slice of the fused qkv, so nothing is transposed either.
    """

    def __init__(self, reference: SpatialAttention) -> None:
        super().__init__()
        self.num_heads, self.qkv, self.proj = reference.num_heads, reference.qkv, reference.proj

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        heads = self.qkv(x).chunk(3 * self.num_heads, dim=-1)  # q of every head, k of every head, v of every head
        count = self.num_heads
        out = [attention(*qkv) for qkv in zip(heads[:count], heads[count : 2 * count], heads[2 * count :], strict=True)]
        joined: Tensor = self.proj(torch.cat(out, dim=-1))
        return joined


class SplitTemporalAttention(nn.Module):
    """The reference's temporal attention of one new frame, spelled for runtimes that copy what is concatenated.

    Scores are joined instead of caches: softmax([q k_past + bias, q k_new]), with the ring as (B, N, H, W, D).
    """

    def __init__(self, reference: TemporalAttention) -> None:
        super().__init__()
        self.num_heads, self.qkv, self.proj = reference.num_heads, reference.qkv, reference.proj

    def forward(self, x: Tensor, past: KeyValue, bias: Tensor) -> tuple[Tensor, KeyValue]:
        """x (B, 1, N, C), past (B, N, H, W, D), bias (B, 1, W + 1) -> (B, 1, N, C) and the new rows (B, 1, N, H, D)."""
        q, k_new, v_new = (y.unflatten(-1, (self.num_heads, -1)) for y in self.qkv(x).chunk(3, dim=-1))
        q, k, v = (y.permute(0, 2, 3, 1, 4) for y in (q, k_new, v_new))  # (B, N, H, 1, D)
        q = q * q.shape[-1] ** -0.5
        scores = torch.cat([q @ past[0].transpose(-1, -2), (q * k).sum(-1, keepdim=True)], dim=-1)
        weights = torch.softmax(upcast(scores + bias[:, None, None]), dim=-1).to(v.dtype)
        out = weights[..., :-1] @ past[1] + weights[..., -1:] * v
        return self.proj(out.permute(0, 3, 1, 2, 4).flatten(3)), (k_new, v_new)


class LLMGraph(nn.Module):
    """L new rows through the decoder layers: prefill, frame ingest and decode alike."""

    def __init__(self, model: PVC) -> None:
        super().__init__()
        self.decoder = model.llm

    def forward(
        self, inputs_embeds: Tensor, position_ids: Tensor, attention_mask: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        """(B, L, E), (B, L), (B, P + L), caches (B, P, K, D) -> hidden (B, 1, E), new rows (B, L, K, D)."""
        hidden, new = self.decoder(inputs_embeds, position_ids, pairs(past), attention_mask)
        return hidden[:, -1:], *(rows for pair in new for rows in pair)


class InPlaceLLMGraph(nn.Module):
    """The same rows through the same layers, written into the caches by the graph itself (opset 24).

    Only attention is spelled anew; norms, rotation and MLPs are the reference's modules: the compiler makes as many
    kernels of them as of opset 23's RMSNormalization and RotaryEmbedding.
    """

    def __init__(self, model: PVC) -> None:
        super().__init__()
        self.decoder = copy.deepcopy(model.llm, memo={id(weight): weight for weight in model.llm.parameters()})
        for layer in self.decoder.layers:
            layer.attn = _in_place_of(layer.attn, InPlaceAttention(cast(CausalAttention, layer.attn)))

    def forward(
        self, inputs_embeds: Tensor, position_ids: Tensor, write_index: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        """(B, L, E), (B, L), (B,), caches (B, K, S, D) -> hidden (B, 1, E), the same caches with the new rows."""
        config, dtype = self.decoder.config, inputs_embeds.dtype
        slots = torch.arange(past[0].shape[2])[None, None]
        rows = write_index[:, None, None] + torch.arange(inputs_embeds.shape[1])[None, :, None]
        bias = visible_to_bias(slots <= rows, dtype)[:, None]  # (B, 1, L, S): what lies behind a row is not there yet
        rope = rope_angles(position_ids, config.attention_head_dim, config.rope_theta, dtype)
        x, caches = inputs_embeds, []
        for layer, (key, value) in zip(self.decoder.layers, pairs(past), strict=True):
            past_rows = CachesInPlace(key=key, value=value, write_index=write_index)
            x, updated = layer(x, rope, past_rows, bias)
            caches += [updated.key, updated.value]
        return self.decoder.norm(x)[:, -1:], *caches


@dataclass(frozen=True, kw_only=True, slots=True)
class CachesInPlace:
    """Caches (B, K, S, D) of one layer, and where new rows go, (B,).

    No tuple: a float32 island casts every tensor that it finds in one, and a compiler updates in place only what is an
    input of the graph itself.
    """

    key: Tensor
    value: Tensor
    write_index: Tensor


class InPlaceAttention(nn.Module):
    """The reference's attention over a cache that it first writes into: TensorScatter, then Attention.

    Traced, never run: torch has no such operators. Query heads share their key/value head inside the operator; over one
    row a compiler then reads the cache where it lies.
    """

    def __init__(self, reference: CausalAttention) -> None:
        super().__init__()
        self.head_dim = reference.head_dim
        self.q_proj, self.k_proj, self.v_proj = reference.q_proj, reference.k_proj, reference.v_proj
        self.o_proj = reference.o_proj

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], past: CachesInPlace, bias: Tensor
    ) -> tuple[Tensor, CachesInPlace]:
        """x (B, L, E); bias (B, 1, L, S). The caches keep their dtype in a float32 island, where x has another."""
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = (y.transpose(1, 2) for y in (rotate(q, *rope), rotate(k, *rope), v))
        key, value = (
            _operator(
                "TensorScatter", (cache, new.to(cache.dtype), past.write_index), like=cache, axis=-2, mode="linear"
            )
            for cache, new in ((past.key, k), (past.value, v))
        )
        if q.dtype == key.dtype:
            out = _operator("Attention", (q, key, value, bias), like=q).transpose(1, 2)
        else:  # TensorRT-RTX 1.7 fails on the operator over a cache that was cast; written out it builds
            q, wide_key, wide_value = (y.to(q.dtype).transpose(1, 2) for y in (q, key, value))
            out = grouped_attention(q, wide_key, wide_value, bias)
        return self.o_proj(out.flatten(2)), replace(past, key=key, value=value)


def _operator(name: str, inputs: tuple[Tensor, ...], *, like: Tensor, **attributes: Any) -> Tensor:
    """One ONNX operator of opset 24 in the traced graph, whose result has the dtype and shape of `like`."""
    result: Tensor = torch.onnx.ops.symbolic(
        name, inputs, attributes, dtype=like.dtype, shape=like.shape, version=OPSET_IN_PLACE
    )
    return result


class HeadGraph(nn.Module):
    """Logits of one hidden row. Ingesting a frame does not run it."""

    def __init__(self, model: PVC) -> None:
        super().__init__()
        self.decoder = model.llm

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, 1, E) -> float32 (B, V)."""
        logits: Tensor = self.decoder.logits(hidden[:, 0])
        return logits


def pairs(tensors: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """key, value, key, value, ... -> [(key, value), ...]"""
    return list(zip(tensors[0::2], tensors[1::2], strict=True))
