"""`pvc-export prove BUNDLE --only NAME -o COPY`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engines.bundle import open_bundle
from engines.manifest import hash_folder

from ..conftest import Run


def test_a_copy_is_broken_and_opens_and_the_bundle_stays_as_it_was(
    pvc_export: Run, bundle_fp32: Path, tmp_path: Path
) -> None:
    before = hash_folder(bundle_fp32)
    result = pvc_export("prove", bundle_fp32, "--only", "no-time", "-o", tmp_path / "broken")
    assert result.exit_code == 0, result.message
    assert f"pvc-export check {tmp_path / 'broken'}" in result.out + result.message
    after = hash_folder(tmp_path / "broken")
    assert {name for name in before if after[name] != before[name]} == {
        "graphs/temporal.onnx", "graphs/temporal.onnx.data",
    }  # fmt: skip
    assert hash_folder(bundle_fp32) == before
    assert open_bundle(tmp_path / "broken").manifest.files == after


def test_json_names_the_copy_and_its_defect(pvc_export: Run, bundle_fp32: Path, tmp_path: Path) -> None:
    result = pvc_export("prove", bundle_fp32, "--only", "no-time", "-o", tmp_path / "broken", "--json")
    told = json.loads(result.out)
    assert told["copy"] == str(tmp_path / "broken") and told["defect"] == "no-time" and told["what"]
    assert result.message == ""


def test_a_bundle_to_break_has_its_own_model(pvc_export: Run, bundle_fp32: Path, tmp_path: Path) -> None:
    result = pvc_export("prove", bundle_fp32, "-m", "tiny", "--only", "no-time", "-o", tmp_path / "broken")
    assert result.exit_code == 2 and "--model cannot be given with BUNDLE" in result.message


@pytest.mark.parametrize("only", [[], ["--only", "mask"], ["--only", "weight", "--only", "wqkv"], ["--only", "wieght"]])
def test_what_is_not_one_defect_of_a_bundles_files_is_an_error_of_usage(
    pvc_export: Run, only: list[str], bundle_fp32: Path, tmp_path: Path
) -> None:
    result = pvc_export("prove", bundle_fp32, *only, "-o", tmp_path / "broken")
    assert result.exit_code == 2 and "takes one defect by --only, one of: weight, int8" in result.out + result.message
    assert not (tmp_path / "broken").exists()


def test_a_folder_that_is_no_bundle_is_not_copied(pvc_export: Run, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    result = pvc_export("prove", tmp_path / "folder", "--only", "weight", "-o", tmp_path / "broken")
    assert result.exit_code == 6 and not (tmp_path / "broken").exists()


def test_a_copy_needs_a_name_and_a_name_a_bundle(pvc_export: Run, bundle_fp32: Path, tmp_path: Path) -> None:
    assert "-o FOLDER" in pvc_export("prove", bundle_fp32, "--only", "weight").message
    result = pvc_export("prove", "--only", "weight", "-o", tmp_path / "broken")
    assert result.exit_code == 2 and "BUNDLE" in result.out + result.message
