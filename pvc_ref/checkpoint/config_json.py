"""config.json <-> PVCConfig, in InternVL2's keys.

One table per section serves reading and writing. The file has one object that is ours, "pvc"; without it, it describes
a plain InternVL2. Settings that are not implemented are rejected by name, and nothing is guessed: config_keys.py lists
every known key, rope.py reads both formats of RoPE's parameters.
Source: config.json of InternVL2-1B and InternVL2-8B.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from ..config import CompressorConfig, LLMConfig, LLMFamily, PVCConfig, VisionConfig
from ..errors import CheckpointError, ConfigError
from . import rope
from .config_keys import CONFIG_FILE, check_keys, find, said

# Name in our configuration: key in the file, and its type.
VISION: dict[str, tuple[str, type]] = {
    "image_size": ("image_size", int),
    "patch_size": ("patch_size", int),
    "hidden_size": ("hidden_size", int),
    "num_layers": ("num_hidden_layers", int),
    "num_heads": ("num_attention_heads", int),
    "mlp_size": ("intermediate_size", int),
    "qkv_bias": ("qkv_bias", bool),
    "layer_norm_eps": ("layer_norm_eps", float),
}
LLM: dict[str, tuple[str, type]] = {
    "hidden_size": ("hidden_size", int),
    "num_layers": ("num_hidden_layers", int),
    "num_heads": ("num_attention_heads", int),
    "num_kv_heads": ("num_key_value_heads", int),
    "mlp_size": ("intermediate_size", int),
    "vocab_size": ("vocab_size", int),
    "rms_norm_eps": ("rms_norm_eps", float),
    "max_positions": ("max_position_embeddings", int),
}
HEAD_DIM = {"head_dim": ("head_dim", int)}  # written only where it is not hidden_size / num_heads
TIED = {"tie_embeddings": ("tie_word_embeddings", bool)}
"""Not in every file: transformers omits values that are its class's default, here False. A tied model stores no
separate head, so with a wrong default it does not load."""
FAMILIES: dict[str, LLMFamily] = {
    "InternLM2ForCausalLM": "internlm2",
    "Qwen2ForCausalLM": "qwen2",
    "LlamaForCausalLM": "llama",
}

# The "pvc" object, with our names.
PVC_VISION = {"num_temporal_layers": int, "sinusoid_size": int}
PVC_COMPRESSOR = {"kind": str, "num_tokens": int, "num_q_former_layers": int}
PVC_WHOLE = {"time_mode": str, "trained_frames": int, "num_image_repeats": int, "image_layout": str}

READ: dict[str, tuple[str, ...]] = {
    "": (
        *("downsample_ratio", "force_image_size", "ps_version", "template", "system_message"),
        *("dynamic_image_size", "max_dynamic_patch", "use_thumbnail"),
    ),
    "vision_config": tuple(key for key, _ in VISION.values()),
    "llm_config": ("architectures", "layer_types", *rope.KEYS, *(key for key, _ in (LLM | HEAD_DIM | TIED).values())),
    "pvc": ("compressor", *PVC_VISION, *PVC_WHOLE),
    "pvc.compressor": tuple(PVC_COMPRESSOR),
}
"""Keys whose values are read here, by section."""

PVC_KEYS = ("use_", "mlp_", "tile_", "image_", "video_", "temporal_", "downsample_", "ps_")
"""Prefixes of the keys that PVC's config class adds to InternVL2's; shown when they do not suffice."""


def config_to_json(config: PVCConfig) -> dict[str, Any]:
    """Return `config` as the content of a config.json. Raises CheckpointError if llm.qkv_bias is not the family's."""
    vision, compressor, llm = config.vision, config.compressor, config.llm
    if llm.qkv_bias != (llm.family == "qwen2"):
        raise CheckpointError(
            f"llm.qkv_bias is {llm.qkv_bias} in the {llm.family} family, which {CONFIG_FILE} cannot express",
            expected=f"llm.qkv_bias {not llm.qkv_bias}: in a checkpoint qwen2 always has qkv biases, the others never",
            fix="change llm.qkv_bias or llm.family before saving",
        )
    plain = vision.num_temporal_layers == 0 and compressor.kind == "pixel_shuffle"
    has_own_head_dim = llm.attention_head_dim * llm.num_heads != llm.hidden_size
    return {
        "architectures": ["InternVLChatModel" if plain else "PVC"],
        "vision_config": {
            **_written(vision, VISION),
            "qk_normalization": False,
            "norm_type": "layer_norm",
            "hidden_act": "gelu",
        },
        "llm_config": {
            "architectures": [next(name for name, family in FAMILIES.items() if family == llm.family)],
            **_written(llm, LLM | TIED | (HEAD_DIM if has_own_head_dim else {})),
            "rope_theta": llm.rope_theta,
        },
        "force_image_size": vision.image_size,
        "downsample_ratio": math.sqrt(compressor.num_tokens / vision.num_patches),
        "ps_version": compressor.shuffle,
        "template": config.template,
        **({} if config.system_message is None else {"system_message": config.system_message}),
        "max_dynamic_patch": config.max_image_tiles,
        "use_thumbnail": config.use_thumbnail,
        "select_layer": -1,
        "pvc": {
            **{name: getattr(vision, name) for name in PVC_VISION},
            "compressor": {name: getattr(compressor, name) for name in PVC_COMPRESSOR},
            **{name: getattr(config, name) for name in PVC_WHOLE},
        },
    }


