"""Random weights that exercise every part of the model, for tests and the `tiny` preset.

LayerScale, alpha, norms and biases are all away from their neutral values 0 and 1, so leaving any part out changes the
result. Every value is rounded to float16, as a released checkpoint's values are rounded to a 16-bit type; a float16
graph then differs from the float32 reference by its arithmetic alone.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from .llm import Decoder

ModelT = TypeVar("ModelT", bound=nn.Module)


def randomize(model: ModelT, *, seed: int) -> ModelT:
    """Draw all parameters of `model` (or of one part) from `seed`, in the order of their names. Returns `model`."""
    generator = torch.Generator().manual_seed(seed)
    depth = max((len(module.layers) for module in model.modules() if isinstance(module, Decoder)), default=2)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            parameter.copy_(draw(name, parameter.shape, generator, llm_layers=depth))
    return model


def draw(name: str, shape: torch.Size, generator: torch.Generator, *, llm_layers: int) -> Tensor:
    """Draw one parameter's values, in float16."""
    llm_branch_gain = (2.0 / llm_layers) ** 0.5  # as in GPT-2: keeps deep residual sums from growing
    return _scale(name, torch.randn(shape, generator=generator), llm_branch_gain).half()


def _scale(name: str, noise: Tensor, llm_branch_gain: float) -> Tensor:
    leaf = name.rsplit(".", 1)[-1]
    if leaf in ("ls1", "ls2", "alpha") or (leaf == "weight" and noise.ndim == 1):
        return (1.0 + 0.2 * noise).clamp(0.4, 1.6)  # LayerScale, alpha, norm weights
    if name.endswith("w4.bias"):
        return 1.0 + 0.1 * noise  # gamma of AdaLN near one
    if leaf == "bias":
        return 0.1 * noise
    if leaf == "weight" and "embed_tokens" not in name:
        gain = llm_branch_gain if name.endswith(("o_proj.weight", "down_proj.weight")) else _gain(name)
        return gain * noise * noise[0].numel() ** -0.5  # gain 1 preserves unit variance
    return noise  # embedding table, class token, positions, queries


def _gain(name: str) -> float:
    """Gain of one weight matrix.

    The last matrix of each vision residual branch has a small gain, which keeps deep activations near one, as training
    does. The compressor's output and the LLM's attention have a large gain: otherwise a random LLM gives the same
    answer for every frame, and equal text would prove nothing about the frames.
    """
    if "compressor.mlp.fc2" in name:
        return 4.0
    if name.endswith(("attn.q_proj.weight", "attn.k_proj.weight")):
        return 2.0
    return 0.5 if name.endswith(("proj.weight", "fc2.weight", "w4.weight", "w6.weight")) else 1.0
