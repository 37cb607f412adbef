"""The notes text: the newest answers, each listed once with the time span in which it stayed the same."""

from __future__ import annotations

from apps.notes import Notes


def test_answers_are_told_in_order_with_their_times() -> None:
    notes = Notes(200)
    assert notes.text == ""
    for text, time_s in (("no", 12.2), ("a red\n ball", 15.0), ("a red ball", 39.6), ("no", 45.0)):
        notes.add(text, time_s)
    assert notes.text == "Before: 12 s no; 15-40 s a red ball; 45 s no."


def test_the_oldest_make_room_and_the_text_is_never_too_long() -> None:
    notes = Notes(40)
    for index in range(50):
        notes.add(f"answer {index}", index)
        assert len(notes.text) <= 40 and f"answer {index}" in notes.text
    notes.add("x" * 41, 60.0)
    assert notes.text == ""
    notes.clear()
    assert notes.text == ""
