"""Batches: clips of one length, or images with one repeat count, with their questions as token ids.

A batch is determined by (seed, step, rank) alone. A resumed run therefore gets the batches that the killed run would
have had, and a second run sees the same ones.
Dimension key:  B clips   T frames   S frame size   P patches   Q questions per clip   L question and answer tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from ..config import PVCConfig
from ..prompt import STOP_TOKEN, image_prompt, video_prompt
from ..shapes import TRAINING, Clip, Question, make_clip
from ..shapes.draw import IGNORED, PatchLabels

Stage = Literal["captions", "instructions"]
QUESTION_MARK = "\0"  # placeholder for the question, where the prompt is split

VIDEO_LENGTHS = (4, 6, 8, 12, 16)
VIDEO_CHANCES = (0.3, 0.2, 0.25, 0.13, 0.12)
CLIPS_OF_LENGTH = {4: 9, 6: 6, 8: 5, 12: 3, 16: 2}
REPEATS, REPEAT_CHANCES = (1, 2, 4), (0.7, 0.15, 0.15)
IMAGES_PER_CLIP: dict[Stage, int] = {"captions": 1, "instructions": 3}
"""From PVC's training recipe: images to videos 1:1 in the caption stage, then 3:1."""
CUT_CHANCE, LAST_FRAME_CHANCE = 0.25, 0.25
WINDOW, WINDOW_CHANCE = 8, 0.5  # half of the videos: as in a stream with a window of 8 frames
MAX_QUESTIONS = {"video": 6, "image": 4}
MAX_ABSENT = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """The input of one forward pass.

    frames      uint8 (B, T, S, S, 3) RGB
    repeats     how often each frame is repeated: 1 for videos, R for images (whose T is 1)
    window      frames that temporal attention sees, including the current one; None means all
    last_only   the LLM sees the last frame's tokens only, which must contain what happened before
    prefix      token ids (Lp,) up to the question, the same for all clips
    questions   (B, Q, L) question, answer and stop token, padded with 0
    targets     (B, Q, L) next token at each place, IGNORED where none is to be learned
    topics      topic of each question, "" where a clip has fewer questions
    labels      patch labels, (B, T, P) each
    """

    frames: Tensor
    repeats: int
    window: int | None
    last_only: bool
    prefix: Tensor
    questions: Tensor
    targets: Tensor
    topics: list[list[str]]
    labels: dict[str, Tensor]

    def to(self, device: torch.device) -> Batch:
        tensors = {name: getattr(self, name).to(device) for name in ("frames", "prefix", "questions", "targets")}
        return replace(self, **tensors, labels={name: label.to(device) for name, label in self.labels.items()})


class BatchMaker:
    """Batches of the shapes world for one model configuration."""

    def __init__(self, config: PVCConfig, tokenizer: Tokenizer, *, seed: int, scale: int = 1) -> None:
        """`scale` multiplies the clips per batch, for devices with enough memory."""
        self.config, self.tokenizer, self.seed, self.scale = config, tokenizer, seed, scale

    def video(self, step: int, rank: int, stage: Stage) -> Batch:
        shared = np.random.default_rng([self.seed, step])  # the same clip length on all ranks, so that none waits
        num_frames = int(shared.choice(VIDEO_LENGTHS, p=VIDEO_CHANCES))
        last_only = bool(shared.random() < LAST_FRAME_CHANCE)
        window = WINDOW if shared.random() < WINDOW_CHANCE else None
        count = CLIPS_OF_LENGTH[num_frames] * self.scale
        clips = [self._clip(step, rank, index, num_frames) for index in range(count)]
        return self._collate(clips, step, rank, stage, repeats=1, window=window, last_only=last_only)

    def images(self, step: int, rank: int, stage: Stage) -> Batch:
        shared = np.random.default_rng([self.seed, step])
        count = CLIPS_OF_LENGTH[int(shared.choice(VIDEO_LENGTHS, p=VIDEO_CHANCES))] * self.scale
        repeats = int(shared.choice(REPEATS, p=REPEAT_CHANCES))
        images = [self._make(step, rank, 1000 + index, num_frames=1) for index in range(count * IMAGES_PER_CLIP[stage])]
        return self._collate(images, step, rank, stage, repeats=repeats, window=None, last_only=False)

    def _clip(self, step: int, rank: int, index: int, num_frames: int) -> Clip:
        rng = np.random.default_rng([self.seed, step, rank, index])
        cut = num_frames > min(VIDEO_LENGTHS) and rng.random() < CUT_CHANCE
        num_before = int(rng.integers(1, num_frames - min(VIDEO_LENGTHS) + 1)) if cut else 0
        return self._make(step, rank, index, num_frames=num_frames - num_before, num_before=num_before)

    def _make(self, step: int, rank: int, index: int, *, num_frames: int, num_before: int = 0) -> Clip:
        seed = int(np.random.default_rng([self.seed, step, rank, index]).integers(2**62))
        vision = self.config.vision
        return make_clip(
            seed, num_frames=num_frames, split=TRAINING, camera=None, num_before=num_before, size=vision.image_size,
            grid=vision.grid_size,
        )  # fmt: skip

    def _collate(
        self,
        clips: Sequence[Clip],
        step: int,
        rank: int,
        stage: Stage,
        *,
        repeats: int,
        window: int | None,
        last_only: bool,
    ) -> Batch:
        rng = np.random.default_rng([self.seed, step, rank, 2**20])
        limit = MAX_QUESTIONS["image" if len(clips[0].frames) == 1 else "video"]
        asked = [pick_questions(clip.questions, rng, stage, limit=limit) for clip in clips]
        return collate(self.config, self.tokenizer, clips, asked, repeats=repeats, window=window, last_only=last_only)


