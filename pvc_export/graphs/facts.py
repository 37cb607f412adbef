"""Fields of a manifest that depend on the model alone. A check requires every bundle to have the same ones."""

from __future__ import annotations

from typing import Any

from engines.manifest import ImageSpec

from .models import LoadedModel, prompt_spec
from .modules import model_shape


def model_facts(loaded: LoadedModel) -> dict[str, Any]:
    """Return the fields of engines.manifest.Manifest that follow from the model alone, by name."""
    config = loaded.config
    return {
        "model": loaded.source,
        "shape": model_shape(config),
        "time_mode": config.time_mode,
        "trained_frames": config.trained_frames,
        "prompt": prompt_spec(config),
        "images": ImageSpec(
            num_repeats=config.num_image_repeats,
            layout=config.image_layout,
            max_tiles=config.max_image_tiles,
            use_thumbnail=config.use_thumbnail,
        ),
    }
