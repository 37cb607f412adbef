"""Folder of the model that ships with the package."""

from __future__ import annotations

from pathlib import Path

SHAPES_FOLDER = Path(__file__).parent / "assets" / "shapes"
"""A checkpoint folder in the Hugging Face layout, read by the ordinary loader."""
