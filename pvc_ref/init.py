"""Random weights that exercise every part: for tests, and for the `tiny` preset.

Nothing starts at zero or one: LayerScale, alpha, norms and biases are all away from their neutral values, so leaving
any part out changes the result. Every value is rounded to float16, as a released checkpoint's values are rounded to a
half type; then a float16 graph differs from the float32 reference by its arithmetic alone.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from .llm import Decoder

ModelT = TypeVar("ModelT", bound=nn.Module)


def randomize(model: ModelT, *, seed: int) -> ModelT:
    """Draw all parameters of `model`, or of a part of one, from `seed`, in the order of their names. Returns it."""
    generator = torch.Generator().manual_seed(seed)
    depth = max((len(module.layers) for module in model.modules() if isinstance(module, Decoder)), default=2)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            parameter.copy_(draw(name, parameter.shape, generator, llm_layers=depth))
    return model


def draw(name: str, shape: torch.Size, generator: torch.Generator, *, llm_layers: int) -> Tensor:
    """Values of one parameter, in float16."""
    llm_branch_gain = (2.0 / llm_layers) ** 0.5  # as GPT-2 does: depth must not add up to noise
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
        return gain * noise * noise[0].numel() ** -0.5  # at gain 1: unit variance in, unit variance out
    return noise  # embedding table, class token, positions, queries


def _gain(name: str) -> float:
    """Residual branches of the vision side end softly, which keeps deep activations near one, as training does.

    The frame tokens are loud and the LLM's attention is sharp: otherwise a random LLM says the same whatever it sees,
    and equal text would prove nothing about frames.
    """
    if "compressor.mlp.fc2" in name:
        return 4.0
    if name.endswith(("attn.q_proj.weight", "attn.k_proj.weight")):
        return 2.0
    return 0.5 if name.endswith(("proj.weight", "fc2.weight", "w4.weight", "w6.weight")) else 1.0
