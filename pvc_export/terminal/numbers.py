"""Formatting of numbers, for terminals and pages."""

from __future__ import annotations

from math import isinf, isnan


def number(value: float) -> str:
    """Two digits: '1.2e-3', '0', 'NaN', '∞'."""
    if isnan(value):
        return "NaN"
    if isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits}e{int(exponent)}"


def plain(value: float) -> str:
    """Three digits, without an exponent for common sizes: '65504', '3.41', '1.2e-5'."""
    if isnan(value) or isinf(value) or value == 0:
        return number(value)
    if 1000 <= abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:.3g}" if 1e-3 <= abs(value) < 1000 else number(value)


def share(value: float) -> str:
    """A fraction of a limit: '25%', '0.3%', '12×', '∞'."""
    if isnan(value) or isinf(value):
        return number(value)
    if value >= 10:
        return f"{value:.0f}×" if value < 1e4 else f"{number(value)}×"
    percent = 100 * value
    if percent == 0:
        return "0%"
    if percent < 0.1:
        return "<0.1%"
    return f"{percent:.1f}%" if percent < 10 else f"{percent:.0f}%"
