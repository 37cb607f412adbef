"""Tensors with unknown names: mapped if shapes and names allow only one mapping, else a table and a form to fill in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pvc_ref import PVC, CheckpointError, load, save
from pvc_ref.checkpoint.detect import detect
from pvc_ref.checkpoint.folder import detect_names
from pvc_ref.checkpoint.mapping import read_mapping
from pvc_ref.checkpoint.tensor_names import checkpoint_tensors
from pvc_ref.errors import OpenNamesError

from .cases import TINY, CopyOf, edit_weights, refusal
from .test_folder import assert_same_model

TOWER = "vision_model.encoder.layers."
DECISIVE = {
    "alpha": "t_alpha",
    "temporal_attn.qkv": "tattn.qkv",
    "temporal_attn.proj": "tattn.proj",
    "adaln.w3": "tattn.adaln.gamma.0",
    "adaln.w4": "tattn.adaln.gamma.2",
    "adaln.w5": "tattn.adaln.beta.0",
    "adaln.w6": "tattn.adaln.beta.2",
    "time_embedding.w1": "tattn.te.mlp.0",
    "time_embedding.w2": "tattn.te.mlp.2",
}
"""A part of a temporal layer or of the compressor -> another name for it."""
GAMMA_BETA = ("gamma.0", "gamma.2", "beta.0", "beta.2")
STYLES: dict[str, dict[str, str]] = {
    "gamma-beta-te": DECISIVE,
    "scale-shift-in-other-modules": {
        "alpha": "ls3",
        "temporal_attn.qkv": "temporal_mha.in_proj",
        "temporal_attn.proj": "temporal_mha.out_proj",
        "adaln.w3": "temporal_norm.to_scale.fc1",
        "adaln.w4": "temporal_norm.to_scale.fc2",
        "adaln.w5": "temporal_norm.to_shift.fc1",
        "adaln.w6": "temporal_norm.to_shift.fc2",
        "time_embedding.w1": "t_embedder.linear_1",
        "time_embedding.w2": "t_embedder.linear_2",
    },
    "the-papers-numbers": {
        "alpha": "gate",
        "temporal_attn.qkv": "tmha.wqkv",
        "temporal_attn.proj": "tmha.wo",
        **{f"adaln.w{i}": f"tmha.AdaLN.W{i}" for i in (3, 4, 5, 6)},
        "time_embedding.w1": "tmha.time_embed.W1",
        "time_embedding.w2": "tmha.time_embed.W2",
    },
    "words-that-mean-nothing-here": DECISIVE
    | {f"adaln.w{i}": f"ada_mlp.{name}" for i, name in zip((3, 4, 5, 6), GAMMA_BETA, strict=True)}
    | {"1": "ada_mlp.fc1", "3": "ada_mlp.fc2", "alpha": "norm_x.gamma"},
    "time-embedding-told-by-its-first-linear": DECISIVE
    | {"time_embedding.w1": "clock.0", "time_embedding.w2": "clock.2", "temporal_attn.proj": "tattn.c"},
}


def renamed(stored: Mapping[str, torch.Tensor], style: Mapping[str, str]) -> dict[str, torch.Tensor]:
    def new_name(name: str) -> str:
        place, part = (
            ("mlp1.", name[5:]) if name.startswith("mlp1.") else (name[: len(TOWER) + 2], name[len(TOWER) + 2 :])
        )
        for ours, theirs in style.items():
            if name.startswith(("mlp1.", TOWER)) and (part == ours or part.startswith(f"{ours}.")):
                return place + theirs + part[len(ours) :]
        return name

    return {new_name(name): value for name, value in stored.items()}


def rename(folder: Path, style: Mapping[str, str]) -> None:
    path = folder / "model.safetensors"
    save_file(renamed(load_file(path), style), path)


def rename_by_text(folder: Path, **texts: str) -> None:
    """Replace a by b in tensor names for each `a=b`; __ means a dot."""

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for old, new in texts.items():
            for name in [name for name in tensors if old.replace("__", ".") in name]:
                tensors[name.replace(old.replace("__", "."), new.replace("__", "."))] = tensors.pop(name)

    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


UNDECIDED = DECISIVE | {
    f"adaln.w{i}": f"tattn.adaln.lin{letter}" for i, letter in zip((3, 4, 5, 6), "dacb", strict=True)
}
"""Meaningless names of W3 to W6, in the temporal layers and in the compressor."""
TWINS = DECISIVE | {
    "adaln.w3": "tattn.adaln.one.0",
    "adaln.w4": "tattn.adaln.one.2",
    "adaln.w5": "tattn.adaln.other.0",
    "adaln.w6": "tattn.adaln.other.2",
}
"""Two Linear-SiLU-Linear sequences, either of which may be gamma's."""
COUNTED_ANEW = DECISIVE | {f"adaln.w{i}": f"tattn.adaln.w{i - 2}" for i in (3, 4, 5, 6)}
"""Names under which W3 and W4 may be the paper's W5 and W6."""
CONTRADICTION = DECISIVE | {"adaln.w5": "tattn.adaln.gamma.4"}
"""Three parts named after gamma, which no mapping can satisfy."""

