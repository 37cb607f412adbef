"""Checkpoint folders: exact round trips, shards, and an error for everything that does not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from pvc_ref import PVC, LLMConfig, load, save
from pvc_ref.checkpoint import folder as folder_module
from pvc_ref.config import CompressorKind
from pvc_ref.errors import CheckpointError
from pvc_ref.prompt import byte_tokenizer

from .cases import KINDS, LLMS, TINY, VISION_PARTS, CopyOf, edit_weights, refusal, with_compressor, with_llm


@torch.no_grad()
def outputs(model: PVC) -> tuple[torch.Tensor, torch.Tensor]:
    size = model.config.vision.image_size
    frames = torch.randint(0, 256, (1, 3, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    embeds = model.encode_clip(frames)
    hidden, _ = model.llm(embeds.flatten(1, 2), torch.arange(12)[None])
    return embeds, model.llm.logits(hidden)


def assert_same_model(loaded: PVC, saved: PVC) -> None:
    assert loaded.config == saved.config
    assert not loaded.training
    ours, theirs = dict(loaded.named_parameters()), dict(saved.named_parameters())
    assert list(ours) == list(theirs)
    for name, parameter in theirs.items():
        assert torch.equal(ours[name], parameter), name
    for ours_out, theirs_out in zip(outputs(loaded), outputs(saved), strict=True):
        assert torch.equal(ours_out, theirs_out)


# -- round trips -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_compressor_comes_back_bit_equal(kind: CompressorKind, tmp_path: Path) -> None:
    model = PVC.random(with_compressor(kind))
    save(model, tmp_path / "model")
    assert_same_model(load(tmp_path / "model"), model)


@pytest.mark.parametrize("llm", LLMS.values(), ids=LLMS)
def test_every_llm_family_comes_back_bit_equal(llm: LLMConfig, tmp_path: Path) -> None:
    model = PVC.random(with_llm(llm))
    save(model, tmp_path / "model")
    assert_same_model(load(tmp_path / "model"), model)


@pytest.mark.parametrize("llm", [LLMS["internlm2-tied"], LLMS["qwen2-tied"]], ids=["internlm2", "qwen2"])
def test_tied_embeddings_are_saved_once_and_are_tied_again(llm: LLMConfig, tmp_path: Path) -> None:
    save(PVC.random(with_llm(llm)), tmp_path / "model")
    names = load_file(tmp_path / "model" / "model.safetensors").keys()
    assert not names & {"language_model.lm_head.weight", "language_model.output.weight"}
    loaded = load(tmp_path / "model")
    assert loaded.llm.lm_head.weight is loaded.llm.embed_tokens.weight


def test_pool_matrix_that_no_file_holds_is_made_again(tmp_path: Path) -> None:
    model = PVC.random(with_compressor("pool"))
    save(model, tmp_path / "model")
    assert not [name for name in load_file(tmp_path / "model" / "model.safetensors") if name.endswith(".weights")]
    assert torch.equal(load(tmp_path / "model").compressor.weights, model.compressor.weights)


def test_saving_in_half_and_loading_in_double_changes_no_value_that_half_can_hold(tmp_path: Path) -> None:
    model = PVC.random(TINY)  # exact in float16
    save(model, tmp_path / "model", dtype=torch.float16)
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    loaded = load(tmp_path / "model", dtype=torch.float64)
    for name, parameter in model.named_parameters():
        assert loaded.get_parameter(name).dtype == torch.float64
        assert torch.equal(loaded.get_parameter(name), parameter.double()), name


def test_sharded_checkpoint_comes_back_bit_equal_with_an_exact_index(sharded: Path) -> None:
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in sharded.glob("*.safetensors"))
    assert files == [f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)]
    assert len(files) == 3
    stored = {name: (file, tensor) for file in files for name, tensor in load_file(sharded / file).items()}
    assert index["weight_map"] == {name: file for name, (file, _) in stored.items()}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for _, tensor in stored.values())
    assert_same_model(load(sharded), PVC.random(TINY))


def test_loaded_weights_do_not_depend_on_the_file_any_more(whole: Path, copy_of: CopyOf) -> None:
    folder = copy_of(whole)
    model = load(folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-4096, 2)
        file.write(b"\xff" * 4096)
    assert_same_model(model, PVC.random(TINY))


def test_tokenizer_is_saved_beside_the_weights(tmp_path: Path) -> None:
    save(PVC.random(TINY), tmp_path / "model", tokenizer=byte_tokenizer())
    loaded = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    assert loaded.encode("Frame1: <img>é").ids == byte_tokenizer().encode("Frame1: <img>é").ids


def test_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []

    def disk_full_at_the_second_shard(tensors: dict[str, torch.Tensor], path: Path, **options: Any) -> None:
        written.append(path)
        if len(written) == 2:
            raise OSError("no space left on device")
        save_file(tensors, path, **options)

    monkeypatch.setattr(folder_module, "save_file", disk_full_at_the_second_shard)
    with pytest.raises(OSError, match="no space"):
        save(PVC.random(TINY), tmp_path / "model", max_shard_bytes=10_000_000)
    assert len(written) == 2
    assert list(tmp_path.iterdir()) == []


def test_save_refuses_a_folder_with_anything_in_it_and_takes_an_empty_one(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "notes.txt").write_text("keep me")
    with pytest.raises(CheckpointError, match="already exists"):
        save(PVC.random(TINY), folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "notes.txt"]
    (folder / "notes.txt").unlink()
    save(PVC.random(TINY), folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


# -- strictness ------------------------------------------------------------------------------------------------


def test_missing_tensors_are_listed_sorted_ten_at_most_with_their_count(whole: Path, copy_of: CopyOf) -> None:
    folder = copy_of(whole)
    gone = [f"vision_model.encoder.layers.0.{part}" for part in VISION_PARTS]
    edit_weights(folder, lambda tensors: [tensors.pop(name) for name in gone])
    error = refusal(folder)
    assert f"14 missing: {', '.join(sorted(gone)[:10])} and 4 more" in error.what
    assert "unexpected" not in error.what


def test_unexpected_and_missing_tensors_are_both_named(whole: Path, copy_of: CopyOf) -> None:
    folder = copy_of(whole)

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        tensors["mlp1.extra"] = tensors.pop("mlp1.3.bias")

    edit_weights(folder, rename)
    error = refusal(folder)
    assert "1 missing: mlp1.3.bias" in error.what
    assert "1 unexpected: mlp1.extra" in error.what


def test_wrong_shape_is_named_with_both_shapes(whole: Path, copy_of: CopyOf) -> None:
    folder = copy_of(whole)
    edit_weights(folder, lambda tensors: tensors.update({"mlp1.3.bias": torch.zeros(65)}))
    assert "1 of another shape: mlp1.3.bias is (65,), expected (64,)" in refusal(folder).what


def test_quantized_tensor_is_refused(whole: Path, copy_of: CopyOf) -> None:
    folder = copy_of(whole)
    edit_weights(folder, lambda tensors: tensors.update({"mlp1.3.bias": torch.zeros(64, dtype=torch.int8)}))
    assert "mlp1.3.bias (I8)" in refusal(folder).what


def test_truncated_shard_is_named_with_its_and_the_expected_bytes(sharded: Path, copy_of: CopyOf) -> None:
    folder = copy_of(sharded)
    shard = folder / "model-00002-of-00003.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1000])
    error = refusal(folder)
    assert f"{shard} cannot be read" in error.what and f"has {len(content) - 1000} bytes" in error.what
    assert error.expected == f"{len(content)} bytes"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "do not contain a complete header\nexpected: a safetensors header"),
        (b"no safetensors at all", "do not contain a complete header\nexpected: a safetensors header"),
        (b"\x08" + bytes(7) + b"not json", "header of its 16 bytes is corrupt"),
    ],
    ids=["empty", "text", "broken-header"],
)
def test_corrupt_file_is_named_with_what_is_wrong(content: bytes, words: str, whole: Path, copy_of: CopyOf) -> None:
    folder = copy_of(whole)
    (folder / "model.safetensors").write_bytes(content)
    error = refusal(folder)
    assert "model.safetensors cannot be read" in error.what
    assert words in str(error)


def test_missing_shard_is_named(sharded: Path, copy_of: CopyOf) -> None:
    folder = copy_of(sharded)
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert "lacks model-00002-of-00003.safetensors of the 3 shards" in refusal(folder).what


def test_index_that_disagrees_with_its_shards_is_refused(sharded: Path, copy_of: CopyOf) -> None:
    folder = copy_of(sharded)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["mlp1.3.bias"] = "model-00001-of-00003.safetensors"
    path.write_text(json.dumps(index))
    assert "disagree on the file of mlp1.3.bias" in refusal(folder).what


@pytest.mark.parametrize("file", ["../other/model.safetensors", "model.bin", 3], ids=str)
def test_index_may_name_only_safetensors_files_of_its_own_folder(file: object, sharded: Path, copy_of: CopyOf) -> None:
    folder = copy_of(sharded)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"mlp1.3.bias": file}}))
    assert f"names the shard {file!r}" in refusal(folder).what


def test_tensor_in_two_shards_is_refused(sharded: Path, copy_of: CopyOf) -> None:
    folder = copy_of(sharded)
    shutil.copy(folder / "model-00001-of-00003.safetensors", folder / "model-00002-of-00003.safetensors")
    assert "is in both model-00001-of-00003.safetensors and model-00002-of-00003.safetensors" in refusal(folder).what


def test_pickle_only_folder_is_refused_and_never_opened(whole: Path, copy_of: CopyOf) -> None:
    folder = copy_of(whole)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    error = refusal(folder)
    assert "pickle (pytorch_model.bin), which is refused" in error.what
    assert "safe_serialization=True" in error.fix


def test_folder_without_weights_says_what_it_holds(whole: Path, copy_of: CopyOf) -> None:
    folder = copy_of(whole)
    (folder / "model.safetensors").unlink()
    error = refusal(folder)
    assert "no weights: it contains config.json" in error.what
    assert error.expected == "model.safetensors or model.safetensors.index.json"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"),
        ("[1]", "contains a JSON list"),
        ("{}", "does not set vision_config"),
        ('{"architectures": ["LlamaForCausalLM"], "hidden_size": 4}', "its keys are architectures, hidden_size"),
    ],
    ids=["not-json", "list", "empty", "another-model"],
)
def test_garbage_config_is_refused(content: str, words: str, whole: Path, copy_of: CopyOf) -> None:
    folder = copy_of(whole)
    (folder / "config.json").write_text(content)
    assert words in str(refusal(folder))


def test_binary_config_is_refused(whole: Path, copy_of: CopyOf) -> None:
    folder = copy_of(whole)
    (folder / "config.json").write_bytes(b"\xff\xfe\x00")
    assert "is not JSON" in refusal(folder).what


def test_missing_config_and_missing_folder_are_distinguished(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    assert "it contains model.safetensors" in refusal(tmp_path).what
    assert "it is not a folder" in refusal(tmp_path / "nowhere").what
