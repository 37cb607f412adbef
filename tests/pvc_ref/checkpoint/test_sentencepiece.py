"""tokenizer.model without tokenizer.json: ids equal sentencepiece's, with added tokens in between.

The oracle is sentencepiece itself, with models trained here: it encodes each text between two added tokens.
"""

from __future__ import annotations

import io
import json
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import Tokenizer

from pvc_ref.checkpoint.tokenizer import load_tokenizer
from pvc_ref.errors import CheckpointError

from .scripts import CORPUS, SCRIPTS

UNUSED = [f"[UNUSED_TOKEN_{index}]" for index in range(4)]
SPARE = {"add_dummy_prefix": False, "user_defined_symbols": [*UNUSED, "fox", "oxj", "\u2581\u2581", "\n\n"]}
MODELS: dict[str, dict[str, Any]] = {
    "Llama 2's options": {},
    "no dummy prefix": {"add_dummy_prefix": False},
    "extra spaces removed": {"remove_extra_whitespaces": True},
    "no prefix, extra spaces removed": {"add_dummy_prefix": False, "remove_extra_whitespaces": True},
    "no byte fallback": {"byte_fallback": False, "vocab_size": 600, "character_coverage": 0.98},
    "user-defined pieces, as InternLM2's": SPARE,
}
WITH_BYTES = [name for name in MODELS if name != "no byte fallback"]
NAMES = ("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")
EDGES = [
    "", " ", "  ", "   a", "a   ", "a  b", "\n", "\n\n", " \n ", "\t", "\r\n", "\u2581", " \u2581a\u2581 ", "\x00",
    "🦊", "e\u0301é\ufb01Ａ", "\u200d\u200b\ufeff", "foxjumps", "[UNUSED_TOKEN_3][UNUSED_TOKEN_3", "x" * 300,
]  # fmt: skip

Folder = Callable[..., Path]


def train(**options: Any) -> bytes:
    """Train a BPE model on the corpus, with Llama 2's options unless others are given."""
    usual = {
        "model_type": "bpe", "vocab_size": 800, "byte_fallback": True, "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False, "character_coverage": 0.995, "minloglevel": 2, "num_threads": 1,
    }  # fmt: skip
    file = io.BytesIO()
    sentences = iter(CORPUS * 5)
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=sentences, model_writer=file, **usual | options)
    return file.getvalue()


@pytest.fixture(scope="module", name="trained")
def trained_once() -> Callable[[str], bytes]:
    kept: dict[str, bytes] = {}

    def trained(name: str) -> bytes:
        if name not in kept:
            kept[name] = train(**MODELS[name])
        return kept[name]

    return trained


@pytest.fixture(name="folder")
def make_folder(tmp_path: Path) -> Folder:
    def folder(model: bytes, **files: Any) -> Path:
        (tmp_path / "tokenizer.model").write_bytes(model)
        for name, data in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(data), encoding="utf-8")
        return tmp_path

    return folder


def processor_of(model: bytes) -> Any:
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def random_texts(count: int) -> list[str]:
    """Random texts of the corpus's code points, all of Unicode, spaces, newlines, tabs and emoji."""
    rng = random.Random(0)
    usual = sorted(set("".join(CORPUS))) + [
        " ",
        " ",
        "\n",
        "\t",
        "\r",
        "\u2581",
        "🤖",
        "👩\u200d🚀",
        "  ",
        "the",
        "狐狸",
    ]

    def one() -> str:
        if rng.random() < 0.9:
            return rng.choice(usual)
        return chr(rng.choice((rng.randrange(0xD800), rng.randrange(0xE000, 0x110000))))

    return ["".join(one() for _ in range(rng.randrange(40))) for _ in range(count)]


def encode(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]


def assert_same_ids(tokenizer: Tokenizer, oracle: Callable[[str], list[int]], texts: list[str]) -> None:
    for text, ids in zip(texts, encode(tokenizer, texts), strict=True):
        assert ids == oracle(text), repr(text)


def oracle_of(model: bytes, ids: dict[str, int]) -> Callable[[str], list[int]]:
    """Encode as the slow tokenizers do: sentencepiece for each text between added tokens, and their ids in between."""
    processor = processor_of(model)
    cut = re.compile("(" + "|".join(re.escape(name) for name in sorted(ids, key=len, reverse=True)) + ")")

    def oracle(text: str) -> list[int]:
        parts = [[ids[part]] if part in ids else processor.encode(part) for part in cut.split(text) if part]
        return [token_id for part in parts for token_id in part]

    return oracle


