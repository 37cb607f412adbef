"""Rounding noise of a model: the reference and its rounding twin, the same model in another dtype, on the same inputs.

    fp32         the twin computes in float64; the difference is the reference's own rounding
    fp16, bf16   the twin rounds every operation to that dtype, with float32 islands as exported

Angles of RoPE and of the clock are a position times a frequency. Graph and reference both round them to float32, and so
does the twin in float64. Otherwise far positions would look up to 75 times as noisy as they are, exactly where faults
of RoPE show.
Where matmuls round their inputs (graphs/eight_bits.py), the twin rounds its own inputs: a value near the middle between
two codes takes the other code, so twin and reference differ in the way a graph and the reference do.
Weights of matmuls are cast one at a time when used: a float64 copy of 8 B parameters would take 64 GB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.memory import Array
from engines.spec import Precision, Rounding
from pvc_ref import PVC
from pvc_ref.llm import Decoder, rope_angles

from ..graphs.eight_bits import EightBitLinear
from ..graphs.precision import TORCH_DTYPE, copy_in, kept_wide, make_islands
from .metrics import Difference, compare_arrays
from .places import Place, Rung


class _CastLinear(nn.Linear):
    """A linear layer that computes in another dtype than its weight is stored in."""

    dtype: torch.dtype
    is_cast = False
    """Whether the weight has been cast. One rounded to float16 may still be stored as float32 (float16_on_cpu.py)."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.is_cast else self.weight.to(self.dtype)
        return F.linear(x.to(self.dtype), weight, self.bias)


class _CastEmbedding(nn.Embedding):
    """An embedding table that returns rows in another dtype than it is stored in."""

    dtype: torch.dtype

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids).to(self.dtype)


class _Float32Angles(Decoder):
    """A float64 decoder that rotates by float32 angles."""

    def angles(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        cos, sin = rope_angles(position_ids, self.config.attention_head_dim, self.config.rope_theta, torch.float32)
        return cos.to(dtype), sin.to(dtype)


AT_CALL: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: _CastLinear, nn.Embedding: _CastEmbedding}
"""Modules with nearly all of a model's weights -> the class that casts the weight when it is used."""


def rounding_twin(model: PVC, precision: Precision, islands: Sequence[str] = ()) -> PVC:
    """The twin of a float32 model. It shares the weights of matmuls with it, so it needs little extra memory."""
    wide = precision == "fp32"
    dtype = torch.float64 if wide else TORCH_DTYPE[precision]
    kept = set() if wide else kept_wide(model, islands)
    products = (module for module in model.modules() if type(module) in AT_CALL or isinstance(module, EightBitLinear))
    shared = {id(module.weight) for module in products} | kept
    twin = copy_in(model, dtype, kept=shared)
    for module in twin.modules():
        if type(module) in AT_CALL and id(module.weight) not in kept:
            module.__class__, module.dtype = AT_CALL[type(module)], dtype  # type: ignore[assignment]
    if wide:
        twin.llm.__class__ = _Float32Angles
    else:
        make_islands(twin, islands, dtype)
    return twin


@dataclass(frozen=True, slots=True)
class Reference:
    """A float32 model and its twin. `rung` is the rung that compares them: 'torch fp32' or one of a narrow dtype."""

    model: PVC
    twin: PVC
    rung: Rung

    @staticmethod
    def of(model: PVC, precision: Precision, islands: Sequence[str] = ()) -> Reference:
        return Reference(model, rounding_twin(model, precision, islands), Rung("torch", precision))

    @property
    def rounding(self) -> Rounding:
        """The coarsest rounding in the model."""
        is_coarse = any(isinstance(module, EightBitLinear) for module in self.model.modules())
        return "int8" if is_coarse else self.rung.dtype

    @property
    def dtype(self) -> torch.dtype:
        """The twin's compute dtype."""
        return torch.float64 if self.rung.dtype == "fp32" else TORCH_DTYPE[self.rung.dtype]

    def noise(self, own: Array, twin: Array, *, graph: str, tensor: str, where: Place) -> Difference:
        """The coarser run's difference from the finer one: from float64 in fp32, else from float32."""
        got, want = (own, twin) if self.rung.dtype == "fp32" else (twin, own)
        return compare_arrays(got, want, rung=self.rung, graph=graph, tensor=tensor, where=where)
