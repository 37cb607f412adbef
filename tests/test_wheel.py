"""A built wheel: the two common package names are renamed, every module imports, the command line runs from it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
IMPORT_ALL = """
import importlib, pkgutil, sys
for name in ("pvc_ref", "pvc_export", "pvc_engines", "pvc_apps"):
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        importlib.import_module(module.name)
print(sorted({"engines", "apps"} & set(sys.modules)))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the checkout and unpacked into its own folder."""
    import shutil

    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignore = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "tests")
    shutil.copytree(ROOT, source, ignore=ignore)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True)
    return folder / "site"


def run(site: Path, *args: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(site)}
    return subprocess.run([sys.executable, *args], cwd=site.parent, env=environment, capture_output=True, text=True)


def test_the_wheel_installs_no_common_names(site: Path) -> None:
    names = {path.name for path in site.iterdir() if path.is_dir()}
    assert {"pvc_ref", "pvc_export", "pvc_engines", "pvc_apps"} <= names
    assert not {"engines", "apps", "tests"} & names


def test_every_module_of_the_wheel_imports_under_its_new_name(site: Path) -> None:
    result = run(site, "-P", "-c", IMPORT_ALL)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("package", ["pvc_ref", "pvc_export", "engines", "apps"])
def test_no_module_names_a_renamed_package_but_in_its_imports(package: str) -> None:
    """`import engines.x` binds a name that a wheel does not have; code that uses it fails only when it runs."""
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [name.name for name in node.names if name.asname is None]
                assert not {"engines", "apps"} & {name.split(".")[0] for name in names}, f"{path}:{node.lineno}"


def test_the_world_and_its_source_are_in_the_wheel(site: Path) -> None:
    code = "from pvc_apps.synthetic import SyntheticDevice; print(SyntheticDevice().read().bgr.shape)"
    result = run(site, "-P", "-c", code)
    assert result.stdout.strip() == "(448, 448, 3)", result.stderr


def test_data_files_are_in_the_wheel_and_the_command_line_runs(site: Path) -> None:
    data = (
        "pvc_engines/targets/rtx.json", "pvc_engines/parsers/10.3.json", "pvc_export/parity/thresholds.json",
        "pvc_export/report/report.html.j2",
    )  # fmt: skip
    assert all((site / name).is_file() for name in data)
    result = run(site, "-m", "pvc_export.cli", "doctor")
    assert result.returncode == 0 and "target rtx" in result.stdout, result.stderr


def test_the_wheel_carries_its_licence_and_that_of_its_pictures(site: Path) -> None:
    (metadata,) = site.glob("*.dist-info/METADATA")
    assert "License-Expression: MIT\n" in metadata.read_text(encoding="utf-8")
    ours, of_pictures = ("licenses/LICENSE", "licenses/pvc_export/parity/real_frames/LICENSE.txt")
    assert "the PVC streaming export authors" in (metadata.parent / ours).read_text(encoding="utf-8")
    assert "OpenGVLab" in (metadata.parent / of_pictures).read_text(encoding="utf-8")


def test_both_command_lines_of_the_wheel_start_under_their_new_names(site: Path) -> None:
    """The script is read too: on a machine with an editable install, it could start under its old name."""
    for name, module, sign in (("pvc-export", "pvc_export.cli", "doctor"), ("pvc-live", "pvc_apps.watch", "--record")):
        script = site / "bin" / name
        assert f"from {module} import main" in script.read_text()
        result = run(site, str(script), "--help")
        assert result.returncode == 0 and sign in result.stdout, result.stderr


def test_an_editable_install_keeps_the_names_of_the_checkout(site: Path) -> None:
    folder = site.parent / "editable"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    install = [*pip, "install", "--no-deps", "--no-build-isolation", "--target", folder, "-e", site.parent / "source"]
    subprocess.run(install, check=True)
    (entry_points,) = folder.glob("*.dist-info/entry_points.txt")
    assert "pvc-live = apps.watch:main" in entry_points.read_text()
