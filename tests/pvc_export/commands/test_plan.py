"""`pvc-export plan` as a user sees it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import pvc_ref
from pvc_ref import PVC, PVCConfig
from pvc_ref.checkpoint.config_json import config_to_json
from pvc_ref.config import PRESETS
from pvc_ref.prompt import byte_tokenizer

from ..conftest import Run


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_plan_that_80_columns_hold(name: str, pvc_export: Run) -> None:
    result = pvc_export("plan", "-m", name)
    assert result.exit_code == 0, result.message
    assert all(len(line) <= 80 for line in result.out.splitlines()), result.out
    assert all(part in result.out for part in ("bundle", "\nstream", "export", "run", "Jetson AGX Thor", "RTX card"))


def test_a_plan_for_a_machine_has_bytes_seconds_and_devices(pvc_export: Run) -> None:
    data = json.loads(pvc_export("plan", "-m", "tiny", "--json").out)
    graphs = data["graphs"]
    assert data["bundle"] == data["other_files"] + sum(g["files"] + (g["engine"] or 0) for g in graphs.values())
    assert graphs["embed"]["engine"] is None and [*data["costs"]] == ["export", "build", "check", "run"]
    assert {device["fits"] for device in data["devices"]} == {True}


def test_a_target_without_engines_is_planned_in_float32_and_without_a_build(pvc_export: Run) -> None:
    data = json.loads(pvc_export("plan", "-m", "tiny", "--target", "cpu", "--json").out)
    assert data["precision"] == "fp32" and "build" not in data["costs"]
    assert {graph["engine"] for graph in data["graphs"].values()} == {None}


def test_a_folder_needs_no_weights(tmp_path: Path, pvc_export: Run) -> None:
    config = config_to_json(PVCConfig.preset("pvc-internvl2-1b"))
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    found, preset = (
        json.loads(pvc_export("plan", "-m", name, "--json").out) for name in (tmp_path, "pvc-internvl2-1b")
    )
    assert found | {"model": ""} == preset | {"model": ""}


def test_of_a_folder_with_weights_none_is_read(tmp_path: Path, pvc_export: Run) -> None:
    folder = tmp_path / "model"
    pvc_ref.save(PVC.random(PVCConfig.preset("tiny"), seed=0), folder, tokenizer=byte_tokenizer())
    before = pvc_export("plan", "-m", folder, "--json").out
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    path.write_bytes(content[:header] + b"\xff" * (len(content) - header))  # all NaN
    assert pvc_export("plan", "-m", folder, "--json").out == before


@pytest.mark.parametrize(
    ("args", "exit_code", "message"),
    [
        (["--fp16", "--fp32"], 2, "contradict each other"),
        (["--target", "rxt"], 2, "Did you mean 'rtx'?"),
        (["--target", "cpu", "--bf16"], 2, "does not compute bf16"),
        (["--context", "1000"], 2, "the next multiple is 1024"),
        (["--fp32", "--island", "trunk.layers.1.attn"], 2, "all of them are"),
        (["--island", "trunk.layers.1.atn"], 6, "Did you mean 'trunk.layers.1.attn'?"),
        (["--clock", "stop"], 2, "expected one of reanchor, run-on"),
        (["-m", "pvc-internvl-8b"], 6, "Did you mean 'pvc-internvl2-8b'?"),
        (["-m", "OpenGVLab/InternVL2-8B"], 6, "hf download"),
        (["-m", "."], 6, "is not a checkpoint folder"),
        (["-m", "tiny", "--context", "65536"], 6, "choose --context 32768 or less"),
        (["-m", "tiny", "--mapping", "m.json"], 6, "leave --mapping out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_gets_its_exit_code_and_a_message_that_helps(
    args: list[str], exit_code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pvc_export: Run
) -> None:
    monkeypatch.chdir(tmp_path)
    pvc_export("plan", *args).says(exit_code, message)
    assert not list(tmp_path.iterdir())
