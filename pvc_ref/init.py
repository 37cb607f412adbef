"""Random weights that exercise every part: for tests, and for the `tiny` preset.

Unusual: nothing starts at zero or one. LayerScale, alpha, norms and biases are all away from their neutral values, so
that a part that is left out changes the result. Every value is rounded to float16, as a released checkpoint's are to
a half type: then a float16 graph differs from the float32 reference by its arithmetic alone.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

ModelT = TypeVar("ModelT", bound=nn.Module)


# Where a residual branch ends: half the gain keeps deep activations near one, as training does.
BRANCH_ENDS = ("proj.weight", "fc2.weight", "down_proj.weight", "w4.weight", "w6.weight")


def randomize(model: ModelT, *, seed: int) -> ModelT:
    """Draw all parameters of `model` from `seed`, in the order of their names. Returns the model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            parameter.copy_(_draw(name, parameter, generator).half())
    return model


def _draw(name: str, parameter: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(parameter.shape, generator=generator)
    leaf = name.rsplit(".", 1)[-1]
    if leaf in ("ls1", "ls2", "alpha") or (leaf == "weight" and parameter.ndim == 1):
        return (1.0 + 0.2 * noise).clamp(0.4, 1.6)  # LayerScale, alpha, norm weights
    if name.endswith("w4.bias"):
        return 1.0 + 0.1 * noise  # gamma of AdaLN near one
    if leaf == "bias":
        return 0.1 * noise
    if leaf == "weight" and "embed_tokens" not in name:
        gain = 0.5 if name.endswith(BRANCH_ENDS) else 1.0
        return gain * noise * parameter[0].numel() ** -0.5  # unit variance in, unit variance out
    return noise  # embedding table, class token, positions, queries
