"""Build a kit inside a box (make_box.py), from an empty folder to a bundle. Only numpy and NVIDIA's bindings can be
imported there. Prints one JSON object: what was shown, what it took, and the result of the golden recording.

    python inside.py KIT [--capability SM87] [--onnxruntime FOLDER] [any option of engines.device.build]

Environment variables: DIE_IN=GRAPH kills the build of a graph, CANCEL=GRAPH builds only that graph and cancels it,
PLANT=GRAPH makes the stand-in of that graph's engine return wrong values.

Engines are built by the real bindings over the library of TensorRT-RTX. There is no GPU, so no engine can run: for the
golden recording, ONNX Runtime stands in for every engine, on a recording CUDA (engines/fake.py). Only this file uses
ONNX Runtime; the kit does not import it, and could not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

ALLOWED = {"numpy", "tensorrt", "tensorrt_bindings", "tensorrt_libs", "tensorrt_rtx", "engines", "apps"}
"""What a kit may import in addition to the standard library; the bindings themselves look for tensorrt_libs."""


class Guard(MetaPathFinder):
    """Refuse every import outside ALLOWED and the standard library."""

    def __init__(self) -> None:
        self.known = ALLOWED | set(sys.stdlib_module_names)
        self.refused: list[str] = []

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if name.partition(".")[0] not in self.known:
            self.refused.append(name)
            raise ImportError(f"a kit may not import {name}")


def stand_in(folder: Path) -> Any:
    """Import tests/engines/fake_trt.py with ONNX Runtime from its separate folder, then hide that folder again."""
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
    """Return a function that opens a bundle as a device does, except that ONNX Runtime runs the engines."""
    import tensorrt as trt

    from engines.bundle import graph_path, open_graphs
    from engines.manifest import Manifest

    def opened(folder: Path) -> Any:
        manifest = Manifest.load(folder)
        graphs = {manifest.files[entry.path].sha256: name for name, entry in manifest.engines.items()}

        planted = os.environ.get("PLANT")

        class Engine(fake_trt.Engine):  # type: ignore[misc]
            def get_tensor_mode(self, name: str) -> Any:
                return trt.TensorIOMode.INPUT if name in self.inputs else trt.TensorIOMode.OUTPUT

            def get_tensor_dtype(self, name: str) -> Any:
                return getattr(trt.DataType, super().get_tensor_dtype(name).name)

            @property
            def session(self) -> Any:
                return self if planted and f"/{planted}.onnx" in self.plan["onnx"] else self.own

            @session.setter
            def session(self, value: Any) -> None:
                self.own = value

            def run(self, names: Any, feeds: Any) -> Any:
                """Return values that are 1 % off, as a miscompiled engine might."""
                return [(one * 1.01).astype(one.dtype) for one in self.own.run(names, feeds)]

            def get_inputs(self) -> Any:
                return self.own.get_inputs()

            def get_outputs(self) -> Any:
                return self.own.get_outputs()

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
    code = 130
    try:
        kit = Kit.load(own.kit)
        if graph := os.environ.get("CANCEL"):
            facts["cancelled"] = _cancelled(kit, graph, cuda)
            raise KeyboardInterrupt
        _disturb(build)
        facts |= build.build(kit, options.parse_args(rest), cuda=cuda, opened=opened_with(fake_trt, cuda))
        code = 0
    except PVCError as error:
        facts |= error.to_json()
        code = error.exit_code
    except KeyboardInterrupt:
        pass
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
    print(json.dumps({**facts, "seconds": round(time.monotonic() - started, 1), "peak_mib": peak}))
    return code


def _cancelled(kit: Any, graph: str, cuda: Any) -> str:
    """Build one graph and cancel it through its progress monitor."""
    from engines.builder import build_engine
    from engines.bundle import graph_path

    steps = list[float]()

    def cancel(_: str, fraction: float) -> None:
        steps.append(fraction)
        if fraction > 0:
            raise KeyboardInterrupt

    try:
        build_engine(kit.model / graph_path(graph), kit.asked[graph].spec, kit.target, progress=cancel, cuda=cuda)
    except KeyboardInterrupt:
        return f"the build of '{graph}' at {steps[-1]:.1%}, after {len(steps)} steps"
    raise AssertionError("the build continued after it was cancelled")


def _disturb(build: Any) -> None:
    """Make the build of the graph named by DIE_IN end by a signal."""
    popen = build.subprocess.Popen

    def started(command: list[str], **options: Any) -> Any:
        process = popen(command, **options)
        if os.environ.get("DIE_IN") in command:
            process.stdout.readline()  # the build has started
            process.kill()
        return process

    build.subprocess = SimpleNamespace(Popen=started, PIPE=build.subprocess.PIPE)


if __name__ == "__main__":
    sys.exit(main())
