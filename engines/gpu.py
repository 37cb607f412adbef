"""GPU sessions: ONNX Runtime's CUDA provider, and TensorRT or TensorRT-RTX engines. Caches never leave the device.

Neither session decides where tensors are. Both bind addresses allocated by a DeviceMemory: caches and intermediate
tensors directly, host arrays through one upload buffer per input, outputs into one fixed buffer per output. So nothing
is allocated after the first frame and question, every transferred byte is counted, and everything runs on the memory's
one stream.
Written for a GPU; so far run only on the recording fake of engines/fake.py.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from .builder import load_runtime
from .errors import BackendUnavailable, BundleError, SpecError
from .memory import DeviceArray, DeviceMemory, Tensor
from .runtime_cache import RuntimeCache
from .session import BFLOAT16, import_onnxruntime, open_onnx
from .spec import Dim, GraphSpec, TensorSpec
from .target import Target

DTYPE_OF = {
    "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT64": "int64", "UINT8": "uint8", "INT8": "int8",
    "BOOL": "bool",
}  # fmt: skip
"""TensorRT's names of the dtypes in our graphs."""


class Bindings:
    """Device addresses of each tensor of one graph."""

    def __init__(self, spec: GraphSpec, memory: DeviceMemory) -> None:
        self._spec, self._memory = spec, memory
        ranges = (spec.dims, *spec.profiles)  # a profile may take more streams than the runtime feeds
        self._largest = {name: max(one[name].max for one in ranges if name in one) for name in spec.dims}
        self._uploads: dict[str, DeviceArray] = {}
        own = (tensor for tensor in spec.outputs if tensor.name not in spec.aliases)
        self._outputs = {t.name: memory.empty(t.resolve(self._largest), t.dtype) for t in own}

    def inputs(self, values: Mapping[str, Tensor]) -> dict[str, DeviceArray]:
        """Every input on the device; host arrays are uploaded. Raises SpecError for one that does not fit the spec."""
        return {tensor.name: self._input(tensor, values[tensor.name]) for tensor in self._spec.inputs}

    def _input(self, tensor: TensorSpec, value: Tensor) -> DeviceArray:
        tensor.check(value, self._spec.name)
        if isinstance(value, DeviceArray):
            return value
        if tensor.name not in self._uploads:
            self._uploads[tensor.name] = self._memory.empty(tensor.resolve(self._largest), tensor.dtype)
        return self._memory.upload(value, self._uploads[tensor.name])

    def sizes(self, inputs: Mapping[str, DeviceArray]) -> dict[str, int]:
        """The size of every dynamic dimension. Raises SpecError for one that exceeds the buffers."""
        sizes = self._spec.sizes(inputs)
        for name, size in sizes.items():
            if name in self._largest and size > self._largest[name]:
                raise SpecError(
                    f"graph '{self._spec.name}': {name} is {size}", expected=f"at most {self._largest[name]}"
                )
        return sizes

    def outputs(self, inputs: Mapping[str, DeviceArray], sizes: Mapping[str, int]) -> dict[str, DeviceArray]:
        """The output buffers, in the shapes for these sizes; a cache updated in place is its input."""
        aliases = self._spec.aliases
        return {
            tensor.name: inputs[aliases[tensor.name]]
            if tensor.name in aliases
            else self._outputs[tensor.name].front(tensor.resolve(dict(sizes)))
            for tensor in self._spec.outputs
        }


