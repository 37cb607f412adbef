"""The reference PVC model in plain PyTorch, which every exported graph is compared with.

Names that need torch are imported on first use: `pvc_ref.shapes` and the configurations must be importable without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .config import CompressorConfig, LLMConfig, PVCConfig, VisionConfig
from .errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from .checkpoint.folder import load, save
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
    "save",
]

_WITH_TORCH = {
    **dict.fromkeys(("PVC", "FrameOutputs", "Sampling", "VisionState"), ".model"),
    **dict.fromkeys(("load", "save"), ".checkpoint.folder"),
}


def __getattr__(name: str) -> Any:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_WITH_TORCH[name], __name__), name)
