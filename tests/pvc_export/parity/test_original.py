"""`pvc-export compare`: a recording made with the original code shows whether the reference is the same model, and
otherwise what differs first. The original here is a stand-in written for these tests (chat_model.py)."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import pvc_ref
from engines.errors import ModelError
from pvc_export.parity import original
from pvc_export.parity.original import Recording, compare, stage_values, try_candidates
from pvc_ref import PVC
from pvc_ref.checkpoint.record_original import DTYPES, draw_inputs, record, save

from ...pvc_ref.checkpoint.chat_model import ChatModel, PVCChatModel
from ..conftest import Run

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
    """A model without neutral weights, all exact in bfloat16 as in a released checkpoint."""
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
    """Record a loaded model, as record_original.py does."""
    inputs = draw_inputs(model.data["vision_config"]["image_size"], model.data["llm_config"]["vocab_size"])
    narrow = copy.deepcopy(model).to(DTYPES[dtype])
    save(str(path), narrow, inputs, record(narrow, inputs), transformers="4.37.2")
    return path


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A checkpoint folder with a recording.npz for each name in CONFIGS, made once."""
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


# -- another model -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameter", "stage"),
    [
        ("trunk.embeddings.position_embedding", "vision_model.embeddings"),
        ("trunk.embeddings.patch_embedding.weight", "vision_model.embeddings"),
        ("trunk.layers.0.attn.qkv.weight", "vision_model.encoder.layers.0"),
        ("trunk.layers.1.mlp.fc2.bias", "vision_model.encoder.layers.1"),
        ("temporal.layers.0.alpha", "vision_model.encoder.layers.2"),
        ("temporal.layers.1.adaln.w5.weight", "vision_model.encoder.layers.3"),
        ("compressor.time_embedding.w2.weight", "extract_feature"),
        ("compressor.mlp.fc1.weight", "extract_feature"),
        ("llm.layers.0.attn.k_proj.weight", "language_model.model.layers.0"),
        ("llm.layers.1.mlp.down_proj.weight", "language_model.model.layers.1"),
        ("llm.norm.weight", "language_model.model.norm"),
        ("llm.lm_head.weight", "language_model.logits"),
    ],
)
def test_one_changed_value_of_a_weight_is_seen_where_it_is_used(
    pvc: PVC, of_pvc: Recording, parameter: str, stage: str
) -> None:
    """The largest value of the tensor changes by five percent; another value could be almost zero."""
    with torch.no_grad():
        values = pvc.get_parameter(parameter).view(-1)
        values[values.abs().argmax()] *= 1.05
    comparison = compare(pvc, of_pvc)
    assert comparison.first is not None and comparison.first.tensor == stage, "\n".join(comparison.lines())
    assert comparison.cause


def test_one_changed_value_of_the_token_table_is_seen_if_the_token_is_in_the_text(pvc: PVC, of_pvc: Recording) -> None:
    with torch.no_grad():
        pvc.llm.embed_tokens.weight[int(of_pvc.before[2]), 7] += 0.05
    comparison = compare(pvc, of_pvc)
    assert comparison.first is not None and comparison.first.tensor == "language_model.model.layers.0"
    assert "token embeddings" in comparison.cause


