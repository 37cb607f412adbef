"""tokenizer.model, a sentencepiece BPE model as InternLM2 and Llama 2 have it, as a tokenizer of `tokenizers`.

What was converted is held against sentencepiece itself, on every piece and on pieces run together, each time
it is loaded. A conversion that is nearly right gives other ids without a word; here it is an error.

How the parts correspond:
    pieces, their scores    vocabulary; a merge for every split of a piece into two, the best score first
    type BYTE               byte_fallback: a character that is no piece becomes its UTF-8 bytes
    type UNKNOWN            unk_token, one for a run of unknown characters
    type USER_DEFINED       an added token of the normalised text, looked for behind the tokens of the folder
    the piece NUL           a name that no text has
    add_dummy_prefix        Prepend, which acts on each text between two added tokens, as the slow tokenizers do, and
                            as a prompt that is fed piece by piece needs it (engines/prompt.py)
    remove_extra_whitespaces  Replace of leading, trailing and repeated spaces
Text is written as sentencepiece writes it, except for a run of bytes that is cut inside a character: tokenizers writes
all of the run as replacement characters, sentencepiece only the bytes that are left over.
What has no exact counterpart is refused by name: other kinds of models, normalisation rules (nmt_nfkc), user-defined
pieces beside a dummy prefix, pieces of one score.
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

SPACE = "\u2581"  # what sentencepiece writes for a space
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
BPE = 2
NUL, NEVER_FOUND = "\x00", "\x00\x00"
"""Sentencepiece writes a piece that is NUL (InternLM2 has one), but never finds it: a NUL in a text is a byte. Two of
them are no character and no merge makes them, so this name is never found either."""
OTHER_MODELS = {1: "unigram", 3: "word", 4: "char"}
CONVERT = "convert it where its own code is trusted, and put the tokenizer.json beside it"
PIECES_RUN_TOGETHER = 8
ALL = 1_000_000  # spaces before an answer


class SentencePieceModel:
    """A tokenizer.model that was read, checked, and found to have a counterpart."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError for a file that is damaged or of a kind that is not implemented."""
        self.path = path
        self.proto, self.processor = _read(path)
        _refuse_what_has_no_counterpart(path, self.proto)

    @property
    def ids(self) -> dict[str, int]:
        """Every piece that is not a byte, and its id."""
        return {piece.piece: i for i, piece in enumerate(self.proto.pieces) if piece.type != BYTE}

    def controls(self) -> dict[int, AddedToken]:
        """The control pieces. Sentencepiece leaves them to its caller: here they are special tokens."""
        found = {i: piece.piece for i, piece in enumerate(self.proto.pieces) if piece.type == CONTROL}
        return {i: AddedToken(name, special=True, normalized=False) for i, name in found.items()}

    def tokenizer(self, names: Mapping[int, str]) -> Tokenizer:
        """The same as a Tokenizer, without the folder's added tokens.

        `names` are the folder's names of ids. A spare piece takes such a name and loses its own: InternLM2's
        [UNUSED_TOKEN_146] is <|im_start|>. Raises CheckpointError if a piece in use would be renamed, or if
        sentencepiece gives other ids.
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
                        f"{self.path}: the id {token_id} is the piece {piece.piece!r}, but an added token calls it "
                        f"{name!r}",
                        expected="an added token under an id of its own",
                        cause="the files come from different checkpoints",
                        fix="fetch the tokenizer's files together",
                    )
                pieces[token_id] = name
        tokenizer = _assemble(self.proto, pieces, merges)
        renamed = {piece.piece for piece, name in zip(self.proto.pieces, pieces, strict=True) if piece.piece != name}
        self._compare(tokenizer, without=renamed)
        return tokenizer

    def _compare(self, tokenizer: Tokenizer, *, without: set[str]) -> None:
        """Raise CheckpointError unless both give the same ids for each piece, and for pieces run together."""
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
                    f"{self.path} has no exact counterpart: {text!r} would be {found}",
                    expected=f"{wanted}, which sentencepiece gives",
                    cause="its pieces cannot be had by merging two shorter ones in order of scores",
                    fix=CONVERT,
                )


def _read(path: Path) -> tuple[Any, Any]:
    """The model's message and sentencepiece's processor of it."""
    try:
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
        from sentencepiece import SentencePieceProcessor
        from sentencepiece import sentencepiece_model_pb2 as messages
    except ImportError as error:
        raise CheckpointError(
            f"{path} needs the packages sentencepiece and protobuf to be read ({error})",
            expected="these packages, or a tokenizer.json beside it",
            fix="pip install sentencepiece protobuf",
        ) from error
    data = path.read_bytes()
    message: Any = messages  # its classes are made when it is imported
    try:
        proto = message.ModelProto.FromString(data)
        # A file that was cut between two pieces still is a message, but has lost what follows the pieces.
        whole = proto.pieces and proto.HasField("trainer_spec") and proto.HasField("normalizer_spec")
        if whole:
            return proto, SentencePieceProcessor(model_proto=data)
        reason: object = f"its {len(data)} bytes hold {len(proto.pieces)} pieces and nothing behind them"
    except (DecodeError, RuntimeError) as error:
        reason = error
    raise CheckpointError(
        f"{path} cannot be read: {reason}", expected="a sentencepiece model", cause=BROKEN, fix=FETCH_AGAIN
    )


def _refuse_what_has_no_counterpart(path: Path, proto: Any) -> None:
    trainer, rules, types = proto.trainer_spec, proto.normalizer_spec, [piece.type for piece in proto.pieces]
    faults = {
        f"it is a {OTHER_MODELS.get(trainer.model_type)} model, and only BPE is implemented": trainer.model_type != BPE,
        f"it rewrites text by the rules {rules.name!r}": bool(rules.precompiled_charsmap),
        "it rewrites answers by rules of its own": bool(proto.denormalizer_spec.precompiled_charsmap),
        "it does not escape spaces": not rules.escape_whitespaces,
        "it puts spaces behind a word": trainer.treat_whitespace_as_suffix,
        "it has user-defined pieces, and adds or removes spaces": USER_DEFINED in types
        and (rules.add_dummy_prefix or rules.remove_extra_whitespaces),
        "it falls back to bytes, but not all 256 are pieces": trainer.byte_fallback and types.count(BYTE) != 256,
    }
    if found := [fault for fault, is_so in faults.items() if is_so]:
        raise CheckpointError(
            f"{path} has no exact counterpart: " + "; ".join(found),
            expected="a BPE model without normalisation rules, as InternLM2 and Llama 2 have",
            fix=CONVERT,
        )


def _merges(path: Path, pieces: Iterable[Any]) -> list[tuple[str, str]]:
    """Every split of a piece into two pieces, by falling score of the whole.

    Sentencepiece merges the two neighbours that give the piece of the best score, and of equal ones the leftmost;
    a list of merges can only say the first. Hence two pieces of one score are refused.
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
            reason = "is not to be used" if piece.type == UNUSED else f"has the score of {with_score[piece.score]!r}"
            raise CheckpointError(
                f"{path} has no exact counterpart: the piece {word!r} {reason}",
                expected="pieces in use, each with a score of its own",
                cause="the model was changed after it was trained",
                fix=CONVERT,
            )
        with_score[piece.score] = word
        merges += splits
    return merges


