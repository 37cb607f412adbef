"""A target: the runtime and the GPUs that a bundle is made for. Data in engines/targets/*.json, one file each.

Standard library only: a device is examined before numpy is known to load (engines/device/doctor.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import SpecError
from .terminal import did_you_mean

if TYPE_CHECKING:
    from .spec import CacheUpdate, Inputs, Part, Precision, Spelling, State

FOLDER = Path(__file__).parent / "targets"


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """The runtime and device that a bundle is built for.

    runtime               executes its graphs: ort-cpu, ort-cuda, tensorrt or tensorrt_rtx
    spelling              how the temporal graph reads its ring
    cache_update          how new rows get into the LLM's cache
    builder               Python package that compiles engines, or None if ONNX files run directly
    builder_versions      first version that may build, and the first that may not; empty: any version
    parser                TensorRT version whose list states what the ONNX parser supports (parser.py): the oldest that
                          may build, or the nearest before it. None if ONNX Runtime decides when it opens a graph. For
                          TensorRT-RTX it is used if TensorRT-RTX's own parser, which decides, is not installed
    compute_capabilities  GPUs to compile for (TensorRT-RTX), or GPUs the target has; empty: whatever is present
    precisions            precisions its hardware and runtime support
    engine_graphs         graphs that become engines; `embed` is a table lookup and stays on the host
    int4_blocks           supported block sizes of int4 weights, the usual one first; empty if int4 is unsupported, and
                          then `no_int4` says why
    int4_zero_points      whether these blocks may have a zero point
    int4_inputs           arithmetic of int4 matmuls
    int8                  arithmetic of int8 matmuls, by part; for missing parts, `no_int8` says why. If streams share
                          a pass, `rows` replaces `tensor`, so that they do not depend on each other
    wide_codes            as in Quantization, for the target's CPUs
    """

    name: str
    description: str
    runtime: str
    spelling: Spelling
    cache_update: CacheUpdate
    builder: str | None
    builder_versions: tuple[str, ...]
    parser: str | None
    compute_capabilities: tuple[str, ...]
    precisions: tuple[Precision, ...]
    engine_graphs: tuple[str, ...]
    int4_blocks: tuple[int, ...]
    int4_zero_points: bool
    int4_inputs: Inputs
    no_int4: str
    int8: dict[Part, Inputs]
    no_int8: str
    wide_codes: bool

    def update_of(self, int8_states: Collection[State]) -> CacheUpdate:
        """How new rows get into the LLM's cache: TensorRT writes no int8 codes in place (docs/decisions/0016)."""
        return "rows" if "cache" in int8_states and self.spelling == "concat" else self.cache_update

    def takes(self, version: str) -> bool:
        """Whether that version of its builder may build."""
        return not self.builder_versions or is_within(version, *self.builder_versions)


def is_within(version: str, first: str, beyond: str) -> bool:
    """Whether it is `first` or later, and before `beyond`. Only numbers count: all four of '10.16.2.10'."""
    of, low, high = ([int(part) for part in re.findall(r"\d+", text)] for text in (version, first, beyond))
    return low <= of < high


def target_names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load_target(name: str) -> Target:
    """The target of that name. Raises SpecError with the nearest name."""
    if name not in target_names():
        raise SpecError(
            f"there is no target '{name}'",
            expected=f"one of {', '.join(target_names())}",
            fix=did_you_mean(name, target_names()) or "name one of them with --target",
        )
    data: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return Target(**data | {key: tuple(value) for key, value in data.items() if isinstance(value, list)})
