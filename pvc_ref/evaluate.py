"""`python -m pvc_ref.evaluate`: accuracy of the bundled or another trained model on held-out clips.

    python -m pvc_ref.evaluate                  tables for the bundled model
    python -m pvc_ref.evaluate -m FOLDER        tables for a checkpoint folder
    ... --json A.json, then --against A.json    compare two models on the same questions
    python -m pvc_ref.evaluate --study          train and compare the compressors and ablations; tables and a plot

Every clip is drawn from a committed seed, and none was used in training. An answer is right only if all of its text is.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import cast

import torch
from tokenizers import Tokenizer

from .bundled import SHAPES_FOLDER
from .checkpoint.folder import load
from .checkpoint.tokenizer import load_tokenizer
from .errors import InputError, RefError
from .model import PVC
from .shapes import CONDITIONS
from .temporal import TemporalLayer
from .training.held_out import (
    VIDEO_FRAMES,
    Row,
    beside,
    empty_row,
    from_json,
    late_row,
    markdown,
    still_row,
    table,
    to_json,
    video_row,
)
from .training.scoring import View
from .training.threads import fast_products

NUM_CLIPS = 600
LATE_FRAMES = (100, 1_000, 10_000)
WINDOW = 8
DOCS = Path("docs")


def evaluate(model: PVC, tokenizer: Tokenizer, *, num_clips: int = NUM_CLIPS) -> dict[str, dict[str, Row]]:
    """Compute every table, by title."""
    num_few = max(num_clips // 2, 1)
    video = partial(video_row, model, tokenizer, num_clips=num_few)
    still = partial(still_row, model, tokenizer, num_clips=num_few)
    late = partial(late_row, model, tokenizer, num_clips=num_few, window=WINDOW)
    return {
        "Conditions": table(model, tokenizer, num_clips=num_clips),
        "An empty scene": {
            name: empty_row(model, tokenizer, num_clips=num_few, camera=camera)
            for name, camera in CONDITIONS.items()
            if name in ("clean", "noise", "dark")
        },
        "Frames of a video": {f"{num_frames} frames": video(num_frames=num_frames) for num_frames in (4, 8, 12, 16)},
        f"Window of {WINDOW} frames": {
            f"{num_frames} frames": video(num_frames=num_frames, view=View(window=WINDOW)) for num_frames in (12, 16)
        },
        "Repeats of a still image": {f"{repeats} x": still(view=View(num_repeats=repeats)) for repeats in (1, 2, 4)},
        "What attention over time does": attention_over_time(model, tokenizer, num_clips=num_few),
        "Time beyond training": {
            f"frame {frame}, {clock}": late(frame=frame, clock=clock)
            for frame in LATE_FRAMES
            for clock in ("run-on", "reanchor")
            if model.config.time_mode == "absolute"
        },
    }


def attention_over_time(model: PVC, tokenizer: Tokenizer, *, num_clips: int) -> dict[str, Row]:
    """Unchanged videos; the last frame's tokens only; and alpha set to zero, which damages the model (no ablation)."""
    video = partial(video_row, model, tokenizer, num_clips=num_clips)
    rows = {f"{VIDEO_FRAMES} frames": video(), "last frame's tokens only": video(view=View(last_only=True))}
    alphas = [cast(TemporalLayer, layer).alpha for layer in model.temporal.layers]
    kept = [alpha.detach().clone() for alpha in alphas]
    with torch.no_grad():
        for alpha in alphas:
            alpha.zero_()
        rows["attention over time off"] = video()
        for alpha, value in zip(alphas, kept, strict=True):
            alpha.copy_(value)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pvc_ref.evaluate", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-m", "--model", type=Path, default=SHAPES_FOLDER, help="checkpoint folder")
    parser.add_argument(
        "--clips",
        type=int,
        default=NUM_CLIPS,
        help="videos per condition (default 600); the other tables use half as many",
    )
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="JSON",
        help="compare with another model's --json file, made with the same --clips",
    )
    parser.add_argument(
        "--study",
        type=Path,
        nargs="?",
        const=Path("build/study"),
        help="train and compare the study's models, in this folder (default build/study)",
    )
    args = parser.parse_args()
    try:
        if args.study is not None:
            _study(args.study)
        else:
            _evaluate(args)
    except RefError as error:
        parser.exit(2, f"error: {error}\n")


def _evaluate(args: argparse.Namespace) -> None:
    other = None if args.against is None else _tables_of(args.against)
    started = time.monotonic()
    model, tokenizer = load(args.model), load_tokenizer(args.model)
    with fast_products():
        tables = evaluate(model, tokenizer, num_clips=args.clips)
    for title, rows in tables.items():
        print(f"\n## {title}\n\n{markdown(rows)}")
    if args.json is not None:
        cells = {title: to_json(rows) for title, rows in tables.items()}
        args.json.write_text(json.dumps(cells, indent=1) + "\n", encoding="utf-8")
    if other is not None:
        print(f"\n## Compared with {args.against}\n\n{beside(tables, other)}")
    print(f"\n{time.monotonic() - started:.0f} s, torch {torch.__version__}, {args.clips} clips per condition")


def _tables_of(path: Path) -> dict[str, dict[str, Row]]:
    """Read a file written by --json. Called first, so that a bad file fails before minutes of work."""
    try:
        tables = json.loads(path.read_text(encoding="utf-8"))
        return {title: from_json(rows) for title, rows in tables.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} cannot be read ({error!r})",
            expected="the file that --json FILE wrote for the other model",
            fix="python -m pvc_ref.evaluate -m OTHER --json FILE",
        ) from error


def _study(folder: Path) -> None:
    """Train the missing models, and write docs/study.md and its plot."""
    from .training.study import study
    from .training.study_report import plot, report

    results = study(folder)
    text = report(results)
    DOCS.mkdir(exist_ok=True)
    (DOCS / "study.md").write_text(text, encoding="utf-8")
    plot(results, DOCS / "figures" / "study.png")
    print(text)


if __name__ == "__main__":
    main()
