"""Questions about a scene, each with its only right answer, as a sentence.

Every answer is determined by the scene alone and has one wording, so that "right" means equal text.
A question has several wordings. Things are named in the order of COLORS, never by position.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import numpy as np

from .world import COLORS, PLACES, SHAPES, Action, Scene

Topic = Literal["colour", "shape", "direction", "count", "event", "describe", "number", "absent"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A question, its answer and its topic. `number` is about cards, `absent` about things that are not there."""

    topic: Topic
    text: str
    answer: str


WORDINGS: dict[Topic, tuple[str, ...]] = {
    "colour": ("What colour is the {shape}?", "What color is the {shape}?", "Which colour does the {shape} have?"),
    "shape": ("What shape is {color}?", "Which shape is {color}?", "What is the {color} shape?"),
    "direction": (
        "Which way does the {name} move?", "Where does the {name} go?", "In which direction does the {name} move?",
    ),
    "count": ("How many shapes are there now?", "How many shapes do you see?", "How many shapes are there?"),
    "event": ("What happened?", "What just happened?", "What has happened?"),
    "describe": ("What do you see?", "Describe what you see.", "What is there?", "What can you see?",
                 "What happens in this video?", "What happens?", "What is happening?"),
    "number": ("Which {kind} {be} shown{place}?", "What {be} the {kind}{place}?", "Read the {kind}{place}."),
}  # fmt: skip

VERBS: dict[Action, str] = {
    "still": "stands still",
    "left": "moves left",
    "right": "moves right",
    "up": "moves up",
    "down": "moves down",
    "appear": "appears",
    "leave": "leaves",
}
PAST: dict[Action, str] = {
    "left": "moved left",
    "right": "moved right",
    "up": "moved up",
    "down": "moved down",
    "appear": "appeared",
    "leave": "left",
}
SLOPPY_CHANCE = 0.1
STILL_WORDINGS = 4  # the first wordings of `describe`, which do not mention a video
NUMBER_WORDS = ("no", "1", "2", "3")
NO_NUMBER, NUMBER = "There is no number.", {"kind": "number", "be": "is", "place": ""}


def questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Return every question about a scene, each in one wording drawn by `rng`. `describe` comes first."""
    found = [
        _ask(rng, "describe", describe(scene), STILL_WORDINGS if scene.is_still else None),
        _ask(rng, "count", count(scene)),
        *_about_things(scene, rng),
        *(_ask(rng, "number", answer, **names) for answer, names in codes(scene)),
        *_about_absent(scene, rng),
    ]
    if not scene.is_still:
        found.append(_ask(rng, "event", event(scene)))
    return found


def describe(scene: Scene) -> str:
    """Describe everything in the scene; in a video, also what each thing does."""
    if scene.card is not None:
        return _describe_card(scene)
    if not scene.things:
        return "Nothing is there."
    parts = [f"a {thing.name}" if scene.is_still else f"a {thing.name} {VERBS[thing.action]}" for thing in scene.things]
    return _sentence(parts)


def count(scene: Scene) -> str:
    """Count the shapes in the last frame."""
    number = sum(map(scene.shows_at_end, scene.things))
    return f"There is {NUMBER_WORDS[number]} shape." if number == 1 else f"There are {NUMBER_WORDS[number]} shapes."


def event(scene: Scene) -> str:
    """Describe every change between the first and the last frame."""
    if scene.crossing:
        movers = [f"the {thing.name}" for thing in scene.things if thing.action != "still"]
        return _sentence([f"{' and '.join(movers)} crossed"])
    changed = [f"the {thing.name} {PAST[thing.action]}" for thing in scene.things if thing.action in PAST]
    return _sentence(changed) if changed else "Nothing happened."


def _sentence(parts: list[str]) -> str:
    """Join as "a", "a and b" or "a, b and c", with a capital and a full stop."""
    text = " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]
    return text[0].upper() + text[1:] + "."


def _ask(
    rng: np.random.Generator, topic: Topic, answer: str, num_wordings: int | None = None, /, **names: str
) -> Question:
    """Draw one of the (first) wordings; sometimes without the capital or the final mark, as people type."""
    wordings = WORDINGS[topic][:num_wordings]
    text = wordings[int(rng.integers(len(wordings)))].format(**names)
    if rng.random() < SLOPPY_CHANCE:
        text = text[:-1]
    if rng.random() < SLOPPY_CHANCE:
        text = text[0].lower() + text[1:]
    return Question(topic=topic, text=text, answer=answer)


def _about_things(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    for thing in filter(scene.shows_at_end, scene.things):
        if (answer := color_of(scene, thing.shape)) is not None:
            yield _ask(rng, "colour", answer, shape=thing.shape)
        if (answer := shape_of(scene, thing.color)) is not None:
            yield _ask(rng, "shape", answer, color=thing.color)
    if not scene.is_still:
        for thing in scene.things:
            yield _ask(rng, "direction", direction(scene, thing.name), name=thing.name)


def color_of(scene: Scene, shape: str) -> str | None:
    """Return the colour of the only thing of a shape; None if there are several, or if it has left."""
    alike = [thing for thing in scene.things if thing.shape == shape]
    if not alike:
        return f"There is no {shape}."
    return f"The {shape} is {alike[0].color}." if len(alike) == 1 and scene.shows_at_end(alike[0]) else None


def shape_of(scene: Scene, color: str) -> str | None:
    """Return the shape of the only thing of a colour; None if it has left."""
    alike = [thing for thing in scene.things if thing.color == color]
    if not alike:
        return f"There is no {color} shape."
    return f"The {color} shape is a {alike[0].shape}." if scene.shows_at_end(alike[0]) else None


def direction(scene: Scene, name: str) -> str:
    """Return what the thing with this name does, moving or not."""
    alike = [thing for thing in scene.things if thing.name == name]
    return f"The {name} {VERBS[alike[0].action]}." if alike else f"There is no {name}."


def codes(scene: Scene) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield every code of a card: the answer, and the words of its question."""
    if scene.card is None:
        return
    be, kind = ("is", "number") if scene.card.kind == "number" else ("are", "letters")
    for code, place in zip(scene.card.codes, scene.card.places, strict=True):
        yield f"The {kind} {be} {code}.", {"kind": kind, "be": be, "place": f" {place}" if place else ""}