# -- plain text ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("name", MODELS)
def test_every_script_has_the_ids_of_sentencepiece(
    name: str, script: str, trained: Callable[[str], bytes], folder: Folder
) -> None:
    model = trained(name)
    assert_same_ids(load_tokenizer(folder(model)), processor_of(model).encode, list(SCRIPTS[script]))


@pytest.mark.parametrize("name", MODELS)
def test_spaces_newlines_emoji_and_random_text_have_the_ids_of_sentencepiece(
    name: str, trained: Callable[[str], bytes], folder: Folder
) -> None:
    model = trained(name)
    assert_same_ids(load_tokenizer(folder(model)), processor_of(model).encode, EDGES + random_texts(3000))


@pytest.mark.parametrize("name", WITH_BYTES)
def test_ids_become_the_text_that_sentencepiece_writes(
    name: str, trained: Callable[[str], bytes], folder: Folder
) -> None:
    model = trained(name)
    tokenizer, processor = load_tokenizer(folder(model)), processor_of(model)
    for text in EDGES + random_texts(500):
        ids = processor.encode(text)
        assert tokenizer.decode(ids) == processor.decode(ids), repr(text)


@pytest.mark.parametrize("seed", range(8))
def test_the_best_score_is_merged_first_and_not_the_shortest_piece(seed: int, folder: Folder) -> None:
    """A model of few letters and many overlapping pieces, with scores in random order."""
    rng = random.Random(seed)
    proto = ModelProto()
    proto.trainer_spec.model_type, proto.normalizer_spec.add_dummy_prefix = 2, False
    proto.normalizer_spec.remove_extra_whitespaces = False
    proto.pieces.add(piece="<unk>", type=2)
    words = {"a", "b", *("".join(rng.choice("ab") for _ in range(rng.randrange(2, 6))) for _ in range(12))}
    for score, word in enumerate(rng.sample(sorted(words), len(words))):
        proto.pieces.add(piece=word, score=-score)
    model = proto.SerializeToString()
    texts = ["".join(rng.choice("ab") for _ in range(30)) for _ in range(100)]
    assert_same_ids(load_tokenizer(folder(model)), processor_of(model).encode, texts)


# -- added tokens ----------------------------------------------------------------------------------------------


def around(names: list[str]) -> list[str]:
    """Texts with the tokens at the start, middle and end, next to each other, with and without surrounding spaces."""
    rng = random.Random(1)
    texts = ["".join(names), " ".join(names), "\n".join(names), "x" + names[0][:-1], names[0][1:]]
    for name in names:
        texts += [name, f"{name}a", f"a{name}", f"a{name}b", f" {name} ", f"a {name} b", f"  {name}\n  b", name * 2]
    between = [*names, *EDGES, *CORPUS]
    return texts + ["".join(rng.choice(between) for _ in range(6)) for _ in range(1000)]


@pytest.mark.parametrize("name", MODELS)
def test_added_tokens_are_cut_out_and_keep_their_ids(
    name: str, trained: Callable[[str], bytes], folder: Folder
) -> None:
    model = trained(name)
    size = processor_of(model).vocab_size()
    ids = {token: size + index for index, token in enumerate(NAMES)}
    decoder = {str(i): {"content": token, "special": True, "normalized": True} for token, i in ids.items()}
    ids |= {"<s>": 1, "</s>": 2}  # control pieces
    tokenizer = load_tokenizer(folder(model, tokenizer_config={"added_tokens_decoder": decoder}))
    assert {token: tokenizer.token_to_id(token) for token in ids} == ids
    assert_same_ids(tokenizer, oracle_of(model, ids), around(list(ids)))
    again = Tokenizer.from_str(tokenizer.to_str())
    assert encode(again, around(list(ids))) == encode(tokenizer, around(list(ids)))
    assert tokenizer.decode([ids["<img>"], *processor_of(model).encode("fox")]) == "fox"


