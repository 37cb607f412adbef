"""Conversion of tokenizer.model (a sentencepiece BPE model, as in InternLM2 and Llama 2) to `tokenizers`.

Every conversion is checked against sentencepiece when it is loaded, on every piece and on concatenated pieces. An
almost right conversion would silently give other ids; here it is an error.

Correspondence of the parts:
    pieces, their scores    vocabulary; a merge for every split of a piece into two, the best score first
    type BYTE               byte_fallback: a character that is not a piece becomes its UTF-8 bytes
    type UNKNOWN            unk_token, one per run of unknown characters
    type USER_DEFINED       an added token in the normalised text, matched after the tokens of the folder
    the piece NUL           a name that occurs in no text
    add_dummy_prefix        Prepend, which acts on each text between two added tokens, as in the slow tokenizers and
                            as required by a prompt that is fed in parts (engines/prompt.py)
    remove_extra_whitespaces  Replace of leading, trailing and repeated spaces
Decoding equals sentencepiece's, except for a run of bytes cut inside a character: tokenizers replaces the whole run
with replacement characters, sentencepiece only the bytes left over.
Anything without an exact counterpart is rejected by name: other model types, normalisation rules (nmt_nfkc),
user-defined pieces together with a dummy prefix, and pieces with equal scores.
Source: sentencepiece 0.2.3, bpe_model.cc, normalizer.cc and sentencepiece_model.proto.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

from ..errors import CheckpointError
from .files import BROKEN, FETCH_AGAIN

SPACE = "\u2581"  # sentencepiece's character for a space
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
BPE = 2
NUL, NEVER_FOUND = "\x00", "\x00\x00"
"""Sentencepiece decodes the piece NUL (InternLM2 has one), but never finds it in a text, where a NUL is a byte. Two
NULs are not a character and no merge produces them, so the replacement name is never found either."""
OTHER_MODELS = {1: "unigram", 3: "word", 4: "char"}
CONVERT = "convert it where you trust its code, and put the tokenizer.json next to it"
PIECES_RUN_TOGETHER = 8
ALL = 1_000_000  # spaces before an answer


class SentencePieceModel:
    """A tokenizer.model that was read and checked to be convertible."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError for a damaged file or one of a kind that is not implemented."""
        self.path = path
        self.proto, self.processor = _read(path)
        _refuse_what_has_no_counterpart(path, self.proto)

    @property
    def ids(self) -> dict[str, int]:
        """Map every piece that is not a byte to its id."""
        return {piece.piece: i for i, piece in enumerate(self.proto.pieces) if piece.type != BYTE}

    def controls(self) -> dict[int, AddedToken]:
        """Return the control pieces as special tokens. Sentencepiece leaves them to its caller."""
        found = {i: piece.piece for i, piece in enumerate(self.proto.pieces) if piece.type == CONTROL}
        return {i: AddedToken(name, special=True, normalized=False) for i, name in found.items()}

    def tokenizer(self, names: Mapping[int, str]) -> Tokenizer:
        """Convert to a Tokenizer, without the folder's added tokens.

        `names` are the folder's names of ids. A spare piece is renamed accordingly: InternLM2's [UNUSED_TOKEN_146]
        becomes <|im_start|>. Raises CheckpointError if a piece in use would be renamed, or if sentencepiece gives
        other ids.
        """
        merges = _merges(self.path, self.proto.pieces)
        made = {left + right for left, right in merges}
        pieces = [NEVER_FOUND if piece.piece == NUL else piece.piece for piece in self.proto.pieces]
        for token_id, name in names.items():
            if token_id < len(pieces) and pieces[token_id] != name:
                piece = self.proto.pieces[token_id]
                is_word = piece.type in (NORMAL, UNUSED) and (piece.piece in made or len(piece.piece) == 1)
                if is_word or piece.type in (BYTE, UNKNOWN) or name in pieces:
                    raise CheckpointError(
                        f"{self.path}: id {token_id} is the piece {piece.piece!r}, but an added token calls it "
                        f"{name!r}",
                        expected="an added token with an unused id",
                        cause="the files come from different checkpoints",
                        fix="fetch the tokenizer's files together",
                    )
                pieces[token_id] = name
        tokenizer = _assemble(self.proto, pieces, merges)
        renamed = {piece.piece for piece, name in zip(self.proto.pieces, pieces, strict=True) if piece.piece != name}
        self._compare(tokenizer, without=renamed)
        return tokenizer

    def _compare(self, tokenizer: Tokenizer, *, without: set[str]) -> None:
        """Raise CheckpointError unless both give the same ids for each piece and for concatenated pieces."""
        kinds = (NORMAL, USER_DEFINED, UNUSED)
        words = [p.piece.replace(SPACE, " ") for p in self.proto.pieces if p.type in kinds and p.piece not in without]
        shuffled = random.Random(0).sample(words, len(words))
        starts = range(0, len(words), PIECES_RUN_TOGETHER)
        joined = ["".join(order[i : i + PIECES_RUN_TOGETHER]) for order in (words, shuffled) for i in starts]
        texts = words + joined
        ours = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
        for text, found, wanted in zip(texts, ours, self.processor.encode(texts), strict=True):
            if found != wanted:
                raise CheckpointError(
                    f"{self.path} cannot be converted exactly: {text!r} would become {found}",
                    expected=f"{wanted}, the ids from sentencepiece",
                    cause="some pieces cannot be built by merging two shorter ones in order of scores",
                    fix=CONVERT,
                )


