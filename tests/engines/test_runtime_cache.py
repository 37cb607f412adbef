"""TensorRT-RTX compiles kernels at the first start. They are kept next to the bundle, for this machine only."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
import pytest

from engines import PVCStream, open_bundle
from engines.bundle import Bundle, verify_files
from engines.fake import RecordingCuda
from engines.manifest import Manifest
from engines.runtime_cache import SIGNATURE_BYTES, cache_folder

from .fake_trt import make_module
from .test_gpu import on_fake_engines

GRAPHS = {"trunk", "temporal", "compressor", "llm", "head"}


@pytest.fixture
def folder(bundle_fp16: Path, tmp_path: Path) -> Path:
    return on_fake_engines(bundle_fp16, tmp_path / "fp16")


@pytest.fixture
def start(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):  # type: ignore[no-untyped-def]
    """Start the program. Returns the bundle, and the graphs it reports as being compiled."""

    def started(capability: str = "SM89", *, classic: bool = False) -> tuple[Bundle, set[str]]:
        cuda = RecordingCuda(capability)
        version = Manifest.load(folder).engines["llm"].runtime_version
        module = make_module("tensorrt_rtx", version, cuda=cuda, classic=classic)
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", module)
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="engines"):
            bundle = open_bundle(folder, runtime="target", cuda=cuda)
        return bundle, {record.args[0] for record in caplog.records if isinstance(record.args, tuple)}  # type: ignore[misc]

    return started


def test_a_first_start_says_what_it_compiles_and_the_second_finds_it(start, folder: Path, frames) -> None:  # type: ignore[no-untyped-def]
    bundle, compiled = start()
    assert compiled == GRAPHS
    PVCStream(bundle).push(frames[0])
    kept = cache_folder(folder)
    assert kept == folder.parent / "fp16.runtime-cache" and {path.stem for path in kept.iterdir()} == GRAPHS
    assert b"profile 0" in (kept / "trunk.bin").read_bytes()  # includes what the first run compiled
    verify_files(folder, Manifest.load(folder))  # and the bundle has only the files in its manifest
    times = {path: path.stat().st_mtime_ns for path in kept.iterdir()}
    bundle, compiled = start()
    assert compiled == set()
    PVCStream(bundle).push(frames[1])
    unchanged = {path for path in kept.iterdir() if path.stat().st_mtime_ns == times[path]}
    assert len(unchanged) >= 4  # the LLM may run another profile first


def test_kernels_of_another_gpu_are_compiled_again(start, folder: Path) -> None:  # type: ignore[no-untyped-def]
    start("SM89")
    assert start("SM120")[1] == GRAPHS
    assert start("SM120")[1] == set()


@pytest.mark.parametrize("where", [0, SIGNATURE_BYTES + 2, -1], ids=["signature", "content", "end"])
def test_a_file_that_this_machine_did_not_keep_never_reaches_the_runtime(start, folder: Path, where: int) -> None:  # type: ignore[no-untyped-def]
    start()
    path = cache_folder(folder) / "trunk.bin"
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(bytes(data))
    assert start()[1] == {"trunk"}


def test_kernels_of_one_engine_are_not_taken_for_another(start, folder: Path) -> None:  # type: ignore[no-untyped-def]
    start()
    kept = cache_folder(folder)
    (kept / "head.bin").write_bytes((kept / "trunk.bin").read_bytes())
    assert start()[1] == {"head"}


def test_a_runtime_without_such_a_cache_runs_as_before(start, folder: Path, frames) -> None:  # type: ignore[no-untyped-def]
    bundle, compiled = start(classic=True)
    assert compiled == set() and not cache_folder(folder).exists()
    PVCStream(bundle).push(frames[0])


def test_the_real_package_has_what_is_looked_for() -> None:
    """A misspelt name would look like a runtime without a cache."""
    trt = pytest.importorskip("tensorrt_rtx")
    assert hasattr(trt.ICudaEngine, "create_runtime_config")
    assert {"create_runtime_cache", "set_runtime_cache"} <= set(dir(trt.IRuntimeConfig))
    assert {"serialize", "deserialize"} <= set(dir(trt.IRuntimeCache))


def test_a_folder_that_cannot_be_written_costs_time_and_nothing_else(start, folder: Path, frames) -> None:  # type: ignore[no-untyped-def]
    cache_folder(folder).write_text("a file where the folder would be")
    bundle, compiled = start()
    assert compiled == GRAPHS
    assert np.isfinite(PVCStream(bundle).push(frames[0]).vision_ms)