def _describe_card(scene: Scene) -> str:
    assert scene.card is not None
    number, is_number = len(scene.card.codes), scene.card.kind == "number"
    if number == 1:
        return f"The number {scene.card.codes[0]}." if is_number else f"The letters {scene.card.codes[0]}."
    return f"{number} numbers." if is_number else f"{number} groups of letters."


def _about_absent(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    """Questions whose answer is that there is no such thing. They keep a model from naming one in every scene."""
    shape = str(rng.choice(SHAPES))
    if all(thing.shape != shape for thing in scene.things):
        yield _ask_absent(rng, "colour", color_of(scene, shape), shape=shape)
    color = str(rng.choice(list(COLORS)))
    if all(thing.color != color for thing in scene.things):
        yield _ask_absent(rng, "shape", shape_of(scene, color), color=color)
    name = f"{color} {shape}"
    if not scene.is_still and all(thing.name != name for thing in scene.things):
        yield _ask_absent(rng, "direction", direction(scene, name), name=name)
    if scene.card is None:
        yield _ask_absent(rng, "number", NO_NUMBER, **NUMBER)


def _ask_absent(rng: np.random.Generator, wording: Topic, answer: str | None, **names: str) -> Question:
    assert answer is not None, "a question about an absent thing always has an answer"
    return replace(_ask(rng, wording, answer, **names), topic="absent")


def vocabulary() -> list[str]:
    """Sentences with every word of every question and answer, from which the tokenizer is trained."""
    names = [f"{color} {shape}" for color, shape in product(COLORS, SHAPES)]
    lines = [
        wording.format(shape=shape, color=color, name=f"{color} {shape}", kind=kind, be=be, place=f" {place}".rstrip())
        for wordings in WORDINGS.values()
        for wording in wordings
        for (color, shape), (kind, be) in product(product(COLORS, SHAPES), (("number", "is"), ("letters", "are")))
        for place in (PLACES[1] + PLACES[2] + PLACES[4] if "{place}" in wording else ("",))
    ]
    lines += [_sentence([f"{article} {name} {verb}" for name in names]) for article, verb in product(
        ("a", "the"), (*VERBS.values(), *PAST.values(), "crossed"))]  # fmt: skip
    lines += [f"The {shape} is {color}. The {color} shape is a {shape}." for color, shape in product(COLORS, SHAPES)]
    lines += [f"There is no {name}. There is no {name.split()[1]}." for name in names]
    lines += [f"There are {word} shapes. There is 1 shape." for word in NUMBER_WORDS]
    lines += ["Nothing is there. Nothing happened. There is no number. The number is 1.", "The letters are 1."]
    lines += ["2 numbers. 4 groups of letters. The number 1. The letters 1."]
    return lines
