"""Report files of a parity check: one self-contained HTML page for people, JUnit XML for CI."""

from .given import ReportInput
from .junit import junit
from .page import PAGE_NAME, render

__all__ = ["PAGE_NAME", "ReportInput", "junit", "render"]
