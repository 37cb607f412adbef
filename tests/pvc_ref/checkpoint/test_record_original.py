"""record_original.py, run as by someone who has the released model's code but not this package."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pvc_ref.checkpoint import record_original
from pvc_ref.checkpoint.record_original import draw_inputs, evenly_spaced, record

from . import chat_model
from .chat_model import ChatModel

SCRIPT = Path(record_original.__file__)
VISION = {
    "image_size": 28, "patch_size": 7, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "layer_norm_eps": 1e-6,
}  # fmt: skip
LLM = {
    "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 32, "rope_theta": 1e4, "rms_norm_eps": 1e-6,
}  # fmt: skip
DATA = {"vision_config": VISION, "llm_config": LLM, "downsample_ratio": 0.5, "ps_version": "v2"}
REMOTE = """
from types import SimpleNamespace

from transformers import PretrainedConfig, PreTrainedModel

from .chat_model import ChatModel, Parts


class ChatConfig(PretrainedConfig):
    model_type = "a_chat"

    def __init__(self, data=None, **kwargs):
        super().__init__(**kwargs)
        self.data = data

    @property
    def vision_config(self):
        return SimpleNamespace(**self.data["vision_config"])

    @property
    def llm_config(self):
        return SimpleNamespace(**self.data["llm_config"])


class RemoteChatModel(Parts, PreTrainedModel):
    config_class = ChatConfig
    extract_feature = ChatModel.extract_feature

    def __init__(self, config):
        PreTrainedModel.__init__(self, config)
        self.build(config.data)
        self.post_init()
"""


def test_it_needs_nothing_of_this_package() -> None:
    names = set()
    for node in ast.walk(ast.parse(SCRIPT.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add(str(node.module).partition(".")[0])
    assert names - sys.stdlib_module_names == {"torch", "numpy", "transformers"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_records_a_folder_whose_code_is_its_own(tmp_path: Path, dtype: str) -> None:
    torch.manual_seed(0)
    model = ChatModel(DATA).eval()
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(chat_model.__file__, folder)
    (folder / "remote.py").write_text(REMOTE, encoding="utf-8")
    code = {"AutoConfig": "remote.ChatConfig", "AutoModel": "remote.RemoteChatModel"}
    config = {"model_type": "a_chat", "architectures": ["RemoteChatModel"], "auto_map": code, "data": DATA}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(SCRIPT, tmp_path)
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, SCRIPT.name, "model", "r.npz", "--dtype", dtype]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"7 values of RemoteChatModel in {dtype}" in done.stdout
    with np.load(tmp_path / "r.npz") as file:
        arrays = dict(file)
    facts = json.loads(str(arrays.pop("facts")))
    assert facts["version"] == 1 and facts["dtype"] == dtype and facts["model"] == "RemoteChatModel"
    if dtype == "float32":
        inputs = draw_inputs(28, 64)
        expected = inputs | record(model, inputs)
        assert arrays.keys() == expected.keys()
        assert all(np.allclose(arrays[name], expected[name], atol=1e-6) for name in arrays)


def test_inputs_are_the_same_every_time_and_use_the_whole_range() -> None:
    first, second = draw_inputs(56, 300), draw_inputs(56, 300)
    assert all(np.array_equal(first[name], second[name]) for name in first)
    frames = first["frames"]
    assert frames.shape == (3, 56, 56, 3) and frames.min() < 10 and frames.max() > 240
    assert not np.array_equal(frames[0], frames[1])
    assert first["before"].max() < 300 and not np.array_equal(first["before"], first["after"])


def test_rows_are_evenly_spaced_with_both_ends() -> None:
    rows = torch.arange(1025.0)[None, :, None]
    kept = evenly_spaced(rows)[0, :, 0]
    assert len(kept) == 64 and kept[0] == 0 and kept[-1] == 1024
    assert set(kept.diff().tolist()) == {16.0, 17.0}
    assert torch.equal(evenly_spaced(rows[:, :64]), rows[:, :64])


def test_a_model_is_as_it_was_after_it_was_recorded() -> None:
    model = ChatModel(DATA)
    record(model, draw_inputs(28, 64))
    assert not any(module._forward_hooks for module in model.modules())
