"""Check of the bundle's tokenizer against the reference's: every part of its file, encoded texts, every decoded id.

An answer uses only a few of thousands of tokens, and comparing its ids does not compare the text that a user reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from tokenizers import Tokenizer

from engines.bundle import TOKENIZER_NAME, Bundle
from engines.errors import EXPORT_AGAIN
from pvc_ref.prompt import STOP_TOKEN, image_prompt, next_turn, video_prompt

from ..graphs.models import LoadedModel
from .levels import Rule

TEXTS = (
    "", " ", "a", "What do you see?", "  two spaces, a tab\t and\r\nlines \n\n", "ENGLISH in Capitals, don't it's",
    "na\u00efve cafe\u0301 \ufb01 \u00bd \u338f \u2460 \uff21 \u200b\ufeff", "\u4e66\u751f\u591a\u6a21\u6001\u3002",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd \u0928\u092e\u0938\u094d\u0924\u0947",
    "\U0001f916\U0001f469\u200d\U0001f680",
    "3.14159 1,000,000 0x1F 10%", "".join(map(chr, range(0x20, 0x7F))), "def f(x):\n    return x  # <b>&amp;</b>",
)  # fmt: skip
"""Texts on which another tokenizer's normalizer, splitter or merges would give another result."""
DECODED_AT_ONCE = 8
NEXT_STEP = f"Copy tokenizer.json from the checkpoint, or {EXPORT_AGAIN}"


def compare_tokenizer(bundle: Bundle, loaded: LoadedModel) -> list[Rule]:
    """Two rules of level K: the parts of the file match the reference; the runtime encodes and decodes text alike."""
    return [
        _rule(
            "tokenizer file", _wrong_parts(bundle, loaded), f"{loaded.tokenizer.get_vocab_size()} tokens, every part"
        ),
        _rule(
            "text to tokens and back", _wrong_text(bundle, loaded), f"{len(TEXTS)} texts, three prompts, every token"
        ),
    ]


def _rule(name: str, wrong: Iterator[str], held: str) -> Rule:
    fault = next(wrong, None)
    detail = held if fault is None else f"{fault}. {NEXT_STEP}"
    return Rule(level="K", name=name, passed=fault is None, detail=detail)


# -- the file ----------------------------------------------------------------------------------------------------


def _wrong_parts(bundle: Bundle, loaded: LoadedModel) -> Iterator[str]:
    """Parts of the file that differ from the reference's, after the library has read and written both."""
    got = json.loads(Tokenizer.from_file(str(bundle.folder / TOKENIZER_NAME)).to_str())
    want = json.loads(Tokenizer.from_str(loaded.tokenizer.to_str()).to_str())
    for part in dict.fromkeys([*want, *got]):
        if got.get(part) == want.get(part):
            continue
        if part != "model":
            yield f"'{part}' is {_listed(got.get(part), want.get(part))}"
            continue
        for name in dict.fromkeys([*want[part], *got[part]]):
            if (own := got[part].get(name)) != (right := want[part].get(name)):
                yield f"'model.{name}' is {_listed(own, right)}"


def _listed(got: Any, want: Any) -> str:
    """One part and its expected value; for a list or a table, the first entry that differs."""
    if isinstance(got, dict) and isinstance(want, dict):
        wrong = [key for key in dict.fromkeys([*want, *got]) if got.get(key) != want.get(key)]
        told = f"{wrong[0]!r}: {got.get(wrong[0])!r}, expected {want.get(wrong[0])!r}"
        return f"different in {len(wrong)} of {len(want)} entries, first {told}"
    if isinstance(got, list) and isinstance(want, list):
        pairs = zip(got, want, strict=False)
        index = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(got), len(want)))
        own, right = (_short(one[index]) if index < len(one) else "nothing" for one in (got, want))
        return f"different from entry {index} of {len(want)} on: {own}, expected {right}"
    return f"{_short(got)}, expected {_short(want)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:100]}..."


# -- the runtime -------------------------------------------------------------------------------------------------


def _wrong_text(bundle: Bundle, loaded: LoadedModel) -> Iterator[str]:
    own, reference = bundle.tokenizer, loaded.tokenizer
    stop = frozenset([loaded.token_id(STOP_TOKEN)])
    if own.stop_ids != stop:
        yield f"the stop tokens are {sorted(own.stop_ids)}, expected {sorted(stop)} ({STOP_TOKEN!r})"
    for text in (*TEXTS, *_prompts(loaded)):
        got, want = own.encode(text), reference.encode(text, add_special_tokens=False).ids
        if got != want:
            yield f"{text[:40]!r} is encoded as {_tokens(got, want, loaded)}, expected {_tokens(want, got, loaded)}"
    count = reference.get_vocab_size()
    for start in range(0, count, DECODED_AT_ONCE):
        ids = list(range(start, min(start + DECODED_AT_ONCE, count)))
        if (said := own.decode(ids)) != (right := reference.decode(ids, skip_special_tokens=True)):
            yield f"the tokens {ids[0]} to {ids[-1]} are decoded as {said!r}, expected {right!r}"


def _prompts(loaded: LoadedModel) -> tuple[str, ...]:
    """A whole conversation of each kind, with all special tokens."""
    config, question = loaded.config, "What moves?"
    return (
        video_prompt(config, num_frames=2, question=question),
        image_prompt(config, num_tiles=[1, 2], question=question),
        next_turn(config, num_frames=1, first_frame=3, question=question),
    )


def _tokens(ids: Sequence[int], other: Sequence[int], loaded: LoadedModel) -> str:
    """Four ids from the first difference on, with the reference's names for them."""
    same = next((i for i, (a, b) in enumerate(zip(ids, other, strict=False)) if a != b), min(len(ids), len(other)))
    part = list(ids[same : same + 4])
    return f"{part} {[loaded.tokenizer.id_to_token(token) for token in part]} from token {same} on"
