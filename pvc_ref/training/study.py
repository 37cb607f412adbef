"""PVC against what it is compared with, in small: same data, steps, seeds and number of frame tokens.

Two questions, kept apart. What does attention over time give: `pvc` against `pvc, no attention over time`. What does
its compressor give: the latter against the other compressors, none of which has attention over time.
Four tokens a frame, so 16 patches become one token, as in the paper. Runs are resumed, and evaluated once.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

from tokenizers import Tokenizer

from ..model import PVC
from ..shapes import CONDITIONS
from ..weights import TOKENIZER_FILE, load_model
from .held_out import Cell, Row, card_cells, still_row, to_json, video_row
from .loop import LOG_FILE, Recipe, train
from .scoring import View
from .threads import fast_products

NUM_STEPS, NUM_TOKENS, NUM_CLIPS = 2500, 4, 400
SEEDS = (0, 1, 2)
NUM_AT_ONCE = 2  # runs of one thread each
RESULT_FILE = "result.json"
CLEAN = CONDITIONS["clean"]
REPEATS, LENGTHS = (1, 2, 4), (4, 8, 12, 16)
Result = dict[str, Row]


def variants() -> dict[str, Recipe]:
    """Every run of the study by its name; seeds other than 0 for the two that are compared with mean and spread."""
    plain = Recipe(num_steps=NUM_STEPS, num_workers=1, num_tokens=NUM_TOKENS)
    found: dict[str, Recipe] = {}
    for seed in SEEDS:
        found[f"pvc, seed {seed}"] = replace(plain, seed=seed)
        found[f"pixel shuffle, seed {seed}"] = replace(plain, seed=seed, compressor="pixel_shuffle", temporal=False)
    found["pvc, no attention over time"] = replace(plain, temporal=False)
    found["pooling"] = replace(plain, compressor="pool", temporal=False)
    found["strided convolution"] = replace(plain, compressor="conv", temporal=False)
    found["Q-Former"] = replace(plain, compressor="q_former", temporal=False)
    return found


def study(out: Path) -> dict[str, Result]:
    """Train and evaluate what is missing, and return every result."""
    out.mkdir(parents=True, exist_ok=True)
    jobs = [(name, recipe, out / _slug(name)) for name, recipe in variants().items()]
    started = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(NUM_AT_ONCE, maxtasksperchild=1) as pool:
        for name in pool.imap_unordered(_run, jobs):
            print(f"{(time.monotonic() - started) / 60:6.1f} min  {name} is done", flush=True)
    return {name: _read(folder) for name, _, folder in jobs}


def minutes(out: Path) -> dict[str, float]:
    """What each run's training took."""
    found = {}
    for name in variants():
        last = (out / _slug(name) / LOG_FILE).read_text(encoding="utf-8").splitlines()[-1]
        found[name] = json.loads(last)["seconds"] / 60
    return found


def _slug(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "_").lower()


def _run(job: tuple[str, Recipe, Path]) -> str:
    name, recipe, folder = job
    if not (folder / RESULT_FILE).is_file():
        checkpoint = train(recipe, folder, quiet=True)
        model, tokenizer = load_model(checkpoint), Tokenizer.from_file(str(checkpoint / TOKENIZER_FILE))
        with fast_products():
            result = measure(model, tokenizer)
        partial = folder / f".{RESULT_FILE}"
        partial.write_text(json.dumps(to_json(result), indent=1) + "\n", encoding="utf-8")
        partial.replace(folder / RESULT_FILE)
    return name


def measure(model: PVC, tokenizer: Tokenizer, *, num_clips: int = NUM_CLIPS) -> Result:
    """Videos by number of frames, still images by number of repeats; always clean."""
    rows = {
        f"video, {length} frames": video_row(model, tokenizer, num_clips=num_clips, num_frames=length, camera=CLEAN)
        for length in LENGTHS
    }
    rows["still, 1 x"] = still_row(model, tokenizer, num_clips=num_clips, camera=CLEAN)
    for repeats in REPEATS[1:]:
        view = View(num_repeats=repeats)
        rows[f"still, {repeats} x"] = card_cells(model, tokenizer, num_clips=num_clips, camera=CLEAN, view=view)
    return rows


def _read(folder: Path) -> Result:
    cells = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
    return {row: {topic: Cell(**cell) for topic, cell in topics.items()} for row, topics in cells.items()}


def families(results: dict[str, Result]) -> dict[str, list[Result]]:
    """Results of the same recipe under several seeds, together."""
    found: dict[str, list[Result]] = {}
    for name, result in results.items():
        found.setdefault(name.split(", seed")[0], []).append(result)
    return found


def spread(values: list[float]) -> tuple[float, float | None]:
    """Mean and standard deviation; None of one value."""
    return mean(values), stdev(values) if len(values) > 1 else None
