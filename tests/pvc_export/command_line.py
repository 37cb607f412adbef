"""pvc-export for a separate process that exports. Unchanged, except that torch reads its translations once per process
instead of once per graph (conftest.translations_once), which takes a quarter of the time.

python -m tests.pvc_export.command_line onnx -m tiny
"""

from __future__ import annotations

import functools

from torch.onnx._internal.exporter._registration import ONNXRegistry

from pvc_export.cli import main

if __name__ == "__main__":
    ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign]
    main()
