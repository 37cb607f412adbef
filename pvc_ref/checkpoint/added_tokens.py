"""Added tokens of a checkpoint folder: the vocabulary besides the pieces of the tokenizer's model.

They are read from tokenizer_config.json ("added_tokens_decoder"), added_tokens.json and special_tokens_map.json. The
files may repeat but not contradict each other. Ids are never invented: a token without an id is an error. A
"tokenizer_class" or "auto_map" in them names code to run, and is ignored here.
Source: the files that transformers 4 and 5 write for a tokenizer without tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from ..errors import CheckpointError
from .files import FETCH_AGAIN, read_json

CONFIG, ADDED, SPECIAL = "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
SEVERAL = "additional_special_tokens"
MIXED, FETCH_TOGETHER = "the files come from different checkpoints", "fetch the tokenizer's files together"


def read_config(folder: Path) -> dict[str, Any]:
    """Read tokenizer_config.json; empty if the folder has none."""
    return _read(folder / CONFIG)


def read_added_tokens(folder: Path, pieces: Mapping[str, int]) -> dict[int, AddedToken]:
    """Read the added tokens by id. `pieces` are those of the tokenizer's model: a special token may be one of them.

    All are matched in the text before it is normalised, as in the slow tokenizers.
    Raises CheckpointError for a file that is damaged or contradicts another.
    """
    tokens: dict[int, AddedToken] = {}
    ids: dict[str, int] = {}
    for token_id, token, file in _listed(folder):
        other = tokens.get(token_id)
        if ids.get(token.content, token_id) != token_id or (other is not None and other.content != token.content):
            there = f"{ids[token.content]}" if token.content in ids else f"that of {tokens[token_id].content!r}"
            raise CheckpointError(
                f"{folder / file} gives {token.content!r} the id {token_id}",
                expected=f"one id per token and one token per id: in another place it is {there}",
                cause=MIXED,
                fix=FETCH_TOGETHER,
            )
        if other is None:
            tokens[token_id], ids[token.content] = token, token_id
    for name, file in _special(folder):
        if name not in ids:
            if name not in pieces:
                raise CheckpointError(
                    f"{folder / file} names the special token {name!r}, which has no id",
                    expected=f"an id among the tokenizer's pieces, in {ADDED}, or in {CONFIG}",
                    cause=f"{ADDED} was not fetched",
                    fix=FETCH_TOGETHER,
                )
            ids[name] = pieces[name]
            tokens[ids[name]] = AddedToken(name, normalized=False)
        tokens[ids[name]].special = True
    return dict(sorted(tokens.items()))


def add_tokens(tokenizer: Tokenizer, tokens: Mapping[int, AddedToken], folder: Path) -> None:
    """Add the tokens to `tokenizer`, in order of ids. Raises CheckpointError if an id is taken or not consecutive."""
    next_id = tokenizer.get_vocab_size()
    for token_id, token in tokens.items():
        known = tokenizer.token_to_id(token.content)
        if known is None and token_id == next_id:
            next_id += 1
        elif known != token_id:
            reason = f"the tokenizer's model gives it {known}"
            if known is None:
                taken = tokenizer.id_to_token(token_id)
                reason = f"the next free id is {next_id}" if taken is None else f"that id is the piece {taken!r}"
            raise CheckpointError(
                f"{folder}: the added token {token.content!r} has the id {token_id}, but {reason}",
                expected="ids that directly follow those of the pieces, or an added token that is a piece",
                cause=MIXED,
                fix=FETCH_TOGETHER,
            )
    tokenizer.add_tokens(list(tokens.values()))
    wrong = {token.content for i, token in tokens.items() if tokenizer.token_to_id(token.content) != i}
    assert not wrong, f"added under other ids: {wrong}"


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _listed(folder: Path) -> Iterator[tuple[int, AddedToken, str]]:
    """Yield every token that has an id in a file, and the file; the more detailed file comes first."""
    decoder = read_config(folder).get("added_tokens_decoder", {})
    if not isinstance(decoder, dict):
        raise _malformed(folder / CONFIG, "added_tokens_decoder", decoder)
    for key, entry in decoder.items():
        content = entry.get("content") if isinstance(entry, dict) else None
        if not key.isdecimal() or not isinstance(content, str) or not content:
            raise _malformed(folder / CONFIG, f"added_tokens_decoder[{key!r}]", entry)
        flags = {flag: bool(entry.get(flag, False)) for flag in ("lstrip", "rstrip", "single_word", "special")}
        yield int(key), AddedToken(content, normalized=False, **flags), CONFIG
    for content, token_id in _read(folder / ADDED).items():
        if type(token_id) is not int or token_id < 0 or not content:
            raise _malformed(folder / ADDED, repr(content), token_id)
        yield token_id, AddedToken(content, normalized=False), ADDED


def _special(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield every token that a file calls special, and the file."""
    for file in (CONFIG, SPECIAL):
        data = _read(folder / file)
        several = data.get(SEVERAL) or []
        if not isinstance(several, list):
            raise _malformed(folder / file, SEVERAL, several)
        for name in (*(data.get(role) for role in ROLES), *several):
            content = name.get("content") if isinstance(name, dict) else name
            if content is None or content == "":  # the tokenizer does not have this role
                continue
            if not isinstance(content, str):
                raise _malformed(folder / file, "a special token", name)
            yield content, file


def _malformed(path: Path, key: str, found: object) -> CheckpointError:
    return CheckpointError(
        f"{path}: {key} is {found!r}", expected="tokens and their ids, as transformers writes them", fix=FETCH_AGAIN
    )
