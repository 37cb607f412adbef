"""A stream that watches without an end: frames in, questions in turn, and answers decoded while frames continue.

Note: when a stream has as many frames as its model was trained on, or its context is full, it continues from its last
frames as a fresh stream (engines/episodes.py); if the model cannot do that, the stream is restarted. Room for the
question and its answer is kept free, so that one last question can be asked about frames before they are forgotten.
Otherwise a small context with rare questions would never give an answer.
A source that knows its scenes has a question for each scene, asked only at the scene's last frame. The context is then
forgotten between scenes, not within one.
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

NOTICE_S = 4.0  # how long the overlay shows that the stream was restarted
MARGIN_ROWS = 8  # a frame's number takes more tokens as it grows
OTHER_ROWS = 64  # kept free for people's questions, if there is room
MOST_WAITING = 16  # people's questions


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """The model's answer about the frames up to `frame_index`. finished: false if the token limit cut it short.

    margin      how sure the model was (engines/answer.py)
    latency_ms  from the capture of that frame to the end of the answer
    standing    the standing question, not a person's
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
        """Its fields, including those of the grade."""
        fields = asdict(self)
        graded: dict[str, Any] = fields.pop("grade")
        return fields | graded


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """A question being answered. fair: the model had a fair chance to know the answer."""

    question: str
    standing: bool
    about: Captured
    fair: bool
    answering: Answering


