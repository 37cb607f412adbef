"""Check that a checkpoint's tensors fit the model that config.json describes.

Every tensor of the model must be there, with the right shape and a floating-point dtype. An additional tensor is
harmless if its values only repeat known ones, which is checked: the stored head of a tied model, and buffers with
RoPE's frequencies or position numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import LLMConfig
from ..errors import CheckpointError
from .config_keys import CONFIG_FILE
from .files import listing
from .tensor_names import CheckpointTensor, head_names

FLOATS = ("F64", "F32", "F16", "BF16")
FREQUENCIES = "rotary_emb.inv_freq"
POSITIONS = "embeddings.position_ids"
LORA = (".lora_A.", ".lora_B.", ".lora_embedding_A", ".lora_embedding_B", ".base_layer.")


def check_tensors(
    folder: Path, tensors: Collection[CheckpointTensor], sources: Mapping[str, Any], llm: LLMConfig
) -> None:
    """Raise CheckpointError that lists the tensors that do not fit.

    sources  tensor name -> the open safetensors file that contains it
    """
    wanted = {tensor.name: tensor.shape for tensor in tensors}
    shapes, dtypes = [], []
    for name in wanted.keys() & sources.keys():
        found = sources[name].get_slice(name)
        if (shape := tuple(found.get_shape())) != wanted[name]:
            shapes.append(f"{name} is {shape}, expected {wanted[name]}")
        if found.get_dtype() not in FLOATS:
            dtypes.append(f"{name} ({found.get_dtype()})")
    repeated = harmless_names(sources.keys() - wanted.keys(), llm)
    faults: dict[str, Collection[str]] = {
        "missing": wanted.keys() - sources.keys(),
        "unexpected": sources.keys() - wanted.keys() - repeated,
        "of another shape": shapes,
        f"not in {', '.join(FLOATS)}, probably quantized": dtypes,
    }
    if any(faults.values()):
        listed = (f"{len(names)} {fault}: {listing(names)}" for fault, names in faults.items() if names)
        raise CheckpointError(
            f"{folder}: the weights do not fit {CONFIG_FILE}. " + "; ".join(listed),
            expected=f"the {len(wanted)} tensors that {CONFIG_FILE} describes",
            cause=f"{CONFIG_FILE} belongs to another model",
            fix="compare its layer counts, widths, vocab_size and pvc object with these tensors",
        )
    for name in sorted(repeated):
        _check_repeated(folder, name, sources, llm)


def check_names(folder: Path, names: Collection[str]) -> None:
    """Raise a specific CheckpointError for names that show how the weights were saved: LoRA, or wrapped modules."""
    if lora := [name for name in names if any(part in name for part in LORA)]:
        raise CheckpointError(
            f"{folder} contains LoRA weights that were not merged: {len(lora)} tensors, {listing(lora)}",
            expected="merged weights, without lora_A and lora_B",
            cause="fine-tuned with use_llm_lora or use_backbone_lora, and saved without merging",
            fix="merge once, where it was trained: model.language_model.merge_and_unload() (or vision_model's), set "
            "use_llm_lora and use_backbone_lora to 0, and save_pretrained(NEW)",
        )
    if wrapped := [name for name in names if name.startswith("module.")]:
        raise CheckpointError(
            f"{folder}: {len(wrapped)} tensor names begin with 'module.': {listing(wrapped)}",
            expected="the names of the model itself",
            cause="the wrapper of distributed training (DataParallel, DeepSpeed) was saved instead of the model",
            fix="save model.module instead of model, or remove 'module.' from the names: "
            "save_file({k.removeprefix('module.'): v for k, v in load_file(OLD).items()}, NEW)",
        )


def harmless_names(names: Collection[str], llm: LLMConfig) -> set[str]:
    """Select from unknown names those whose tensors may only repeat known values."""
    heads = {head_names(llm)[1]} if llm.tie_embeddings else set()
    return {name for name in names if name in heads or name.endswith((FREQUENCIES, POSITIONS))}


def _check_repeated(folder: Path, name: str, sources: Mapping[str, Any], llm: LLMConfig) -> None:
    value = sources[name].get_tensor(name)
    if name.endswith(FREQUENCIES):
        if not _are_frequencies(value, llm):
            raise CheckpointError(
                f"{folder}: {name} does not have RoPE's frequencies for rope_theta = {llm.rope_theta:g} and head size "
                f"{llm.attention_head_dim}, which {CONFIG_FILE} sets",
                expected=f"rope_theta ** (-2 i / {llm.attention_head_dim})",
                cause=f"rope_theta in {CONFIG_FILE} is not the value with which the model was trained",
                fix="compare it with the file that was released with the checkpoint",
            )
    elif name.endswith(POSITIONS):
        if value.is_floating_point() or not torch.equal(value.flatten(), torch.arange(value.numel())):
            raise CheckpointError(
                f"{folder}: {name} does not count positions from 0; other positions are not implemented",
                expected=f"0 to {value.numel() - 1}",
                fix="choose another checkpoint",
            )
    elif not _bit_equal(value, embeddings := sources[head_names(llm)[0]].get_tensor(head_names(llm)[0])):
        raise CheckpointError(
            f"{folder}: {name} {tuple(value.shape)} differs from {head_names(llm)[0]} {tuple(embeddings.shape)}, "
            f"although {CONFIG_FILE} sets llm_config.tie_word_embeddings = true",
            expected="bit-equal values, or no stored head",
            cause=f"the head was trained separately, and tie_word_embeddings in {CONFIG_FILE} is only a default",
            fix="set llm_config.tie_word_embeddings = false if the stored head is the trained one",
        )


def _are_frequencies(value: Tensor, llm: LLMConfig) -> bool:
    """Compare at 16-bit precision: bfloat16 has 8 significant bits, and float16's smallest step is 6e-8."""
    exponents = torch.arange(0, llm.attention_head_dim, 2, dtype=torch.float64) / llm.attention_head_dim
    right = llm.rope_theta**-exponents
    return value.shape == right.shape and torch.allclose(value.double(), right, rtol=2**-7, atol=6e-8)


def _bit_equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))
