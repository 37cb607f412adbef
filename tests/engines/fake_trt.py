"""A stand-in for the packages tensorrt and tensorrt_rtx, on a machine without a GPU.

A fake engine is a short JSON text that names an ONNX file. execute_async_v3 runs that file with ONNX Runtime on the
CPU, at the addresses that were set: RecordingCuda's addresses are host addresses. It refuses what the real packages
refuse, in the same way: it returns False or None, and logs a line. It has only what engines/gpu.py and
engines/builder.py call.
"""

from __future__ import annotations

import ctypes
import enum
import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort

from engines.errors import SpecError
from engines.fake import RecordingCuda
from engines.spec import GraphSpec

Severity = enum.Enum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"])
TensorIOMode = enum.Enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
DataType = enum.Enum("DataType", ["FLOAT", "HALF", "BF16", "INT64", "UINT8", "INT8", "BOOL"])
DTYPES = {
    "tensor(float)": (DataType.FLOAT, np.float32),
    "tensor(float16)": (DataType.HALF, np.float16),
    "tensor(int64)": (DataType.INT64, np.int64),
    "tensor(uint8)": (DataType.UINT8, np.uint8),
    "tensor(int8)": (DataType.INT8, np.int8),
    "tensor(bool)": (DataType.BOOL, np.bool_),
}
OPENED: dict[str, ort.InferenceSession] = {}


class ILogger:
    ERROR, INTERNAL_ERROR = Severity.ERROR, Severity.INTERNAL_ERROR

    def log(self, severity: Severity, message: str) -> None:
        raise NotImplementedError


def fake_plan(onnx_path: Path, spec: GraphSpec) -> bytes:
    """Return a serialized engine for a graph, with its optimization profiles."""
    profiles = [
        {tensor.name: spec.profile_shapes(tensor, ranges)[::2] for tensor in spec.inputs}
        for ranges in spec.profiles or ({},)
    ]
    return json.dumps({"onnx": str(onnx_path), "profiles": profiles, "aliases": spec.aliases}).encode()


class Engine:
    def __init__(self, plan: Mapping[str, Any], cuda: RecordingCuda, log: ILogger, inspection: str) -> None:
        self.plan, self.cuda, self.logger, self.inspection = plan, cuda, log, inspection
        path = plan["onnx"]
        if path not in OPENED:
            options = ort.SessionOptions()
            options.log_severity_level = 3
            OPENED[path] = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.session = OPENED[path]
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.outputs = {value.name: value for value in self.session.get_outputs()}
        self.values = {**self.inputs, **self.outputs}
        self.num_io_tensors = len(self.values)

    def get_tensor_name(self, index: int) -> str:
        return list(self.values)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DTYPES[self.values[name].type][0]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else -1 for size in self.values[name].shape)

    def get_aliased_input_tensor(self, name: str) -> str | None:
        return self.plan["aliases"].get(name)

    def create_execution_context(self, config: RuntimeConfig | None = None) -> Context | None:
        context = Context(self)
        context.kernels = None if config is None else config.cache
        return context

    def create_engine_inspector(self) -> SimpleNamespace:
        return SimpleNamespace(get_engine_information=lambda layer_format: self.inspection)


class RtxEngine(Engine):
    """An engine as in TensorRT-RTX: kernels are compiled on the machine with the GPU, and can be cached."""

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig(self.cuda.capability)


class RuntimeConfig:
    def __init__(self, capability: str) -> None:
        self.capability = capability
        self.cache: RuntimeCache | None = None

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache(self.capability)

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True


class RuntimeCache:
    """The names of compiled kernels for one GPU. Refuses those of another GPU."""

    def __init__(self, capability: str) -> None:
        self.capability, self.compiled = capability, set[str]()

    def serialize(self) -> bytes:
        return json.dumps([self.capability, sorted(self.compiled)]).encode()

    def deserialize(self, blob: bytes) -> bool:
        capability, compiled = json.loads(blob)
        if capability != self.capability:
            return False
        self.compiled = set(compiled)
        return True


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.profile_index = 0
        self.kernels: RuntimeCache | None = None

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        if index >= len(self.engine.plan["profiles"]):
            return self._refuse(f"there is no profile {index}")
        self.profile_index = index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, high = self.engine.plan["profiles"][self.profile_index][name]
        if len(shape) != len(low) or not all(a <= x <= b for a, x, b in zip(low, shape, high, strict=True)):
            return self._refuse(f"{name}: {tuple(shape)} is outside the profile {low} to {high}")
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        if name not in self.engine.values:
            return self._refuse(f"no tensor {name}")
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        unset = [name for name in self.engine.values if not self.addresses.get(name)]
        if unset or self.shapes.keys() != self.engine.inputs.keys():
            return self._refuse(f"address or shape not set: {unset}")
        for output, cache in self.engine.plan["aliases"].items():
            if self.addresses[output] != self.addresses[cache]:
                return self._refuse(f"{output} must lie where {cache} lies")
        try:
            self.engine.cuda.require_stream(stream)
            if self.kernels is not None:
                self.kernels.compiled.add(f"profile {self.profile_index}")
            feeds = {name: self._read(name, shape) for name, shape in self.shapes.items()}
            results = self.engine.session.run(list(self.engine.outputs), feeds)
            for name, result in zip(self.engine.outputs, results, strict=True):
                result = np.ascontiguousarray(result)
                self.engine.cuda.require_inside(self.addresses[name], result.nbytes)
                ctypes.memmove(self.addresses[name], result.ctypes.data, result.nbytes)
        except SpecError as error:  # on a GPU: an illegal access
            return self._refuse(str(error))
        return True

    def _read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        dtype = np.dtype(DTYPES[self.engine.values[name].type][1])
        num_bytes = prod(shape) * dtype.itemsize
        self.engine.cuda.require_inside(self.addresses[name], num_bytes)
        return np.frombuffer(ctypes.string_at(self.addresses[name], num_bytes), dtype).reshape(shape)

    def _refuse(self, reason: str) -> bool:
        self.engine.logger.log(Severity.ERROR, reason)
        return False


