"""The right answer to any question that the world can be asked, in any of its wordings.

`questions` (questions.py) draws a few of these for a clip; here they are all, so that a question that a person typed is
graded as well. Case, spaces and the mark at the end do not matter.
"""

from __future__ import annotations

from .questions import WORDINGS, Topic, count, describe, direction, event
from .world import COLORS, PLACES, SHAPES, Scene


def answer_to(scene: Scene, question: str) -> str | None:
    """The one right answer, None where the world has none: another question, or one of two shapes alike."""
    return all_answers(scene).get(_plain(question))


def all_answers(scene: Scene) -> dict[str, str]:
    """Every question of a scene, in small letters and without its mark, and its answer."""
    found: dict[str, str] = {}

    def add(topic: Topic, answer: str, **names: str) -> None:
        found.update({_plain(wording.format(**names)): answer for wording in WORDINGS[topic]})

    add("describe", describe(scene))
    add("count", count(scene))
    if not scene.is_still:
        add("event", event(scene))
    shown = scene.visible(scene.num_frames - 1)
    for shape in SHAPES:
        alike = [thing for thing in scene.things if thing.shape == shape]
        if not alike:
            add("colour", f"There is no {shape}.", shape=shape)
        elif len(alike) == 1 and alike[0] in shown:
            add("colour", f"The {shape} is {alike[0].color}.", shape=shape)
    for color in COLORS:
        alike = [thing for thing in scene.things if thing.color == color]
        if not alike:
            add("shape", f"There is no {color} shape.", color=color)
        elif alike[0] in shown:
            add("shape", f"The {color} shape is a {alike[0].shape}.", color=color)
        for shape in SHAPES if not scene.is_still else ():
            same = [thing for thing in alike if thing.shape == shape]
            add("direction", direction(same[0]) if same else f"There is no {color} {shape}.", name=f"{color} {shape}")
    for kind, be in (("number", "is"), ("letters", "are")):
        if scene.card is None:
            if kind == "number":
                add("number", "There is no number.", kind=kind, be=be, place="")
        elif scene.card.kind == kind:
            for code, place in zip(scene.card.codes, PLACES[len(scene.card.codes)], strict=True):
                add("number", f"The {kind} {be} {code}.", kind=kind, be=be, place=f" {place}" if place else "")
    return found


def _plain(question: str) -> str:
    return " ".join(question.lower().rstrip(" ?.!").split())
