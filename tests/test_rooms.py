"""Allowed imports between packages. That pvc_ref and engines never import each other makes parity meaningful."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WORLD = "pvc_ref.shapes"  # needs no torch: docs/decisions/0007
MAY_IMPORT = {"pvc_ref": set(), "engines": set(), "pvc_export": {"pvc_ref", "engines"}, "apps": {"engines", WORLD}}
HEAVY = {"torch", "onnx", "onnxscript", "transformers", "safetensors"}


def modules(source: str) -> set[str]:
    """Return the full names a file imports from other packages, also inside functions: `from a import b` is a.b."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imports(path: Path) -> set[str]:
    """Return the top-level names a file imports from other packages."""
    return {name.split(".")[0] for name in modules(path.read_text(encoding="utf-8"))}


def is_allowed(module: str, room: str) -> bool:
    return any(f"{module}.".startswith(f"{allowed}.") for allowed in MAY_IMPORT[room])


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_the_rooms_it_may(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    others = set(MAY_IMPORT) - {room}
    for path in files:
        found = {name for name in modules(path.read_text(encoding="utf-8")) if name.split(".")[0] in others}
        assert all(is_allowed(name, room) for name in found), f"{path} imports {found}"


@pytest.mark.parametrize(
    ("source", "allowed"),
    [
        ("from pvc_ref.shapes import watch", True),
        ("import pvc_ref.shapes.world", True),
        ("def f():\n    from pvc_ref import shapes", True),
        ("from pvc_ref import PVC", False),
        ("import pvc_ref", False),
        ("def f():\n    from pvc_ref.shapes_of import watch", False),
        ("import pvc_export.cli", False),
    ],
)
def test_of_the_reference_the_apps_may_import_the_world_alone(source: str, *, allowed: bool) -> None:
    (module,) = modules(source)
    assert is_allowed(module, "apps") == allowed


def test_no_file_of_the_runtime_imports_what_a_device_lacks() -> None:
    for path in sorted((ROOT / "engines").rglob("*.py")):
        assert not imports(path) & HEAVY, path


@pytest.mark.parametrize(
    "statement",
    [
        "import engines",
        "import engines.builder, engines.video",
        "import pvc_export.cli, pvc_export.commands.doctor",
        "import apps.watch, apps.synthetic",
    ],
)
def test_importing_the_runtime_or_the_command_line_loads_no_torch(statement: str) -> None:
    code = f"{statement}\nimport sys\nprint(sorted({HEAVY | {'pvc_ref'}!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_world_is_rendered_and_asked_about_without_torch() -> None:
    """Runs it too, because late imports (pvc_ref/__init__.py) must not load torch either."""
    code = (
        "from pvc_ref.shapes import answer_to, question_of, watch\nclip = next(watch(0)).clip\n"
        "assert answer_to(clip.scene, question_of(clip, 0).text)\n"
        "import sys\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)), sorted(name for name in sys.modules if name == 'engines'))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[] []"


@pytest.mark.parametrize(
    ("file", "statement", "contract"),
    [
        ("pvc_export/parity/levels.py", "import pvc_export.bundles.export", "The exporter: downward only"),
        ("engines/errors.py", "import pvc_ref.config", "The reference and the runtime never meet"),
        ("engines/errors.py", "import engines.stream", "No cycles"),
    ],
)
def test_an_import_that_runs_upward_breaks_the_contract_of_make_check(
    file: str, statement: str, contract: str, tmp_path: Path
) -> None:
    for name in (*MAY_IMPORT, "pyproject.toml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    with (tmp_path / file).open("a", encoding="utf-8") as planted:
        planted.write(f"\n{statement}\n")
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", code, "--no-logo", "--no-cache"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1 and f"{contract} BROKEN" in result.stdout, result.stdout + result.stderr
