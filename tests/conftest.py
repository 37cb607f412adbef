"""Shared fixtures. Bundles are exported once for all tests; tests that damage a bundle copy it."""

from __future__ import annotations

import hashlib
import io
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import nn

import pvc_export.bundles.export
from engines.spec import GraphSpec, Part, Quantization, StreamLimits
from engines.target import load_target
from pvc_export.bundles.export import ExportRequest, export
from pvc_export.bundles.kit import make_kit
from pvc_export.graphs.models import LoadedModel, load_model, loaded_model
from pvc_export.graphs.onnx_file import export_graph
from pvc_export.parity import check, fresh
from pvc_export.parity.report import ParityReport
from pvc_export.parity.state.rules import check_rules
from pvc_export.parity.words.conversations import converse
from pvc_export.parity.words.further import ask_further
from pvc_export.terminal.console import Console
from pvc_ref import PVC, PVCConfig
from pvc_ref.prompt import byte_tokenizer

WINDOW = 4

torch.set_num_threads(1)  # operations this small only wait for a second thread, and on a busy machine for long


Shared = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Shared:
    """A folder made by one process and read by all: an export takes half a minute."""
    root = tmp_path_factory.getbasetemp()
    root = root if worker_id == "master" else root.parent

    def folder(name: str, make: Callable[[Path], object]) -> Path:
        path = root / "bundles" / name
        path.parent.mkdir(exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                make(path)
        return path

    return folder


ExportGraph = Callable[[nn.Module, GraphSpec, Path], None]


@pytest.fixture(scope="session")
def export_once(shared: Shared) -> ExportGraph:
    """`export_graph` with a cache: each module and spec is exported only once for all tests."""

    def once(module: nn.Module, spec: GraphSpec, path: Path) -> None:
        def make(folder: Path) -> None:
            partial = folder.with_suffix(".partial")
            partial.mkdir()
            export_graph(module, spec, partial / path.name)
            partial.rename(folder)

        for file in shared(f"{path.stem}-{digest_of((module, spec.to_json()))}", make).iterdir():
            shutil.copy(file, path.parent)

    return once


def digest_of(value: object) -> str:
    """Digest of an object and everything in it: attributes, tensors by content, functions by their code. Includes the
    current exporting code, with whatever a test has patched."""

    class Contents(pickle.Pickler):
        def persistent_id(self, part: Any) -> Any:
            if isinstance(part, torch.Tensor):
                return part.dtype, tuple(part.shape), part.detach().flatten().view(torch.uint8).numpy().tobytes()
            if isinstance(part, FunctionType):  # and the values it closes over
                code = part.__code__
                constants = [value for value in code.co_consts if not isinstance(value, CodeType)]
                told = (part.__module__, part.__qualname__, code.co_code, code.co_names, constants)
                told += (part.__defaults__, part.__kwdefaults__)
                return *told, [cell.cell_contents for cell in part.__closure__ or () if not is_class_cell(cell)]
            return part.__name__ if isinstance(part, ModuleType) else None

    stream = io.BytesIO()
    Contents(stream).dump((value, exporting_code()))
    return hashlib.sha256(stream.getvalue()).hexdigest()[:32]


def is_class_cell(cell: CellType) -> bool:
    """True for the cell in which a method that calls super() keeps its class."""
    return isinstance(cell.cell_contents, type)


EXPORTING = [
    module
    for name, module in sorted(sys.modules.items())
    if name.startswith(("pvc_ref.", "pvc_export.graphs.")) and module is not None
]
"""The modules that produce a graph, as far as this file imports them: the same in every process of a run."""


def exporting_code() -> list[tuple[str, str, FunctionType | int | float | str]]:
    """Return the functions, methods and constants of `EXPORTING`."""
    found: list[tuple[str, str, FunctionType | int | float | str]] = []
    for module in EXPORTING:
        for name, value in vars(module).items():
            if isinstance(value, FunctionType | int | float | str) and not name.startswith("__"):
                found.append((module.__name__, name, value))
            elif isinstance(value, type) and value.__module__ == module.__name__:
                methods = ((f"{name}.{key}", method) for key, method in vars(value).items())
                found += [(module.__name__, key, method) for key, method in methods if isinstance(method, FunctionType)]
    return found


@pytest.fixture(scope="session")
def sharing_graphs(export_once: ExportGraph) -> Callable[[], AbstractContextManager[None]]:
    """Context in which bundles, and the fresh exports for their checks, take their graphs from `export_once`."""

    @contextmanager
    def sharing() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pvc_export.bundles.export, "export_graph", export_once)
            patch.setattr(fresh, "export_graph", export_once)
            yield

    return sharing


