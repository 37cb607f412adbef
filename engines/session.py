"""A session runs one graph. This one is ONNX Runtime on the CPU; engines/gpu.py has those of a GPU.

Inputs are checked against the spec before they reach the runtime, since a runtime's own message names a symbol of the
file and not the tensor that was fed. float16 graphs run, but ONNX Runtime's CPU computes them in float32: `computes_in`
says so, and no report may claim more. It has no bfloat16 arithmetic at all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, cast

import numpy as np

from .errors import EXPORT_AGAIN, BackendUnavailable, BundleError, NonFiniteError, SpecError
from .memory import Array, HostMemory, Memory, Tensor, host_dtype
from .spec import GraphSpec, StateSpec
from .threads import example_inputs, open_fitting

BFLOAT16 = 16  # TensorProto.BFLOAT16, which ONNX Runtime does not translate to numpy


PRODUCTS_OF_CODES = "session.qdq_matmulnbits_accuracy_level"
"""ONNX Runtime's name for what a product with weights of four bits computes in: "1" is float32; "4", its default,
rounds what it is fed to eight bits as well, block by block."""
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
"""ONNX Runtime's name for where the weights lie of a graph that is no file."""


class Session(Protocol):
    """One graph, ready to run. `memory` is where its caches must live; `computes_in` is for reports."""

    spec: GraphSpec
    computes_in: str

    @property
    def memory(self) -> Memory: ...

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All inputs by name -> all outputs by name. Raises SpecError for a tensor that does not fit the spec.

        Inputs may lie on the host or in `memory`; outputs lie in `memory`, on a GPU only until the next run. An output
        that the spec calls aliased is the input that it aliases, updated.
        """


class Wrapped:
    """A session whose every run goes through a function: it counts, times, records or breaks something."""

    def __init__(self, session: Session, around: Around) -> None:
        self._session, self._around = session, around
        self.spec, self.memory, self.computes_in = session.spec, session.memory, session.computes_in

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self._around(self._session, inputs)


Around = Callable[[Session, Mapping[str, Tensor]], dict[str, Tensor]]
"""Runs a session on inputs, and looks at both."""


def written_rows(
    session: Session, state: StateSpec, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]
) -> Array:
    """The rows (1, L, K, D) that a run wrote into a cache that it updates in place: a copy on the host."""
    memory = session.memory
    start, count = int(memory.to_host(inputs["write_index"])[0]), inputs["inputs_embeds"].shape[1]
    return state.as_rows(memory.fetch(outputs[state.output], state, start, count))


def require_finite(outputs: dict[str, Tensor], graph: str) -> dict[str, Tensor]:
    """The outputs, if no host array holds NaN or infinity. Raises NonFiniteError: one such row would spoil a cache.

    What lies on a GPU is not fetched for it: a NaN there reaches the embeddings or the hidden row, which are. An
    infinite key can pass once, where its score is -inf; what meets it otherwise then fails, until it is gone.
    """
    for name, array in outputs.items():
        if isinstance(array, np.ndarray) and not np.isfinite(array).all():
            raise NonFiniteError(
                f"graph '{graph}' returned NaN or infinity in '{name}', so nothing of this call was kept",
                cause="an overflow of float16",
                fix="compare with a float32 bundle: pvc-export onnx --fp32",
            )
    return outputs


class OrtSession:
    """ONNX Runtime, CPU provider, numpy in and out."""

    computes_in = "float32"

    def __init__(
        self,
        path: Path,
        spec: GraphSpec,
        *,
        memory: HostMemory | None = None,
        threads: int | None = None,
        graph: bytes | None = None,
    ) -> None:
        """Open an ONNX file. `threads` compute at once; None leaves that to its size and, in between, to a trial run.

        graph  another graph over the weights of that file, in place of its own
        Raises BackendUnavailable without onnxruntime, BundleError if the file is not a graph with the spec's names.
        """
        self.spec = spec
        self.memory: Memory = memory or HostMemory()
        self._ort = import_onnxruntime()
        self._names = [tensor.name for tensor in spec.outputs]
        self._has_bfloat16 = any(tensor.dtype == "bfloat16" for tensor in (*spec.inputs, *spec.outputs))

        def opened(count: int) -> Any:
            return open_onnx(self._ort, path, spec, ["CPUExecutionProvider"], threads=count, graph=graph)

        if threads is None:
            inputs = functools.cache(lambda: example_inputs(spec))  # once, and only if there is a trial
            self.threads, self._session = open_fitting(path, opened, lambda session: self._try(session, inputs()))
        else:
            self.threads, self._session = threads, opened(threads)

    def _try(self, session: Any, inputs: Mapping[str, Tensor]) -> None:
        self._session = session
        self.run(inputs)

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        arrays = {tensor.name: cast(Array, inputs[tensor.name]) for tensor in self.spec.inputs}
        for tensor in self.spec.inputs:
            tensor.check(arrays[tensor.name], self.spec.name)
        if self.spec.aliases:
            return self._run_in_place(arrays)
        values = self._run_bfloat16(arrays) if self._has_bfloat16 else self._session.run(self._names, arrays)
        return dict(zip(self._names, values, strict=True))

    def _run_in_place(self, arrays: dict[str, Array]) -> dict[str, Tensor]:
        """Bind each cache as input and as output, so that the graph writes new rows into it and copies nothing."""
        aliases, binding = self.spec.aliases, self._session.io_binding()
        values = {}
        for name, array in arrays.items():
            if name in aliases.values() and not array.flags.c_contiguous:
                raise SpecError(
                    f"graph '{self.spec.name}': cache '{name}' is not contiguous, so the rows that the graph writes "
                    "would go into a copy of it",
                    expected="the whole cache, as it was made",
                )
            values[name] = self._ort.OrtValue.ortvalue_from_numpy(array)  # shares the array's memory
            binding.bind_ortvalue_input(name, values[name])
        for name in self._names:
            if name in aliases:
                binding.bind_ortvalue_output(name, values[aliases[name]])
            else:
                binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        found = zip(self._names, binding.get_outputs(), strict=True)
        return {name: arrays[aliases[name]] if name in aliases else value.numpy() for name, value in found}

    def _run_bfloat16(self, arrays: dict[str, Array]) -> list[Array]:
        """ONNX Runtime does not know numpy's bfloat16, so values go in and come out as bits."""
        bfloat16, value = host_dtype("bfloat16"), self._ort.OrtValue
        feeds = {
            name: value.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), BFLOAT16)
            if array.dtype == bfloat16
            else value.ortvalue_from_numpy(array)
            for name, array in arrays.items()
        }
        outputs = self._session.run_with_ort_values(self._names, feeds)
        return [
            copy_from_address(output.data_ptr(), tuple(output.shape()), bfloat16)
            if tensor.dtype == "bfloat16"
            else output.numpy()
            for tensor, output in zip(self.spec.outputs, outputs, strict=True)
        ]


