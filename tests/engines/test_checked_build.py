"""Everything a compiler shows of an engine is checked, the rest is recorded; build options reach the compiler."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from engines.builder import BuildOptions
from engines.checked_build import BuiltEngine, build_checked
from engines.errors import BuildError
from engines.fake import RecordingCuda
from engines.gate import Asked, WideAttention, parse_layers, shows_weights
from engines.manifest import Manifest
from engines.spec import FusedAttention, GraphSpec
from engines.target import load_target

from .fake_trt import make_module
from .test_gate import ENGINE, ONE_RING, RING, WEIGHT, as_inspection, as_log

OPAQUE = "Layer(Myelin): {ForeignNode[decoder.weight...cast]}"
WITHOUT_WEIGHTS = [(name, [entry for entry in inputs if entry != WEIGHT], outputs) for name, inputs, outputs in ENGINE]
NUM_WEIGHTS = 64 * 64


@pytest.fixture
def graph(bundle_fp16: Path) -> tuple[Path, GraphSpec]:
    """A graph file, and a spec of its inputs with the layers of test_gate."""
    spec = Manifest.load(bundle_fp16).graphs["temporal"]
    return bundle_fp16 / "graphs/temporal.onnx", replace(
        spec, states=ONE_RING.states, fused_attention=FusedAttention(gemv=1)
    )


def build(
    graph: tuple[Path, GraphSpec],
    patch: pytest.MonkeyPatch,
    options: BuildOptions | None = None,
    *,
    opens: bool = True,
    **printed: str,
) -> tuple[BuiltEngine, ModuleType]:
    trt: Any = make_module("tensorrt", "10.3.0", cuda=RecordingCuda(), classic=True, **printed)
    if not opens:
        trt.Runtime.deserialize_cuda_engine = lambda self, plan: None
    patch.setitem(sys.modules, "tensorrt", trt)
    path, spec = graph
    asked = Asked(spec=spec, num_weights=NUM_WEIGHTS, num_float32_weights=0, num_codes=0)
    target, cuda = load_target("tensorrt-10"), RecordingCuda()
    return build_checked(path, asked, target, built_from="graph", options=options, cuda=cuda), trt


def test_a_list_with_kernels_and_weights_is_held_whole(
    graph: tuple[Path, GraphSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    built, _ = build(graph, monkeypatch, build_log=as_log(ENGINE))
    assert built.entry.visible == "all" and built.entry.fused_attention == {"gemm": 0, "gemv": 1}
    assert built.note == "2 layers, fused attention 0 gemm + 1 gemv" and built.entry.built_from == "graph"


def test_a_list_without_weights_is_recorded_and_its_kernels_are_held(
    graph: tuple[Path, GraphSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    built, _ = build(graph, monkeypatch, build_log=as_log(WITHOUT_WEIGHTS))
    assert built.entry.visible == "kernels" and built.note.endswith(", weights not visible")
    loose = [(name.replace("_gemv_mha", "_softmax"), inputs, outputs) for name, inputs, outputs in WITHOUT_WEIGHTS]
    with pytest.raises(BuildError, match="0 fused attention kernels over many rows and 0 over one row"):
        build(graph, monkeypatch, build_log=as_log(loose))


def test_a_list_with_some_of_the_weights_hides_something(
    graph: tuple[Path, GraphSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [
        (name, [("__mye7_dconst", [8], "Half") if e == WEIGHT else e for e in ins], outs) for name, ins, outs in ENGINE
    ]
    with pytest.raises(BuildError, match="lists 8 constants, so its precision cannot be checked"):
        build(graph, monkeypatch, build_log=as_log(few))


def test_an_inspector_that_shows_one_opaque_node_is_recorded(
    graph: tuple[Path, GraphSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = as_inspection([("{ForeignNode[all]}", [RING], [("features", [1, 4, 16], "Half")])])
    built, _ = build(graph, monkeypatch, inspection=node)
    assert built.entry.visible == "nothing" and built.note == "kernels not visible"
    assert built.entry.num_layers == 0 and built.entry.fused_attention == {}


def test_a_log_that_shows_one_opaque_node_is_recorded_where_no_engine_can_be_opened(
    graph: tuple[Path, GraphSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine without a GPU."""
    built, _ = build(graph, monkeypatch, opens=False, build_log=OPAQUE)
    assert built.entry.visible == "nothing"
    with pytest.raises(BuildError, match="cannot be opened for inspection"):
        build(graph, monkeypatch, opens=False, build_log="done")


def test_a_log_that_shows_nothing_and_hides_nothing_still_fails(
    graph: tuple[Path, GraphSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BuildError, match="list of layers cannot be read"):
        build(graph, monkeypatch, build_log="done")


def test_inputs_of_a_second_profile_are_no_weights() -> None:
    second = [
        (f"{name} [profile 1]", [(f"{entry} [profile 1]", *rest) for entry, *rest in inputs], outputs)
        for name, inputs, outputs in WITHOUT_WEIGHTS
    ]
    layers = parse_layers(as_log([*WITHOUT_WEIGHTS, *second[:1]]))  # type: ignore[list-item]
    assert not shows_weights(layers, ONE_RING)
    assert shows_weights(parse_layers(as_log(ENGINE)), ONE_RING)


def test_workspace_and_timing_cache_reach_the_builder_and_come_back(
    graph: tuple[Path, GraphSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = BuildOptions(workspace_bytes=1 << 26, timing_cache=b"known")
    built, trt = build(graph, monkeypatch, options, build_log=as_log(ENGINE))
    assert list(trt.configs[0].pools.values()) == [1 << 26]
    assert built.report.timing_cache == b"known."
    plain, trt = build(graph, monkeypatch, build_log=as_log(ENGINE))
    assert trt.configs[0].pools == {} and plain.report.timing_cache is None


def test_a_timing_cache_that_the_runtime_refuses_is_started_over(
    graph: tuple[Path, GraphSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    built, _ = build(graph, monkeypatch, BuildOptions(timing_cache=b"? of another GPU"), build_log=as_log(ENGINE))
    assert built.report.timing_cache == b"."


def test_what_is_asked_of_an_engine_survives_a_file() -> None:
    wide = WideAttention(num_rows=2, states=frozenset({"past.0.key"}))
    asked = Asked(spec=ONE_RING, num_weights=7, num_float32_weights=None, num_codes=3, wide=wide)
    assert Asked.from_json(asked.to_json(), ONE_RING) == asked
