"""Edits of a bundle's manifest and tokenizer. All hashes agree, as after a faulty export."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from engines.bundle import TOKENIZER_NAME
from engines.manifest import Manifest

from .graph_edits import restamp

ChangeBundle = Callable[[Path], None]


def _manifest(change: Callable[[Manifest], Manifest]) -> ChangeBundle:
    return lambda bundle: change(Manifest.load(bundle)).save(bundle)


def _tokenizer(change: Callable[[dict[str, Any]], None]) -> ChangeBundle:
    def edit(bundle: Path) -> None:
        path = bundle / TOKENIZER_NAME
        parts = json.loads(path.read_text(encoding="utf-8"))
        change(parts)
        path.write_text(json.dumps(parts, ensure_ascii=False), encoding="utf-8")
        restamp(bundle)

    return edit


def _prompt(field: str, change: Callable[[str], str]) -> ChangeBundle:
    def changed(manifest: Manifest) -> Manifest:
        text: dict[str, Any] = {field: change(getattr(manifest.prompt, field))}
        return replace(manifest, prompt=replace(manifest.prompt, **text))

    return _manifest(changed)


def _images(**changes: Any) -> ChangeBundle:
    return _manifest(lambda manifest: replace(manifest, images=replace(manifest.images, **changes)))


other_system_text = _prompt("start", lambda text: text.replace("<|im_end|>", " Be brief.<|im_end|>", 1))
next_turn_without_its_end = _prompt("next_turn", lambda text: text.replace("<|im_end|>", ""))
frames_without_a_number = _prompt("frame_prefix", lambda text: text.replace("{index}", ""))
one_repeat = _images(num_repeats=1)
tiles_in_another_layout = _images(layout="tiles_in_time")
more_tiles = _manifest(lambda one: replace(one, images=replace(one.images, max_tiles=one.images.max_tiles + 1)))
fewer_trained_frames = _manifest(lambda manifest: replace(manifest, trained_frames=manifest.trained_frames // 2))
fixed_time = _manifest(lambda manifest: replace(manifest, time_mode="fixed"))


@_tokenizer
def two_tokens_exchanged(parts: dict[str, Any]) -> None:
    """Exchange two letters that hardly any answer contains."""
    vocabulary = parts["model"]["vocab"]
    vocabulary["Q"], vocabulary["Z"] = vocabulary["Z"], vocabulary["Q"]


@_tokenizer
def lower_case(parts: dict[str, Any]) -> None:
    parts["normalizer"] = {"type": "Lowercase"}


@_tokenizer
def another_decoder(parts: dict[str, Any]) -> None:
    """Answers have the right tokens, but spaces appear as in the vocabulary."""
    parts["decoder"] = {"type": "Fuse"}


@_tokenizer
def an_added_token_missing(parts: dict[str, Any]) -> None:
    """The start of an image is no longer a token; it is read letter by letter."""
    parts["added_tokens"] = [token for token in parts["added_tokens"] if token["content"] != "<img>"]
