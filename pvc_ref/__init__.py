"""The reference PVC model in plain PyTorch: what every exported graph is held against.

Names are looked up when they are first used, so that `pvc_ref.shapes`, which needs no torch, can be imported where
torch is not installed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint.folder import load_model as load
    from .config import CompressorConfig, LLMConfig, PVCConfig, VisionConfig
    from .errors import CheckpointError, ConfigError
    from .model import PVC, FrameOutputs, Sampling, VisionState

__all__ = [
    "PVC",
    "CheckpointError",
    "CompressorConfig",
    "ConfigError",
    "FrameOutputs",
    "LLMConfig",
    "PVCConfig",
    "Sampling",
    "VisionConfig",
    "VisionState",
    "load",
]

_HOMES = {
    "model": ("PVC", "FrameOutputs", "Sampling", "VisionState"),
    "config": ("CompressorConfig", "LLMConfig", "PVCConfig", "VisionConfig"),
    "errors": ("CheckpointError", "ConfigError"),
}


def __getattr__(name: str) -> Any:
    if name == "load":
        return importlib.import_module(".checkpoint.folder", __name__).load_model
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
