"""config.json: every configuration survives a round trip, InternVL2's file can be read, and no fact is guessed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pvc_ref import PVC, CompressorConfig, LLMConfig, PVCConfig, load, save
from pvc_ref.checkpoint.config_json import config_from_json, config_to_json
from pvc_ref.config import PRESETS
from pvc_ref.errors import CheckpointError

from .cases import KINDS, LLMS, TINY, internvl2_8b_json, plain_internvl2, with_compressor, with_llm


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
        use_thumbnail=False,
        template="Hermes-2",
    )
    configs["odd-token-grid"] = replace(TINY, compressor=CompressorConfig(num_tokens=8))
    return configs


@pytest.mark.parametrize("config", round_trip_configs().values(), ids=round_trip_configs())
def test_config_survives_config_json(config: PVCConfig) -> None:
    assert config_from_json(json.loads(json.dumps(config_to_json(config)))) == config


@pytest.mark.parametrize("llm", [replace(TINY.llm, qkv_bias=False), replace(LLMS["llama"], qkv_bias=True)])
def test_qkv_bias_that_config_json_cannot_say_is_refused_before_anything_is_written(
    llm: LLMConfig, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="llm.qkv_bias is"):
        save(PVC.random(with_llm(llm)), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_plain_internvl2_config_is_a_model_without_time() -> None:
    assert config_from_json(internvl2_8b_json()) == plain_internvl2(PVCConfig.preset("pvc-internvl2-8b"))
    first_release = config_from_json(internvl2_8b_json(ps_version="v1", downsample_ratio=0.25, use_temporal=False))
    assert first_release.compressor == CompressorConfig(kind="pixel_shuffle", num_tokens=64, shuffle="v1")


@pytest.mark.parametrize("name", ["internvl2_5-2b", "internvl3-1b"])
def test_released_config_is_the_preset_of_its_name(name: str) -> None:
    """The files are as transformers printed them in a PaddleMIX test (internvl2_5-2b) and a notebook (internvl3-1b)."""
    data = json.loads((Path(__file__).parent / "released" / f"{name}.json").read_text())
    assert config_from_json(data) == PVCConfig.preset(name)


def test_a_system_message_takes_the_place_of_the_templates() -> None:
    config = config_from_json(internvl2_8b_json(template="internvl2_5", system_message="You see."))
    assert config.system_message == "You see."
    assert config_from_json(config_to_json(config)) == config


def test_a_head_is_tied_only_where_the_config_says_so() -> None:
    assert not config_from_json(internvl2_8b_json(llm_config__tie_word_embeddings=...)).llm.tie_embeddings
    assert config_from_json(internvl2_8b_json(llm_config__tie_word_embeddings=True)).llm.tie_embeddings


@pytest.mark.parametrize(
    "changes", [{"architectures": ["InternVLForConditionalGeneration"]}, {"text_config": {}, "llm_config": ...}]
)
def test_transformers_own_layout_is_refused_by_name(changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="transformers' InternVL") as info:
        config_from_json(internvl2_8b_json(**changes))
    assert "without -hf" in info.value.fix


def test_qwen2_implies_qkv_biases() -> None:
    assert config_from_json(internvl2_8b_json(llm_config__architectures=["Qwen2ForCausalLM"])).llm.qkv_bias


def test_temporal_config_without_our_object_is_refused_with_what_was_found(tmp_path: Path) -> None:
    data = internvl2_8b_json(use_temporal=True, image_repeat_time=4, mlp_add_ops="adaln", ps_version="v1")
    (tmp_path / "config.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError) as info:
        load(tmp_path)
    for words in ("time mode", "image layout", "compressor", "sinusoid"):
        assert words in info.value.expected
    for found in ('"image_repeat_time": 4', '"mlp_add_ops": "adaln"', '"ps_version": "v1"'):
        assert found in info.value.what


@pytest.mark.parametrize(
    ("changes", "words", "expected"),
    [
        ({"vision_config__qk_normalization": True}, "vision_config.qk_normalization = true", "false"),
        ({"vision_config__qk_normalization": ...}, "does not set vision_config.qk_normalization", "false"),
        ({"vision_config__norm_type": "rms_norm"}, 'norm_type = "rms_norm"', '"layer_norm"'),
        ({"vision_config__hidden_act": "gelu_new"}, 'hidden_act = "gelu_new"', '"gelu"'),
        ({"select_layer": -2}, "select_layer = -2", "-1"),
        ({"image_repeat_time": 4}, "image_repeat_time = 4", "1"),
        ({"llm_config__bias": True}, "llm_config.bias = true", "false"),
        ({"llm_config__use_sliding_window": True}, "use_sliding_window = true", "false"),
        ({"llm_config__architectures": ["Phi3ForCausalLM"]}, "Phi3ForCausalLM", "one of"),
        (
            {"llm_config__architectures": []},
            "llm_config.architectures = []",
            "one of InternLM2ForCausalLM, Qwen2ForCausalLM, LlamaForCausalLM",
        ),
        ({"llm_config__rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling", "null"),
        ({"llm_config__rope_scaling": "dynamic"}, "rope_scaling", "null or"),
        ({"llm_config__vocab_size": ...}, "does not set llm_config.vocab_size", "a value of type int"),
        ({"llm_config__vocab_size": True}, "llm_config.vocab_size = true", "a value of type int"),
        (
            {"llm_config__num_key_value_heads": 5},
            "num_heads = 32 is not a multiple of num_kv_heads = 5",
            "a multiple, for example 30",
        ),
        ({"force_image_size": 224}, "force_image_size = 224 but vision_config.image_size = 448", "the same"),
        ({"downsample_ratio": 0.3}, "downsample_ratio = 0.3, which makes 92.16 tokens", "92 tokens"),
        ({"template": "phi3-chat"}, "template is 'phi3-chat'", "one of"),
        ({"pvc": {"num_temporal_layers": 8}}, "does not set pvc.sinusoid_size", "a value of type int"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_config_fact_that_is_not_implemented_is_refused_by_name(
    changes: dict[str, Any], words: str, expected: str
) -> None:
    with pytest.raises(CheckpointError) as info:
        config_from_json(internvl2_8b_json(**changes))
    assert words in info.value.what and info.value.expected.startswith(expected)


def test_compressor_object_that_contradicts_downsample_ratio_is_refused() -> None:
    data = config_to_json(TINY)
    data["pvc"]["compressor"]["num_tokens"] = 16
    with pytest.raises(CheckpointError, match="makes 4 tokens per frame") as info:
        config_from_json(data)
    assert info.value.expected == "16 tokens"
