"""Mappings from a tensor's name in the files to its role, which is its name in pvc_ref.save.

{layer} in both stands for the number of a temporal layer. If the files number these layers separately, from 0, they are
matched in order; layers in the vision tower's list keep their number. A joined qkv may be stored as three tensors,
whose roles end in .q.weight, .k.weight and .v.weight instead of .qkv.weight.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import VisionConfig
from ..errors import CheckpointError
from .files import listing, read_json
from .stored import Pieces
from .tensor_names import CheckpointTensor

LAYER = "{layer}"
TOWER = "vision_model.encoder.layers."
SUGGEST = (
    "pvc-export inspect FOLDER --suggest-mapping > mapping.json, fill in each null, then pass --mapping mapping.json"
)


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor with another name, or its q, k and v, with the interface of the tensor's open safetensors file."""

    parts: tuple[tuple[Any, str], ...]

    def get_tensor(self, name: str) -> Tensor:
        values = [file.get_tensor(stored) for file, stored in self.parts]
        return values[0] if len(values) == 1 else torch.cat(values)

    def get_slice(self, name: str) -> Stored:
        return self

    def get_shape(self) -> list[int]:
        shapes = [file.get_slice(stored).get_shape() for file, stored in self.parts]
        return shapes[0] if len(shapes) == 1 else [sum(shape[0] for shape in shapes), *shapes[0][1:]]

    def get_dtype(self) -> str:
        return "/".join(sorted({file.get_slice(stored).get_dtype() for file, stored in self.parts}))

    def pieces(self, name: str) -> Pieces:
        return tuple(piece for file, stored in self.parts for piece in file.pieces(stored))


def read_mapping(path: Path) -> dict[str, str | None]:
    """Read a mapping from a JSON file: names, or null where open. Raises CheckpointError for anything else."""
    if not path.is_file():
        raise CheckpointError(
            f"mapping file {path} not found", expected="a JSON file", fix=f"make one: {suggest('FOLDER')}"
        )
    mapping = read_json(path)
    if wrong := [name for name, role in mapping.items() if not isinstance(role, str | None)]:
        raise CheckpointError(f"{path}: the role of {listing(wrong)} is not a name", expected="a name, or null if open")
    return mapping


def apply_mapping(
    folder: Path,
    mapping: Mapping[str, str | None],
    tensors: Sequence[CheckpointTensor],
    sources: Mapping[str, Any],
    *,
    harmless: Collection[str] = (),
) -> dict[str, Any]:
    """Return `sources` (tensor name -> open file) by our names.

    Raises CheckpointError that lists every fault of the mapping: a tensor that does not exist; a role that is open,
    unknown, given twice or not given; a different shape; and a tensor that is left over and not `harmless`.
    """
    wanted = {tensor.name: tensor.shape for tensor in tensors}
    needed = wanted | {part: shape for role in wanted for part, shape in _parts(role, wanted[role]).items()}
    faults: list[str] = []
    pairs = [pair for name, role in mapping.items() for pair in _expanded(name, role, needed, sources, faults)]
    mapped = {name for name, _ in pairs}
    pairs += [(name, name) for name in sources if name in wanted and name not in mapped]
    faults += [f"{name} is mapped twice" for name in _twice(name for name, _ in pairs)]
    for twice in _twice(role for _, role in pairs):
        faults.append(f"two tensors are {twice}: {listing(name for name, role in pairs if role == twice)}")
    for name, role in pairs:
        stored = tuple(sources[name].get_slice(name).get_shape())
        if name in mapped and stored != needed[role]:
            faults.append(f"{name} has shape {stored}, but {role} needs {needed[role]}")
    found, used = _filled(wanted, {role: name for name, role in pairs}, sources)
    if missing := wanted.keys() - found.keys():
        faults.append(f"{len(missing)} roles have no tensor: {listing(missing)}")
    if unused := sources.keys() - used - set(harmless):
        faults.append(f"{len(unused)} tensors have no role: {listing(unused)}")
    if faults:
        more = f"; and {len(faults) - 20} more" if len(faults) > 20 else ""
        raise CheckpointError(
            f"{folder}: the mapping is wrong. " + "; ".join(faults[:20]) + more,
            expected="each tensor and each role exactly once, with the same shape",
            fix=f"start again from {suggest(folder)}",
        )
    return found | {name: sources[name] for name in harmless}


