"""`pvc-export compare`: a recording of the original's own code tells whether the reference is that model, and if not,
what differs first. The original is a stand-in that was written for this (chat_model.py)."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import pvc_ref
from pvc_export.parity.original import Recording, compare, stage_values
from pvc_ref import PVC
from pvc_ref.checkpoint.record_original import DTYPES, draw_inputs, record, save

from .chat_model import ChatModel, PVCChatModel

INTERNVL2: dict[str, Any] = {
    "architectures": ["InternVLChatModel"],
    "vision_config": {
        "image_size": 56, "patch_size": 7, "hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
        "intermediate_size": 96, "qkv_bias": True, "layer_norm_eps": 1e-6, "qk_normalization": False,
        "norm_type": "layer_norm",
    },
    "llm_config": {
        "architectures": ["Qwen2ForCausalLM"], "vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96, "rope_theta": 1e4,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "max_position_embeddings": 512,
    },
    "downsample_ratio": 0.5, "ps_version": "v2", "template": "Hermes-2", "select_layer": -1,
}  # fmt: skip
OF_PVC: dict[str, Any] = {
    "num_temporal_layers": 2, "sinusoid_size": 32, "time_mode": "absolute", "trained_frames": 16,
    "num_image_repeats": 4, "image_layout": "tile_streams",
    "compressor": {"kind": "pvc", "num_tokens": 16, "num_q_former_layers": 1},
}  # fmt: skip
CONFIGS = {
    "internvl2": INTERNVL2,
    "internvl2-v1": INTERNVL2 | {"ps_version": "v1"},
    "pvc": INTERNVL2 | {"pvc": OF_PVC},
    "pvc-fixed": INTERNVL2 | {"pvc": OF_PVC | {"time_mode": "fixed"}},
}


def chat_model(config: dict[str, Any], *, seed: int = 0) -> ChatModel:
    """With weights of which none is neutral, each exact in bfloat16 as a released checkpoint's are."""
    model = (PVCChatModel if "pvc" in config else ChatModel)(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            is_gain = weight.ndim == 1 and not name.endswith("bias")
            gain = 1 + 0.2 * noise if is_gain else noise * (0.1 if weight.ndim == 1 else weight[0].numel() ** -0.5)
            weight.copy_(gain.bfloat16())
    return model.eval()


def write_folder(model: nn.Module, config: dict[str, Any], folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def record_to(path: Path, model: ChatModel, dtype: str = "float32") -> Path:
    """As record_original.py does, of a model that is loaded already."""
    inputs = draw_inputs(model.data["vision_config"]["image_size"], model.data["llm_config"]["vocab_size"])
    narrow = copy.deepcopy(model).to(DTYPES[dtype])
    save(str(path), narrow, inputs, record(narrow, inputs), transformers="4.37.2")
    return path


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A checkpoint folder, and in it recording.npz, of each name in CONFIGS; made once."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            model = chat_model(CONFIGS[name])
            made[name] = write_folder(model, CONFIGS[name], tmp_path_factory.mktemp("original") / name)
            record_to(made[name] / "recording.npz", model)
        return made[name]

    return folder


@pytest.fixture
def pvc(folder_of: Callable[[str], Path]) -> PVC:
    return pvc_ref.load(folder_of("pvc"))


@pytest.fixture
def of_pvc(folder_of: Callable[[str], Path]) -> Recording:
    return Recording.load(folder_of("pvc") / "recording.npz")


# -- the same model ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_the_original_of_a_checkpoint_is_recognised(folder_of: Callable[[str], Path], name: str) -> None:
    folder = folder_of(name)
    comparison = compare(pvc_ref.load(folder), Recording.load(folder / "recording.npz"))
    assert comparison.passed, "\n".join(comparison.lines())
    layers = [f"vision_model.encoder.layers.{index}" for index in range(4)]
    llm = ["language_model.model.layers.0", "language_model.model.layers.1", "language_model.model.norm"]
    stages = ["vision_model.embeddings", *layers, "extract_feature", *llm, "language_model.logits"]
    assert [stage.tensor for stage in comparison.stages] == stages
    assert max(stage.rel_l2 for stage in comparison.stages) < 2e-6


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_recognised_in_a_dtype_that_rounds_more(tmp_path: Path, dtype: str, seed: int) -> None:
    original_model = chat_model(CONFIGS["pvc"], seed=seed)
    model = pvc_ref.load(write_folder(original_model, CONFIGS["pvc"], tmp_path / "model"))
    comparison = compare(model, Recording.load(record_to(tmp_path / "r.npz", original_model, dtype)))
    assert comparison.passed, "\n".join(comparison.lines())


def test_what_is_compared_is_what_the_reference_computes(pvc: PVC, of_pvc: Recording) -> None:
    clip = pvc.encode_clip(torch.from_numpy(of_pvc.frames)[None])[0].detach()
    assert np.array_equal(stage_values(pvc, of_pvc)["extract_feature"], clip.numpy())