class Network:
    def __init__(self) -> None:
        self.onnx: str | None = None
        self.inputs: list[str] = []
        self.num_layers = 0

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    def get_input(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(name=self.inputs[index])


class OnnxParser:
    num_errors = 0

    def __init__(self, network: Network, log: ILogger) -> None:
        self.network = network

    def parse_from_file(self, path: str) -> bool:
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.network.onnx, self.network.inputs = path, [value.name for value in session.get_inputs()]
        return True


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[Any, Any]] = {}

    def set_shape(self, name: str, low: Any, mid: Any, high: Any) -> None:
        self.shapes[name] = (low, high)


class Config:
    """A build configuration. It accepts any attribute, because the real one has many more."""

    def __init__(self) -> None:
        self.capabilities: dict[int, str] = {}
        self.cleared: list[object] = []
        self.profiles: list[Profile] = []
        self.pools: dict[object, int] = {}

    def set_memory_pool_limit(self, pool: object, num_bytes: int) -> None:
        self.pools[pool] = num_bytes

    def create_timing_cache(self, content: bytes) -> SimpleNamespace | None:
        """A cache of another version is refused, by its first byte."""
        return None if content[:1] == b"?" else SimpleNamespace(serialize=lambda: content + b".")

    def set_timing_cache(self, cache: SimpleNamespace, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return not ignore_mismatch

    def clear_flag(self, flag: object) -> None:
        self.cleared.append(flag)

    def add_optimization_profile(self, profile: Profile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def set_compute_capability(self, capability: str, index: int) -> None:
        self.capabilities[index] = capability


def make_module(
    name: str, version: str, *, cuda: RecordingCuda, build_log: str = "", inspection: str = "", classic: bool = False
) -> ModuleType:
    """Make the module `name`. A classic one compiles for the GPU it finds, and has no ComputeCapability.

    build_log is the log of a build, inspection the engine inspector's. `configs` lists every build's configuration.
    """
    trt: Any = ModuleType(name)
    trt.__version__ = version
    trt.configs = []

    class Runtime:
        def __init__(self, log: ILogger) -> None:
            self.log = log

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            try:
                return (Engine if classic else RtxEngine)(json.loads(plan), cuda, self.log, inspection)
            except ValueError:
                self.log.log(Severity.ERROR, "Serialization assertion magicTagRead == kMAGIC_TAG failed")
                return None

    class Builder:
        def __init__(self, log: ILogger) -> None:
            self.log = log

        def create_network(self, flags: int) -> Network:
            assert flags == 0b11, "explicit batch and strong typing"
            return Network()

        def create_builder_config(self) -> Config:
            trt.configs.append(Config())
            return trt.configs[-1]

        def create_optimization_profile(self) -> Profile:
            return Profile()

        def build_serialized_network(self, network: Network, config: Any) -> bytes:
            config.progress_monitor.phase_start("build", None, 1)
            config.progress_monitor.step_complete("build", 0)
            self.log.log(Severity.VERBOSE, build_log)
            profiles = [profile.shapes for profile in config.profiles]
            return json.dumps({"onnx": network.onnx, "profiles": profiles, "aliases": {}}).encode()

    trt.ILogger, trt.TensorIOMode, trt.DataType = ILogger, TensorIOMode, DataType
    trt.Runtime, trt.Builder, trt.OnnxParser = Runtime, Builder, OnnxParser
    trt.IProgressMonitor = type("IProgressMonitor", (), {})
    trt.BuilderFlag = enum.Enum("BuilderFlag", ["TF32"])
    trt.MemoryPoolType = enum.Enum("MemoryPoolType", ["WORKSPACE"])
    trt.ProfilingVerbosity = enum.Enum("ProfilingVerbosity", ["DETAILED"])
    trt.LayerInformationFormat = enum.Enum("LayerInformationFormat", ["JSON"])
    trt.NetworkDefinitionCreationFlag = enum.IntEnum(
        "NetworkDefinitionCreationFlag", {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}
    )
    if not classic:
        trt.ComputeCapability = SimpleNamespace(SM80="SM80", SM86="SM86", SM89="SM89", SM120="SM120")
    return trt  # type: ignore[no-any-return]
