"""Alerts: which answers match, when an alert begins and ends, and which patterns are refused."""

from __future__ import annotations

import time

import pytest

from apps.events.alerts import MAX_SEARCHED, Alerts, parse_rule

from .fakes import event


def judged(alerts: Alerts, *answers: str) -> list[tuple[int, str]]:
    """Return (frame, kind) of every alert. The answers belong to frames 0, 10, 20, ..., one second apart."""
    events = [found for index, text in enumerate(answers) for found in alerts.judge(event(text, frame=10 * index))]
    return [(found.frame, found.kind) for found in events]


@pytest.mark.parametrize(
    ("rule", "answer", "matches"),
    [
        ("fire", "There is a Fire!", True),
        ("fire", "A firefighter.", False),
        ("a red ball", "It is A  RED\nball.", True),
        ("red ball", "A red and a blue ball.", False),
        ("1+1", "It is 1+1", True),
        ("c++", "It is c++.", True),
        ("Brände", "Es gibt BRÄNDE", True),
        ("火", "那里有火", False),
        ("/fire/", "Fire", False),
        ("/fire/", "A firefighter.", True),
        ("/fire/i", "FIRE", True),
        (r"/\d{3}/", "Room 101", True),
        ("/a/b/", "an a/b test", True),
        ("/fire$/", "smoke, then fire", True),
    ],
)
def test_words_match_whole_and_in_any_case_and_patterns_as_they_say(rule: str, answer: str, matches: bool) -> None:
    assert parse_rule(rule).matches(answer) is matches


def test_an_alert_begins_with_the_first_answer_that_matches_and_ends_with_the_first_that_does_not() -> None:
    answers = ("No.", "Fire!", "Fire.", "Smoke.", "Smoke.", "A fire")
    assert judged(Alerts([parse_rule("fire")]), *answers) == [(10, "alert"), (30, "alert-end"), (50, "alert")]


def test_an_alert_carries_what_set_it_off() -> None:
    alerts = Alerts([parse_rule("/fire/i")])
    (begun,) = alerts.judge(event("Fire!", frame=20, margin=1.5))
    assert (begun.alert, begun.answer, begun.question, begun.margin) == ("/fire/i", "Fire!", "What is there?", 1.5)
    assert begun.text == "alert /fire/i: Fire!" and alerts.active == ["/fire/i"]
    (over,) = alerts.judge(event("Nothing.", frame=70))
    assert over.text == "alert over after 5 s, /fire/i: Nothing." and alerts.active == []


def test_several_alerts_are_judged_apart() -> None:
    alerts = Alerts([parse_rule("fire"), parse_rule("smoke")])
    assert judged(alerts, "fire and smoke", "smoke") == [(0, "alert"), (0, "alert"), (10, "alert-end")]
    assert alerts.active == ["smoke"]


def test_one_answer_that_says_otherwise_changes_nothing_where_two_are_asked_for() -> None:
    alerts = Alerts([parse_rule("fire")], after=2)
    assert judged(alerts, "fire", "no", "fire", "fire", "no", "fire", "no", "no") == [(30, "alert"), (70, "alert-end")]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("", "--alert is empty"),
        ("  ", "--alert is empty"),
        ("//", "'//' is empty"),
        ("/fire", "'/fire' has no closing /; expected '/fire/'"),
        ("/fire/x", "'/fire/x' ends with 'x'"),
        ("/a(b/", r"'/a(b/' is not a regular expression: missing ), unterminated subpattern at character 2 of 'a(b'"),
        ("/*/", "nothing to repeat at character 1"),
        ("/(a+)+$/", "repeats a group that itself contains a repeat"),
        ("/(?:x*y*)*/", "repeats a group that itself contains a repeat"),
        ("/(a|a)*$/", "repeats a group that itself contains a repeat"),
        ("/(?P<n>(?:ab?)+)/", "repeats a group that itself contains a repeat"),
        ("/(?:a?a?)*$/", "repeats a group that itself contains a repeat"),
        ("/(a{2,9}){3}/", "repeats a group that itself contains a repeat"),
        ("/(?=(a+)+b)/", "repeats a group that itself contains a repeat"),
    ],
)
def test_a_pattern_that_cannot_be_used_is_refused_by_name_and_place(rule: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_rule(rule)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "rule", ["/a+b*c?/", "/(?:cat|dog)s?/", r"/\bfire(?!fighter)\b/i", "/(a{3}b)+/", "/[a-z]{2,5} .*x/"]
)
def test_an_ordinary_pattern_is_taken(rule: str) -> None:
    assert parse_rule(rule).text == rule


def test_only_the_beginning_of_a_long_answer_is_searched() -> None:
    rule = parse_rule("fire")
    assert rule.matches("x" * (MAX_SEARCHED - 5) + " fire") and not rule.matches("x" * MAX_SEARCHED + " fire")


def test_the_worst_answer_of_a_slow_pattern_is_searched_in_short_time() -> None:
    rule, started = parse_rule("/.*a.*b/"), time.perf_counter()
    assert not rule.matches("a" * 10**6)
    assert time.perf_counter() - started < 5.0  # measured: 0.3 s at 1000 characters; years at 10^6
