"""The ONNX Runtime version a bundle needs; a version that is too old is named before it can blame the file."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest

from engines import open_bundle
from engines.errors import BackendUnavailable, BundleError
from engines.manifest import MANIFEST_NAME, Manifest, hash_folder
from engines.needs import needs_of, require_onnxruntime
from engines.spec import Quantization

from .test_bundle import Copy, edit_manifest


@pytest.mark.parametrize(
    ("bundle", "first"),
    [("bundle_rows", "1.18"), ("bundle_fp32", "1.25"), ("bundle_fp16", "1.25")],
    ids=["rows", "in place", "in place, with engines"],
)
def test_the_manifest_says_which_onnxruntime_runs_its_files(
    bundle: str, first: str, request: pytest.FixtureRequest
) -> None:
    assert Manifest.load(request.getfixturevalue(bundle)).needs == {"onnxruntime": first}


def test_what_a_bundle_needs_survives_saving_and_loading(bundle_rows: Path, tmp_path: Path) -> None:
    manifest = replace(Manifest.load(bundle_rows), needs={"onnxruntime": "1.18", "another": "2.0.1"})
    manifest.save(tmp_path)
    assert Manifest.load(tmp_path) == manifest


def test_weights_in_blocks_need_a_later_onnxruntime_than_others(bundle_rows: Path) -> None:
    how = Quantization(block=32, zero_points=True, method="search")
    llm = Manifest.load(bundle_rows).graphs["llm"]
    assert needs_of([llm]) == {"onnxruntime": "1.18"}
    assert needs_of([replace(llm, quantization=how)]) == {"onnxruntime": "1.19"}


@pytest.mark.parametrize("version", ["1.23.2", "1.24.4", "1.9.0"])
def test_an_onnxruntime_that_is_too_old_is_named_with_the_one_that_is_needed(
    bundle_fp32: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", version)
    with pytest.raises(BackendUnavailable, match=f"onnxruntime {version} is too old") as info:
        open_bundle(bundle_fp32)
    assert info.value.exit_code == 4 and info.value.expected == "onnxruntime 1.25 or later"
    assert str(bundle_fp32) in info.value.what and "opset 24" in info.value.what
    assert "pip install 'onnxruntime>=1.25'" in info.value.fix


@pytest.mark.parametrize("version", ["1.25.0", "1.25.1", "1.26.0.dev20260401", "2.0"])
def test_the_first_onnxruntime_that_fits_opens_it_and_so_do_later_ones(
    bundle_fp32: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", version)
    open_bundle(bundle_fp32, threads=1)


def test_the_same_onnxruntime_opens_a_bundle_whose_llm_returns_rows(
    bundle_rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.23.2")
    open_bundle(bundle_rows, threads=1)
    monkeypatch.setattr(onnxruntime, "__version__", "1.17.3")
    with pytest.raises(BackendUnavailable, match="has opset 20"):
        open_bundle(bundle_rows, threads=1)


def test_on_python_310_which_has_no_later_one_the_fix_is_another_python_or_another_target(
    bundle_fp32: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = Manifest.load(bundle_fp32).graphs.values()
    with monkeypatch.context() as patch, pytest.raises(BackendUnavailable) as info:
        patch.setattr(onnxruntime, "__version__", "1.23.2")
        patch.setattr(sys, "version_info", (3, 10, 13))
        require_onnxruntime("it", graphs)
    assert info.value.cause == "this is Python 3.10, and the last onnxruntime for it is 1.23.2"
    assert (
        "Python 3.11 or later" in info.value.fix
        and "(cuda, tensorrt-10): pvc-export onnx --target cuda" in info.value.fix
    )


def test_who_has_the_package_for_gpus_is_not_told_to_install_the_other(
    bundle_fp32: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.23.2")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(BackendUnavailable) as info:
        open_bundle(bundle_fp32, runtime="cpu")
    assert "'onnxruntime-gpu>=1.25'" in info.value.fix


def test_a_manifest_of_before_opens_and_its_graphs_say_what_they_need(
    bundle_fp32: Path, copy_bundle: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = copy_bundle(bundle_fp32)
    data = json.loads((bundle / MANIFEST_NAME).read_text("utf-8"))
    del data["needs"]
    (bundle / MANIFEST_NAME).write_text(json.dumps(data), "utf-8")
    assert open_bundle(bundle, threads=1).manifest.needs == {}
    monkeypatch.setattr(onnxruntime, "__version__", "1.23.2")
    with pytest.raises(BackendUnavailable, match="too old"):
        open_bundle(bundle)


def test_a_manifest_may_know_of_a_later_version_than_this_program(bundle_rows: Path, copy_bundle: Copy) -> None:
    bundle = copy_bundle(bundle_rows)
    edit_manifest(bundle, needs={"onnxruntime": "99.1"})
    with pytest.raises(BackendUnavailable, match="too old") as info:
        open_bundle(bundle)
    assert info.value.expected == "onnxruntime 99.1 or later"


@pytest.mark.parametrize("needs", [{"onnxruntime": 1}, {"onnxruntime": ""}, [], "1.25"], ids=repr)
def test_needs_that_are_no_versions_are_refused(bundle_fp32: Path, copy_bundle: Copy, needs: object) -> None:
    bundle = copy_bundle(bundle_fp32)
    edit_manifest(bundle, needs=needs)
    with pytest.raises(BundleError, match="has a missing or invalid field"):
        open_bundle(bundle)


def test_a_damaged_file_is_not_blamed_on_a_version_that_fits(bundle_rows: Path, copy_bundle: Copy) -> None:
    bundle = copy_bundle(bundle_rows)
    (bundle / "graphs/head.onnx").write_bytes(b"no graph")
    replace(Manifest.load(bundle), files=hash_folder(bundle)).save(bundle)
    with pytest.raises(BundleError, match=r"head\.onnx cannot be opened") as info:
        open_bundle(bundle)
    assert info.value.cause == "the file or its .data file is damaged or missing"
