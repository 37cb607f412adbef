"""`pvc-export inspect` of a checkpoint, and `--mapping` of the commands that load one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from engines.errors import ModelError
from engines.manifest import Manifest
from pvc_export.graphs.models import load_model, load_reference
from pvc_ref import PVC, PVCConfig, save
from pvc_ref.prompt import byte_tokenizer

from ..conftest import Run

TOWER = "vision_model.encoder.layers."


def renamed(folder: Path, names: dict[str, str]) -> Path:
    """Write `tiny` as a checkpoint whose tensors have other names."""
    save(PVC.random(PVCConfig.preset("tiny")), folder, tokenizer=byte_tokenizer())
    tensors = load_file(folder / "model.safetensors")
    for ours, theirs in names.items():
        for name in [name for name in tensors if ours in name]:
            tensors[name.replace(ours, theirs)] = tensors.pop(name)
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return renamed(tmp_path_factory.mktemp("checkpoint") / "found", {"temporal_attn.qkv": "tattn.qkv"})


@pytest.fixture(scope="module")
def unsettled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = {"adaln.w3": "ada.a", "adaln.w5": "ada.b"}
    return renamed(tmp_path_factory.mktemp("checkpoint") / "unsettled", names)


def test_inspect_says_what_a_checkpoint_holds_and_what_its_tensors_are_taken_for(found: Path, pvc_export: Run) -> None:
    result = pvc_export("inspect", found)
    assert result.exit_code == 0, result.message
    lines = [line.strip() for line in result.out.splitlines()]
    assert f"{TOWER}2..3.tattn.qkv.weight -> temporal_attn.qkv.weight" in lines
    assert (
        f"tensors     {len(load_file(found / 'model.safetensors'))}, each used once, some under other names:" in lines
    )
    assert any(line.startswith("vision ") and "4 layers, the last 2 temporal" in line for line in lines)
    data = json.loads(pvc_export("inspect", found, "--json").out)
    assert data["renamed"][f"{TOWER}{{layer}}.tattn.qkv.bias"] == f"{TOWER}{{layer}}.temporal_attn.qkv.bias"


def test_inspect_of_an_unsettled_checkpoint_shows_both_sides_and_the_next_command(
    unsettled: Path, pvc_export: Run
) -> None:
    pvc_export("inspect", unsettled).says(
        6, "4 mappings are possible", "open roles", f"{TOWER}2..3.ada.a  weight (64, 64)", "layers.2..3.adaln.w3",
        "mlp1.ada.b  weight (1024, 1024)", "mlp1.adaln.w5",
        f"fix: pvc-export inspect {unsettled} --suggest-mapping > mapping.json", "--mapping mapping.json",
    )  # fmt: skip
    pvc_export("onnx", "-m", unsettled, "--json").refuses(6, "ModelError", what="4 mappings", fix="--suggest-mapping")


def test_a_suggested_mapping_that_is_filled_in_is_taken_by_inspect_and_by_every_command_that_loads(
    unsettled: Path, tmp_path: Path, pvc_export: Run
) -> None:
    result = pvc_export("inspect", unsettled, "--suggest-mapping")
    assert result.exit_code == 0 and "open roles" in result.message
    mapping = json.loads(result.out)
    assert set(mapping.values()) == {None} and len(mapping) == 8
    path = tmp_path / "mapping.json"
    path.write_text(result.out)
    pvc_export("inspect", unsettled, "--mapping", path).says(6, "ada.a.bias is open (null)")
    path.write_text(
        json.dumps({name: name.replace("ada.a", "adaln.w3").replace("ada.b", "adaln.w5") for name in mapping})
    )
    shown = pvc_export("inspect", unsettled, "--mapping", path)
    assert shown.exit_code == 0 and f"{TOWER}2..3.ada.a.weight -> adaln.w3.weight" in shown.out
    loaded = load_model(str(unsettled), mapping=path)
    assert loaded.source.weights_sha256 == load_model("tiny").source.weights_sha256
    assert f"{TOWER}2..3.ada.b.bias -> adaln.w5.bias" in loaded.renamed()


def test_a_bundle_remembers_the_mapping_of_its_checkpoint(
    unsettled: Path, bundle_fp16: Path, tmp_path: Path, pvc_export: Run
) -> None:
    mapping = json.loads(pvc_export("inspect", unsettled, "--suggest-mapping").out)
    roles = {name: name.replace("ada.a", "adaln.w3").replace("ada.b", "adaln.w5") for name in mapping}
    (tmp_path / "mapping.json").write_text(json.dumps(roles))
    loaded = load_model(str(unsettled), mapping=tmp_path / "mapping.json")
    replace(Manifest.load(bundle_fp16), model=loaded.source).save(tmp_path)
    again = load_reference(Manifest.load(tmp_path))  # without a mapping
    assert again.source == loaded.source and list(again.renamed()) == list(loaded.renamed())
    with pytest.raises(ModelError, match="4 mappings"):
        load_model(str(unsettled))


@pytest.mark.parametrize("command", [("onnx",), ("trt",), ("prove",)], ids=lambda words: words[0])
def test_a_mapping_of_a_built_in_model_is_refused(command: tuple[str, ...], tmp_path: Path, pvc_export: Run) -> None:
    pvc_export(*command, "-m", "tiny", "--mapping", tmp_path / "m.json").says(6, "'tiny' is a built-in model", "fix: ")


def test_a_mapping_reaches_the_reference_of_check_and_run(bundle_fp16: Path, tmp_path: Path, pvc_export: Run) -> None:
    mapping = tmp_path / "m.json"
    pvc_export("check", bundle_fp16, "-m", "tiny", "--mapping", mapping).says(6, "'tiny' is a built-in model")
    asked = ("run", bundle_fp16, "--ask", "Who?", "--max-new-tokens", 1, "--reference", "-m", "tiny")
    pvc_export(*asked, "--mapping", mapping).says(6, "'tiny' is a built-in model")


def test_a_mapping_that_is_not_there_or_no_mapping_is_named(found: Path, tmp_path: Path, pvc_export: Run) -> None:
    path = tmp_path / "m.json"
    pvc_export("inspect", found, "--mapping", path).says(6, f"mapping file {path} not found", "--suggest-mapping")
    path.write_text("[]")
    pvc_export("onnx", "-m", found, "--mapping", path).says(6, f"{path} contains a JSON list")


def test_share_prints_headers_and_config_and_no_path_of_this_machine(unsettled: Path, pvc_export: Run) -> None:
    result = pvc_export("inspect", unsettled, "--share")
    data = json.loads(result.out)
    assert result.exit_code == 0 and data["tensors"][f"{TOWER}2.ada.a.weight"] == ["F32", [64, 64]]
    assert data["config"]["pvc"]["num_temporal_layers"] == 2
    assert str(unsettled) not in result.out + result.message


def test_options_of_checkpoints_are_refused_for_bundles_and_not_mixed(
    bundle_fp16: Path, found: Path, pvc_export: Run
) -> None:
    for option in ("--share", "--suggest-mapping"):
        pvc_export("inspect", bundle_fp16, option).says(2, f"{option} is for a checkpoint")
    pvc_export("inspect", found, "--share", "--suggest-mapping").says(2, "give one")


def test_inspect_of_a_folder_that_is_neither_says_so(tmp_path: Path, pvc_export: Run) -> None:
    assert pvc_export("inspect", tmp_path).exit_code == 6