# -- found -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_decisive_names_are_found_and_load_bit_equal(style: dict[str, str], whole: Path, copy_of: CopyOf) -> None:
    folder = copy_of(whole)
    rename(folder, style)
    loaded = load(folder)
    assert_same_model(loaded, PVC.random(TINY))
    part, theirs = "temporal_attn.qkv", style["temporal_attn.qkv"]
    assert loaded.renamed[f"{TOWER}{{layer}}.{theirs}.weight"] == f"{TOWER}{{layer}}.{part}.weight"


def test_our_own_names_need_no_mapping(whole: Path) -> None:
    assert load(whole).renamed == {}
    assert detect_names(whole).mapping == {}


def test_layers_that_are_numbered_on_their_own_are_read_in_order(whole: Path, copy_of: CopyOf) -> None:
    folder = copy_of(whole)
    rename(folder, DECISIVE)
    texts = {
        f"encoder__layers__{2 + i}__{part}": f"temporal__{i}__{part}" for i in (0, 1) for part in ("tattn", "t_alpha")
    }
    rename_by_text(folder, **texts)
    assert "vision_model.temporal.1.tattn.qkv.weight" in load_file(folder / "model.safetensors")
    assert_same_model(load(folder), PVC.random(TINY))


def test_three_projections_are_joined(whole: Path, copy_of: CopyOf) -> None:
    folder = copy_of(whole)
    rename(folder, DECISIVE)

    def split(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "tattn.qkv" in name]:
            for letter, part in zip("qkv", tensors.pop(name).chunk(3), strict=True):
                tensors[name.replace("qkv", f"{letter}_proj")] = part.clone()

    edit_weights(folder, split)
    loaded = load(folder)
    assert_same_model(loaded, PVC.random(TINY))
    assert loaded.renamed[f"{TOWER}{{layer}}.tattn.k_proj.bias"] == f"{TOWER}{{layer}}.temporal_attn.k.bias"


def test_parameters_of_torchs_own_attention_are_found(whole: Path, copy_of: CopyOf) -> None:
    folder = copy_of(whole)
    rename(folder, DECISIVE)
    rename_by_text(folder, tattn__qkv__="tattn__in_proj_", tattn__proj__="tattn__out_proj__")
    assert f"{TOWER}3.tattn.in_proj_weight" in load_file(folder / "model.safetensors")
    assert_same_model(load(folder), PVC.random(TINY))


def test_a_compressor_whose_mlp_is_numbered_otherwise_is_found(whole: Path, copy_of: CopyOf) -> None:
    folder = copy_of(whole)
    rename_by_text(folder, mlp1__1__="mlp1__mlp__0__", mlp1__3__="mlp1__mlp__2__")
    assert load(folder).renamed["mlp1.mlp.2.bias"] == "mlp1.3.bias"


def test_a_part_of_the_compressor_may_lie_in_the_vision_model_and_its_numbers_are_no_layers(
    whole: Path, copy_of: CopyOf
) -> None:
    folder = copy_of(whole)
    rename_by_text(
        folder, mlp1__time_embedding__w1="vision_model__te__0", mlp1__time_embedding__w2="vision_model__te__2"
    )
    assert load(folder).renamed["vision_model.te.2.bias"] == "mlp1.time_embedding.w2.bias"


def test_temporal_layers_are_counted_where_the_config_does_not_say(whole: Path, copy_of: CopyOf) -> None:
    folder = copy_of(whole)
    rename(folder, DECISIVE)
    edit_config(folder, num_temporal_layers=None)
    assert_same_model(load(folder), PVC.random(TINY))


def test_temporal_layers_that_are_not_the_last_are_refused(whole: Path, copy_of: CopyOf) -> None:
    folder = copy_of(whole)
    rename(folder, DECISIVE)
    edit_config(folder, num_temporal_layers=None)
    rename_by_text(folder, layers__2__t="layers__1__t")
    assert "layers 1,3 of the vision model's 4" in refusal(folder).what


