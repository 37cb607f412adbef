"""What is large in the inputs of a product, moved into its weights, where eight bits have more room for it.

A channel that comes out of a norm, of values or of a gate is made smaller by a factor, and the weights that multiply it
larger by the same one (SmoothQuant, arXiv 2211.10438). Factors are powers of two, so that no bit of what the model
computes in floating point changes: the smoothed model is the model, written down otherwise, and only its codes differ.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engines.errors import ModelError
from pvc_ref import PVC
from pvc_ref.config import LLMConfig

from .precision import copy_with

ALPHA = 0.5
"""How much of what is large moves: 0 none, 1 all. Measured (docs/numerics.md)."""
LETTERS = string.ascii_lowercase
ZERO = 12
"""Exponents are letters, a channel each: 'm' is 0, 'l' -1, 'n' 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """Channels that can be made smaller where they come from and larger where they go.

    source    the module that they come from: a norm, or a product;  readers  the products that they go into
    group     how many channels of a reader come from one, in runs of `width`: query heads share a value head
    """

    source: str
    readers: tuple[str, ...]
    group: int = 1
    width: int = 1

    def spread(self, channels: Tensor) -> Tensor:
        """Of each channel of the source (C,) that of the readers' (C * group,)."""
        spread: Tensor = channels.unflatten(0, (-1, 1, self.width)).expand(-1, self.group, -1).flatten()
        return spread

    def largest(self, channels: Tensor) -> Tensor:
        """Of the readers' channels (C * group,) the largest that come from one of the source's, (C,)."""
        largest: Tensor = channels.unflatten(0, (-1, self.group, self.width)).amax(1).flatten()
        return largest


def layer_sites(config: LLMConfig, index: int) -> tuple[Site, ...]:
    """Those of one layer of the LLM."""
    layer, group = f"llm.layers.{index}", config.num_heads // config.num_kv_heads
    return (
        Site(source=f"{layer}.attn_norm", readers=tuple(f"{layer}.attn.{x}_proj" for x in "qkv")),
        Site(
            source=f"{layer}.attn.v_proj", readers=(f"{layer}.attn.o_proj",), group=group,
            width=config.attention_head_dim,
        ),
        Site(source=f"{layer}.mlp_norm", readers=(f"{layer}.mlp.gate_proj", f"{layer}.mlp.up_proj")),
        Site(source=f"{layer}.mlp.up_proj", readers=(f"{layer}.mlp.down_proj",)),
    )  # fmt: skip


def exponents_of(site: Site, inputs: Tensor, weights: Iterable[Tensor]) -> str:
    """By how many powers of two each channel shrinks, as letters, from the largest that its readers (O, C) are fed and
    their largest weights. About zero on the whole: what all channels share changes no code."""
    reach = torch.stack([weight.detach().float().abs().amax(0) for weight in weights]).amax(0)
    fed, held = site.largest(inputs.double()), site.largest(reach.double())
    is_used = (fed > 0) & (held > 0)
    wanted = torch.where(is_used, ALPHA * fed.log2() - (1 - ALPHA) * held.log2(), 0.0)
    if is_used.any():
        wanted = torch.where(is_used, wanted - wanted[is_used].median(), 0.0)
    return "".join(LETTERS[int(x)] for x in (wanted.round() + ZERO).clamp(0, len(LETTERS) - 1))


@contextmanager
def largest_inputs(module: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """The largest |x| of each channel that the products of these names are fed while it lasts, (C,)."""
    found: dict[str, Tensor] = {}

    def note(name: str, x: Tensor) -> None:
        largest = x.detach().abs().flatten(0, -2).amax(0)
        found[name] = torch.maximum(found[name], largest) if name in found else largest

    hooks = [
        module.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: note(name, args[0]))
        for name in names
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def smoothed(model: PVC, exponents: Mapping[str, str]) -> PVC:
    """The model with its channels made smaller and larger; the same function, bit for bit. `exponents` by the name of
    what the channels come from. Raises ModelError for those of another model."""
    if not exponents:
        return model
    factors = _factors(model, exponents)
    changed = {
        id(weight): nn.Parameter(weight.detach() * factors[name], requires_grad=False)
        for name, weight in model.named_parameters()
        if name in factors and not weight.is_meta
    }
    copy = copy_with(model, lambda weight: changed.get(id(weight), weight))
    if (stored := model.stored) is not None:
        copy.stored = lambda name: stored(name) * factors[name] if name in factors else stored(name)
    return copy


def _factors(model: PVC, exponents: Mapping[str, str]) -> dict[str, Tensor]:
    """What each weight is multiplied by, in its own shape or one that broadcasts to it."""
    config, factors = model.config.llm, dict[str, Tensor]()
    known = {site.source: site for index in range(config.num_layers) for site in layer_sites(config, index)}
    parameters = dict(model.named_parameters())
    for source, letters in exponents.items():
        site, size = known.get(source), len(letters)
        owned = [name for name in (f"{source}.weight", f"{source}.bias") if name in parameters]
        if site is None or len(parameters[owned[0]]) != size or not set(letters) <= set(LETTERS):
            raise ModelError(
                f"the calibration smooths {size} channels of '{source}'",
                expected="a letter for each channel of a norm, of values or of a gated product of the LLM",
                cause="the manifest was edited, or written by another version of pvc-export",
                fix="export the bundle again",
            )
        powers = torch.tensor([LETTERS.index(letter) - ZERO for letter in letters], dtype=torch.float32)
        changes = [(name, -powers[:, None] if parameters[name].ndim == 2 else -powers) for name in owned]
        for name, change in (*changes, *((f"{reader}.weight", site.spread(powers)) for reader in site.readers)):
            factors[name] = factors.get(name, torch.ones(())) * torch.exp2(change)
    return factors
