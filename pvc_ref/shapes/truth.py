"""The right answer to every question about the world, in every wording.

`questions` (questions.py) draws a few of these for a clip. This module has all of them, so that a typed question can
also be graded. Case, spaces and the final punctuation mark are ignored.
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
    """Return the right answer, or None if there is none: an unknown or an ambiguous question (two equal shapes)."""
    return all_answers(scene).get(_plain(question))


def all_answers(scene: Scene) -> dict[str, str]:
    """Map every question about a scene, in lower case and without its final mark, to its answer."""
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
