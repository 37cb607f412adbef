"""A session runs one graph. ONNX Runtime on the CPU here; every session obeys the GraphSpec it was opened with.

Unusual: inputs are checked against the spec before they reach the runtime, since a runtime's own message names a
symbol of the file and not the tensor that was fed. float16 graphs run, but ONNX Runtime's CPU computes them in float32:
`computes_in` says so, and no report may claim more.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .errors import BackendUnavailable, BundleError, NonFiniteError
from .spec import GraphSpec

Array = np.ndarray[Any, Any]


class Session(Protocol):
    """One graph, ready to run."""

    spec: GraphSpec
    computes_in: str

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """All inputs by name -> all outputs by name. Raises SpecError for a tensor that does not fit the spec."""
        ...


def require_finite(outputs: dict[str, Array], graph: str) -> dict[str, Array]:
    """The outputs, if none of them holds NaN or infinity. Raises NonFiniteError: one such row would spoil a cache."""
    for name, array in outputs.items():
        if not np.isfinite(array).all():
            raise NonFiniteError(
                f"graph '{graph}' returned NaN or infinity in '{name}'. Nothing of this call was kept. Likely an "
                "overflow of float16; compare with a float32 bundle: pvc-export onnx --fp32"
            )
    return outputs


class OrtSession:
    """ONNX Runtime, CPU provider."""

    computes_in = "float32"

    def __init__(self, path: Path, spec: GraphSpec, *, threads: int | None = None) -> None:
        """Open an ONNX file. `threads` that compute at once; None is one a core.

        Raises BackendUnavailable without onnxruntime, BundleError if the file is not a graph with the spec's names.
        """
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise BackendUnavailable(
                "running a bundle on the CPU needs the package onnxruntime. Install it: pip install -e '.[ort]'"
            ) from error
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors only; they are raised as well
        options.intra_op_num_threads = threads or 0
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # an idle camera must not burn a core
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no base class but Exception
            raise BundleError(
                f"{path} cannot be opened as an ONNX graph: {error}. The file is damaged, or its .data file is "
                "missing. Export the bundle again: pvc-export onnx"
            ) from error
        self.spec = spec
        found = (
            [value.name for value in self._session.get_inputs()],
            [value.name for value in self._session.get_outputs()],
        )
        expected = [tensor.name for tensor in spec.inputs], [tensor.name for tensor in spec.outputs]
        if found != expected:
            raise BundleError(f"{path} has the tensors {found}, but the manifest's GraphSpec says {expected}")

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        for tensor in self.spec.inputs:
            tensor.check(inputs[tensor.name], self.spec.name)
        names = [tensor.name for tensor in self.spec.outputs]
        return dict(zip(names, self._session.run(names, dict(inputs)), strict=True))
