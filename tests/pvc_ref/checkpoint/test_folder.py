"""Checkpoint folders: exact round trips, InternVL2's names and shards, and an error for all that does not fit."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

import pvc_ref
from pvc_ref import PVC, CheckpointError, CompressorConfig, LLMConfig, PVCConfig
from pvc_ref.checkpoint import folder as weights_module
from pvc_ref.checkpoint.config_json import config_from_json, config_to_json
from pvc_ref.checkpoint.folder import load_config, load_model, plan_shards, save_model, tensors_of
from pvc_ref.checkpoint.tensor_names import CheckpointTensor, pack_qkv, unpack_qkv
from pvc_ref.config import PRESETS
from pvc_ref.prompt import byte_tokenizer

TINY = PVCConfig.preset("tiny")
KINDS = ("pvc", "pixel_shuffle", "pool", "conv", "q_former")
INTERNLM2 = replace(TINY.llm, family="internlm2", qkv_bias=False)
LLMS = {
    "internlm2": INTERNLM2,
    "internlm2-one-kv-head": replace(INTERNLM2, num_kv_heads=1),
    "internlm2-tied": replace(INTERNLM2, tie_embeddings=True),
    "qwen2": TINY.llm,
    "qwen2-tied": replace(TINY.llm, tie_embeddings=True),
    "qwen2-wide-heads": replace(TINY.llm, head_dim=32),
    "llama": replace(TINY.llm, family="llama", qkv_bias=False),
}


def with_compressor(kind: str) -> PVCConfig:
    return replace(TINY, compressor=CompressorConfig(kind=kind, num_tokens=4, shuffle="v1", num_q_former_layers=1))


def with_llm(llm: LLMConfig) -> PVCConfig:
    return replace(TINY, llm=llm)


def plain_internvl2(config: PVCConfig, *, num_tokens: int = 256) -> PVCConfig:
    return replace(
        config,
        vision=replace(config.vision, num_temporal_layers=0),
        compressor=CompressorConfig(kind="pixel_shuffle", num_tokens=num_tokens),
        num_image_repeats=1,
    )


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


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "whole"
    save_model(PVC.random(TINY), folder)
    return folder


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "sharded"
    save_model(PVC.random(TINY), folder, max_shard_bytes=10_000_000)
    return folder


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    return lambda folder: Path(shutil.copytree(folder, tmp_path / "copy"))


# -- round trips -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_compressor_comes_back_bit_equal(kind, tmp_path):
    model = PVC.random(with_compressor(kind))
    save_model(model, tmp_path / "model")
    assert_same_model(load_model(tmp_path / "model"), model)


@pytest.mark.parametrize("llm", LLMS.values(), ids=LLMS)
def test_every_llm_family_comes_back_bit_equal(llm, tmp_path):
    model = PVC.random(with_llm(llm))
    save_model(model, tmp_path / "model")
    assert_same_model(pvc_ref.load(tmp_path / "model"), model)


@pytest.mark.parametrize("llm", [LLMS["internlm2-tied"], LLMS["qwen2-tied"]], ids=["internlm2", "qwen2"])
def test_tied_embeddings_are_saved_once_and_are_tied_again(llm, tmp_path):
    save_model(PVC.random(with_llm(llm)), tmp_path / "model")
    names = load_file(tmp_path / "model" / "model.safetensors").keys()
    assert not names & {"language_model.lm_head.weight", "language_model.output.weight"}
    loaded = load_model(tmp_path / "model")
    assert loaded.llm.lm_head.weight is loaded.llm.embed_tokens.weight


def test_pool_matrix_that_no_file_holds_is_made_again(tmp_path):
    model = PVC.random(with_compressor("pool"))
    save_model(model, tmp_path / "model")
    assert not [name for name in load_file(tmp_path / "model" / "model.safetensors") if name.endswith(".weights")]
    assert torch.equal(load_model(tmp_path / "model").compressor.weights, model.compressor.weights)


def test_saving_in_half_and_loading_in_double_changes_no_value_that_half_can_hold(tmp_path):
    model = PVC.random(TINY)  # exact in float16
    save_model(model, tmp_path / "model", dtype=torch.float16)
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    loaded = load_model(tmp_path / "model", dtype=torch.float64)
    for name, parameter in model.named_parameters():
        assert loaded.get_parameter(name).dtype == torch.float64
        assert torch.equal(loaded.get_parameter(name), parameter.double()), name


def test_sharded_checkpoint_comes_back_bit_equal_with_an_exact_index(sharded):
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in sharded.glob("*.safetensors"))
    assert files == [f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)]
    assert len(files) == 3
    stored = {name: (file, tensor) for file in files for name, tensor in load_file(sharded / file).items()}
    assert index["weight_map"] == {name: file for name, (file, _) in stored.items()}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for _, tensor in stored.values())
    assert_same_model(load_model(sharded), PVC.random(TINY))


def test_loaded_weights_do_not_depend_on_the_file_any_more(whole, copy_of):
    folder = copy_of(whole)
    model = load_model(folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-4096, 2)
        file.write(b"\xff" * 4096)
    assert_same_model(model, PVC.random(TINY))


def test_tokenizer_is_saved_beside_the_weights(tmp_path):
    save_model(PVC.random(TINY), tmp_path / "model", tokenizer=byte_tokenizer())
    loaded = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    assert loaded.encode("Frame1: <img>é").ids == byte_tokenizer().encode("Frame1: <img>é").ids


def test_failed_save_leaves_nothing(tmp_path, monkeypatch):
    written = []

    def disk_full_at_the_second_shard(tensors: dict[str, torch.Tensor], path: Path, **options: Any) -> None:
        written.append(path)
        if len(written) == 2:
            raise OSError("no space left on device")
        save_file(tensors, path, **options)

    monkeypatch.setattr(weights_module, "save_file", disk_full_at_the_second_shard)
    with pytest.raises(OSError, match="no space"):
        save_model(PVC.random(TINY), tmp_path / "model", max_shard_bytes=10_000_000)
    assert len(written) == 2
    assert list(tmp_path.iterdir()) == []


def test_save_refuses_a_folder_with_anything_in_it_and_takes_an_empty_one(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "notes.txt").write_text("keep me")
    with pytest.raises(CheckpointError, match="exists already"):
        save_model(PVC.random(TINY), folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "notes.txt"]
    (folder / "notes.txt").unlink()
    save_model(PVC.random(TINY), folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


# -- names -----------------------------------------------------------------------------------------------------


def leaves(*stems: str) -> list[str]:
    return [f"{stem}.{leaf}" for stem in stems for leaf in ("weight", "bias")]


EMBEDDINGS = ["class_embedding", "position_embedding", *leaves("patch_embedding")]
VISION_PARTS = ["ls1", "ls2", *leaves("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "norm1", "norm2")]
TEMPORAL_PARTS = [
    *("alpha", *leaves("temporal_attn.qkv", "temporal_attn.proj")),
    *leaves("adaln.w3", "adaln.w4", "adaln.w5", "adaln.w6", "time_embedding.w1", "time_embedding.w2"),
]
INTERNLM2_PARTS = [
    *("attention.wqkv", "attention.wo", "feed_forward.w1", "feed_forward.w3", "feed_forward.w2"),
    *("attention_norm", "ffn_norm"),
]
QWEN2_PARTS = [
    *leaves("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    *("self_attn.o_proj.weight", "mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"),
    *("input_layernorm.weight", "post_attention_layernorm.weight"),
]
MLP1 = leaves("mlp1.0", "mlp1.1", "mlp1.3")


def vision_names(*, num_layers: int, num_temporal_layers: int) -> list[str]:
    names = [f"vision_model.embeddings.{part}" for part in EMBEDDINGS]
    for i in range(num_layers):
        parts = VISION_PARTS + (TEMPORAL_PARTS if i >= num_layers - num_temporal_layers else [])
        names += [f"vision_model.encoder.layers.{i}.{part}" for part in parts]
    return names


def checkpoint_tensors(config: PVCConfig) -> list[CheckpointTensor]:
    with torch.device("meta"):
        return tensors_of(PVC(config))


def names_of(config: PVCConfig) -> list[str]:
    return [tensor.name for tensor in checkpoint_tensors(config)]


def test_internlm2_checkpoint_has_exactly_the_names_and_order_of_internvl2():
    llm = [f"language_model.model.layers.{i}.{part}.weight" for i in range(2) for part in INTERNLM2_PARTS]
    expected = [
        *vision_names(num_layers=4, num_temporal_layers=0),
        "language_model.model.tok_embeddings.weight",
        *llm,
        "language_model.model.norm.weight",
        "language_model.output.weight",
        *MLP1,
    ]
    assert names_of(plain_internvl2(with_llm(INTERNLM2), num_tokens=4)) == expected


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_qwen2_checkpoint_has_exactly_the_names_of_qwen2(tied):
    llm = [f"language_model.model.layers.{i}.{part}" for i in range(2) for part in QWEN2_PARTS]
    expected = ["language_model.model.embed_tokens.weight", *llm, "language_model.model.norm.weight"]
    expected += [] if tied else ["language_model.lm_head.weight"]
    names = names_of(with_llm(replace(TINY.llm, tie_embeddings=tied)))
    assert [name for name in names if name.startswith("language_model.")] == expected


def test_temporal_parts_lie_in_the_last_layers_under_the_numbering_of_the_whole_tower():
    names = [name for name in names_of(TINY) if name.startswith("vision_model.")]
    assert names == vision_names(num_layers=4, num_temporal_layers=2)


def test_pvc_compressor_keeps_the_positions_of_internvl2s_linears():
    stems = {name.removeprefix("mlp1.").rpartition(".")[0] for name in names_of(TINY) if name.startswith("mlp1.")}
    assert stems == {"1", "3", "adaln.w3", "adaln.w4", "adaln.w5", "adaln.w6", "time_embedding.w1", "time_embedding.w2"}


@pytest.mark.parametrize("kind", ["pool", "conv", "q_former"])
def test_other_compressors_keep_our_names(kind):
    model = PVC(with_compressor(kind))
    ours = {f"mlp1.{name}" for name, _ in model.compressor.named_parameters()}
    assert {name for name in names_of(model.config) if name.startswith("mlp1.")} == ours


def test_a_temporal_tensor_lands_in_its_own_layer(whole):
    stored, model = load_file(whole / "model.safetensors"), PVC.random(TINY)
    layers = "vision_model.encoder.layers"
    assert torch.equal(stored[f"{layers}.1.mlp.fc1.weight"], model.trunk.layers[1].mlp.fc1.weight)
    assert torch.equal(stored[f"{layers}.2.mlp.fc1.weight"], model.temporal.layers[0].mlp.fc1.weight)
    assert torch.equal(stored[f"{layers}.3.adaln.w4.weight"], model.temporal.layers[1].adaln.w4.weight)
    assert torch.equal(stored["mlp1.3.weight"], model.compressor.mlp.fc2.weight)


# Rows of q, k and v by number: 4 query heads, 2 key/value heads of dim 2, so two query heads share each.
WORKED_WQKV = [100, 101, 102, 103, 200, 201, 300, 301, 104, 105, 106, 107, 202, 203, 302, 303]


def test_wqkv_is_packed_as_in_the_worked_example_and_unpacked_again():
    def rows(first: int, count: int) -> torch.Tensor:
        return torch.arange(first, first + count, dtype=torch.float32)[:, None] + torch.tensor([0.0, 0.25, 0.5])

    q, k, v = rows(100, 8), rows(200, 4), rows(300, 4)
    wqkv = pack_qkv(q, k, v, head_dim=2)
    assert wqkv[:, 0].tolist() == WORKED_WQKV
    assert wqkv.shape == (16, 3)
    for ours, original in zip(unpack_qkv(wqkv, num_kv_heads=2, head_dim=2), (q, k, v), strict=True):
        assert torch.equal(ours, original)


def test_saved_wqkv_holds_each_heads_rows_where_internlm2_reads_them(tmp_path):
    model = PVC.random(with_llm(INTERNLM2))
    save_model(model, tmp_path / "model")
    stored = load_file(tmp_path / "model" / "model.safetensors")["language_model.model.layers.1.attention.wqkv.weight"]
    attention, group, dim = model.llm.layers[1].attn, 2, 16
    for kv_head in range(2):
        start = kv_head * (group + 2) * dim
        for shared in range(group):
            head = kv_head * group + shared
            assert torch.equal(
                stored[start + shared * dim : start + (shared + 1) * dim],
                attention.q_proj.weight[head * dim : (head + 1) * dim],
            )
        key, value = start + group * dim, start + (group + 1) * dim
        assert torch.equal(stored[key:value], attention.k_proj.weight[kv_head * dim : (kv_head + 1) * dim])
        assert torch.equal(stored[value : value + dim], attention.v_proj.weight[kv_head * dim : (kv_head + 1) * dim])


def bf16_shards_gb(config: PVCConfig) -> list[float]:
    sizes = {tensor.name: 2 * math.prod(tensor.shape) for tensor in checkpoint_tensors(config)}
    shards = plan_shards(sizes, max_shard_bytes=5_000_000_000)
    assert [name for shard in shards for name in shard] == list(sizes)
    return [round(sum(sizes[name] for name in shard) / 1e9, 3) for shard in shards]


def test_internvl2_8b_has_the_published_tensors_parameters_and_shards():
    config = plain_internvl2(PVCConfig.preset("pvc-internvl2-8b"))
    tensors = checkpoint_tensors(config)
    assert len(tensors) == 573
    assert sum(math.prod(tensor.shape) for tensor in tensors) == 8_075_365_376
    assert bf16_shards_gb(config) == [4.940, 4.916, 4.916, 1.379]  # published: 4.94, 4.92, 4.92, 1.38


def test_pvc_8b_has_the_published_shards():
    shards = bf16_shards_gb(PVCConfig.preset("pvc-internvl2-8b"))
    assert [round(size, 2) for size in shards] == [4.89, 5.00, 4.92, 4.29]


# -- strictness ------------------------------------------------------------------------------------------------


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        load_model(folder)
    assert str(folder) in str(error.value)
    return str(error.value)


def test_missing_tensors_are_listed_sorted_ten_at_most_with_their_count(whole, copy_of):
    folder = copy_of(whole)
    gone = [f"vision_model.encoder.layers.0.{part}" for part in VISION_PARTS]
    edit_weights(folder, lambda tensors: [tensors.pop(name) for name in gone])
    message = refusal(folder)
    assert f"14 missing: {', '.join(sorted(gone)[:10])} and 4 more" in message
    assert "unexpected" not in message


def test_unexpected_and_missing_tensors_are_both_named(whole, copy_of):
    folder = copy_of(whole)

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        tensors["mlp1.extra"] = tensors.pop("mlp1.3.bias")

    edit_weights(folder, rename)
    message = refusal(folder)
    assert "1 missing: mlp1.3.bias" in message
    assert "1 unexpected: mlp1.extra" in message


def test_wrong_shape_is_named_with_both_shapes(whole, copy_of):
    folder = copy_of(whole)
    edit_weights(folder, lambda tensors: tensors.update({"mlp1.3.bias": torch.zeros(65)}))
    assert "1 of another shape: mlp1.3.bias is (65,), expected (64,)" in refusal(folder)


def test_quantized_tensor_is_refused(whole, copy_of):
    folder = copy_of(whole)
    edit_weights(folder, lambda tensors: tensors.update({"mlp1.3.bias": torch.zeros(64, dtype=torch.int8)}))
    assert "mlp1.3.bias (I8)" in refusal(folder)


def test_truncated_shard_is_named_with_its_and_the_expected_bytes(sharded, copy_of):
    folder = copy_of(sharded)
    shard = folder / "model-00002-of-00003.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1000])
    message = refusal(folder)
    assert f"{shard} cannot be read" in message
    assert f"has {len(content) - 1000} bytes of {len(content)}" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "do not have, a safetensors header"),
        (b"no safetensors at all", "do not have, a safetensors header"),
        (b"\x08" + bytes(7) + b"not json", "header of its 16 bytes is corrupt"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    ],
    ids=["empty", "text", "broken-header", "git-lfs-pointer"],
)
def test_corrupt_file_is_named_with_what_is_wrong(content, words, whole, copy_of):
    folder = copy_of(whole)
    (folder / "model.safetensors").write_bytes(content)
    message = refusal(folder)
    assert "model.safetensors cannot be read" in message
    assert words in message


def test_missing_shard_is_named(sharded, copy_of):
    folder = copy_of(sharded)
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert "lacks model-00002-of-00003.safetensors of the 3 shards" in refusal(folder)


def test_index_that_disagrees_with_its_shards_is_refused(sharded, copy_of):
    folder = copy_of(sharded)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["mlp1.3.bias"] = "model-00001-of-00003.safetensors"
    path.write_text(json.dumps(index))
    assert "disagree about where to find mlp1.3.bias" in refusal(folder)


@pytest.mark.parametrize("file", ["../other/model.safetensors", "model.bin", 3], ids=str)
def test_index_may_name_only_safetensors_files_of_its_own_folder(file, sharded, copy_of):
    folder = copy_of(sharded)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"mlp1.3.bias": file}}))
    assert f"names the shard {file!r}" in refusal(folder)


def test_tensor_in_two_shards_is_refused(sharded, copy_of):
    folder = copy_of(sharded)
    shutil.copy(folder / "model-00001-of-00003.safetensors", folder / "model-00002-of-00003.safetensors")
    assert "is in both model-00001-of-00003.safetensors and model-00002-of-00003.safetensors" in refusal(folder)


def test_pickle_only_folder_is_refused_and_never_opened(whole, copy_of):
    folder = copy_of(whole)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    message = refusal(folder)
    assert "pickle (pytorch_model.bin), which is refused" in message
    assert "safe_serialization=True" in message


def test_folder_without_weights_says_what_it_holds(whole, copy_of):
    folder = copy_of(whole)
    (folder / "model.safetensors").unlink()
    message = refusal(folder)
    assert "no weights: found config.json" in message
    assert "expected: model.safetensors or model.safetensors.index.json" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"),
        ("[1]", "holds a JSON list"),
        ("{}", "does not say vision_config"),
        ('{"architectures": ["LlamaForCausalLM"], "hidden_size": 4}', "Its keys are architectures, hidden_size"),
    ],
    ids=["not-json", "list", "empty", "another-model"],
)
def test_garbage_config_is_refused(content, words, whole, copy_of):
    folder = copy_of(whole)
    (folder / "config.json").write_text(content)
    assert words in refusal(folder)


def test_binary_config_is_refused(whole, copy_of):
    folder = copy_of(whole)
    (folder / "config.json").write_bytes(b"\xff\xfe\x00")
    assert "is not JSON" in refusal(folder)


def test_missing_config_and_missing_folder_are_told_apart(tmp_path):
    (tmp_path / "model.safetensors").touch()
    assert "it holds model.safetensors" in refusal(tmp_path)
    assert "it is not a folder" in refusal(tmp_path / "nowhere")


# -- config.json -----------------------------------------------------------------------------------------------


def round_trip_configs() -> dict[str, PVCConfig]:
    configs = dict(PRESETS)
    configs |= {kind: with_compressor(kind) for kind in KINDS}
    configs |= {name: with_llm(llm) for name, llm in LLMS.items()}
    configs["every-other-choice"] = replace(
        TINY,
        vision=replace(TINY.vision, num_temporal_layers=4, qkv_bias=False, sinusoid_size=64, layer_norm_eps=1e-5),
        time_mode="relative",
        trained_frames=7,
        num_image_repeats=3,
        image_layout="tiles_in_time",
        template="Hermes-2",
    )
    configs["odd-token-grid"] = replace(TINY, compressor=CompressorConfig(num_tokens=8))
    return configs


@pytest.mark.parametrize("config", round_trip_configs().values(), ids=round_trip_configs())
def test_config_survives_config_json(config):
    assert config_from_json(json.loads(json.dumps(config_to_json(config)))) == config


@pytest.mark.parametrize("llm", [replace(TINY.llm, qkv_bias=False), replace(LLMS["llama"], qkv_bias=True)])
def test_qkv_bias_that_config_json_cannot_say_is_refused_before_anything_is_written(llm, tmp_path):
    with pytest.raises(CheckpointError, match="llm.qkv_bias is"):
        save_model(PVC.random(with_llm(llm)), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def internvl2_8b_json(**changes: Any) -> dict[str, Any]:
    """The facts of InternVL2-8B's config.json. A change names its place: `llm_config__bias=True`."""
    data: dict[str, Any] = {
        "architectures": ["InternVLChatModel"],
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": 448,
        "llm_config": {
            "architectures": ["InternLM2ForCausalLM"],
            "bias": False,
            "hidden_act": "silu",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "max_position_embeddings": 32768,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {"factor": 2.0, "type": "dynamic"},
            "rope_theta": 1000000,
            "tie_word_embeddings": False,
            "vocab_size": 92553,
        },
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internlm2-chat",
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "hidden_act": "gelu",
            "hidden_size": 1024,
            "image_size": 448,
            "intermediate_size": 4096,
            "layer_norm_eps": 1e-06,
            "norm_type": "layer_norm",
            "num_attention_heads": 16,
            "num_channels": 3,
            "num_hidden_layers": 24,
            "patch_size": 14,
            "qk_normalization": False,
            "qkv_bias": True,
        },
    }
    for place, value in changes.items():
        section, _, key = place.rpartition("__")
        target = data[section] if section else data
        if value is ...:
            del target[key]
        else:
            target[key] = value
    return data


