"""The shareable summary of a checkpoint: headers and config.json of any folder, and no path."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from safetensors import safe_open

from pvc_ref import CheckpointError
from pvc_ref.checkpoint.share import LEFT_OUT, share

from .cases import CopyOf


def test_every_tensor_is_shared_with_its_dtype_and_shape(sharded: Path) -> None:
    shared = share(sharded)
    expected = {}
    for path in sharded.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                found = file.get_slice(name)
                expected[name] = [found.get_dtype(), found.get_shape()]
    assert shared["tensors"] == expected and len(expected) > 100
    assert shared["config"] == json.loads((sharded / "config.json").read_text())
    assert shared["index_only"] == [] and shared["unreadable"] == {}


def test_no_weight_is_read(whole: Path, copy_of: CopyOf) -> None:
    """The file is cut off where its weights begin."""
    folder = copy_of(whole)
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: 8 + struct.unpack("<Q", content[:8])[0]])
    assert share(folder)["tensors"] == share(whole)["tensors"]


@pytest.mark.parametrize(
    "text", ["/home/me/ckpt", "~/ckpt", "./ckpt", "../ckpt", "C:\\ckpt", "work_dirs/pvc/step-3000", "\\\\nas\\ckpt"]
)
def test_paths_in_the_config_are_left_out_at_any_depth(text: str, whole: Path, copy_of: CopyOf) -> None:
    folder = copy_of(whole)
    kept = {"auto_map": {"AutoModel": "OpenGVLab/PVC--modeling_pvc.PVC"}, "_name_or_path": "OpenGVLab/PVC"}
    (folder / "config.json").write_text(json.dumps({"llm_config": {"deep": [text]}, "_name_or_path": text, **kept}))
    shared = share(folder)
    assert shared["config"] == {"llm_config": {"deep": [LEFT_OUT]}, **kept}
    (folder / "config.json").write_text(json.dumps({"_name_or_path": text}))
    assert share(folder)["config"] == {"_name_or_path": LEFT_OUT}


def test_a_folder_that_does_not_load_is_shared_as_far_as_it_goes(sharded: Path, copy_of: CopyOf) -> None:
    folder = copy_of(sharded)
    (folder / "config.json").write_text("{")
    (folder / "model-00001-of-00003.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (folder / "model-00002-of-00003.safetensors").unlink()
    shared, whole = share(folder), share(sharded)
    assert set(shared["unreadable"]) == {"config.json", "model-00001-of-00003.safetensors"} and not shared["config"]
    assert 0 < len(shared["tensors"]) < len(whole["tensors"])
    assert sorted([*shared["tensors"], *shared["index_only"]]) == sorted(whole["tensors"])
    assert str(folder) not in json.dumps(shared)


def test_a_folder_with_nothing_of_a_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(CheckpointError, match=r"is not a checkpoint folder: it contains notes\.txt"):
        share(tmp_path)
