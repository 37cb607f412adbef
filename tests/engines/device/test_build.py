"""A kit builds, checks and publishes its engines, on a stand-in for TensorRT whose engines ONNX Runtime runs.

Real bindings of TensorRT build the same kit in tests/boxes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.bundle import OpenGraphs, open_bundle, open_graphs
from engines.device import build as building
from engines.device.build import build
from engines.device.build_graph import Finished, add_build_options
from engines.device.kit import Kit
from engines.errors import BackendUnavailable, BuildError, BundleError, ParityError
from engines.fake import RecordingCuda
from engines.manifest import Manifest
from engines.session import Wrapped

from ...conftest import Shared
from ..fake_trt import fake_plan, make_module

ROOT = Path(__file__).parent.parent.parent.parent
VERSION, GPU = "10.3.0", "SM87"
STAND_IN = f"""
import os, time
from engines.fake import RecordingCuda
from fake_trt import make_module
module = make_module("tensorrt", os.environ.get("TRT_VERSION", "{VERSION}"), cuda=RecordingCuda(), classic=True,
                     inspection='{{"Layers": [{{"Name": "{{ForeignNode[all]}}", "LayerType": "Myelin", "Inputs": [], '
                                '"Outputs": []}}]}}')
if (after := os.environ.get("TRT_DIES")) is not None:
    build = module.Builder.build_serialized_network
    def dying(self, network, config):
        if after in network.onnx:
            os.kill(os.getpid(), 9)
        return build(self, network, config)
    module.Builder.build_serialized_network = dying
