"""The model instance for Triton's Python backend, and the streams of its sequences.

`pvc-export triton` writes the model.py that passes in `triton_python_backend_utils`, which exists only in a server.
Written from the documentation of the Python backend and of the sequence batcher; no server has run it yet.

Note: the direct strategy fills a batch with requests for empty slots: their READY is false, and nothing else in them
may be read. The server does not report a sequence that it dropped as idle, so this module tracks idle sequences itself.
"""

from __future__ import annotations

import io
import json
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engines.answer import Answer, PushTiming
from engines.bundle import open_bundle
from engines.errors import MediaError, PVCError, StreamError
from engines.many.choose import together_for
from engines.many.handle import Busy, StreamHandle
from engines.many.scheduler import Scheduler
from engines.pictures import to_bgr

from ..serving.endless import as_endless_as_can_be
from .sequences import Sequences

QUESTION_ROWS = 128
"""Context rows that frames leave free for a question, in addition to those for its answer."""
INVALID, UNAVAILABLE, INTERNAL = "INVALID_ARG", "UNAVAILABLE", "INTERNAL"
"""Names of TritonError codes."""


@dataclass(slots=True)
class Turn:
    """A request being processed.

    handle    its stream; None if there is nothing to do, or `error` has the reason
    question  empty if there is none
    """

    is_ready: bool = True
    is_end: bool = False
    key: int = 0
    handle: StreamHandle | None = None
    frame: NDArray[np.uint8] | None = None
    question: str = ""
    max_new_tokens: int = 0
    pushed: Future[PushTiming | None] | None = None
    asked: Future[Answer] | None = None
    text: str = ""
    error: BaseException | None = field(default=None)


