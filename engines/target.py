"""A target: the runtime and the GPUs that a bundle is made for. Data in engines/targets/*.json, one file each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from .errors import SpecError
from .spec import Spelling

FOLDER = Path(__file__).parent / "targets"


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """What a bundle is built for.

    spelling              how the temporal graph reads its ring
    builder               Python package that compiles engines, or None where ONNX files run directly
    compute_capabilities  GPUs to compile for, where the builder asks (TensorRT-RTX)
    engine_graphs         graphs that become engines; `embed` is a table lookup and stays on the host
    """

    name: str
    description: str
    spelling: Spelling
    builder: str | None
    compute_capabilities: tuple[str, ...]
    engine_graphs: tuple[str, ...]


def target_names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load_target(name: str) -> Target:
    """The target of that name. Raises SpecError with the nearest name."""
    if name not in target_names():
        near = get_close_matches(name, target_names(), n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise SpecError(f"there is no target '{name}'; the targets are {', '.join(target_names())}.{hint}")
    data = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return Target(
        name=data["name"],
        description=data["description"],
        spelling=data["spelling"],
        builder=data["builder"],
        compute_capabilities=tuple(data["compute_capabilities"]),
        engine_graphs=tuple(data["engine_graphs"]),
    )
