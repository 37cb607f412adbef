"""Runtime cache: what TensorRT-RTX compiled for this GPU at a first start, stored next to the bundle for the next one.

    NAME/                    the bundle
    NAME.runtime-cache/      one file per engine; outside, since a bundle holds only what its manifest lists

A cache file is executable code, like an engine, so it is signed by this machine and rejected by any other. TensorRT-RTX
itself rejects one from another GPU, driver or version. In both cases it compiles again and stores the result. A runtime
without this cache (TensorRT, older TensorRT-RTX) is detected by its features and used without it.
Written for a GPU; so far run only on the fake runtime of tests/engines/fake_trt.py.
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
    """The kernels of one engine: loads stored ones, and stores newly compiled ones."""

    def __init__(self, engine: Any, engine_path: Path, graph: str) -> None:
        """`engine_path` is NAME/engines/FILE. Logs a warning if kernels have to be compiled first."""
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
            # A warning, since Python shows those even without any logging setup: a first start can take minutes.
            LOG.warning(
                "compiling kernels of '%s' for this GPU, at the first start only; cached in %s", graph, self.path
            )
        config.set_runtime_cache(self._cache)

    def create_context(self, engine: Any) -> Any:
        """Create an execution context that compiles through this cache, if the runtime has one. May return None."""
        return engine.create_execution_context(*(() if self._config is None else (self._config,)))

    def keep(self) -> None:
        """Write what was compiled since the last call. If the folder is not writable, only the next start is slower."""
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
        """Content that this machine stored for this engine, or b''."""
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
    """Folder of a bundle's compiled kernels."""
    bundle = bundle.resolve()  # '.' has a name too
    return bundle.with_name(bundle.name + SUFFIX)
