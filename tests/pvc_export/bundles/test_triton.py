"""`pvc-export triton`: its output, its refusals, and that nothing is left half-written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.bundle import verify_files
from engines.manifest import Manifest, hash_folder
from pvc_export.bundles import triton
from pvc_export.bundles.triton import TritonRequest, config_text

from ...apps.triton.fake_triton import parsed
from ..conftest import Run

CopyBundle = Callable[[Path], Path]


def test_a_repository_holds_config_model_bundle_and_runtime(bundle_fp32: Path, tmp_path: Path, pvc_export: Run) -> None:
    out = tmp_path / "my models"
    options = ("--name", "door-1", "--slots", 3, "--idle", 2.5, "--max-new-tokens", 9, "--json")
    result = pvc_export("triton", bundle_fp32, "-o", out, *options)
    assert result.exit_code == 0, result.message
    data, folder = json.loads(result.out), out / "door-1"
    assert (data["folder"], data["name"], data["slots"], data["on_gpu"]) == (str(folder), "door-1", 3, False)
    manifest = Manifest.load(bundle_fp32)
    assert manifest.time_mode == "absolute", "the bundle can re-anchor, which takes two of each cache"
    assert data["state_bytes"] == 2 * sum(spec.state_bytes(manifest.limits) for spec in manifest.graphs.values())
    assert {path.name for path in out.iterdir()} == {"door-1"}, "a temporary file was left behind"
    assert {path.name for path in folder.iterdir()} == {"1", "README.md", "bundle", "config.pbtxt", "runtime"}
    verify_files(folder / "bundle", manifest)
    assert hash_folder(folder / "bundle") == manifest.files
    compile((folder / "1/model.py").read_text(), "model.py", "exec")
    assert (folder / "runtime/apps/triton/model.py").is_file() and (folder / "runtime/engines/stream.py").is_file()
    config = parsed((folder / "config.pbtxt").read_text())
    assert (config["name"], config["max_batch_size"]) == ("door-1", 3)
    assert config["sequence_batching"]["max_sequence_idle_microseconds"] == 2_500_000
    assert {name: value["string_value"] for name, value in config["parameters"].items()} == {
        "bundle": "bundle", "max_new_tokens": "9", "trust_engines": "false",
    }  # fmt: skip
    assert config["instance_group"] == [{"count": 1, "kind": "KIND_CPU"}]


def test_its_page_names_what_it_holds(bundle_fp32: Path, tmp_path: Path, pvc_export: Run) -> None:
    result = pvc_export("triton", bundle_fp32, "-o", tmp_path, "--name", "watch", "--slots", 5)
    assert result.exit_code == 0 and "next: tritonserver --model-repository=" in result.out
    page = (tmp_path / "watch/README.md").read_text()
    assert page.startswith("# watch in Triton Inference Server\n") and "5 concurrent sequences" in page
    assert "'onnxruntime>=1.25'" in page and 'client.infer("watch"' in page and "--gpus" not in page
    assert "{" not in page.replace("{max", "")


@pytest.mark.parametrize("trusted", [False, True])
def test_engines_belong_to_a_gpu_and_to_whoever_trusts_them(*, trusted: bool) -> None:
    request = TritonRequest(bundle=Path("b"), repository=Path("r"), name="b", trust_engines=trusted)
    config = parsed(config_text(request, on_gpu=True))
    assert config["instance_group"] == [{"count": 1, "kind": "KIND_GPU", "gpus": [0]}]
    assert config["parameters"]["trust_engines"]["string_value"] == str(trusted).lower()
    said = triton._trust(request, on_gpu=True, has_engines=True)
    assert ("It is set" in said) == trusted and triton._trust(request, on_gpu=False, has_engines=True) == ""


def test_an_older_one_is_replaced_and_other_models_are_left_alone(
    bundle_fp32: Path, tmp_path: Path, pvc_export: Run
) -> None:
    (tmp_path / "other/1").mkdir(parents=True)
    for slots in (2, 4):
        result = pvc_export("triton", bundle_fp32, "-o", tmp_path, "--name", "watch", "--slots", slots)
        assert result.exit_code == 0, result.message
    assert parsed((tmp_path / "watch/config.pbtxt").read_text())["max_batch_size"] == 4
    assert {path.name for path in tmp_path.iterdir()} == {"other", "watch"}


@pytest.mark.parametrize("what", ["another model", "a file of mine"])
def test_what_is_not_ours_is_not_replaced(bundle_fp32: Path, tmp_path: Path, pvc_export: Run, what: str) -> None:
    arguments = ("triton", bundle_fp32, "-o", tmp_path, "--name", "watch", "--json")
    if what == "another model":
        (tmp_path / "watch").mkdir()
        (tmp_path / "watch/config.pbtxt").write_text('name: "watch"\n')
        facts = ("was not made by pvc-export triton", "another --name")
    else:
        assert pvc_export(*arguments).exit_code == 0
        (tmp_path / "watch/2").mkdir()
        facts = ("holds other things too, so it was not replaced: 2", "move them")
    before = sorted(tmp_path.rglob("*"))
    pvc_export(*arguments).refuses(6, "BundleError", what=facts[0], fix=facts[1])
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "a b", "ä"])
def test_a_name_that_cannot_be_a_models_is_an_error_of_usage(
    bundle_fp32: Path, tmp_path: Path, pvc_export: Run, name: str
) -> None:
    result = pvc_export("triton", bundle_fp32, "-o", tmp_path / "r", f"--name={name}")
    if name == "":
        assert result.exit_code == 0, "an empty name counts as not given"
        return
    result.says(2, "is not a valid model name")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "options", [("--slots", 0), ("--idle", 0), ("--max-new-tokens", 0), ("--idle", "nan"), ("--idle", "inf")]
)
def test_numbers_that_are_too_small_are_errors_of_usage(
    bundle_fp32: Path, tmp_path: Path, pvc_export: Run, options: tuple[str, object]
) -> None:
    result = pvc_export("triton", bundle_fp32, "-o", tmp_path / "r", *options)
    assert result.exit_code == 2 and "Traceback" not in result.message and not (tmp_path / "r").exists()


def test_a_bundle_that_is_none_was_damaged_or_not_proven_makes_nothing(
    bundle_fp32: Path, copy_bundle: CopyBundle, tmp_path: Path, pvc_export: Run
) -> None:
    out = tmp_path / "r"
    pvc_export("triton", tmp_path / "none", "-o", out, "--json").refuses(6, "BundleError", what="none")
    damaged = copy_bundle(bundle_fp32)
    with (damaged / "graphs/head.onnx").open("ab") as file:
        file.write(b"x")
    pvc_export("triton", damaged, "-o", out, "--json").refuses(6, "BundleError", what="head.onnx")
    shutil.copy(bundle_fp32 / "graphs/head.onnx", damaged / "graphs/head.onnx")
    data = json.loads((damaged / "manifest.json").read_text())
    data["parity"]["passed"] = False
    (damaged / "manifest.json").write_text(json.dumps(data))
    result = pvc_export("triton", damaged, "-o", out, "--json")
    result.refuses(6, "BundleError", what="has not passed its parity check", fix="pvc-export check")
    assert not out.exists()


def test_a_run_that_fails_midway_leaves_the_older_one(
    bundle_fp32: Path, tmp_path: Path, pvc_export: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    arguments = ("triton", bundle_fp32, "-o", tmp_path / "r", "--name", "watch", "--json")

    def fails() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(triton, "copy_runtime", full)
            pvc_export(*arguments).refuses(4, "BackendUnavailable", cause="full")

    fails()
    assert list((tmp_path / "r").iterdir()) == []
    assert pvc_export(*arguments).exit_code == 0
    before = hash_folder(tmp_path / "r")
    fails()
    assert hash_folder(tmp_path / "r") == before


def test_the_bundle_itself_stays_as_it_was(bundle_fp32: Path, tmp_path: Path, pvc_export: Run) -> None:
    """No hard links: ONNX's checker treats a second name for a weights file as an attack."""
    assert pvc_export("triton", bundle_fp32, "-o", tmp_path / "r", "--json").exit_code == 0
    assert all(path.stat().st_nlink == 1 for path in bundle_fp32.rglob("*") if path.is_file())


def test_a_copy_that_is_not_the_bundle_is_never_published(
    bundle_fp32: Path, tmp_path: Path, pvc_export: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(source: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes()[: -1 if source.suffix == ".onnx" else None])

    monkeypatch.setattr(triton, "copy", cut)
    result = pvc_export("triton", bundle_fp32, "-o", tmp_path / "r", "--json")
    result.refuses(6, "BundleError", what=".onnx has")
    assert list((tmp_path / "r").iterdir()) == []
