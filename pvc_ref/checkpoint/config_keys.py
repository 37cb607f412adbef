"""Every known key of config.json: read, implemented for one value only, or without effect on the model's answers.

Any other key is an error, whatever its value: even `false` may switch off what this model does, as in `use_thumbnail`.
Only null is treated as absent.
Source: config.json of InternVL2, InternVL2.5 and InternVL3, and the keys that transformers 4.37 to 5 writes.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from ..errors import CheckpointError

CONFIG_FILE = "config.json"
SECTIONS = ("vision_config", "llm_config", "pvc", "pvc.compressor")
"""The file's nested objects; "" is the top level."""

IMPLEMENTED: dict[str, tuple[object, ...]] = {
    "select_layer": (-1, None),
    "mlp_add_ops": (None,),
    "tile_repeat_way": (None,),
    "image_repeat_time": (1, None),
    "video_repeat_time": (1, None),
    "min_dynamic_patch": (1, None),
    "pad2square": (False, None),
    "image_fold": (None,),
    "quantization_config": (None,),
    "vision_config.qk_normalization": (False,),  # absent means True in InternVL2
    "vision_config.norm_type": ("layer_norm",),  # absent means rms_norm in InternVL2
    "vision_config.hidden_act": ("gelu", None),
    "vision_config.num_channels": (3, None),
    "vision_config.use_moe": (False, None),
    "llm_config.hidden_act": ("silu", None),
    "llm_config.bias": (False, None),
    "llm_config.attention_bias": (False, None),
    "llm_config.mlp_bias": (False, None),
    "llm_config.use_sliding_window": (False, None),
    "llm_config.partial_rotary_factor": (1, None),
    "llm_config.rope_interleaved": (False, None),
    "llm_config.quantization_config": (None,),
}
"""Settings with only one implemented value, which comes first; None where the setting may be absent."""

IMPLEMENTED_ANYWHERE: dict[str, tuple[object, ...]] = {
    "pruned_heads": ({}, None),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "chunk_size_feed_forward": (0, None),
}
"""The same for every transformers config: at the top level, in vision_config and in llm_config."""

CAUSES = {
    "vision_config.qk_normalization": "the tower is InternViT-6B, which InternVL2-26B and larger have",
    "vision_config.norm_type": "the tower is InternViT-6B, which InternVL2-26B and larger have",
    "quantization_config": "the weights are quantized; only floating-point weights are read",
    "llm_config.quantization_config": "the weights are quantized; only floating-point weights are read",
    "pad2square": "the model was trained on images padded to a square, but this code squashes images to a square",
}
"""Likely causes of an unimplemented value; without an entry, the checkpoint is an unsupported variant."""

MEANS_NOTHING: dict[str, str] = {
    "origin of the config": "_name_or_path _commit_hash transformers_version auto_map model_type finetuning_task "
    "task_specific_params tokenizer_class",
    "how weights are stored, which is read from their files": "torch_dtype dtype use_bfloat16 tie_encoder_decoder",
    "how the same values are computed": "attn_implementation _attn_implementation _attn_implementation_internal "
    "_attn_implementation_autoset use_flash_attn use_cache torchscript pretraining_tp",
    "additional return values": "return_dict output_hidden_states output_attentions output_scores "
    "return_dict_in_generate",
    "training only": "initializer_range initializer_factor drop_path_rate attention_dropout dropout hidden_dropout",
    "token sampling; we take the likeliest": "do_sample early_stopping num_beams num_beam_groups temperature "
    "diversity_penalty top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size max_length "
    "min_length encoder_no_repeat_ngram_size bad_words_ids num_return_sequences forced_bos_token_id "
    "forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens",
    "special tokens, from the template and tokenizer.json": "bos_token_id eos_token_id pad_token_id sep_token_id "
    "decoder_start_token_id prefix",
    "other kinds of model": "is_decoder cross_attention_hidden_size id2label label2id problem_type tf_legacy_loss",
}
"""Keys without effect in every transformers config, by reason."""

