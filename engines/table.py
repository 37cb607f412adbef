"""The session of `embed` if everything else runs on a GPU: a table lookup, without a runtime for ONNX files.

The table stays in its file; the system reads only the pages of the requested tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np

from .errors import EXPORT_AGAIN, BundleError, SpecError
from .memory import Array, HostMemory, Memory, Tensor, host_dtype
from .spec import ITEM_BYTES, GraphSpec


class TableSession:
    """input_ids (B, L) -> inputs_embeds (B, L, E), the rows of a table (V, E) in the graph's dtype."""

    computes_in = "a table lookup"

    def __init__(self, path: Path, spec: GraphSpec, *, vocab_size: int) -> None:
        """path: the graph's file; its weights file next to it must be exactly the table. Raises BundleError if not."""
        self.spec = spec
        self.memory: Memory = HostMemory()
        (output,) = spec.outputs
        width = output.shape[-1]
        assert isinstance(width, int)
        shape, data = (vocab_size, width), path.with_name(f"{path.name}.data")
        num_bytes = prod(shape) * ITEM_BYTES[output.dtype]
        found = data.stat().st_size if data.is_file() else 0
        if found != num_bytes:
            raise BundleError(
                f"{data} has {found} bytes",
                expected=f"{num_bytes}: a table of {vocab_size} tokens, {width} values of {output.dtype} each",
                cause="the file is missing, or another version of pvc-export wrote it",
                fix=EXPORT_AGAIN,
            )
        self._table: Array = np.memmap(data, dtype=host_dtype(output.dtype), mode="r", shape=shape)

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ids = inputs["input_ids"]
        self.spec.input("input_ids").check(ids, self.spec.name)
        assert isinstance(ids, np.ndarray)
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < len(self._table):
            raise SpecError(
                f"graph 'embed': token ids from {ids.min()} to {ids.max()}", expected=f"0 to {len(self._table) - 1}"
            )
        return {self.spec.outputs[0].name: np.asarray(self._table[ids])}
