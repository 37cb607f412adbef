"""Weights that stay in a checkpoint's files: read by name, one at a time, and not kept in memory.

The file is opened for each tensor and closed again. The pages of an open file count as this process's memory, and in
the end all of them would: 19 GB for a model of 9.5 B parameters.
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
"""Number of values that are checked together."""
Pieces = tuple[tuple[Path, str], ...]
"""Location of a tensor: a file and the name in it; several if the files store the tensor in parts."""


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
    """Read a tensor into new memory, in the file's dtype."""
    values = []
    for path, name in pieces:
        with safe_open(path, framework="pt") as file:
            values.append(file.get_tensor(name).clone())  # safetensors may return a view of the mapped file
    return values[0] if len(values) == 1 else torch.cat(values)


def is_finite(value: Tensor) -> bool:
    """Whether no value is NaN or infinite.

    A finite sum proves it at a tenth of the work. Summing a 16-bit dtype needs a float32 copy, so it is done in chunks.
    """
    some = value.flatten().split(AT_ONCE)
    return all(bool(torch.isfinite(one.sum(dtype=torch.float32))) or bool(torch.isfinite(one).all()) for one in some)


def not_finite(folder: Path, names: Sequence[str]) -> CheckpointError:
    """Make the error for tensors that contain NaN or infinity."""
    return CheckpointError(
        f"{folder}: {len(names)} tensors contain NaN or infinity: {listing(names)}",
        expected="finite weights",
        cause="training diverged, or the weights exceed the range of the dtype in which they were saved",
        fix="use an earlier checkpoint, or save it in bfloat16 or float32",
    )


def split(tensor: CheckpointTensor, value: Tensor, llm: LLMConfig) -> tuple[Tensor, ...]:
    """Split a stored tensor into the parameters it contains."""
    if len(tensor.parameters) == 1:
        return (value,)
    return unpack_qkv(value, num_kv_heads=llm.num_kv_heads, head_dim=llm.attention_head_dim)


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """The weights of a checkpoint folder by their names in the model.

    places  parameter name -> the stored tensor that contains it, and the location of that tensor
    """

    folder: Path
    places: Mapping[str, tuple[CheckpointTensor, Pieces]]
    llm: LLMConfig
    dtype: torch.dtype

    def __call__(self, name: str) -> Tensor:
        """Read one weight from its file, in `dtype`. Raises CheckpointError if it is not finite."""
        tensor, pieces = self.places[name]
        value = read_tensor(pieces)
        if not is_finite(value):
            raise not_finite(self.folder, [tensor.name])
        parts = split(tensor, value, self.llm)
        index = tensor.parameters.index(name) if len(parts) > 1 else 0  # a tied head is stored under another name
        return parts[index].to(self.dtype).contiguous()