class OrtCudaSession:
    """ONNX Runtime, CUDA provider, with IO binding. Rejects a session that fell back to the CPU."""

    def __init__(
        self, path: Path, spec: GraphSpec, memory: DeviceMemory, *, provider: str = "CUDAExecutionProvider"
    ) -> None:
        """`provider` differs only in tests. Raises BackendUnavailable if it is not available, BundleError as OrtSession
        does."""
        self.spec, self.memory = spec, memory
        self.computes_in = "the graph's own dtypes (ONNX Runtime CUDA)"
        self._ort = import_onnxruntime()
        if provider not in self._ort.get_available_providers():
            raise BackendUnavailable(
                f"this onnxruntime has the providers {self._ort.get_available_providers()}, but not {provider}",
                fix="in a new environment without onnxruntime (same module): pip install -e '.[ort-gpu]'",
            )
        on_cuda = provider == "CUDAExecutionProvider"
        # TF32 would change float32 graphs. On our stream, graphs and copies run in call order; but ONNX Runtime waits
        # for it at the end of each run, which Traffic.syncs does not count.
        options = {"device_id": "0", "use_tf32": "0", "user_compute_stream": str(memory.stream)} if on_cuda else {}
        self._session = open_onnx(self._ort, path, spec, [(provider, options)])
        if self._session.get_providers()[0] != provider:
            raise BackendUnavailable(
                f"ONNX Runtime could not start {provider} and fell back to {self._session.get_providers()}, which is "
                "not accepted",
                cause="libcudnn or libcublas is missing or belongs to another CUDA major version",
                fix="pvc-export doctor",
            )
        if not require_placed(self._session, provider, spec.name):
            self.computes_in += ", placement of its nodes unknown"
        self._device = "cuda" if on_cuda else "cpu"
        self._bindings = Bindings(spec, memory)

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        placed = self._bindings.inputs(inputs)
        outputs = self._bindings.outputs(placed, self._bindings.sizes(placed))
        binding = self._session.io_binding()
        for name, array in placed.items():
            binding.bind_input(name, self._device, 0, _onnx_type(array), array.shape, array.address)
        for name, array in outputs.items():
            binding.bind_output(name, self._device, 0, _onnx_type(array), array.shape, array.address)
        self._session.run_with_iobinding(binding)
        return dict(outputs)


COMPUTING = frozenset(
    ("MatMul", "FusedMatMul", "Gemm", "Conv", "Softmax", "LayerNormalization", "Attention", "MultiHeadAttention", "Erf",
     "Gelu", "BiasGelu", "FastGelu", "Sigmoid", "QuickGelu", "ReduceMean", "Pow", "Sqrt", "Cos", "Sin")
)  # fmt: skip
"""Operators that take a frame's time. Others, such as shape arithmetic, belong on the CPU."""


def require_placed(session: Any, provider: str, graph: str) -> bool:
    """Raise BackendUnavailable if ONNX Runtime placed a computing node elsewhere; False if it cannot be determined.

    An available provider may lack a kernel. Such a node runs on the CPU, and its tensors are copied every frame.
    """
    placed = getattr(session, "get_provider_graph_assignment_info", None)  # not in older versions
    if placed is None:
        return False
    strays = {
        f"{node.op_type} '{node.name}' ({subgraph.ep_name})"
        for subgraph in placed()
        for node in subgraph.get_nodes()
        if subgraph.ep_name != provider and node.op_type in COMPUTING
    }
    if strays:
        raise BackendUnavailable(
            f"graph '{graph}': {provider} has no kernel for {len(strays)} of its operators, which would run elsewhere: "
            f"{', '.join(sorted(strays)[:3])}",
            fix="install the tested onnxruntime-gpu, or choose another --target",
        )
    return True


def _onnx_type(array: DeviceArray) -> Any:
    return BFLOAT16 if array.dtype == "bfloat16" else np.dtype(array.dtype)


