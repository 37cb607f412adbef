"""Peculiarities of real checkpoints: harmless differences load, real ones are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pvc_ref import PVC, load, save
from pvc_ref.errors import CheckpointError

from .cases import LLMS, TINY, CopyOf, edit_weights, refusal, with_llm

Tensors = dict[str, torch.Tensor]
FREQUENCIES = "language_model.model.layers.1.self_attn.rotary_emb.inv_freq"


@pytest.fixture
def tied(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path / "tied"
    save(PVC.random(with_llm(LLMS[getattr(request, "param", "qwen2-tied")])), folder)
    return folder


def frequencies(*, theta: float = 1e4, head_dim: int = 16) -> torch.Tensor:
    return 1.0 / theta ** (torch.arange(0, head_dim, 2).float() / head_dim)


# -- tensors that repeat known values ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tied", "embeddings", "head"),
    [
        ("qwen2-tied", "model.embed_tokens", "lm_head"),
        ("internlm2-tied", "model.tok_embeddings", "output"),
    ],
    indirect=["tied"],
)
def test_a_tied_head_that_is_stored_as_well_loads_if_it_is_bit_equal(tied: Path, embeddings: str, head: str) -> None:
    names = f"language_model.{embeddings}.weight", f"language_model.{head}.weight"
    edit_weights(tied, lambda tensors: tensors.update({names[1]: tensors[names[0]].clone()}))
    model = load(tied)
    assert model.llm.lm_head.weight is model.llm.embed_tokens.weight

    def move_one_bit(tensors: Tensors) -> None:
        tensors[names[1]].view(torch.int32)[-1, -1] ^= 1

    edit_weights(tied, move_one_bit)
    error = refusal(tied)
    assert names[1] in error.what and names[0] in error.what and "tie_word_embeddings = true" in error.what


@pytest.mark.parametrize(
    "change",
    [torch.Tensor.half, lambda head: head[:-1].clone(), lambda head: head.view(torch.int32).clone()],
    ids=["half", "fewer-rows", "the-same-bits-as-integers"],
)
def test_a_tied_head_of_another_kind_is_not_bit_equal(
    change: Callable[[torch.Tensor], torch.Tensor], tied: Path
) -> None:
    head, embeddings = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"
    edit_weights(tied, lambda tensors: tensors.update({head: change(tensors[embeddings])}))
    assert "differs from language_model." in refusal(tied).what


def test_a_head_of_the_other_familys_name_is_unexpected(tied: Path) -> None:
    embeddings = "language_model.model.embed_tokens.weight"
    edit_weights(tied, lambda tensors: tensors.update({"language_model.output.weight": tensors[embeddings].clone()}))
    assert "1 unexpected: language_model.output.weight" in refusal(tied).what


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_stored_frequencies_load_if_they_are_those_of_rope_theta(
    dtype: torch.dtype, whole: Path, copy_of: CopyOf
) -> None:
    folder = copy_of(whole)
    edit_weights(folder, lambda tensors: tensors.update({FREQUENCIES: frequencies().to(dtype)}))
    load(folder)
    edit_weights(folder, lambda tensors: tensors.update({FREQUENCIES: frequencies(theta=1.1e4).to(dtype)}))
    error = refusal(folder)
    assert FREQUENCIES in error.what and "rope_theta = 10000" in error.what


def test_stored_frequencies_of_another_width_are_refused(whole: Path, copy_of: CopyOf) -> None:
    folder = copy_of(whole)
    edit_weights(folder, lambda tensors: tensors.update({FREQUENCIES: frequencies(head_dim=8)}))
    assert FREQUENCIES in refusal(folder).what


def test_stored_positions_load_if_they_count_from_zero(whole: Path, copy_of: CopyOf) -> None:
    folder, name = copy_of(whole), "vision_model.embeddings.position_ids"
    edit_weights(folder, lambda tensors: tensors.update({name: torch.arange(65)[None]}))
    load(folder)
    edit_weights(folder, lambda tensors: tensors.update({name: torch.arange(1, 66)[None]}))
    assert f"{name} does not count positions from 0" in refusal(folder).what


# -- tensors of another model ------------------------------------------------------------------------------------


def test_lora_that_was_not_merged_is_named(whole: Path, copy_of: CopyOf) -> None:
    folder = copy_of(whole)
    stem = "language_model.base_model.model.model.layers.0.self_attn.q_proj"

    def add(tensors: Tensors) -> None:
        tensors[f"{stem}.lora_A.default.weight"] = torch.zeros(4, 64)
        tensors[f"{stem}.lora_B.default.weight"] = torch.zeros(64, 4)

    edit_weights(folder, add)
    error = refusal(folder)
    assert "LoRA weights that were not merged" in error.what and f"{stem}.lora_A.default.weight" in error.what
    assert "2 tensors" in error.what and "merge_and_unload()" in error.fix


def test_lora_that_was_merged_loads_whatever_the_config_says_of_it(whole: Path, copy_of: CopyOf) -> None:
    folder = copy_of(whole)
    data = json.loads((folder / "config.json").read_text()) | {"use_llm_lora": 16, "use_backbone_lora": 8}
    (folder / "config.json").write_text(json.dumps(data))
    assert load(folder).config == TINY


def test_the_wrapper_of_a_distributed_training_is_named(whole: Path, copy_of: CopyOf) -> None:
    folder = copy_of(whole)

    def wrap(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[f"module.{name}"] = tensors.pop(name)

    edit_weights(folder, wrap)
    error = refusal(folder)
    assert "begin with 'module.'" in error.what and "removeprefix('module.')" in error.fix


# -- missing files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_link_to_nowhere_is_named_with_its_target(file: str, whole: Path, copy_of: CopyOf) -> None:
    folder = copy_of(whole)
    blob = folder / "blob"
    if (folder / file).exists():
        (folder / file).rename(blob)
    else:
        blob.write_text("{}")
    (folder / file).symlink_to("blob")
    load(folder)
    blob.unlink()
    error = refusal(folder)
    assert f"{folder / file} is a link to blob, which does not exist" in error.what
    assert "hub cache" in error.cause and "hf download" in error.fix


def test_a_shard_that_is_a_link_to_nowhere_is_named(sharded: Path, copy_of: CopyOf) -> None:
    folder = copy_of(sharded)
    shard = folder / "model-00002-of-00003.safetensors"
    shard.unlink()
    shard.symlink_to("../../blobs/0123abcd")
    assert f"{shard} is a link to ../../blobs/0123abcd, which does not exist" in refusal(folder).what


@pytest.mark.parametrize(
    "file", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer.model", "merges.txt"]
)
def test_a_git_lfs_pointer_is_named(file: str, whole: Path, copy_of: CopyOf) -> None:
    folder = copy_of(whole)
    (folder / file).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    error = refusal(folder)
    assert f"{folder / file} is a git-lfs pointer" in error.what and "lfs pull" in error.fix


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_the_checkpoints_fault(value: float, whole: Path, copy_of: CopyOf) -> None:
    folder, name = copy_of(whole), "vision_model.encoder.layers.0.mlp.fc1.weight"

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name][3, 5] = value

    edit_weights(folder, spoil)
    error = refusal(folder)
    assert f"1 tensors contain NaN or infinity: {name}" in error.what and "diverged" in error.cause


def test_a_name_on_the_hub_gets_the_command_that_downloads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as info:
        load("OpenGVLab/InternVL2-1B")
    assert "no folder OpenGVLab/InternVL2-1B" in info.value.what
    assert "hf download OpenGVLab/InternVL2-1B --local-dir InternVL2-1B" in info.value.fix
    save(PVC.random(TINY), tmp_path / "OpenGVLab" / "InternVL2-1B")
    load("OpenGVLab/InternVL2-1B")
