"""Runs inside a box (make_box.py), where nothing but numpy and NVIDIA's bindings can be imported: a kit, from an empty
folder to a bundle. Prints one JSON object: what was shown, what it took, and what it says of the golden recording.

    python inside.py KIT [--capability SM87] [--onnxruntime FOLDER] [any option of engines.device.build]

Building is the bindings' own, over the library of TensorRT-RTX. No GPU is there, so that nothing can be run: for the
golden recording, ONNX Runtime stands in for every engine, on a recording CUDA (engines/fake.py). It is this file's own:
the kit imports none, and could not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import sys
import time
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

ALLOWED = {"numpy", "tensorrt", "tensorrt_bindings", "tensorrt_libs", "tensorrt_rtx", "engines", "apps"}
"""What a kit may import beside the standard library; the bindings themselves look for tensorrt_libs."""


class Guard(MetaPathFinder):
    """Refuses everything else."""

    def __init__(self) -> None:
        self.known = ALLOWED | set(sys.stdlib_module_names)
        self.refused: list[str] = []

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if name.partition(".")[0] not in self.known:
            self.refused.append(name)
            raise ImportError(f"a kit may not import {name}")


def stand_in(folder: Path) -> Any:
    """tests/engines/fake_trt.py, with ONNX Runtime from a folder of its own, which nobody else finds afterwards."""
    before, extra = set(sys.modules), [str(folder), str(Path(__file__).parents[1] / "engines")]
    sys.path += extra
    import fake_trt  # type: ignore[import-not-found]

    for name in extra:
        sys.path.remove(name)
    for name in set(sys.modules) - before:
        if name.partition(".")[0] not in Guard().known:
            del sys.modules[name]
    return fake_trt


def opened_with(fake_trt: Any, cuda: Any) -> Any:
    """Opens a bundle as a device does, but for what an engine's bytes become."""
    import tensorrt as trt

    from engines.bundle import graph_path, open_graphs
    from engines.manifest import Manifest

    def opened(folder: Path) -> Any:
        manifest = Manifest.load(folder)
        graphs = {manifest.files[entry.path].sha256: name for name, entry in manifest.engines.items()}

        class Engine(fake_trt.Engine):  # type: ignore[misc]
            def get_tensor_mode(self, name: str) -> Any:
                return trt.TensorIOMode.INPUT if name in self.inputs else trt.TensorIOMode.OUTPUT

            def get_tensor_dtype(self, name: str) -> Any:
                return getattr(trt.DataType, super().get_tensor_dtype(name).name)

        class Runtime:
            def __init__(self, log: Any) -> None:
                self.log = log

            def deserialize_cuda_engine(self, plan: bytes) -> Any:
                name = graphs[hashlib.sha256(plan).hexdigest()]
                facts = json.loads(fake_trt.fake_plan(folder / graph_path(name), manifest.graphs[name]))
                return Engine(facts, cuda, self.log, "")

        trt.Runtime = Runtime
        return open_graphs(folder, runtime="target", cuda=cuda)

    return opened


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kit", type=Path)
    parser.add_argument("--capability", default="SM87")
    parser.add_argument("--onnxruntime", type=Path, required=True)
    own, rest = parser.parse_known_args()
    fake_trt = stand_in(own.onnxruntime)
    guard = Guard()
    sys.meta_path.insert(0, guard)
    import numpy
    import tensorrt

    from engines.device import build
    from engines.device.build_graph import add_build_options
    from engines.device.kit import Kit
    from engines.errors import PVCError
    from engines.fake import RecordingCuda

    options = argparse.ArgumentParser()
    add_build_options(options)
    cuda, started = RecordingCuda(capability=own.capability), time.monotonic()
    facts: dict[str, Any] = {"tensorrt": tensorrt.__version__, "python": sys.version.split()[0]}
    facts |= {"numpy": numpy.__version__, "refused": guard.refused}
    try:
        kit = Kit.load(own.kit)
        facts |= build.build(kit, options.parse_args(rest), cuda=cuda, opened=opened_with(fake_trt, cuda))
        code = 0
    except PVCError as error:
        facts |= error.to_json()
        code = error.exit_code
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
    print(json.dumps({**facts, "seconds": round(time.monotonic() - started, 1), "peak_mib": peak}))
    return code


if __name__ == "__main__":
    sys.exit(main())
