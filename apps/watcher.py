"""One stream that watches without an end: frames in, questions asked in their turn, and an answer while frames go on.

Note: a stream that holds as many frames as its model was trained on, or whose context is full, goes on from its last
frames as a fresh stream of them (engines/episodes.py); where a model cannot do that, it is started again. Room for the
question and its answer is kept free, so that what is about to be forgotten is asked about once more. Otherwise a small
context and a rare question would give no answer at all.
A source that knows its scenes brings its own question for each scene. It is asked at the scene's last frame only, and a
context is then forgotten between two scenes, not within one.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any

from engines import Bundle, PVCStream
from engines.answering import Answering
from engines.clock import Clock, resolve_clock
from engines.context import rows_of_question
from engines.errors import StreamError, StreamFull
from engines.manifest import Manifest

from .capture import Captured
from .notes import Notes
from .score import Grade, grade
from .synthetic import KnownScene
from .triggers import Trigger

NOTICE_S = 4.0  # how long an overlay shows that the stream was started again
MARGIN_ROWS = 8  # a frame's number takes more tokens as it grows
OTHER_ROWS = 64  # kept free for the questions of people, where there is room for them
MOST_WAITING = 16  # questions of people


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What the model said about the frames up to `frame_index`. finished: false if the token limit cut it short.

    margin      how sure it was (engines/answer.py)
    latency_ms  from the capture of that frame to the end of the answer
    standing    whether it was asked by itself, and not by a person
    """

    question: str
    text: str
    frame_index: int
    time_s: float
    finished: bool
    prefill_ms: float
    decode_ms: float
    margin: float
    latency_ms: float
    standing: bool = True
    grade: Grade = field(default_factory=Grade)

    def to_json(self) -> dict[str, Any]:
        """Its fields, those of the grade among them."""
        fields = asdict(self)
        graded: dict[str, Any] = fields.pop("grade")
        return fields | graded


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """A question that is being answered. fair: whether the model has had a chance to know."""

    question: str
    standing: bool
    about: Captured
    fair: bool
    answering: Answering


