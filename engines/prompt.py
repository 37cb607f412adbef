"""The conversation around frames and questions as token ids, fed part by part.

Text is held back until the next special token. Byte-pair merges never cross a special token, so tokenizing up to one
gives the same ids as tokenizing the whole conversation; cutting anywhere else would not.
Source: InternVL2's templates and PVC's frame prefix; the strings themselves come from the bundle's manifest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import EXPORT_AGAIN, BackendUnavailable, BundleError, StreamError
from .memory import Array


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Turn:
    """A question and its answer. images: (H, W, 3) uint8 BGR, as PVCStream.ask takes them."""

    question: str
    answer: str
    images: Sequence[Array] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptSpec:
    """The strings of a model's conversation. `{index}` in frame_prefix counts frames from 1."""

    start: str  # everything before the user's first words
    frame_prefix: str
    image_prefix: str  # names an image among several; `{index}` counts from 1
    image_tag: str  # stands for an image in a question
    image_start: str
    image_end: str
    after_frame: str  # also after an image without a place in the question
    ask_suffix: str  # ends the question and starts the answer
    next_turn: str  # ends the answer and starts the user's next words
    stop_tokens: tuple[str, ...]  # the first one generated ends the answer

    def before_frame(self, index: int) -> str:
        """The text immediately before a frame's tokens."""
        return self.frame_prefix.format(index=index) + self.image_start

    def frame_end(self) -> str:
        """The text immediately after a frame's tokens."""
        return self.image_end + self.after_frame

    def conversation(self, earlier: Sequence[Turn], question: str, num_images: int) -> list[str]:
        """The text before, between and after all images of earlier turns and a question, as in around_images.

        If there are several images, they are numbered consecutively. Raises what around_images raises.
        """
        if not earlier:
            return self.around_images(question, num_images)
        total, num_before = num_images + sum(len(turn.images) for turn in earlier), 0
        pieces = [""]
        for turn in earlier:
            own = self.around_images(turn.question, len(turn.images), num_before=num_before, total=total)
            own[-1] += f"{self.ask_suffix}{turn.answer}{self.next_turn}"
            pieces = [*pieces[:-1], pieces[-1] + own[0], *own[1:]]
            num_before += len(turn.images)
        own = self.around_images(question, num_images, num_before=num_before, total=total)
        return [*pieces[:-1], pieces[-1] + own[0], *own[1:]]

    def around_images(
        self, question: str, num_images: int, *, num_before: int = 0, total: int | None = None
    ) -> list[str]:
        """The text before, between and after the images of a question: num_images + 1 strings.

        A question may place each image itself, by the tag. Otherwise images come first, numbered if there are several:
        `total`, of which `num_before` came earlier. Raises StreamError if it has some tags, but not one per image.
        """
        text, num_placed = question, question.count(self.image_tag)
        if not num_placed:
            is_alone = (num_images if total is None else total) == 1
            numbers = range(num_before + 1, num_before + num_images + 1)
            prefixes = ["" if is_alone else self.image_prefix.format(index=number) for number in numbers]
            text = "".join(f"{prefix}{self.image_tag}{self.after_frame}" for prefix in prefixes) + question
        pieces = text.split(self.image_tag)
        if len(pieces) != num_images + 1:
            raise StreamError(
                f"the question contains {self.image_tag!r} {num_placed} times, but {num_images} images were given",
                expected="one per image, or none: then the images come first",
            )
        return pieces


class PromptTokenizer:
    """tokenizer.json, and the ids of the special tokens that the prompt needs."""

    def __init__(self, path: Path, spec: PromptSpec) -> None:
        """Raises BackendUnavailable without the package tokenizers, BundleError for an unusable file."""
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise BackendUnavailable(
                "prompts need the package tokenizers, which is not installed", fix="pip install tokenizers"
            ) from error
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise BundleError(
                f"{path} is not a tokenizer file: {error}",
                cause="it is damaged, or another program wrote it",
                fix=f"copy it from the checkpoint again, or {EXPORT_AGAIN}",
            ) from error
        self.stop_ids: frozenset[int] = frozenset(self._stop_id(token, path) for token in spec.stop_tokens)
        self._special = [
            token.content for token in self._tokenizer.get_added_tokens_decoder().values() if token.special
        ]

    def _stop_id(self, token: str, path: Path) -> int:
        stop_id: int | None = self._tokenizer.token_to_id(token)
        if stop_id is None:
            raise BundleError(
                f"{path} has no token {token!r}, which ends a turn in the manifest's prompt",
                cause="it belongs to another model",
                fix=EXPORT_AGAIN,
            )
        return stop_id

    def refuse_special_tokens(self, question: str) -> None:
        """Raise StreamError if a question contains a special token: it would end the turn or stand for a frame."""
        for token in self._special:
            if token in question:
                raise StreamError(
                    f"the question contains {token!r}, a special token of the conversation",
                    expected="plain text",
                    fix="remove it from the question",
                )

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text
