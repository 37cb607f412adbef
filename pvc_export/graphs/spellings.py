"""Other spellings of the reference's attention: the same arithmetic, written so that a runtime is fast with it.

A spelling is a subclass with another `forward` and nothing else. A module takes it by changing its class, so its name,
its weights and the hooks of a float32 island (precision.py) stay what they are.
Dimension key: as in engines/spec.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.spec import CacheUpdate, Spelling
from pvc_ref.layers import attention, upcast
from pvc_ref.llm import CausalAttention, grouped_attention, rotate
from pvc_ref.temporal import KeyValue, TemporalAttention
from pvc_ref.vision import SpatialAttention

from .eight_bits import StaticLinear
from .onnx_file import OPSET, OPSET_IN_PLACE
from .precision import ModuleT, copy_with

OPSETS = {
    "TensorScatter": OPSET_IN_PLACE, "Attention": OPSET_IN_PLACE, "QuantizeLinear": OPSET, "DequantizeLinear": OPSET,
}  # fmt: skip
"""Of operators that torch has not: the opset that they are written in."""


class SplitSpatialAttention(SpatialAttention):
    """Attention within a frame, head by head. A head is a slice of the fused qkv, so nothing is transposed either."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        heads = self.qkv(x).chunk(3 * self.num_heads, dim=-1)  # q of every head, k of every head, v of every head
        count = self.num_heads
        out = [attention(*qkv) for qkv in zip(heads[:count], heads[count : 2 * count], heads[2 * count :], strict=True)]
        joined: Tensor = self.proj(torch.cat(out, dim=-1))
        return joined


class SplitTemporalAttention(TemporalAttention):
    """Temporal attention of one new frame that joins scores instead of caches: softmax([q k_past + bias, q k_new])."""

    def forward(self, x: Tensor, past: KeyValue | None, bias: Tensor) -> tuple[Tensor, KeyValue]:
        """x (B, 1, N, C), past (B, N, H, W, D), bias (B, 1, W + 1) -> (B, 1, N, C) and the new rows (B, 1, N, H, D)."""
        assert past is not None, "the graph of one frame always has a ring"
        q, k_new, v_new = (y.unflatten(-1, (self.num_heads, -1)) for y in self.qkv(x).chunk(3, dim=-1))
        q, k, v = (y.permute(0, 2, 3, 1, 4) for y in (q, k_new, v_new))  # (B, N, H, 1, D)
        q = q * q.shape[-1] ** -0.5
        scores = torch.cat([q @ past[0].transpose(-1, -2), (q * k).sum(-1, keepdim=True)], dim=-1)
        weights = torch.softmax(upcast(scores + bias[:, None, None]), dim=-1).to(v.dtype)
        out = weights[..., :-1] @ past[1] + weights[..., -1:] * v
        return self.proj(out.permute(0, 3, 1, 2, 4).flatten(3)), (k_new, v_new)


@dataclass(frozen=True, kw_only=True, slots=True)
class CachesInPlace:
    """Caches (B, K, S, D) of one layer, and where new rows go, (B,).

    Not a tuple: a float32 island casts every tensor that it finds in one, and a compiler updates in place only what is
    an input of the graph itself.
    """

    key: Tensor
    value: Tensor
    write_index: Tensor


