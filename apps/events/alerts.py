"""Alerts on answers. An alert begins with an answer that matches its rule and ends with one that does not."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any

from apps.listeners import Event, EventKind

MAX_SEARCHED = 1000
"""Number of characters of an answer that are searched; the rest is ignored. With k adjacent open repeats in a pattern,
such as .*, search time may grow with the power k + 1 of this number."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A pattern to search answers for. text: the pattern as given, and as events name it."""

    text: str
    pattern: re.Pattern[str]

    def matches(self, answer: str) -> bool:
        return self.pattern.search(answer[:MAX_SEARCHED]) is not None


def parse_rule(text: str) -> Rule:
    """Parse whole words in this order, case-insensitive: 'a fire'; or a regular expression: '/fires?/', or '/fires?/i'
    for case-insensitive.

    Raises ValueError, with the position, for an invalid regular expression and for one that could run without end.
    """
    if text.startswith("/"):
        return Rule(text, _compiled(text))
    words = [re.escape(word) for word in text.split()]
    if not words:
        raise ValueError("--alert is empty; expected words to find in an answer, or a /regular expression/")
    return Rule(text, re.compile(r"(?<!\w)" + r"\s+".join(words) + r"(?!\w)", re.IGNORECASE))


@dataclass(slots=True)
class _State:
    """State of one rule. begun: the first matching answer, once enough in a row matched."""

    rule: Rule
    begun: Event | None = None
    in_a_row: list[Event] = field(default_factory=list)  # the newest answers that contradict the present state


class Alerts:
    """Tracks which alerts are on. An alert still on when the session ends gets no end event; the session's `end` is
    its end."""

    def __init__(self, rules: Iterable[Rule], *, after: int = 1) -> None:
        """after: consecutive answers needed to begin an alert, and to end it."""
        self._states, self._after = [_State(rule) for rule in rules], after

    @property
    def active(self) -> Sequence[str]:
        """The alerts that are on, as they were given."""
        return [state.rule.text for state in self._states if state.begun is not None]

    def judge(self, answer: Event) -> list[Event]:
        """The alerts that begin or end with this `answer`."""
        events = (self._judge(state, answer) for state in self._states)
        return [event for event in events if event is not None]

    def _judge(self, state: _State, answer: Event) -> Event | None:
        is_on = state.begun is not None
        if state.rule.matches(answer.answer or "") == is_on:
            state.in_a_row.clear()
            return None
        state.in_a_row.append(answer)
        if len(state.in_a_row) < self._after:
            return None
        first, begun = state.in_a_row[0], state.begun
        state.in_a_row = []
        state.begun = None if is_on else first
        said = f"{state.rule.text}: {answer.answer}"
        if begun is None:
            return _event("alert", f"alert {said}", state.rule, answer)
        lasted_s = max(first.time_s - begun.time_s, 0.0)
        return _event("alert-end", f"alert over after {lasted_s:.0f} s, {said}", state.rule, answer)


def _event(kind: EventKind, text: str, rule: Rule, answer: Event) -> Event:
    return replace(answer, kind=kind, text=text, alert=rule.text, at=datetime.now(timezone.utc))


def _compiled(text: str) -> re.Pattern[str]:
    body, slash, flags = text[1:].rpartition("/")
    if not slash:
        raise ValueError(
            f"--alert {text!r} has no closing /; expected '/{text[1:]}/', or words that do not begin with /"
        )
    if flags not in ("", "i"):
        raise ValueError(f"--alert {text!r} ends with {flags!r}; after the closing / only i is allowed")
    if not body:
        raise ValueError(f"--alert {text!r} is empty; expected a regular expression between the two slashes")
    try:
        pattern = re.compile(body, re.IGNORECASE if flags else 0)
    except re.error as error:
        where = "" if error.pos is None else f" at character {error.pos + 1} of {body!r}"
        raise ValueError(f"--alert {text!r} is not a regular expression: {error.msg}{where}") from error
    if _may_explode(_parser().parse(body)):
        raise ValueError(
            f"--alert {text!r} repeats a group that itself contains a repeat or alternatives, such as (a+)+; for some "
            "answers the search would not end. Use + and * only on plain characters"
        )
    return pattern


def _parser() -> Any:
    """The parser of regular expressions, renamed in Python 3.11. Needed because `re` does not expose a pattern's
    structure and cannot be interrupted."""
    return importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")


def _may_explode(parsed: Any, *, is_repeated: bool = False) -> bool:
    """Whether a repeat contains a part of open length or a choice, which can match in exponentially many ways.
    Stricter than necessary: (cat|dog)+ is refused too."""
    for name, argument in parsed:
        kind = str(name)
        is_repeat = kind in ("MAX_REPEAT", "MIN_REPEAT")
        if is_repeated and (kind == "BRANCH" or (is_repeat and argument[0] != argument[1])):
            return True
        repeats = is_repeated or (is_repeat and argument[1] > 1)
        if any(_may_explode(part, is_repeated=repeats) for part in _parts(argument)):
            return True
    return False


def _parts(argument: Any) -> Iterable[Any]:
    """The patterns inside a parser argument, at any depth of its tuples and lists."""
    if hasattr(argument, "getwidth"):
        yield argument
    elif isinstance(argument, tuple | list):
        for part in argument:
            yield from _parts(part)
