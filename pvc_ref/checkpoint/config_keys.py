"""Every key of config.json that is known: read, of one value only, or of no meaning for what the model answers.

A key that is none of these is an error, whatever its value: `false` may switch off what this model does, as
`use_thumbnail` does. Only null is the same as absent.
Source: config.json of InternVL2, InternVL2.5 and InternVL3, and what transformers 4.37 to 5 writes of every config.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from ..errors import CheckpointError

CONFIG_FILE = "config.json"
SECTIONS = ("vision_config", "llm_config", "pvc", "pvc.compressor")
"""The objects of the file beside the whole, which is ""."""

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
"""Facts of which one value is implemented, written first; None where the fact may be absent."""

IMPLEMENTED_ANYWHERE: dict[str, tuple[object, ...]] = {
    "pruned_heads": ({}, None),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "chunk_size_feed_forward": (0, None),
}
"""The same, of every config of transformers: at the top, in vision_config and in llm_config."""

CAUSES = {
    "vision_config.qk_normalization": "the tower is InternViT-6B, which InternVL2-26B and larger have",
    "vision_config.norm_type": "the tower is InternViT-6B, which InternVL2-26B and larger have",
    "quantization_config": "the weights are quantized; this model reads floats",
    "llm_config.quantization_config": "the weights are quantized; this model reads floats",
    "pad2square": "the model was trained on images padded to a square, and ours are squashed to one",
}
"""Why a fact may have another value; the others are of a variant that this model does not cover."""

MEANS_NOTHING: dict[str, str] = {
    "where a config comes from": "_name_or_path _commit_hash transformers_version auto_map model_type finetuning_task "
    "task_specific_params tokenizer_class",
    "how weights are stored, which their files say": "torch_dtype dtype use_bfloat16 tie_encoder_decoder",
    "how the same values are computed": "attn_implementation _attn_implementation _attn_implementation_internal "
    "_attn_implementation_autoset use_flash_attn use_cache torchscript pretraining_tp",
    "what a call returns beside": "return_dict output_hidden_states output_attentions output_scores "
    "return_dict_in_generate",
    "training only": "initializer_range initializer_factor drop_path_rate attention_dropout dropout hidden_dropout",
    "how others choose a token; we take the best": "do_sample early_stopping num_beams num_beam_groups temperature "
    "diversity_penalty top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size max_length "
    "min_length encoder_no_repeat_ngram_size bad_words_ids num_return_sequences forced_bos_token_id "
    "forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens",
    "special tokens, which template and tokenizer.json say": "bos_token_id eos_token_id pad_token_id sep_token_id "
    "decoder_start_token_id prefix",
    "other kinds of model": "is_decoder cross_attention_hidden_size id2label label2id problem_type tf_legacy_loss",
}
"""In every config of transformers: why, and the keys."""

MEANS_NOTHING_IN: dict[str, str] = {
    # LoRA that was not merged has tensors of its own, which loading names; hidden_size and tie_word_embeddings are
    # copies of llm_config's. use_temporal is asked first, where there is no "pvc".
    "": "architectures use_llm_lora use_backbone_lora hidden_size tie_word_embeddings use_temporal",
    # All but the last speak of the experts that use_moe asks for.
    "vision_config": "capacity_factor eval_capacity_factor ep_size laux_allreduce moe_coeff_ratio "
    "moe_intermediate_size moe_output_scale noisy_gate_policy num_experts num_routed_experts num_shared_experts "
    "shared_expert_intermediate_size use_residual use_rts use_weighted_residual tie_word_embeddings architectures",
    # The first two speak of the window that use_sliding_window asks for.
    "llm_config": "sliding_window max_window_layers is_llama_config",
    "pvc": "random_seed trained_on",
    "pvc.compressor": "",
}
"""The same, of one section each."""


def check_keys(data: Mapping[str, Any], read: Mapping[str, Collection[str]]) -> None:
    """Raise CheckpointError for a fact of a value that is not implemented, and for keys that are not known.

    read   by section, the keys whose values the caller takes
    """
    for path, values in _implemented().items():
        value = find(data, path)
        if value not in values:
            raise CheckpointError(
                said(path, value),
                expected=f"{json.dumps(values[0])}: nothing else is implemented",
                cause=CAUSES.get(path, "the checkpoint is a variant of InternVL2 that this model does not cover"),
                fix="choose another checkpoint",
            )
    unknown = {path: value for section in ("", *SECTIONS) for path, value in _unknown(data, section, read)}
    if unknown:
        listed = ", ".join(f"{path} = {_short(value)}" for path, value in unknown.items())
        raise CheckpointError(
            f"{CONFIG_FILE} says {listed}, which is not known here",
            expected="keys that are read, or that are known to mean nothing for an answer",
            cause=_likely(next(iter(unknown)), read),
            fix=f"look up what it does in the code that came with the checkpoint; if nothing, delete it from "
            f"{CONFIG_FILE}",
        )


def _implemented() -> dict[str, tuple[object, ...]]:
    prefixes = ("", "vision_config.", "llm_config.")
    return IMPLEMENTED | {prefix + key: values for prefix in prefixes for key, values in IMPLEMENTED_ANYWHERE.items()}


def _unknown(data: Mapping[str, Any], section: str, read: Mapping[str, Collection[str]]) -> Iterator[tuple[str, Any]]:
    """(path, value) of the keys of a section that are not known."""
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


def _likely(path: str, read: Mapping[str, Collection[str]]) -> str:
    """The cause of an unknown key: a slip where it is close to a known one or stands in another section."""
    section, _, key = path.rpartition(".")
    if near := get_close_matches(key, sorted(_known(section, read)), n=1, cutoff=0.8):
        return f"a slip of the pen: did you mean {_path(section, near[0])}?"
    if places := [_path(other, key) for other, keys in read.items() if key in keys]:
        return f"it stands in the wrong place: it is read as {places[0]}"
    return "the checkpoint is newer than this program, or of another model"


def find(data: Mapping[str, Any], path: str) -> Any:
    """data["a"]["b"] for the path "a.b", None where it is absent."""
    value: Any = data
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def said(path: str, value: object) -> str:
    """What the file says at `path`, for a message."""
    return f"{CONFIG_FILE} does not say {path}" if value is None else f"{CONFIG_FILE} says {path} = {_short(value)}"


def _path(section: str, key: str) -> str:
    return f"{section}.{key}" if section else key


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 160 else text[:150] + " ..."
