"""The reference PVC model in plain PyTorch: what every exported graph is held against.

Unusual: names are looked up when they are first used, so that `pvc_ref.shapes`, which needs no torch, can be imported
where torch is not installed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import CompressorConfig, ConfigError, LLMConfig, PVCConfig, VisionConfig
    from .model import PVC, FrameOutputs, Sampling, VisionState

__all__ = [
    "PVC",
    "CompressorConfig",
    "ConfigError",
    "FrameOutputs",
    "LLMConfig",
    "PVCConfig",
    "Sampling",
    "VisionConfig",
    "VisionState",
]

_IN_MODEL = {"PVC", "FrameOutputs", "Sampling", "VisionState"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(".model" if name in _IN_MODEL else ".config", __name__), name)