class TrtSession:
    """One serialized engine and its execution context."""

    def __init__(self, path: Path, spec: GraphSpec, memory: DeviceMemory, target: Target) -> None:
        """Deserialize an engine. The caller has verified its hash, version and GPU: an engine is executable code.

        Raises BackendUnavailable without the runtime, BundleError if the engine is rejected or is another graph's.
        """
        self.spec, self.memory = spec, memory
        trt = load_runtime(target)
        self.computes_in = f"the engine's own dtypes ({target.builder} {trt.__version__})"
        self._log = _make_log(trt)
        self._runtime = trt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise BundleError(
                f"{path} was rejected by {target.builder} {trt.__version__}: {self._log.reason()}",
                cause="it was built by another version or for another GPU, or it is damaged",
                fix="build it here: pvc-export trt",
            )
        self._check_engine(trt, path)
        self._kernels = RuntimeCache(self._engine, path, spec.name)
        # One context per profile: switching profiles would cost a wait, twice per question.
        self._contexts = [self._open_context(path, index) for index in range(max(len(spec.profiles), 1))]
        self._kernels.keep()
        self._unrun = set(range(len(self._contexts)))  # kernels for dynamic shapes are compiled on the first run
        self._bindings = Bindings(spec, memory)

    def _open_context(self, path: Path, profile_index: int) -> Any:
        context = self._kernels.create_context(self._engine)
        if context is None:
            raise BackendUnavailable(
                f"no execution context could be created for {path}: {self._log.reason()}",
                cause="the GPU's memory is full",
                fix="export with a smaller --window, --context or --streams",
            )
        if profile_index and not context.set_optimization_profile_async(profile_index, self.memory.stream):
            raise _of_another_graph(
                f"{path} has no optimization profile {profile_index}: {self._log.reason()}",
                f"{len(self.spec.profiles)} profiles, as in the GraphSpec of '{self.spec.name}'",
            )
        return context

    def _check_engine(self, trt: ModuleType, path: Path) -> None:
        """Raise BundleError unless the engine's tensors match the spec in direction, name, dtype and shape.

        An output larger than its spec would be written past the end of our buffer.
        """
        found: dict[str, tuple[str, str, tuple[Dim, ...]]] = {}
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            mode = "input" if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else "output"
            dtype = re.sub(r".*\.", "", str(self._engine.get_tensor_dtype(name)))
            found[name] = (mode, DTYPE_OF.get(dtype, dtype), tuple(self._engine.get_tensor_shape(name)))
        expected = {t.name: ("input", t.dtype, t.shape) for t in self.spec.inputs}
        expected |= {t.name: ("output", t.dtype, t.shape) for t in self.spec.outputs}
        for name in sorted(found.keys() | expected.keys()):
            if name not in found or name not in expected or not _fits(found[name], expected[name]):
                raise _of_another_graph(
                    f"{path}: tensor '{name}' is {found.get(name, 'missing')}",
                    f"{expected.get(name, 'no such tensor')}, as in the GraphSpec of '{self.spec.name}'",
                )
        for output, cache in self.spec.aliases.items():
            aliased = self._engine.get_aliased_input_tensor(output)
            if aliased != cache:
                raise _of_another_graph(
                    f"{path}: output '{output}' is written over {aliased!r}",
                    f"over '{cache}', in place, as in the GraphSpec: otherwise the cache would be lost",
                )

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        placed = self._bindings.inputs(inputs)
        sizes = self._bindings.sizes(placed)
        outputs = self._bindings.outputs(placed, sizes)
        index = self.spec.profile_index(sizes) if sizes else 0
        context = self._contexts[index]
        for name, array in placed.items():
            if not context.set_input_shape(name, array.shape):
                raise SpecError(
                    f"graph '{self.spec.name}': the engine rejects '{name}' as {array.shape}: {self._log.reason()}",
                    cause="the shape is outside its optimization profile",
                )
            context.set_tensor_address(name, array.address)
        for name, array in outputs.items():
            context.set_tensor_address(name, array.address)
        if not context.execute_async_v3(self.memory.stream):
            raise BackendUnavailable(f"the engine of '{self.spec.name}' could not run: {self._log.reason()}")
        if index in self._unrun:
            self._unrun.remove(index)
            self._kernels.keep()
        return dict(outputs)


def _fits(found: tuple[str, str, tuple[Dim, ...]], expected: tuple[str, str, tuple[Dim, ...]]) -> bool:
    """Compare two tensors; an engine reports -1 for a size that it learns only at run time."""
    return (
        found[:2] == expected[:2]
        and len(found[2]) == len(expected[2])
        and all(isinstance(want, str) or got in (want, -1) for got, want in zip(found[2], expected[2], strict=True))
    )


def _of_another_graph(what: str, expected: str) -> BundleError:
    cause, fix = "the engine belongs to another graph", "export again: pvc-export trt"
    return BundleError(what, expected=expected, cause=cause, fix=fix)


def _make_log(trt: ModuleType) -> Any:
    """An ILogger that keeps only the last errors, for our messages: a stream runs for days."""

    class Log(trt.ILogger):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: deque[str] = deque(maxlen=3)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

        def reason(self) -> str:
            return "; ".join(self.errors) or "it gave no reason"

    return Log()
