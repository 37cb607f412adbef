"""`-m FOLDER`: the tokenizer of a checkpoint that has no tokenizer.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, pre_tokenizers

from engines.errors import ModelError
from pvc_export.graphs.models import LoadedModel, load_model
from pvc_ref import save
from pvc_ref.prompt import SPECIAL_TOKENS, video_prompt


@pytest.fixture(name="checkpoint")
def checkpoint_without_tokenizer(tiny: LoadedModel, tmp_path: Path) -> Path:
    save(tiny.model, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_a_vocabulary_and_merges_make_the_same_prompts_and_survive_saving(tiny: LoadedModel, checkpoint: Path) -> None:
    """The byte tokenizer, stored as in Qwen2's checkpoints."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    files = {
        "vocab.json": json.dumps({char: i for i, char in enumerate(alphabet)}),
        "merges.txt": "#version: 0.2\n",
        "added_tokens.json": json.dumps({token: 256 + i for i, token in enumerate(SPECIAL_TOKENS)}),
        "special_tokens_map.json": json.dumps({"additional_special_tokens": SPECIAL_TOKENS}),
    }
    for name, text in files.items():
        (checkpoint / name).write_text(text, encoding="utf-8")
    loaded = load_model(str(checkpoint))
    prompt = video_prompt(tiny.config, num_frames=3, question="What\n moves? 狐狸")
    wanted = tiny.tokenizer.encode(prompt, add_special_tokens=False).ids
    assert loaded.tokenizer.encode(prompt, add_special_tokens=False).ids == wanted
    loaded.tokenizer.save(str(checkpoint / "tokenizer.json"))
    saved = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    assert saved.encode(prompt, add_special_tokens=False).ids == wanted


def test_a_damaged_tokenizer_model_and_none_at_all_are_errors_of_the_model(checkpoint: Path) -> None:
    with pytest.raises(ModelError, match="has no tokenizer"):
        load_model(str(checkpoint))
    (checkpoint / "tokenizer.model").write_bytes(b"\x00")
    with pytest.raises(ModelError, match=r"tokenizer\.model cannot be read") as error:
        load_model(str(checkpoint))
    assert error.value.fix == "fetch the file again"