def _written(part: object, table: Mapping[str, tuple[str, type]]) -> dict[str, Any]:
    return {key: getattr(part, name) for name, (key, _) in table.items()}


def config_from_json(data: Mapping[str, Any]) -> PVCConfig:
    """Read the configuration from the content of a config.json. Raises CheckpointError that names the faulty key."""
    _check_implemented(data)
    try:
        return _config_from_json(data)
    except ConfigError as error:
        raise CheckpointError(
            f"{CONFIG_FILE} contradicts itself: {error.what}", expected=error.expected, cause=error.cause, fix=error.fix
        ) from error


def _check_implemented(data: Mapping[str, Any]) -> None:
    if data.get("use_temporal") and "pvc" not in data:
        found = {key: value for key, value in data.items() if key.startswith(PVC_KEYS)}
        raise CheckpointError(
            f'{CONFIG_FILE} sets use_temporal = true but has no "pvc" object; its PVC keys are {json.dumps(found)}',
            expected="the time mode, image layout, compressor and sinusoid size, which are never guessed",
            cause="the file comes from the released PVC, whose keys do not contain them",
            fix='find them in the code and weights that came with the file, and add a "pvc" object as '
            "pvc_ref.save writes it",
        )
    if "text_config" in data or "InternVLForConditionalGeneration" in str(data.get("architectures")):
        raise CheckpointError(
            f"{CONFIG_FILE} belongs to transformers' InternVL, which has other names and another layout",
            expected="the layout in which OpenGVLab released the model, with llm_config in its config.json",
            cause="the repository's name ends with -hf",
            fix="use the repository of the same name without -hf",
        )
    for path in ("vision_config", "llm_config"):
        _fact(data, path, dict)
    _family(data)  # first: with another LLM, check_keys would report that LLM's keys instead
    check_keys(data, READ)
    _check_layer_types(data)


def _check_layer_types(data: Mapping[str, Any]) -> None:
    """Check transformers 5's list of the positions that each LLM layer sees."""
    path, types = "llm_config.layer_types", find(data, "llm_config.layer_types")
    if types is not None and (not isinstance(types, list) or set(map(str, types)) - {"full_attention"}):
        raise CheckpointError(
            said(path, types),
            expected='"full_attention" for every layer: nothing else is implemented',
            cause="some layers of the LLM see only a window of positions",
            fix="choose another checkpoint",
        )


