"""Parity of whole conversations: a second question after a kept answer, pending frames, a re-anchor.

Each story goes through PVCStream as a user's would. At every question three things are checked:
    counts    frames since the anchor, and the number of anchors, against the reference's own count (level G)
    input     every row of the LLM's context, exactly: each frame once, in order, as the compressor returned it
              (level G), and the reference's text (level K)
    answer    the reference encodes the clip since the anchor in one pass and reads the whole conversation, with the
              bundle's answers in it, in one pass without a cache: KL of every step, and each token the reference's
              choice except for near ties (level J)
For the re-anchor, the manifest's number of trained frames is set low, since a stream of seconds never reaches the true
number. facts.py checks the true number against the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from engines.bundle import Bundle
from engines.errors import NonFiniteError, PVCError
from engines.ingest import Ingest
from engines.memory import Array
from pvc_ref.preprocess import resize_frame
from pvc_ref.prompt import STOP_TOKEN

from ...graphs.models import LoadedModel
from ..answers import Conversation
from ..clip import Frame, check_clip, real_frames
from ..evidence import Evidence
from ..levels import Rule
from .conversations import compared, reference_logits
from .listener import Listener
from .past import Past
from .prompts import reference_tiles

NUM_NEW_TOKENS = 8
"""Enough for most answers to end by themselves, but not for all."""
MAX_TILES = 2
NAMES = {"G": "every frame is told once, in order", "K": "what is told is the reference's text"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """Frames to push, and a question after them whose answer is kept. The first question may be about images."""

    num_frames: int
    question: str
    num_images: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Story:
    """Turns of one stream. It re-anchors after `trained` frames with the last `retain` ones; 0: never."""

    kind: str
    turns: tuple[Turn, ...]
    ingest: Ingest = "eager"
    max_waiting: int = 16
    trained: int = 0
    retain: int = 0

    @property
    def num_frames(self) -> int:
        return sum(turn.num_frames for turn in self.turns)


def _turns(*turns: tuple[int, str]) -> tuple[Turn, ...]:
    return tuple(Turn(num_frames=count, question=question) for count, question in turns)


FIRST, SECOND, THIRD, FOURTH = "What moves?", "Which colour is it?", "What is new?", "And now?"
STORIES = (
    Story(kind="turns", turns=_turns((2, FIRST), (0, SECOND), (1, THIRD))),
    Story(
        kind="pictures", turns=(Turn(num_frames=0, question=FIRST, num_images=2), Turn(num_frames=0, question=SECOND))
    ),
    Story(kind="lazy", turns=_turns((5, FIRST), (2, THIRD)), ingest="lazy", max_waiting=2),
    Story(kind="reanchor", turns=_turns((3, FIRST), (2, THIRD), (0, SECOND), (2, FOURTH)), trained=4, retain=2),
)
"""The last one re-anchors in its second turn and again in its fourth."""
SHORT_STORIES = (
    Story(kind="reanchor", turns=_turns((2, FIRST), (1, THIRD), (0, SECOND)), ingest="lazy", trained=2, retain=1),
)
"""Everything in one stream of three frames, for a large model."""


def tell_stories(bundle: Bundle, loaded: LoadedModel, stories: Sequence[Story] = STORIES) -> Evidence:
    """Run every story that fits. Raises NonFiniteError if the bundle returns NaN."""
    evidence = Evidence()
    for story in stories:
        reason = _why_not(story, bundle, loaded)
        if reason is not None:
            evidence += Evidence(not_executed={f"the story '{story.kind}'": reason})
        else:
            evidence += tell(bundle, loaded, story)
    return evidence


def _why_not(story: Story, bundle: Bundle, loaded: LoadedModel) -> str | None:
    if story.trained and (loaded.config.time_mode != "absolute" or loaded.config.trained_frames < 2):
        return "this model cannot re-anchor: its clock is not absolute, or it was trained on one frame"
    past, most, context = Past(loaded, trained=story.trained, retain=story.retain), 0, bundle.manifest.limits.context
    for turn in story.turns:
        for _ in range(turn.num_frames):
            past.see(np.zeros((1, 1, 3), np.uint8))
        past.ask(turn.question, _tiles(turn, loaded))
        past.hear([0] * NUM_NEW_TOKENS)
        most = max(most, past.num_rows)
    return f"it needs {most} rows, but the context has {context}" if most > context else None


def tell(bundle: Bundle, loaded: LoadedModel, story: Story) -> Evidence:
    """Run one story until its counts or its LLM's input are wrong."""
    story = replace(story, retain=min(story.retain, bundle.manifest.limits.window))
    told, faults, clip = list[Conversation](), dict[str, str](), check_clip(story.num_frames)
    try:
        teller = _Teller(bundle, loaded, story)
        for turn in story.turns:
            frames, clip = clip[: turn.num_frames], clip[turn.num_frames :]
            faults = dict(teller.push(frames))
            if not faults:
                conversation, faults = teller.ask(turn)
                told.append(conversation)
            if faults:
                faults = {level: f"turn {len(told)}: {fault}" for level, fault in faults.items()}
                break
    except NonFiniteError:
        raise
    except PVCError as error:
        faults = {"G": f"turn {len(told) + 1} ended with an error: {error.what}"}
    return Evidence(conversations=tuple(told), rules=tuple(_rules(story, faults, len(told))))


