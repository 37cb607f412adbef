"""Check of an image with as many tiles as the model takes: every tile's pixels in order, and the answer about it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from engines import PVCStream
from engines.bundle import Bundle
from engines.fake import FakeSession
from pvc_ref import PVCConfig

from ...graphs.models import LoadedModel
from ..clip import Frame, real_frames
from ..evidence import Evidence
from ..levels import Rule
from ..recorded_sessions import Recorder
from .conversations import NUM_NEW_TOKENS, converse_about
from .prompts import Prompt, prompt_ids, reference_tiles

QUESTION = "What is in the corners?"
SEVERAL = 6
"""Tiles of a second image, in two rows."""
NEXT_STEP = "Check how an image is cut (engines/preprocess.py, engines/images.py)"


def widest_image(config: PVCConfig, num_tiles: int | None = None) -> Frame:
    """A real picture, (H, W, 3) uint8 BGR, that is cut into num_tiles; default: the model's maximum."""
    count, size = num_tiles or config.max_image_tiles, config.vision.image_size
    rows = max(rows for rows in range(1, int(count**0.5) + 1) if count % rows == 0)
    # A few pixels more than whole tiles, so that each tile is also resized.
    picture = Image.fromarray(real_frames()[0]).resize((count // rows * (size + 4), rows * (size + 4)))
    return np.ascontiguousarray(picture)


def compare_tiles(bundle: Bundle, loaded: LoadedModel) -> Rule:
    """Compare every pixel of each tile that the runtime would encode, and of the final thumbnail, with the reference's.

    One image has as many tiles as the model takes, a number that the bundle must know; another has SEVERAL, for models
    that take only one. No graph is run: fake sessions receive the tiles.
    """
    recorder = Recorder({name: FakeSession(session.spec) for name, session in bundle.sessions.items()})
    total = 1 if bundle.manifest.time_mode == "fixed" else None
    stream, num_tiles = PVCStream(replace(bundle, sessions=recorder.sessions), total_frames=total), list[int]()
    config = loaded.config
    for asked in (None, SEVERAL):
        image, most = widest_image(config, asked), asked or config.max_image_tiles
        want = reference_tiles(image, config, most)
        recorder.frames.clear()
        num_rows = len(stream.encode_image(image, max_tiles=asked))
        per_tile = config.num_image_repeats * config.compressor.num_tokens
        if fault := _fault(recorder.frames, list(want), num_rows, per_tile, thumbnail=config.use_thumbnail):
            return Rule(level="K", name="tiles", passed=False, detail=f"{fault}. {NEXT_STEP}")
        num_tiles.append(len(want))
    told = " and ".join(map(str, num_tiles))
    return Rule(level="K", name="tiles", passed=True, detail=f"images of {told} tiles, every pixel")


def _fault(got: list[Frame], want: list[Frame], num_rows: int, per_tile: int, *, thumbnail: bool) -> str | None:
    """What is wrong with the tiles, in words; with `thumbnail` the last of several is one."""
    thumbnail = thumbnail and len(want) > 1
    if len(got) != len(want):
        among = ", including a thumbnail" if thumbnail else ""
        return f"an image is cut into {len(got)} tiles, expected {len(want)}{among}"
    for index, (own, right) in enumerate(zip(got, want, strict=True)):
        if np.array_equal(own, right):
            continue
        name = "the thumbnail" if thumbnail and index == len(want) - 1 else f"tile {index + 1}"
        same = next((i for i, other in enumerate(want) if np.array_equal(own, other)), None)
        if same is not None:
            return f"tile {same + 1} of an image is in the place of {name}, of {len(want)} in all"
        return (
            f"{name} of {len(want)} has other pixels than the reference's: another cut or resize, or BGR instead of RGB"
        )
    if num_rows != len(want) * per_tile:
        return f"an image of {len(want)} tiles takes {num_rows} rows of the LLM, expected {per_tile} per tile"
    return None


def ask_about_tiles(bundle: Bundle, loaded: LoadedModel) -> Evidence:
    """Ask about that image; the bundle decides the number of tiles."""
    prompt = Prompt(kind="tiles", question=QUESTION, images=(widest_image(loaded.config),))
    config = loaded.config
    num_tiles = config.max_image_tiles + (config.use_thumbnail and config.max_image_tiles > 1)
    rows, context = len(prompt_ids(loaded, prompt, [num_tiles])) + NUM_NEW_TOKENS, bundle.manifest.limits.context
    if rows > context:
        reason = f"an image of {num_tiles} tiles and a question need {rows} rows, but the context has {context}"
        return Evidence(not_executed={"the largest image": reason})
    return Evidence(conversations=(converse_about(bundle, loaded, prompt, max_tiles=None),))
