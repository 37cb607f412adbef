"""Spellings of the reference's attention: the same arithmetic, written for the speed of one runtime.

A spelling is a subclass with another `forward` and nothing else. A module changes its class to get it, so its name, its
weights and the hooks of a float32 island (precision.py) are unchanged.
Dimension key: as in engines/spec.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engines.needs import OPSET, OPSET_IN_PLACE
from engines.spec import CacheUpdate, Spelling
from pvc_ref.layers import RMSNorm, attention, attention_of_scaled, upcast
from pvc_ref.llm import CausalAttention, SwiGLU, grouped_attention
from pvc_ref.temporal import KeyValue, TemporalAttention
from pvc_ref.vision import SpatialAttention

from .eight_bit_rows import EightBitRows, RoundedCausalAttention, RoundedTemporalAttention
from .eight_bits import StaticLinear
from .precision import Classes

Coded = tuple[EightBitRows, EightBitRows]
"""Keys and values of one layer."""
OPSETS = {
    "TensorScatter": OPSET_IN_PLACE, "Attention": OPSET_IN_PLACE, "RMSNormalization": OPSET_IN_PLACE,
    "RotaryEmbedding": OPSET_IN_PLACE, "QuantizeLinear": OPSET, "DequantizeLinear": OPSET,
}  # fmt: skip
"""Opset of the operators that torch does not have."""


class SplitSpatialAttention(SpatialAttention):
    """Attention within a frame, head by head. A head is a slice of the fused qkv, so nothing needs a transpose."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        heads = self.qkv(x).chunk(3 * self.num_heads, dim=-1)  # all q heads, all k heads, all v heads
        count = self.num_heads
        out = [attention(*qkv) for qkv in zip(heads[:count], heads[count : 2 * count], heads[2 * count :], strict=True)]
        joined: Tensor = self.proj(torch.cat(out, dim=-1))
        return joined


class SplitTemporalAttention(TemporalAttention):
    """Temporal attention of one new frame that concatenates scores, not caches: softmax([q k_past + bias, q k_new])."""

    def attend(self, q: Tensor, new: KeyValue, past: KeyValue | None, bias: Tensor) -> Tensor:
        """q and new (B, 1, N, H, D), past (B, N, H, W, D), bias (B, 1, W + 1) -> (B, 1, N, C)."""
        assert past is not None, "the temporal graph always has a ring"
        q, k, v = (y.permute(0, 2, 3, 1, 4) for y in (q, *new))  # (B, N, H, 1, D)
        q = q * q.shape[-1] ** -0.5
        scores = torch.cat([q @ past[0].transpose(-1, -2), (q * k).sum(-1, keepdim=True)], dim=-1)
        weights = torch.softmax(upcast(scores + bias[:, None, None]), dim=-1).to(v.dtype)
        out = weights[..., :-1] @ past[1] + weights[..., -1:] * v
        joined: Tensor = self.proj(out.permute(0, 3, 1, 2, 4).flatten(3))
        return joined


class CodedTemporalAttention(TemporalAttention):
    """The reference's temporal attention with past and new rows in codes."""

    def forward(self, x: Tensor, past: Coded, bias: Tensor) -> tuple[Tensor, Coded]:  # type: ignore[override]
        return attend_coded(self, *self.project(x), past, bias)


class CodedSplitTemporalAttention(CodedTemporalAttention, SplitTemporalAttention):
    """CodedTemporalAttention that concatenates scores, not caches."""


class CodedCausalAttention(CausalAttention):
    """The reference's causal attention with past and new rows in codes."""

    def forward(  # type: ignore[override]
        self, x: Tensor, rope: tuple[Tensor, Tensor], past: Coded, bias: Tensor
    ) -> tuple[Tensor, Coded]:
        return attend_coded(self, *self.rows(x, rope), past, bias)


