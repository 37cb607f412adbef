"""Scenes of the shapes world: coloured shapes that move, stand, appear, leave and cross, or a printed card.

It needs numpy but not torch, so that a live view on a device can show the world that the model was trained on.
Everything is drawn from a `numpy.random.Generator`: the same seed gives the same scene on every machine.
Lengths are fractions of the frame's side, x to the right and y down; time is counted in frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from ..errors import InputError

Floats = np.ndarray[Any, np.dtype[np.float64]]
Action = Literal["still", "left", "right", "up", "down", "appear", "leave"]
Shape = Literal["circle", "square", "triangle", "star"]
Place = Literal["", "on the left", "on the right", "at the top left", "at the top right", "at the bottom left",
                "at the bottom right"]  # fmt: skip

SHAPES: tuple[Shape, ...] = get_args(Shape)
# The corners of the colour cube, which stay distinguishable under a wrong white balance.
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (225, 28, 28),
    "green": (28, 180, 40),
    "blue": (30, 50, 225),
    "yellow": (235, 215, 30),
    "cyan": (30, 210, 220),
    "pink": (235, 45, 215),
    "white": (242, 242, 242),
    "black": (14, 14, 14),
}
STEPS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
DIGITS, LETTERS = "0123456789", "ACEFHKLPTX"
CHARACTERS = DIGITS + LETTERS
PLACES: dict[int, tuple[Place, ...]] = {
    1: ("",),
    2: ("on the left", "on the right"),
    4: ("at the top left", "at the top right", "at the bottom left", "at the bottom right"),
}
MIN_CONTRAST = 85.0  # between a shape and the mean colour of its background, Euclidean, channels 0..255
COLOR_SPREAD = 14.0  # largest difference of a shape's colour from the named colour, per channel


@dataclass(frozen=True, kw_only=True, slots=True)
class Thing:
    """One shape and its path. Visible in frames first <= t < last.

    rgb      the shade of `color` it is drawn in
    radius   radius of its circumscribed circle
    centers  (num_frames, 2) x and y of its centre in every frame, visible or not
    """

    color: str
    shape: Shape
    rgb: tuple[int, int, int]
    radius: float
    angle: float
    action: Action
    centers: Floats
    first: int
    last: int

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"

    def is_visible(self, frame_index: int) -> bool:
        return self.first <= frame_index < self.last


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """Printed codes of three characters, one per place. `kind` is whether they are digits or letters."""

    kind: Literal["number", "letters"]
    codes: tuple[str, ...]

    @property
    def places(self) -> tuple[Place, ...]:
        return PLACES[len(self.codes)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """The content of a clip. Things are listed in the order of COLORS, in which sentences name them.

    crossing    whether the first two moving things pass each other
    card        the printed card; a scene has things, or a card, or nothing
    """

    num_frames: int
    things: tuple[Thing, ...] = ()
    card: Card | None = None
    crossing: bool = False

    @property
    def is_still(self) -> bool:
        """Whether this is one frame, an image, which has no questions about motion."""
        return self.num_frames == 1

    def shows_at_end(self, thing: Thing) -> bool:
        """Whether a thing is visible in the last frame, which a question calls `now`."""
        return thing.is_visible(self.num_frames - 1)

    def visible(self, frame_index: int) -> tuple[Thing, ...]:
        return tuple(thing for thing in self.things if thing.is_visible(frame_index))


def sample_scene(
    rng: np.random.Generator, *, num_frames: int, background: tuple[float, float, float], kind: str | None = None
) -> Scene:
    """Draw a scene of `num_frames` frames; one frame is a still image.

    background  mean colour (R, G, B) with which things must contrast
    kind        'things', 'card' or 'empty'; None draws one: most images are cards, most videos show things
    Raises InputError for any other kind.
    """
    if kind is None:
        chances = (0.32, 0.62, 0.06) if num_frames == 1 else (0.77, 0.16, 0.07)
        kind = str(rng.choice(["things", "card", "empty"], p=chances))
    if kind not in ("things", "card", "empty"):
        raise InputError(f"kind is {kind!r}", expected="'things', 'card' or 'empty'")
    if kind == "empty":
        return Scene(num_frames=num_frames)
    if kind == "card":
        return Scene(num_frames=num_frames, card=_sample_card(rng))
    return _sample_things(rng, num_frames, np.asarray(background, dtype=np.float64))


def _sample_card(rng: np.random.Generator) -> Card:
    characters, kind = (DIGITS, "number") if rng.random() < 0.7 else (LETTERS, "letters")
    num_codes = int(rng.choice([1, 2, 4]))
    codes = tuple("".join(rng.choice(list(characters), 3)) for _ in range(num_codes))
    return Card(kind="number" if kind == "number" else "letters", codes=codes)


def _sample_things(rng: np.random.Generator, num_frames: int, background: Floats) -> Scene:
    colors = [name for name, rgb in COLORS.items() if np.linalg.norm(np.asarray(rgb) - background) >= MIN_CONTRAST]
    num_things = int(rng.integers(1, 4))
    names = rng.permutation(colors)[:num_things].tolist()
    plot = (
        "still"
        if num_frames == 1
        else str(rng.choice(["moves", "appear", "leave", "cross"], p=[0.55, 0.15, 0.15, 0.15]))
    )
    actions: list[Action] = ["still"] * num_things
    if plot == "moves":
        choices: list[Action] = ["left", "right", "up", "down", "still"]
        actions = [choices[int(rng.integers(5))] for _ in names]
    elif plot in ("appear", "leave"):
        actions[0] = "appear" if plot == "appear" else "leave"
    things: list[Thing] = []
    if plot == "cross" and num_things >= 2:
        things = list(_sample_crossing(rng, names[:2], num_frames))
    crossing = bool(things)
    for name, action in list(zip(names, actions, strict=True))[len(things) :]:
        thing = _place(rng, name, action, num_frames, things)
        if thing is not None:
            things.append(thing)
    order = list(COLORS)
    return Scene(
        num_frames=num_frames,
        things=tuple(sorted(things, key=lambda thing: order.index(thing.color))),
        crossing=crossing,
    )


def _place(rng: np.random.Generator, color: str, action: Action, num_frames: int, others: list[Thing]) -> Thing | None:
    """Place a thing that touches no other thing in any frame; None if 40 attempts fail."""
    for _ in range(40):
        thing = _sample_thing(rng, color, action, num_frames)
        if all(_gap(thing, other) > 0.02 for other in others):
            return thing
    return None


def _gap(a: Thing, b: Thing) -> float:
    """Return the smallest distance between two outlines over all frames; negative if they overlap."""
    nearest = float(np.sqrt(((a.centers - b.centers) ** 2).sum(-1)).min())
    return nearest - a.radius - b.radius


def _sample_thing(rng: np.random.Generator, color: str, action: Action, num_frames: int) -> Thing:
    radius = rng.uniform(0.085, 0.17)
    low, high = radius + 0.01, 1 - radius - 0.01
    start = rng.uniform(low, high, 2)
    steps = np.arange(num_frames)[:, None]
    centers = np.repeat(start[None], num_frames, axis=0)
    first, last = 0, num_frames
    if action in STEPS:
        # The whole path is inside the frame and long enough to be seen, for any number of frames.
        axis, sign = (0, STEPS[action][0]) if action in ("left", "right") else (1, STEPS[action][1])
        travel = rng.uniform(0.25, min(0.65, high - low))
        drift = rng.uniform(-0.12, 0.12) * travel
        begin = rng.uniform(low, high - travel) if sign > 0 else rng.uniform(low + travel, high)
        share = steps[:, 0] / max(num_frames - 1, 1)
        centers = centers.copy()
        centers[:, axis] = begin + sign * travel * share
        centers[:, 1 - axis] = np.clip(start[1 - axis] + drift * share, low, high)
    elif action == "appear":
        first = int(rng.integers(1, num_frames))
    elif action == "leave":
        last = int(rng.integers(1, num_frames))
    return Thing(
        color=color,
        shape=SHAPES[int(rng.integers(len(SHAPES)))],
        rgb=_shade(rng, color),
        radius=radius,
        angle=rng.uniform(-0.3, 0.3),
        action=action,
        centers=centers,
        first=first,
        last=last,
    )


def _sample_crossing(rng: np.random.Generator, names: list[str], num_frames: int) -> tuple[Thing, Thing]:
    """Draw two things on neighbouring lanes that pass each other; where they meet, one covers the other."""
    horizontal = bool(rng.integers(2))
    actions: tuple[Action, Action] = ("right", "left") if horizontal else ("down", "up")
    lane, apart = rng.uniform(0.3, 0.7), rng.uniform(0.06, 0.2)
    share = np.arange(num_frames) / max(num_frames - 1, 1)
    things = []
    for name, action, side in zip(names, actions, (-0.5, 0.5), strict=True):
        thing = _sample_thing(rng, name, action, num_frames)
        begin, end = rng.uniform(0.16, 0.26), rng.uniform(0.74, 0.84)
        along = begin + (end - begin) * share
        across = np.full(num_frames, np.clip(lane + side * apart, 0.19, 0.81))
        along = along if action in ("right", "down") else 1 - along
        centers = np.stack([along, across] if horizontal else [across, along], axis=-1)
        things.append(replace(thing, radius=min(thing.radius, 0.14), centers=centers))
    return things[0], things[1]


def _shade(rng: np.random.Generator, color: str) -> tuple[int, int, int]:
    r, g, b = (int(np.clip(value + rng.uniform(-COLOR_SPREAD, COLOR_SPREAD), 0, 255)) for value in COLORS[color])
    return r, g, b


def outline(thing: Thing, center: Floats) -> Floats | None:
    """Corners (n, 2) of a thing around `center`; None for a circle."""
    if thing.shape == "circle":
        return None
    corners, inner = {"square": (4, 1.0), "triangle": (3, 1.0), "star": (5, 0.42)}[thing.shape]
    turn = thing.angle + (math.pi / 4 if thing.shape == "square" else 0.0)
    num_points = corners if inner == 1.0 else 2 * corners
    angles = turn - math.pi / 2 + 2 * math.pi * np.arange(num_points) / num_points
    radii = np.where(np.arange(num_points) % 2 == 0, 1.0, inner) if inner < 1 else np.ones(num_points)
    points: Floats = center + thing.radius * radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    return points
