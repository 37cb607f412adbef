"""Sessions: each runs one graph. This one uses ONNX Runtime on the CPU; engines/gpu.py has those for a GPU.

Inputs are checked against the spec first, since a runtime's own message names a symbol of the file, not the tensor that
was fed. float16 graphs run, but ONNX Runtime's CPU provider computes them in float32: `computes_in` says so, and no
report may claim more. It has no bfloat16 arithmetic.
"""

from __future__ import annotations

import ctypes
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
"""ONNX Runtime's option for the arithmetic of matmuls with int4 weights: "1" is float32; "4", its default, also rounds
the inputs to int8, block by block."""
FEW_VALUES = 4096
"""Values of an array that is copied to be tested together with others."""
MOST_VALUES = 4096
"""Views of caches that a session remembers. A cache has a new one each time it grows."""
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
"""ONNX Runtime's option for the folder of the weights, for a graph passed as bytes."""


class Session(Protocol):
    """One graph, ready to run. `memory` is where its caches must be; `computes_in` is for reports."""

    spec: GraphSpec
    computes_in: str

    @property
    def memory(self) -> Memory: ...

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All inputs by name -> all outputs by name. Raises SpecError for a tensor that does not fit the spec.

        Inputs may be on the host or in `memory`; outputs are in `memory`, on a GPU only until the next run. An aliased
        output is the input it aliases, updated.
        """


class Wrapped:
    """A session that calls a function for each run, to count, time, record or break something."""

    def __init__(self, session: Session, around: Around) -> None:
        self._session, self._around = session, around
        self.spec, self.memory, self.computes_in = session.spec, session.memory, session.computes_in

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self._around(self._session, inputs)


Around = Callable[[Session, Mapping[str, Tensor]], dict[str, Tensor]]
"""Runs a session on inputs and may inspect inputs and outputs."""


def written_rows(
    session: Session, state: StateSpec, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]
) -> Array:
    """The rows (1, L, K, D) that a run wrote into a cache it updates in place: a copy on the host."""
    memory = session.memory
    start, count = int(memory.to_host(inputs["write_index"])[0]), inputs["inputs_embeds"].shape[1]
    return state.as_rows(memory.fetch(outputs[state.output], state, start, count))


def require_finite(outputs: dict[str, Tensor], graph: str) -> dict[str, Tensor]:
    """Return the outputs if no host array contains NaN or infinity. Raises NonFiniteError: one such row spoils a cache.

    GPU outputs are not fetched for this check: a NaN there reaches the embeddings or the hidden row, which are fetched
    anyway. An infinite key can pass once, if its score is -inf; other queries that meet it fail until it is gone.
    """
    on_host = {name: array for name, array in outputs.items() if isinstance(array, np.ndarray)}
    # A token has two rows per layer, and NumPy takes longer to begin with such an array than with its values: all at
    # once. A frame's tensors are tested where they are.
    rows = [array for array in on_host.values() if array.size <= FEW_VALUES]
    whole = [array for array in on_host.values() if array.size > FEW_VALUES]
    if rows:
        whole.append(np.concatenate(rows, axis=None))
    if not all(np.isfinite(array).all() for array in whole):
        name = next(name for name, array in on_host.items() if not np.isfinite(array).all())
        raise NonFiniteError(
            f"graph '{graph}' returned NaN or infinity in '{name}', so nothing from this call was kept",
            cause="a float16 overflow",
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
        """Open an ONNX file. `threads`: None chooses by the graph's size, and by a trial run for sizes in between.

        graph  another graph that uses the weights of that file, instead of its own
        Raises BackendUnavailable without onnxruntime, BundleError if the file is not a graph with the spec's names.
        """
        self.spec = spec
        self.memory: Memory = memory or HostMemory()
        self._ort = import_onnxruntime()
        self._names = [tensor.name for tensor in spec.outputs]
        self._values = dict[tuple[str, int, tuple[int, ...]], Any]()
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
        """Bind each cache as input and output, so that the graph writes new rows into it and copies nothing.

        Other outputs are bound too: fetching one from ONNX Runtime would wrap every cache first.
        """
        binding, of_array = self._session.io_binding(), self._ort.OrtValue.ortvalue_from_numpy  # shares its memory
        caches, sizes, found = self.spec.aliases, self.spec.sizes(arrays), dict[str, Tensor]()
        for output, name in caches.items():
            value, found[output] = self._value_of_cache(name, arrays[name]), arrays[name]
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(output, value)
        for name in arrays.keys() - caches.values():
            binding.bind_ortvalue_input(name, of_array(arrays[name]))
        for tensor in self.spec.outputs:
            if tensor.name not in caches:
                found[tensor.name] = array = np.empty(tensor.resolve(sizes), host_dtype(tensor.dtype))
                binding.bind_ortvalue_output(tensor.name, of_array(array))
        self._session.run_with_iobinding(binding)
        return found

    def _value_of_cache(self, name: str, array: Array) -> Any:
        """An OrtValue over a cache, made once per address: a token binds two per layer, and making one takes longer.

        It does not keep the memory alive, and is only used while the caller's array is at that address.
        """
        if not array.flags.c_contiguous:
            raise SpecError(
                f"graph '{self.spec.name}': cache '{name}' is not contiguous, so the graph would write its rows into a "
                "copy",
                expected="the whole cache, as it was allocated",
            )
        key = name, array.__array_interface__["data"][0], array.shape
        value = self._values.get(key)
        if value is None:
            if len(self._values) >= MOST_VALUES:
                self._values.clear()  # another thread may be using one: it has its own reference
            view = np.frombuffer(memory_at(key[1], array.nbytes), array.dtype).reshape(array.shape)
            value = self._values[key] = self._ort.OrtValue.ortvalue_from_numpy(view)
        return value

    def _run_bfloat16(self, arrays: dict[str, Array]) -> list[Array]:
        """ONNX Runtime does not know numpy's bfloat16, so values are passed in and out as bits."""
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


