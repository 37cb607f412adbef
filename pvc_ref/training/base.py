"""Start a model from a trained one: copy its ViT and LLM, and leave the parts under comparison untrained.

The paper does the same: it starts from InternVL2 and adds its parts. Untrained are the compressor, of every kind, and
all of temporal attention.
"""

from __future__ import annotations

import re

import torch

from ..errors import InputError
from ..model import PVC

FRESH = re.compile(r"compressor\.|temporal\.layers\.\d+\.(temporal_attn|adaln|time_embedding|alpha)")


@torch.no_grad()
def take_over(model: PVC, base: PVC) -> int:
    """Copy every weight of `base` except the fresh ones into `model`. Returns the number of values copied.

    A ViT layer keeps its index, even if it attends over time in only one of the models.
    Raises InputError unless every other weight of `model` has a counterpart of the same shape.
    """
    given = {_place(name, base): value for name, value in base.named_parameters() if not FRESH.match(name)}
    count = 0
    for name, parameter in model.named_parameters():
        if FRESH.match(name):
            continue
        value = given.get(_place(name, model))
        if value is None or value.shape != parameter.shape:
            found = "none" if value is None else tuple(value.shape)
            raise InputError(
                f"'{name}' is {tuple(parameter.shape)}, but in the base model it is {found}",
                cause="the base model has other sizes",
            )
        parameter.copy_(value)
        count += parameter.numel()
    return count


def _place(name: str, model: PVC) -> str:
    """Return a weight's name with all ViT layers numbered in one sequence; temporal layers come last."""
    found = re.match(r"temporal\.layers\.(\d+)\.(.*)", name)
    if found is None:
        return name
    return f"trunk.layers.{model.config.vision.num_trunk_layers + int(found[1])}.{found[2]}"
