"""Held-out accuracy: which clips are asked about, under which conditions, and the tables of the results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tokenizers import Tokenizer

from ..errors import InputError
from ..model import PVC
from ..shapes import CLEAN, CONDITIONS, HELD_OUT, Camera, Clip, Question, make_clip
from .scoring import Graded, View, grade

VIDEO_FRAMES = 8
COLUMNS = ("colour", "shape", "count", "direction", "event", "describe", "absent", "number 1", "number 2", "number 4")
_VIDEOS, _STILLS, _CARDS, _EMPTY, _LATE = 0, 1_000_000, 2_000_000, 3_000_000, 4_000_000  # first seed of each kind
Clock = Literal["run-on", "reanchor"]
WHOLE = View()
"""Once, all of it, from time 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """Percent right, NaN of no questions, and the number of questions."""

    percent: float
    count: int


Row = dict[str, Cell]
"""Cells by topic."""


def clips(kind: str, count: int, *, num_frames: int = VIDEO_FRAMES, camera: Camera | None) -> Iterator[Clip]:
    """Held-out clips: 'video', 'still', 'card' (still) or 'empty' (video). The same seeds under every camera."""
    first = {"video": _VIDEOS, "still": _STILLS, "card": _CARDS, "empty": _EMPTY}[kind]
    scene = {"video": None, "still": "things", "card": "card", "empty": "empty"}[kind]
    frames = num_frames if kind in ("video", "empty") else 1
    for seed in range(first, first + count):
        yield make_clip(seed, num_frames=frames, split=HELD_OUT, kind=scene, camera=camera)


def table(model: PVC, tokenizer: Tokenizer, *, num_clips: int) -> dict[str, Row]:
    """Accuracy by condition, for videos of 8 frames and for still images."""
    found: dict[str, Row] = {}
    for name, camera in CONDITIONS.items():
        found[f"video, {name}"] = video_row(model, tokenizer, num_clips=num_clips, camera=camera)
        if name != "shake":  # one frame does not shake
            found[f"still, {name}"] = still_row(model, tokenizer, num_clips=num_clips, camera=camera)
    return found


def video_row(
    model: PVC, tokenizer: Tokenizer, *, num_clips: int, camera: Camera | None = CLEAN, view: View = WHOLE,
    num_frames: int = VIDEO_FRAMES,
) -> Row:  # fmt: skip
    """Accuracy by topic over videos of every kind."""
    shown = clips("video", num_clips, num_frames=num_frames, camera=camera)
    return by_topic(grade(model, tokenizer, shown, view=view))


def still_row(
    model: PVC, tokenizer: Tokenizer, *, num_clips: int, camera: Camera | None = CLEAN, view: View = WHOLE
) -> Row:
    """Accuracy by topic over images of shapes, and over cards by the number of codes on them."""
    graded = grade(model, tokenizer, clips("still", num_clips, camera=camera), view=view)
    row = by_topic(one for one in graded if not _is_number(one.question))
    row |= card_cells(model, tokenizer, num_clips=num_clips, camera=camera, view=view)
    return row


def card_cells(
    model: PVC, tokenizer: Tokenizer, *, num_clips: int, camera: Camera | None = CLEAN, view: View = WHOLE
) -> Row:
    """Codes read right, by the number of codes on the card."""
    row: Row = {}
    for num_codes in (1, 2, 4):
        chosen = (clip for clip in clips("card", 3 * num_clips, camera=camera) if _num_codes(clip) == num_codes)
        row[f"number {num_codes}"] = _cell(grade(model, tokenizer, chosen, view=view, keep=_is_number))
    return row


def empty_row(model: PVC, tokenizer: Tokenizer, *, num_clips: int, camera: Camera | None) -> Row:
    """Whether the model says that an empty scene is empty, by topic of the question."""
    return by_topic(grade(model, tokenizer, clips("empty", num_clips, camera=camera), view=WHOLE))


