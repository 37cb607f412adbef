"""What TensorRT-RTX compiled for this GPU at a first start, kept beside the bundle for the next one.

    NAME/                    the bundle
    NAME.runtime-cache/      a file for each engine; outside, since a bundle holds what its manifest lists and no more

A kept file is executable code, as an engine is, so it is signed by this machine and taken by no other. TensorRT-RTX
itself refuses one of another GPU, driver or version; either way it is compiled and kept anew. A runtime that has no
such cache (TensorRT, older TensorRT-RTX) is left as it is, by feature detection.
Written for a GPU, run so far only on the stand-in of tests/engines/fake_trt.py.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from .machine import sign

SUFFIX = ".runtime-cache"
LOG = logging.getLogger("engines")
SIGNATURE_BYTES = 32


class RuntimeCache:
    """The kernels of one engine: what was kept is taken, what is compiled beyond that is kept."""

    def __init__(self, engine: Any, engine_path: Path, graph: str) -> None:
        """`engine_path` is NAME/engines/FILE. Says so once where kernels will have to be compiled first."""
        self.path = cache_folder(engine_path.parents[1]) / f"{graph}.bin"
        self._graph, self._config, self._cache, self._kept = graph, None, None, b""
        self._engine_sha256 = hashlib.sha256(engine_path.read_bytes()).hexdigest()
        if not hasattr(engine, "create_runtime_config"):
            return
        config = engine.create_runtime_config()
        if not hasattr(config, "create_runtime_cache"):
            return
        self._config, self._cache = config, config.create_runtime_cache()
        kept = self._read()
        if kept and self._cache.deserialize(kept):
            self._kept = kept
        else:
            # A warning, since that is what Python shows where nobody has set up a log: a first start can take minutes.
            LOG.warning("compiling kernels of '%s' for this GPU: at a first start only; kept in %s", graph, self.path)
        config.set_runtime_cache(self._cache)

    def create_context(self, engine: Any) -> Any:
        """An execution context, which compiles through this cache where the runtime has one. None as the runtime's."""
        return engine.create_execution_context(*(() if self._config is None else (self._config,)))

    def keep(self) -> None:
        """Write what was compiled since the last time. A folder that cannot be written costs the next start its time,
        and nothing else."""
        if self._cache is None:
            return
        content = bytes(self._cache.serialize())
        if content == self._kept:
            return
        partial = self.path.with_suffix(f".{os.getpid()}")
        with suppress(OSError):
            self.path.parent.mkdir(exist_ok=True)
            partial.write_bytes(self._signature(content) + content)
            partial.replace(self.path)
        self._kept = content

    def _read(self) -> bytes:
        """What this machine kept for this engine, or b''."""
        try:
            data = self.path.read_bytes()
        except OSError:
            return b""
        signature, content = data[:SIGNATURE_BYTES], data[SIGNATURE_BYTES:]
        return content if hmac.compare_digest(signature, self._signature(content)) else b""

    def _signature(self, content: bytes) -> bytes:
        told = f"runtime cache {self._graph} {self._engine_sha256} {hashlib.sha256(content).hexdigest()}"
        return sign(told).encode()


def cache_folder(bundle: Path) -> Path:
    """Where the kernels of a bundle are kept."""
    bundle = bundle.resolve()  # '.' has a name too
    return bundle.with_name(bundle.name + SUFFIX)
