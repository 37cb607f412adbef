"""Signals: noted outside the model, raised inside it, deadly the second time."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from apps.stop import SIGNALS, Stop


@pytest.fixture
def stop() -> Iterator[Stop]:
    """Installed, and taken out again."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    stop = Stop()
    stop.install()
    yield stop
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_while_opening_raises(stop: Stop, number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)
    assert stop.number == number


def test_a_deferred_signal_is_noted_and_nothing_is_cut_short(stop: Stop) -> None:
    reached = []
    stop.defer()
    signal.raise_signal(signal.SIGINT)
    reached.append("the end")
    assert stop.requested and reached == ["the end"]


def test_inside_the_model_a_signal_cuts_short_and_goes_no_further(stop: Stop) -> None:
    reached = []
    stop.defer()
    with stop.interruptible():
        signal.raise_signal(signal.SIGTERM)
        reached.append("never")
    reached.append("the recording")
    assert stop.number == signal.SIGTERM and reached == ["the recording"]


def test_the_second_signal_of_either_kind_is_the_system_s(stop: Stop) -> None:
    stop.defer()
    signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in SIGNALS] == [signal.SIG_DFL] * 2


def test_after_the_model_signals_are_noted_again(stop: Stop) -> None:
    stop.defer()
    with stop.interruptible():
        pass
    signal.raise_signal(signal.SIGINT)
    assert stop.requested


def test_an_interrupt_that_no_signal_brought_is_not_swallowed() -> None:
    with pytest.raises(KeyboardInterrupt), Stop().interruptible():
        raise KeyboardInterrupt


def test_other_exceptions_pass(stop: Stop) -> None:
    with pytest.raises(RuntimeError, match="device lost"), stop.interruptible():
        raise RuntimeError("device lost")
    assert not stop.requested
