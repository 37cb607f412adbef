"""Publishing: a bundle appears whole or not at all, whatever kills the export, and replaces only a bundle."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines import publishing
from engines.bundle import verify_files
from engines.errors import BackendUnavailable, BundleError
from engines.manifest import Manifest, hash_folder
from engines.spec import StreamLimits
from engines.target import load_target
from pvc_export.bundles import publish
from pvc_export.bundles.export import ExportRequest, export
from pvc_export.bundles.publish import staging
from pvc_export.graphs.models import LoadedModel
from pvc_export.terminal import interrupt

ROOT = Path(__file__).parents[3]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
linux_only = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux can exchange the names of two folders in one step"
)


def small_bundle(like: Path, folder: Path, name: str) -> Path:
    """Write a bundle that passes verification, with a few bytes per file."""
    for file in Manifest.load(like).files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(f"{file} of {name}")
    replace(Manifest.load(like), created_utc=name, files=hash_folder(folder)).save(folder)
    return folder


@pytest.fixture
def old(bundle_fp32: Path, tmp_path: Path) -> Path:
    return small_bundle(bundle_fp32, tmp_path / "sources/old", "old")


@pytest.fixture
def new(bundle_fp32: Path, tmp_path: Path) -> Path:
    return small_bundle(bundle_fp32, tmp_path / "sources/new", "new")


@pytest.fixture
def out(bundle_fp32: Path, tmp_path: Path) -> Path:
    """A bundle called 'first', alone in its folder."""
    return small_bundle(bundle_fp32, tmp_path / "place/bundle", "first")


def put(out: Path, name: str) -> None:
    """Publish the smallest thing that may be replaced again: a bundle of an old format."""
    with staging(out) as folder:
        (folder / "manifest.json").write_text(manifest_text(name))


def manifest_text(name: str) -> str:
    return json.dumps({"format_version": 0, "created_utc": name, "graphs": {}, "files": {}})


def name_of(out: Path) -> str:
    name: str = json.loads((out / "manifest.json").read_text())["created_utc"]
    return name


def kill_everywhere(*args: object) -> list[dict[str, Any]]:
    """Kill an export before each of its file operations and return what each kill left: see kill_everywhere.py."""
    command = [sys.executable, str(Path(__file__).parent / "kill_everywhere.py"), *map(str, args)]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    kills: list[dict[str, Any]] = json.loads(result.stdout)
    assert len(kills) > 60 and {"os.mkdir", "open", "shutil.copyfile", "shutil.rmtree"} <= {k["before"] for k in kills}
    for kill in kills:
        assert (kill["next"], kill["names"]) == ("new", ["bundle"]), f"the export after a kill: {kill}"
    return kills


@linux_only
def test_a_kill_anywhere_leaves_the_old_bundle_whole_or_the_new_one_whole(tmp_path: Path, old: Path, new: Path) -> None:
    kills = kill_everywhere(tmp_path / "place/bundle", old, new)
    left = [kill["left"] for kill in kills]
    assert set(left) == {"old", "new"}
    assert left == sorted(left, reverse=True), "the old bundle came back after the new one had its name"
    assert {kill["hidden"] for kill in kills} == {0, 1}, "no kill left a folder for the next export to remove"


def test_a_kill_anywhere_leaves_nothing_or_the_bundle_whole_where_there_was_none(tmp_path: Path, new: Path) -> None:
    (tmp_path / "place").mkdir()
    assert {kill["left"] for kill in kill_everywhere(tmp_path / "place/bundle", "-", new)} == {"none", "new"}


def test_without_an_exchange_a_kill_between_the_renames_hides_the_old_bundle(
    tmp_path: Path, old: Path, new: Path
) -> None:
    """Shows why the exchange is needed, and that these kills would find a moment without a bundle."""
    kills = kill_everywhere(tmp_path / "place/bundle", old, new, "--no-exchange")
    assert [kill["before"] for kill in kills if kill["left"] == "none"] == ["os.rename"]
    assert {kill["left"] for kill in kills} == {"old", "none", "new"}


@linux_only
def test_a_bundle_is_replaced_here_by_an_exchange_and_not_by_two_renames(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("two renames, although this file system can exchange names")

    monkeypatch.setattr(Path, "rename", refuse)
    put(out, "new")
    assert name_of(out) == "new" and list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
def test_a_new_bundle_replaces_the_old_one_whole(out: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        monkeypatch.setattr(publishing, "_exchange", lambda first, second: False)
    put(out, "new")
    assert [path.name for path in out.iterdir()] == ["manifest.json"] and name_of(out) == "new"
    assert list(out.parent.iterdir()) == [out]


@linux_only
@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS])
def test_a_file_system_that_cannot_exchange_names_gets_two_renames(
    out: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctypes.get_errno", lambda: code)
    monkeypatch.setattr("engines.publishing.RENAME_EXCHANGE", 1 << 20)  # a flag that no file system knows
    put(out, "new")
    assert name_of(out) == "new" and list(out.parent.iterdir()) == [out]


def test_after_a_kill_between_two_renames_the_next_export_first_gives_the_old_bundle_its_name_back(out: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path\n"
        "from engines import publishing; from pvc_export.bundles import publish\n"
        "publishing._exchange = lambda first, second: False\n"
        "rename = Path.rename\n"
        "Path.rename = lambda self, to: rename(self, to) if to.name == 'old' else os.kill(os.getpid(), 9)\n"
        "with publish.staging(Path(sys.argv[1])): pass"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(out)], env=ENVIRONMENT)
    assert killed.returncode == -signal.SIGKILL and not out.exists()
    with pytest.raises(ZeroDivisionError), staging(out):
        assert name_of(out) == "first"
        raise ZeroDivisionError
    assert name_of(out) == "first" and list(out.parent.iterdir()) == [out]


def test_a_rename_that_fails_gives_the_old_bundle_its_name_back(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name == "bundle" and self != out:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(publishing, "_exchange", lambda first, second: False)
    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(BackendUnavailable, match=r"Input/output error.*Nothing was published(.*\n)*.*-o"):
        put(out, "new")
    assert name_of(out) == "first" and list(out.parent.iterdir()) == [out]


def test_the_temporary_folder_of_a_running_export_is_left_alone_and_that_of_a_killed_one_is_removed(out: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pvc_export.bundles.publish import staging\n"
        "with staging(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'manifest.json').write_text(sys.argv[2])\n"
        "    print(flush=True); sys.stdin.readline()"
    )

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, str(out), manifest_text("slow")]
        process = subprocess.Popen(command, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "\n"
        return process

    with start() as slow, start() as doomed:
        assert len(list(out.parent.glob(f".bundle-export-{slow.pid}-*"))) == 1
        doomed.kill()
        doomed.wait()
        put(out, "quick")
        assert name_of(out) == "quick"
        assert [p.name.split("-")[2] for p in out.parent.iterdir() if p != out] == [str(slow.pid)]
        slow.communicate("\n")
        assert slow.returncode == 0 and name_of(out) == "slow"
    assert list(out.parent.iterdir()) == [out]


def test_a_hidden_folder_that_is_not_an_export_s_is_left_alone(out: Path) -> None:
    names = {".bundle-notes", ".bundle-export-notes", ".bundle-export-12-abcdefgh-notes", ".other-export-12-abcdefgh"}
    for name in names:
        (out.parent / name).mkdir()
    put(out, "new")
    assert {path.name for path in out.parent.iterdir()} == names | {"bundle"}


def test_everything_is_on_the_disk_before_the_name_changes(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: dict[str, set[int]] = {"first": set(), "new": set()}
    fsync = os.fsync

    def recorded(handle: int) -> None:
        synced[name_of(out)].add(os.fstat(handle).st_ino)
        fsync(handle)

    monkeypatch.setattr("os.fsync", recorded)
    with staging(out) as folder:
        (folder / "graphs").mkdir()
        for file in ("manifest.json", "graphs/llm.onnx"):
            (folder / file).write_text(manifest_text("new"))
    assert {path.stat().st_ino for path in [out, *out.rglob("*")]} <= synced["first"]
    assert out.parent.stat().st_ino in synced["new"], "the new name itself could be lost"


def test_an_interrupt_that_comes_after_publishing_does_not_claim_that_nothing_was_published(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interrupt, "_publishing", None)
    assert interrupt.outcome() == "nothing was published"
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: interrupt.signals._on_signal(signal.SIGINT, None))
    monkeypatch.setattr(interrupt.signals, "number", None)
    with pytest.raises(KeyboardInterrupt):
        put(out, "new")
    assert name_of(out) == "new" and interrupt.outcome() == f"{out} was already published"


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_interrupt_in_the_very_call_that_publishes_is_told_by_what_stands_there(
    moment: str, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interrupt, "_publishing", None)
    monkeypatch.setattr(interrupt.signals, "number", None)
    real = publish.publish

    def struck(folder: Path, target: Path) -> None:
        if moment == "after":
            real(folder, target)
        interrupt.signals._on_signal(signal.SIGTERM, None)

    monkeypatch.setattr(publish, "publish", struck)
    with pytest.raises(KeyboardInterrupt):
        put(out, "new")
    told = {"before": ("first", "nothing was published"), "after": ("new", f"{out} was already published")}
    assert (name_of(out), interrupt.outcome()) == told[moment]


def test_an_interrupt_before_publishing_keeps_the_old_bundle(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupt.signals, "number", int(signal.SIGTERM))  # as if its exception had been swallowed
    with pytest.raises(KeyboardInterrupt):
        put(out, "new")
    assert name_of(out) == "first" and list(out.parent.iterdir()) == [out]


def test_a_link_to_a_bundle_still_is_one_after_the_bundle_is_replaced(out: Path, tmp_path: Path) -> None:
    link = tmp_path / "latest"
    link.symlink_to(out)
    put(link, "new")
    assert link.is_symlink() and name_of(out) == "new" and list(out.parent.iterdir()) == [out]


def test_a_file_of_yours_that_arrives_during_the_export_keeps_the_bundle_from_being_replaced(out: Path) -> None:
    with pytest.raises(BundleError, match=r"other files in it, so it was not replaced: notes\.txt"), staging(out):
        (out / "notes.txt").write_text("mine")
    assert (out / "notes.txt").read_text() == "mine" and name_of(out) == "first"
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.usefixtures("shared_graphs", "stream_alone")
def test_a_real_export_killed_on_its_way_leaves_the_old_bundle_whole_and_the_next_one_succeeds(
    small: LoadedModel, bundle_fp32: Path, copy_bundle: Callable[[Path], Path]
) -> None:
    out = copy_bundle(bundle_fp32)
    command = [sys.executable, "-u", "-m", "pvc_export.cli", "onnx", "-m", "tiny", "-o", str(out)]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while "export trunk" not in process.stdout.readline():
            assert process.poll() is None
        process.kill()
    verify_files(out, Manifest.load(out))
    assert (out / "manifest.json").read_bytes() == (bundle_fp32 / "manifest.json").read_bytes()
    (hidden,) = (path for path in out.parent.iterdir() if path != out)
    assert (hidden / "bundle/graphs/trunk.onnx").is_file(), "the kill came before the export had written anything"
    limits = StreamLimits(window=3)
    assert export(small, ExportRequest(out=out, target=load_target("cpu"), precision="fp32", limits=limits)).passed
    assert list(out.parent.iterdir()) == [out] and Manifest.load(out).limits.window == 3
    verify_files(out, Manifest.load(out))
