"""Weights that stay in a checkpoint's files: read by name, one at a time, and forgotten.

A file is opened for each tensor. While it is open its pages count as this process's memory, and all of them would be
touched in the end: 19 GB of a model of 9.5 B parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..config import LLMConfig
from ..errors import CheckpointError
from .files import listing
from .tensor_names import CheckpointTensor, unpack_qkv

AT_ONCE = 1 << 22
"""Values that are looked at together."""
Pieces = tuple[tuple[Path, str], ...]
"""Where a tensor lies: a file and the tensor's name in it, several where the files have it in pieces."""


@dataclass(frozen=True, slots=True)
class Shard:
    """An open safetensors file."""

    path: Path
    file: Any

    def get_tensor(self, name: str) -> Tensor:
        value: Tensor = self.file.get_tensor(name)
        return value

    def get_slice(self, name: str) -> Any:
        return self.file.get_slice(name)

    def pieces(self, name: str) -> Pieces:
        return ((self.path, name),)


def read_tensor(pieces: Pieces) -> Tensor:
    """A tensor in the dtype of its file, in memory of its own."""
    values = []
    for path, name in pieces:
        with safe_open(path, framework="pt") as file:
            values.append(file.get_tensor(name).clone())  # what safetensors returns may be a view of the mapped file
    return values[0] if len(values) == 1 else torch.cat(values)


def is_finite(value: Tensor) -> bool:
    """Whether no value is NaN or infinite. A sum is a tenth of the work, and finite only if all are; of a narrow dtype
    it takes a float32 copy, so it is made piece by piece."""
    some = value.flatten().split(AT_ONCE)
    return all(bool(torch.isfinite(one.sum(dtype=torch.float32))) or bool(torch.isfinite(one).all()) for one in some)


def not_finite(folder: Path, names: Sequence[str]) -> CheckpointError:
    """The error for tensors that hold NaN or infinity."""
    return CheckpointError(
        f"{folder}: {len(names)} tensors hold NaN or infinity: {listing(names)}",
        expected="finite weights",
        cause="a training that diverged, or weights beyond the range of the dtype that they were saved in",
        fix="take an earlier checkpoint, or save it in bfloat16 or float32",
    )


def split(tensor: CheckpointTensor, value: Tensor, llm: LLMConfig) -> tuple[Tensor, ...]:
    """The parameters that a tensor of the files holds."""
    if len(tensor.parameters) == 1:
        return (value,)
    return unpack_qkv(value, num_kv_heads=llm.num_kv_heads, head_dim=llm.attention_head_dim)


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """The weights of a checkpoint folder by their names in the model.

    places  of each parameter, the tensor that holds it, and where that lies
    """

    folder: Path
    places: Mapping[str, tuple[CheckpointTensor, Pieces]]
    llm: LLMConfig
    dtype: torch.dtype

    def __call__(self, name: str) -> Tensor:
        """One of them, read anew, in `dtype`. Raises CheckpointError if it is not finite."""
        tensor, pieces = self.places[name]
        value = read_tensor(pieces)
        if not is_finite(value):
            raise not_finite(self.folder, [tensor.name])
        parts = split(tensor, value, self.llm)
        index = tensor.parameters.index(name) if len(parts) > 1 else 0  # a tied head is held under another name
        return parts[index].to(self.dtype).contiguous()
