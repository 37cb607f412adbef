"""Weights that stay in a checkpoint's files: reading by name gives the values that `load` holds in memory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import pvc_ref
from pvc_export.graphs.models import fingerprint
from pvc_ref import PVC, CheckpointError, PVCConfig
from pvc_ref.model import stored_matrices

from ...conftest import few_layers


def folder_of(path: Path, *, family: str = "internlm2", tied: bool = False) -> Path:
    """Save a checkpoint in two or more shards."""
    config = few_layers(PVCConfig.preset("tiny"))
    llm = replace(config.llm, family=family, qkv_bias=family == "qwen2", tie_embeddings=tied)  # type: ignore[arg-type]
    pvc_ref.save(PVC.random(replace(config, llm=llm), seed=0), path, max_shard_bytes=12_000_000)
    assert len(list(path.glob("*.safetensors"))) > 1
    return path


@pytest.mark.parametrize(("family", "tied"), [("internlm2", False), ("qwen2", True)])
def test_every_weight_is_read_as_it_is_in_memory_otherwise(family: str, tied: bool, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model", family=family, tied=tied)
    whole, bare = pvc_ref.load(folder), pvc_ref.load(folder, on_disk=True)
    assert {n for n, weight in bare.named_parameters() if weight.is_meta} == stored_matrices(whole)
    for name, weight in whole.named_parameters(remove_duplicate=False):
        assert torch.equal(bare.weight(name), weight), name
    in_files = sum(whole.weight(name).numel() for name in stored_matrices(whole))
    assert in_files > 0.95 * sum(weight.numel() for weight in whole.parameters())


def test_a_model_is_saved_from_the_files_that_its_weights_stayed_in(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model")
    pvc_ref.save(pvc_ref.load(folder, on_disk=True), tmp_path / "copy", dtype=torch.float16)
    whole, copy = pvc_ref.load(folder), pvc_ref.load(tmp_path / "copy")
    for name, weight in whole.named_parameters():
        assert torch.equal(copy.get_parameter(name), weight), name  # a random model's values are exact in float16


def test_weights_in_the_files_names_and_pieces_are_found_through_a_mapping(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model")
    whole = pvc_ref.load(folder)
    mapping: dict[str, str | None] = {}
    for shard in folder.glob("*.safetensors"):
        renamed = {}
        for name, value in load_file(shard).items():
            if "temporal_attn.qkv" not in name:
                renamed[name] = value
                continue
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                other = name.replace("temporal_attn.qkv", f"time_{letter}")
                renamed[other] = part.contiguous()
                mapping[other] = name.replace("temporal_attn.qkv", f"temporal_attn.{letter}")
        save_file(renamed, shard)
    index = folder / "model.safetensors.index.json"
    places = {name: shard.name for shard in folder.glob("*.safetensors") for name in load_file(shard)}
    index.write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    bare = pvc_ref.load(folder, mapping=mapping, on_disk=True)
    name = "temporal.layers.0.temporal_attn.qkv.weight"
    assert bare.get_parameter(name).is_meta and torch.equal(bare.weight(name), whole.weight(name))


def test_a_weight_that_is_not_finite_is_refused_when_it_is_read(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model")
    weights = {shard: load_file(shard) for shard in folder.glob("*.safetensors")}
    shard, name = next((s, name) for s, held in weights.items() for name in held if name.endswith("wqkv.weight"))
    tensors = weights[shard]
    tensors[name][3, 5] = torch.nan
    save_file(tensors, shard)
    model = pvc_ref.load(folder, on_disk=True)
    with pytest.raises(CheckpointError, match=f"NaN or infinity: {name}"):
        fingerprint(model)
