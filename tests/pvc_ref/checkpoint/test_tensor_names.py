"""A checkpoint's tensors: InternVL2's names, order, shards and packed wqkv."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pvc_ref import PVC, PVCConfig, save
from pvc_ref.checkpoint.folder import plan_shards
from pvc_ref.checkpoint.tensor_names import CheckpointTensor, checkpoint_tensors, pack_qkv, unpack_qkv
from pvc_ref.config import CompressorKind

from .cases import INTERNLM2, TINY, VISION_PARTS, leaves, plain_internvl2, with_compressor, with_llm

EMBEDDINGS = ["class_embedding", "position_embedding", *leaves("patch_embedding")]
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


def tensors_of(config: PVCConfig) -> list[CheckpointTensor]:
    with torch.device("meta"):
        return checkpoint_tensors(PVC(config))


def names_of(config: PVCConfig) -> list[str]:
    return [tensor.name for tensor in tensors_of(config)]


def test_internlm2_checkpoint_has_exactly_the_names_and_order_of_internvl2() -> None:
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
def test_qwen2_checkpoint_has_exactly_the_names_of_qwen2(tied: bool) -> None:
    llm = [f"language_model.model.layers.{i}.{part}" for i in range(2) for part in QWEN2_PARTS]
    expected = ["language_model.model.embed_tokens.weight", *llm, "language_model.model.norm.weight"]
    expected += [] if tied else ["language_model.lm_head.weight"]
    names = names_of(with_llm(replace(TINY.llm, tie_embeddings=tied)))
    assert [name for name in names if name.startswith("language_model.")] == expected


def test_temporal_parts_lie_in_the_last_layers_under_the_numbering_of_the_whole_tower() -> None:
    names = [name for name in names_of(TINY) if name.startswith("vision_model.")]
    assert names == vision_names(num_layers=4, num_temporal_layers=2)


def test_pvc_compressor_keeps_the_positions_of_internvl2s_linears() -> None:
    stems = {name.removeprefix("mlp1.").rpartition(".")[0] for name in names_of(TINY) if name.startswith("mlp1.")}
    assert stems == {"1", "3", "adaln.w3", "adaln.w4", "adaln.w5", "adaln.w6", "time_embedding.w1", "time_embedding.w2"}


@pytest.mark.parametrize("kind", ["pool", "conv", "q_former"])
def test_other_compressors_keep_our_names(kind: CompressorKind) -> None:
    model = PVC(with_compressor(kind))
    ours = {f"mlp1.{name}" for name, _ in model.compressor.named_parameters()}
    assert {name for name in names_of(model.config) if name.startswith("mlp1.")} == ours


def test_a_temporal_tensor_lands_in_its_own_layer(whole: Path) -> None:
    stored, model = load_file(whole / "model.safetensors"), PVC.random(TINY)
    layers = "vision_model.encoder.layers"
    assert torch.equal(stored[f"{layers}.1.mlp.fc1.weight"], model.trunk.layers[1].mlp.fc1.weight)
    assert torch.equal(stored[f"{layers}.2.mlp.fc1.weight"], model.temporal.layers[0].mlp.fc1.weight)
    assert torch.equal(stored[f"{layers}.3.adaln.w4.weight"], model.temporal.layers[1].adaln.w4.weight)
    assert torch.equal(stored["mlp1.3.weight"], model.compressor.mlp.fc2.weight)


# Rows of q, k and v by number: 4 query heads, 2 key/value heads of dim 2, so two query heads share each.
WORKED_WQKV = [100, 101, 102, 103, 200, 201, 300, 301, 104, 105, 106, 107, 202, 203, 302, 303]


def test_wqkv_is_packed_as_in_the_worked_example_and_unpacked_again() -> None:
    def rows(first: int, count: int) -> torch.Tensor:
        return torch.arange(first, first + count, dtype=torch.float32)[:, None] + torch.tensor([0.0, 0.25, 0.5])

    q, k, v = rows(100, 8), rows(200, 4), rows(300, 4)
    wqkv = pack_qkv(q, k, v, head_dim=2)
    assert wqkv[:, 0].tolist() == WORKED_WQKV
    assert wqkv.shape == (16, 3)
    for ours, original in zip(unpack_qkv(wqkv, num_kv_heads=2, head_dim=2), (q, k, v), strict=True):
        assert torch.equal(ours, original)


def test_saved_wqkv_holds_each_heads_rows_where_internlm2_reads_them(tmp_path: Path) -> None:
    model = PVC.random(with_llm(INTERNLM2))
    save(model, tmp_path / "model")
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
    sizes = {tensor.name: 2 * math.prod(tensor.shape) for tensor in tensors_of(config)}
    shards = plan_shards(sizes, max_shard_bytes=5_000_000_000)
    assert [name for shard in shards for name in shard] == list(sizes)
    return [round(sum(sizes[name] for name in shard) / 1e9, 3) for shard in shards]


def test_internvl2_8b_has_the_published_tensors_parameters_and_shards() -> None:
    config = plain_internvl2(PVCConfig.preset("pvc-internvl2-8b"))
    tensors = tensors_of(config)
    assert len(tensors) == 573
    assert sum(math.prod(tensor.shape) for tensor in tensors) == 8_075_365_376
    assert bf16_shards_gb(config) == [4.940, 4.916, 4.916, 1.379]  # published: 4.94, 4.92, 4.92, 1.38


def test_pvc_8b_has_the_published_shards() -> None:
    shards = bf16_shards_gb(PVCConfig.preset("pvc-internvl2-8b"))
    assert [round(size, 2) for size in shards] == [4.89, 5.00, 4.92, 4.29]
