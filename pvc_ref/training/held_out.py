"""Held-out accuracy: the clips, the conditions and the tables of results."""

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
"""No repeats, no window, from time 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """Percent right (NaN without questions), and the number of questions."""

    percent: float
    count: int


Row = dict[str, Cell]
"""Cells by topic."""


def clips(kind: str, count: int, *, num_frames: int = VIDEO_FRAMES, camera: Camera | None) -> Iterator[Clip]:
    """Yield held-out clips: 'video', 'still', 'card' (still) or 'empty' (video). Every camera gets the same seeds."""
    first = {"video": _VIDEOS, "still": _STILLS, "card": _CARDS, "empty": _EMPTY}[kind]
    scene = {"video": None, "still": "things", "card": "card", "empty": "empty"}[kind]
    frames = num_frames if kind in ("video", "empty") else 1
    for seed in range(first, first + count):
        yield make_clip(seed, num_frames=frames, split=HELD_OUT, kind=scene, camera=camera)


def table(model: PVC, tokenizer: Tokenizer, *, num_clips: int) -> dict[str, Row]:
    """Measure accuracy by condition, for videos of 8 frames and for still images."""
    found: dict[str, Row] = {}
    for name, camera in CONDITIONS.items():
        found[f"video, {name}"] = video_row(model, tokenizer, num_clips=num_clips, camera=camera)
        if name != "shake":  # shake needs several frames
            found[f"still, {name}"] = still_row(model, tokenizer, num_clips=num_clips, camera=camera)
    return found


def video_row(
    model: PVC, tokenizer: Tokenizer, *, num_clips: int, camera: Camera | None = CLEAN, view: View = WHOLE,
    num_frames: int = VIDEO_FRAMES,
) -> Row:  # fmt: skip
    """Measure accuracy by topic over videos of every kind."""
    shown = clips("video", num_clips, num_frames=num_frames, camera=camera)
    return by_topic(grade(model, tokenizer, shown, view=view))


def still_row(
    model: PVC, tokenizer: Tokenizer, *, num_clips: int, camera: Camera | None = CLEAN, view: View = WHOLE
) -> Row:
    """Measure accuracy by topic over images of shapes, and over cards by number of codes."""
    graded = grade(model, tokenizer, clips("still", num_clips, camera=camera), view=view)
    row = by_topic(one for one in graded if not _is_number(one.question))
    row |= card_cells(model, tokenizer, num_clips=num_clips, camera=camera, view=view)
    return row


def card_cells(
    model: PVC, tokenizer: Tokenizer, *, num_clips: int, camera: Camera | None = CLEAN, view: View = WHOLE
) -> Row:
    """Measure codes read right, by number of codes on the card."""
    row: Row = {}
    for num_codes in (1, 2, 4):
        chosen = (clip for clip in clips("card", 3 * num_clips, camera=camera) if _num_codes(clip) == num_codes)
        row[f"number {num_codes}"] = _cell(grade(model, tokenizer, chosen, view=view, keep=_is_number))
    return row


def empty_row(model: PVC, tokenizer: Tokenizer, *, num_clips: int, camera: Camera | None) -> Row:
    """Measure how often the model recognises an empty scene, by question topic."""
    return by_topic(grade(model, tokenizer, clips("empty", num_clips, camera=camera), view=WHOLE))


def late_row(model: PVC, tokenizer: Tokenizer, *, num_clips: int, frame: int, clock: Clock, window: int) -> Row:
    """Measure accuracy on the scene that ends at frame `frame` of a stream of scenes.

    run-on    times continue; temporal attention sees `window` frames in every layer
    reanchor  the stream restarted at time 0, 9 to 16 frames ago, each equally often
    Both show the LLM the same frames. Each temporal layer reaches window - 1 frames back, and older frames have no
    effect, so they are not drawn (a test checks this against the whole stream).
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
    """Format a table of percentages. A cell without questions is empty."""
    body = {
        name: [f"{row[column].percent:.1f}" if column in row else "" for column in COLUMNS]
        for name, row in rows.items()
    }
    counts = [min((row[column].count for row in rows.values() if column in row), default=0) for column in COLUMNS]
    return markdown_table(COLUMNS, body | {"questions per cell, at least": [str(count) for count in counts]})


def markdown_table(heads: Sequence[str], body: Mapping[str, Sequence[str]]) -> str:
    """Format a Markdown table whose first column names the rows."""
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in body.items()]
    return "\n".join(lines)


def to_json(rows: Mapping[str, Row]) -> dict[str, dict[str, dict[str, float]]]:
    """The same numbers as JSON: row -> topic -> percent and count."""
    return {name: {topic: asdict(cell) for topic, cell in row.items()} for name, row in rows.items()}


def from_json(data: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Row]:
    """Read rows written by `to_json`. Raises TypeError or AttributeError for anything else."""
    return {name: {topic: Cell(**cell) for topic, cell in row.items()} for name, row in data.items()}


def pooled(tables: Mapping[str, Mapping[str, Row]]) -> Row:
    """Pool the rows of all tables by topic, with 'all' for every topic together."""
    right: dict[str, float] = {}
    asked: dict[str, int] = {}
    for row in (row for rows in tables.values() for row in rows.values()):
        for topic, cell in row.items():
            for name in ("all", topic) if cell.count else ():  # the percentage of zero questions is NaN
                right[name] = right.get(name, 0.0) + cell.percent * cell.count / 100
                asked[name] = asked.get(name, 0) + cell.count
    return {name: Cell(percent=100 * right[name] / count, count=count) for name, count in asked.items()}


def beside(mine: Mapping[str, Mapping[str, Row]], other: Mapping[str, Mapping[str, Row]]) -> str:
    """Tabulate two models' pooled accuracy on the same questions. Raises InputError if the questions differ."""
    ours, theirs = pooled(mine), pooled(other)
    for topic in (name for name in dict.fromkeys((*ours, *theirs)) if name != "all"):
        here, there = (row[topic].count if topic in row else 0 for row in (ours, theirs))
        if here != there:
            raise InputError(
                f"the other model was asked {there} questions of '{topic}', this one {here}",
                expected="the same questions for both models",
                cause="the numbers were made with another --clips, or with another version of the clips",
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