@pytest.fixture
def shared_graphs(sharing_graphs: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """`sharing_graphs` for a whole test."""
    with sharing_graphs():
        yield


@pytest.fixture(scope="session")
def tiny() -> LoadedModel:
    """The `tiny` model, seed 0: the reference of most bundles here."""
    return load_model("tiny")


def few_layers(config: PVCConfig) -> PVCConfig:
    """The same model with the fewest layers that still have every part: it exports in half the time."""
    vision = replace(config.vision, num_layers=2, num_temporal_layers=1)
    return replace(config, vision=vision, llm=replace(config.llm, num_layers=1))


@pytest.fixture(scope="session")
def small() -> LoadedModel:
    """`tiny` with few layers, for tests that export and do not depend on the model."""
    return loaded_model(PVC.random(few_layers(PVCConfig.preset("tiny")), seed=0), byte_tokenizer(), name="small")


SharedBundle = Callable[[str, LoadedModel, ExportRequest], Path]
NUM_QUESTIONS = 120
"""Questions to the bundled model during an export; 200 outside of tests."""


@pytest.fixture(scope="session")
def shared_bundle(shared: Shared, sharing_graphs: Callable[[], AbstractContextManager[None]]) -> SharedBundle:
    """Export and check a bundle in one process for all to read. The request's `out` is replaced."""

    def bundle(name: str, loaded: LoadedModel, request: ExportRequest) -> Path:
        def make(out: Path) -> None:
            with sharing_graphs(), pytest.MonkeyPatch.context() as patch:
                patch.setattr(pvc_export.bundles.export, "NUM_QUESTIONS", NUM_QUESTIONS)
                patch.setattr(check, "converse", converse)  # a test may have replaced them
                patch.setattr(check, "ask_further", ask_further)
                patch.setattr(check, "check_rules", check_rules)
                report = export(loaded, replace(request, out=out))
            assert report.passed, report.failure_text()
            report_path(out).write_bytes(pickle.dumps(report))

        return shared(name, make)

    return bundle


def report_path(bundle: Path) -> Path:
    return bundle.with_suffix(".report")


@pytest.fixture(scope="session")
def report_of() -> Callable[[Path], ParityReport]:
    """The report of the full check at the export of a shared bundle: a new check would find the same."""

    def report(bundle: Path) -> ParityReport:
        found: ParityReport = pickle.loads(report_path(bundle).read_bytes())
        return found

    return report


@pytest.fixture(scope="session")
def bundle_fp32(tiny: LoadedModel, shared_bundle: SharedBundle) -> Path:
    """float32, two streams (so every graph has a dynamic batch), no engines. Do not change it: use `copy_bundle`.

    Like bundle_fp16, its LLM updates the cache in place.
    """
    limits = StreamLimits(window=WINDOW, context=512, streams=2)
    request = ExportRequest(out=Path(), target=load_target("cpu"), precision="fp32", limits=limits)
    return shared_bundle("fp32", tiny, request)


@pytest.fixture(scope="session")
def bundle_fp16(tiny: LoadedModel, shared_bundle: SharedBundle) -> Path:
    """float16 with TensorRT-RTX engines, one stream. Do not change it: use `copy_bundle`."""
    limits = StreamLimits(window=WINDOW, context=512)
    request = ExportRequest(out=Path(), target=load_target("rtx"), precision="fp16", limits=limits)
    return shared_bundle("fp16", tiny, request)


@pytest.fixture(scope="session")
def bundle_rows(tiny: LoadedModel, shared_bundle: SharedBundle) -> Path:
    """float32 like bundle_fp32, but for a target whose LLM returns rows instead of updating its cache in place."""
    limits = StreamLimits(window=WINDOW, context=512, streams=2)
    request = ExportRequest(out=Path(), target=load_target("cuda"), precision="fp32", limits=limits)
    return shared_bundle("rows", tiny, request)


@pytest.fixture(scope="session")
def bundle_int4(tiny: LoadedModel, shared_bundle: SharedBundle) -> Path:
    """float32, except for the LLM's int4 weights with zero points. Do not change it."""
    limits, how = StreamLimits(window=WINDOW, context=512), Quantization(block=32, zero_points=True, method="search")
    request = ExportRequest(
        out=Path(), target=load_target("cpu"), precision="fp32", limits=limits, quantization={"llm": how}
    )
    return shared_bundle("int4", tiny, request)


@pytest.fixture(scope="session")
def bundle_int8(tiny: LoadedModel, shared_bundle: SharedBundle) -> Path:
    """float32, except for int8 matmuls in vision (scales per tensor) and in the LLM (per row). Do not change it."""
    target, limits = load_target("cpu"), StreamLimits(window=WINDOW, context=512)
    quantization: dict[Part, Quantization] = {
        part: Quantization(bits=8, block=None, zero_points=False, method="search", inputs=inputs)
        for part, inputs in target.int8.items()
    }
    request = ExportRequest(out=Path(), target=target, precision="fp32", limits=limits, quantization=quantization)
    return shared_bundle("int8", tiny, request)


@pytest.fixture(scope="session")
def bundle_static(tiny: LoadedModel, shared_bundle: SharedBundle) -> Path:
    """float16 with TensorRT-RTX engines, int8 matmuls in vision with static scales. Do not change it."""
    target = load_target("rtx")
    how = Quantization(bits=8, block=None, zero_points=False, method="search", inputs=target.int8["vision"])
    request = ExportRequest(
        out=Path(), target=target, precision="fp16", limits=StreamLimits(window=WINDOW, context=512),
        quantization={"vision": how},
    )  # fmt: skip
    return shared_bundle("static", tiny, request)


@pytest.fixture(scope="session")
def bundle_states(tiny: LoadedModel, shared_bundle: SharedBundle) -> Path:
    """float16 with TensorRT-RTX engines, ring and cache in int8. Do not change it."""
    limits = StreamLimits(window=WINDOW, context=512)
    request = ExportRequest(
        out=Path(), target=load_target("rtx"), precision="fp16", limits=limits, int8_states=("ring", "cache")
    )
    return shared_bundle("states", tiny, request)


@pytest.fixture(scope="session")
def bundle_unfused(small: LoadedModel, shared_bundle: SharedBundle) -> Path:
    """A small model in float16 with TensorRT-RTX engines, all attention unfused. Do not change it."""
    request = ExportRequest(
        out=Path(), target=load_target("rtx"), precision="fp16", limits=StreamLimits(window=WINDOW, context=512),
        unfused=("spatial", "temporal", "llm"),
    )  # fmt: skip
    return shared_bundle("unfused", small, request)


@pytest.fixture(scope="session")
def bundle_shapes(shared_bundle: SharedBundle) -> Path:
    """The bundled model in float16, without engines, with the limits of `make demo`. Do not change it."""
    request = ExportRequest(out=Path(), target=load_target("cpu"), precision="fp16", limits=StreamLimits())
    return shared_bundle("shapes", load_model("shapes"), request)


@pytest.fixture(scope="session")
def shared_kit(
    small: LoadedModel,
    shared: Shared,
    sharing_graphs: Callable[[], AbstractContextManager[None]],
    bundle_fp16: Path,
    report_of: Callable[[Path], ParityReport],
) -> Path:
    """A kit of a small model for an Orin. Do not change it: use a copy. Its check report is that of another bundle."""

    def make(out: Path) -> None:
        target = replace(load_target("jetson-orin-jp62"), engine_graphs=(), builder=None)
        limits = StreamLimits(window=WINDOW, context=512)
        request = ExportRequest(out=out, target=target, precision="fp16", limits=limits)
        with sharing_graphs(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(pvc_export.bundles.export, "check_bundle", lambda *_, **__: report_of(bundle_fp16))
            assert make_kit(small, request, console=Console(quiet=True)).passed

    return shared("kit", make)


@pytest.fixture
def copy_bundle(tmp_path: Path) -> Callable[[Path], Path]:
    """Copy a bundle, so that a test can damage it."""

    def copy(bundle: Path) -> Path:
        return Path(shutil.copytree(bundle, tmp_path / "copy"))

    return copy


@pytest.fixture
def frames() -> list[np.ndarray]:
    """Twelve different camera frames (96, 128, 3) uint8 BGR."""
    from pvc_export.parity.clip import render_clip

    return list(render_clip(12, seed=3, width=128, height=96))
