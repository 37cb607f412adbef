"""The rooms of the house: who may import whom. That pvc_ref and engines never meet is what makes parity a proof."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {"pvc_ref": set(), "engines": set(), "pvc_export": {"pvc_ref", "engines"}, "apps": {"engines"}}
HEAVY = {"torch", "onnx", "onnxscript", "transformers", "safetensors"}


def imports(path: Path) -> set[str]:
    """Top-level names that a file imports from other packages, function bodies included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_the_rooms_it_may(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        others = imports(path) & set(MAY_IMPORT) - {room}
        assert others <= MAY_IMPORT[room], f"{path} imports {others}"


def test_no_file_of_the_runtime_imports_what_a_device_lacks() -> None:
    for path in sorted((ROOT / "engines").rglob("*.py")):
        assert not imports(path) & HEAVY, path


@pytest.mark.parametrize(
    "statement", ["import engines", "import engines.builder, engines.video", "import pvc_export.cli, pvc_export.doctor"]
)
def test_importing_the_runtime_or_the_command_line_loads_no_torch(statement: str) -> None:
    code = f"{statement}\nimport sys\nprint(sorted({HEAVY | {'pvc_ref'}!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
