"""Engines built by the real TensorRT-RTX compiler on this machine, without a GPU."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engines.builder import build_engine
from engines.errors import BackendUnavailable, BuildError, SpecError
from engines.manifest import Manifest
from engines.target import load_target, target_names

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install -e '.[rtx]'")


@pytest.fixture
def temporal(bundle_fp16: Path, tmp_path: Path) -> Callable[[], Path]:
    """Return a private copy of the temporal graph and its weights."""

    def copy() -> Path:
        for name in ("temporal.onnx", "temporal.onnx.data"):
            shutil.copy(bundle_fp16 / "graphs" / name, tmp_path / name)
        return tmp_path / "temporal.onnx"

    return copy


def test_float16_engines_fuse_every_attention_of_the_vision_side(bundle_fp16: Path) -> None:
    """tiny has 2 trunk layers, and 2 temporal layers with one spatial and one temporal attention each."""
    fused = {name: entry.fused_attention for name, entry in Manifest.load(bundle_fp16).engines.items()}
    none = {"gemm": 0, "gemv": 0}
    assert fused == {
        "trunk": {"gemm": 2, "gemv": 0},
        "temporal": {"gemm": 2, "gemv": 2},
        "compressor": none,
        "llm": {"gemm": 2, "gemv": 2},
        "head": none,
    }


def test_a_build_reports_progress_from_start_to_end(bundle_fp16: Path) -> None:
    spec = Manifest.load(bundle_fp16).graphs["head"]
    seen: list[float] = []
    report = build_engine(
        bundle_fp16 / "graphs/head.onnx", spec, load_target("rtx"), progress=lambda _, fraction: seen.append(fraction)
    )
    assert len(report.layers) > 0 and len(report.plan) > 1000
    assert len(seen) > 10 and seen[0] < 0.3 and seen[-1] == 1.0
    assert seen == sorted(seen), "progress must not go backwards"


@pytest.mark.parametrize(
    "content", [b"", b"this is not a network", b"<html></html>", b"\x00" * 64], ids=["empty", "text", "html", "zeros"]
)
def test_a_file_that_is_no_onnx_is_refused_even_where_the_parser_accepts_it(
    bundle_fp16: Path, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "head.onnx"
    path.write_bytes(content)
    with pytest.raises(BuildError, match="head.onnx cannot be read as ONNX"):
        build_engine(path, Manifest.load(bundle_fp16).graphs["head"], load_target("rtx"))


def test_a_truncated_graph_is_refused(bundle_fp16: Path, temporal: Callable[[], Path]) -> None:
    path = temporal()
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(BuildError, match="cannot be read as ONNX"):
        build_engine(path, Manifest.load(bundle_fp16).graphs["temporal"], load_target("rtx"))


def test_missing_weights_are_named(bundle_fp16: Path, temporal: Callable[[], Path]) -> None:
    path = temporal()
    path.with_name("temporal.onnx.data").unlink()
    with pytest.raises(BuildError, match=r"temporal\.onnx\.data"):
        build_engine(path, Manifest.load(bundle_fp16).graphs["temporal"], load_target("rtx"))


def test_a_graph_of_another_spec_is_refused(bundle_fp16: Path, temporal: Callable[[], Path]) -> None:
    with pytest.raises(BuildError, match="has other inputs than its GraphSpec") as info:
        build_engine(temporal(), Manifest.load(bundle_fp16).graphs["trunk"], load_target("rtx"))
    assert info.value.expected == "['frame'], as in the GraphSpec of 'trunk'"


def test_a_dynamic_dimension_without_a_profile_fails_with_the_builder_s_reason(bundle_fp16: Path) -> None:
    spec = replace(Manifest.load(bundle_fp16).graphs["llm"], profiles=())
    with pytest.raises(BuildError, match=r"could not build 'llm'.*profile"):
        build_engine(bundle_fp16 / "graphs/llm.onnx", spec, load_target("rtx"))


def test_without_the_runtime_the_error_says_what_to_install(bundle_fp16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(BackendUnavailable, match="target 'rtx' needs the package tensorrt_rtx") as info:
        build_engine(bundle_fp16 / "graphs/head.onnx", Manifest.load(bundle_fp16).graphs["head"], load_target("rtx"))
    assert info.value.fix == "pip install -e '.[rtx]'"


def test_every_target_file_loads_and_an_unknown_name_gets_its_nearest() -> None:
    assert {"cpu", "rtx"} <= set(target_names())
    assert all(load_target(name).name == name for name in target_names())
    with pytest.raises(SpecError, match="no target 'rxt'") as info:
        load_target("rxt")
    assert "Did you mean 'rtx'?" in info.value.fix and "tensorrt-10" in info.value.expected
    with pytest.raises(BackendUnavailable, match="there is no engine to build"):
        build_engine(Path("x.onnx"), None, load_target("cpu"))  # type: ignore[arg-type]
