"""Parsing of a request to OpenAI's chat completions into frames and a question about them.

Each field is read, or allowed only with a value that has no effect, or refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from engines.sampling import Sampling

from .clips import Taken
from .errors import MISSING, Refused
from .fields import LONGEST_NUMBER, Fields
from .limits import Limits
from .messages import Turn, read_messages
from .service import Said, Wanted

SAMPLING = ("max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop")
STREAMING = ("stream", "stream_options")
READ = ("model", "messages", "media_io_kwargs", *SAMPLING, *STREAMING)
LABELS = ("user", "safety_identifier", "prompt_cache_key")
"""Labels for the client's accounting; they do not affect the answer."""
ONLY_DEFAULT: dict[str, tuple[Any, ...]] = {
    "audio": (), "frequency_penalty": (0, 0.0), "function_call": ("none",), "functions": ([],), "logit_bias": ({},),
    "logprobs": (False,), "metadata": ({},), "modalities": (["text"],), "n": (1,), "parallel_tool_calls": (True,),
    "prediction": (), "presence_penalty": (0, 0.0), "reasoning_effort": (), "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"), "store": (False,), "tool_choice": ("none", "auto"), "tools": ([],),
    "top_logprobs": (0,), "verbosity": (), "web_search_options": (),
    # vLLM's
    "mm_processor_kwargs": ({},), "top_k": (-1, 0), "min_p": (0, 0.0), "repetition_penalty": (1, 1.0),
}  # fmt: skip
"""Unsupported fields, and the values besides null with which they have no effect."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chat:
    """A parsed chat request.

    turns          the last one is the question
    wanted         without the question and its pictures: see of_clip and of_session
    is_streamed    stream the answer token by token; wants_usage: end it with token counts
    """

    turns: tuple[Turn, ...]
    wanted: Wanted
    is_streamed: bool
    wants_usage: bool

    def of_clip(self) -> tuple[tuple[bytes, ...], Wanted]:
        """The video's frames, which precede everything else, and the question. Raises Refused for a video after an
        answer."""
        frames, earlier = tuple[bytes, ...](), list[Said]()
        for index, turn in enumerate(self.turns):
            if turn.has_video and index:
                raise Refused(
                    "the video comes after an answer; put it in the user's first message, or send its frames with the "
                    "header X-Session-Id, which allows them at any time",
                    param="messages", code="unsupported_parameter",
                )  # fmt: skip
            if turn.has_video:
                frames = tuple(turn.pictures)
            pictures = () if turn.has_video else tuple(turn.pictures)
            earlier.append(Said(question=turn.question, answer=turn.answer, images=pictures))
        asked = earlier.pop()
        return frames, replace(self.wanted, question=asked.question, images=asked.images, earlier=tuple(earlier))

    def of_session(self, *, num_frames: int) -> tuple[tuple[bytes, ...], Wanted]:
        """The frames that a session with num_frames frames has not seen, and the question. If the session has seen
        any, the pictures of earlier messages were sent with earlier requests."""
        turns = self.turns if num_frames == 0 else self.turns[-1:]
        frames = tuple(picture for turn in turns for picture in turn.pictures)
        earlier = tuple(Said(question=turn.question, answer=turn.answer) for turn in self.turns[:-1])
        return frames, replace(self.wanted, question=self.turns[-1].question, earlier=earlier)


def read_chat(value: Any, *, model_id: str, limits: Limits) -> Chat:
    """Parse a chat request. Raises Refused. Decoding videos may take a second, so call it off the event loop."""
    fields = Fields(value)
    fields.only((*READ, *LABELS, *ONLY_DEFAULT))
    require_model(fields, model_id)
    fields.only_default(ONLY_DEFAULT)
    for label in LABELS:
        fields.text(label, default="")
    is_streamed, wants_usage = read_streaming(fields)
    wanted = read_wanted(fields, limits)
    turns = tuple(read_messages(fields["messages"], _taken(fields, limits), limits))
    if any(turn.has_video and len(turn.pictures) == 0 for turn in turns):
        raise Refused("the video has no frames", param="messages")
    return Chat(turns=turns, wanted=wanted, is_streamed=is_streamed, wants_usage=wants_usage)


def require_model(fields: Fields, model_id: str) -> None:
    """Raise Refused, with 404, for another model's name."""
    if (name := fields.text("model")) != model_id:
        raise Refused(
            f"the model '{name[:80]}' is not served here; the model is {model_id}",
            status=404, kind=MISSING, param="model", code="model_not_found",
        )  # fmt: skip


def read_streaming(fields: Fields) -> tuple[bool, bool]:
    """Whether to stream the answer, and whether to stream its usage."""
    is_streamed = fields.flag("stream", default=False)
    if fields["stream_options"] is None:
        return is_streamed, False
    if not is_streamed:
        raise fields.wrong("stream_options", "is only allowed with stream: true")
    options = Fields(fields["stream_options"], "stream_options")
    options.only(("include_usage", "include_obfuscation"))
    options.only_default({"include_obfuscation": (False,)})
    return is_streamed, options.flag("include_usage", default=False)


def read_wanted(fields: Fields, limits: Limits) -> Wanted:
    """Everything except the question."""
    most, default = limits.answer_tokens, limits.default_tokens
    num_tokens = fields.whole("max_tokens", default=None, low=1, high=most)
    num_tokens = fields.whole("max_completion_tokens", default=num_tokens, low=1, high=most)
    return Wanted(
        question="",
        max_new_tokens=min(default, most) if num_tokens is None else num_tokens,
        sampling=Sampling(
            temperature=fields.number("temperature", default=0.0, low=0.0, high=2.0),
            top_p=fields.number("top_p", default=1.0, above=0.0, low=0.0, high=1.0),
            seed=fields.whole("seed", default=None, low=-LONGEST_NUMBER, high=LONGEST_NUMBER - 1),
        ),
        stop=_stop(fields),
    )


def _stop(fields: Fields) -> tuple[str, ...]:
    value = fields["stop"]
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or len(texts) > 4:
        raise fields.wrong("stop", "is neither a string nor a list of at most 4 strings")
    if not all(isinstance(text, str) and 0 < len(text) <= 256 for text in texts):
        raise fields.wrong("stop", "contains a value that is not a string of 1 to 256 characters")
    return tuple(texts)


def _taken(fields: Fields, limits: Limits) -> Taken:
    """The frames to take from a video, in vLLM's format."""
    if fields["media_io_kwargs"] is None:
        return Taken()
    kinds = Fields(fields["media_io_kwargs"], "media_io_kwargs")
    kinds.only(("video",))
    if kinds["video"] is None:
        return Taken()
    video = Fields(kinds["video"], "media_io_kwargs.video")
    video.only(("num_frames", "fps"))
    num_frames = video.whole("num_frames", default=None, low=1, high=limits.video_frames)
    fps = video.number("fps", default=0.0, above=0.0, low=0.0, high=1000.0)
    return Taken(fps=fps or None, num_frames=num_frames)
