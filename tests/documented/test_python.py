"""Every block of Python that README and docs show is executed."""

from __future__ import annotations

import pytest

from .blocks import blocks_of, execute, readers_names
from .commands import name_of, pages, python_blocks
from .sandbox import Sandbox

EXECUTED = {"docs/many.md": ["answer"], "docs/runtime.md": ["stream"]}
"""Pages, and a name that each of their blocks makes."""
BESIDE_A_SERVER = {"docs/serve.md": 1}
"""test_commands executes these, and how many there are."""


@pytest.mark.parametrize("page", EXECUTED)
def test_each_block_runs(page: str, box: Sandbox) -> None:
    for source, name in zip(blocks_of(page), EXECUTED[page], strict=True):
        space = execute(source, page, readers_names())
        assert space[name] is not None


def test_what_runtime_md_saves_can_be_opened_again(box: Sandbox) -> None:
    import engines

    (source,) = blocks_of("docs/runtime.md")
    assert 'engines.open_stream("camera.npz")' in source
    if not (box.root / "camera.npz").exists():
        execute(source, "docs/runtime.md", readers_names())
    assert engines.open_stream("camera.npz").num_frames == len(readers_names()["camera"])


def test_there_is_no_other_block() -> None:
    found = {name_of(page): len(python_blocks(page.read_text(encoding="utf-8"))) for page in pages()}
    known = {page: len(names) for page, names in EXECUTED.items()} | BESIDE_A_SERVER
    assert {page: count for page, count in found.items() if count} == known


@pytest.mark.parametrize("source", ["stream.push(frame)", "from engines import NoSuchName", "bundle = open_bundle(1"])
def test_a_block_that_does_not_run_is_found(source: str) -> None:
    with pytest.raises((NameError, ImportError, SyntaxError)):
        execute(source, "a page", {})