class Instance:
    """One instance of the model in its process. execute and close are called on one thread, the server's."""

    def __init__(self, folder: Path, args: dict[str, str], utils: Any) -> None:
        """folder  the model's folder in the repository, with config.pbtxt and the files its parameters name
        args    the arguments of TritonPythonModel.initialize
        utils   the module triton_python_backend_utils

        Raises what open_bundle raises, and PVCError for a configuration that pvc-export did not write.
        """
        config = json.loads(args["model_config"])
        given = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
        idle_us = config.get("sequence_batching", {}).get("max_sequence_idle_microseconds")
        if "bundle" not in given or not idle_us:
            raise StreamError(
                f"the configuration of {args.get('model_name', folder.name)} lacks the bundle parameter or "
                "max_sequence_idle_microseconds",
                expected="the config.pbtxt that pvc-export triton wrote",
                fix="write the repository again: pvc-export triton BUNDLE -o REPOSITORY",
            )
        self._utils, self._max_new_tokens = utils, int(given.get("max_new_tokens", 64))
        bundle = open_bundle(folder / given["bundle"], trust_engines=given.get("trust_engines") == "true")
        slots = max(1, int(config.get("max_batch_size", 1)))
        self._scheduler = Scheduler(together_for(bundle, max_streams=slots), max_streams=slots, gather_s=0.0)
        options = as_endless_as_can_be(bundle, reserve=self._max_new_tokens + QUESTION_ROWS)
        self.sequences = Sequences(self._scheduler, idle_s=int(idle_us) / 1e6, options=options)
        self._lock, self._is_closed = threading.Lock(), threading.Event()
        self._reaper = threading.Thread(target=self._free_idle, name="idle sequences", daemon=True)
        self._reaper.start()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response per request; a failing request gets an error and does not affect the others.

        The streams of a batch take turns, so that no answer waits for a longer one. All requests are done when this
        returns; frames of other batches wait in the server meanwhile.
        """
        with self._lock:
            turns = [self._begun(request) for request in requests]
            for turn in turns:
                self._ask(turn)
            for turn in turns:
                self._finish(turn)
            return [self._response(turn) for turn in turns]

    def close(self) -> None:
        """End all streams. May be called again."""
        self._is_closed.set()
        self._reaper.join()
        self._scheduler.close()

    def _begun(self, request: Any) -> Turn:
        """Find or start the request's stream, and push its frame."""
        turn = Turn()
        try:
            turn.is_ready = bool(self._control(request, "READY"))
            if not turn.is_ready:
                return turn
            turn.is_end, turn.key = bool(self._control(request, "END")), int(self._control(request, "CORRID"))
            is_start = bool(self._control(request, "START"))
            turn.handle = self.sequences.start(turn.key) if is_start else self.sequences.of(turn.key)
            turn.frame, turn.question = self._frame(request), self._text(request, "QUESTION")
            limit = self._value(request, "MAX_NEW_TOKENS")
            turn.max_new_tokens = self._max_new_tokens if limit is None else int(limit)
            if turn.frame is None and not turn.question and not (is_start or turn.is_end):
                raise StreamError(
                    "the request has neither a frame nor a question", expected="FRAME, PICTURE or QUESTION"
                )
            if turn.frame is not None:
                turn.pushed = turn.handle.push(turn.frame)
        except Exception as error:
            turn.error = error
        return turn

    def _ask(self, turn: Turn) -> None:
        """Ask the question once its frame was processed. If the frame failed, the question is not asked."""
        if turn.handle is None or turn.error is not None:
            return
        try:
            if turn.pushed is not None:
                turn.pushed.result()
            if turn.question:
                turn.asked = turn.handle.ask(turn.question, max_new_tokens=turn.max_new_tokens)
        except Exception as error:
            turn.error = error

    def _finish(self, turn: Turn) -> None:
        try:
            if turn.asked is not None:
                turn.text = turn.asked.result().text
        except Exception as error:
            turn.error = error

    def _response(self, turn: Turn) -> Any:
        """The response; also ends the sequence, if requested."""
        if not turn.is_ready:
            return self._utils.InferenceResponse(output_tensors=[])
        num_frames = 0 if turn.handle is None else turn.handle.num_frames
        self.sequences.touch(turn.key)
        if turn.is_end:
            try:
                self.sequences.end(turn.key)
            except Exception as error:
                turn.error = turn.error or error
        if turn.error is not None:
            return self._refused(turn.error)
        answer = np.array([[turn.text.encode()]], dtype=np.object_)
        frames = np.array([[num_frames]], dtype=np.int64)
        tensors = [self._utils.Tensor("ANSWER", answer), self._utils.Tensor("FRAMES", frames)]
        return self._utils.InferenceResponse(output_tensors=tensors)

    def _refused(self, error: BaseException) -> Any:
        code = UNAVAILABLE if isinstance(error, Busy) else INVALID if _is_senders(error) else INTERNAL
        said = str(error) if isinstance(error, PVCError) else f"{type(error).__name__}: {error}"
        kind = self._utils.TritonError
        return self._utils.InferenceResponse(output_tensors=[], error=kind(said, getattr(kind, code)))

    def _frame(self, request: Any) -> NDArray[np.uint8] | None:
        """(H, W, 3) uint8 BGR, or None without one. Raises MediaError for a picture that cannot be read."""
        frame = self._utils.get_input_tensor_by_name(request, "FRAME")
        picture = self._value(request, "PICTURE")
        if frame is not None and picture is not None:
            raise StreamError("the request has both FRAME and PICTURE", expected="one of them", fix="send two requests")
        if frame is not None:
            pixels: NDArray[np.uint8] = frame.as_numpy()[0]  # a batch of one
            return pixels
        return None if picture is None else decoded(picture)

    def _control(self, request: Any, name: str) -> Any:
        value = self._value(request, name)
        if value is None:
            raise StreamError(
                f"the request has no input {name}", expected="the controls of config.pbtxt: START, READY, END, CORRID",
                fix="write the repository again: pvc-export triton BUNDLE -o REPOSITORY",
            )  # fmt: skip
        return value

    def _value(self, request: Any, name: str) -> Any:
        """The single value of an input; None if the input is missing."""
        tensor = self._utils.get_input_tensor_by_name(request, name)
        return None if tensor is None else tensor.as_numpy().reshape(-1)[0]

    def _text(self, request: Any, name: str) -> str:
        value = self._value(request, name)
        try:
            return "" if value is None else str(value, "utf-8") if isinstance(value, bytes) else str(value)
        except UnicodeDecodeError as error:
            raise StreamError(f"{name} is not valid text: {error}", expected="UTF-8") from error

    def _free_idle(self) -> None:
        period = min(1.0, self.sequences.idle_s / 4)
        while not self._is_closed.wait(period):
            with self._lock:
                self.sequences.free_idle()


def decoded(picture: bytes) -> NDArray[np.uint8]:
    """Decode JPEG, PNG or another format Pillow reads to (H, W, 3) uint8 BGR, upright. Raises MediaError."""
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(picture)) as image:
            warnings.simplefilter("ignore")
            bgr, _ = to_bgr(image, Path("PICTURE"))
            return bgr
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, Image.DecompressionBombError) as error:
        said = str(error).partition(" <")[0]  # Pillow's message ends with the object's address
        raise MediaError(
            f"PICTURE cannot be read as an image: {said}", expected="a complete JPEG or PNG, as bytes",
            cause=f"its {len(picture)} bytes are truncated, or another kind of file",
        ) from error  # fmt: skip


def _is_senders(error: BaseException) -> bool:
    """Whether the sender is at fault: other input would have been accepted."""
    return isinstance(error, MediaError | StreamError) and error.exit_code == PVCError.exit_code
