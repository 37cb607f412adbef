"""A kit on a device whose compiler miscompiles fused attention. Uses test_build.py's stand-in for TensorRT."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from engines.bundle import OpenGraphs, graph_path, is_stale, verify_files
from engines.device.kit import Kit
from engines.errors import BundleError, ParityError
from engines.fake import RecordingCuda
from engines.golden.check import check_golden
from engines.manifest import Manifest
from engines.session import Wrapped
from engines.variants import variant_path, variants_in

from .test_build import GPU, built, built_kit, kit, opened_with, shared_work, tensorrt_of_before  # noqa: F401

OUTPUTS = {"trunk": "trunk_features", "temporal": "features", "llm": "hidden"}


def miscompiled(*graphs: str, even_unfused: Collection[str] = ()) -> Callable[[Path], OpenGraphs]:
    """Return a function that opens a bundle whose compiler gets these graphs' fused attention kernels wrong."""
    cuda = RecordingCuda(capability=GPU)

    def opened(folder: Path) -> OpenGraphs:
        found, manifest = opened_with(cuda)(folder), Manifest.load(folder)
        wrong = [name for name in graphs if name in even_unfused or name not in manifest.unfused]
        return replace(found, sessions={**found.sessions, **{name: broken(found.sessions[name]) for name in wrong}})

    return opened


def broken(session: Any) -> Wrapped:
    name = OUTPUTS[session.spec.name]

    def run(session: Any, inputs: Any) -> Any:
        outputs = session.run(inputs)
        array = session.memory.to_host(outputs[name])
        wrong = np.array(array) * np.asarray(1.5, array.dtype)
        return {**outputs, name: session.memory.from_host(wrong, session.spec.output(name).dtype)}

    return Wrapped(session, run)


def test_a_kit_brings_unfused_graphs_that_read_the_weights_of_the_others(shared_kit: Path) -> None:
    manifest = Manifest.load(shared_kit / "model")
    assert variants_in(manifest) == {"trunk": ("spatial",), "temporal": ("spatial", "temporal"), "llm": ("llm",)}
    verify_files(shared_kit / "model", manifest)
    for graph in variants_in(manifest):
        own, other = (onnx.load(shared_kit / "model" / path, load_external_data=False).graph
                      for path in (graph_path(graph), variant_path(graph)))  # fmt: skip
        places = [
            {tuple((entry.key, entry.value) for entry in tensor.external_data) for tensor in one.initializer}
            for one in (own, other)
        ]
        assert places[1] == places[0], "both graphs must use all the same bytes of the weights file"
        assert {"Softmax"} <= {node.op_type for node in other.node} and len(other.node) > len(own.node)
        assert (shared_kit / "model" / variant_path(graph)).stat().st_size < 1 << 20


def test_a_miscompiled_trunk_is_named_built_again_unfused_and_published(
    built_kit: Kit,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    capsys.readouterr()
    summary = built(built_kit, opened=miscompiled("trunk"))
    said = capsys.readouterr().err
    assert "graph 'trunk', frame 0, tensor 'trunk_features': " in said
    assert "trying 'trunk' with attention that tensorrt cannot fuse" in said
    assert [line.split()[1] for line in said.splitlines() if line.endswith(" s")] == ["trunk"], "and nothing else"
    folder = built_kit.folder / "bundle"
    manifest = Manifest.load(folder)
    assert summary["unfused"] == manifest.unfused == {"trunk": ("spatial",)}
    assert manifest.graphs["trunk"].unfused == ("spatial",) and manifest.graphs["trunk"].fused_attention.gemm == 0
    assert manifest.graphs["temporal"].fused_attention.gemm > 0, "the other graphs are unchanged"
    # The file, its engine's fingerprint and the graph that runs on a CPU are the same graph.
    own = (built_kit.model / variant_path("trunk")).read_bytes()
    assert (folder / graph_path("trunk")).read_bytes() == own
    assert not is_stale(manifest, "trunk") and manifest.engines["trunk"].signature
    assert not list(folder.glob(variant_path("*"))), "each published graph has only one file"
    verify_files(folder, manifest)
    assert check_golden(folder, runtime="cpu").report.passed
    # A second build compiles nothing again and gives the same bundle.
    built(built_kit, opened=miscompiled("trunk"))
    assert capsys.readouterr().err.count("built earlier") == 10
    assert Manifest.load(folder).files == manifest.files


def test_each_graph_that_fails_is_tried_and_the_first_error_is_told_if_one_stays_wrong(
    built_kit: Kit,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    old = (built_kit.folder / "bundle/manifest.json").read_bytes()
    with pytest.raises(ParityError, match=r"graph 'trunk', frame 0, .*unfused attention in llm, trunk: ") as caught:
        built(built_kit, opened=miscompiled("trunk", "llm", even_unfused=["llm"]))
    assert "graph 'llm', pass 0, tensor 'hidden'" in caught.value.what and caught.value.exit_code == 3
    assert (built_kit.folder / "bundle/manifest.json").read_bytes() == old, "the published bundle is unchanged"
    built(built_kit, opened=miscompiled("trunk", "llm"))
    assert set(Manifest.load(built_kit.folder / "bundle").unfused) == {"trunk", "llm"}
    assert "trying 'temporal'" not in capsys.readouterr().err


def test_a_variant_that_cannot_be_built_leaves_the_first_error(
    built_kit: Kit,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRT_DIES", "trunk.unfused")
    with pytest.raises(ParityError, match=r"graph 'trunk', frame 0, .*signal 9 ended the build of 'trunk'"):
        built(built_kit, opened=miscompiled("trunk"))


@pytest.mark.parametrize(
    ("parts", "graphs"), [(["llm"], {"llm"}), (["spatial"], {"trunk", "temporal"}), (["temporal"], {"temporal"})]
)
def test_a_part_can_be_asked_for_ahead(built_kit: Kit, parts: list[str], graphs: set[str]) -> None:  # noqa: F811
    built(built_kit, *(word for part in parts for word in ("--unfuse", part)))
    assert set(Manifest.load(built_kit.folder / "bundle").unfused) == graphs
    assert {path.name for path in built_kit.work.glob("*.unfused.engine")} == {f"{g}.unfused.engine" for g in graphs}


def test_a_kit_of_before_there_were_variants_builds_and_says_that_it_has_none(built_kit: Kit) -> None:  # noqa: F811
    path = built_kit.model / "manifest.json"
    facts = json.loads(path.read_text())
    for name in [name for name in facts["files"] if ".unfused." in name]:
        del facts["files"][name]
        (built_kit.model / name).unlink()
    del facts["unfused"]
    for spec in facts["graphs"].values():
        del spec["unfused"]
    path.write_text(json.dumps(facts))
    old = Kit.load(built_kit.folder)
    assert built(old)["unfused"] == {}
    with pytest.raises(ParityError, match=r"tensor 'trunk_features': norm gap \S+ \(limit \S+\)\. Nothing"):
        built(old, opened=miscompiled("trunk"))
    with pytest.raises(BundleError, match="has a variant with unfused llm attention"):
        built(old, "--unfuse", "llm")


def test_an_unfused_graph_that_was_damaged_is_refused_before_anything_is_built(kit: Kit) -> None:  # noqa: F811
    with (kit.model / variant_path("trunk")).open("ab") as file:
        file.write(b" ")
    with pytest.raises(BundleError, match=r"trunk\.unfused\.onnx has \d+ bytes"):
        built(kit)