MEANS_NOTHING_IN: dict[str, str] = {
    # Unmerged LoRA has separate tensors, which loading reports. hidden_size and tie_word_embeddings are copies of
    # llm_config's. use_temporal is checked first, if there is no "pvc" object.
    "": "architectures use_llm_lora use_backbone_lora hidden_size tie_word_embeddings use_temporal",
    # All but the last two configure the experts that use_moe switches on.
    "vision_config": "capacity_factor eval_capacity_factor ep_size laux_allreduce moe_coeff_ratio "
    "moe_intermediate_size moe_output_scale noisy_gate_policy num_experts num_routed_experts num_shared_experts "
    "shared_expert_intermediate_size use_residual use_rts use_weighted_residual tie_word_embeddings architectures",
    # The first two configure the window that use_sliding_window switches on.
    "llm_config": "sliding_window max_window_layers is_llama_config",
    "pvc": "random_seed trained_on",
    "pvc.compressor": "",
}
"""Keys without effect in one section."""


def check_keys(data: Mapping[str, Any], read: Mapping[str, Collection[str]]) -> None:
    """Raise CheckpointError for values that are not implemented and for unknown keys.

    read   keys that the caller reads, by section
    """
    for path, values in _implemented().items():
        value = find(data, path)
        if value not in values:
            raise CheckpointError(
                said(path, value),
                expected=f"{json.dumps(values[0])}: no other value is implemented",
                cause=CAUSES.get(path, "the checkpoint is an unsupported variant of InternVL2"),
                fix="choose another checkpoint",
            )
    unknown = {path: value for section in ("", *SECTIONS) for path, value in _unknown(data, section, read)}
    if unknown:
        listed = ", ".join(f"{path} = {_short(value)}" for path, value in unknown.items())
        raise CheckpointError(
            f"{CONFIG_FILE} contains unknown keys: {listed}",
            expected="keys that are read, or that are known not to affect an answer",
            cause=_likely_of(unknown, read),
            fix=f"look up what they do in the code that came with the checkpoint; if nothing, delete them from "
            f"{CONFIG_FILE}",
        )


def _implemented() -> dict[str, tuple[object, ...]]:
    prefixes = ("", "vision_config.", "llm_config.")
    return IMPLEMENTED | {prefix + key: values for prefix in prefixes for key, values in IMPLEMENTED_ANYWHERE.items()}


def _unknown(data: Mapping[str, Any], section: str, read: Mapping[str, Collection[str]]) -> Iterator[tuple[str, Any]]:
    """Yield (path, value) of a section's unknown keys."""
    content = find(data, section) if section else data
    known = _known(section, read)
    for key, value in content.items() if isinstance(content, Mapping) else ():
        if key not in known and value is not None:
            yield _path(section, key), value


def _known(section: str, read: Mapping[str, Collection[str]]) -> set[str]:
    inside = {path for path in (*_implemented(), *SECTIONS) if path.rpartition(".")[0] == section}
    known = {path.rpartition(".")[2] for path in inside} | set(read.get(section, ()))
    ours = section.startswith("pvc")
    return known.union(MEANS_NOTHING_IN[section].split(), *(() if ours else map(str.split, MEANS_NOTHING.values())))


def _likely_of(paths: Collection[str], read: Mapping[str, Collection[str]]) -> str:
    """Guess why keys are unknown: one cause if it is the same for all, or one per key."""
    causes = {path: _likely(path, read) for path in paths}
    if len(set(causes.values())) == 1:
        return next(iter(causes.values()))
    return "; ".join(f"{path}: {cause}" for path, cause in causes.items())


def _likely(path: str, read: Mapping[str, Collection[str]]) -> str:
    """Guess why a key is unknown: misspelled, in the wrong section, or from another model."""
    section, _, key = path.rpartition(".")
    if near := get_close_matches(key, sorted(_known(section, read)), n=1, cutoff=0.8):
        return f"a misspelled key: did you mean {_path(section, near[0])}?"
    if places := [_path(other, key) for other, keys in read.items() if key in keys]:
        return f"the key is in the wrong section: it is read as {places[0]}"
    return "the checkpoint is newer than this program, or is another model"


def find(data: Mapping[str, Any], path: str) -> Any:
    """Return data["a"]["b"] for the path "a.b", or None if absent."""
    value: Any = data
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def said(path: str, value: object) -> str:
    """Describe the file's value at `path`, for a message."""
    return f"{CONFIG_FILE} does not set {path}" if value is None else f"{CONFIG_FILE} sets {path} = {_short(value)}"


def _path(section: str, key: str) -> str:
    return f"{section}.{key}" if section else key


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 160 else text[:150] + " ..."