def _config_from_json(data: Mapping[str, Any]) -> PVCConfig:
    vision = _vision_from_json(data)
    ratio = _fact(data, "downsample_ratio", float)
    num_tokens = vision.num_patches * ratio**2
    compressor: dict[str, Any] = {"kind": "pixel_shuffle", "num_tokens": round(num_tokens)}
    whole: dict[str, Any] = {"num_image_repeats": 1}
    if "pvc" in data:
        compressor = {name: _fact(data, f"pvc.compressor.{name}", kind) for name, kind in PVC_COMPRESSOR.items()}
        whole = {name: _fact(data, f"pvc.{name}", kind) for name, kind in PVC_WHOLE.items()}
    if not math.isclose(num_tokens, compressor["num_tokens"], rel_tol=1e-6):
        raise CheckpointError(
            f"{CONFIG_FILE} sets downsample_ratio = {ratio}, which makes {num_tokens:g} tokens per frame",
            expected=f"{compressor['num_tokens']} tokens",
            cause="image_size, patch_size, downsample_ratio or pvc.compressor is wrong",
            fix="compare them with the file that was released with the checkpoint",
        )
    return PVCConfig(
        vision=vision,
        compressor=CompressorConfig(shuffle=_fact(data, "ps_version", str), **compressor),
        llm=_llm_from_json(data),
        template=_fact(data, "template", str),
        system_message=None if find(data, "system_message") is None else _fact(data, "system_message", str),
        **whole,
        **_tiling(data),
    )


def _tiling(data: Mapping[str, Any]) -> dict[str, Any]:
    """Read how images are cut. Absent keys get PVCConfig's defaults: InternVL2's loaders always add a thumbnail."""
    facts: dict[str, Any] = {}
    if find(data, "max_dynamic_patch") is not None:
        facts["max_image_tiles"] = _fact(data, "max_dynamic_patch", int)
    if find(data, "dynamic_image_size") is not None and not _fact(data, "dynamic_image_size", bool):
        facts["max_image_tiles"] = 1  # the whole image is squashed to one tile
    if find(data, "use_thumbnail") is not None:
        facts["use_thumbnail"] = _fact(data, "use_thumbnail", bool)
    return facts


def _vision_from_json(data: Mapping[str, Any]) -> VisionConfig:
    facts = _read(data, "vision_config", VISION)
    if data.get("force_image_size") not in (None, facts["image_size"]):
        raise CheckpointError(
            f"{CONFIG_FILE} sets force_image_size = {data['force_image_size']} but vision_config.image_size = "
            f"{facts['image_size']}",
            expected="the same size in both: resizing position embeddings is not implemented",
            fix="choose a checkpoint whose position embeddings were saved at the size at which it is used",
        )
    temporal: dict[str, Any] = {"num_temporal_layers": 0}
    if "pvc" in data:
        temporal = {name: _fact(data, f"pvc.{name}", kind) for name, kind in PVC_VISION.items()}
    return VisionConfig(**facts, **temporal)


def _llm_from_json(data: Mapping[str, Any]) -> LLMConfig:
    family = _family(data)
    optional = {
        name: entry for name, entry in (HEAD_DIM | TIED).items() if find(data, f"llm_config.{entry[0]}") is not None
    }
    facts = _read(data, "llm_config", LLM | optional)
    return LLMConfig(family=family, qkv_bias=family == "qwen2", rope_theta=rope.rope_theta(data), **facts)


def _family(data: Mapping[str, Any]) -> LLMFamily:
    architectures = _fact(data, "llm_config.architectures", list)
    family = FAMILIES.get(str(architectures[0])) if len(architectures) == 1 else None
    if family is None:
        is_phi = "Phi3ForCausalLM" in architectures
        raise CheckpointError(
            said("llm_config.architectures", architectures),
            expected=f"one of {', '.join(FAMILIES)}: other LLMs are not implemented",
            cause="the LLM is Phi-3, as in InternVL2-4B" if is_phi else "",
            fix="choose a checkpoint with one of these LLMs" + (": InternVL2-2B or -8B" if is_phi else ""),
        )
    return family


def _read(data: Mapping[str, Any], section: str, table: Mapping[str, tuple[str, type]]) -> dict[str, Any]:
    return {name: _fact(data, f"{section}.{key}", kind) for name, (key, kind) in table.items()}


def _fact(data: Mapping[str, Any], path: str, kind: type) -> Any:
    """Return the value at `path`, which must exist and be a `kind`. An int counts as a float; a bool is not an int."""
    value = find(data, path)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise CheckpointError(
            said(path, value),
            expected=f"a value of type {kind.__name__}",
            cause=f"this is not the {CONFIG_FILE} of an InternVL2 or PVC checkpoint: its keys are "
            f"{', '.join(sorted(data)) or 'none'}",
            fix="pass the folder of an InternVL2 or PVC checkpoint, or fetch the file again",
        )
    return value
