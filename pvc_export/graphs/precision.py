"""Precision of a graph: the weights are cast here, and nothing later changes a dtype.

The float32 islands that every model has are not listed here: the reference's layers upcast where docs/numerics.md says
so, and this module only keeps the *weights* of those islands in float32. A checkpoint whose values overflow float16
somewhere gets additional islands, by module name ('trunk.layers.1.attn'): weights, inputs and everything inside are
float32, and the result is rounded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from engines.errors import ModelError
from engines.spec import Precision
from engines.terminal import did_you_mean
from pvc_ref import PVC
from pvc_ref.compressor import PVCCompressor
from pvc_ref.layers import MLP, LayerNorm, RMSNorm
from pvc_ref.llm import CausalAttention, DecoderLayer, SwiGLU
from pvc_ref.temporal import AdaLayerNorm, TemporalAttention, TemporalEncoder, TimeEmbedding
from pvc_ref.vision import Embeddings, SpatialAttention, SpatialLayer, Trunk

from .eight_bits import RowsLinear, TensorLinear

ModuleT = TypeVar("ModuleT", bound=nn.Module)
Classes = Mapping[type[nn.Module], type[nn.Module]]
"""Classes of the reference -> their replacements."""

TORCH_DTYPE: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ISLANDS = (LayerNorm, RMSNorm, TimeEmbedding)
"""Modules whose weights stay float32; docs/numerics.md gives the reason for each."""


CAN_BE_ISLANDS = (
    nn.Linear, MLP, SpatialAttention, TemporalAttention, AdaLayerNorm, Embeddings, SpatialLayer, Trunk, TemporalEncoder,
    PVCCompressor, CausalAttention, SwiGLU, DecoderLayer,
)  # fmt: skip
"""Modules that are called as a whole in the reference and in every graph. A TemporalLayer is not; its parts are."""


def cast_model(model: PVC, precision: Precision, islands: Sequence[str] = ()) -> PVC:
    """Return `model` with its weights in `precision`, except those of float32 islands.

    The new module shares every weight whose dtype does not change: at 8B, memory would not suffice for a second copy.
    Raises ModelError for an island that is not a module of the model, or cannot be an island.
    """
    dtype = TORCH_DTYPE[precision]
    narrow = copy_in(model, dtype, kept=kept_wide(model, islands))
    if dtype != torch.float32:
        make_islands(narrow, islands, dtype)
    return narrow


def copy_in(model: PVC, dtype: torch.dtype, *, kept: Collection[int]) -> PVC:
    """Return a copy with weights in `dtype`. It shares those whose id is in `kept`, and those that have the dtype."""

    def cast(weight: Tensor) -> Tensor:
        if id(weight) in kept or not weight.is_floating_point() or weight.dtype == dtype:
            return weight
        values = weight.detach().to(dtype)
        return nn.Parameter(values, requires_grad=False) if isinstance(weight, nn.Parameter) else values

    return copy_with(model, cast)


def kept_wide(model: PVC, islands: Sequence[str] = ()) -> set[int]:
    """Return the ids of the weights that stay float32. Raises ModelError for an island that cannot be one."""
    own = [require_island(model, name) for name in islands]
    modules = (*own, *(module for module in model.modules() if isinstance(module, ISLANDS)))
    codes = {id(m.weight) for m in model.modules() if isinstance(m, (RowsLinear, TensorLinear)) and m.block is None}
    return codes | {id(parameter) for module in modules for parameter in module.parameters()}


def make_islands(narrow: PVC, islands: Sequence[str], dtype: torch.dtype) -> None:
    """Make these modules compute in float32, in place: inputs are cast to float32, results rounded to `dtype`."""
    for name in dict.fromkeys(islands):
        module = narrow.get_submodule(name)
        module.register_forward_pre_hook(
            lambda _, args, kwargs: (_cast(args, torch.float32), _cast(kwargs, torch.float32)), with_kwargs=True
        )
        module.register_forward_hook(lambda _, args, result: _cast(result, dtype))


def copy_with(module: ModuleT, weight_of: Callable[[Tensor], Tensor]) -> ModuleT:
    """Return a copy of a module in which `weight_of` maps every weight and buffer: to itself, or to another tensor."""
    weights = (*module.parameters(), *module.buffers())
    # deepcopy does not copy objects that are in its memo.
    return copy.deepcopy(module, memo={id(weight): weight_of(weight) for weight in weights})


def spelled(module: ModuleT, classes: Classes) -> ModuleT:
    """Return a copy in another spelling, which shares its weights; the module itself if nothing changes."""
    if not any(type(part) in classes for part in module.modules()):
        return module
    copy = copy_with(module, lambda weight: weight)
    for part in copy.modules():
        if type(part) in classes:
            part.__class__ = classes[type(part)]
    return copy


def in_an_island(name: str, islands: Sequence[str]) -> bool:
    """Whether a module is partly or wholly in float32: an island, inside one, or containing one."""
    return any(f"{name}.".startswith(f"{island}.") or island.startswith(f"{name}.") for island in islands)


def _kind(module: nn.Module) -> type[nn.Module]:
    """Return its class, or the class it stands for, so that attention with a rounded cache can also be an island."""
    found: type[nn.Module] = getattr(module, "stands_for", type(module))
    return found


def possible_islands(model: PVC) -> dict[str, nn.Module]:
    """Map names to the modules of a model that can be float32 islands."""
    return {name: module for name, module in model.named_modules() if _kind(module) in CAN_BE_ISLANDS}


def can_be_island(model: PVC, name: str) -> bool:
    return name in possible_islands(model)


def require_island(model: PVC, name: str) -> nn.Module:
    """Return the named module. Raises ModelError that suggests the nearest possible name."""
    possible = possible_islands(model)
    if name not in possible:
        raise ModelError(
            f"'{name}' cannot be a float32 island: this model has no module of that name that is called as a whole",
            expected="a layer or a part of one, such as 'trunk.layers.0.mlp' or 'llm.layers.1.attn'",
            fix=did_you_mean(name, possible, cutoff=0.3) or "pass one of these with --island",
        )
    return possible[name]


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Cast every floating-point tensor in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: _cast(item, dtype) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_cast(item, dtype) for item in value)
    return value
