"""When the question is asked: by the clock, when the picture changes, or on request."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

from apps.triggers import RESTLESS_PAUSES, Embeds, OnChange, OnTrigger, Schedule, Trigger

RANDOM = np.random.default_rng(5)
EMPTY, PERSON = (RANDOM.normal(size=(16, 32)).astype(np.float32) for _ in range(2))


def times_asked(trigger: Trigger, frames: list[Embeds], *, fps: float = 4.0) -> list[float]:
    """Return the times at which the question is asked, when the trigger is used as a session uses it."""
    asked = []
    for index, embeds in enumerate(frames):
        if trigger.due(index / fps, embeds):
            asked.append(index / fps)
            trigger.asked(index / fps, embeds)
    return asked


def noisy(embeds: Embeds, amount: float) -> Embeds:
    return embeds + amount * RANDOM.normal(size=embeds.shape).astype(np.float32)


@pytest.mark.parametrize(
    ("every_s", "expected"), [(1.0, [1.0, 2.0]), (0.0, [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]), (9.0, [])]
)
def test_a_schedule_asks_by_the_source_s_time(every_s: float, expected: list[float]) -> None:
    assert times_asked(Schedule(every_s), [EMPTY] * 9) == expected


def test_a_question_that_somebody_else_asked_puts_off_the_scheduled_one() -> None:
    trigger = Schedule(1.0)
    assert not trigger.due(0.0, EMPTY)
    trigger.asked(0.75, EMPTY)
    assert not trigger.due(1.5, EMPTY) and trigger.due(1.75, EMPTY)


def test_after_a_reset_a_schedule_does_not_wait_for_the_time_of_the_old_source() -> None:
    trigger = Schedule(1.0)
    trigger.asked(1000.0, EMPTY)
    trigger.reset()
    assert times_asked(trigger, [EMPTY] * 6) == [1.0]


def test_a_change_is_asked_about_once_and_what_stays_is_not() -> None:
    frames = [EMPTY] * 8 + [PERSON] * 12 + [EMPTY] * 12
    assert times_asked(OnChange(0.3, pause_s=1.0), frames) == [1.0, 2.0, 5.0]


def test_noise_below_the_threshold_asks_nothing() -> None:
    frames = [noisy(EMPTY, 0.1) for _ in range(100)]
    assert times_asked(OnChange(0.3, pause_s=1.0), frames) == [1.0]


def test_noise_above_the_threshold_asks_seldom_and_not_after_every_pause() -> None:
    trigger = OnChange(0.01, pause_s=0.5)
    asked = times_asked(trigger, [noisy(EMPTY, 0.5) for _ in range(100)])
    assert trigger.distance > 0.02
    assert asked == [0.5 + RESTLESS_PAUSES * 0.5 * number for number in range(5)]


def test_who_runs_through_an_empty_room_is_asked_about_at_the_first_frame() -> None:
    """No two frames of the runner are alike, so none of them is calm."""
    runner = [RANDOM.normal(size=EMPTY.shape).astype(np.float32) for _ in range(8)]
    assert times_asked(OnChange(0.3, pause_s=1.0), [EMPTY] * 10 + runner) == [1.0, 2.5]


def test_between_two_questions_there_is_a_pause() -> None:
    flicker = [EMPTY, EMPTY, PERSON, PERSON] * 10
    assert np.diff(times_asked(OnChange(0.3, pause_s=2.0), flicker)).min() >= 2.0


def test_two_things_that_change_places_are_a_change() -> None:
    """The mean of the tokens does not change."""
    swapped = EMPTY[::-1].copy()
    trigger = OnChange(0.3, pause_s=0.0)
    trigger.asked(0.0, EMPTY)
    trigger.due(0.25, EMPTY)
    assert trigger.due(0.5, swapped) and trigger.distance > 0.5


def test_the_distance_is_that_of_directions_from_0_to_2() -> None:
    trigger = OnChange(0.3, pause_s=0.0)
    for embeds, distance in ((3 * EMPTY, 0.0), (0.001 * EMPTY, 0.0), (-EMPTY, 2.0), (np.zeros_like(EMPTY), 1.0)):
        trigger.asked(0.0, EMPTY)
        trigger.due(0.25, embeds)
        assert trigger.distance == pytest.approx(distance, abs=1e-5)


def test_another_number_of_tokens_is_another_picture() -> None:
    trigger = OnChange(2.0, pause_s=0.0)
    trigger.asked(0.0, EMPTY)
    trigger.due(0.0, EMPTY)
    assert trigger.due(0.25, EMPTY[:8])


def test_a_buffer_that_is_used_again_for_the_next_frame_does_not_hide_a_change() -> None:
    buffer, trigger = EMPTY.copy(), OnChange(0.3, pause_s=0.0)
    trigger.asked(0.0, buffer)
    trigger.due(0.25, buffer)
    buffer[:] = PERSON
    assert trigger.due(0.5, buffer)


def test_after_a_reset_the_first_frame_of_another_source_is_asked_about_after_the_pause() -> None:
    trigger = OnChange(0.3, pause_s=1.0)
    trigger.asked(1000.0, EMPTY)
    trigger.reset()
    assert times_asked(trigger, [EMPTY] * 9) == [1.0]


def test_a_signal_asks_once() -> None:
    before, trigger = signal.getsignal(signal.SIGUSR1), OnTrigger()
    try:
        assert trigger.install() == f"kill -USR1 {os.getpid()}"
        assert not trigger.due(0.0, EMPTY)
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert times_asked(trigger, [EMPTY] * 4) == [0.0]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_reset_forgets_what_was_wanted() -> None:
    trigger = OnTrigger()
    trigger.fire()
    trigger.reset()
    assert not trigger.due(0.0, EMPTY)
