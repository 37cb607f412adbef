"""Do the tensors of a checkpoint's files fit the model that config.json describes?

All of its tensors must be there, in shape and kind. Of others, those that repeat what is known are harmless, once it is
shown that they do: a tied head that is stored as well, and buffers that hold RoPE's frequencies or count positions.
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
    """Raise CheckpointError that names what does not fit.

    sources  by the name of a tensor, the open safetensors file that holds it
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
            expected=f"the {len(wanted)} tensors that {CONFIG_FILE} asks for",
            cause=f"{CONFIG_FILE} belongs to another model",
            fix="compare its layer counts, widths, vocab_size and pvc object with these names",
        )
    for name in sorted(repeated):
        _check_repeated(folder, name, sources, llm)


def check_names(folder: Path, names: Collection[str]) -> None:
    """Raise CheckpointError for names that tell how the weights were saved: more than that they are not known."""
    if lora := [name for name in names if any(part in name for part in LORA)]:
        raise CheckpointError(
            f"{folder} holds LoRA that was not merged into the weights: {len(lora)} tensors, {listing(lora)}",
            expected="merged weights, without lora_A and lora_B",
            cause="a fine-tuning with use_llm_lora or use_backbone_lora, saved as it was trained",
            fix="merge once, where it was trained: model.language_model.merge_and_unload() (or vision_model's), set "
            "use_llm_lora and use_backbone_lora to 0, and save_pretrained(NEW)",
        )
    if wrapped := [name for name in names if name.startswith("module.")]:
        raise CheckpointError(
            f"{folder}: {len(wrapped)} names of tensors begin with 'module.': {listing(wrapped)}",
            expected="the names of the model itself",
            cause="the wrapper of a distributed training (DataParallel, DeepSpeed) was saved in its place",
            fix="save model.module in place of model, or take 'module.' off the names: "
            "save_file({k.removeprefix('module.'): v for k, v in load_file(OLD).items()}, NEW)",
        )


def harmless_names(names: Collection[str], llm: LLMConfig) -> set[str]:
    """Of the names that no tensor of the model has, those that may repeat what is known."""
    heads = {head_names(llm)[1]} if llm.tie_embeddings else set()
    return {name for name in names if name in heads or name.endswith((FREQUENCIES, POSITIONS))}


def _check_repeated(folder: Path, name: str, sources: Mapping[str, Any], llm: LLMConfig) -> None:
    value = sources[name].get_tensor(name)
    if name.endswith(FREQUENCIES):
        if not _are_frequencies(value, llm):
            raise CheckpointError(
                f"{folder}: {name} are not RoPE's frequencies of rope_theta = {llm.rope_theta:g} and heads of "
                f"{llm.attention_head_dim}, as {CONFIG_FILE} says",
                expected=f"rope_theta ** (-2 i / {llm.attention_head_dim})",
                cause=f"rope_theta in {CONFIG_FILE} is not the one that the model was trained with",
                fix="compare it with the file that was released with the checkpoint",
            )
    elif name.endswith(POSITIONS):
        if value.is_floating_point() or not torch.equal(value.flatten(), torch.arange(value.numel())):
            raise CheckpointError(
                f"{folder}: {name} does not count positions from 0, and no others are implemented",
                expected=f"0 to {value.numel() - 1}",
                fix="choose another checkpoint",
            )
    elif not _bit_equal(value, embeddings := sources[head_names(llm)[0]].get_tensor(head_names(llm)[0])):
        raise CheckpointError(
            f"{folder}: {name} {tuple(value.shape)} is not bit for bit {head_names(llm)[0]} {tuple(embeddings.shape)}, "
            f"although {CONFIG_FILE} says llm_config.tie_word_embeddings = true",
            expected="the same values twice, or no head at all",
            cause=f"the head was trained on its own, and tie_word_embeddings in {CONFIG_FILE} is a default",
            fix="say llm_config.tie_word_embeddings = false, if the head is the one that was trained",
        )


def _are_frequencies(value: Tensor, llm: LLMConfig) -> bool:
    """To what half precision can hold: bfloat16 has 8 bits, and float16's smallest step is 6e-8."""
    exponents = torch.arange(0, llm.attention_head_dim, 2, dtype=torch.float64) / llm.attention_head_dim
    right = llm.rope_theta**-exponents
    return value.shape == right.shape and torch.allclose(value.double(), right, rtol=2**-7, atol=6e-8)


def _bit_equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))