def attend_coded(
    module: TemporalAttention | CausalAttention, q: Tensor, k: Tensor, v: Tensor, past: Coded, bias: Tensor
) -> tuple[Tensor, Coded]:
    """Run attention with new rows rounded as in the cache, and return its result and these rows in codes."""
    new = EightBitRows.of(k), EightBitRows.of(v)
    (k, v), (past_k, past_v) = ([rows.to(q.dtype) for rows in pair] for pair in (new, past))
    return module.attend(q, (k, v), (past_k, past_v), bias), new


@dataclass(frozen=True, kw_only=True, slots=True)
class CachesInPlace:
    """Caches (B, K, S, D) of one layer, and the index where new rows go, (B,).

    Not a tuple: a float32 island casts every tensor in a tuple, and only a direct graph input can be updated in place.
    """

    key: Tensor | EightBitRows
    value: Tensor | EightBitRows
    write_index: Tensor


class InPlaceAttention(CausalAttention):
    """Attention that first writes new rows into its cache: TensorScatter, then Attention.

    Traced, never run: torch does not have these operators. Query heads share their key/value head inside the operator,
    so that for a single row the compiler reads the cache in place.
    """

    def forward(  # type: ignore[override]  # called by InPlaceLLMGraph, with CachesInPlace
        self, x: Tensor, rope: tuple[Tensor, Tensor], past: CachesInPlace, bias: Tensor
    ) -> tuple[Tensor, CachesInPlace]:
        """x (B, L, E); bias (B, 1, L, S). In a float32 island the caches keep their dtype and x is float32."""
        q, k, v = self.rows(x, rope)
        key, value = (self.written(cache, new, past.write_index) for cache, new in ((past.key, k), (past.value, v)))
        return self.o_proj(self.attend_to(q, key, value, bias).flatten(2)), replace(past, key=key, value=value)

    def written(self, cache: Any, new: Tensor, index: Tensor) -> Any:
        """Write new rows (B, L, K, D) into a cache (B, K, S, D)."""
        rows = new.to(cache.dtype).transpose(1, 2)
        return onnx_operator("TensorScatter", (cache, rows, index), like=cache, axis=-2, mode="linear")

    def attend_to(self, q: Tensor, key: Any, value: Any, bias: Tensor) -> Tensor:
        """Queries (B, L, H, D), caches (B, K, S, D) -> (B, L, H, D)."""
        if q.dtype == key.dtype and self.mix is attention:
            q = q.transpose(1, 2)
            return onnx_operator("Attention", (q, key, value, bias), like=q).transpose(1, 2)
        # TensorRT-RTX 1.7 fails to build the operator over a cast cache, but builds the expanded form.
        key, value = (cache.to(q.dtype).transpose(1, 2) for cache in (key, value))
        return grouped_attention(q, key, value, bias, self.mix)


