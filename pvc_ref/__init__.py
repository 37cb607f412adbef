"""The reference PVC model in plain PyTorch: what every exported graph is held against."""

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
