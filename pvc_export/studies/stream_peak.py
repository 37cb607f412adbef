"""Peak memory of a stream: ten frames and a question through a bundle, in ONNX Runtime on this CPU.

    python -m pvc_export.studies.stream_peak BUNDLE

Prints bytes. It does not import torch, which would take most of the memory.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from engines import PVCStream, open_bundle
from engines.sizes import peak_bytes


def main(bundle: Path) -> None:
    stream = PVCStream(open_bundle(bundle, runtime="cpu"))
    random = np.random.default_rng(0)
    for _ in range(10):
        stream.push(random.integers(0, 255, (480, 640, 3), dtype=np.uint8))
    stream.ask("What happens?", max_new_tokens=8)
    print(peak_bytes())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