@pytest.mark.parametrize(
    ("name", "section", "change", "stage", "cause"),
    [
        ("internvl2", "", {"ps_version": "v1"}, "extract_feature", 'recording with ps_version = "v2"'),
        ("internvl2-v1", "", {"ps_version": "v2"}, "extract_feature", 'recording with ps_version = "v1"'),
        ("pvc", "", {"ps_version": "v1"}, "extract_feature", 'recording with ps_version = "v2"'),
        ("pvc", "pvc", {"time_mode": "fixed"}, "vision_model.encoder.layers.2", 'pvc.time_mode = "absolute"'),
        (
            "pvc-fixed",
            "pvc",
            {"time_mode": "absolute"},
            "vision_model.encoder.layers.2",
            'with pvc.time_mode = "fixed" or',
        ),
        ("pvc", "vision_config", {"num_attention_heads": 2}, "vision_model.encoder.layers.0", "num_attention_heads"),
        ("pvc", "vision_config", {"layer_norm_eps": 1e-5}, "vision_model.encoder.layers.0", "layer_norm_eps"),
        ("pvc", "llm_config", {"rope_theta": 1e6}, "language_model.model.layers.0", "rope_theta"),
        ("pvc", "llm_config", {"rms_norm_eps": 1e-5}, "language_model.model.layers.0", "rms_norm_eps"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else None,
)
def test_a_fact_of_config_json_that_no_weight_shows_is_seen_and_named(
    folder_of: Callable[[str], Path],
    tmp_path: Path,
    name: str,
    section: str,
    change: dict[str, Any],
    stage: str,
    cause: str,
) -> None:
    config = copy.deepcopy(CONFIGS[name])
    (config[section] if section else config).update(change)
    model = pvc_ref.load(write_folder(chat_model(CONFIGS[name]), config, tmp_path / "model"))
    comparison = compare(model, Recording.load(folder_of(name) / "recording.npz"))
    assert comparison.first is not None and comparison.first.tensor == stage, "\n".join(comparison.lines())
    assert cause in comparison.cause


def test_a_layer_that_one_side_lacks_is_a_difference(pvc: PVC, of_pvc: Recording) -> None:
    values = dict(of_pvc.values)
    values["vision_model.encoder.layers.4"] = values.pop("vision_model.encoder.layers.3")
    lines = list(compare(pvc, replace(of_pvc, values=values)).lines())
    told = [line.split("  ")[0] + line.partition("DIFFERS")[2] for line in lines if "only the" in line]
    assert told == [
        "vision_model.encoder.layers.3: only the model has it",
        "vision_model.encoder.layers.4: only the recording has it",
    ]
    assert lines[-1].startswith("likely: config.json is from another model")


def test_values_that_are_not_finite_are_a_difference(pvc: PVC, of_pvc: Recording) -> None:
    logits = of_pvc.values["language_model.logits"].copy()
    logits[0, 3, 5] = np.nan
    comparison = compare(pvc, replace(of_pvc, values=of_pvc.values | {"language_model.logits": logits}))
    assert comparison.first is not None and comparison.first.num_nonfinite == 1


def test_where_rounding_alone_would_allow_anything_a_recording_in_float32_is_asked_for(
    folder_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = Recording.load(record_to(tmp_path / "r.npz", chat_model(CONFIGS["pvc"]), "bfloat16"))
    model = pvc_ref.load(folder_of("pvc"))
    coarsest = max(stage.rel_l2 for stage in compare(model, recording).stages)
    monkeypatch.setattr(original, "COARSEST", coarsest / 1.2)
    comparison = compare(model, recording)
    assert not comparison.passed and "make one in float32" in comparison.cause


# -- several readings --------------------------------------------------------------------------------------------------


def changed(folder: Path, parameters: tuple[str, str]) -> PVC:
    """Load a folder's model with two tensors of one shape exchanged, as if their names had been guessed wrong."""
    model = pvc_ref.load(folder)
    first, second = (model.get_parameter(name) for name in parameters)
    with torch.no_grad():
        first.data, second.data = second.data, first.data
    return model


def test_of_several_mappings_the_one_that_reproduces_the_recording_is_found(
    folder_of: Callable[[str], Path], of_pvc: Recording
) -> None:
    folder, adaln = folder_of("pvc"), "temporal.layers.0.adaln"
    candidates = {
        "gamma is beta": partial(changed, folder, (f"{adaln}.w4.weight", f"{adaln}.w6.weight")),
        "as written": partial(pvc_ref.load, folder),
        "spatial is temporal": partial(
            changed, folder, ("temporal.layers.1.attn.qkv.weight", "temporal.layers.1.temporal_attn.qkv.weight")
        ),
    }
    found = try_candidates(candidates, of_pvc)
    assert found.reproduce == ("as written",) and found.is_unique
    firsts = [one.first.tensor for one in found.compared.values() if one.first is not None]
    assert firsts == ["vision_model.encoder.layers.2", "vision_model.encoder.layers.3"]


def test_mappings_that_compute_the_same_are_not_distinguished(
    folder_of: Callable[[str], Path], of_pvc: Recording
) -> None:
    folder = folder_of("pvc")
    found = try_candidates({"one": partial(pvc_ref.load, folder), "two": partial(pvc_ref.load, folder)}, of_pvc)
    assert found.reproduce == ("one", "two") and not found.is_unique


def test_a_recording_decides_what_tensors_are_whose_names_tell_nothing(
    folder_of: Callable[[str], Path], tmp_path: Path, pvc_export: Run
) -> None:
    folder, mapping = tmp_path / "open", tmp_path / "mapping.json"
    shutil.copytree(folder_of("pvc"), folder)
    stored = load_file(folder / "model.safetensors")
    other = {"w3": "p", "w4": "q", "w5": "r", "w6": "s"}
    renamed = {
        re.sub(r"(layers\.\d\.adaln)\.(w\d)", lambda m: f"{m[1]}.{other[m[2]]}", k): v for k, v in stored.items()
    }
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    assert pvc_export("compare", folder, folder / "recording.npz", "--mapping", mapping).exit_code == 6  # no such file
    outcome = pvc_export("compare", folder, folder / "recording.npz", "--save-mapping", mapping)
    assert outcome.exit_code == 0 and "try 24 mappings" in outcome.out
    assert all(f"adaln.{name}.weight -> adaln.{role}.weight" in outcome.out for role, name in other.items())
    assert pvc_export("compare", folder, folder / "recording.npz", "--mapping", mapping).exit_code == 0


def test_mappings_that_a_recording_does_not_tell_apart_are_an_error(
    folder_of: Callable[[str], Path], tmp_path: Path, pvc_export: Run
) -> None:
    folder = tmp_path / "idle"
    shutil.copytree(folder_of("pvc"), folder)
    stored = load_file(folder / "model.safetensors")
    idle = {name: value * 0 if name.endswith("alpha") else value for name, value in stored.items()}
    save_file({re.sub(r"(s\.\d\.adaln)\.w", r"\1.v", k): v for k, v in idle.items()}, folder / "model.safetensors")
    outcome = pvc_export("compare", folder, folder / "recording.npz")
    outcome.says(6, "does not distinguish", "alpha of zeros")


# -- the command -------------------------------------------------------------------------------------------------------


def test_compare_exits_0_for_the_same_model_and_3_for_another(
    folder_of: Callable[[str], Path], tmp_path: Path, pvc_export: Run
) -> None:
    recording = folder_of("internvl2") / "recording.npz"
    same = pvc_export("compare", folder_of("internvl2"), recording)
    assert same.exit_code == 0 and "equal: 10 values of ChatModel" in same.out
    other_folder = write_folder(chat_model(INTERNVL2, seed=1), INTERNVL2, tmp_path / "other")
    other = pvc_export("compare", other_folder, recording)
    assert other.exit_code == 3 and "the first value that differs is vision_model.embeddings" in other.out


def test_compare_tells_a_machine_the_first_difference(
    folder_of: Callable[[str], Path], tmp_path: Path, pvc_export: Run
) -> None:
    folder = write_folder(chat_model(INTERNVL2), CONFIGS["internvl2-v1"], tmp_path / "v1")
    outcome = pvc_export("compare", folder, folder_of("internvl2") / "recording.npz", "--json")
    data = json.loads(outcome.out)
    assert outcome.exit_code == 3 and data["first"] == "extract_feature" and "ps_version" in data["cause"]
    assert [stage["passed"] for stage in data["stages"]] == [True] * 5 + [False] * 5


@pytest.mark.parametrize("content", [b"", b"a text", b"PK\x03\x04 and no more"], ids=["empty", "text", "half a zip"])
def test_a_file_that_is_no_recording_exits_6(
    folder_of: Callable[[str], Path], tmp_path: Path, content: bytes, pvc_export: Run
) -> None:
    (tmp_path / "r.npz").write_bytes(content)
    outcome = pvc_export("compare", folder_of("pvc"), tmp_path / "r.npz", "--json")
    outcome.refuses(6, "ModelError", what="r.npz is not a recording", fix="record_original.py")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            {"facts": np.array(json.dumps({"version": 2, "dtype": "float32"}))},
            "is a recording of version 2, expected 1",
        ),
        (
            {"facts": np.array(json.dumps({"version": 1, "dtype": "float8"}))},
            "is not a recording of a model ('float8')",
        ),
        ({"facts": np.array("{}")}, "is not a recording of a model"),
        ({"language_model.logits": None}, "lacks language_model.logits"),
        ({"frames": None}, "is not a recording of a model"),
    ],
    ids=["version", "dtype", "no facts", "no logits", "no frames"],
)
def test_a_recording_that_lacks_something_is_refused(
    folder_of: Callable[[str], Path], tmp_path: Path, change: dict[str, Any], what: str
) -> None:
    with np.load(folder_of("pvc") / "recording.npz") as file:
        arrays = {name: file[name] for name in file.files} | change
    np.savez(tmp_path / "r.npz", **{name: value for name, value in arrays.items() if value is not None})
    with pytest.raises(ModelError) as info:
        Recording.load(tmp_path / "r.npz")
    assert what in info.value.what


def test_a_recording_of_larger_frames_is_refused(pvc: PVC, of_pvc: Recording) -> None:
    frames = np.zeros((3, 112, 112, 3), np.uint8)
    with pytest.raises(ModelError, match=r"expected: frames \(T, 56, 56, 3\) uint8"):
        compare(pvc, replace(of_pvc, frames=frames))
