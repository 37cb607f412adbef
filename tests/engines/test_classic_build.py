"""Builds with TensorRT itself, and which runtime may build for which target. The compiler is a fake (fake_trt.py)."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from engines import builder
from engines.builder import EngineReport, build_engine, load_runtime
from engines.errors import BackendUnavailable, BuildError
from engines.fake import RecordingCuda
from engines.gate import check_layers
from engines.manifest import Manifest
from engines.target import load_target

from .fake_trt import make_module
from .test_gate import ENGINE, ONE_RING, as_inspection, as_log


def install(monkeypatch: pytest.MonkeyPatch, version: str, *, name: str = "tensorrt", **options: Any) -> ModuleType:
    trt = make_module(name, version, cuda=RecordingCuda(), classic=name == "tensorrt", **options)
    monkeypatch.setitem(sys.modules, name, trt)
    return trt


@pytest.mark.parametrize(
    ("target", "version", "fits"),
    [
        ("tensorrt", "9.9.0", False),
        ("tensorrt", "10.14.1", False),
        ("tensorrt", "10.15.1", True),
        ("tensorrt", "11.4.0", True),
        ("tensorrt-10", "10.2.0.19", False),
        ("tensorrt-10", "10.3.0", True),
        ("tensorrt-10", "10.13.3.9", True),
        ("tensorrt-10", "10.15.1", False),
        ("tensorrt", "12.0.0", False),
        ("tensorrt", "12", False),
        ("jetson-orin-jp62", "10.3.0", True),
        ("jetson-orin-jp62", "10.16.0", False),
        ("jetson-thor-jp70", "10.13.2", True),
        ("jetson-thor-jp70", "10.3.0", False),
        ("jetson-orin-jp72", "10.16.2", True),
        ("jetson-thor-jp72", "10.13.2", False),
    ],
)
def test_only_the_versions_of_a_target_may_build_for_it(
    monkeypatch: pytest.MonkeyPatch, target: str, version: str, fits: bool
) -> None:
    trt = install(monkeypatch, version)
    if fits:
        assert load_runtime(load_target(target)) is trt
        return
    with pytest.raises(BackendUnavailable, match=rf"{version} is installed.* target '{target}' does not") as error:
        load_runtime(load_target(target))
    assert error.value.expected.startswith("tensorrt 10.")
    assert error.value.exit_code == 4 and "--target" in error.value.fix


def build(folder: Path, target: str, cuda: RecordingCuda | None = None) -> EngineReport:
    spec = Manifest.load(folder).graphs["llm"]
    return build_engine(folder / "graphs/llm.onnx", spec, load_target(target), cuda=cuda)


@pytest.mark.parametrize(
    ("target", "version", "found"),
    [("tensorrt", "10.15.1", "SM90"), ("tensorrt-10", "10.3.0", "SM120"), ("jetson-orin-jp62", "10.3.0", "SM87")],
    ids=str,
)
def test_a_build_by_tensorrt_records_the_gpu_that_it_found(
    bundle_fp16: Path, monkeypatch: pytest.MonkeyPatch, target: str, version: str, found: str
) -> None:
    trt = install(monkeypatch, version, build_log=as_log(ENGINE))
    report = build(bundle_fp16, target, RecordingCuda(capability=found))
    assert report.compute_capabilities == (found,) and report.runtime_version == version
    assert [flag.name for flag in trt.configs[0].cleared] == ["TF32"]
    assert trt.configs[0].capabilities == {}, "it compiles for the GPU it finds, so no capability is set"
    spec = Manifest.load(bundle_fp16).graphs["llm"]
    for ranges, profile in zip(spec.profiles, trt.configs[0].profiles, strict=True):
        rows = spec.profile_shapes(spec.input("position_ids"), ranges)
        assert profile.shapes["position_ids"] == (rows[0], rows[2])


def test_a_version_of_another_target_s_is_refused_with_that_target(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "10.3.0")
    with pytest.raises(BackendUnavailable, match=r"10.3.0 is installed") as info:
        load_runtime(load_target("tensorrt"))
    assert info.value.fix.endswith("--target tensorrt-10")


def test_a_build_by_tensorrt_rtx_is_told_for_which_gpus(bundle_fp16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = install(monkeypatch, "1.7.1", name="tensorrt_rtx", build_log=as_log(ENGINE))
    report = build(bundle_fp16, "rtx")
    assert report.compute_capabilities == ("SM80", "SM86", "SM89", "SM120")
    assert trt.configs[0].capabilities == dict(enumerate(report.compute_capabilities))
    assert trt.configs[0].num_compute_capabilities == 4


@pytest.mark.parametrize(("target", "own"), [("jetson-orin-jp62", "SM87"), ("jetson-thor-jp70", "SM110")])
def test_an_engine_for_a_jetson_is_built_on_that_jetson_only(
    bundle_fp16: Path, monkeypatch: pytest.MonkeyPatch, target: str, own: str
) -> None:
    install(monkeypatch, "10.13.0" if "thor" in target else "10.3.0", build_log=as_log(ENGINE))
    with pytest.raises(BackendUnavailable, match="this machine's GPU is SM89, which") as info:
        build(bundle_fp16, target, RecordingCuda(capability="SM89"))
    assert info.value.expected == own and "on the device itself" in info.value.fix


def test_without_a_gpu_tensorrt_s_builder_is_not_even_made(bundle_fp16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There the real one raises a TypeError about a factory function."""

    def no_gpu() -> None:
        raise BackendUnavailable("no NVIDIA GPU is visible")

    def broken(log: object) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    trt: Any = install(monkeypatch, "10.15.1")
    monkeypatch.setattr(builder, "LibCudart", no_gpu)
    trt.Builder = broken
    with pytest.raises(BackendUnavailable, match="no NVIDIA GPU"):
        build(bundle_fp16, "tensorrt")