class Watcher:
    """A PVCStream and its questions. All times are the source's `time_s`.

    question      the standing question
    last_reply    the newest reply, to any question
    num_restarts  times the stream was forgotten completely; num_rollovers also counts re-anchors
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
        """`question` is for frames without their own.

        whole_scenes  forget the context between scenes, instead of continuing from the last frames within one
        notes         keeps answers after their frames are forgotten; None keeps nothing
        stream        a stream of the same bundle to continue
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
        self._is_told = False  # whether a person set the question
        self._num_unasked = 0
        self._num_of_scene = 0  # frames of the newest scene that are in the context
        self._num_anchors_before = 0
        self._notice, self._notice_until_s = "", 0.0

    @property
    def context_rows(self) -> int:
        return self.stream.context_rows

    @property
    def num_rollovers(self) -> int:
        """Rollovers since the stream began."""
        return self.num_restarts + self._num_anchors_before + self.stream.num_anchors

    @property
    def num_waiting(self) -> int:
        """Number of waiting questions."""
        return len(self._waiting) + self._wants_standing

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do; questions wait for the first frame."""
        return self._turn is not None or (self.num_waiting > 0 and self.stream.newest is not None)

    @property
    def partial(self) -> tuple[str, str] | None:
        """The question being answered, and its answer so far."""
        return None if self._turn is None else (self._turn.question, self._turn.answering.text)

    def push(self, captured: Captured) -> None:
        """Show the model a frame. If the context has no room for a scene that begins, older scenes are forgotten first.
        A stream that cannot continue from its last frames forgets everything when it is full."""
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
            told = f"continuing from its last {self.stream.num_context_frames - 1} frames"
            self._say(captured, f"the context is used up: {told} at frame {captured.index}")
        self._num_unasked += 1
        self._num_of_scene += 1
        newest = self.stream.newest
        assert newest is not None
        self._is_due = self._trigger.due(captured.time_s, newest)

    def is_due(self, captured: Captured) -> bool:
        """Whether to ask now: the trigger is due, or the next frame would drop frames not asked about yet. A scene is
        asked about only at its end."""
        if self._wants_standing or (self._turn is not None and self._turn.standing):
            return False
        is_last_chance = captured.scene is None and (self._why_full(1) != "" or self.stream.frames_left() == 0)
        return self.has_news(captured) and (self._is_due or is_last_chance)

    def has_news(self, captured: Captured) -> bool:
        """Whether there are frames without an answer yet, and no unfinished scene among them."""
        return self._num_unasked > 0 and (captured.scene is None or captured.scene.is_last)

    def ask_from_now_on(self, question: str) -> None:
        """Set the standing question, also for scenes. Raises StreamError for one that cannot be asked."""
        self._ask_from_now_on(question)
        self._is_told = True

    def _ask_from_now_on(self, question: str) -> None:
        self._bundle.tokenizer.refuse_special_tokens(question)
        rows = self._rows_of(question)
        self._require_room(rows)
        self._make_room(rows)
        self.question, self._ask_rows = question, rows

    def want(self, question: str | None = None) -> None:
        """Queue a person's question, or the standing one. Raises StreamError for one that cannot be asked, or if too
        many are waiting."""
        if question is None:
            self._wants_standing = True
            return
        self._bundle.tokenizer.refuse_special_tokens(question)
        if len(self._waiting) >= MOST_WAITING:
            raise StreamError(
                f"{MOST_WAITING} questions are already waiting",
                expected="fewer",
                fix="ask again when some are answered",
            )
        self._waiting.append(question)

    def step(self, newest: Captured) -> Reply | None:
        """Begin the next question, about the frames up to `newest`, or decode one more token. Returns a finished reply.

        Raises StreamFull for a person's question without room in the present context, and NonFiniteError; the question
        is dropped.
        """
        if self._turn is None:
            self._turn = self._begin(newest) if self.num_waiting else None
            return None
        turn, self._turn = self._turn, None  # any exception ends the turn
        if turn.answering.is_cut:  # it lasted for a whole context
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
        """Cut off the answer being decoded."""
        self._turn = None
        self.stream.cancel()

    def ask(self, newest: Captured) -> Reply:
        """Ask the standing question, after the waiting ones, and decode the whole answer."""
        self.want()
        while True:
            reply = self.step(newest)
            if reply is not None and reply.standing:
                return reply

    def reset(self) -> None:
        """Forget frames, answers and waiting questions."""
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
        """A recent change of the context, or empty."""
        return self._notice if time_s < self._notice_until_s else ""

    def _begin(self, newest: Captured) -> Turn | None:
        """Begin the next question, people's first. A question that cannot be begun is dropped."""
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
        """Whether a trained model has the whole scene in its context and was not asked about it before."""
        num_seen = min(self._num_of_scene, self.stream.num_context_frames)  # a re-anchor forgets the oldest
        is_whole = scene is not None and num_seen == scene.num_frames
        return is_whole and self._num_unasked > 0 and not self.random_weights

    def _open(self) -> PVCStream:
        """Open a stream, with room for people's questions if the context has it."""
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
                f"one frame, the question and an answer of {self._max_new_tokens} tokens need {needed} context rows",
                expected=f"at most {self.context}, the bundle's context",
                fix="shorten the question, lower --max-new-tokens, or export with a larger --context",
            )

    def _make_room(self, num_rows: int) -> None:
        """Reserve room for a question before frames are forgotten. Raises StreamError."""
        if self.stream.clock == "reanchor" and num_rows > self.stream.reserve:
            self.stream.reserve = num_rows

    def _rows_of(self, question: str) -> int:
        return rows_of_question(self._bundle, question, self._max_new_tokens)

    def _why_full(self, num_frames: int) -> str:
        """The reason why num_frames more frames (a scene, or one) and the question do not fit; empty if they do."""
        seen, trained = self.stream.num_context_frames, self._trained_frames
        # For single frames a stream that re-anchors needs no check; a scene must not be cut in two.
        has_limit = self.stream.clock == "run-on" or (num_frames > 1 and self._whole_scenes)
        if seen == 0 or not has_limit:
            return ""
        if seen >= trained:
            return f"the {seen} trained frames are used up"
        if seen + num_frames > trained:
            return f"the next scene would exceed the {trained} trained frames"
        if self.context_rows + num_frames * self._frame_rows + self._ask_rows > self.context:
            return "context full"
        return ""

    def _restart(self, captured: Captured, why: str) -> None:
        self._num_anchors_before += self.stream.num_anchors
        self.stream.reset()
        self.num_restarts += 1
        self._num_of_scene = 0
        self._say(captured, f"{why}: restarted at frame {captured.index}")

    def _say(self, captured: Captured, what: str) -> None:
        self._notice, self._notice_until_s = what, captured.time_s + NOTICE_S


def _rows_of_frame(bundle: Bundle) -> int:
    """Most context rows a frame takes, with a margin for frame numbers with more digits."""
    prompt = bundle.manifest.prompt
    prefix = bundle.tokenizer.encode(prompt.frame_end() + prompt.before_frame(1))
    return len(prefix) + bundle.manifest.shape.num_frame_tokens + MARGIN_ROWS


def live_clock(manifest: Manifest) -> Clock:
    """'reanchor' if the model can, otherwise 'run-on'."""
    try:
        return resolve_clock(manifest, "reanchor", None)[0]
    except StreamError:
        return "run-on"


def require_endless(manifest: Manifest) -> None:
    """Raise StreamError for a model whose time is t / T, since a live stream has no T."""
    if manifest.time_mode == "fixed":
        raise StreamError(
            "this model's time mode is 'fixed': it must know the number of frames, and a live stream has no end",
            expected="a model whose time mode is 'absolute'",
            fix="stream a file of known length instead: pvc-export run BUNDLE --video FILE",
        )
