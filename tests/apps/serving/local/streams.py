"""A whole-number model, its pictures and questions, and the answers it must give."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

import numpy as np

from apps.serving.local import session_options
from apps.serving.service import Piece, Wanted
from engines import PVCStream
from engines.bundle import Bundle
from engines.many.scheduler import OneByOne
from engines.sampling import Sampling

from ..fakes import picture_of

T = TypeVar("T")
RNG = np.random.default_rng(3)
FRAMES = [RNG.integers(0, 256, (4, 4, 3), np.uint8) for _ in range(12)]
PICTURES = [picture_of(frame) for frame in FRAMES]
SAMPLING = Sampling(temperature=1e4, seed=1)
ASKED = Wanted(question="what?", max_new_tokens=6, sampling=SAMPLING)
"""Hot enough that every change of the frames changes the answer."""
Run = Callable[[Coroutine[Any, Any, T]], T]


class Slow:
    """OneByOne, except that a step waits while the gate is closed and takes step_s longer."""

    most = 1

    def __init__(self, bundle: Bundle) -> None:
        self.bundle, self.gate, self.step_s = bundle, threading.Event(), 0.0
        self.gate.set()

    def run(self, steps: Any) -> None:
        self.gate.wait(10.0)
        time.sleep(self.step_s)
        OneByOne(bundle=self.bundle).run(steps)


async def told(pieces: AsyncGenerator[Piece, None]) -> tuple[str, Piece]:
    texts = []
    async for piece in pieces:
        texts.append(piece.text)
    return "".join(texts), piece


def expected(bundle: Bundle, frames: list[np.ndarray], *, as_session: bool = False, **asked: Any) -> Any:
    stream = PVCStream(bundle, **(session_options(bundle) if as_session else {}))
    for frame in frames:
        stream.push(frame)
    return stream.ask(**{"question": "what?", "max_new_tokens": 6, "sampling": SAMPLING, **asked})
