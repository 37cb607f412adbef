"""The report of a parity check: one self-contained HTML file for people, JUnit XML for their CI."""

from .given import ReportInput
from .junit import junit
from .page import PAGE_NAME, render

__all__ = ["PAGE_NAME", "ReportInput", "junit", "render"]
