"""Damaged, incomplete, foreign or outdated bundles: each is refused by name, before anything runs."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines import open_bundle
from engines.errors import BackendUnavailable, BundleError
from engines.manifest import MANIFEST_NAME, Manifest, hash_folder

Copy = Callable[[Path], Path]


def edit_manifest(bundle: Path, **changes: object) -> None:
    path = bundle / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


def test_a_manifest_survives_saving_and_loading(bundle_fp16: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(bundle_fp16)
    manifest.save(tmp_path)
    assert Manifest.load(tmp_path) == manifest


def test_the_manifest_lists_every_file_of_the_bundle(bundle_fp16: Path) -> None:
    manifest = Manifest.load(bundle_fp16)
    files = {p.relative_to(bundle_fp16).as_posix() for p in bundle_fp16.rglob("*") if p.is_file()}
    assert set(manifest.files) == files - {MANIFEST_NAME}
    assert set(manifest.engines) == {"trunk", "temporal", "compressor", "llm", "head"}
    assert manifest.parity["passed"] is True and "bundle fp16" in manifest.parity["stages"]
    assert not any(stage.startswith("engine") for stage in manifest.parity["stages"])
    assert "engine" in manifest.parity["not_executed"], "an engine that did not run must be listed"
    assert manifest.model.random_weights is True


@pytest.mark.parametrize(
    "name", ["graphs/temporal.onnx", "graphs/llm.onnx.data", "tokenizer.json", "engines/llm.engine"]
)
def test_one_flipped_byte_is_found_and_its_file_named(bundle_fp16: Path, copy_bundle: Copy, name: str) -> None:
    bundle = copy_bundle(bundle_fp16)
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(BundleError, match=rf"{name} has SHA-256 ") as info:
        open_bundle(bundle)
    assert "changed after the export" in info.value.cause


def test_a_truncated_file_is_named_with_both_sizes(bundle_fp32: Path, copy_bundle: Copy) -> None:
    bundle = copy_bundle(bundle_fp32)
    path = bundle / "graphs/trunk.onnx.data"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2])
    with pytest.raises(BundleError, match=rf"trunk.onnx.data has {size // 2} bytes") as info:
        open_bundle(bundle)
    assert info.value.expected == f"{size} bytes, as in the manifest"


def test_a_missing_file_is_named(bundle_fp32: Path, copy_bundle: Copy) -> None:
    bundle = copy_bundle(bundle_fp32)
    (bundle / "graphs/head.onnx.data").unlink()
    with pytest.raises(BundleError, match="head.onnx.data is missing") as info:
        open_bundle(bundle)
    assert "copied incompletely" in info.value.cause


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "is not valid JSON"),
        ('{"format_version": 99}', "has format version 99\nexpected: 7, which this program reads"),
        ('{"format_version": 1, "engines": {}}', "has format version 1\nexpected: 7, which this program reads"),
        ('{"format_version": 7, "engines": {}}', "has a missing or invalid field"),
    ],
)
def test_a_broken_manifest_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / MANIFEST_NAME).write_text(content, "utf-8")
    with pytest.raises(BundleError, match=message):
        open_bundle(tmp_path)


def test_a_folder_that_is_no_bundle_is_refused_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="has no manifest.json"):
        open_bundle(tmp_path)
    with pytest.raises(BundleError, match="pvc-export trt"):
        open_bundle(tmp_path / "nowhere")


def test_a_graph_of_another_signature_is_refused(bundle_fp32: Path, copy_bundle: Copy) -> None:
    bundle = copy_bundle(bundle_fp32)
    shutil.copy(bundle / "graphs/compressor.onnx", bundle / "graphs/head.onnx")
    manifest = Manifest.load(bundle)
    replace(manifest, files=hash_folder(bundle)).save(bundle)
    with pytest.raises(BundleError, match=r"head\.onnx has other tensors than its manifest: .*'features'") as info:
        open_bundle(bundle)
    assert "GraphSpec" in info.value.expected and "'logits'" in info.value.expected


def test_without_onnxruntime_the_error_says_what_to_install(bundle_fp32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendUnavailable, match="needs the package onnxruntime") as info:
        open_bundle(bundle_fp32)
    assert "pip install" in info.value.fix


def test_a_file_that_the_manifest_does_not_list_is_refused(bundle_fp32: Path, copy_bundle: Copy) -> None:
    bundle = copy_bundle(bundle_fp32)
    (bundle / "graphs" / "extra.bin").write_bytes(b"?")
    with pytest.raises(BundleError, match=r"does not list graphs/extra\.bin"):
        open_bundle(bundle)


def test_a_manifest_without_hashes_is_refused(bundle_fp32: Path, copy_bundle: Copy) -> None:
    bundle = copy_bundle(bundle_fp32)
    edit_manifest(bundle, files={})
    with pytest.raises(BundleError, match="does not list"):
        open_bundle(bundle)


@pytest.mark.parametrize("parity", [{}, {"passed": False}, {"passed": "yes"}], ids=str)
def test_a_bundle_that_never_passed_its_check_is_not_run(bundle_fp32: Path, copy_bundle: Copy, parity: object) -> None:
    bundle = copy_bundle(bundle_fp32)
    edit_manifest(bundle, parity=parity)
    with pytest.raises(BundleError, match="has not passed its parity check"):
        open_bundle(bundle)
    assert open_bundle(bundle, unchecked=True).manifest.parity == parity


def garble(data: dict[str, Any], path: str, value: object) -> None:
    *parents, leaf = path.split(".")
    for key in parents:
        data = data[key]
    if value is None:
        del data[leaf]
    else:
        data[leaf] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("precision", "bf16"),
        ("time_mode", "relative"),
        ("target", "rxt"),
        ("graphs.llm", None),
        ("graphs.llm.dims.rows.max", "many"),
        ("graphs.llm.profiles", []),
        ("images.num_repeats", 0),
        ("images.layout", "mosaic"),
        ("images.use_thumbnail", "no"),
        ("prompt.stop_tokens", None),
        ("prompt.stop_tokens", []),
        ("prompt.image_prefix", "{x}"),
        ("prompt.image_tag", ""),
        ("graphs.temporal.states", []),
        ("limits.window", 5),
        ("limits.window", "five"),
        ("shape.vision_width", 63),
        ("prompt.frame_prefix", "F{nr}"),
        ("model.seed", "x"),
        ("parity", None),
    ],
    ids=str,
)
def test_a_manifest_that_contradicts_itself_is_refused(
    bundle_fp32: Path, copy_bundle: Copy, path: str, value: object
) -> None:
    bundle = copy_bundle(bundle_fp32)
    data = json.loads((bundle / MANIFEST_NAME).read_text("utf-8"))
    garble(data, path, value)
    (bundle / MANIFEST_NAME).write_text(json.dumps(data), "utf-8")
    with pytest.raises(BundleError, match="has a missing or invalid field"):
        open_bundle(bundle)
