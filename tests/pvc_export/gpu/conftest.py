"""A stand-in for a machine with a GPU: RecordingCuda, the fake TensorRT, IO binding on ONNX Runtime's CPU, and torch on
the CPU. It uses the shared bundles with replaced engines."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import IO

import pytest

from engines.bundle import graph_path
from engines.fake import RecordingCuda
from engines.golden.recording import GOLDEN_NAME
from engines.gpu import OrtCudaSession
from engines.manifest import Manifest, hash_folder
from engines.provenance import sign_engines
from engines.spec import Precision
from pvc_export.gpu.child import result_path
from pvc_export.gpu.hardware import Drivers, Gpu, Hardware
from pvc_export.gpu.run import GpuRun, run_gpu
from pvc_export.gpu.section import Section
from pvc_export.gpu.steps import Step, execute
from pvc_export.graphs.models import LoadedModel
from pvc_export.parity.golden import record_golden
from pvc_export.terminal.console import Console
from tests.conftest import Shared
from tests.engines.fake_trt import fake_plan, make_module

CAPABILITY = "SM75"
"""A card without bfloat16, which the fakes cannot compute either."""
VERSIONS = {"tensorrt_rtx": "1.7.1.116", "tensorrt": "11.4.0.106"}


class StandIn:
    """One card and the runtimes on it."""

    def __init__(self, bundles: dict[str, Path]) -> None:
        self.cuda = RecordingCuda(CAPABILITY)
        self._bundles = bundles
        gpu = Gpu(name="a stand-in", capability=(7, 5), memory_bytes=2**33)
        self.hardware = Hardware(
            drivers=Drivers(gpus=(gpu,), cuda_version="13.0"), cuda=lambda: self.cuda, torch_device="cpu",
            provider="CPUExecutionProvider", make_bundle=self.make_bundle, is_stand_in=True,
        )  # fmt: skip

    def make_bundle(self, model: str, target: str, precision: Precision, out: Path) -> None:
        shutil.copytree(self._bundles[target], out)
        if target != "cuda":
            on_fakes(out, target)

    def launch(self, step: Step, model: str, folder: Path, limit_s: float, log: IO[str]) -> Section:
        """Run the step in this process, which has the fakes."""
        peaks = result_path(folder, "peaks")
        measured = Section.from_json(json.loads(peaks.read_text())) if peaks.is_file() else None
        return execute(step, self.hardware, model, folder, measured)


def on_fakes(folder: Path, target: str) -> None:
    """Replace a bundle's engines by those of the fake runtime, as if this machine had just built them."""
    manifest, runtime = Manifest.load(folder), {"rtx": "tensorrt_rtx"}.get(target, target)
    engines = {}
    for name, entry in manifest.engines.items():
        (folder / entry.path).write_bytes(fake_plan(folder / graph_path(name), manifest.graphs[name]))
        engines[name] = replace(
            entry, runtime=runtime, runtime_version=VERSIONS[runtime], compute_capabilities=(CAPABILITY,)
        )  # fmt: skip
    sign_engines(replace(manifest, target=target, engines=engines, files=hash_folder(folder))).save(folder)


@pytest.fixture(scope="session")
def golden_bundles(shared: Shared, tiny: LoadedModel, bundle_fp16: Path, bundle_rows: Path) -> dict[str, Path]:
    """A bundle with a golden recording for each target."""

    def with_golden(source: Path) -> Path:
        def make(folder: Path) -> None:
            partial_folder = folder.with_suffix(".partial")
            shutil.copytree(source, partial_folder)
            manifest = Manifest.load(partial_folder)
            record_golden(tiny, manifest).save(partial_folder / GOLDEN_NAME)
            replace(manifest, files=hash_folder(partial_folder)).save(partial_folder)
            partial_folder.rename(folder)

        return shared(f"golden-{source.name}", make)

    fp16, rows = with_golden(bundle_fp16), with_golden(bundle_rows)
    return {"rtx": fp16, "tensorrt": fp16, "cuda": rows}


Patched = AbstractContextManager[StandIn]


@pytest.fixture(scope="session")
def plugged_in(golden_bundles: dict[str, Path]) -> Callable[[], Patched]:
    """A context in which the machine has the stand-in: the fake packages, and ONNX Runtime's CPU as its provider."""

    @contextmanager
    def within() -> Iterator[StandIn]:
        found = StandIn(golden_bundles)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("engines.gpu.OrtCudaSession", partial(OrtCudaSession, provider="CPUExecutionProvider"))
            for name, version in VERSIONS.items():
                module = make_module(name, version, cuda=found.cuda, classic=name == "tensorrt")
                module.__spec__ = ModuleSpec(name, None)  # torch looks for tensorrt
                patch.setitem(sys.modules, name, module)
            yield found

    return within


@pytest.fixture(scope="session")
def whole_run(plugged_in: Callable[[], Patched], tmp_path_factory: pytest.TempPathFactory) -> GpuRun:
    """The result of every step on the stand-in."""
    folder = tmp_path_factory.mktemp("gpu") / "out"
    with plugged_in() as found:
        return run_gpu(folder, "tiny", Console(quiet=True), hardware=found.hardware, launch=found.launch)