def late_row(model: PVC, tokenizer: Tokenizer, *, num_clips: int, frame: int, clock: Clock, window: int) -> Row:
    """Accuracy about the scene that ends at frame `frame` of a stream of scenes.

    run-on    times go on; attention over time sees `window` frames in every layer
    reanchor  the stream was replayed with times from 0, 9 to 16 frames ago, each equally often
    Both show the LLM the same frames. What lies further back than window - 1 frames in each temporal layer has no
    effect, so it is not drawn (a test checks this against the whole stream).
    """
    reach = model.config.vision.num_temporal_layers * (window - 1)
    graded = []
    for phase in range(1, model.config.trained_frames - VIDEO_FRAMES + 1):
        num_seen = VIDEO_FRAMES + phase
        num_before = phase if clock == "reanchor" else phase + reach
        seeds = range(_LATE + phase, _LATE + phase + num_clips, model.config.trained_frames - VIDEO_FRAMES)
        shown = [
            make_clip(seed, num_frames=VIDEO_FRAMES, split=HELD_OUT, num_before=num_before, camera=CLEAN)
            for seed in seeds
        ]
        first_time = 0 if clock == "reanchor" else frame - VIDEO_FRAMES - num_before
        view = View(window=window, first_time=first_time, num_seen=num_seen)
        graded += grade(model, tokenizer, shown, view=view)
    return by_topic(graded)


def by_topic(graded: Iterable[Graded]) -> Row:
    found: dict[str, list[Graded]] = {}
    for one in graded:
        found.setdefault(one.question.topic, []).append(one)
    return {topic: _cell(some) for topic, some in found.items()}


def _cell(graded: Sequence[Graded]) -> Cell:
    right = sum(one.is_right for one in graded)
    return Cell(percent=100 * right / len(graded) if graded else float("nan"), count=len(graded))


def _num_codes(clip: Clip) -> int:
    return 0 if clip.scene.card is None else len(clip.scene.card.codes)


def _is_number(question: Question) -> bool:
    return question.topic == "number"


def markdown(rows: dict[str, Row]) -> str:
    """A table of percents; a cell without questions is empty."""
    body = {
        name: [f"{row[column].percent:.1f}" if column in row else "" for column in COLUMNS]
        for name, row in rows.items()
    }
    counts = [min((row[column].count for row in rows.values() if column in row), default=0) for column in COLUMNS]
    return markdown_table(COLUMNS, body | {"questions a cell, at least": [str(count) for count in counts]})


def markdown_table(heads: Sequence[str], body: Mapping[str, Sequence[str]]) -> str:
    """A Markdown table whose first column names the rows."""
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in body.items()]
    return "\n".join(lines)


def to_json(rows: Mapping[str, Row]) -> dict[str, dict[str, dict[str, float]]]:
    """The same numbers for machines: row -> topic -> percent and count."""
    return {name: {topic: asdict(cell) for topic, cell in row.items()} for name, row in rows.items()}


def from_json(data: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Row]:
    """Rows as `to_json` wrote them. Raises TypeError or AttributeError for anything else."""
    return {name: {topic: Cell(**cell) for topic, cell in row.items()} for name, row in data.items()}


def pooled(tables: Mapping[str, Mapping[str, Row]]) -> Row:
    """By topic over every row of every table, and 'all'."""
    right: dict[str, float] = {}
    asked: dict[str, int] = {}
    for row in (row for rows in tables.values() for row in rows.values()):
        for topic, cell in row.items():
            for name in ("all", topic) if cell.count else ():  # the percentage of none is NaN
                right[name] = right.get(name, 0.0) + cell.percent * cell.count / 100
                asked[name] = asked.get(name, 0) + cell.count
    return {name: Cell(percent=100 * right[name] / count, count=count) for name, count in asked.items()}


def beside(mine: Mapping[str, Mapping[str, Row]], other: Mapping[str, Mapping[str, Row]]) -> str:
    """Two models' pooled accuracy on the same questions as a table. Raises InputError if they were asked others."""
    ours, theirs = pooled(mine), pooled(other)
    for topic in (name for name in dict.fromkeys((*ours, *theirs)) if name != "all"):
        here, there = (row[topic].count if topic in row else 0 for row in (ours, theirs))
        if here != there:
            raise InputError(
                f"the other model was asked {there} questions of '{topic}', this one {here}",
                expected="the same questions of both",
                cause="the numbers were made with another --clips, or of another version of the clips",
                fix="evaluate both with the same --clips",
            )
    columns = ("all", *(column for column in COLUMNS if column in ours))
    cells = [(ours[column], theirs[column]) for column in columns]
    return markdown_table(
        columns,
        {
            "this model": [f"{one.percent:.2f}" for one, _ in cells],
            "the other": [f"{two.percent:.2f}" for _, two in cells],
            "difference": [f"{one.percent - two.percent:+.2f}" for one, two in cells],
            "questions": [str(one.count) for one, _ in cells],
        },
    )