def memory_at(address: int, num_bytes: int) -> Any:
    """Host memory as a buffer, which does not keep it alive."""
    return (ctypes.c_byte * num_bytes).from_address(address)


def copy_from_address(address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """A numpy copy of a dense array in host memory."""
    num_bytes = int(np.prod(shape)) * dtype.itemsize
    array: Array = np.array(np.frombuffer(memory_at(address, num_bytes), dtype=dtype).reshape(shape))
    return array


def import_onnxruntime() -> ModuleType:
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendUnavailable(
            f"running a bundle needs the package onnxruntime, which cannot be imported ({error})",
            fix="pip install -e '.[ort]'",
        ) from error
    return cast(ModuleType, onnxruntime)


def open_as_written(ort: ModuleType, graph: bytes, folder: Path) -> Any:
    """An InferenceSession on the CPU for a graph with weights in files of `folder`. Nothing is fused, folded or cast
    ahead of time, so the weights stay in the files until they are used. Raises what ONNX Runtime raises.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False  # they would keep cast weights
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
    """An InferenceSession with exactly the spec's tensors, in order. Raises BundleError for any other file."""
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only; they are raised anyway
    options.intra_op_num_threads = threads or 0
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")  # gpu.py reads it
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # an idle camera must not burn a core
    how = spec.quantization
    options.add_session_config_entry(PRODUCTS_OF_CODES, "4" if how is not None and how.inputs == "blocks" else "1")
    if graph is not None:
        options.add_session_config_entry(WEIGHTS_FOLDER, str(path.parent))
    try:
        session = ort.InferenceSession(graph or str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's errors share only the base class Exception
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
            f"{path} has other tensors than its manifest: {found}",
            expected=f"those of the manifest's GraphSpec: {expected}",
            cause="the file comes from another bundle or version",
            fix=EXPORT_AGAIN,
        )
    return session
