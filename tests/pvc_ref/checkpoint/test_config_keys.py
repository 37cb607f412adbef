"""config.json, key by key: each is read, refused by name, known to be irrelevant, or an error."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pvc_ref import PVC, load, save
from pvc_ref.checkpoint.config_json import config_from_json, config_to_json
from pvc_ref.errors import CheckpointError

from .cases import TINY, internvl2_8b_json

V4_DUMP: dict[str, Any] = {
    "_name_or_path": "internlm/internlm2-chat-7b", "add_cross_attention": False, "attn_implementation": "eager",
    "bad_words_ids": None, "begin_suppress_tokens": None, "bos_token_id": 1, "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None, "decoder_start_token_id": None, "diversity_penalty": 0.0, "do_sample": False,
    "early_stopping": False, "encoder_no_repeat_ngram_size": 0, "eos_token_id": 2, "finetuning_task": None,
    "exponential_decay_length_penalty": None, "forced_bos_token_id": None, "forced_eos_token_id": None,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "initializer_range": 0.02, "is_decoder": False,
    "is_encoder_decoder": False, "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "length_penalty": 1.0, "max_length": 20,
    "min_length": 0, "model_type": "internlm2", "no_repeat_ngram_size": 0, "num_beam_groups": 1, "num_beams": 1,
    "num_return_sequences": 1, "output_attentions": False, "output_hidden_states": False, "output_scores": False,
    "pad_token_id": 2, "prefix": None, "problem_type": None, "pruned_heads": {}, "remove_invalid_values": False,
    "repetition_penalty": 1.0, "return_dict": True, "return_dict_in_generate": False, "sep_token_id": None,
    "suppress_tokens": None, "task_specific_params": None, "temperature": 1.0, "tf_legacy_loss": False,
    "tie_encoder_decoder": False, "tokenizer_class": None, "top_k": 50, "top_p": 1.0, "torch_dtype": "bfloat16",
    "torchscript": False, "transformers_version": "4.37.2", "typical_p": 1.0, "use_bfloat16": True, "use_cache": True,
}  # fmt: skip
"""The keys that transformers 4.37 writes for every nested config."""
QWEN2_V5: dict[str, Any] = {
    "attention_dropout": 0.0, "dtype": "bfloat16", "layer_types": ["full_attention"] * 2, "max_window_layers": 28,
    "sliding_window": None, "use_sliding_window": False, "model_type": "qwen2", "transformers_version": "5.0.0",
}  # fmt: skip
WHOLE: dict[str, Any] = {
    "_commit_hash": None, "auto_map": {"AutoModel": "modeling_internvl_chat.InternVLChatModel"},
    "min_dynamic_patch": 1, "model_type": "internvl_chat", "pad2square": False, "torch_dtype": "bfloat16",
    "transformers_version": None, "use_backbone_lora": 0, "use_llm_lora": 0, "hidden_size": 4096, "image_fold": None,
    "tie_word_embeddings": False,
}  # fmt: skip
VISION: dict[str, Any] = {
    "attention_dropout": 0.0, "drop_path_rate": 0.1, "dropout": 0.0, "initializer_factor": 1.0, "use_flash_attn": True,
    "model_type": "intern_vit_6b", "use_moe": False, "num_experts": 8, "moe_intermediate_size": 768, "use_rts": False,
}  # fmt: skip


def refused(**changes: Any) -> CheckpointError:
    with pytest.raises(CheckpointError) as info:
        config_from_json(internvl2_8b_json(**changes))
    return info.value


def test_all_that_released_configs_say_beside_is_known_to_mean_nothing() -> None:
    data = internvl2_8b_json()
    plain = config_from_json(data)
    data |= WHOLE
    data["vision_config"] |= V4_DUMP | VISION
    data["llm_config"] |= V4_DUMP | QWEN2_V5
    assert config_from_json(data) == plain


@pytest.mark.parametrize("section", ["", "vision_config", "llm_config", "pvc", "pvc__compressor"])
@pytest.mark.parametrize("value", [False, 0, [], 0.5, {"a": 1}], ids=str)
def test_a_key_that_is_not_known_is_an_error_whatever_its_value(section: str, value: object) -> None:
    data = config_to_json(TINY)
    place = data
    for part in section.split("__") if section else ():
        place = place[part]
    place["logit_scale"] = value
    with pytest.raises(CheckpointError) as info:
        config_from_json(data)
    path = f"{section.replace('__', '.')}.logit_scale".lstrip(".")
    assert f"unknown keys: {path} = {json.dumps(value)}" in info.value.what
    assert info.value.expected and info.value.cause and "delete them" in info.value.fix
    place["logit_scale"] = None
    assert config_from_json(data) == TINY


def test_all_keys_that_are_not_known_are_told_at_once() -> None:
    error = refused(one=1, llm_config__two="2")
    assert 'one = 1, llm_config.two = "2"' in error.what


def test_a_typo_and_a_wrong_place_are_told() -> None:
    assert "did you mean use_thumbnail?" in refused(use_thumbnails=False).cause
    assert "it is read as vision_config.patch_size" in refused(llm_config__patch_size=14).cause


def test_each_of_several_unknown_keys_has_its_own_cause() -> None:
    both = refused(use_thumbnails=False, llm_config__patch_size=14).cause
    assert "use_thumbnails: a misspelled key" in both and "llm_config.patch_size: the key is in the wrong" in both
    assert refused(one=1, two=2).cause == refused(one=1).cause


@pytest.mark.parametrize(
    ("changes", "words", "expected"),
    [
        ({"min_dynamic_patch": 2}, "min_dynamic_patch = 2", "1"),
        ({"pad2square": True}, "pad2square = true", "false"),
        ({"quantization_config": {"bits": 4}}, 'quantization_config = {"bits": 4}', "null"),
        ({"vision_config__use_moe": True}, "use_moe = true", "false"),
        ({"llm_config__pruned_heads": {"0": [1]}}, "pruned_heads", "{}"),
        ({"llm_config__layer_types": ["sliding_attention"]}, "llm_config.layer_types", '"full_attention"'),
        ({"llm_config__layer_types": "full_attention"}, "llm_config.layer_types", '"full_attention"'),
        ({"use_thumbnail": 1}, "use_thumbnail = 1", "a value of type bool"),
        ({"dynamic_image_size": "no"}, "dynamic_image_size", "a value of type bool"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_fact_that_is_not_implemented_is_refused_by_name(changes: dict[str, Any], words: str, expected: str) -> None:
    error = refused(**changes)
    assert words in error.what and error.expected.startswith(expected) and error.fix


def test_the_tower_of_6b_and_phi_3_are_refused_by_their_names() -> None:
    tower = {"vision_config__qk_normalization": True, "vision_config__norm_type": "rms_norm"}
    assert "InternViT-6B, which InternVL2-26B" in refused(**tower).cause
    assert "InternViT-6B" in refused(vision_config__norm_type="rms_norm").cause
    phi = {"llm_config__architectures": ["Phi3ForCausalLM"], "llm_config__embd_pdrop": 0.0}
    assert "Phi-3, as in InternVL2-4B" in refused(**phi).cause


# -- how images are cut ----------------------------------------------------------------------------------------


def test_how_images_are_cut_is_read() -> None:
    def cut(**changes: Any) -> tuple[int, bool]:
        config = config_from_json(internvl2_8b_json(**changes))
        return config.max_image_tiles, config.use_thumbnail

    assert cut(max_dynamic_patch=12, use_thumbnail=True) == (12, True)
    assert cut(max_dynamic_patch=12, use_thumbnail=False) == (12, False)
    assert cut(max_dynamic_patch=12, dynamic_image_size=False) == (1, True)
    assert cut() == cut(use_thumbnail=None, max_dynamic_patch=None, dynamic_image_size=None) == (6, True)


def test_a_model_without_thumbnail_is_saved_and_loaded_as_one(tmp_path: Path) -> None:
    save(PVC.random(replace(TINY, use_thumbnail=False)), tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["use_thumbnail"] is False
    assert not load(tmp_path / "model").config.use_thumbnail


# -- RoPE ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}, "rope_theta": ..., "rope_scaling": ...},
        {"rope_parameters": {"rope_theta": 1000000, "rope_type": "default"}, "rope_scaling": None},
        {"rope_parameters": {"rope_theta": 1e6, "rope_type": "dynamic", "factor": 2.0}, "rope_theta": 1000000},
        {"rope_scaling": {"rope_type": "default"}},
        {"rope_scaling": {"type": "default", "rope_type": "default"}},
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 32768}},
        {"rope_scaling": {"rope_theta": 1e6, "partial_rotary_factor": 1.0}},
        {"rope_scaling": None, "partial_rotary_factor": 1.0},
    ],
    ids=str,
)
def test_both_spellings_of_rope_say_the_same(rope: dict[str, Any]) -> None:
    changes = {f"llm_config__{key}": value for key, value in rope.items()}
    assert config_from_json(internvl2_8b_json(**changes)) == config_from_json(internvl2_8b_json())


@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("kind", ["yarn", "linear", "longrope", "su", "llama3"])
@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_rope_that_moves_every_position_is_refused_in_both_spellings(spelling: str, kind: str, key: str) -> None:
    rope = {key: kind, "factor": 4.0, "rope_theta": 1000000}
    error = refused(**{"llm_config__rope_scaling": None} | {f"llm_config__{spelling}": rope})
    assert f"llm_config.{spelling}" in error.what and kind in error.what and "not implemented" in error.expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"rope_parameters": {"rope_theta": 10000.0}},
            "1000000 but llm_config.rope_parameters.rope_theta = 10000.0",
        ),
        ({"rope_parameters": {"rope_type": "default"}}, "rope_scaling.type = 'dynamic' but"),
        ({"rope_scaling": {"type": "default", "rope_type": "dynamic"}}, "type = 'default' but"),
        ({"rope_theta": ...}, "does not set llm_config.rope_theta"),
        ({"rope_theta": True}, "rope_theta = true"),
        ({"partial_rotary_factor": 0.5}, "llm_config.partial_rotary_factor = 0.5"),
        ({"rope_scaling": {"partial_rotary_factor": 0.5}}, "rope_scaling.partial_rotary_factor = 0.5"),
        ({"rope_scaling": {"type": "dynamic", "original_max_position_embeddings": 4096}}, "embeddings = 4096"),
        ({"rope_scaling": {"type": "dynamic", "attention_factor": 2.0}}, "attention_factor"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1000000}}}, "full_attention"),
        ({"rope_interleaved": True}, "rope_interleaved = true"),
    ],
    ids=str,
)
def test_rope_that_contradicts_itself_or_is_not_implemented_is_refused(changes: dict[str, Any], words: str) -> None:
    error = refused(**{f"llm_config__{key}": value for key, value in changes.items()})
    assert words in error.what and error.expected and error.fix