# -- open ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("style", "count"),
    [(TWINS, 4), (UNDECIDED, 24 * 24), (COUNTED_ANEW, 24 * 24)],
    ids=["twins", "undecided", "counted"],
)
def test_names_that_tell_nothing_stop_with_a_table_and_every_candidate(
    style: dict[str, str], count: int, whole: Path, copy_of: CopyOf
) -> None:
    folder = copy_of(whole)
    rename(folder, style)
    with pytest.raises(OpenNamesError) as info:
        load(folder)
    error = info.value
    assert f"{count} mappings are possible" in error.what and len(error.candidates) == count
    rows = [" ".join(line.split()) for line in error.what.splitlines()]
    theirs, ours = min(style[f"adaln.w{i}"] for i in (3, 4, 5, 6)), "adaln.w3"
    first = f"{TOWER}2..3.{theirs} weight (64, 64), bias (64,)"
    assert any(row.startswith(first) and "layers.2..3.adaln.w" in row for row in rows)
    assert any(f"mlp1.{theirs} weight (1024, 1024)" in row for row in rows)
    assert any(row.endswith(f"mlp1.{ours} weight (1024, 1024), bias (1024,)") for row in rows)
    assert not any(word in error.what for word in ("tattn.te", "tattn.qkv", "t_alpha")), "only open names are listed"
    assert "--suggest-mapping > mapping.json" in error.fix and "--mapping mapping.json" in error.fix


def test_words_that_contradict_each_other_count_for_nothing(whole: Path, copy_of: CopyOf) -> None:
    folder = copy_of(whole)
    rename(folder, CONTRADICTION)
    with pytest.raises(OpenNamesError) as info:
        load(folder)
    assert "86400 mappings are possible" in info.value.what
    assert len(info.value.candidates) == 1000, "the list is limited to 1000"


def test_of_very_many_mappings_a_thousand_are_listed_and_all_are_counted() -> None:
    vision = replace(TINY.vision, sinusoid_size=64)  # as wide as a layer, so that seven Linears are alike
    with torch.device("meta"):
        tensors = checkpoint_tensors(PVC(replace(TINY, vision=vision)))
    parts = {part: f"z{index}" for index, part in enumerate(DECISIVE)}  # meaningless names
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    for part, other in parts.items():
        shapes = {name.replace(part, other) if TOWER in name else name: shape for name, shape in shapes.items()}
    detection = detect(tensors, shapes)
    assert detection.num_candidates == 5040
    assert [len(group) for group in detection.groups] == [1000, 1] and len(detection.candidates) == 1000
    told = {role.removeprefix(EACH) for role in detection.mapping.values() if role is not None}
    assert told == {"alpha", "temporal_attn.qkv.weight", "temporal_attn.qkv.bias"}, "identified by their shapes"


def test_one_of_the_candidates_is_the_right_one_and_each_loads(whole: Path, copy_of: CopyOf) -> None:
    folder = copy_of(whole)
    rename(folder, TWINS)
    with pytest.raises(OpenNamesError) as info:
        load(folder)
    right = PVC.random(TINY).state_dict()
    equal = []
    for candidate in info.value.candidates:
        state = load(folder, mapping=candidate).state_dict()
        equal.append(all(torch.equal(state[name], value) for name, value in right.items()))
    assert sum(equal) == 1


def test_the_suggested_mapping_loads_once_it_is_filled_in(whole: Path, copy_of: CopyOf, tmp_path: Path) -> None:
    folder = copy_of(whole)
    rename(folder, UNDECIDED)
    suggested = detect_names(folder).mapping
    assert suggested[f"{TOWER}{{layer}}.tattn.te.mlp.0.weight"] == f"{TOWER}{{layer}}.time_embedding.w1.weight"
    still_open = [name for name, role in suggested.items() if role is None]
    assert len(still_open) == 16 and all("tattn.adaln.lin" in name for name in still_open)
    ours = {theirs: part for part, theirs in UNDECIDED.items()}
    for name in still_open:
        part = next(theirs for theirs in ours if f"{theirs}." in name)
        suggested[name] = name.replace(part, ours[part])
    (tmp_path / "mapping.json").write_text(json.dumps(suggested))
    assert_same_model(load(folder, mapping=read_mapping(tmp_path / "mapping.json")), PVC.random(TINY))


def test_a_tensor_that_no_role_fits_is_in_the_table_with_a_bar_opposite(whole: Path, copy_of: CopyOf) -> None:
    folder = copy_of(whole)
    rename(folder, DECISIVE)

    def add(tensors: dict[str, torch.Tensor]) -> None:
        for i in (2, 3):
            tensors[f"{TOWER}{i}.tattn.adaln.norm.weight"] = torch.ones(32)

    edit_weights(folder, add)
    error = refusal(folder)
    assert not isinstance(error, OpenNamesError)
    rows = [" ".join(line.split()) for line in error.what.splitlines()]
    assert rows[2:] == [f"{TOWER}2..3.tattn.adaln.norm weight (32,) -"]


