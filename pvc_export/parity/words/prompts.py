"""The twenty prompts of every check, as far as they fit in the context.

They are about videos, one image, several images, and nothing visual. Frames are rendered from seeds or cut from the
real frames in this package, so they are the same on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from engines.images import ImageEncoder
from engines.manifest import Manifest
from engines.memory import Array
from pvc_ref import PVCConfig
from pvc_ref.preprocess import resize_frame, tile_image

from ...graphs.models import LoadedModel
from ..clip import Frame, real_frames, render_clip

Kind = Literal["video", "image", "images", "text", "tiles"]
KINDS: tuple[Kind, ...] = ("video", "image", "images", "text")
"""The kinds of the twenty prompts. tiles.py asks about the largest image."""
MAX_TILES = 2
QUESTIONS = (
    "What moves?", "Describe what you see.", "Which colour is the largest shape?", "How many are there?",
    "Frame1: what changed since then?", "Wo ist die Katze? \N{CAT FACE}", "",
)  # fmt: skip
PLACED = ("Is <image> brighter than <image>?", "First <image>, then\n<image>. What is the difference?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A question, the video frames before it, and the images it is about: each (H, W, 3) uint8 BGR."""

    kind: Kind
    question: str
    frames: tuple[Frame, ...] = ()
    images: tuple[Frame, ...] = ()


def prompts(per_kind: int = 5) -> list[Prompt]:
    """`per_kind` prompts of each kind. Videos have 1, 2, 3, ... frames."""
    real = real_frames()
    found: list[Prompt] = []
    for index in range(per_kind):
        question = QUESTIONS[index % len(QUESTIONS)]
        rendered = tuple(render_clip(index + 1, seed=100 + index))
        clip = rendered if index % 2 == 0 else tuple(real[: index + 1])
        picture = _crop(real[index % len(real)], index)
        pair = (picture, rendered[-1], real[-1 - index % 3])[: 2 + index % 2]
        placed = PLACED[index // 2 % 2] if len(pair) == 2 and index else question
        found += [
            Prompt(kind="video", question=question, frames=clip),
            Prompt(kind="image", question=question, images=(picture,)),
            Prompt(kind="images", question=placed, images=pair),
            Prompt(kind="text", question=question),
        ]
    return found


def _crop(image: Frame, index: int) -> Frame:
    """Crop to another shape for each index, so that images have one tile or several."""
    height, width = image.shape[:2]
    return np.ascontiguousarray(image[: height - 40 * index, : max(width - 30 * (index % 4), 32)])


def prompts_that_fit(manifest: Manifest, loaded: LoadedModel, *, per_kind: int, num_new_tokens: int) -> list[Prompt]:
    """The prompts whose conversation and answer fit in the bundle's context."""
    encoder = ImageEncoder({}, manifest)
    chosen = []
    for prompt in prompts(per_kind):
        per_tile = manifest.images.num_repeats * manifest.shape.num_frame_tokens
        tiles = [encoder.num_rows(image, max_tiles=MAX_TILES) // per_tile for image in prompt.images]
        rows = len(prompt_ids(loaded, prompt, tiles)) + num_new_tokens
        if rows <= manifest.limits.context:
            chosen.append(prompt)
    return chosen


def prompt_ids(loaded: LoadedModel, prompt: Prompt, num_tiles: Sequence[int]) -> torch.Tensor:
    """The reference's token ids of the whole conversation, (L,)."""
    if prompt.images:
        return loaded.image_prompt_ids(num_tiles=num_tiles, question=prompt.question)
    return loaded.prompt_ids(num_frames=len(prompt.frames), question=prompt.question)


def reference_tiles(image_bgr: Frame, config: PVCConfig, max_tiles: int) -> Array:
    """Cut an image (H, W, 3) uint8 BGR as the reference does: (tiles, S, S, 3) uint8 RGB, with a thumbnail if the model
    uses one."""
    rgb = np.ascontiguousarray(image_bgr[..., ::-1])
    size, thumbnail = config.vision.image_size, config.use_thumbnail
    return tile_image(rgb, tile_size=size, max_tiles=max_tiles, use_thumbnail=thumbnail)


@torch.no_grad()
def reference_embeds(loaded: LoadedModel, prompt: Prompt, *, window: int, max_tiles: int = MAX_TILES) -> torch.Tensor:
    """The reference's LLM input (1, L, E): the whole clip in one pass, with its own resize, tiles and prompt."""
    model, size = loaded.model, loaded.config.vision.image_size
    if prompt.images:
        images = [torch.from_numpy(reference_tiles(image, loaded.config, max_tiles)) for image in prompt.images]
        visual = torch.cat(model.encode_images(images, window=window))
        return loaded.prompt_embeds(prompt_ids(loaded, prompt, [len(tiles) for tiles in images]), visual[None])
    if not prompt.frames:
        return model.llm.embed_tokens(prompt_ids(loaded, prompt, []))[None]  # type: ignore[no-any-return]
    pixels = np.stack([resize_frame(np.ascontiguousarray(frame[..., ::-1]), size=size) for frame in prompt.frames])
    total = len(pixels) if loaded.config.time_mode == "fixed" else None
    embeds = model.encode_clip(torch.from_numpy(pixels)[None], window=window, total_frames=total)[0]
    return loaded.prompt_embeds(prompt_ids(loaded, prompt, []), embeds)
