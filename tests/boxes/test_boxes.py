"""The quick part of `make boxes`: JetPack 6.2's bindings build a kit, if this machine can make their box."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from .make_box import BOXES, NoBox, environment, find_python, make_box
from .run import OUT, Workshop, _a_fault_stops_it, _builds, tried

ORIN = BOXES[0]


@pytest.fixture(scope="module")
def workshop(shared_kit: Path, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    folder = OUT / ORIN.version
    if not (folder / "made").exists():
        folder = tmp_path_factory.mktemp("box") / ORIN.version
    try:
        python = make_box(ORIN, folder)
    except NoBox as error:
        pytest.skip(f"no box of {ORIN.name}: {error}")
    return Workshop(box=ORIN, python=python, folder=folder, kit=shared_kit)


def test_the_bindings_of_jetpack_6_build_a_kit_and_a_fault_stops_it(workshop: Workshop) -> None:
    shown = list(tried(workshop, (_builds, _a_fault_stops_it)))
    assert len(shown) > 6 and all(one.passed for one in shown), [one.line() for one in shown]


def test_the_box_gives_nothing_of_this_environment_to_a_kit(workshop: Workshop) -> None:
    env = environment(workshop.folder, workshop.kit)
    assert ".venv" not in env["PYTHONPATH"] and set(env) <= {"PATH", "HOME", "TMPDIR", "PYTHONPATH",
                                                             "LD_LIBRARY_PATH", "PYTHONNOUSERSITE"}  # fmt: skip
    names = {path.name.partition("-")[0].partition(".")[0] for path in (workshop.folder / "site").iterdir()}
    assert names <= {"tensorrt", "tensorrt_bindings", "tensorrt_cu12_bindings", "numpy", "bin"}


def test_a_python_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHON310", "no-such-python")
    with pytest.raises(NoBox, match="PYTHON310="):
        find_python("3.10")


def test_without_a_compiler_or_an_index_a_box_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        find_python(ORIN.python)
    except NoBox as error:
        pytest.skip(str(error))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(NoBox, match="pip install failed"):
        make_box(ORIN, tmp_path / "box")
    shutil.rmtree(tmp_path / "box")
