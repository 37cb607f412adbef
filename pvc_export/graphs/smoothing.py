"""SmoothQuant (arXiv 2211.10438): move large input channels of a matmul into its weights, for better int8 codes.

A channel of a norm, of the attention values or of a gate is divided by a factor, and the weights that multiply it are
multiplied by the same factor. Factors are powers of two, so floating-point results do not change by a bit: the smoothed
model is the same function, and only its codes differ.
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
"""Share of the magnitude that moves: 0 nothing, 1 everything. Chosen by measurement (docs/numerics.md)."""
LETTERS = string.ascii_lowercase
ZERO = 12
"""Exponents are stored as one letter per channel: 'm' is 0, 'l' -1, 'n' 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """Channels that can be scaled down at their source and up in the weights that read them.

    source    the module that produces them: a norm or a linear layer;  readers  the linear layers that read them
    group     reader channels per source channel, in runs of `width`: several query heads share a value head
    """

    source: str
    readers: tuple[str, ...]
    group: int = 1
    width: int = 1

    def spread(self, channels: Tensor) -> Tensor:
        """Expand a value per source channel (C,) to the readers' channels (C * group,)."""
        spread: Tensor = channels.unflatten(0, (-1, 1, self.width)).expand(-1, self.group, -1).flatten()
        return spread

    def largest(self, channels: Tensor) -> Tensor:
        """Reduce values per reader channel (C * group,) to the largest for each source channel, (C,)."""
        largest: Tensor = channels.unflatten(0, (-1, self.group, self.width)).amax(1).flatten()
        return largest


def layer_sites(config: LLMConfig, index: int) -> tuple[Site, ...]:
    """The sites of one LLM layer."""
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
    """Choose each channel's power of two, as letters, from the readers' largest inputs and weights (O, C).

    The median is shifted to zero, because a factor common to all channels changes no code.
    """
    reach = torch.stack([weight.detach().float().abs().amax(0) for weight in weights]).amax(0)
    fed, held = site.largest(inputs.double()), site.largest(reach.double())
    is_used = (fed > 0) & (held > 0)
    wanted = torch.where(is_used, ALPHA * fed.log2() - (1 - ALPHA) * held.log2(), 0.0)
    if is_used.any():
        wanted = torch.where(is_used, wanted - wanted[is_used].median(), 0.0)
    return "".join(LETTERS[int(x)] for x in (wanted.round() + ZERO).clamp(0, len(LETTERS) - 1))


@contextmanager
def largest_inputs(module: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Record the largest |x| of each input channel, (C,), of the named linear layers, until the end of the block."""
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
    """Return the model with scaled channels, the same function bit for bit.

    `exponents` is keyed by the source of the channels. Raises ModelError for exponents of another model.
    """
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
    """Factor of each weight, in a shape that broadcasts to it."""
    config, factors = model.config.llm, dict[str, Tensor]()
    known = {site.source: site for index in range(config.num_layers) for site in layer_sites(config, index)}
    parameters = dict(model.named_parameters())
    for source, letters in exponents.items():
        site, size = known.get(source), len(letters)
        owned = [name for name in (f"{source}.weight", f"{source}.bias") if name in parameters]
        if site is None or len(parameters[owned[0]]) != size or not set(letters) <= set(LETTERS):
            raise ModelError(
                f"the calibration smooths {size} channels of '{source}'",
                expected="one letter per channel of an attention or MLP norm, a v_proj or an up_proj of the LLM",
                cause="the manifest was edited, or written by another version of pvc-export",
                fix="export the bundle again",
            )
        powers = torch.tensor([LETTERS.index(letter) - ZERO for letter in letters], dtype=torch.float32)
        changes = [(name, -powers[:, None] if parameters[name].ndim == 2 else -powers) for name in owned]
        for name, change in (*changes, *((f"{reader}.weight", site.spread(powers)) for reader in site.readers)):
            factors[name] = factors.get(name, torch.ones(())) * torch.exp2(change)
    return factors
