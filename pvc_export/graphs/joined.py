"""Matmuls with the same input as one wide matmul and a Split: q|k|v and gate|up of the LLM, W3|W5 of AdaLN.

A compiler joins matmuls with the same input by itself, and TensorRT 10.13 and later is known to corrupt the result at
batch 1; a single matmul leaves nothing to join. It also means fewer and larger kernels.
A joined weight contains its parts' rows back to back, bit for bit. A module is not joined if one part alone is an
island. The vision side's q|k|v is already one weight in the reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvc_ref import PVC
from pvc_ref.llm import CausalAttention, SwiGLU
from pvc_ref.temporal import AdaLayerNorm

from .eight_bit_rows import RoundedCausalAttention
from .eight_bits import EightBitLinear
from .precision import ModuleT, copy_with
from .spellings import CodedCausalAttention, CodedOperatorAttention, InPlaceAttention, OperatorAttention, SplitSwiGLU


class JoinedAttention(CausalAttention):
    qkv_proj: nn.Linear
    sizes: list[int]

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (y.unflatten(-1, (-1, self.head_dim)) for y in self.qkv_proj(x).split(self.sizes, dim=-1))
        return q, k, v


# These classes join the projections only; the second base class defines the attention.


class JoinedInPlaceAttention(JoinedAttention, InPlaceAttention):
    pass


class JoinedOperatorAttention(JoinedAttention, OperatorAttention):
    def rows(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Rotate queries and keys together."""
        *to_rotate, of_v = self.sizes
        both, v = self.qkv_proj(x).split([sum(to_rotate), of_v], dim=-1)
        q, k = self.rotated(both, rope).split([size // self.head_dim for size in to_rotate], dim=2)
        return q, k, v.unflatten(-1, (-1, self.head_dim))


class JoinedRoundedAttention(JoinedAttention, RoundedCausalAttention):
    pass


class JoinedCodedAttention(JoinedAttention, CodedCausalAttention):
    pass


class JoinedCodedOperatorAttention(JoinedOperatorAttention, CodedOperatorAttention):
    pass


class JoinedSwiGLU(SwiGLU):
    """Halves by a Reshape: with a Split, TensorRT-RTX stores the joined weight once per profile (docs/log.md)."""

    gate_up_proj: nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        halves = self.gate_up_proj(x).unflatten(-1, (2, -1))
        down: Tensor = self.down_proj(F.silu(halves[..., 0, :]) * halves[..., 1, :])
        return down


class JoinedSplitSwiGLU(SplitSwiGLU):
    gate_up_proj: nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        down: Tensor = self.down_proj(F.silu(gate) * up)
        return down


class JoinedAdaLayerNorm(AdaLayerNorm):
    w35: nn.Linear
    sizes: list[int]

    def hidden(self, z: Tensor) -> tuple[Tensor, Tensor]:
        of_gamma, of_beta = F.silu(self.w35(z)).split(self.sizes, dim=-1)
        return of_gamma, of_beta


JOINED: dict[type[nn.Module], type[nn.Module]] = {
    CausalAttention: JoinedAttention,
    SwiGLU: JoinedSwiGLU,
    SplitSwiGLU: JoinedSplitSwiGLU,
    AdaLayerNorm: JoinedAdaLayerNorm,
    InPlaceAttention: JoinedInPlaceAttention,
    OperatorAttention: JoinedOperatorAttention,
    RoundedCausalAttention: JoinedRoundedAttention,
    CodedCausalAttention: JoinedCodedAttention,
    CodedOperatorAttention: JoinedCodedOperatorAttention,
}
PARTS = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj"), "w35": ("w3", "w5")}
"""Name of a joined matmul -> names of its parts, in order."""


def joined(module: ModuleT) -> ModuleT:
    """Return a copy in which matmuls with the same input are joined. It shares all other weights."""
    copy = copy_with(module, lambda weight: weight)
    for part in list(copy.modules()):
        if found := _product_of(part):
            name, linears = found
            part.__class__ = JOINED[type(part)]
            part.sizes = [linear.out_features for linear in linears]  # type: ignore[assignment]
            for part_name in PARTS[name]:
                delattr(part, part_name)
            setattr(part, name, _join(linears))
    return copy


def part_at(model: PVC, name: str, channel: int) -> str:
    """Return the model's name for a graph's `name`; for a joined matmul, that of the part with this output channel."""
    owner, _, product = name.rpartition(".")
    for part in PARTS.get(product, ()):
        size = model.get_submodule(f"{owner}.{part}").out_features
        if channel < size:  # type: ignore[operator]
            return f"{owner}.{part}"
        channel -= size  # type: ignore[operator, assignment]
    return name


def _product_of(part: nn.Module) -> tuple[str, list[nn.Linear]] | None:
    """Return the name of a module's joined matmul and its parts, or None if they cannot be joined."""
    if type(part) not in JOINED:
        return None
    name, linears = next(_products(part))
    hooked = any(linear._forward_hooks or linear._forward_pre_hooks for linear in linears)
    same = len({(type(linear), linear.weight.dtype) for linear in linears}) == 1
    return (name, linears) if same and not hooked else None


def _products(part: nn.Module) -> Iterator[tuple[str, list[nn.Linear]]]:
    for name, parts in PARTS.items():
        if all(isinstance(getattr(part, own, None), nn.Linear) for own in parts):
            yield name, [getattr(part, own) for own in parts]


def _join(parts: Sequence[nn.Linear]) -> nn.Linear:
    biases = [part.bias for part in parts if part.bias is not None]
    with torch.device("meta"):
        whole = nn.Linear(parts[0].in_features, sum(part.out_features for part in parts), bias=bool(biases))
    whole.__class__ = type(parts[0])  # all parts round their common input in the same way
    if isinstance(whole, EightBitLinear):
        whole.block, whole.scale = parts[0].block, parts[0].scale  # type: ignore[assignment]
    whole.weight = nn.Parameter(torch.cat([part.weight.detach() for part in parts]), requires_grad=False)
    if biases:
        whole.bias = nn.Parameter(torch.cat([bias.detach() for bias in biases]), requires_grad=False)
    return whole
