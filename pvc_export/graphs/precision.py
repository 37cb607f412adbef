"""Precision is a property of the graph: the weights are cast here, and nothing later changes a dtype.

Unusual: the float32 islands that every model has are not listed here. The reference's own layers upcast where
docs/numerics.md says so; this module only keeps the *weights* of those islands in float32, so that they are not rounded
on the way. A checkpoint that leaves the range of float16 somewhere gets islands of its own, by the names of modules
('trunk.layers.1.attn'): weights, inputs and everything inside are float32, and the result is rounded.
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
"""Classes of the reference, and those that take their place."""

TORCH_DTYPE: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ISLANDS = (LayerNorm, RMSNorm, TimeEmbedding)
"""Modules whose weights stay float32; the reason for each is a row of docs/numerics.md."""


CAN_BE_ISLANDS = (
    nn.Linear, MLP, SpatialAttention, TemporalAttention, AdaLayerNorm, Embeddings, SpatialLayer, Trunk, TemporalEncoder,
    PVCCompressor, CausalAttention, SwiGLU, DecoderLayer,
)  # fmt: skip
"""Modules that are called as such, in the reference and in every graph. A TemporalLayer is not: its parts are."""


def cast_model(model: PVC, precision: Precision, islands: Sequence[str] = ()) -> PVC:
    """`model` with its weights in `precision`, those of the float32 islands excepted.

    A new module that shares every weight whose dtype stays: at 8B a second copy would not fit beside the first.
    Raises ModelError for an island that is no module of the model, or cannot be one.
    """
    dtype = TORCH_DTYPE[precision]
    narrow = copy_in(model, dtype, kept=kept_wide(model, islands))
    if dtype != torch.float32:
        make_islands(narrow, islands, dtype)
    return narrow


def copy_in(model: PVC, dtype: torch.dtype, *, kept: Collection[int]) -> PVC:
    """A copy with its weights in that dtype. It shares those whose id is kept, and those that have the dtype."""

    def cast(weight: Tensor) -> Tensor:
        if id(weight) in kept or not weight.is_floating_point() or weight.dtype == dtype:
            return weight
        values = weight.detach().to(dtype)
        return nn.Parameter(values, requires_grad=False) if isinstance(weight, nn.Parameter) else values

    return copy_with(model, cast)


def kept_wide(model: PVC, islands: Sequence[str] = ()) -> set[int]:
    """The ids of the weights that stay in float32. Raises ModelError for an island that cannot be one."""
    own = [require_island(model, name) for name in islands]
    modules = (*own, *(module for module in model.modules() if isinstance(module, ISLANDS)))
    codes = {id(m.weight) for m in model.modules() if isinstance(m, (RowsLinear, TensorLinear)) and m.block is None}
    return codes | {id(parameter) for module in modules for parameter in module.parameters()}


def make_islands(narrow: PVC, islands: Sequence[str], dtype: torch.dtype) -> None:
    """From here on these modules take float32 in place of `dtype`, and what they return is rounded to that."""
    for name in dict.fromkeys(islands):
        module = narrow.get_submodule(name)
        module.register_forward_pre_hook(
            lambda _, args, kwargs: (_cast(args, torch.float32), _cast(kwargs, torch.float32)), with_kwargs=True
        )
        module.register_forward_hook(lambda _, args, result: _cast(result, dtype))


def copy_with(module: ModuleT, weight_of: Callable[[Tensor], Tensor]) -> ModuleT:
    """A copy of a module in which every weight and buffer is `weight_of` the original: that itself, or another."""
    weights = (*module.parameters(), *module.buffers())
    # What deepcopy finds in its memo it does not copy.
    return copy.deepcopy(module, memo={id(weight): weight_of(weight) for weight in weights})


def spelled(module: ModuleT, classes: Classes) -> ModuleT:
    """A copy of the module, in another spelling, that shares its weights; the module itself where nothing changes."""
    if not any(type(part) in classes for part in module.modules()):
        return module
    copy = copy_with(module, lambda weight: weight)
    for part in copy.modules():
        if type(part) in classes:
            part.__class__ = classes[type(part)]
    return copy


def in_an_island(name: str, islands: Sequence[str]) -> bool:
    """Whether a module is, in part or whole, in float32: one of the islands, inside one, or around one."""
    return any(f"{name}.".startswith(f"{island}.") or island.startswith(f"{name}.") for island in islands)


def _kind(module: nn.Module) -> type[nn.Module]:
    """Its class, or that which it stands for: attention that rounds what it remembers can be an island as any."""
    found: type[nn.Module] = getattr(module, "stands_for", type(module))
    return found


def possible_islands(model: PVC) -> dict[str, nn.Module]:
    """Every module of a model that can be a float32 island, by its name."""
    return {name: module for name, module in model.named_modules() if _kind(module) in CAN_BE_ISLANDS}


def can_be_island(model: PVC, name: str) -> bool:
    return name in possible_islands(model)


def require_island(model: PVC, name: str) -> nn.Module:
    """The module of that name. Raises ModelError, with the nearest name that would do."""
    possible = possible_islands(model)
    if name not in possible:
        raise ModelError(
            f"'{name}' cannot be a float32 island: it is no module of this model that is called as one",
            expected="a layer or a part of one, such as 'trunk.layers.0.mlp' or 'llm.layers.1.attn'",
            fix=did_you_mean(name, possible, cutoff=0.3) or "name one of these with --island",
        )
    return possible[name]


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Every floating tensor of a nest of tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: _cast(item, dtype) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_cast(item, dtype) for item in value)
    return value