def pick_questions(found: Sequence[Question], rng: np.random.Generator, stage: Stage, *, limit: int) -> list[Question]:
    """Return only the caption, or up to `limit` random questions, at most MAX_ABSENT of them about absent things."""
    if stage == "captions":
        return [found[0]]
    order = [found[index] for index in rng.permutation(len(found))]
    absent = [question for question in order if question.topic == "absent"][:MAX_ABSENT]
    present = [question for question in order if question.topic != "absent"]
    return [*absent, *present][:limit]


def collate(
    config: PVCConfig,
    tokenizer: Tokenizer,
    clips: Sequence[Clip],
    asked: Sequence[Sequence[Question]],
    *,
    repeats: int,
    window: int | None,
    last_only: bool,
    num_seen: int | None = None,
) -> Batch:
    """Make a batch of clips of one length and their questions. `num_seen`: number of frames in the prompt."""
    num_frames = len(clips[0].frames)
    prefix, suffix = prompt_ids(
        config, tokenizer, num_frames=num_seen or num_frames, num_repeats=repeats if num_frames == 1 else None,
        last_only=last_only,
    )  # fmt: skip
    questions, targets = encode_questions(tokenizer, asked, suffix)
    return Batch(
        frames=torch.from_numpy(np.stack([clip.frames for clip in clips])),
        repeats=repeats,
        window=window,
        last_only=last_only,
        prefix=torch.tensor(prefix),
        questions=questions,
        targets=targets,
        topics=[[q.topic for q in some] + [""] * (questions.shape[1] - len(some)) for some in asked],
        labels=_stack_labels(clips),
    )


def prompt_ids(
    config: PVCConfig, tokenizer: Tokenizer, *, num_frames: int, num_repeats: int | None, last_only: bool
) -> tuple[list[int], str]:
    """Token ids before the question, and the text after it.

    num_repeats  how often an image is repeated; None for a video
    last_only    keep only the last frame, with its number
    """
    if num_repeats is not None:
        text = image_prompt(config, num_tiles=[1], question=QUESTION_MARK, num_repeats=num_repeats)
    else:
        text = video_prompt(config, num_frames=num_frames, question=QUESTION_MARK)
        if last_only:
            start, end = text.index("Frame1:"), text.index(f"Frame{num_frames}:")
            text = text[:start] + text[end:]
    before, _, after = text.partition(QUESTION_MARK)
    return tokenizer.encode(before, add_special_tokens=False).ids, after


def encode_questions(tokenizer: Tokenizer, asked: Sequence[Sequence[Question]], suffix: str) -> tuple[Tensor, Tensor]:
    """Encode inputs and targets (B, Q, L): question, suffix, answer, stop token. Targets start at the answer."""
    rows: list[list[tuple[list[int], list[int]]]] = []
    for some in asked:
        encoded = []
        for question in some:
            ask = tokenizer.encode(question.text + suffix, add_special_tokens=False).ids
            answer = tokenizer.encode(question.answer + STOP_TOKEN, add_special_tokens=False).ids
            encoded.append((ask + answer[:-1], [IGNORED] * (len(ask) - 1) + answer))
        rows.append(encoded)
    num_questions = max(len(encoded) for encoded in rows)
    length = max(len(ids) for encoded in rows for ids, _ in encoded)
    inputs = torch.zeros(len(rows), num_questions, length, dtype=torch.long)
    targets = torch.full_like(inputs, IGNORED)
    for b, encoded in enumerate(rows):
        for q, (ids, wanted) in enumerate(encoded):
            inputs[b, q, : len(ids)] = torch.tensor(ids)
            targets[b, q, : len(wanted)] = torch.tensor(wanted)
    return inputs, targets


def _stack_labels(clips: Sequence[Clip]) -> dict[str, Tensor]:
    """Stack labels (B, T, P) by kind, if the clips have any. Frames before a cut get IGNORED."""
    if clips[0].labels is None:
        return {}
    stacked = {}
    for field in fields(PatchLabels):
        pairs = [(getattr(clip.labels, field.name), ((clip.num_before, 0), (0, 0))) for clip in clips]
        rows = [np.pad(label, padding, constant_values=IGNORED) for label, padding in pairs]
        stacked[field.name] = torch.from_numpy(np.stack(rows))
    return stacked
