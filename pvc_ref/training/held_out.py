"""Held-out accuracy: which clips are asked, under which conditions, and the table of what came out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tokenizers import Tokenizer

from ..model import PVC
from ..shapes import CONDITIONS, HELD_OUT, Camera, Clip, Question, make_clip
from .scoring import Graded, View, grade, percent

VIDEO_FRAMES = 8
COLUMNS = ("colour", "shape", "count", "direction", "event", "describe", "absent", "number 1", "number 2", "number 4")
_VIDEOS, _STILLS, _CARDS, _EMPTY, _LATE = 0, 1_000_000, 2_000_000, 3_000_000, 4_000_000  # first seed of each kind
Clock = Literal["run-on", "reanchor"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """Percent right and of how many questions."""

    percent: float
    count: int


Row = dict[str, Cell]


def clips(kind: str, count: int, *, num_frames: int = VIDEO_FRAMES, camera: Camera | None) -> Iterator[Clip]:
    """Held-out clips: 'video', 'still', 'card' (still) or 'empty' (video). The same seeds under every camera."""
    first = {"video": _VIDEOS, "still": _STILLS, "card": _CARDS, "empty": _EMPTY}[kind]
    scene = {"video": None, "still": "things", "card": "card", "empty": "empty"}[kind]
    frames = num_frames if kind in ("video", "empty") else 1
    for seed in range(first, first + count):
        yield make_clip(seed, num_frames=frames, split=HELD_OUT, kind=scene, camera=camera)


def table(
    model: PVC,
    tokenizer: Tokenizer,
    *,
    num_clips: int,
    view: View | None = None,
    progress: Callable[[float], None] = lambda _: None,
) -> dict[str, Row]:
    """Accuracy by condition, for videos of 8 frames and for still images."""
    found: dict[str, Row] = {}
    total = 2 * len(CONDITIONS)
    for index, (name, camera) in enumerate(CONDITIONS.items()):
        for offset, row in enumerate((video_row, still_row)):
            label = "video" if row is video_row else "still"
            if name == "shake" and row is still_row:
                continue  # one frame does not shake
            found[f"{label}, {name}"] = row(model, tokenizer, num_clips=num_clips, camera=camera, view=view)
            progress((2 * index + offset + 1) / total)
    return found


def video_row(
    model: PVC, tokenizer: Tokenizer, *, num_clips: int, camera: Camera | None, view: View | None = None,
    num_frames: int = VIDEO_FRAMES,
) -> Row:  # fmt: skip
    """Accuracy by topic over videos of every kind."""
    shown = clips("video", num_clips, num_frames=num_frames, camera=camera)
    return by_topic(grade(model, tokenizer, shown, view=view))


def still_row(
    model: PVC, tokenizer: Tokenizer, *, num_clips: int, camera: Camera | None, view: View | None = None
) -> Row:
    """Accuracy by topic over images of shapes, and over cards by the number of codes on them."""
    graded = grade(model, tokenizer, clips("still", num_clips, camera=camera), view=view)
    row = by_topic(one for one in graded if one.topic != "number")
    row |= card_cells(model, tokenizer, num_clips=num_clips, camera=camera, view=view)
    return row


def card_cells(
    model: PVC, tokenizer: Tokenizer, *, num_clips: int, camera: Camera | None, view: View | None = None
) -> Row:
    """Codes read right, by the number of codes on the card."""
    row: Row = {}
    for num_codes in (1, 2, 4):
        chosen = (clip for clip in clips("card", 3 * num_clips, camera=camera) if _num_codes(clip) == num_codes)
        share, count = percent(grade(model, tokenizer, chosen, view=view, keep=_is_number))
        row[f"number {num_codes}"] = Cell(percent=share, count=count)
    return row


def empty_row(model: PVC, tokenizer: Tokenizer, *, num_clips: int, camera: Camera | None) -> Row:
    """Scenes with nothing in them: whether the model says so. By topic of the question."""
    return by_topic(grade(model, tokenizer, clips("empty", num_clips, camera=camera)))


def late_row(model: PVC, tokenizer: Tokenizer, *, num_clips: int, frame: int, clock: Clock, window: int) -> Row:
    """Accuracy about the scene that ends at frame `frame` of a stream of scenes.

    run-on    times go on; attention over time reaches back `window` frames in every layer
    reanchor  the stream was replayed with times from 0; 9 to 16 frames ago, as often each
    Both show the LLM the same frames. What lies further back than window - 1 frames in each temporal layer has no
    effect, so it is not drawn (a test holds this against the whole stream).
    """
    reach = model.config.vision.num_temporal_layers * (window - 1)
    graded = []
    for phase in range(1, model.config.trained_frames - VIDEO_FRAMES + 1):
        num_seen = VIDEO_FRAMES + phase
        num_before = phase if clock == "reanchor" else phase + reach
        seeds = range(_LATE + phase, _LATE + phase + num_clips, model.config.trained_frames - VIDEO_FRAMES)
        shown = [
            make_clip(seed, num_frames=VIDEO_FRAMES, split=HELD_OUT, num_before=num_before, camera=CONDITIONS["clean"])
            for seed in seeds
        ]
        first_time = 0 if clock == "reanchor" else frame - VIDEO_FRAMES - num_before
        view = View(window=window, first_time=first_time, num_seen=num_seen)
        graded += grade(model, tokenizer, shown, view=view)
    return by_topic(graded)


def by_topic(graded: Iterator[Graded] | list[Graded]) -> Row:
    found: dict[str, list[Graded]] = {}
    for one in graded:
        found.setdefault(one.topic, []).append(one)
    row = {}
    for topic, some in found.items():
        share, count = percent(some)
        row[topic] = Cell(percent=share, count=count)
    return row


def _num_codes(clip: Clip) -> int:
    return 0 if clip.scene.card is None else len(clip.scene.card.codes)


def _is_number(question: Question) -> bool:
    return question.topic == "number"


def markdown(rows: dict[str, Row], columns: tuple[str, ...] = COLUMNS) -> str:
    """A table of percents; a cell that was not asked is empty."""
    body = {
        name: [f"{row[column].percent:.1f}" if column in row else "" for column in columns]
        for name, row in rows.items()
    }
    counts = [min((row[column].count for row in rows.values() if column in row), default=0) for column in columns]
    return markdown_table(columns, body | {"questions a cell, at least": [str(count) for count in counts]})


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
    """Two models' pooled accuracy on the same questions as a table. Raises ValueError if they were asked others."""
    ours, theirs = pooled(mine), pooled(other)
    for topic in (name for name in dict.fromkeys((*ours, *theirs)) if name != "all"):
        here, there = (row[topic].count if topic in row else 0 for row in (ours, theirs))
        if here != there:
            raise ValueError(f"{there} questions of '{topic}' there, {here} here")
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
