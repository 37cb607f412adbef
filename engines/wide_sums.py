"""Test whether this CPU adds int8 products in 32 bits, or in 16 bits with saturation.

x86 without VNNI does the latter, two products at a time, silently. Bundles with codes up to 127 are wrong there; those
of the target `cpu` are not: 2 x 255 x 64 fits.
"""

from __future__ import annotations

import functools

import numpy as np

from .errors import BackendUnavailable
from .session import import_onnxruntime

SIZE = 64
SUMS = (
    b'\x08\x08:m\n\x1f\n\x01x\n\x05codes\x12\x04sums"\rMatMulInteger\x12\x04sumsZ\x13\n\x01x\x12\x0e\n\x0c\x08\x02\x12'
    b"\x08\n\x02\x08\x01\n\x02\x08@Z\x17\n\x05codes\x12\x0e\n\x0c\x08\x03\x12\x08\n\x02\x08@\n\x02\x08\x10b\x16\n\x04sums"
    b"\x12\x0e\n\x0c\x08\x06\x12\x08\n\x02\x08\x01\n\x02\x08\x10B\x04\n\x00\x10\n"
)
"""An ONNX file: sums (1, 16) = MatMulInteger(x uint8 (1, SIZE), codes int8 (SIZE, 16))."""


def require_wide_sums() -> None:
    """Raise BackendUnavailable unless the largest codes are multiplied correctly."""
    if not _sums_are_right():
        raise BackendUnavailable(
            "this CPU adds int8 products in 16 bits with saturation, so a bundle of the target 'cpu-vnni' gives wrong "
            "results here",
            expected="x86 with VNNI (Intel from Ice Lake, AMD from Zen 4), or ARM",
            fix="export it for any CPU, with 7-bit weights: --target cpu",
        )


@functools.cache
def _sums_are_right() -> bool:
    session = import_onnxruntime().InferenceSession(SUMS, providers=["CPUExecutionProvider"])
    fed = {"x": np.full((1, SIZE), 255, np.uint8), "codes": np.full((SIZE, 16), 127, np.int8)}
    (sums,) = session.run(None, fed)
    return bool((sums == SIZE * 255 * 127).all())
