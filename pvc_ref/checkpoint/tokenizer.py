"""The tokenizer of a checkpoint folder, from whichever files it has, without running any of the folder's code.

tokenizer.json has priority. Without it, tokenizer.model (InternLM2, Llama 2) or vocab.json with merges.txt (Qwen2) is
converted, together with the folder's added tokens. Text between two added tokens is tokenized separately, as in the
slow tokenizers; therefore a prompt can be fed in parts.

Nothing is added around a text: `<s>` is part of the templates (pvc_ref/prompt.py), so the result has no
post-processor. `Tokenizer.save` writes everything, and a bundle contains that file.
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
    """Load the tokenizer of `folder`. Raises CheckpointError if there is none or it cannot be read or converted."""
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
            cause="a broken download, or an older file format",
            fix="fetch or convert it again",
        ) from error


def _from_sentencepiece(folder: Path) -> Tokenizer:
    model, config = SentencePieceModel(folder / SENTENCEPIECE), read_config(folder)
    if model.proto.normalizer_spec.add_dummy_prefix:
        # Either makes transformers add the prefix only once or never, not to every text between two tokens.
        for option in ("legacy", "add_prefix_space"):
            if config.get(option) is False:
                raise _not_implemented(folder, option, config[option])
    tokens = model.controls() | read_added_tokens(folder, model.ids)
    tokenizer = model.tokenizer({token_id: token.content for token_id, token in tokens.items()})
    add_tokens(tokenizer, dict(sorted(tokens.items())), folder)
    return tokenizer


def _from_vocab_and_merges(folder: Path) -> Tokenizer:
    config = read_config(folder)
    if config.get("tokenizer_class") not in QWEN2_CLASSES:  # GPT-2 has the same files, but splits words differently
        raise _not_implemented(folder, "tokenizer_class", config["tokenizer_class"])
    if config.get("add_prefix_space"):
        raise _not_implemented(folder, "add_prefix_space", config["add_prefix_space"])
    vocab = _read_vocab(folder / VOCAB)
    merges, tokens = _read_merges(folder / MERGES, vocab), read_added_tokens(folder, vocab)
    made = {left + right for left, right in merges} | {token.content for token in tokens.values()}
    if lost := [token for token in vocab if len(token) > 1 and token not in made]:
        raise CheckpointError(
            f"{folder / MERGES} has no merge for {len(lost)} tokens of {VOCAB}, first {lost[0]!r}",
            expected="a merge for every token longer than a byte",
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
            f"{path} is not a valid vocabulary: {len(vocab)} entries, and {len(absent)} of the 256 bytes are missing",
            expected="consecutive ids from 0, with one for every byte",
            cause=BROKEN,
            fix=FETCH_AGAIN,
        )
    return vocab


def _read_merges(path: Path, vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Read one merge per line: two tokens whose concatenation is also a token. The first line may be a comment."""
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
                f"{path}, line {number}: {line!r} is not a merge of two tokens in {VOCAB}",
                expected="two tokens separated by a space",
                cause=f"{BROKEN}, or {VOCAB} belongs to another model",
                fix=FETCH_AGAIN,
            )
        merges.append((left, right))
    return merges


def _not_implemented(folder: Path, key: str, value: Any) -> CheckpointError:
    return CheckpointError(
        f"{folder / CONFIG}: {key} is {value!r}, which is not implemented for a folder without {TOKENIZER_FILE}",
        expected="the tokenizer of InternLM2, Llama 2 or Qwen2",
        fix=CONVERT,
    )
