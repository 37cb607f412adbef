"""The check of other people's stateful graphs: check.py says what it takes and does."""

from .check import check_foreign
from .report import ForeignReport
from .request import NUM_STEPS, ForeignRequest

__all__ = ["NUM_STEPS", "ForeignReport", "ForeignRequest", "check_foreign"]
