"""The embedding table, read without a runtime for ONNX files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engines.bundle import open_bundle
from engines.errors import BundleError, SpecError
from engines.manifest import Manifest
from engines.table import TableSession


@pytest.mark.parametrize("name", ["bundle_fp32", "bundle_fp16", "bundle_int8"])
def test_it_returns_what_onnx_runtime_does(name: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(name)
    manifest = Manifest.load(folder)
    spec, vocab_size = manifest.graphs["embed"], manifest.shape.vocab_size
    table = TableSession(folder / "graphs/embed.onnx", spec, vocab_size=vocab_size)
    batch = spec.input("input_ids").resolve({"batch": 2, "rows": 5})
    ids = np.random.default_rng(0).integers(0, vocab_size, batch)
    ids.flat[:2] = 0, vocab_size - 1
    (got,), (want,) = (s.run({"input_ids": ids}).values() for s in (table, open_bundle(folder).sessions["embed"]))
    assert got.dtype == want.dtype and np.array_equal(np.asarray(got), np.asarray(want))


@pytest.mark.parametrize("token", [-1, 10**6])
def test_a_token_that_is_not_there_is_refused(bundle_fp32: Path, token: int) -> None:
    manifest = Manifest.load(bundle_fp32)
    table = TableSession(
        bundle_fp32 / "graphs/embed.onnx", manifest.graphs["embed"], vocab_size=manifest.shape.vocab_size
    )
    shape = manifest.graphs["embed"].input("input_ids").resolve({"batch": 1, "rows": 1})
    with pytest.raises(SpecError, match="token ids from"):
        table.run({"input_ids": np.full(shape, token)})
    with pytest.raises(SpecError, match="input_ids"):
        table.run({"input_ids": np.zeros(shape, np.int32)})


def test_a_table_of_another_size_or_none_is_refused(bundle_fp32: Path, copy_bundle: Callable[[Path], Path]) -> None:
    folder = copy_bundle(bundle_fp32)
    manifest, path = Manifest.load(folder), folder / "graphs/embed.onnx"
    for change in ((lambda data: data.write_bytes(data.read_bytes()[:-4])), Path.unlink):
        change(path.with_name("embed.onnx.data"))  # type: ignore[operator]
        with pytest.raises(BundleError, match=r"embed.onnx.data has \d+ bytes"):
            TableSession(path, manifest.graphs["embed"], vocab_size=manifest.shape.vocab_size)