class Watcher:
    """A PVCStream and what it is asked. All times are the source's `time_s`.

    question      that is asked by itself
    last_reply    the newest, to whatever question
    num_restarts  how often the stream was forgotten whole; num_rollovers counts its re-anchors too
    """

    def __init__(
        self,
        bundle: Bundle,
        question: str,
        *,
        trigger: Trigger,
        max_new_tokens: int,
        whole_scenes: bool = True,
        notes: Notes | None = None,
        stream: PVCStream | None = None,
    ) -> None:
        """`question` is for frames that bring none.

        whole_scenes  forget a scene between two, rather than go on from the last frames in the middle of one
        notes         what is carried beyond what the model sees; None carries nothing
        stream        goes on with this one, of the same bundle
        Raises StreamError for a question that cannot be asked, StreamFull if one frame leaves no room for it.
        """
        require_endless(bundle.manifest)
        bundle.tokenizer.refuse_special_tokens(question)
        self._bundle, self._trigger, self._max_new_tokens = bundle, trigger, max_new_tokens
        self.question, self.context = question, bundle.manifest.limits.context
        self.random_weights = bundle.manifest.model.random_weights
        self._trained_frames = bundle.manifest.trained_frames
        self._whole_scenes, self._notes = whole_scenes, notes
        self._ask_rows = self._rows_of(question)
        self._frame_rows = _rows_of_frame(bundle)
        self._require_room(self._ask_rows)
        self.stream = stream or self._open()
        self._make_room(self._ask_rows)
        self.last_reply: Reply | None = None
        self.num_replies = self.num_restarts = 0
        self._waiting: deque[str] = deque()
        self._turn: Turn | None = None
        self._wants_standing = self._is_due = False
        self._is_told = False  # the question, by a person
        self._num_unasked = 0
        self._num_of_scene = 0  # frames of the newest scene that are in the context
        self._num_anchors_before = 0
        self._notice, self._notice_until_s = "", 0.0

    @property
    def context_rows(self) -> int:
        return self.stream.context_rows

    @property
    def num_rollovers(self) -> int:
        """Since the stream was begun."""
        return self.num_restarts + self._num_anchors_before + self.stream.num_anchors

    @property
    def num_waiting(self) -> int:
        """Questions that wait for their turn."""
        return len(self._waiting) + self._wants_standing

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do: before the first frame, questions wait for it."""
        return self._turn is not None or (self.num_waiting > 0 and self.stream.newest is not None)

    @property
    def partial(self) -> tuple[str, str] | None:
        """The question that is being answered, and its answer so far."""
        return None if self._turn is None else (self._turn.question, self._turn.answering.text)

    def push(self, captured: Captured) -> None:
        """Let the model see a frame. Where a scene begins that the context has no room for, the old ones are forgotten
        first; and where a stream cannot go on from its last frames, all is."""
        scene, num_frames = captured.scene, 1
        if scene is not None and scene.is_first:
            self._num_of_scene, num_frames = 0, scene.num_frames
        if scene is not None and scene.question != self.question and not self._is_told:
            self._ask_from_now_on(scene.question)
        if why := self._why_full(num_frames):
            self._restart(captured, why)
        num_anchors = self.stream.num_anchors
        try:
            self.stream.push(captured.bgr)
        except StreamFull:  # the margin was too small
            self._restart(captured, "context full")
            self.stream.push(captured.bgr)
        if self.stream.num_anchors > num_anchors:
            told = f"goes on from its last {self.stream.num_context_frames - 1} frames"
            self._say(captured, f"the context is used up: {told} at frame {captured.index}")
        self._num_unasked += 1
        self._num_of_scene += 1
        newest = self.stream.newest
        assert newest is not None
        self._is_due = self._trigger.due(captured.time_s, newest)

    def is_due(self, captured: Captured) -> bool:
        """Whether to ask now: it is time, or the next frame is the first one without those that were not asked about.
        Of a scene, only at its end."""
        if self._wants_standing or (self._turn is not None and self._turn.standing):
            return False
        is_last_chance = captured.scene is None and (self._why_full(1) != "" or self.stream.frames_left() == 0)
        return self.has_news(captured) and (self._is_due or is_last_chance)

    def has_news(self, captured: Captured) -> bool:
        """Whether frames were pushed that no answer is about yet, and none of them is of a scene that goes on."""
        return self._num_unasked > 0 and (captured.scene is None or captured.scene.is_last)

    def ask_from_now_on(self, question: str) -> None:
        """Another question that is asked by itself, of scenes too. Raises StreamError for one that cannot be asked."""
        self._ask_from_now_on(question)
        self._is_told = True

    def _ask_from_now_on(self, question: str) -> None:
        self._bundle.tokenizer.refuse_special_tokens(question)
        rows = self._rows_of(question)
        self._require_room(rows)
        self._make_room(rows)
        self.question, self._ask_rows = question, rows

    def want(self, question: str | None = None) -> None:
        """Ask in turn: a person's question, or the standing one. Raises StreamError for one that cannot be asked, or if
        too many wait."""
        if question is None:
            self._wants_standing = True
            return
        self._bundle.tokenizer.refuse_special_tokens(question)
        if len(self._waiting) >= MOST_WAITING:
            raise StreamError(
                f"{MOST_WAITING} questions wait already", expected="fewer", fix="ask again when some are answered"
            )
        self._waiting.append(question)

    def step(self, newest: Captured) -> Reply | None:
        """Begin the next question, about the frames up to `newest`, or decode one token more. Returns a reply that is
        done.

        Raises StreamFull for a person's question that has no room until the context is used up, and NonFiniteError; the
        question is dropped.
        """
        if self._turn is None:
            self._turn = self._begin(newest) if self.num_waiting else None
            return None
        turn, self._turn = self._turn, None  # whatever is raised, it is over
        if turn.answering.is_cut:  # it went on for a whole context
            if turn.standing:
                self._wants_standing = True
            else:
                self._waiting.appendleft(turn.question)
            return None
        if turn.answering.step():
            return self._reply(turn)
        self._turn = turn
        return None

    def cancel(self) -> None:
        """Cut the answer that is being decoded."""
        self._turn = None
        self.stream.cancel()

    def ask(self, newest: Captured) -> Reply:
        """Ask the standing question, after those that wait, and decode all of the answer."""
        self.want()
        while True:
            reply = self.step(newest)
            if reply is not None and reply.standing:
                return reply

    def reset(self) -> None:
        """Forget frames, answers and what waits."""
        self._waiting.clear()
        self._turn, self._wants_standing, self._is_due = None, False, False
        self.last_reply, self._notice = None, ""
        self._num_anchors_before += self.stream.num_anchors
        if self._notes is not None:
            self._notes.clear()
            self.stream.remember("")
        self.stream.reset()
        self._trigger.reset()
        self.num_restarts += 1
        self._num_of_scene = self._num_unasked = 0

    def notice(self, time_s: float) -> str:
        """What happened to the context lately, else empty."""
        return self._notice if time_s < self._notice_until_s else ""

    def _begin(self, newest: Captured) -> Turn | None:
        """People first: they wait. A question that cannot be begun does not wait any longer."""
        standing = not self._waiting
        question = self.question if standing else self._waiting.popleft()
        if standing:
            self._wants_standing = self._is_due = False
        answering = self.stream.begin(question, max_new_tokens=self._max_new_tokens)
        fair = self._saw_it_fairly(newest.scene)
        if standing:
            self._num_unasked = 0
            embeds = self.stream.newest
            assert embeds is not None
            self._trigger.asked(newest.time_s, embeds)
        return Turn(question=question, standing=standing, about=newest, fair=fair, answering=answering)

    def _reply(self, turn: Turn) -> Reply:
        answer, about = turn.answering.answer, turn.about
        assert answer is not None
        asks_its_own = about.scene is not None and about.scene.question == turn.question
        self.num_replies += 1
        self.last_reply = Reply(
            question=turn.question,
            text=answer.text,
            frame_index=about.index,
            time_s=about.time_s,
            finished=answer.finished,
            prefill_ms=answer.prefill_ms,
            decode_ms=answer.decode_ms,
            margin=answer.margin,
            latency_ms=1e3 * (time.monotonic() - about.captured_at),
            standing=turn.standing,
            grade=grade(answer.text, about.scene if asks_its_own else None, counts=turn.fair and turn.standing),
        )
        if self._notes is not None:
            self._notes.add(answer.text, about.time_s)
            self.stream.remember(self._notes.text)
        return self.last_reply

    def _saw_it_fairly(self, scene: KnownScene | None) -> bool:
        """Whether a trained model has all of the scene in its context, and was not asked about it before."""
        num_seen = min(self._num_of_scene, self.stream.num_context_frames)  # a re-anchor forgets the oldest
        is_whole = scene is not None and num_seen == scene.num_frames
        return is_whole and self._num_unasked > 0 and not self.random_weights

    def _open(self) -> PVCStream:
        """With room for the questions of people too, where the context has it."""
        clock, reserve = live_clock(self._bundle.manifest), self._ask_rows + MARGIN_ROWS
        if clock == "run-on":
            return PVCStream(self._bundle, clock=clock)
        try:
            return PVCStream(self._bundle, clock=clock, reserve=max(reserve, self._rows_of("") + OTHER_ROWS))
        except StreamError:
            return PVCStream(self._bundle, clock=clock, reserve=reserve)

    def _require_room(self, num_rows: int) -> None:
        needed = num_rows + self._frame_rows
        if needed > self.context:
            raise StreamFull(
                f"one frame, the question and {self._max_new_tokens} tokens of answer need {needed} context rows",
                expected=f"{self.context} rows or fewer, as many as the bundle has",
                fix="ask shorter, lower --max-new-tokens, or export with a larger --context",
            )

    def _make_room(self, num_rows: int) -> None:
        """For a question that is asked before frames are forgotten. Raises StreamError."""
        if self.stream.clock == "reanchor" and num_rows > self.stream.reserve:
            self.stream.reserve = num_rows

    def _rows_of(self, question: str) -> int:
        return rows_of_question(self._bundle, question, self._max_new_tokens)

    def _why_full(self, num_frames: int) -> str:
        """Why so many more frames, of a scene, or one, and the question do not fit; empty if they do."""
        seen, trained = self.stream.num_context_frames, self._trained_frames
        # Frame by frame, a stream that re-anchors takes care of itself; a scene must not be cut in two.
        has_limit = self.stream.clock == "run-on" or (num_frames > 1 and self._whole_scenes)
        if seen == 0 or not has_limit:
            return ""
        if seen >= trained:
            return f"{seen} frames, as many as the model was trained on"
        if seen + num_frames > trained:
            return f"the next scene would pass {trained} frames, as many as the model was trained on"
        if self.context_rows + num_frames * self._frame_rows + self._ask_rows > self.context:
            return "context full"
        return ""

    def _restart(self, captured: Captured, why: str) -> None:
        self._num_anchors_before += self.stream.num_anchors
        self.stream.reset()
        self.num_restarts += 1
        self._num_of_scene = 0
        self._say(captured, f"{why}: started again at frame {captured.index}")

    def _say(self, captured: Captured, what: str) -> None:
        self._notice, self._notice_until_s = what, captured.time_s + NOTICE_S


def _rows_of_frame(bundle: Bundle) -> int:
    """Most context rows that a frame takes, one of a number with more digits than any so far."""
    prompt = bundle.manifest.prompt
    prefix = bundle.tokenizer.encode(prompt.frame_end() + prompt.before_frame(1))
    return len(prefix) + bundle.manifest.shape.num_frame_tokens + MARGIN_ROWS


def live_clock(manifest: Manifest) -> Clock:
    """'reanchor' for every model that can."""
    try:
        return resolve_clock(manifest, "reanchor", None)[0]
    except StreamError:
        return "run-on"


def require_endless(manifest: Manifest) -> None:
    """Raise StreamError for a model whose time is t / T: a live view has no T."""
    if manifest.time_mode == "fixed":
        raise StreamError(
            "this model's time mode is 'fixed': it must know the number of frames, and a live view has no end",
            expected="a model whose time mode is 'absolute'",
            fix="stream a file of known length instead: pvc-export run BUNDLE --video FILE",
        )
