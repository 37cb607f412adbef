"""vocab.json and merges.txt without tokenizer.json: ids equal those of the same tokenizer saved as one file.

Two oracles: a tokenizer trained here and saved both ways, and transformers' own Qwen2Tokenizer.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from pvc_ref.checkpoint.tokenizer import load_tokenizer
from pvc_ref.errors import CheckpointError

from .scripts import CORPUS

# As in the tokenizer.json of Qwen2-0.5B.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NAMES = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")
PLAIN = [
    "", " ", "  a  b ", "\n\n x\n", "\t\r\n", "don't WE'LL it's", "3.14 1,000", "cafe\u0301 é \ufb01 Å", "🦊👩\u200d🚀",
    "a\u0085b\u2028c", "x" * 200,
]  # fmt: skip
EDGES = PLAIN + [f"{a}{name}{b}" for name in NAMES for a in ("", " ", "a\n") for b in ("", " ", "b")]


@pytest.fixture(scope="module", name="whole")
def train_once() -> Tokenizer:
    """A tokenizer like Qwen2's, as one object."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*CORPUS, *PLAIN], trainer)
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in NAMES])
    return tokenizer


@pytest.fixture(name="folder")
def split_files(whole: Tokenizer, tmp_path: Path) -> Path:
    """Save the tokenizer as Qwen2's checkpoints did before tokenizer.json existed."""
    whole.model.save(str(tmp_path))
    size = whole.get_vocab_size(with_added_tokens=False)
    entries = {str(size + i): {"content": name, "special": True} for i, name in enumerate(NAMES)}
    write(tmp_path, "tokenizer_config", {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": entries})
    return tmp_path


def write(folder: Path, name: str, data: object) -> None:
    (folder / f"{name}.json").write_text(json.dumps(data), encoding="utf-8")


def encode(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]


def texts() -> list[str]:
    rng = random.Random(0)
    usual = [*sorted(set("".join(CORPUS))), *EDGES, *NAMES]
    return [*CORPUS, *EDGES, *("".join(rng.choice(usual) for _ in range(rng.randrange(30))) for _ in range(2000))]


def test_the_two_files_give_the_ids_of_tokenizer_json(whole: Tokenizer, folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert encode(tokenizer, texts()) == encode(whole, texts())
    again = Tokenizer.from_str(tokenizer.to_str())
    for ids in encode(whole, texts()):
        assert again.decode(ids) == whole.decode(ids)


def test_transformers_gives_the_same_ids(folder: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install -e '.[dev]'")
    theirs = transformers.Qwen2Tokenizer.from_pretrained(str(folder), local_files_only=True)
    for text, ids in zip(texts(), encode(load_tokenizer(folder), texts()), strict=True):
        assert ids == theirs.encode(text, add_special_tokens=False), repr(text)


def test_added_tokens_json_is_enough(whole: Tokenizer, folder: Path) -> None:
    size = whole.get_vocab_size(with_added_tokens=False)
    (folder / "tokenizer_config.json").unlink()
    write(folder, "added_tokens", {name: size + i for i, name in enumerate(NAMES)})
    tokenizer = load_tokenizer(folder)
    assert encode(tokenizer, texts()) == encode(whole, texts())
    assert tokenizer.decode([size]) == NAMES[0]  # no file marks it as special


# -- errors ----------------------------------------------------------------------------------------------------


def edit(name: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / name
        path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")

    return damage


def config(**values: Any) -> Callable[[Path], None]:
    return lambda folder: write(folder, "tokenizer_config", values)


def not_text(folder: Path) -> None:
    (folder / "merges.txt").write_bytes(b"\xff\xfe")


def with_gap(text: str) -> str:
    vocab = json.loads(text)
    return json.dumps({token: token_id + (token_id > 300) for token, token_id in vocab.items()})


def twice(text: str) -> str:
    vocab = json.loads(text)
    return json.dumps({token: min(token_id, 650) for token, token_id in vocab.items()})


def without_a_byte(text: str) -> str:
    vocab = json.loads(text)
    names = [token for token in vocab if token != "!"]
    return json.dumps({token: token_id for token_id, token in enumerate(names)})


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "merges cut at a line": (edit("merges.txt", lambda text: text[: text.index("\n", 2000)]), "has no merge for"),
    "merges cut in a line": (edit("merges.txt", lambda text: text.rstrip()[:-2]), "merges.txt"),
    "merges empty": (edit("merges.txt", lambda text: ""), "has no merge for"),
    "merges not text": (not_text, "merges.txt is not text"),
    "three words in a line": (edit("merges.txt", lambda text: text + "a b c\n"), "'a b c' is not a merge"),
    "merge of another model": (edit("merges.txt", lambda text: text + "! !\n"), "line"),
    "vocab cut": (edit("vocab.json", lambda text: text[:500]), "vocab.json is not JSON"),
    "vocab empty": (edit("vocab.json", lambda text: "{}"), "is not a valid vocabulary: 0 entries"),
    "vocab with a gap": (edit("vocab.json", with_gap), "is not a valid vocabulary"),
    "vocab with an id twice": (edit("vocab.json", twice), "is not a valid vocabulary"),
    "vocab without a byte": (edit("vocab.json", without_a_byte), "1 of the 256 bytes are missing"),
    "an id of a token": (config(added_tokens_decoder={"300": {"content": "<a>"}}), "that id is the piece"),
    "ids with a gap": (config(added_tokens_decoder={"900": {"content": "<a>"}}), "the next free id is 700"),
    "no id": (config(eos_token="<a>"), "names the special token '<a>', which has no id"),
    "GPT-2's": (config(tokenizer_class="GPT2Tokenizer"), "tokenizer_class is 'GPT2Tokenizer'"),
    "a prefix": (config(add_prefix_space=True), "add_prefix_space is True"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_or_contradicting_files_are_named(name: str, folder: Path) -> None:
    damage, reason = DAMAGE[name]
    damage(folder)
    with pytest.raises(CheckpointError, match=re.escape(reason)):
        load_tokenizer(folder)


def test_one_of_the_two_files_is_no_tokenizer(folder: Path) -> None:
    (folder / "merges.txt").unlink()
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        load_tokenizer(folder)
