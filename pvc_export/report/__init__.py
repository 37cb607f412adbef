"""The report of a parity check: one self-contained HTML file for people, JUnit XML for their CI."""

from ..parity.heat import HeatMap, heat_map, worst_heat_maps
from .given import ReportInput
from .junit import junit
from .page import render

__all__ = ["HeatMap", "ReportInput", "heat_map", "junit", "render", "worst_heat_maps"]