globals().update({{name: value for name, value in vars(module).items() if not name.startswith("__")}})
__version__ = module.__version__
"""
"""The package `tensorrt` in a process that builds one graph."""


@pytest.fixture(scope="session")
def shared_work(shared_kit: Path, shared: Shared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one build: every engine, and the bundle."""

    def make(out: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            kit = copied(shared_kit, tmp_path_factory.mktemp("built"), patch)
            built(kit)
        out.mkdir()
        for name in ("work", "bundle"):
            (kit.folder / name).rename(out / name)

    return shared("kit-work", make)


def copied(shared_kit: Path, folder: Path, patch: pytest.MonkeyPatch) -> Kit:
    """Copy the kit, and make the stand-in what `import tensorrt` finds, here and in child processes."""
    shutil.copytree(shared_kit, folder / "kit")
    package = folder / "packages/tensorrt"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(STAND_IN)
    paths = (ROOT, package.parent, ROOT / "tests/engines")
    patch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
    patch.setitem(sys.modules, "tensorrt", make_module("tensorrt", VERSION, cuda=RecordingCuda(), classic=True))
    return Kit.load(folder / "kit")


@pytest.fixture
def kit(shared_kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kit:
    """A kit with nothing built."""
    return copied(shared_kit, tmp_path, monkeypatch)


@pytest.fixture
def built_kit(kit: Kit, shared_work: Path) -> Kit:
    """A kit with everything built."""
    for name in ("work", "bundle"):
        shutil.copytree(shared_work / name, kit.folder / name)
    return kit


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_build_options(parser)
    return parser.parse_args(arguments)


def opened_with(cuda: RecordingCuda) -> Callable[[Path], OpenGraphs]:
    """Return a function that opens a bundle on the stand-in: each engine runs its graph's ONNX file in the bundle."""

    def opened(folder: Path) -> OpenGraphs:
        manifest = Manifest.load(folder)
        graphs = {(folder / entry.path).read_bytes(): name for name, entry in manifest.engines.items()}
        trt = make_module("tensorrt", VERSION, cuda=cuda, classic=True)
        deserialize = trt.Runtime.deserialize_cuda_engine

        def of_the_bundle(self: Any, plan: bytes) -> Any:
            name = graphs[plan]
            return deserialize(self, fake_plan(folder / f"graphs/{name}.onnx", manifest.graphs[name]))

        trt.Runtime.deserialize_cuda_engine = of_the_bundle
        sys.modules["tensorrt"] = trt
        return open_graphs(folder, runtime="target", cuda=cuda)

    return opened


def built(kit: Kit, *arguments: str, opened: Callable[[Path], OpenGraphs] | None = None) -> dict[str, Any]:
    cuda = RecordingCuda(capability=GPU)
    return build(kit, options(*arguments), cuda=cuda, opened=opened or opened_with(cuda))


def test_a_kit_builds_proves_and_publishes_a_bundle(kit: Kit, capsys: pytest.CaptureFixture[str]) -> None:
    summary = built(kit)
    said = capsys.readouterr().err
    assert summary["golden"]["passed"] and summary["golden"]["num_compared"] > 50
    assert set(summary["visible"].values()) == {"nothing"} and "kernels not visible" in said
    manifest = Manifest.load(kit.folder / "bundle")
    assert set(manifest.engines) == {"trunk", "temporal", "compressor", "llm", "head"}
    assert manifest.parity["passed"] is True and manifest.parity["golden"]["summary"].startswith("pass: ")
    assert all(entry.signature and entry.visible == "nothing" for entry in manifest.engines.values())
    assert not list(kit.folder.glob(".bundle-*")), "no temporary folder is left"
    again = opened_with(RecordingCuda(capability=GPU))(kit.folder / "bundle")
    assert again.runs_on == f"tensorrt on {GPU}"


def test_the_smallest_graph_is_built_first_and_memory_is_bounded(kit: Kit, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [kit.num_bytes(graph) for graph in kit.order()]
    assert sizes == sorted(sizes) and len(sizes) == 5
    built(kit)
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith(f"build {kit.order()[0]} (1/5)")
    assert kit.needs_mib() > max(sizes) * 3 / 2**20


def test_a_published_bundle_runs_on_a_cpu_as_well(built_kit: Kit) -> None:
    """The same files, so that a problem on the device can be examined elsewhere."""
    bundle = open_bundle(built_kit.folder / "bundle", runtime="cpu")
    assert bundle.runs_on == "ONNX Runtime CPU"


@pytest.mark.parametrize("graph", ["head", "temporal", "compressor"])
def test_a_build_that_is_killed_in_any_graph_continues_there(
    kit: Kit, graph: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRT_DIES", graph)
    with pytest.raises(BuildError, match=f"signal 9 ended the build of '{graph}'") as caught:
        built(kit)
    assert "out of memory" in caught.value.cause and not (kit.folder / "bundle").exists()
    before = set(kit.order()[: kit.order().index(graph)])
    monkeypatch.delenv("TRT_DIES")
    capsys.readouterr()
    built(kit)
    said = capsys.readouterr().err
    assert {name for name in kit.order() if f"build {name} (" in said and f"{name} (" in said} == set(kit.order())
    assert {line.split()[1] for line in said.splitlines() if line.endswith("built earlier")} == before


def test_a_power_cut_while_it_publishes_leaves_the_old_bundle_and_every_engine(
    built_kit: Kit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = (built_kit.folder / "bundle/manifest.json").read_bytes()

    def cut(folder: Path, out: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(building, "publish", cut)
        built(built_kit)
    assert (built_kit.folder / "bundle/manifest.json").read_bytes() == old
    capsys.readouterr()
    built(built_kit)
    assert capsys.readouterr().err.count("built earlier") == 5


def test_half_an_engine_is_no_engine(built_kit: Kit, capsys: pytest.CaptureFixture[str]) -> None:
    engine = built_kit.work / "trunk.engine"
    engine.write_bytes(engine.read_bytes()[:-1])
    (built_kit.work / "llm.json").write_text("{")
    capsys.readouterr()
    built(built_kit)
    said = capsys.readouterr().err
    assert [line.split()[1] for line in said.splitlines() if line.endswith(" s")] == ["llm", "trunk"]


def test_another_version_of_tensorrt_builds_everything_again(
    built_kit: Kit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRT_VERSION", "10.7.0")
    newer = make_module("tensorrt", "10.7.0", cuda=RecordingCuda(), classic=True)
    monkeypatch.setitem(sys.modules, "tensorrt", newer)
    capsys.readouterr()
    with pytest.raises((ParityError, BundleError, KeyError)):  # the stand-in that opens the engines is still 10.3.0
        built(built_kit)
    assert "built earlier" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("graph", "tensor", "where"), [("trunk", "trunk_features", "frame 0"), ("llm", "hidden", "pass 0")]
)
def test_an_engine_that_computes_something_else_stops_the_publish(
    built_kit: Kit, graph: str, tensor: str, where: str
) -> None:
    cuda = RecordingCuda(capability=GPU)

    def miscompiled(folder: Path) -> OpenGraphs:
        graphs = opened_with(cuda)(folder)

        def run(session: Any, inputs: Any) -> Any:
            outputs = session.run(inputs)
            array = session.memory.to_host(outputs[tensor])
            wrong = np.array(array) * np.asarray(1.5, array.dtype)
            return {**outputs, tensor: session.memory.from_host(wrong, session.spec.output(tensor).dtype)}

        sessions = {**graphs.sessions, graph: Wrapped(graphs.sessions[graph], run)}
        return replace(graphs, sessions=sessions)

    old = (built_kit.folder / "bundle/manifest.json").read_bytes()
    with pytest.raises(ParityError, match="do not reproduce the golden recording") as caught:
        built(built_kit, opened=miscompiled)
    assert f"graph '{graph}', {where}, tensor '{tensor}'" in caught.value.what and caught.value.exit_code == 3
    assert (built_kit.folder / "bundle/manifest.json").read_bytes() == old, "the previous bundle is unchanged"


def test_a_kit_that_is_not_whole_is_refused(kit: Kit) -> None:
    weights = kit.model / "graphs/trunk.onnx.data"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"trunk.onnx.data has \d+ bytes"):
        built(kit)
    (kit.folder / "kit.json").unlink()
    with pytest.raises(BundleError, match="is not a kit") as caught:
        Kit.load(kit.folder)
    assert "rsync" in caught.value.fix


@pytest.mark.parametrize(
    ("capability", "version", "what"),
    [("SM89", VERSION, "this machine's GPU is SM89"), (GPU, "10.16.1", "tensorrt 10.16.1 is installed")],
)
def test_the_wrong_device_and_the_wrong_tensorrt_are_named(
    kit: Kit, capability: str, version: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make_module("tensorrt", version, cuda=RecordingCuda(), classic=True)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    with pytest.raises(BackendUnavailable, match=what) as caught:
        build(kit, options(), cuda=RecordingCuda(capability=capability))
    assert caught.value.exit_code == 4 and caught.value.fix


def test_without_tensorrt_it_says_so(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendUnavailable, match="needs the package tensorrt"):
        build(kit, options(), cuda=RecordingCuda(capability=GPU))


REFUSE = """
import sys
ALLOWED = set(sys.stdlib_module_names) | {"engines", "numpy", "tensorrt"}
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in ALLOWED:
            raise ImportError(f"a kit may not import {name}")
sys.meta_path.insert(0, Refuse())
import runpy
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("module", ["build", "build_graph", "doctor"])
def test_building_imports_numpy_and_nothing_else(shared_kit: Path, module: str) -> None:
    command = [sys.executable, "-c", REFUSE, f"engines.device.{module}", "--help"]
    found = subprocess.run(command, cwd=shared_kit / "runtime", capture_output=True, text=True, timeout=60)
    assert found.returncode == 0 and "usage:" in found.stdout, found.stderr


def test_its_own_check_imports_numpy_and_the_runtime_alone(built_kit: Kit) -> None:
    refuse = REFUSE.replace('"tensorrt"', '"onnxruntime"')
    command = [sys.executable, "-c", refuse, "engines.golden.check", "../bundle", "--runtime", "cpu"]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    code = ALLOW_ONNXRUNTIME + refuse
    command[2] = code
    found = subprocess.run(
        command, cwd=built_kit.folder / "runtime", env=env, capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 0 and "pass: " in found.stdout, found.stderr


ALLOW_ONNXRUNTIME = "import onnxruntime\n"
"""Imported first, with all its own imports, before anything is refused."""


def test_the_scripts_run_the_kit_s_own_source(shared_kit: Path, tmp_path: Path) -> None:
    """There is no GPU here: the doctor stops the build, and without the doctor the build names what is missing."""
    folder = tmp_path / "kit"
    shutil.copytree(shared_kit, folder)
    env = {"PATH": os.environ["PATH"], "PYTHON": sys.executable}

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)

    doctor = run(f"{folder}/build.sh")
    assert doctor.returncode == 4 and "not a Jetson" in doctor.stdout and not (folder / "work").exists()
    forced = run(f"{folder}/build.sh", "--skip-doctor")
    assert forced.returncode == 4 and "error: target 'jetson-orin-jp62' needs the package tensorrt" in forced.stderr
    assert run(f"{folder}/run.sh", "--help").returncode == 0
    check = run(f"{folder}/check.sh")
    assert check.returncode == 6 and "bundle is not a folder" in check.stderr


def test_a_read_only_kit_is_refused_before_anything_is_built(kit: Kit) -> None:
    if os.geteuid() == 0:
        pytest.skip("root can write everywhere")
    kit.folder.chmod(0o500)
    try:
        with pytest.raises(OSError, match="Permission"):
            built(kit)
    finally:
        kit.folder.chmod(0o700)


def test_an_interrupt_kills_the_build_of_a_graph_and_keeps_the_others(kit: Kit) -> None:
    """In a separate process, which gets the interrupt as Ctrl-C sends it."""
    code = (
        "import signal; from engines.device import build as b; from engines.fake import RecordingCuda\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # shells start background jobs ignoring it
        f"from engines.device.kit import Kit; import argparse\n"
        "o = argparse.Namespace(workspace_mib=0, no_timing_cache=True, unfuse=[])\n"
        f"kit = Kit.load(__import__('pathlib').Path({str(kit.folder)!r}))\n"
        "b.build(kit, o, cuda=RecordingCuda(capability='SM87'))\n"
    )
    slow = Path(os.environ["PYTHONPATH"].split(os.pathsep)[1]) / "tensorrt/__init__.py"
    hangs = f"import glob, time\nwhile glob.glob({str(kit.work / '*.json')!r}):\n    time.sleep(0.05)\n"
    slow.write_text(f"{STAND_IN}\n{hangs}")  # from the second graph on
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(kit.work.glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode != 0 and not (kit.folder / "bundle").exists()
    whole = {path.stem for path in kit.work.glob("*.json")}
    assert whole == {kit.order()[0]}
    assert all(isinstance(Finished.find(kit, name, key_in(kit, name)), Finished) for name in whole)


def key_in(kit: Kit, graph: str) -> dict[str, Any]:
    key: dict[str, Any] = json.loads((kit.work / f"{graph}.json").read_text())["key"]
    return key


@pytest.fixture(autouse=True)
def tensorrt_of_before() -> Iterator[None]:
    before = sys.modules.get("tensorrt")
    yield
    if before is None:
        sys.modules.pop("tensorrt", None)
    else:
        sys.modules["tensorrt"] = before