def test_a_spare_piece_takes_the_name_that_the_folder_gives_it(trained: Callable[[str], bytes], folder: Folder) -> None:
    """InternLM2's <|im_start|> is [UNUSED_TOKEN_146] in its tokenizer.model. The old name is then ordinary text."""
    model = trained("user-defined pieces, as InternLM2's")
    processor = processor_of(model)
    ids = {"<|im_start|>": processor.piece_to_id(UNUSED[0]), "<|im_end|>": processor.piece_to_id(UNUSED[1])}
    ids["<img>"] = processor.vocab_size()
    tokenizer = load_tokenizer(folder(model, added_tokens=ids, special_tokens_map={"eos_token": "<|im_end|>"}))
    assert_same_ids(tokenizer, oracle_of(model, ids), around([*ids, UNUSED[3]]))
    assert set(encode(tokenizer, [UNUSED[0]])[0]).isdisjoint(ids.values())
    assert {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special} == {
        "<|im_end|>", "<s>", "</s>"
    }  # fmt: skip


def test_a_spare_piece_does_not_take_the_name_of_another(trained: Callable[[str], bytes], folder: Folder) -> None:
    model = trained("user-defined pieces, as InternLM2's")
    with pytest.raises(CheckpointError, match="but an added token calls it 'oxj'"):
        load_tokenizer(folder(model, added_tokens={"oxj": processor_of(model).piece_to_id(UNUSED[0])}))


def test_a_token_may_take_the_spaces_beside_it(trained: Callable[[str], bytes], folder: Folder) -> None:
    entry = {"content": "<img>", "special": True, "lstrip": True, "rstrip": True}
    config = {"added_tokens_decoder": {"800": entry}}
    tokenizer = load_tokenizer(folder(trained("no dummy prefix"), tokenizer_config=config))
    assert encode(tokenizer, ["a  <img> b"]) == encode(tokenizer, ["a<img>b"])


def test_tokenizer_json_wins(trained: Callable[[str], bytes], folder: Folder) -> None:
    path = folder(trained("no dummy prefix"))
    load_tokenizer(path).save(str(path / "tokenizer.json"))
    (path / "tokenizer.model").write_bytes(b"damaged")
    assert load_tokenizer(path).get_vocab_size() == 800


def test_remote_code_is_not_run(trained: Callable[[str], bytes], folder: Folder) -> None:
    config = {"auto_map": {"AutoTokenizer": ["remote.T", None]}, "tokenizer_class": "T"}
    path = folder(trained("no dummy prefix"), tokenizer_config=config)
    (path / "remote.py").write_text("raise SystemExit('was run')")
    assert load_tokenizer(path).token_to_id("<s>") == 1
    assert "remote" not in sys.modules


def test_a_piece_that_is_nul_is_written_and_never_found_as_sentencepiece_does(
    trained: Callable[[str], bytes], folder: Folder
) -> None:
    proto = ModelProto.FromString(trained("no dummy prefix"))
    for text in ("\x00", "[UNUSED_TOKEN_0]"):  # both in InternLM2's, as words
        proto.pieces.add(piece=text, score=min(piece.score for piece in proto.pieces) - 1, type=1)
    oracle = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    tokenizer = load_tokenizer(folder(proto.SerializeToString()))
    nul = len(proto.pieces) - 2
    for text in ("\x00", "a\x00\x00b", "[UNUSED_TOKEN_0]"):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == oracle.encode(text) and nul not in ids
    for ids in ([nul], [300, nul, nul, 301], [nul + 1]):
        assert tokenizer.decode(ids) == oracle.decode(ids)


# -- errors ----------------------------------------------------------------------------------------------------


