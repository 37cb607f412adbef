"""`optimum-cli export pvc` in the environment that `make optimum` makes, with optimum and our two distributions."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from engines.manifest import Manifest

ENVIRONMENT = Path(__file__).parents[2] / "build/oracles/optimum-cli/bin"
OWN_FILES = """
from importlib.metadata import files
print([str(file) for file in files("optimum-pvc") if file.suffix == ".py"])
"""


def run(program: str, *args: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [str(ENVIRONMENT / program), *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def test_it_exports_a_bundle_with_the_options_of_pvc_export(tmp_path: Path) -> None:
    done = run("optimum-cli", "export", "pvc", "-m", "tiny", "out", "--fp16", "--window", 3, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.precision == "fp16" and manifest.limits.window == 3 and manifest.parity["passed"]


@pytest.mark.parametrize(
    ("args", "exit_code", "message"),
    [
        (["-m", "tinny", "out"], 6, "Did you mean 'tiny'?"),
        (["-m", "tiny", "out", "--fp16", "--fp32"], 2, "contradict each other"),
        (["out"], 2, "-m/--model"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_has_the_exit_code_and_the_message_of_pvc_export(
    tmp_path: Path, args: list[str], exit_code: int, message: str
) -> None:
    done = run("optimum-cli", "export", "pvc", *args, cwd=tmp_path)
    assert done.returncode == exit_code and message in done.stderr
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())


def test_it_adds_one_file_to_optimum_and_changes_none(tmp_path: Path) -> None:
    done = run("python", "-c", OWN_FILES, cwd=tmp_path)
    assert done.stdout.strip() == "['optimum/commands/register/register_pvc.py']", done.stderr
    assert run("optimum-cli", "env", cwd=tmp_path).returncode == 0