def _read(path: Path) -> tuple[Any, Any]:
    """Read the model's protobuf message and make sentencepiece's processor for it."""
    try:
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
        from sentencepiece import SentencePieceProcessor
        from sentencepiece import sentencepiece_model_pb2 as messages
    except ImportError as error:
        raise CheckpointError(
            f"the packages sentencepiece and protobuf are needed to read {path} ({error})",
            expected="these packages, or a tokenizer.json next to the file",
            fix="pip install sentencepiece protobuf",
        ) from error
    data = path.read_bytes()
    message: Any = messages  # its classes are created on import
    try:
        proto = message.ModelProto.FromString(data)
        # A file cut between two pieces is still a valid message, but lacks everything after the pieces.
        whole = proto.pieces and proto.HasField("trainer_spec") and proto.HasField("normalizer_spec")
        if whole:
            return proto, SentencePieceProcessor(model_proto=data)
        reason: object = f"its {len(data)} bytes end after {len(proto.pieces)} pieces"
    except (DecodeError, RuntimeError) as error:
        reason = error
    raise CheckpointError(
        f"{path} cannot be read: {reason}", expected="a sentencepiece model", cause=BROKEN, fix=FETCH_AGAIN
    )


def _refuse_what_has_no_counterpart(path: Path, proto: Any) -> None:
    trainer, rules, types = proto.trainer_spec, proto.normalizer_spec, [piece.type for piece in proto.pieces]
    faults = {
        f"it is a {OTHER_MODELS.get(trainer.model_type)} model, and only BPE is implemented": trainer.model_type != BPE,
        f"it normalises text by the rules {rules.name!r}": bool(rules.precompiled_charsmap),
        "it has rules that rewrite decoded text": bool(proto.denormalizer_spec.precompiled_charsmap),
        "it does not escape spaces": not rules.escape_whitespaces,
        "it puts spaces after a word": trainer.treat_whitespace_as_suffix,
        "it has user-defined pieces and also adds or removes spaces": USER_DEFINED in types
        and (rules.add_dummy_prefix or rules.remove_extra_whitespaces),
        "it falls back to bytes, but not all 256 are pieces": trainer.byte_fallback and types.count(BYTE) != 256,
    }
    if found := [fault for fault, is_so in faults.items() if is_so]:
        raise CheckpointError(
            f"{path} cannot be converted exactly: " + "; ".join(found),
            expected="a BPE model without normalisation rules, as in InternLM2 and Llama 2",
            fix=CONVERT,
        )


def _merges(path: Path, pieces: Iterable[Any]) -> list[tuple[str, str]]:
    """List every split of a piece into two pieces, by descending score of the whole.

    Sentencepiece merges the two neighbours that give the piece with the best score, and at equal scores the leftmost.
    A list of merges can only express the former, so two pieces with equal scores are rejected.
    """
    words = {piece.piece: piece for piece in pieces if piece.type in (NORMAL, UNUSED)}
    merges: list[tuple[str, str]] = []
    with_score: dict[float, str] = {}
    for piece in sorted(words.values(), key=lambda piece: -piece.score):
        word = piece.piece
        splits = [(word[:i], word[i:]) for i in range(1, len(word)) if word[:i] in words and word[i:] in words]
        if not splits:
            continue
        if piece.type == UNUSED or piece.score in with_score:
            reason = (
                "is marked unused" if piece.type == UNUSED else f"has the same score as {with_score[piece.score]!r}"
            )
            raise CheckpointError(
                f"{path} cannot be converted exactly: the piece {word!r} {reason}",
                expected="pieces in use, each with a different score",
                cause="the model was edited after training",
                fix=CONVERT,
            )
        with_score[piece.score] = word
        merges += splits
    return merges


def _assemble(proto: Any, pieces: list[str], merges: list[tuple[str, str]]) -> Tokenizer:
    rules, has_bytes = proto.normalizer_spec, proto.trainer_spec.byte_fallback
    unknown = next(piece.piece for piece in proto.pieces if piece.type == UNKNOWN)  # sentencepiece requires one
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=has_bytes)
    )
    steps: list[Any] = [normalizers.Replace(" ", SPACE)]
    if rules.add_dummy_prefix:
        steps.insert(0, normalizers.Prepend(SPACE))
    if rules.remove_extra_whitespaces:
        # At the end, SPACE also counts as a space, as in sentencepiece.
        ends, runs = Regex(rf"\A +|[ {SPACE}]+\z"), Regex(" {2,}")
        steps[:0] = [normalizers.Replace(ends, ""), normalizers.Replace(runs, " ")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    parts = [decoders.Replace(NEVER_FOUND, NUL), decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if rules.add_dummy_prefix or rules.remove_extra_whitespaces:
        parts.append(decoders.Strip(content=" ", left=ALL if rules.remove_extra_whitespaces else 1))
    tokenizer.decoder = decoders.Sequence(parts)
    # Matched in the normalised text, as in sentencepiece, outside of the folder's tokens.
    own = [name for name, piece in zip(pieces, proto.pieces, strict=True) if piece.type == USER_DEFINED]
    kept = [name for name in own if name in {piece.piece for piece in proto.pieces}]
    tokenizer.add_tokens([AddedToken(name, normalized=True) for name in kept])
    return tokenizer