def test_plain_internvl2_config_is_a_model_without_time():
    assert config_from_json(internvl2_8b_json()) == plain_internvl2(PVCConfig.preset("pvc-internvl2-8b"))
    first_release = config_from_json(internvl2_8b_json(ps_version="v1", downsample_ratio=0.25, use_temporal=False))
    assert first_release.compressor == CompressorConfig(kind="pixel_shuffle", num_tokens=64, shuffle="v1")


def test_qwen2_implies_qkv_biases():
    assert config_from_json(internvl2_8b_json(llm_config__architectures=["Qwen2ForCausalLM"])).llm.qkv_bias


def test_temporal_config_without_our_object_is_refused_with_what_was_found(tmp_path):
    data = internvl2_8b_json(use_temporal=True, image_repeat_time=4, mlp_add_ops="adaln", ps_version="v1")
    (tmp_path / "config.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError) as error:
        load_config(tmp_path)
    message = str(error.value)
    for words in ("which layers are temporal", "time mode", "image layout", "tensor names"):
        assert words in message
    for found in ('"image_repeat_time": 4', '"mlp_add_ops": "adaln"', '"ps_version": "v1"'):
        assert found in message


@pytest.mark.parametrize(
    ("changes", "words", "expected"),
    [
        ({"vision_config__qk_normalization": True}, "vision_config.qk_normalization = true", "false"),
        ({"vision_config__qk_normalization": ...}, "does not say vision_config.qk_normalization", "false"),
        ({"vision_config__norm_type": "rms_norm"}, 'norm_type = "rms_norm"', '"layer_norm"'),
        ({"vision_config__hidden_act": "gelu_new"}, 'hidden_act = "gelu_new"', '"gelu"'),
        ({"select_layer": -2}, "select_layer = -2", "-1"),
        ({"image_repeat_time": 4}, "image_repeat_time = 4", "1"),
        ({"llm_config__bias": True}, "llm_config.bias = true", "false"),
        ({"llm_config__use_sliding_window": True}, "use_sliding_window = true", "false"),
        ({"llm_config__architectures": ["Phi3ForCausalLM"]}, "Phi3ForCausalLM", ""),
        (
            {"llm_config__architectures": []},
            "architectures = []",
            "one of InternLM2ForCausalLM, Qwen2ForCausalLM, LlamaForCausalLM",
        ),
        ({"llm_config__rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling", ""),
        ({"llm_config__rope_scaling": "dynamic"}, "rope_scaling", ""),
        ({"llm_config__vocab_size": ...}, "does not say llm_config.vocab_size", "int"),
        ({"llm_config__vocab_size": True}, "llm_config.vocab_size = true", "int"),
        ({"llm_config__num_key_value_heads": 5}, "num_heads = 32 is not a multiple of num_kv_heads = 5", ""),
        ({"force_image_size": 224}, "force_image_size = 224 but vision_config.image_size = 448", ""),
        ({"downsample_ratio": 0.3}, "downsample_ratio = 0.3, which makes 92.16 tokens", ""),
        ({"template": "phi3-chat"}, "template is 'phi3-chat'", ""),
        ({"pvc": {"num_temporal_layers": 8}}, "does not say pvc.sinusoid_size", ""),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_config_fact_that_is_not_implemented_is_refused_by_name(changes, words, expected):
    with pytest.raises(CheckpointError) as error:
        config_from_json(internvl2_8b_json(**changes))
    assert words in error.value.what and error.value.expected.startswith(expected)


def test_compressor_object_that_contradicts_downsample_ratio_is_refused():
    data = config_to_json(TINY)
    data["pvc"]["compressor"]["num_tokens"] = 16
    with pytest.raises(CheckpointError, match="makes 4 tokens of a frame") as error:
        config_from_json(data)
    assert error.value.expected == "16"