class OperatorAttention(InPlaceAttention):
    """InPlaceAttention for ONNX Runtime's CPU, where operations between two matmuls cost as much as the matmuls.

    Rotation is one operator. Attention is not: ONNX Runtime's operator is slower, and also computes masked rows.
    Query heads of a group stay apart: as rows of one query, their matmul copies the cache into tiles first, which for
    one row each takes twice as long. So does a matmul with a factor, which ONNX Runtime makes of a scale next to it;
    here a permutation is in between (docs/log.md).
    """

    def rows(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """As in the reference, but with cosines and sines (B, L, D / 2)."""
        q, k, v = self.project(x)
        return self.rotated(q.flatten(2), rope), self.rotated(k.flatten(2), rope), v

    def rotated(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Rotate queries or keys (B, L, H * D) -> (B, L, H, D)."""
        num_heads = x.shape[-1] // self.head_dim
        y = onnx_operator("RotaryEmbedding", (x, *rope), like=x, num_heads=num_heads)
        heads: Tensor = y.unflatten(-1, (num_heads, self.head_dim))
        return heads

    def attend_to(self, q: Tensor, key: Any, value: Any, bias: Tensor) -> Tensor:
        key, value = (cache.to(q.dtype)[:, :, None] for cache in (key, value))
        q = (q * self.head_dim**-0.5).unflatten(2, (key.shape[1], -1)).permute(0, 2, 3, 1, 4)  # (B, K, H / K, L, D)
        return attention_of_scaled(q, key, value, bias[:, None]).permute(0, 3, 1, 2, 4)


class CodedOperatorAttention(OperatorAttention):
    """OperatorAttention over caches in codes. TensorRT cannot update these in place."""

    def written(self, cache: EightBitRows, new: Tensor, index: Tensor) -> EightBitRows:
        rows = EightBitRows.of(new)
        pairs = ((cache.codes, rows.codes), (cache.scales, rows.scales))
        return EightBitRows(*(OperatorAttention.written(self, old, some, index) for old, some in pairs))


class OperatorRMSNorm(RMSNorm):
    """The norm as one operator. Traced, never run."""

    def forward(self, x: Tensor) -> Tensor:
        wide = upcast(x)
        y = onnx_operator("RMSNormalization", (wide, upcast(self.weight)), like=wide, axis=-1, epsilon=self.eps)
        return y.to(x.dtype)


class SplitSwiGLU(SwiGLU):
    """A SwiGLU whose joined matmul (joined.py) is halved by one Split, instead of by three operators."""


class QuantizedLinear(StaticLinear):
    """A linear layer with a static input scale, as QuantizeLinear and DequantizeLinear. Traced, never run."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.scale is not None
        scale, zero_point = torch.tensor(self.scale, dtype=x.dtype), torch.zeros((), dtype=torch.int8)
        codes = onnx_operator("QuantizeLinear", (x, scale, zero_point), like=x, dtype=torch.int8)
        return F.linear(onnx_operator("DequantizeLinear", (codes, scale, zero_point), like=x), self.weight, self.bias)


def onnx_operator(
    name: str, inputs: tuple[Tensor, ...], *, like: Tensor, dtype: torch.dtype | None = None, **attributes: Any
) -> Tensor:
    """Put one ONNX operator into the traced graph. Its result has the shape, and by default the dtype, of `like`."""
    version = OPSETS[name]
    return torch.onnx.ops.symbolic(
        name, inputs, attributes, dtype=dtype or like.dtype, shape=like.shape, version=version
    )


SPELLINGS: dict[Spelling, Classes] = {
    # Every target with a GPU: the reference's form. TensorRT fuses attention over ring and new row into one kernel that
    # reads the ring in place; `split` becomes separate kernels (tests/.../test_engine_gate.py).
    "concat": {RoundedTemporalAttention: CodedTemporalAttention},
    # The target `cpu`. ONNX Runtime's CPU provider copies a ring to concatenate it, and writes the scores to memory. At
    # 1025 positions one head's scores fit in the CPU cache, but those of all heads do not (docs/performance.md).
    "split": {
        SpatialAttention: SplitSpatialAttention,
        TemporalAttention: SplitTemporalAttention,
        RoundedTemporalAttention: CodedSplitTemporalAttention,
    },
}
"""Attention classes of the vision side, by spelling. engines/targets/*.json set the spelling of each target."""

CACHE_UPDATES: dict[tuple[CacheUpdate, Spelling], Classes] = {
    # TensorRT before 10.15, whose parser lacks TensorScatter, and `cuda`, until the other form has run on a GPU. The
    # reference's form: new rows are returned, and the runtime writes them into the cache.
    ("rows", "concat"): {RoundedCausalAttention: CodedCausalAttention},
    ("rows", "split"): {RoundedCausalAttention: CodedCausalAttention},
    # All others. In decoding, a fused kernel reads the cache in place, without a copy (docs/decisions/0006).
    ("aliased", "concat"): {CausalAttention: InPlaceAttention},
    # The target `cpu`, where nothing is fused (docs/performance.md).
    ("aliased", "split"): {
        CausalAttention: OperatorAttention,
        RoundedCausalAttention: CodedOperatorAttention,
        RMSNorm: OperatorRMSNorm,
        SwiGLU: SplitSwiGLU,
    },
}
"""Classes of the LLM, by cache update and spelling."""

QUANTIZED: Classes = {StaticLinear: QuantizedLinear}
"""Class for linear layers with a static input scale."""