def _filled(
    wanted: Mapping[str, tuple[int, ...]], name_of: Mapping[str, str], sources: Mapping[str, Any]
) -> tuple[dict[str, Any], set[str]]:
    """Return the source of each role that has a tensor, and the names of the tensors used."""
    found: dict[str, Any] = {}
    used: set[str] = set()
    for role, shape in wanted.items():
        parts = _parts(role, shape)
        of = (role,) if role in name_of else tuple(parts)
        if of and all(part in name_of for part in of):
            names = [name_of[part] for part in of]
            used.update(names)
            found[role] = sources[role] if names == [role] else Stored(tuple((sources[name], name) for name in names))
    return found, used


def suggest(folder: str | Path) -> str:
    """Return the command that writes a mapping to fill in."""
    return f"pvc-export inspect {shlex.quote(str(folder))} --suggest-mapping > mapping.json"


def mapping_lines(mapping: Mapping[str, str], vision: VisionConfig) -> Iterator[str]:
    """Yield one line per name, with the numbers of its layers, and its role."""
    layers = range(vision.num_trunk_layers, vision.num_layers)
    for name, role in mapping.items():
        numbers = layers if name.startswith(TOWER) else range(len(layers))
        said = name.replace(LAYER, span(numbers)) if LAYER in name else name
        yield f"{said} -> {role.removeprefix(f'{TOWER}{LAYER}.')}"


def numbers_of(pattern: str, names: Iterable[str]) -> list[int]:
    """Return the sorted layer numbers of the names that match this pattern."""
    before, _, after = pattern.partition(LAYER)
    form = re.compile(rf"{re.escape(before)}(\d+){re.escape(after)}")
    return sorted(int(match[1]) for name in names if (match := form.fullmatch(name)))


def aligned(pattern: str, numbers: Sequence[int], layers: Sequence[int]) -> dict[int, int] | None:
    """Map each number to its layer: equal numbers, or a separate list in the files that counts from 0. Else None."""
    in_tower = pattern.startswith(TOWER + LAYER)
    if list(numbers) == list(layers) or (in_tower and set(numbers) <= set(layers)):
        return {number: number for number in numbers}
    if not in_tower and list(numbers) == list(range(len(layers))):
        return dict(zip(numbers, layers, strict=True))
    return None


def _expanded(
    name: str, role: str | None, roles: Collection[str], names: Collection[str], faults: list[str]
) -> Iterator[tuple[str, str]]:
    """Yield each tensor and its role; append errors to `faults`."""
    if role is None:
        faults.append(f"{name} is open (null)")
    elif LAYER in name or LAYER in role:
        numbers, layers = numbers_of(name, names), numbers_of(role, roles)
        if not layers or not numbers:
            faults.append(_unknown(role, roles) if not layers else f"there is no tensor {name}")
        elif (meant := aligned(name, numbers, layers)) is None or len(meant) != len(layers):
            faults.append(f"{name} is in layers {span(numbers)}, but {role} in {span(layers)}")
        else:
            yield from (
                (name.replace(LAYER, str(number)), role.replace(LAYER, str(layer))) for number, layer in meant.items()
            )
    elif name not in names or role not in roles:
        faults.append(f"there is no tensor {name}" if name not in names else _unknown(role, roles))
    else:
        yield name, role


def span(numbers: Sequence[int]) -> str:
    """Format as 16..23, or list the numbers if some between them are missing."""
    whole = list(numbers) == list(range(numbers[0], numbers[-1] + 1)) and len(numbers) > 1
    return f"{numbers[0]}..{numbers[-1]}" if whole else ",".join(map(str, numbers))


def _unknown(role: str, roles: Collection[str]) -> str:
    general = {re.sub(r"\.\d+\.", f".{LAYER}.", name, count=1) if name.startswith(TOWER) else name for name in roles}
    near = get_close_matches(role, general, n=1)
    return f"there is no role {role}" + (f" (did you mean {near[0]}?)" if near else "")


def _parts(role: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Return the separate roles of q, k and v with their shapes, if `role` is a joined qkv."""
    before, is_joined, leaf = role.partition("temporal_attn.qkv.")
    each = (shape[0] // 3, *shape[1:]) if is_joined else ()
    return {f"{before}temporal_attn.{part}.{leaf}": each for part in "qkv"} if is_joined else {}


def _twice(items: Iterable[str]) -> list[str]:
    return [item for item, count in Counter(items).items() if count > 1]
