"""Signals: noted outside the model, raised inside it, fatal the second time."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import suppress

import pytest

from engines.signals import SIGNALS, Signals


@pytest.fixture
def signals() -> Iterator[Signals]:
    """Signals, installed and removed again afterwards."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signals = Signals()
    signals.install(second_kills=True)
    yield signals
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_while_opening_raises(signals: Signals, number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)
    assert signals.number == number


def test_a_deferred_signal_is_noted_and_nothing_is_cut_short(signals: Signals) -> None:
    reached = []
    signals.defer()
    signal.raise_signal(signal.SIGINT)
    reached.append("the end")
    assert signals.requested and reached == ["the end"]


def test_inside_the_model_a_signal_cuts_short_and_goes_no_further(signals: Signals) -> None:
    reached = []
    signals.defer()
    with signals.interruptible() as cut:
        signal.raise_signal(signal.SIGTERM)
        reached.append("never")
    reached.append("the recording")
    assert cut.short and signals.number == signal.SIGTERM and reached == ["the recording"]


def test_the_second_signal_of_either_kind_is_the_system_s(signals: Signals) -> None:
    signals.defer()
    signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in SIGNALS] == [signal.SIG_DFL] * 2


def test_a_command_that_is_not_told_otherwise_is_interrupted_twice(signals: Signals) -> None:
    signals.install(second_kills=False)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_an_interrupt_that_native_code_dropped_is_met_at_the_next_check(signals: Signals) -> None:
    signals.check()
    with suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        signals.check()
    assert signals.exit_code == 143


def test_a_block_that_drops_its_interrupt_was_not_cut_short(signals: Signals) -> None:
    signals.defer()
    with signals.interruptible() as cut, suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signals.requested and not cut.short


def test_after_the_model_signals_are_noted_again(signals: Signals) -> None:
    signals.defer()
    with signals.interruptible() as cut:
        pass
    assert not cut.short
    signal.raise_signal(signal.SIGINT)
    assert signals.requested


def test_an_interrupt_that_no_signal_brought_is_not_swallowed() -> None:
    with pytest.raises(KeyboardInterrupt), Signals().interruptible():
        raise KeyboardInterrupt


def test_other_exceptions_pass(signals: Signals) -> None:
    with pytest.raises(RuntimeError, match="device lost"), signals.interruptible():
        raise RuntimeError("device lost")
    assert not signals.requested