def test_a_damaged_model_is_named(trained: Callable[[str], bytes], folder: Folder) -> None:
    model = trained("no dummy prefix")
    damaged = [b"", b"\x00" * 40, b"no model", *(model[:size] for size in (1, 300, len(model) // 2, len(model) - 40))]
    for data in damaged:
        with pytest.raises(CheckpointError, match=r"tokenizer\.model cannot be read"):
            load_tokenizer(folder(data))


def test_a_model_that_was_cut_between_two_fields_is_named(trained: Callable[[str], bytes], folder: Folder) -> None:
    proto = ModelProto.FromString(trained("no dummy prefix"))
    proto.ClearField("normalizer_spec")
    with pytest.raises(CheckpointError, match=r"bytes end after \d+ pieces"):
        load_tokenizer(folder(proto.SerializeToString()))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"model_type": "unigram", "vocab_size": 580}, "it is a unigram model"),
        ({"model_type": "char", "vocab_size": 500}, "it is a char model"),
        ({"normalization_rule_name": "nmt_nfkc"}, "it normalises text by the rules 'nmt_nfkc'"),
        ({"user_defined_symbols": ["fox"]}, "it has user-defined pieces and also adds or removes spaces"),
        ({"treat_whitespace_as_suffix": True}, "it puts spaces after a word"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_model_without_a_counterpart_is_refused_by_name(options: dict[str, Any], reason: str, folder: Folder) -> None:
    with pytest.raises(CheckpointError, match=re.escape(reason)):
        load_tokenizer(folder(train(**options)))


def changed(model: bytes, change: Callable[[Any], None]) -> bytes:
    proto = ModelProto.FromString(model)
    change(proto)
    return bytes(proto.SerializeToString())


def tie(proto: Any) -> None:
    proto.pieces[300].score = proto.pieces[301].score


def without_a_letter(proto: Any) -> None:
    del proto.pieces[next(i for i, piece in enumerate(proto.pieces) if piece.piece == "e")]


def without_a_byte(proto: Any) -> None:
    del proto.pieces[next(i for i, piece in enumerate(proto.pieces) if piece.type == 6)]


def without_escapes(proto: Any) -> None:
    proto.normalizer_spec.escape_whitespaces = False


def not_to_be_used(proto: Any) -> None:
    proto.pieces[300].type = 5


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (tie, "has the same score as"),
        (without_a_letter, "would be"),
        (without_a_byte, "(not all 256|cannot be read)"),
        (without_escapes, "does not escape spaces"),
        (not_to_be_used, "is marked unused"),
    ],
)
def test_a_model_changed_after_training_is_not_converted_nearly_right(
    change: Callable[[Any], None], reason: str, trained: Callable[[str], bytes], folder: Folder
) -> None:
    with pytest.raises(CheckpointError, match=reason):
        load_tokenizer(folder(changed(trained("no dummy prefix"), change)))


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"added_tokens": {"<a>": 802}}, "the next free id is 800"),
        ({"added_tokens": {"<a>": 800, "<b>": 802}}, "the next free id is 801"),
        ({"added_tokens": {"<a>": 400}}, "but an added token calls it '<a>'"),
        ({"added_tokens": {"<a>": 0}}, "id 0 is the piece '<unk>'"),
        ({"added_tokens": {"<a>": 65}}, "id 65 is the piece"),
        ({"added_tokens": {"</s>": 800}}, "the tokenizer's model gives it 2"),
        ({"added_tokens": {"e": 800}}, "the tokenizer's model gives it"),
        ({"added_tokens": {"<a>": 800, "<b>": 800}}, "in another place it is that of '<a>'"),
        ({"added_tokens": {"<a>": "800"}}, "added_tokens.json: '<a>' is '800'"),
        ({"added_tokens": {"<a>": 800}, "tokenizer_config": {"added_tokens_decoder": {"801": {"content": "<a>"}}}},
         "in another place it is 801"),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": {"content": "<a>"}}}}, "added_tokens_decoder['x']"),
        ({"tokenizer_config": {"added_tokens_decoder": {"800": {"content": ""}}}}, "added_tokens_decoder['800']"),
        ({"tokenizer_config": {"added_tokens_decoder": []}}, "added_tokens_decoder is []"),
        ({"special_tokens_map": {"eos_token": "<a>"}}, "names the special token '<a>', which has no id"),
        ({"special_tokens_map": {"eos_token": 3}}, "a special token is 3"),
        ({"tokenizer_config": ["x"]}, "contains a JSON list"),
        ({"tokenizer_config": {"legacy": False}}, "legacy is False"),
        ({"tokenizer_config": {"add_prefix_space": False}}, "add_prefix_space is False"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_files_that_contradict_each_other_are_an_error(
    files: dict[str, Any], reason: str, trained: Callable[[str], bytes], folder: Folder
) -> None:
    with pytest.raises(CheckpointError, match=re.escape(reason)):
        load_tokenizer(folder(trained("Llama 2's options"), **files))


def test_without_sentencepiece_the_error_says_how_to_install_it(
    trained: Callable[[str], bytes], folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(CheckpointError) as error:
        load_tokenizer(folder(trained("no dummy prefix")))
    assert error.value.fix == "pip install sentencepiece protobuf"


def test_a_folder_without_any_tokenizer_is_told_what_to_fetch(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no tokenizer") as error:
        load_tokenizer(tmp_path)
    assert error.value.expected == "tokenizer.json, tokenizer.model, or vocab.json with merges.txt"
