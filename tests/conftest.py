"""Bundles are exported once for all tests, and copied by the tests that damage them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from engines.spec import StreamLimits
from engines.target import load_target
from pvc_export.export import ExportRequest, export
from pvc_export.models import LoadedModel, load_model

WINDOW = 4

torch.set_num_threads(1)  # operations this small only wait for a second thread, on a busy machine for long


@pytest.fixture(scope="session")
def tiny() -> LoadedModel:
    """The `tiny` model, seed 0: the reference of both bundles."""
    return load_model("tiny")


@pytest.fixture(scope="session")
def bundle_fp32(tiny: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """float32, two streams (so every graph has a dynamic batch), no engines. Do not change it: take `copy_bundle`.

    Like bundle_fp16, its LLM updates the cache in place.
    """
    out = tmp_path_factory.mktemp("bundles") / "fp32"
    limits = StreamLimits(window=WINDOW, context=512, streams=2)
    export(tiny, ExportRequest(out=out, target=load_target("cpu"), precision="fp32", limits=limits))
    return out


@pytest.fixture(scope="session")
def bundle_fp16(tiny: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """float16 with TensorRT-RTX engines, one stream. Do not change it: take `copy_bundle`."""
    out = tmp_path_factory.mktemp("bundles") / "fp16"
    limits = StreamLimits(window=WINDOW, context=512)
    export(tiny, ExportRequest(out=out, target=load_target("rtx"), precision="fp16", limits=limits))
    return out


@pytest.fixture(scope="session")
def bundle_rows(tiny: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """float32 as bundle_fp32, but for a target whose LLM returns rows instead of updating its cache in place."""
    out = tmp_path_factory.mktemp("bundles") / "rows"
    limits = StreamLimits(window=WINDOW, context=512, streams=2)
    export(tiny, ExportRequest(out=out, target=load_target("cuda"), precision="fp32", limits=limits))
    return out


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
