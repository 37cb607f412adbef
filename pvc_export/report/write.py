"""Where a check's report goes: files that a command names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from engines.errors import BackendUnavailable

PAGE_NAME = "report.html"
Make = Callable[[], str]


def write_files(page: Path | None, xml: Path | None, *, render: Make, junit: Make) -> list[Path]:
    """Make and write what was asked for. Returns the paths. Raises BackendUnavailable where one cannot be written."""
    written = []
    for path, make in ((page, render), (xml, junit)):
        if path is not None:
            try:
                path.write_text(make(), encoding="utf-8")
            except OSError as error:
                raise BackendUnavailable(
                    f"the report could not be written to {path}: {error}",
                    cause="a full disk, or a folder that is missing or not yours. The check itself is done",
                    fix="name another path",
                ) from error
            written.append(path)
    return written