class InPlaceAttention(CausalAttention):
    """Attention over a cache that it first writes into: TensorScatter, then Attention.

    Traced, never run: torch has no such operators. Query heads share their key/value head inside the operator; over one
    row a compiler then reads the cache where it lies.
    """

    def forward(  # type: ignore[override]  # InPlaceLLMGraph calls it, with caches of its own kind
        self, x: Tensor, rope: tuple[Tensor, Tensor], past: CachesInPlace, bias: Tensor
    ) -> tuple[Tensor, CachesInPlace]:
        """x (B, L, E); bias (B, 1, L, S). The caches keep their dtype in a float32 island, where x has another."""
        q, k, v = self.project(x)
        q, k, v = rotate(q, *rope), rotate(k, *rope), v
        key, value = (
            onnx_operator(
                "TensorScatter", (cache, new.to(cache.dtype).transpose(1, 2), past.write_index), like=cache, axis=-2,
                mode="linear",
            )
            for cache, new in ((past.key, k), (past.value, v))
        )  # fmt: skip
        return self.o_proj(self.attend(q, key, value, bias).flatten(2)), replace(past, key=key, value=value)

    def attend(self, q: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        """Queries (B, L, H, D), caches (B, K, S, D) -> (B, L, H, D)."""
        if q.dtype == key.dtype:
            q = q.transpose(1, 2)
            return onnx_operator("Attention", (q, key, value, bias), like=q).transpose(1, 2)
        # TensorRT-RTX 1.7 fails on the operator over a cache that was cast; written out it builds.
        key, value = (cache.to(q.dtype).transpose(1, 2) for cache in (key, value))
        return grouped_attention(q, key, value, bias)


class SeenRowsAttention(InPlaceAttention):
    """The same over the rows that are there, of which `bias` knows how many: ONNX Runtime's CPU goes over a whole cache
    in its Attention, masked or not."""

    def attend(self, q: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        key, value = (cache.narrow(2, 0, bias.shape[-1]).to(q.dtype).transpose(1, 2) for cache in (key, value))
        return grouped_attention(q, key, value, bias)


class QuantizedLinear(StaticLinear):
    """What a graph says of a product with one scale for ever. Traced, never run."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.scale is not None
        scale, zero_point = torch.tensor(self.scale, dtype=x.dtype), torch.zeros((), dtype=torch.int8)
        codes = onnx_operator("QuantizeLinear", (x, scale, zero_point), like=x, dtype=torch.int8)
        return F.linear(onnx_operator("DequantizeLinear", (codes, scale, zero_point), like=x), self.weight, self.bias)


def onnx_operator(
    name: str, inputs: tuple[Tensor, ...], *, like: Tensor, dtype: torch.dtype | None = None, **attributes: Any
) -> Tensor:
    """One ONNX operator in the traced graph, whose result has the shape of `like`, and its dtype unless told
    otherwise."""
    version = OPSETS[name]
    return torch.onnx.ops.symbolic(
        name, inputs, attributes, dtype=dtype or like.dtype, shape=like.shape, version=version
    )


Classes = Mapping[type[nn.Module], type[nn.Module]]
"""Classes of the reference, and those that take their place."""

SPELLINGS: dict[Spelling, Classes] = {
    # Every target with a GPU. The reference itself: one attention over ring and new row, which TensorRT fuses into one
    # kernel that reads the ring where it lies; of `split` it makes loose kernels (tests/.../test_engine_gate.py).
    "concat": {},
    # The target `cpu`. ONNX Runtime's CPU provider copies a ring that is concatenated, and writes the scores to memory:
    # at 1025 positions those of all heads do not stay in the cache, those of one head do (docs/performance.md).
    "split": {SpatialAttention: SplitSpatialAttention, TemporalAttention: SplitTemporalAttention},
}
"""How the vision side spells attention. engines/targets/*.json say which target uses which."""

CACHE_UPDATES: dict[tuple[CacheUpdate, Spelling], Classes] = {
    # TensorRT before 10.15, whose parser lacks TensorScatter, and `cuda`, until a GPU has run the other. The reference
    # itself: new rows are returned, and the runtime puts them into the cache.
    ("rows", "concat"): {},
    ("rows", "split"): {},
    # All others. While decoding a fused kernel reads the cache where it lies, and nothing copies it
    # (docs/decisions/0006).
    ("aliased", "concat"): {CausalAttention: InPlaceAttention},
    # The target `cpu`, where nothing is fused (docs/performance.md).
    ("aliased", "split"): {CausalAttention: SeenRowsAttention},
}
"""How the LLM spells attention, by what becomes of its new rows."""

QUANTIZED: Classes = {StaticLinear: QuantizedLinear}
"""How products are spelled whose inputs have one scale for ever."""


def spelled(module: ModuleT, classes: Classes) -> ModuleT:
    """A copy of the module, in another spelling, that shares its weights; the module itself where nothing changes."""
    if not classes:
        return module
    copy = copy_with(module, lambda weight: weight)
    for part in copy.modules():
        if type(part) in classes:
            part.__class__ = classes[type(part)]
    return copy
