"""The check of other people's stateful graphs: check.py says what it takes and does."""

from .check import ForeignRequest, check_foreign
from .report import NUM_STEPS, ForeignReport

__all__ = ["NUM_STEPS", "ForeignReport", "ForeignRequest", "check_foreign"]
