"""config.json, read and written: InternVL2's facts, and one object of our own, "pvc".

Without that object the file describes a plain InternVL2. A fact that this model does not implement is refused by name,
and none is guessed.
Source: config.json of InternVL2-1B and InternVL2-8B.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from ..config import CompressorConfig, LLMConfig, LLMFamily, PVCConfig, VisionConfig
from ..errors import CheckpointError, ConfigError

CONFIG_FILE = "config.json"
FAMILIES: dict[str, LLMFamily] = {
    "InternLM2ForCausalLM": "internlm2",
    "Qwen2ForCausalLM": "qwen2",
    "LlamaForCausalLM": "llama",
}
IMPLEMENTED: dict[str, tuple[object, ...]] = {
    "select_layer": (-1, None),
    "mlp_add_ops": (None,),
    "tile_repeat_way": (None,),
    "image_repeat_time": (1, None),
    "video_repeat_time": (1, None),
    "vision_config.qk_normalization": (False,),  # absent means True in InternVL2
    "vision_config.norm_type": ("layer_norm",),  # absent means rms_norm in InternVL2
    "vision_config.hidden_act": ("gelu", None),
    "vision_config.num_channels": (3, None),
    "llm_config.hidden_act": ("silu", None),
    "llm_config.bias": (False, None),
    "llm_config.attention_bias": (False, None),
    "llm_config.mlp_bias": (False, None),
    "llm_config.use_sliding_window": (False, None),
}
"""Facts of a config.json of which one value is implemented, written first; None where it may be absent."""

PVC_KEYS = ("use_", "mlp_", "tile_", "image_", "video_", "temporal_", "downsample_", "ps_")
"""Beginnings of the keys that PVC's config class has beside InternVL2's, shown when they are not enough."""


def config_to_json(config: PVCConfig) -> dict[str, Any]:
    """`config` as the content of a config.json. Raises CheckpointError if its llm.qkv_bias is not the family's."""
    vision, compressor, llm = config.vision, config.compressor, config.llm
    if llm.qkv_bias != (llm.family == "qwen2"):
        raise CheckpointError(
            f"llm.qkv_bias is {llm.qkv_bias} in the {llm.family} family, which {CONFIG_FILE} cannot say",
            expected=f"{not llm.qkv_bias}: in a checkpoint qwen2 always has qkv biases and the others never",
        )
    plain = vision.num_temporal_layers == 0 and compressor.kind == "pixel_shuffle"
    llm_config: dict[str, Any] = {
        "architectures": [next(name for name, family in FAMILIES.items() if family == llm.family)],
        "hidden_size": llm.hidden_size,
        "num_hidden_layers": llm.num_layers,
        "num_attention_heads": llm.num_heads,
        "num_key_value_heads": llm.num_kv_heads,
        "intermediate_size": llm.mlp_size,
        "vocab_size": llm.vocab_size,
        "rope_theta": llm.rope_theta,
        "rms_norm_eps": llm.rms_norm_eps,
        "max_position_embeddings": llm.max_positions,
        "tie_word_embeddings": llm.tie_embeddings,
    }
    if llm.attention_head_dim * llm.num_heads != llm.hidden_size:
        llm_config["head_dim"] = llm.attention_head_dim
    return {
        "architectures": ["InternVLChatModel" if plain else "PVC"],
        "vision_config": {
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "hidden_size": vision.hidden_size,
            "num_hidden_layers": vision.num_layers,
            "num_attention_heads": vision.num_heads,
            "intermediate_size": vision.mlp_size,
            "qkv_bias": vision.qkv_bias,
            "layer_norm_eps": vision.layer_norm_eps,
            "qk_normalization": False,
            "norm_type": "layer_norm",
            "hidden_act": "gelu",
        },
        "llm_config": llm_config,
        "force_image_size": vision.image_size,
        "downsample_ratio": math.sqrt(compressor.num_tokens / vision.num_patches),
        "ps_version": compressor.shuffle,
        "template": config.template,
        "max_dynamic_patch": config.max_image_tiles,
        "select_layer": -1,
        "pvc": {
            "num_temporal_layers": vision.num_temporal_layers,
            "sinusoid_size": vision.sinusoid_size,
            "compressor": {
                "kind": compressor.kind,
                "num_tokens": compressor.num_tokens,
                "num_q_former_layers": compressor.num_q_former_layers,
            },
            "time_mode": config.time_mode,
            "trained_frames": config.trained_frames,
            "num_image_repeats": config.num_image_repeats,
            "image_layout": config.image_layout,
        },
    }


def config_from_json(data: Mapping[str, Any]) -> PVCConfig:
    """The configuration that the content of a config.json describes. Raises CheckpointError that names the fact."""
    _check_implemented(data)
    try:
        return _config_from_json(data)
    except ConfigError as error:
        raise CheckpointError(
            f"{CONFIG_FILE} contradicts itself: {error.what}", expected=error.expected, cause=error.cause, fix=error.fix
        ) from error