def test_more_layers_than_the_config_says_are_refused(whole: Path, copy_of: CopyOf) -> None:
    folder = copy_of(whole)
    rename(folder, DECISIVE)

    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{TOWER}1.t_alpha"] = torch.ones(64)

    edit_weights(folder, add)
    assert f"{TOWER}1..3.t_alpha" in refusal(folder).what


# -- wrong mappings --------------------------------------------------------------------------------------------

EACH = f"{TOWER}{{layer}}."
W3 = EACH + "tattn.adaln.gamma.0"
WRONG: dict[str, tuple[str, str | None, str]] = {
    "null": (f"{W3}.weight", None, f"{W3}.weight is open (null)"),
    "unknown role": (
        f"{W3}.weight",
        f"{EACH}adaln.w33.weight",
        f"there is no role {EACH}adaln.w33.weight (did you mean {EACH}adaln.w3.weight?)",
    ),
    "unknown tensor": ("mlp1.nothing", "mlp1.1.bias", "there is no tensor mlp1.nothing"),
    "unknown in all layers": (f"{EACH}nothing", f"{EACH}alpha", f"there is no tensor {EACH}nothing"),
    "role twice": (
        f"{W3}.bias",
        f"{EACH}adaln.w4.bias",
        f"two tensors are {TOWER}2.adaln.w4.bias: {TOWER}2.tattn.adaln.gamma.0.bias, {TOWER}2.tattn.adaln.gamma.2.bias",
    ),
    "role missing": (
        f"{W3}.bias",
        f"{EACH}adaln.w4.bias",
        f"2 roles have no tensor: {TOWER}2.adaln.w3.bias, {TOWER}3.adaln.w3.bias",
    ),
    "shape": (
        f"{W3}.weight",
        f"{EACH}adaln.w4.bias",
        f"{TOWER}2.tattn.adaln.gamma.0.weight has shape (64, 64), but {TOWER}2.adaln.w4.bias needs (64,)",
    ),
    "layers": (
        f"{EACH}norm1.weight",
        f"{EACH}alpha",
        f"{EACH}norm1.weight is in layers 0..3, but {EACH}alpha in 2..3",
    ),
    "part of qkv": (
        f"{EACH}tattn.qkv.bias",
        f"{EACH}temporal_attn.q.bias",
        f"2 roles have no tensor: {TOWER}2.temporal_attn.qkv.bias",
    ),
    "mapped twice": (f"{TOWER}2.t_alpha", f"{TOWER}2.alpha", f"{TOWER}2.t_alpha is mapped twice"),
}


@pytest.mark.parametrize(("name", "role", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_mapping_is_refused_by_name(
    name: str, role: str | None, words: str, whole: Path, copy_of: CopyOf
) -> None:
    folder = copy_of(whole)
    rename(folder, DECISIVE)
    mapping = detect_names(folder).mapping | {name: role}
    with pytest.raises(CheckpointError) as info:
        load(folder, mapping=mapping)
    assert words in info.value.what and str(folder) in info.value.what


def test_a_tensor_that_the_mapping_leaves_out_is_named(whole: Path, copy_of: CopyOf) -> None:
    folder = copy_of(whole)
    rename(folder, DECISIVE)
    mapping = detect_names(folder).mapping
    del mapping[f"{TOWER}{{layer}}.t_alpha"]
    with pytest.raises(CheckpointError, match=r"2 tensors have no role: .*layers\.2\.t_alpha, .*layers\.3\.t_alpha"):
        load(folder, mapping=mapping)


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 3}'])
def test_a_file_that_is_no_mapping_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "mapping.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"mapping\.json"):
        read_mapping(tmp_path / "mapping.json")


def edit_config(folder: Path, **pvc: object) -> None:
    path = folder / "config.json"
    data = json.loads(path.read_text())
    data["pvc"] |= pvc
    path.write_text(json.dumps(data))


def test_quantized_tensors_of_other_names_are_refused(whole: Path, tmp_path: Path) -> None:
    save(PVC.random(TINY), tmp_path / "model")
    rename(tmp_path / "model", DECISIVE)
    edit_weights(
        tmp_path / "model", lambda tensors: tensors.update({f"{TOWER}2.t_alpha": torch.zeros(64).to(torch.int8)})
    )
    assert "(I8)" in refusal(tmp_path / "model").what
