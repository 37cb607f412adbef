"""Typed reading of a client's JSON object: a field of the wrong type or value is refused by name."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from engines.terminal import did_you_mean

from .errors import Refused

LONGEST_NUMBER = 2**63


class Fields:
    """A JSON object; `where` names it in errors, empty for the request itself. null counts as a missing field.

    Each method raises Refused for a value of the wrong type. default: for a missing field.
    """

    def __init__(self, value: Any, where: str = "") -> None:
        if not isinstance(value, dict):
            raise Refused(f"{where or 'the body'} is not a JSON object", param=where or None)
        self._fields: dict[str, Any] = value
        self._where = where

    def name(self, field: str) -> str:
        return f"{self._where}.{field}" if self._where else field

    def __getitem__(self, field: str) -> Any:
        return self._fields.get(field)

    def only(self, known: Iterable[str]) -> None:
        """Refuse fields of any other name."""
        known = list(known)
        for field in self._fields:
            if field not in known:
                shown = field[:80]
                raise Refused(
                    f"unknown field {self.name(shown)!r}. {did_you_mean(shown, known)}".rstrip(),
                    param=self.name(shown), code="unknown_parameter",
                )  # fmt: skip

    def only_default(self, defaults: Mapping[str, tuple[Any, ...]]) -> None:
        """Refuse each of these fields unless its value has no effect."""
        for field, harmless in defaults.items():
            value = self._fields.get(field)
            if value is not None and not any(type(value) is type(one) and value == one for one in harmless):
                raise self.wrong(field, "is not supported; leave it out", code="unsupported_parameter")

    def text(self, field: str, *, default: str | None = None) -> str:
        value = self._fields.get(field)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self.wrong(field, "is not a string")
        return as_text(value, self.name(field))

    def flag(self, field: str, *, default: bool) -> bool:
        value = self._fields.get(field)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(field, "is not true or false")
        return value

    def number(self, field: str, *, default: float, above: float = -math.inf, low: float, high: float) -> float:
        value = self._fields.get(field)
        if value is None:
            return default
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not (low <= value <= high and value > above):
            raise self.wrong(
                field, f"is not a number {f'above {above:g}' if above >= low else f'from {low:g}'} to {high:g}"
            )
        return float(value)

    def whole(self, field: str, *, default: int | None, low: int, high: int) -> int | None:
        value = self._fields.get(field)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.wrong(field, f"is not a whole number from {low} to {high}")
        return value

    def wrong(self, field: str, what: str, *, code: str | None = None) -> Refused:
        return Refused(f"{self.name(field)} {what}", param=self.name(field), code=code)


def read_json(body: bytes) -> Any:
    """Parse JSON. Raises Refused for anything else, including NaN and infinity."""

    def refuse(name: str) -> None:
        raise Refused(f"the body contains {name}, which JSON does not allow")

    try:
        return json.loads(body.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError):
        raise Refused("the body is not valid JSON in UTF-8") from None


def as_text(text: str, param: str) -> str:
    """Return the text. Raises Refused for half of a surrogate pair, which JSON's escapes can produce."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Refused(f"{param} is not valid Unicode", param=param) from None
    return text