def _config_from_json(data: Mapping[str, Any]) -> PVCConfig:
    image_size = _fact(data, "vision_config.image_size", int)
    if data.get("force_image_size") not in (None, image_size):
        raise CheckpointError(
            f"{CONFIG_FILE} says force_image_size = {data['force_image_size']} but "
            f"vision_config.image_size = {image_size}",
            expected="the same number: resized position embeddings are not implemented",
        )
    temporal: dict[str, Any] = {"num_temporal_layers": 0}
    if "pvc" in data:
        temporal = {key: _fact(data, f"pvc.{key}", int) for key in ("num_temporal_layers", "sinusoid_size")}
    vision = VisionConfig(
        image_size=image_size,
        patch_size=_fact(data, "vision_config.patch_size", int),
        hidden_size=_fact(data, "vision_config.hidden_size", int),
        num_layers=_fact(data, "vision_config.num_hidden_layers", int),
        num_heads=_fact(data, "vision_config.num_attention_heads", int),
        mlp_size=_fact(data, "vision_config.intermediate_size", int),
        qkv_bias=_fact(data, "vision_config.qkv_bias", bool),
        layer_norm_eps=_fact(data, "vision_config.layer_norm_eps", float),
        **temporal,
    )
    ratio = _fact(data, "downsample_ratio", float)
    num_tokens = vision.num_patches * ratio**2
    compressor: dict[str, Any] = {"kind": "pixel_shuffle", "num_tokens": round(num_tokens)}
    whole: dict[str, Any] = {"num_image_repeats": 1}
    tiles = {"max_image_tiles": _fact(data, "max_dynamic_patch", int)} if "max_dynamic_patch" in data else {}
    if "pvc" in data:
        kinds = {"kind": str, "num_tokens": int, "num_q_former_layers": int}
        compressor = {key: _fact(data, f"pvc.compressor.{key}", kind) for key, kind in kinds.items()}
        kinds = {"time_mode": str, "trained_frames": int, "num_image_repeats": int, "image_layout": str}
        whole = {key: _fact(data, f"pvc.{key}", kind) for key, kind in kinds.items()}
    if not math.isclose(num_tokens, compressor["num_tokens"], rel_tol=1e-6):
        raise CheckpointError(
            f"{CONFIG_FILE} says downsample_ratio = {ratio}, which makes {num_tokens:g} tokens of a frame",
            expected=f"{compressor['num_tokens']}",
            cause="one of image_size, patch_size, downsample_ratio and pvc.compressor is wrong",
        )
    return PVCConfig(
        vision=vision,
        compressor=CompressorConfig(shuffle=_fact(data, "ps_version", str), **compressor),
        llm=_llm_from_json(data),
        template=_fact(data, "template", str),
        **whole,
        **tiles,
    )


def _llm_from_json(data: Mapping[str, Any]) -> LLMConfig:
    architectures = _fact(data, "llm_config.architectures", list)
    family = FAMILIES.get(str(architectures[0])) if len(architectures) == 1 else None
    if family is None:
        raise CheckpointError(
            f"{CONFIG_FILE} says llm_config.architectures = {json.dumps(architectures)}",
            expected=f"one of {', '.join(FAMILIES)}: other LLMs are not implemented",
            fix="choose a checkpoint with one of these",
        )
    sizes = {
        "hidden_size": "hidden_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "num_kv_heads": "num_key_value_heads",
        "mlp_size": "intermediate_size",
        "vocab_size": "vocab_size",
        "max_positions": "max_position_embeddings",
    }
    if _find(data, "llm_config.head_dim") is not None:
        sizes["head_dim"] = "head_dim"
    return LLMConfig(
        family=family,
        qkv_bias=family == "qwen2",
        tie_embeddings=_fact(data, "llm_config.tie_word_embeddings", bool),
        rope_theta=_fact(data, "llm_config.rope_theta", float),
        rms_norm_eps=_fact(data, "llm_config.rms_norm_eps", float),
        **{ours: _fact(data, f"llm_config.{name}", int) for ours, name in sizes.items()},
    )


def _check_implemented(data: Mapping[str, Any]) -> None:
    if data.get("use_temporal") and "pvc" not in data:
        keys = [key for key in data if key.startswith(PVC_KEYS)]
        raise CheckpointError(
            f'{CONFIG_FILE} says use_temporal = true but has no "pvc" object. Found: '
            f"{json.dumps({key: data[key] for key in keys})}",
            expected="which layers are temporal, the time mode, the image layout and the tensor names; none is guessed",
            fix="read them from the code and weights that came with the file, and add an object "
            '"pvc" as save_model writes it',
        )
    for path in ("vision_config", "llm_config"):
        _fact(data, path, dict)
    for path, values in IMPLEMENTED.items():
        value = _find(data, path)
        if value not in values:
            said = f"does not say {path}" if value is None else f"says {path} = {json.dumps(value)}"
            raise CheckpointError(
                f"{CONFIG_FILE} {said}",
                expected=f"{json.dumps(values[0])}: nothing else is implemented",
                cause="the checkpoint is a variant of InternVL2 that this model does not cover",
            )
    # Dynamic NTK changes nothing below max_position_embeddings, which generation never exceeds.
    scaling = _find(data, "llm_config.rope_scaling")
    if scaling is not None and (not isinstance(scaling, dict) or scaling.get("type") != "dynamic"):
        raise CheckpointError(
            f"{CONFIG_FILE} says llm_config.rope_scaling = {json.dumps(scaling)}",
            expected='null or the type "dynamic": other scalings change every position and are not implemented',
        )


def _find(data: Mapping[str, Any], path: str) -> Any:
    """data["a"]["b"] for the path "a.b", None where it is absent."""
    value: Any = data
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _fact(data: Mapping[str, Any], path: str, kind: type) -> Any:
    """The value at `path`, which must be there and be a `kind`. An integer is a float too; true is no integer."""
    value = _find(data, path)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        said = f"does not say {path}" if value is None else f"says {path} = {json.dumps(value)}"
        raise CheckpointError(
            f"{CONFIG_FILE} {said}. Its keys are {', '.join(sorted(data)) or 'none'}",
            expected=kind.__name__,
            fix="check that it is the file of an InternVL2 or PVC checkpoint",
        )
    return value