def test_layers_come_from_the_log_where_it_lists_them(bundle_fp16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "10.15.1", build_log=as_log(ENGINE), inspection="never asked")
    report = build(bundle_fp16, "tensorrt", RecordingCuda())
    check_layers(report.layers, ONE_RING, num_float32_weights=0)


def test_layers_come_from_the_inspector_where_the_log_lists_none(
    bundle_fp16: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, "10.15.1", build_log="Engine generation completed", inspection=as_inspection(ENGINE))
    report = build(bundle_fp16, "tensorrt", RecordingCuda())
    check_layers(report.layers, ONE_RING, num_float32_weights=0)
    assert [layer.name for layer in report.layers] == [name for name, _, _ in ENGINE]


@pytest.mark.parametrize("inspection", ["", "{}", '{"Layers": []}', '{"Layers": ["llm"]}'])
def test_a_build_whose_layers_cannot_be_read_fails(
    bundle_fp16: Path, monkeypatch: pytest.MonkeyPatch, inspection: str
) -> None:
    install(monkeypatch, "10.15.1", inspection=inspection)
    with pytest.raises(BuildError) as caught:
        build(bundle_fp16, "tensorrt", RecordingCuda())
    assert caught.value.exit_code == 5


def test_tensorrt_rtx_has_no_inspector_to_fall_back_to(bundle_fp16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It builds where there is no GPU, and so an engine cannot be opened there."""
    install(monkeypatch, "1.7.1", name="tensorrt_rtx", inspection=as_inspection(ENGINE))
    with pytest.raises(BuildError, match="the build log lists no layers"):
        build(bundle_fp16, "rtx")


def test_an_engine_that_cannot_be_opened_for_inspection_fails(
    bundle_fp16: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt: Any = install(monkeypatch, "10.15.1")
    monkeypatch.setattr(trt.Runtime, "deserialize_cuda_engine", lambda self, plan: None)
    with pytest.raises(BuildError, match="cannot be opened for inspection"):
        build(bundle_fp16, "tensorrt", RecordingCuda())
