"""Delivery to a sink that fails, hangs or is too slow. The sink is a fake without a network."""

from __future__ import annotations

import time
from collections.abc import Iterator
from threading import Event as Flag

import pytest

from apps.events.delivery import Deliveries, Delivery, NotDelivered
from apps.listeners import Event

from .fakes import captured, event, wait_until


class FakeSink:
    """Follow the plan ("ok", "again" or "final" per attempt), then always "ok". A closed `gate` blocks an attempt."""

    name = "sink"

    def __init__(self, *plan: str) -> None:
        self.plan, self.tries, self.sent = list(plan), list[str](), list[str]()
        self.gate, self.is_closed = Flag(), False
        self.gate.set()

    def send(self, event: Event) -> None:
        self.tries.append(event.text)
        assert self.gate.wait(20)
        what = self.plan.pop(0) if self.plan else "ok"
        if what != "ok":
            raise NotDelivered(f"it says {what}", is_final=what == "final")
        self.sent.append(event.text)

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def sink() -> Iterator[FakeSink]:
    sink = FakeSink()
    yield sink
    sink.gate.set()


def test_events_arrive_in_order_and_offering_does_not_wait(sink: FakeSink, said: list[str]) -> None:
    sink.gate.clear()
    delivery, started = Delivery(sink, trouble=said.append), time.perf_counter()
    for number in range(100):
        delivery.offer(event(str(number)))
    assert time.perf_counter() - started < 1.0
    sink.gate.set()
    assert delivery.close(5.0) == 0 and sink.is_closed
    assert sink.sent == [str(number) for number in range(100)] and said == [] and delivery.num_delivered == 100


def test_a_failed_event_is_tried_again_before_the_next_and_said_once(sink: FakeSink, said: list[str]) -> None:
    sink.plan = ["again"] * 4 + ["ok"]
    delivery = Delivery(sink, trouble=said.append, pauses_s=(0.001, 0.002))
    for text in ("one", "two"):
        delivery.offer(event(text))
    wait_until(lambda: sink.sent == ["one", "two"])
    delivery.close()
    assert sink.tries == ["one"] * 5 + ["two"]
    assert said == ["sink: it says again; retrying", "sink: working again"]


def test_the_pauses_between_tries_grow_up_to_a_limit(sink: FakeSink, said: list[str]) -> None:
    pauses, delivery = list[float](), Delivery(sink, trouble=said.append, pauses_s=(1.0, 2.0, 5.0))
    wait_for = delivery._changed.wait_for
    delivery._changed.wait_for = lambda is_so, pause_s=None: bool(pauses.append(pause_s)) or wait_for(is_so, 0.0)  # type: ignore
    sink.plan = ["again"] * 5
    delivery.offer(event())
    wait_until(lambda: sink.sent)
    delivery.close()
    assert pauses == [1.0, 2.0, 5.0, 5.0, 5.0]


def test_an_event_that_is_refused_is_given_up_and_the_next_one_is_sent(sink: FakeSink, said: list[str]) -> None:
    sink.plan = ["final", "final", "ok"]
    delivery = Delivery(sink, trouble=said.append, pauses_s=(60.0,))
    for text in ("one", "two", "three"):
        delivery.offer(event(text))
    wait_until(lambda: sink.sent == ["three"])
    delivery.close()
    assert delivery.num_refused == 2 and sink.tries == ["one", "two", "three"]
    assert said == ["sink: it says final; the event is discarded", "sink: working again"]


def test_a_full_queue_drops_its_oldest_and_says_how_many(sink: FakeSink, said: list[str]) -> None:
    sink.gate.clear()
    delivery = Delivery(sink, trouble=said.append, limit=3)
    delivery.offer(event("held"))
    wait_until(lambda: sink.tries)
    for number in range(8):
        delivery.offer(event(str(number)))
    assert said == ["sink: 3 events are waiting; the oldest are now dropped"] and delivery.num_dropped == 5
    sink.gate.set()
    assert delivery.close(5.0) == 0 and sink.sent == ["held", "5", "6", "7"]
    assert said[1:] == ["sink: working again; 5 events were dropped"]


def test_at_the_end_what_waits_is_tried_at_once_and_given_up_at_the_first_failure(
    sink: FakeSink, said: list[str]
) -> None:
    sink.plan = ["again"] * 99
    delivery, started = Delivery(sink, trouble=said.append, pauses_s=(60.0,)), time.perf_counter()
    for number in range(4):
        delivery.offer(event(str(number)))
    wait_until(lambda: sink.tries)
    assert delivery.close(5.0) == 4 and time.perf_counter() - started < 2.0
    assert sink.tries == ["0", "0"] and said[-1] == "sink: 4 events were not delivered before the end"


def test_a_sink_that_hangs_does_not_hold_up_the_end(sink: FakeSink, said: list[str]) -> None:
    sink.gate.clear()
    delivery = Delivery(sink, trouble=said.append)
    for number in range(3):
        delivery.offer(event(str(number)))
    wait_until(lambda: sink.tries)
    started = time.perf_counter()
    assert delivery.close(0.05) == 3 and time.perf_counter() - started < 1.0
    assert said == ["sink: 3 events were not delivered before the end"]


def test_only_the_kinds_that_are_asked_for_are_sent_and_to_every_place(said: list[str]) -> None:
    sinks = [FakeSink(), FakeSink()]
    listener = Deliveries([Delivery(sink, trouble=said.append) for sink in sinks], ("alert", "end"))
    for kind in ("answer", "alert", "rollover", "end"):
        listener.happened(event(kind, kind=kind), captured())  # type: ignore[arg-type]
    listener.close()
    assert [sink.sent for sink in sinks] == [["alert", "end"]] * 2 and all(sink.is_closed for sink in sinks)


def test_several_places_that_hang_end_within_the_time_of_one() -> None:
    sinks, said = [FakeSink(), FakeSink(), FakeSink()], list[str]()
    for sink in sinks:
        sink.gate.clear()
    listener = Deliveries([Delivery(sink, trouble=said.append) for sink in sinks], ("alert",), within_s=0.3)
    listener.happened(event("fire", kind="alert"), captured())
    started = time.perf_counter()
    listener.close()
    assert time.perf_counter() - started < 0.8 and len(said) == 3
    for sink in sinks:
        sink.gate.set()
