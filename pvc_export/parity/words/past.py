"""The reference's view of a conversation: frames, questions and answers since the last anchor. No runtime, no cache.

It counts frames and anchors itself, builds the prompt with pvc_ref/prompt.py, and feeds all of it to the LLM in one
pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from engines.memory import Array
from pvc_ref.prompt import IMAGE_CONTEXT

from ...graphs.models import LoadedModel

Label = int | tuple[int, int]
"""Content of one row of the LLM's context: a token's id, or one row of a frame as (frame, row), both from 0. The tiles
of an image count as frames, once per repetition."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """Ids (L,) of a user's turn, with a placeholder for every row of its frames, or of an answer (only tokens)."""

    ids: torch.Tensor
    is_answer: bool = False


class Past:
    """Frames since the last anchor, or images, and the conversation about them. A story has frames or images."""

    def __init__(self, loaded: LoadedModel, *, trained: int = 0, retain: int = 0) -> None:
        """Start again with the last `retain` frames when a frame arrives after `trained` frames; 0: never."""
        self._loaded, self._trained, self._retain = loaded, trained, retain
        self._context_id = loaded.token_id(IMAGE_CONTEXT)
        self._pieces: list[_Piece] = []
        self._num_new = 0
        self.frames: list[Array] = []
        self.images: list[Array] = []
        self.num_anchors = 0

    def see(self, pixels: Array) -> bool:
        """Add the next frame, (S, S, 3) uint8 RGB. Returns whether the conversation was re-anchored."""
        is_anew = bool(self._trained) and len(self.frames) >= self._trained
        if is_anew:
            self.frames, self._pieces = self.frames[-self._retain :], []
            self._num_new = self._retain
            self.num_anchors += 1
        self.frames.append(pixels)
        self._num_new += 1
        return is_anew

    def ask(self, question: str, images: Sequence[Array] = ()) -> None:
        """Add a question after the new frames. The first question may also be about images, each cut into tiles
        (tiles, S, S, 3) uint8 RGB."""
        if images:
            self.images = list(images)
            ids = self._loaded.image_prompt_ids(num_tiles=[len(tiles) for tiles in images], question=question)
        elif self._pieces:
            first = len(self.frames) - self._num_new + 1
            ids = self._loaded.next_turn_ids(num_frames=self._num_new, first_frame=first, question=question)
        else:
            ids = self._loaded.prompt_ids(num_frames=self._num_new, question=question)
        self._pieces.append(_Piece(ids))
        self._num_new = 0

    def hear(self, tokens: Sequence[int]) -> None:
        """Add an answer that stays in the conversation."""
        self._pieces.append(_Piece(torch.tensor(list(tokens), dtype=torch.long), is_answer=True))

    @property
    def num_rows(self) -> int:
        return sum(len(piece.ids) for piece in self._pieces)

    def labels(self) -> list[Label]:
        """The expected content of every row of the LLM's context."""
        found: list[Label] = []
        num_visual, per_frame = 0, self._loaded.config.compressor.num_tokens
        for piece in self._pieces:
            for token in piece.ids.tolist():
                if piece.is_answer or token != self._context_id:
                    found.append(token)
                else:
                    found.append(divmod(num_visual, per_frame))
                    num_visual += 1
        return found

    @torch.no_grad()
    def encode(self, *, window: int, total_frames: int | None) -> torch.Tensor:
        """Encode all frames since the anchor as one clip, or all images: (T * M, E)."""
        model = self._loaded.model
        if self.images:
            return torch.cat(model.encode_images([torch.from_numpy(tiles) for tiles in self.images], window=window))
        clip = torch.from_numpy(np.stack(self.frames))[None]
        return model.encode_clip(clip, window=window, total_frames=total_frames)[0].flatten(0, 1)

    @torch.no_grad()
    def embeds(self, visual: torch.Tensor) -> torch.Tensor:
        """The LLM's input (1, L, E), with `visual` (T * M, E) in the places of the frames."""
        model, start, parts = self._loaded.model, 0, list[torch.Tensor]()
        for piece in self._pieces:
            if piece.is_answer:  # a random model may generate <IMG_CONTEXT>
                parts.append(model.llm.embed_tokens(piece.ids)[None])
                continue
            count = int((piece.ids == self._context_id).sum())
            parts.append(model.embed_prompt(piece.ids, visual[start : start + count], context_id=self._context_id))
            start += count
        return torch.cat(parts, dim=1)
