"""The bundle's tokenizer equals the reference's in file, ids and text, and each wrong part is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines import open_bundle
from engines.bundle import TOKENIZER_NAME, Bundle
from engines.prompt import PromptTokenizer
from pvc_export.controls.runtime_patches import text_in_lower_case, tokens_of_another_vocabulary
from pvc_export.graphs.models import LoadedModel, load_model
from pvc_export.parity.tokenizer import compare_tokenizer

Parts = dict[str, Any]


@pytest.fixture(scope="module")
def bundle(bundle_fp32: Path) -> Bundle:
    return open_bundle(bundle_fp32, runtime="cpu")


def edited(bundle: Bundle, loaded: LoadedModel, folder: Path, edit: Callable[[Parts], None]) -> Bundle:
    """Return the bundle with a changed copy of the tokenizer of `loaded`."""
    parts = json.loads(loaded.tokenizer.to_str())
    edit(parts)
    path = folder / TOKENIZER_NAME
    path.write_text(json.dumps(parts), encoding="utf-8")
    return replace(bundle, folder=folder, tokenizer=PromptTokenizer(path, bundle.manifest.prompt))


def exchange_ids(parts: Parts) -> None:
    vocabulary = parts["model"]["vocab"]
    vocabulary["Q"], vocabulary["Z"] = vocabulary["Z"], vocabulary["Q"]


def exchange_merges(parts: Parts) -> None:
    merges = parts["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]


def forget_an_added_token(parts: Parts) -> None:
    parts["added_tokens"] = [token for token in parts["added_tokens"] if token["content"] != "</img>"]


def no_special_token(parts: Parts) -> None:
    """Mark a special token as normal, so that answers show it and questions may contain it."""
    parts["added_tokens"][3]["special"] = False


def cut_short(parts: Parts) -> None:
    parts["truncation"] = {"direction": "Right", "max_length": 4096, "strategy": "LongestFirst", "stride": 0}


EDITS: dict[str, tuple[Callable[[Parts], None], str]] = {
    "exchanged ids": (exchange_ids, "'model.vocab' is different in 2 of 495 entries, first 'Q': 65, expected 56"),
    "exchanged merges": (exchange_merges, "'model.merges' is different from entry 0 of 231 on"),
    "normalizer": (lambda parts: parts.update(normalizer={"type": "NFKC"}), '\'normalizer\' is {"type": "NFKC"}'),
    "pre-tokenizer": (lambda parts: parts["pre_tokenizer"]["pretokenizers"].pop(0), "'pre_tokenizer' is different"),
    "decoder": (lambda parts: parts.update(decoder={"type": "Fuse"}), "'decoder' is different in 4 of 4 entries"),
    "no decoder": (lambda parts: parts.update(decoder=None), "'decoder' is null, expected {"),
    "added token": (forget_an_added_token, "'added_tokens' is different from entry 6 of 8 on"),
    "special flag": (no_special_token, "'added_tokens' is different from entry 3 of 8 on"),
    "truncation": (cut_short, "'truncation' is {"),
}


UNREAD = ("exchanged merges", "pre-tokenizer", "truncation")
"""Faults that no text of the check reveals, since this model merges no digits and knows few words. The file does."""


@pytest.fixture(scope="module")
def shapes() -> LoadedModel:
    return load_model("shapes")


@pytest.mark.parametrize("name", EDITS)
def test_a_part_of_the_file_that_is_not_the_reference_s_is_named(
    name: str, bundle: Bundle, shapes: LoadedModel, tmp_path: Path
) -> None:
    edit, said = EDITS[name]
    file, text = compare_tokenizer(edited(bundle, shapes, tmp_path, lambda parts: None), shapes)
    assert file.passed and text.passed
    file, text = compare_tokenizer(edited(bundle, shapes, tmp_path, edit), shapes)
    assert file.level == "K" and file.passed is False and file.detail.startswith(said), file.detail
    assert "expected" in file.detail and "Copy tokenizer.json" in file.detail
    if name not in UNREAD:
        assert text.passed is False and ", expected " in text.detail


@pytest.mark.parametrize(
    ("fault", "said"),
    [(text_in_lower_case, "are decoded as"), (tokens_of_another_vocabulary, "is encoded as")],
    ids=["written", "read"],
)
def test_what_the_runtime_makes_of_a_right_file_is_held_too(
    fault: Callable[[], AbstractContextManager[None]], said: str, bundle: Bundle, tiny: LoadedModel
) -> None:
    with fault():
        file, text = compare_tokenizer(bundle, tiny)
    assert file.passed and text.passed is False and said in text.detail


@pytest.mark.parametrize("stop_ids", [frozenset(), frozenset([260, 257])], ids=["none", "one more"])
def test_the_tokens_that_end_an_answer_are_held(
    stop_ids: frozenset[int], bundle: Bundle, tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle.tokenizer, "stop_ids", stop_ids)
    text = compare_tokenizer(bundle, tiny)[1]
    assert text.passed is False and f"the stop tokens are {sorted(stop_ids)}, expected [260]" in text.detail
