"""Stems: the tensors of one module over all of its layers, from names and shapes. The unit of detect.py."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from .mapping import LAYER, TOWER, aligned, span
from .words import trios_of

Shape = tuple[int, ...]
Leaves = tuple[tuple[str, Shape], ...]
Kind = tuple[tuple[int, ...], Leaves]
IN_LAYER = re.compile(r"(vision_model\..*?\.)(\d+)(\..*)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stem:
    """The tensors of one module, over several layers or outside of layers.

    name     with {layer} in place of a layer's number
    shapes   by leaf: .weight and .bias, _weight and _bias, or nothing
    numbers  layer numbers in the names
    layers   the layers that these numbers mean; both are empty outside of layers
    parts    the names of q, k and v, if they are joined here; otherwise empty
    """

    name: str
    shapes: Leaves
    numbers: tuple[int, ...] = ()
    layers: tuple[int, ...] = ()
    parts: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        """The properties that a stem shares with its role. A single vector may have the suffix .weight or none."""
        lone = len(self.shapes) == 1 and len(self.shapes[0][1]) == 1
        return self.layers, tuple(("" if lone else f".{leaf[1:]}", shape) for leaf, shape in self.shapes)

    @property
    def tail(self) -> str:
        """Name of a role without its location: adaln.w3."""
        return self.name.removeprefix(f"{TOWER}{LAYER}.").removeprefix("mlp1.")

    def printed(self) -> str:
        name = self.name.replace(LAYER, span(self.numbers)) if self.numbers else self.name
        return f"{name}  {', '.join(f'{leaf[1:]} {shape}'.strip() for leaf, shape in self.shapes)}"

    def names(self, role: Stem) -> dict[str, str]:
        """Map each tensor's name to its role's, both with {layer}."""
        leaves = [(ours, theirs) for (ours, _), (theirs, _) in zip(self.shapes, role.shapes, strict=True)]
        if not self.parts:
            return {self.name + ours: role.name + theirs for ours, theirs in leaves}
        into = [role.name.removesuffix("qkv") + letter for letter in "qkv"]
        pairs = list(zip(self.parts, into, strict=True))
        return {part + ours: to + theirs for part, to in pairs for ours, theirs in leaves}


def stems_of(shapes: Mapping[str, Shape], layers: Sequence[int]) -> list[Stem]:
    found: dict[str, dict[int, dict[str, Shape]]] = defaultdict(lambda: defaultdict(dict))
    for name, shape in shapes.items():
        match = IN_LAYER.fullmatch(name)
        stem, leaf = leaf_of(f"{match[1]}{LAYER}{match[3]}" if match else name)
        found[stem][int(match[2]) if match else -1][leaf] = shape
    stems = []
    for name, by_number in found.items():
        alike: dict[Leaves, list[int]] = defaultdict(list)
        for number, by_leaf in sorted(by_number.items()):
            alike[tuple(sorted(by_leaf.items(), reverse=True))].append(number)  # .weight before .bias
        for leaves, numbers in alike.items():
            meant = aligned(name, numbers, layers)
            if LAYER not in name:
                stems.append(Stem(name=name, shapes=leaves))
            elif meant or name.startswith(TOWER + LAYER):
                in_layers = tuple(meant.values() if meant else numbers)
                stems.append(Stem(name=name, shapes=leaves, numbers=tuple(numbers), layers=in_layers))
            else:  # the numbers are not layers
                stems += [Stem(name=name.replace(LAYER, str(number)), shapes=leaves) for number in numbers]
    return stems


def leaf_of(name: str) -> tuple[str, str]:
    """Split into the module and .weight, .bias or nothing; in_proj_weight splits at _weight."""
    module = re.sub(r"[._](?:weight|bias)$", "", name)
    return module, name[len(module) :]


def with_joined(stems: list[Stem], wanted: Collection[Kind]) -> list[Stem]:
    """Join q, k and v into one stem, if their names identify them and a joined stem is wanted."""
    by_name = {stem.name: stem for stem in stems}
    for trio in trios_of(by_name):
        parts = [by_name[name] for name in trio]
        shapes = tuple((leaf, (3 * shape[0], *shape[1:])) for leaf, shape in parts[0].shapes if shape)
        name = trio[0].rpartition(".")[0] + ".q+k+v"
        joined = replace(parts[0], name=name, shapes=shapes, parts=trio)
        if len({part.kind for part in parts}) == 1 and joined.kind in wanted:
            stems = [*(stem for stem in stems if stem not in parts), joined]
    return stems