def copy_from_address(address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """A numpy copy of a dense array in the host's memory."""
    import ctypes

    num_bytes = int(np.prod(shape)) * dtype.itemsize
    array: Array = np.frombuffer(ctypes.string_at(address, num_bytes), dtype=dtype).reshape(shape)
    return array


def import_onnxruntime() -> ModuleType:
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendUnavailable(
            f"running a bundle needs the package onnxruntime, which cannot be imported here ({error})",
            fix="pip install -e '.[ort]'",
        ) from error
    return cast(ModuleType, onnxruntime)


def open_as_written(ort: ModuleType, graph: bytes, folder: Path) -> Any:
    """An InferenceSession on the CPU of a graph with weights in files of `folder`. Nothing is fused, folded or cast
    ahead, so they stay there until they are used. Raises what ONNX Runtime does.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False  # they keep what was cast
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry(WEIGHTS_FOLDER, str(folder))
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def open_onnx(
    ort: ModuleType,
    path: Path,
    spec: GraphSpec,
    providers: list[Any],
    *,
    threads: int | None = None,
    graph: bytes | None = None,
) -> Any:
    """An InferenceSession whose tensors are the spec's, in order. Raises BundleError for any other file."""
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only; they are raised as well
    options.intra_op_num_threads = threads or 0
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")  # gpu.py reads it
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # an idle camera must not burn a core
    how = spec.quantization
    options.add_session_config_entry(PRODUCTS_OF_CODES, "4" if how is not None and how.inputs == "blocks" else "1")
    if graph is not None:
        options.add_session_config_entry(WEIGHTS_FOLDER, str(path.parent))
    try:
        session = ort.InferenceSession(graph or str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's errors share no base class but Exception
        raise BundleError(
            f"{path} cannot be opened: {error}",
            expected="an ONNX graph",
            cause="the file or its .data file is damaged or missing",
            fix=EXPORT_AGAIN,
        ) from error
    found = [value.name for value in session.get_inputs()], [value.name for value in session.get_outputs()]
    expected = [tensor.name for tensor in spec.inputs], [tensor.name for tensor in spec.outputs]
    if found != expected:
        raise BundleError(
            f"{path} has the tensors {found}",
            expected=f"those of the manifest's GraphSpec: {expected}",
            cause="the file comes from another bundle or version",
            fix=EXPORT_AGAIN,
        )
    return session
