"""Requirements of a bundle's ONNX files: an opset, and the first ONNX Runtime that supports it.

ONNX Runtime's own message for a file with a newer opset than it knows looks like one for a damaged file, so versions
are compared before anything is opened. Engines need none of this.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from types import ModuleType

from .errors import BackendUnavailable
from .session import import_onnxruntime
from .spec import GraphSpec
from .target import Target, load_target, target_names

OPSET = 20  # the newest that TensorRT 10.3 on JetPack 6.2 reads
OPSET_OF_BLOCKS = 21  # the first whose DequantizeLinear has blocks
OPSET_IN_PLACE = 24  # the first with TensorScatter
FIRST_ONNXRUNTIME = {OPSET: "1.18", OPSET_OF_BLOCKS: "1.19", OPSET_IN_PLACE: "1.25"}
"""The first version that reproduces golden recordings of graphs with this opset (docs/onnxruntime.md)."""
LAST_FOR_310 = "1.23.2"
"""The last ONNX Runtime for Python 3.10, which JetPack 6 has."""


def opset_of(spec: GraphSpec) -> int:
    """The ONNX opset of a graph."""
    if spec.aliases:
        return OPSET_IN_PLACE
    has_blocks = spec.quantization is not None and spec.quantization.block is not None
    return OPSET_OF_BLOCKS if has_blocks else OPSET


def needs_of(graphs: Iterable[GraphSpec]) -> dict[str, str]:
    """Package -> first version that runs these graphs, when ONNX Runtime runs them."""
    return {"onnxruntime": FIRST_ONNXRUNTIME[max(map(opset_of, graphs))]}


def require_onnxruntime(owner: str, graphs: Iterable[GraphSpec], needs: Mapping[str, str] | None = None) -> None:
    """Raise BackendUnavailable if the installed ONNX Runtime is missing or too old for the graphs of `owner`.

    needs  the manifest's requirements, which may name a later version than this program knows
    """
    spec = max(graphs, key=opset_of)
    opset, ort, first = opset_of(spec), import_onnxruntime(), (needs or {}).get("onnxruntime", "0")
    what = f"the graph '{spec.name}' of {owner}"
    if error := _too_old(ort, what, opset, max(first, FIRST_ONNXRUNTIME[opset], key=_numbers)):
        raise error


def lack_for(target: Target) -> BackendUnavailable | None:
    """The error if the installed ONNX Runtime is too old for the usual graphs of a target; None if it fits."""
    opset = OPSET_IN_PLACE if target.cache_update == "aliased" else OPSET
    return _too_old(import_onnxruntime(), f"the LLM of target '{target.name}'", opset, FIRST_ONNXRUNTIME[opset])


def _too_old(ort: ModuleType, what: str, opset: int, first: str) -> BackendUnavailable | None:
    if _numbers(ort.__version__) >= _numbers(first):
        return None
    package = "onnxruntime-gpu" if "CUDAExecutionProvider" in ort.get_available_providers() else "onnxruntime"
    in_place = ", and updates its cache in place (TensorScatter)" if opset == OPSET_IN_PLACE else ""
    fix, cause = f"pip install '{package}>={first}'", ""
    if sys.version_info < (3, 11) and _numbers(first) > _numbers(LAST_FOR_310):
        others = [name for name in target_names() if _runs_on_310(load_target(name))]
        cause = f"this is Python 3.10, and the last {package} for it is {LAST_FOR_310}"
        fix = f"use Python 3.11 or later: {fix}; or export for a target whose LLM returns its rows "
        fix += f"({', '.join(others)}): pvc-export onnx --target {others[0]}"
    return BackendUnavailable(
        f"{package} {ort.__version__} is too old: {what} has opset {opset}{in_place}",
        expected=f"{package} {first} or later",
        cause=cause,
        fix=fix,
    )


def _runs_on_310(target: Target) -> bool:
    """Whether the target is for any machine, and its usual graphs run in the last ONNX Runtime for Python 3.10."""
    return target.cache_update == "rows" and not target.compute_capabilities


def _numbers(version: str) -> list[int]:
    """All numbers of a version: four for '1.25.0.dev1'."""
    return [int(part) for part in re.findall(r"\d+", version)]
