"""NVIDIA's bindings of TensorRT 10.x over the library of TensorRT-RTX 1.4, as the package `tensorrt` of a box.

Both have the same C++ interface except for IBuilderConfig. TensorRT-RTX has no calibration, so its virtual function
table lacks eleven of TensorRT's methods, and every call to a later method would reach the wrong function. While Python
fills in a configuration, it therefore gets a table in TensorRT's order; for the build it gets the library's table back,
because the library reads it in its own order. The order of methods is that of IBuilderConfig in TensorRT 10's headers;
inside.py checks it by setting options and reading them back.
"""

from __future__ import annotations

import ctypes
from typing import Any

import tensorrt_bindings
from tensorrt_bindings import *  # noqa: F403

__version__ = tensorrt_bindings.__version__
NUM_DESTRUCTORS = 2
OBJECT, IMPLEMENTATION, BEFORE_TABLE = 16, 8, 16
"""Sizes in bytes: the head of a Python object, after which pybind11 stores a pointer to the C++ object; the C++
object's table pointer, after which its implementation pointer is stored; and what the compiler stores before a
table."""
ABSENT = """setInt8Calibrator getInt8Calibrator setAlgorithmSelector getAlgorithmSelector setCalibrationProfile
getCalibrationProfile setQuantizationFlags getQuantizationFlags clearQuantizationFlag setQuantizationFlag
getQuantizationFlag"""
DECLARED = """setAvgTimingIterations getAvgTimingIterations setEngineCapability getEngineCapability setInt8Calibrator
getInt8Calibrator setFlags getFlags clearFlag setFlag getFlag setDeviceType getDeviceType isDeviceTypeSet
resetDeviceType canRunOnDLA setDLACore getDLACore setDefaultDeviceType getDefaultDeviceType reset setProfileStream
getProfileStream addOptimizationProfile getNbOptimizationProfiles setProfilingVerbosity getProfilingVerbosity
setAlgorithmSelector getAlgorithmSelector setCalibrationProfile getCalibrationProfile setQuantizationFlags
getQuantizationFlags clearQuantizationFlag setQuantizationFlag getQuantizationFlag setTacticSources getTacticSources
createTimingCache setTimingCache getTimingCache setMemoryPoolLimit getMemoryPoolLimit setPreviewFeature
getPreviewFeature setBuilderOptimizationLevel getBuilderOptimizationLevel setHardwareCompatibilityLevel
getHardwareCompatibilityLevel setPluginsToSerialize getPluginToSerialize getNbPluginsToSerialize setMaxAuxStreams
getMaxAuxStreams setProgressMonitor getProgressMonitor"""
METHODS, MISSING = DECLARED.split(), frozenset(ABSENT.split())
TABLES: dict[int, tuple[int, int, Any]] = {}
"""For each configuration's id: its implementation, the library's table, and our table, which must live as long."""


class Builder(tensorrt_bindings.Builder):  # type: ignore[misc]
    def create_builder_config(self) -> Any:
        config = super().create_builder_config()
        if __version__.startswith("10."):
            _give_table(config)
        return config

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        if id(config) in TABLES:
            implementation, own, _ = TABLES.pop(id(config))
            _at(implementation).value = own
        return super().build_serialized_network(network, config)


def _at(address: int) -> ctypes.c_void_p:
    return ctypes.c_void_p.from_address(address)


def _pointer(address: int) -> int:
    value = _at(address).value
    assert value is not None
    return value


def _give_table(config: Any) -> None:
    implementation = _pointer(_pointer(id(config) + OBJECT) + IMPLEMENTATION)
    own = _pointer(implementation)
    head = BEFORE_TABLE // 8
    count = head + NUM_DESTRUCTORS + len(METHODS)
    table = (ctypes.c_void_p * count).from_buffer_copy(ctypes.string_at(own - BEFORE_TABLE, 8 * count))
    there = [name for name in METHODS if name not in MISSING]
    for index, name in enumerate(METHODS):
        if name in there:
            table[head + NUM_DESTRUCTORS + index] = _pointer(own + 8 * (NUM_DESTRUCTORS + there.index(name)))
    TABLES[id(config)] = implementation, own, table
    _at(implementation).value = ctypes.addressof(table) + BEFORE_TABLE
