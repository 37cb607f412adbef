"""A small study of PVC against its baselines: same data, steps, seeds and number of frame tokens.

It answers two separate questions. The gain from temporal attention: `pvc` against `pvc, no attention over time`. The
gain from PVC's compressor: the latter against the other compressors, none of which has temporal attention.
Four tokens per frame, so 16 patches become one token, as in the paper. Every run starts from the ViT and the LLM of the
bundled model, as the paper's runs start from InternVL2's: a quarter of an hour from random weights is too short.
A result is a small committed file, and is made again when its recipe changes.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import time
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from statistics import mean, stdev

import torch
from tokenizers import Tokenizer

from ..checkpoint.folder import load
from ..checkpoint.tokenizer import load_tokenizer
from ..model import PVC
from .held_out import Row, card_cells, from_json, still_row, to_json, video_row
from .loop import LOG_FILE, Recipe, train
from .scoring import View
from .threads import fast_products

NUM_STEPS, NUM_TOKENS, NUM_CLIPS = 1200, 4, 400
SEEDS = (0, 1, 2)
NUM_AT_ONCE = 2  # runs of one thread each
RESULTS = Path("docs/study")
REPEATS, LENGTHS = (1, 2, 4), (4, 8, 12, 16)
Tables = dict[str, Row]


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """Accuracy of one run, its training time in seconds, and the machine."""

    tables: Tables
    seconds: float
    machine: str


def variants() -> dict[str, Recipe]:
    """Every run of the study, by name. PVC and pixel shuffle, compared by mean and spread, have several seeds."""
    plain = Recipe(num_steps=NUM_STEPS, num_workers=1, num_tokens=NUM_TOKENS, from_bundled=True)
    found: dict[str, Recipe] = {}
    for seed in SEEDS:
        found[f"pvc, seed {seed}"] = replace(plain, seed=seed)
        found[f"pixel shuffle, seed {seed}"] = replace(plain, seed=seed, compressor="pixel_shuffle", temporal=False)
    found["pvc, no attention over time"] = replace(plain, temporal=False)
    found["pooling"] = replace(plain, compressor="pool", temporal=False)
    found["strided convolution"] = replace(plain, compressor="conv", temporal=False)
    found["Q-Former"] = replace(plain, compressor="q_former", temporal=False)
    return found


def study(out: Path, results: Path = RESULTS) -> dict[str, Result]:
    """Train and evaluate the missing runs, and return every result."""
    results.mkdir(parents=True, exist_ok=True)
    files = {name: results / f"{_slug(name)}.json" for name in variants()}
    missing = [
        (name, recipe, out / _slug(name), files[name])
        for name, recipe in variants().items()
        if not _is_of(files[name], recipe)
    ]
    started = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(NUM_AT_ONCE, maxtasksperchild=1) as pool:
        for name in pool.imap_unordered(_run, missing):
            print(f"{(time.monotonic() - started) / 60:6.1f} min  {name} is done", flush=True)
    return {name: _read(path) for name, path in files.items()}


def _slug(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "_").lower()


def _is_of(path: Path, recipe: Recipe) -> bool:
    return path.is_file() and json.loads(path.read_text(encoding="utf-8"))["recipe"] == asdict(recipe)


def _run(job: tuple[str, Recipe, Path, Path]) -> str:
    name, recipe, folder, path = job
    checkpoint = train(recipe, folder, quiet=True)
    model, tokenizer = load(checkpoint), load_tokenizer(checkpoint)
    with fast_products():
        tables = measure(model, tokenizer)
    last = (folder / LOG_FILE).read_text(encoding="utf-8").splitlines()[-1]
    facts = {
        "recipe": asdict(recipe),
        "seconds": json.loads(last)["seconds"],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {date.today()}",
        "tables": to_json(tables),
    }
    partial = path.with_name(f".{path.name}")
    partial.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    return name


def measure(model: PVC, tokenizer: Tokenizer, *, num_clips: int = NUM_CLIPS) -> Tables:
    """Evaluate videos by number of frames and still images by number of repeats, on clean frames."""
    rows = {
        f"video, {length} frames": video_row(model, tokenizer, num_clips=num_clips, num_frames=length)
        for length in LENGTHS
    }
    rows["still, 1 x"] = still_row(model, tokenizer, num_clips=num_clips)
    for repeats in REPEATS[1:]:
        view = View(num_repeats=repeats)
        rows[f"still, {repeats} x"] = card_cells(model, tokenizer, num_clips=num_clips, view=view)
    return rows


def _read(path: Path) -> Result:
    facts = json.loads(path.read_text(encoding="utf-8"))
    return Result(tables=from_json(facts["tables"]), seconds=facts["seconds"], machine=facts["machine"])


def families(results: dict[str, Result]) -> dict[str, list[Tables]]:
    """Group the tables of one recipe over its seeds."""
    found: dict[str, list[Tables]] = {}
    for name, result in results.items():
        found.setdefault(name.split(", seed")[0], []).append(result.tables)
    return found


def spread(values: list[float]) -> tuple[float, float | None]:
    """Mean and standard deviation (None for a single value)."""
    return mean(values), stdev(values) if len(values) > 1 else None
