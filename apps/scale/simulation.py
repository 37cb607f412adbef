"""Simulation of many streams on one thread in virtual time, from measured service times.

Note: the rules are not reimplemented. Handles, queues, dropping and turns are the runtime's (engines/many/handle.py,
turns.py), on streams whose calls only take time. Only the scheduler's loop over rounds is rewritten here, since the
original waits for a real clock.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from statistics import mean
from threading import Condition
from typing import Any, cast

from engines.ingest import CATCH_UP
from engines.many.handle import QueueLimits, StreamHandle
from engines.many.scheduler import GATHER_S
from engines.many.turns import Counts, is_ready, next_step
from engines.stream import PVCStream

from .load import Arrival, Load, Outcome

TIMES = ("frame", "begin", "token", "save")
QUESTION, MAX_NEW_TOKENS = "What happens?", 64


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceTimes:
    """Times of a single stream, in seconds; from a list, one value is drawn each time.

    frame     one frame, including the LLM's part and the work prepared ahead
    ingest    the LLM's part of a frame; deferred if the frame arrives while an answer is decoded
    begin     one question, up to the logits of the first token
    token     one token
    tokens    number of tokens per answer
    save      saving a stream to a file
    anchor    frames between two re-anchors, 0: none; an answer during which a stream re-anchors twice is cut
    more      cost of each further stream in a pass, as a share of the first; 1 if they run one after another
    """

    frame: tuple[float, ...]
    ingest: float = 0.0
    begin: tuple[float, ...] = (0.0,)
    token: tuple[float, ...] = (0.0,)
    tokens: tuple[int, ...] = (1,)
    save: tuple[float, ...] = (0.0,)
    anchor: int = 0
    more: float = 1.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def scaled(self, share: float) -> ServiceTimes:
        """All times multiplied by share."""
        seconds: dict[str, Any] = {name: tuple(share * each for each in getattr(self, name)) for name in TIMES}
        return replace(self, ingest=share * self.ingest, **seconds)

    def summary(self) -> str:
        """Means in milliseconds, for the user."""
        means = ", ".join(f"{name} {1e3 * mean(getattr(self, name)):.2f}" for name in TIMES)
        return f"{means} (LLM's part of a frame {1e3 * self.ingest:.2f}), {mean(self.tokens):.1f} tokens per answer"

    @staticmethod
    def from_json(data: dict[str, Any]) -> ServiceTimes:
        """Read service times. Raises ValueError if the data is not service times."""
        try:
            values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in data.items()}
            times = ServiceTimes(**values)
            lists = [getattr(times, name) for name in (*TIMES, "tokens")]
            if not all(each and min(each) >= 0 for each in lists):
                raise ValueError("a list is empty or contains a negative value")
        except TypeError as error:
            raise ValueError(str(error)) from error
        return times


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """Scheduling rules of the process. most: steps per round; is_batched: in one pass instead of one by one."""

    most: int = 1
    is_batched: bool = False
    gather: float = GATHER_S
    limits: QueueLimits = QueueLimits()


def simulate(times: ServiceTimes, load: Load, rules: Rules | None = None) -> Outcome:
    """Simulate the load. The outcome is equal for equal arguments."""
    rules = rules or Rules()
    clock = _Clock(is_batched=rules.is_batched, more=times.more)
    chance, changed = random.Random(load.seed + 1), Condition()
    streams = [_Stream(clock, times, chance) for _ in range(load.cameras)]
    handles = [
        StreamHandle(cast(PVCStream, stream), options={}, limits=rules.limits, changed=changed, is_spare=True)
        for stream in streams
    ]
    outcome, coming = Outcome(cameras=load.cameras), deque(load.arrivals())
    turns, counts = list(handles), Counts()
    while coming or any(map(is_ready, handles)):
        if not any(map(is_ready, handles)):
            clock.now = max(clock.now, coming[0].at_s)
        _come(coming, clock, handles, outcome)
        until = clock.now + rules.gather
        while sum(map(is_ready, handles)) < min(rules.most, len(handles)) and coming and coming[0].at_s <= until:
            clock.now = coming[0].at_s
            _come(coming, clock, handles, outcome)
        if sum(map(is_ready, handles)) < min(rules.most, len(handles)):
            clock.now = until
        ready = [handle for handle in turns if is_ready(handle)][: rules.most]
        turns = [handle for handle in turns if handle not in ready] + ready
        started = clock.now
        clock.run([step for handle in ready if (step := next_step(handle, counts)) is not None])
        outcome.busy += clock.now - started
    outcome.tokens = counts.tokens
    outcome.elapsed = max(clock.now, load.seconds)
    outcome.dropped = sum(handle.num_dropped for handle in handles)
    outcome.by_camera = [stream.num_frames for stream in streams]
    return outcome


def cost(times: ServiceTimes, outcome: Outcome) -> float:
    """Seconds the work done in `outcome` should take, one step after another."""
    frames, tokens = len(outcome.latencies) * mean(times.frame), outcome.tokens * mean(times.token)
    return frames + outcome.asked * mean(times.begin) + tokens + outcome.saved * mean(times.save)


def _come(coming: deque[Arrival], clock: _Clock, handles: Sequence[StreamHandle], outcome: Outcome) -> None:
    """Submit everything that has arrived by now."""
    while coming and coming[0].at_s <= clock.now:
        arrival = coming.popleft()
        hand_over(handles[arrival.camera], arrival, outcome, now=clock.read, at=arrival.at_s, frame=None, save=_saved)


def hand_over(
    handle: StreamHandle, arrival: Arrival, outcome: Outcome, *, now: Callable[[Callable[[float], None]], None],
    at: float, frame: Any, save: Callable[[PVCStream], object],
) -> None:  # fmt: skip
    """Push, ask or save, and record in the outcome how long it takes.

    at   arrival time, by the same clock as `now`, which calls its argument with the time
    Raises what the handle's methods do.
    """
    if arrival.kind == "save":
        outcome.saved += 1
        handle.call(save)
        return
    if arrival.kind == "frame":
        outcome.offered += 1

        def seen(done: Future[Any]) -> None:
            if (error := done.exception()) is not None:
                outcome.fail(error)
            elif done.result() is not None:
                now(lambda time: outcome.latencies.append(time - at))

        handle.push(frame).add_done_callback(seen)
        return
    outcome.asked += 1
    heard = False

    def hear(text: str) -> None:
        nonlocal heard
        if not heard:
            heard = True
            now(lambda time: outcome.first_token.append(time - at))

    def said(done: Future[Any]) -> None:
        if (error := done.exception()) is not None:
            outcome.fail(error)
        else:
            now(lambda time: outcome.answers.append(time - at))

    answered = handle.ask(QUESTION, heard=hear, max_new_tokens=MAX_NEW_TOKENS)
    answered.add_done_callback(said)


class _Clock:
    """Virtual time, advanced by spending it. In a pass of several streams it stands still until the pass is done."""

    def __init__(self, *, is_batched: bool, more: float) -> None:
        self.now = 0.0
        self._is_batched, self._more = is_batched, more
        self._spent: dict[str, list[float]] = {}
        self._waiting: list[Callable[[float], None]] = []

    def spend(self, kind: str, seconds: float) -> None:
        if self._is_batched:
            self._spent.setdefault(kind, []).append(seconds)
        else:
            self.now += seconds

    def read(self, take: Callable[[float], None]) -> None:
        """Call `take` with the time; within a pass, with the time of its end."""
        if self._is_batched:
            self._waiting.append(take)
        else:
            take(self.now)

    def run(self, steps: Sequence[Callable[[], None]]) -> None:
        for step in steps:
            step()
        for seconds in self._spent.values():
            self.now += sum(seconds) / len(seconds) * (1 + (len(seconds) - 1) * self._more)
        for take in self._waiting:
            take(self.now)
        self._spent, self._waiting = {}, []


class _Stream:
    """The part of PVCStream that turns.py calls: each call only spends time."""

    def __init__(self, clock: _Clock, times: ServiceTimes, chance: random.Random) -> None:
        self._clock, self._times, self._chance = clock, times, chance
        self.num_frames = self._waiting = 0
        self._first = chance.randrange(times.anchor) if times.anchor else 0  # frames since its last anchor
        self.answering: _Answering | None = None

    def push(self, frame: Any) -> object:
        times = self._times
        seconds = self._chance.choice(times.frame)
        if self.answering is not None:
            self._waiting, seconds = self._waiting + 1, seconds - times.ingest
        else:
            caught_up = min(CATCH_UP, self._waiting)
            self._waiting, seconds = self._waiting - caught_up, seconds + caught_up * times.ingest
        self._clock.spend("frame", max(0.0, seconds))
        self.num_frames += 1
        return seconds

    @property
    def num_anchors(self) -> int:
        return (self._first + self.num_frames) // self._times.anchor if self._times.anchor else 0

    @property
    def next_frame_cuts(self) -> bool:
        after = (self._first + self.num_frames + 1) // self._times.anchor if self._times.anchor else 0
        return self.answering is not None and after - self.answering.num_anchors > 1

    def begin(self, question: str, **_: Any) -> _Answering:
        """Begin an answer; waiting frames are ingested first."""
        seconds = self._chance.choice(self._times.begin) + self._waiting * self._times.ingest
        self._waiting = 0
        self._clock.spend("begin", seconds)
        self.answering = _Answering(self, self._clock, self._times, self._chance)
        return self.answering

    def cancel(self) -> None:
        self.answering = None

    def save(self) -> None:
        self._clock.spend("save", self._chance.choice(self._times.save))


class _Answering:
    text = ""

    def __init__(self, stream: _Stream, clock: _Clock, times: ServiceTimes, chance: random.Random) -> None:
        self._stream, self._clock, self._times, self._chance = stream, clock, times, chance
        self._left, self.num_anchors = chance.choice(times.tokens), stream.num_anchors
        self.answer: object | None = None

    def cancel(self) -> None:
        self._stream.cancel()

    def step(self) -> bool:
        self._clock.spend("token", self._chance.choice(self._times.token))
        self._left -= 1
        if self._left <= 0:
            self.answer, self._stream.answering = self, None
        return self.answer is not None


def _saved(stream: PVCStream) -> None:
    cast(_Stream, stream).save()
