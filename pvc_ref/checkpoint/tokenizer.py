"""The tokenizer of a checkpoint folder, from whatever files it has, and without running any code of the folder.

tokenizer.json wins. Without it, tokenizer.model (InternLM2, Llama 2) or vocab.json with merges.txt (Qwen2) are
converted, together with the folder's added tokens. Every text between two added tokens is tokenized by itself: that is
what the slow tokenizers do, and what lets a prompt be fed piece by piece.

Nothing is written around a text: `<s>` is part of the templates (pvc_ref/prompt.py), so the result has no
post-processor. `Tokenizer.save` writes all of it, and a bundle carries that.
Source: the slow tokenizers of InternVL2's checkpoints; vocab.json and merges.txt as transformers' Qwen2Tokenizer reads
them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from ..errors import CheckpointError
from .added_tokens import CONFIG, add_tokens, read_added_tokens, read_config
from .files import BROKEN, FETCH_AGAIN, TOKENIZER_FILE, read_json
from .sentencepiece_bpe import CONVERT, SentencePieceModel

SENTENCEPIECE, VOCAB, MERGES = "tokenizer.model", "vocab.json", "merges.txt"
QWEN2_CLASSES = ("Qwen2Tokenizer", "Qwen2TokenizerFast", None)
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of `folder`. Raises CheckpointError if it has none, or one that cannot be read or converted."""
    if (folder / TOKENIZER_FILE).is_file():
        return _from_json(folder / TOKENIZER_FILE)
    if (folder / SENTENCEPIECE).is_file():
        return _from_sentencepiece(folder)
    if (folder / VOCAB).is_file() and (folder / MERGES).is_file():
        return _from_vocab_and_merges(folder)
    raise CheckpointError(
        f"{folder} has no tokenizer",
        expected=f"{TOKENIZER_FILE}, {SENTENCEPIECE}, or {VOCAB} with {MERGES}",
        fix="fetch the tokenizer's files that were released with the checkpoint",
    )


def _from_json(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(
            f"{path} is not a tokenizer file: {error}",
            cause="a broken download, or a file of an older format",
            fix="fetch or convert it again",
        ) from error


def _from_sentencepiece(folder: Path) -> Tokenizer:
    model, config = SentencePieceModel(folder / SENTENCEPIECE), read_config(folder)
    if model.proto.normalizer_spec.add_dummy_prefix:
        # Both make transformers add the prefix once and not to every text between two tokens, or never.
        for option in ("legacy", "add_prefix_space"):
            if config.get(option) is False:
                raise _not_implemented(folder, option, config[option])
    tokens = model.controls() | read_added_tokens(folder, model.ids)
    tokenizer = model.tokenizer({token_id: token.content for token_id, token in tokens.items()})
    add_tokens(tokenizer, dict(sorted(tokens.items())), folder)
    return tokenizer


def _from_vocab_and_merges(folder: Path) -> Tokenizer:
    config = read_config(folder)
    if config.get("tokenizer_class") not in QWEN2_CLASSES:  # GPT-2's files look the same, and it splits other words
        raise _not_implemented(folder, "tokenizer_class", config["tokenizer_class"])
    if config.get("add_prefix_space"):
        raise _not_implemented(folder, "add_prefix_space", config["add_prefix_space"])
    vocab = _read_vocab(folder / VOCAB)
    merges, tokens = _read_merges(folder / MERGES, vocab), read_added_tokens(folder, vocab)
    made = {left + right for left, right in merges} | {token.content for token in tokens.values()}
    if lost := [token for token in vocab if len(token) > 1 and token not in made]:
        raise CheckpointError(
            f"{folder / MERGES} has no merge for {len(lost)} tokens of {VOCAB}, first {lost[0]!r}",
            expected="one for each that is longer than a byte",
            cause="an interrupted download",
            fix=FETCH_AGAIN,
        )
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    add_tokens(tokenizer, tokens, folder)
    return tokenizer


def _read_vocab(path: Path) -> dict[str, int]:
    vocab = read_json(path)
    absent = set(pre_tokenizers.ByteLevel.alphabet()) - vocab.keys()
    are_ids = all(type(token_id) is int for token_id in vocab.values())
    if not vocab or not are_ids or sorted(vocab.values()) != list(range(len(vocab))) or absent:
        raise CheckpointError(
            f"{path} is no vocabulary: {len(vocab)} entries, and {len(absent)} of the 256 bytes are absent",
            expected="ids from 0 without a gap, among them one for every byte",
            cause=BROKEN,
            fix=FETCH_AGAIN,
        )
    return vocab


def _read_merges(path: Path, vocab: dict[str, int]) -> list[tuple[str, str]]:
    """A merge a line: two tokens whose concatenation is a third. The first line may be a comment."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not text: {error}", cause=BROKEN, fix=FETCH_AGAIN) from error
    merges: list[tuple[str, str]] = []
    for number, line in enumerate(lines, start=1):
        if (number == 1 and line.startswith("#version")) or not line:
            continue
        left, _, right = line.partition(" ")
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise CheckpointError(
                f"{path}, line {number}: {line!r} is no merge of tokens of {VOCAB}",
                expected="two tokens and a space between them",
                cause=f"{BROKEN}, or {VOCAB} belongs to another model",
                fix=FETCH_AGAIN,
            )
        merges.append((left, right))
    return merges


def _not_implemented(folder: Path, key: str, value: Any) -> CheckpointError:
    return CheckpointError(
        f"{folder / CONFIG}: {key} is {value!r}, which is not implemented for a folder without {TOKENIZER_FILE}",
        expected="a tokenizer as InternLM2, Llama 2 or Qwen2 have it",
        fix=CONVERT,
    )
