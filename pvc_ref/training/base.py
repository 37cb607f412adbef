"""Start a model from a trained one: its ViT and its LLM are taken over, and what is compared stays fresh.

The paper does the same: it starts from InternVL2 and adds its own parts. Fresh are the compressor, of every kind, and
attention over time with everything that belongs to it.
"""

from __future__ import annotations

import re

import torch

from ..errors import InputError
from ..model import PVC

FRESH = re.compile(r"compressor\.|temporal\.layers\.\d+\.(temporal_attn|adaln|time_embedding|alpha)")


@torch.no_grad()
def take_over(model: PVC, base: PVC) -> int:
    """Copy into `model` every weight of `base` but the fresh ones. Returns how many values were copied.

    A layer of the ViT keeps its index, whether it is time-free in one model and attends over time in the other.
    Raises InputError unless every other weight of `model` has its counterpart, of its shape.
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
                f"'{name}' is {tuple(parameter.shape)}, the base has {found} there", cause="the base is of other sizes"
            )
        parameter.copy_(value)
        count += parameter.numel()
    return count


def _place(name: str, model: PVC) -> str:
    """The weight's name with the ViT's layers counted through: those that attend over time come last."""
    found = re.match(r"temporal\.layers\.(\d+)\.(.*)", name)
    if found is None:
        return name
    return f"trunk.layers.{model.config.vision.num_trunk_layers + int(found[1])}.{found[2]}"
