"""The right answer to any question that the world can be asked, in any of its wordings.

`questions` (questions.py) draws a few of these for a clip. Here are all of them, so that a question which a person
typed can be graded too. Case, spaces and the mark at the end do not matter.
"""

from __future__ import annotations

from .questions import (
    NO_NUMBER,
    NUMBER,
    WORDINGS,
    Topic,
    codes,
    color_of,
    count,
    describe,
    direction,
    event,
    shape_of,
)
from .world import COLORS, SHAPES, Scene


def answer_to(scene: Scene, question: str) -> str | None:
    """The one right answer; None if the world has none: an unknown question, or one about two shapes alike."""
    return all_answers(scene).get(_plain(question))


def all_answers(scene: Scene) -> dict[str, str]:
    """Every question of a scene, in small letters and without its mark, and its answer."""
    found: dict[str, str] = {}

    def add(topic: Topic, answer: str | None, **names: str) -> None:
        if answer is not None:
            found.update({_plain(wording.format(**names)): answer for wording in WORDINGS[topic]})

    add("describe", describe(scene))
    add("count", count(scene))
    if not scene.is_still:
        add("event", event(scene))
    for shape in SHAPES:
        add("colour", color_of(scene, shape), shape=shape)
    for color in COLORS:
        add("shape", shape_of(scene, color), color=color)
        for shape in SHAPES if not scene.is_still else ():
            name = f"{color} {shape}"
            add("direction", direction(scene, name), name=name)
    for answer, names in codes(scene):
        add("number", answer, **names)
    if scene.card is None:
        add("number", NO_NUMBER, **NUMBER)
    return found


def _plain(question: str) -> str:
    return " ".join(question.lower().rstrip(" ?.!").split())
