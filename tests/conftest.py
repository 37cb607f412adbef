"""Bundles are exported once for all tests, and copied by the tests that damage them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from engines.spec import StreamLimits
from engines.target import load_target
from pvc_export.export import ExportRequest, export
from pvc_export.models import LoadedModel, load_model, loaded_model
from pvc_ref import PVC, PVCConfig
from pvc_ref.prompt import byte_tokenizer

WINDOW = 4

torch.set_num_threads(1)  # operations this small only wait for a second thread, on a busy machine for long


Shared = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Shared:
    """A folder that one process makes and all read: an export takes half a minute."""
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


@pytest.fixture(scope="session")
def tiny() -> LoadedModel:
    """The `tiny` model, seed 0: the reference of both bundles."""
    return load_model("tiny")


def few_layers(config: PVCConfig) -> PVCConfig:
    """The same model with as few layers as show everything: it exports in half of the time."""
    vision = replace(config.vision, num_layers=2, num_temporal_layers=1)
    return replace(config, vision=vision, llm=replace(config.llm, num_layers=1))


@pytest.fixture(scope="session")
def small() -> LoadedModel:
    """`tiny` with few layers, for tests that export and do not care what."""
    return loaded_model(PVC.random(few_layers(PVCConfig.preset("tiny")), seed=0), byte_tokenizer(), name="small")


@pytest.fixture(scope="session")
def bundle_fp32(tiny: LoadedModel, shared: Shared) -> Path:
    """float32, two streams (so every graph has a dynamic batch), no engines. Do not change it: take `copy_bundle`.

    Like bundle_fp16, its LLM updates the cache in place.
    """
    limits = StreamLimits(window=WINDOW, context=512, streams=2)
    request = ExportRequest(out=Path(), target=load_target("cpu"), precision="fp32", limits=limits)
    return shared("fp32", lambda out: export(tiny, replace(request, out=out)))


@pytest.fixture(scope="session")
def bundle_fp16(tiny: LoadedModel, shared: Shared) -> Path:
    """float16 with TensorRT-RTX engines, one stream. Do not change it: take `copy_bundle`."""
    limits = StreamLimits(window=WINDOW, context=512)
    request = ExportRequest(out=Path(), target=load_target("rtx"), precision="fp16", limits=limits)
    return shared("fp16", lambda out: export(tiny, replace(request, out=out)))


@pytest.fixture(scope="session")
def bundle_rows(tiny: LoadedModel, shared: Shared) -> Path:
    """float32 as bundle_fp32, but for a target whose LLM returns rows instead of updating its cache in place."""
    limits = StreamLimits(window=WINDOW, context=512, streams=2)
    request = ExportRequest(out=Path(), target=load_target("cuda"), precision="fp32", limits=limits)
    return shared("rows", lambda out: export(tiny, replace(request, out=out)))


@pytest.fixture(scope="session")
def bundle_shapes(shared: Shared) -> Path:
    """The bundled model in float16, without engines. Do not change it."""
    request = ExportRequest(out=Path(), target=load_target("cpu"), precision="fp16", limits=StreamLimits(context=1024))
    return shared("shapes", lambda out: export(load_model("shapes"), replace(request, out=out)))


@pytest.fixture
def copy_bundle(tmp_path: Path) -> Callable[[Path], Path]:
    """A private copy of a bundle, to be damaged."""

    def copy(bundle: Path) -> Path:
        return Path(shutil.copytree(bundle, tmp_path / "copy"))

    return copy


@pytest.fixture
def frames() -> list[np.ndarray]:
    """Twelve camera frames (96, 128, 3) uint8 BGR, each of its own."""
    from pvc_export.frames import render_clip

    return list(render_clip(12, seed=3, width=128, height=96))