def _rules(story: Story, faults: dict[str, str], num_told: int) -> Iterator[Rule]:
    held = f"{num_told} turns, {story.num_frames} frames"
    for level, name in NAMES.items():
        detail = f"{faults[level]}. {_NEXT[level]}" if level in faults else held
        yield Rule(level=level, name=f"{story.kind}: {name}", passed=level not in faults, detail=detail)


_NEXT = {
    "G": "Check how frames are queued and streams re-anchored (engines/context.py, engines/stream.py)",
    "K": "Check the manifest's prompt and how the runtime uses it (engines/prompt.py, engines/context.py)",
}


class _Teller:
    """One stream, and the reference's view of it."""

    def __init__(self, bundle: Bundle, loaded: LoadedModel, story: Story) -> None:
        manifest = bundle.manifest
        if story.trained:
            manifest = replace(manifest, trained_frames=story.trained)
        self._loaded, self._manifest = loaded, manifest
        self._total = max(story.num_frames, 1) if loaded.config.time_mode == "fixed" else None
        self._past = Past(loaded, trained=story.trained, retain=story.retain)
        self._listener = Listener(
            replace(bundle, manifest=manifest),
            total_frames=self._total,
            ingest=story.ingest,
            max_waiting=story.max_waiting,
            clock="reanchor" if story.trained else "run-on",
            retain=story.retain or None,
        )
        self._kind = story.kind
        self._tiles: list[Array] = []

    def push(self, frames: Sequence[Frame]) -> Iterator[tuple[str, str]]:
        """Push frames until the first fault; yield its level and what is wrong."""
        past, listener = self._past, self._listener
        stream, size = listener.stream, self._loaded.config.vision.image_size
        for frame in frames:
            stream.push(frame)
            past.see(resize_frame(np.ascontiguousarray(frame[..., ::-1]), size=size))
            stands, should = (stream.num_context_frames, stream.num_anchors), (len(past.frames), past.num_anchors)
            if stands != should:
                yield "G", "the stream has {} frames since anchor {}, expected {} since {}".format(*stands, *should)
                return
            if len(listener.frames) != len(past.frames):
                yield "G", f"{len(listener.frames)} frames since the anchor were encoded, expected {len(past.frames)}"
                return

    def ask(self, turn: Turn) -> tuple[Conversation, dict[str, str]]:
        """Ask, and keep the answer. Returns the comparison, and per level the first fault of the LLM's input."""
        past, listener, loaded = self._past, self._listener, self._loaded
        images = [listener.stream.encode_image(image, max_tiles=MAX_TILES) for image in _images(turn)]
        num_tokens = self._manifest.shape.num_frame_tokens
        self._tiles += [tile for image in images for tile in image.reshape(-1, num_tokens, image.shape[1])]
        listener.logits.clear()
        answer = listener.stream.ask(turn.question, images=images, max_new_tokens=NUM_NEW_TOKENS, keep=True)
        said, got = answer.token_ids, np.stack(listener.logits)
        past.ask(turn.question, _tiles(turn, loaded))
        visual = past.encode(window=self._manifest.limits.window, total_frames=self._total)
        want = reference_logits(loaded, past.embeds(visual), said)
        past.hear(said)
        faults = dict[str, str]()
        for level, fault in listener.faults(past.labels(), [*listener.frames, *self._tiles], loaded):
            faults.setdefault(level, fault)
        if answer.finished != (len(said) < NUM_NEW_TOKENS):
            faults.setdefault("K", f"an answer of {len(said)} tokens has finished={answer.finished}")
        expected = _greedy(said, want, loaded.token_id(STOP_TOKEN))
        steps, rounding = min(len(want), len(got)), self._manifest.rounding
        conversation = compared(
            answer, expected, want[:steps], got[:steps], loaded, rounding, limit=NUM_NEW_TOKENS, kind=self._kind,
            question=turn.question,
        )  # fmt: skip
        return conversation, faults


def _images(turn: Turn) -> list[Frame]:
    """Real pictures in portrait format, so that each has several tiles."""
    return real_frames()[: turn.num_images]


def _tiles(turn: Turn, loaded: LoadedModel) -> list[Array]:
    return [reference_tiles(image, loaded.config, MAX_TILES) for image in _images(turn)]


def _greedy(said: Sequence[int], want: Array, stop: int) -> list[int]:
    """The reference's answer up to its first difference from `said`, by `want`, its logits with `said` fed."""
    for step, best in enumerate(want[:NUM_NEW_TOKENS].argmax(-1).tolist()):
        if best == stop:
            return list(said[:step])
        if step >= len(said) or best != said[step]:
            return [*said[:step], best]
    return list(said)