def _assemble(proto: Any, pieces: list[str], merges: list[tuple[str, str]]) -> Tokenizer:
    rules, has_bytes = proto.normalizer_spec, proto.trainer_spec.byte_fallback
    unknown = next(piece.piece for piece in proto.pieces if piece.type == UNKNOWN)  # sentencepiece asks for one
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=has_bytes)
    )
    steps: list[Any] = [normalizers.Replace(" ", SPACE)]
    if rules.add_dummy_prefix:
        steps.insert(0, normalizers.Prepend(SPACE))
    if rules.remove_extra_whitespaces:
        # At the end it takes what stands for a space as a space too, as sentencepiece does.
        ends, runs = Regex(rf"\A +|[ {SPACE}]+\z"), Regex(" {2,}")
        steps[:0] = [normalizers.Replace(ends, ""), normalizers.Replace(runs, " ")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    parts = [decoders.Replace(NEVER_FOUND, NUL), decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if rules.add_dummy_prefix or rules.remove_extra_whitespaces:
        parts.append(decoders.Strip(content=" ", left=ALL if rules.remove_extra_whitespaces else 1))
    tokenizer.decoder = decoders.Sequence(parts)
    # Of the normalised text, as sentencepiece does: where it has no tokens of the folder.
    own = [name for name, piece in zip(pieces, proto.pieces, strict=True) if piece.type == USER_DEFINED]
    kept = [name for name in own if name in {piece.piece for piece in proto.pieces}]
    tokenizer.add_tokens([AddedToken(name, normalized=True) for name in kept])
    return tokenizer
