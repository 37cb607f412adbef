"""A chat's messages as a question and earlier turns, with their pictures and videos.

Content without a place in the model's prompt goes to the nearest place: instructions (system) before the user's next
text, and a message's pictures before its text, unless the text has an <image> for each.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from engines.errors import MediaError

from .clips import Taken, frames_of_video
from .data_urls import JPEGS, decode_base64, read_data_url
from .errors import Refused
from .fields import Fields, as_text
from .limits import Limits
from .pictures import check_picture

SYSTEM = ("system", "developer")
ROLES = (*SYSTEM, "user", "assistant")
NOT_HERE = {"tool": "tools are", "function": "functions are"}


@dataclass(kw_only=True, slots=True)
class Turn:
    """A user's text and the assistant's answer; `answers` is empty in the last turn.

    pictures  in order, including the frames of a video
    has_video some pictures are frames of a video; they come before everything else, at their times
    """

    texts: list[str] = field(default_factory=list)
    pictures: list[bytes] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    has_video: bool = False

    @property
    def question(self) -> str:
        return "\n".join(text for text in self.texts if text)

    @property
    def answer(self) -> str:
        return "\n".join(self.answers)


def read_messages(value: Any, taken: Taken, limits: Limits) -> list[Turn]:
    """Parse the turns, oldest first; the last one has no answer. Raises Refused, naming the field."""
    if not isinstance(value, list) or not value:
        raise Refused("messages is not a list with at least one message", param="messages")
    if len(value) > limits.messages:
        raise Refused(f"there are {len(value)} messages; the limit is {limits.messages}", param="messages")
    turns, reader = [Turn()], _Reader(taken, limits)
    for index, message in enumerate(value):
        fields = Fields(message, f"messages[{index}]")
        role = _role(fields)
        if role == "assistant":
            turns[-1].answers.append(_text_of(fields))
        else:
            if turns[-1].answers:
                turns.append(Turn())
            reader.read_into(turns[-1], fields, takes_pictures=role == "user")
    if role != "user":
        raise Refused("the last message is not from the user", param=f"messages[{len(value) - 1}].role")
    if not (turns[-1].question.strip() or turns[-1].pictures):
        raise Refused("the last message has no text and no picture", param=f"messages[{len(value) - 1}].content")
    if sum(len(turn.question) + len(turn.answer) for turn in turns) > limits.text_chars:
        raise Refused(f"the messages have more than {limits.text_chars} characters", param="messages")
    return turns


def _role(fields: Fields) -> str:
    role = fields.text("role")
    if role in NOT_HERE:
        raise fields.wrong("role", f"is '{role}', but {NOT_HERE[role]} not supported", code="unsupported_parameter")
    if role not in ROLES:
        raise fields.wrong("role", f"is not one of {', '.join(ROLES)}")
    fields.only(("role", "content", "name", "refusal", "audio", "tool_calls", "function_call", "annotations"))
    harmless: dict[str, tuple[Any, ...]] = {
        "name": (), "refusal": (), "audio": (), "tool_calls": ([],), "function_call": (), "annotations": ([],)
    }  # fmt: skip
    fields.only_default(harmless)
    return role


def _text_of(fields: Fields) -> str:
    """The text of a message without pictures."""
    turn = Turn()
    _Reader(Taken(), Limits()).read_into(turn, fields, takes_pictures=False)
    return turn.question


class _Reader:
    """Reads the content of messages, and counts pictures and videos over all of them."""

    def __init__(self, taken: Taken, limits: Limits) -> None:
        self._taken, self._limits = taken, limits
        self._num_pictures, self._num_videos = 0, 0

    def read_into(self, turn: Turn, fields: Fields, *, takes_pictures: bool) -> None:
        content = fields["content"]
        if isinstance(content, str):
            turn.texts.append(as_text(content, fields.name("content")))
            return
        if not isinstance(content, list) or not content:
            raise fields.wrong("content", "is neither a string nor a list of parts")
        for index, value in enumerate(content):
            part = Fields(value, f"{fields.name('content')}[{index}]")
            kind = part.text("type")
            if kind == "text":
                part.only(("type", "text"))
                turn.texts.append(part.text("text"))
            elif kind not in ("image_url", "video_url"):
                raise part.wrong("type", f"is '{kind[:40]}', which is not supported", code="unsupported_parameter")
            elif not takes_pictures:
                raise part.wrong("type", f"is '{kind}', which is allowed only in the user's messages")
            elif kind == "image_url":
                self._read_image(turn, part)
            else:
                self._read_video(turn, part)

    def _read_image(self, turn: Turn, part: Fields) -> None:
        part.only(("type", "image_url"))
        told = Fields(part["image_url"], part.name("image_url"))
        told.only(("url", "detail"))
        told.only_default({"detail": ("auto", "high")})
        param = told.name("url")
        url = read_data_url(told.text("url"), param=param)
        if not url.kind.startswith("image/"):
            raise Refused(
                f"{param} has the type '{url.kind[:40]}'; expected image/jpeg or another image type", param=param
            )
        self._num_pictures += 1
        if self._num_pictures > self._limits.pictures:
            raise Refused(f"the request has more than {self._limits.pictures} pictures", param=param)
        turn.pictures.append(self._picture(url.texts[0], param))

    def _read_video(self, turn: Turn, part: Fields) -> None:
        part.only(("type", "video_url"))
        told = Fields(part["video_url"], part.name("video_url"))
        told.only(("url",))
        param = told.name("url")
        url = read_data_url(told.text("url"), param=param)
        self._num_videos += 1
        if self._num_videos > 1:
            raise Refused("the request has more than one video", param=param, code="unsupported_parameter")
        if url.kind == JPEGS:
            if len(url.texts) > self._limits.video_frames:
                raise Refused(
                    f"the video has {len(url.texts)} frames; expected {self._limits.video_frames} or fewer", param=param
                )
            turn.pictures += [self._picture(text, param) for text in url.texts]
        elif url.kind.startswith("video/"):
            turn.pictures += _frames(decode_base64(url.texts[0], param=param), self._taken, self._limits, param)
        else:
            raise Refused(
                f"{param} has the type '{url.kind[:40]}'; expected video/mp4 or another video type", param=param
            )
        turn.has_video = True

    def _picture(self, text: str, param: str) -> bytes:
        picture = decode_base64(text, param=param)
        try:
            check_picture(picture, self._limits)
        except MediaError as error:
            raise _at(param, error) from None
        return picture


def _frames(video: bytes, taken: Taken, limits: Limits, param: str) -> tuple[bytes, ...]:
    try:
        return frames_of_video(video, taken, limits)
    except MediaError as error:
        raise _at(param, error) from None


def _at(param: str, error: MediaError) -> Refused:
    return Refused(str(error), param=param, code="invalid_media")
