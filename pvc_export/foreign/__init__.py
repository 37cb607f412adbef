"""Parity checks for stateful ONNX graphs of any origin. Start at check.py."""

from .check import check_foreign
from .report import ForeignReport
from .request import NUM_STEPS, ForeignRequest

__all__ = ["NUM_STEPS", "ForeignReport", "ForeignRequest", "check_foreign"]
