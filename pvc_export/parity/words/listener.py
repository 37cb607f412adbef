"""A stream whose LLM input is recorded: every row, and the token or frame it comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from engines import PVCStream
from engines.bundle import Bundle
from engines.memory import Array, DeviceArray, Tensor
from engines.session import Session, Wrapped
from engines.spec import StateSpec
from engines.vision import EncodedFrame, VisionEncoder

from ...graphs.models import LoadedModel
from .past import Label

EXCERPT = 6
"""Tokens of a text that a message shows, from the first difference on."""


class Listener:
    """One stream, and the tensors that pass between its graphs.

    logits  (V,) of every step; the reader may clear the list
    A stream that re-anchors prepares the next anchor in separate caches, so recorded rows are kept per cache.
    """

    def __init__(self, bundle: Bundle, **options: Any) -> None:
        """`options` are passed to PVCStream."""
        self.logits: list[Array] = []
        self._rows: dict[int, list[bytes]] = {}  # LLM cache -> each row's bytes, including rolled back rows
        self._encoded: dict[int, list[Array]] = {}  # each episode's encoder -> frames, by time
        self._tokens: dict[bytes, set[Label]] = {}
        sessions = {name: Wrapped(session, self._run) for name, session in bundle.sessions.items()}
        self.stream = PVCStream(replace(bundle, sessions=sessions), **options)
        for episode in self.stream.episodes.all:
            self._overhear(episode.vision)

    @property
    def frames(self) -> list[Array]:
        """frame_embeds (M, E) of every frame since the anchor, as the compressor returned them."""
        encoder = self.stream.vision
        return self._encoded[id(encoder)][: encoder.ring.num_frames]

    @property
    def rows(self) -> list[bytes]:
        """Rows of the LLM's context, each as bytes."""
        cache = self.stream.language.cache
        return self._rows.get(_first_address(cache._caches, cache._states), [])[: cache.length]

    def _overhear(self, encoder: VisionEncoder) -> None:
        encode, heard = encoder.encode_features, self._encoded.setdefault(id(encoder), [])

        def overheard(trunk_features: Tensor) -> EncodedFrame:
            encoded = encode(trunk_features)
            heard[encoder.ring.num_frames :] = [np.array(encoded.frame_embeds)]
            return encoded

        encoder.encode_features = overheard  # type: ignore[method-assign]

    def _run(self, session: Session, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        outputs, fetch = session.run(inputs), session.memory.to_host
        match session.spec.name:
            case "embed":
                for token, row in zip(fetch(inputs["input_ids"])[0], fetch(outputs["inputs_embeds"])[0], strict=True):
                    self._tokens.setdefault(row.tobytes(), set()).add(int(token))
            case "llm":
                rows = self._rows.setdefault(_first_address(inputs, session.spec.states), [])
                rows[int(fetch(inputs["position_ids"])[0, 0]) :] = [
                    row.tobytes() for row in fetch(inputs["inputs_embeds"])[0]
                ]
            case "head":
                self.logits.append(np.array(fetch(outputs["logits"])[0]))
        return outputs

    def faults(
        self, expected: Sequence[Label], frames: Sequence[Array], loaded: LoadedModel
    ) -> Iterator[tuple[str, str]]:
        """Differences between the LLM's input and the expected rows: the level, and what is wrong in words.

        frames  (M, E) of each frame since the anchor, as the compressor returned it
        """
        known: dict[bytes, set[Label]] = {row: set(tokens) for row, tokens in self._tokens.items()}
        for index, frame in enumerate(frames):
            for position, row in enumerate(frame):
                known.setdefault(row.tobytes(), set()).add((index, position))
        got = [known.get(row, set()) for row in self.rows]
        if len(got) == len(expected) and all(want in row for row, want in zip(got, expected, strict=True)):
            return
        shown = [row for row in got if not any(isinstance(label, int) for label in row)]
        text = [tokens for row in got if (tokens := [label for label in row if isinstance(label, int)])]
        wrong = [
            *_frames_fault(shown, [want for want in expected if not isinstance(want, int)]),
            *_text_fault(text, [want for want in expected if isinstance(want, int)], loaded),
        ]
        yield from wrong or [("G", "frames and text are interleaved wrongly, expected each frame after its number")]


def _first_address(tensors: Mapping[str, Tensor], states: Sequence[StateSpec]) -> int:
    """Address of a stream's first cache, which identifies it: the tensor that is fed begins at the cache's address."""
    tensor = tensors[states[0].input]
    return tensor.address if isinstance(tensor, DeviceArray) else int(tensor.ctypes.data)


def _frames_fault(shown: Sequence[set[Label]], expected: Sequence[Label]) -> Iterator[tuple[str, str]]:
    for index, want in enumerate(expected):
        if index >= len(shown):
            yield "G", f"{_row_of(want)} is never fed to the LLM, expected every frame once, in order"
            return
        if want not in shown[index]:
            own = next(iter(shown[index]), None)
            told = "a row of no frame" if own is None else _row_of(own)
            yield "G", f"the LLM is fed {told}, expected {_row_of(want)}: every frame once, in order"
            return
    if len(shown) > len(expected):
        yield "G", f"the LLM is fed {len(shown)} rows of frames, expected {len(expected)}: every frame once, in order"


def _row_of(label: Label) -> str:
    assert not isinstance(label, int)
    return f"row {label[1]} of frame {label[0] + 1}"


def _text_fault(
    told: Sequence[Sequence[int]], expected: Sequence[int], loaded: LoadedModel
) -> Iterator[tuple[str, str]]:
    pairs = zip(told, expected, strict=False)
    step = next((i for i, (row, want) in enumerate(pairs) if want not in row), min(len(told), len(expected)))
    if step < max(len(told), len(expected)):
        own = _excerpt([row[0] for row in told[step:]], loaded)
        yield "K", f"at token {step} of its text the LLM is fed {own}, expected {_excerpt(expected[step:], loaded)}"


def _excerpt(tokens: Sequence[int], loaded: LoadedModel) -> str:
    text = loaded.tokenizer.decode(list(tokens[:EXCERPT]), skip_special_tokens=False)
    return repr(text) + ("..." if len(tokens) > EXCERPT else "") if tokens else "nothing more"
