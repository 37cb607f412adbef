"""Checkpoint folders of `tiny`: in one file, in three shards, and copies to damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pvc_ref import PVC, save

from .cases import TINY, CopyOf


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "whole"
    save(PVC.random(TINY), folder)
    return folder


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "sharded"
    save(PVC.random(TINY), folder, max_shard_bytes=10_000_000)
    return folder


@pytest.fixture
def copy_of(tmp_path: Path) -> CopyOf:
    return lambda folder: Path(shutil.copytree(folder, tmp_path / "copy"))
