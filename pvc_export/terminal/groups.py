"""`pvc-export --help`: commands grouped by what people want to do."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

GROUPS: dict[str, tuple[str, ...]] = {
    "Export a model": ("trt", "onnx", "kit", "plan"),
    "Check that it is right": ("check", "inspect", "compare", "prove"),
    "Use a bundle": ("run", "batch", "triton"),
    "This machine": ("doctor", "gpu", "bench"),
}
EPILOG = """\b
Also: pvc-live watches a camera, pvc-serve answers over HTTP.
Start with: pvc-export onnx, then pvc-live build/shapes --source synthetic."""


class GroupedCommands(TyperGroup):
    """Commands under the headings of GROUPS. A command that is in none is a fault of ours: tests look for it."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for names in GROUPS.values() for name in names]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = max(map(len, self.commands))
        for title, names in GROUPS.items():
            with formatter.section(title):
                rows = [(name.ljust(width), self.commands[name].get_short_help_str(limit=200)) for name in names]
                formatter.write_dl(rows)
