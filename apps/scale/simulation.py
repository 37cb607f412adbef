"""Many streams on one thread, in a time that is only counted: what a load would make of measured service times.

Unusual: the rules are not written a second time. Handles, queues, dropping and turns are the runtime's own
(engines/many/handle.py, turns.py), on streams whose calls take time and do nothing else; of the scheduler only the
loop over rounds is here, since its own waits for a clock.
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
    """Of one stream alone, in seconds; of several measured values one is drawn each time.

    frame     a frame, the LLM's part and what is prepared ahead included
    ingest    the LLM's part alone: a frame that comes while an answer is decoded pays it later
    begin     a question, up to the logits of the first token
    token     a token
    tokens    tokens of an answer
    save      writing a stream to a file
    anchor    frames between two re-anchors, 0: none; an answer over which a stream re-anchors twice is cut
    more      what each further stream adds to a pass, as a share of one alone; 1 where they run one after another
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
        """All of it that many times as long."""
        seconds: dict[str, Any] = {name: tuple(share * each for each in getattr(self, name)) for name in TIMES}
        return replace(self, ingest=share * self.ingest, **seconds)

    def summary(self) -> str:
        """Means in milliseconds, for people."""
        means = ", ".join(f"{name} {1e3 * mean(getattr(self, name)):.2f}" for name in TIMES)
        return f"{means} (of a frame {1e3 * self.ingest:.2f} are the LLM's), {mean(self.tokens):.1f} tokens an answer"

    @staticmethod
    def from_json(data: dict[str, Any]) -> ServiceTimes:
        """Raises ValueError for what is none."""
        try:
            values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in data.items()}
            times = ServiceTimes(**values)
            lists = [getattr(times, name) for name in (*TIMES, "tokens")]
            if not all(each and min(each) >= 0 for each in lists):
                raise ValueError("a list is empty, or a time below zero")
        except TypeError as error:
            raise ValueError(str(error)) from error
        return times


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """How the process serves. most: steps of one round; is_batched: in one pass, and not one after another."""

    most: int = 1
    is_batched: bool = False
    gather: float = GATHER_S
    limits: QueueLimits = QueueLimits()


def simulate(times: ServiceTimes, load: Load, rules: Rules | None = None) -> Outcome:
    """What became of it. Equal for equal arguments."""
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
    """Seconds that what was done should have taken, one after another."""
    frames, tokens = len(outcome.latencies) * mean(times.frame), outcome.tokens * mean(times.token)
    return frames + outcome.asked * mean(times.begin) + tokens + outcome.saved * mean(times.save)


def _come(coming: deque[Arrival], clock: _Clock, handles: Sequence[StreamHandle], outcome: Outcome) -> None:
    """Hand over all that has come by now, and note when it is done."""
    while coming and coming[0].at_s <= clock.now:
        arrival = coming.popleft()
        hand_over(handles[arrival.camera], arrival, outcome, now=clock.read, at=arrival.at_s, frame=None, save=_saved)


def hand_over(
    handle: StreamHandle, arrival: Arrival, outcome: Outcome, *, now: Callable[[Callable[[float], None]], None],
    at: float, frame: Any, save: Callable[[PVCStream], object],
) -> None:  # fmt: skip
    """Push, ask or save, and note in the outcome how long it takes.

    at   when it came, by the same clock as `now`, which calls its argument with the time
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
    """Time that passes by being spent. In a pass of several streams it stands until the pass is done."""

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
        """Call it with the time; in a pass, with that of its end."""
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
    """As much of a PVCStream as turns.py calls: each call spends its time."""

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
        """And what waits is taken in first."""
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
