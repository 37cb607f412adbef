"""A Triton Inference Server model repository that contains a bundle. Triton's Python backend runs the streams.

REPOSITORY/NAME/  config.pbtxt  1/model.py  bundle/  runtime/  README.md

Triton treats a numbered folder as a version, and ignores the others.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.bundle import lacks_engines, verify_files
from engines.clock import resolve_clock
from engines.errors import BundleError, SpecError, StreamError
from engines.manifest import MANIFEST_NAME, Manifest
from engines.target import load_target

from ..terminal.console import Console, size_text
from ..terminal.facts import now_utc
from .publish import require_room, staging
from .runtime_source import APPS_NAME, copy_runtime

RUNTIME_ROOM = 64 << 20
"""Bytes reserved for the runtime's source and the other small files."""

PAGE = Path(__file__).with_name("triton.md")
MARK = "# Made by pvc-export triton."
BUNDLE, CONFIG, RUNTIME, VERSION, README = "bundle", "config.pbtxt", "runtime", "1", "README.md"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
MODEL = '''"""PVC streams in Triton's Python backend. Made by pvc-export triton; its code is in ../runtime."""

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(FOLDER / "runtime"))

import triton_python_backend_utils as pb_utils  # noqa: E402 exists only in a server
from APPS.triton.model import Instance  # noqa: E402


class TritonPythonModel:
    def initialize(self, args):
        self._instance = Instance(FOLDER, args, pb_utils)

    def execute(self, requests):
        return self._instance.execute(requests)

    def finalize(self):
        self._instance.close()
'''
CONFIG_TEXT = """MARK For its use, see README.md.
name: NAME
backend: "python"
max_batch_size: SLOTS
input [
  { name: "FRAME" data_type: TYPE_UINT8 dims: [ -1, -1, 3 ] optional: true },
  { name: "PICTURE" data_type: TYPE_STRING dims: [ 1 ] optional: true },
  { name: "QUESTION" data_type: TYPE_STRING dims: [ 1 ] optional: true },
  { name: "MAX_NEW_TOKENS" data_type: TYPE_INT32 dims: [ 1 ] optional: true }
]
output [
  { name: "ANSWER" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "FRAMES" data_type: TYPE_INT64 dims: [ 1 ] }
]
# Each sequence has a slot of the batch from START to END, or until it has been idle for this long.
sequence_batching {
  direct { }
  max_sequence_idle_microseconds: IDLE
  control_input [
    { name: "START" control [ { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } ] },
    { name: "READY" control [ { kind: CONTROL_SEQUENCE_READY int32_false_true: [ 0, 1 ] } ] },
    { name: "END" control [ { kind: CONTROL_SEQUENCE_END int32_false_true: [ 0, 1 ] } ] },
    { name: "CORRID" control [ { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } ] }
  ]
}
instance_group [ INSTANCES ]
parameters { key: "bundle" value: { string_value: "bundle" } }
parameters { key: "max_new_tokens" value: { string_value: "TOKENS" } }
parameters { key: "trust_engines" value: { string_value: "TRUSTED" } }
"""
YEAR_S = 365 * 24 * 3600.0
ON_GPU, ON_CPU = "{ count: 1 kind: KIND_GPU gpus: [ 0 ] }", "{ count: 1 kind: KIND_CPU }"
"""The runtime takes the first visible GPU, so use one server per GPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TritonRequest:
    """The repository to make.

    slots           concurrent sequences, each with its own stream
    idle_s          seconds after which an unused sequence is freed
    max_new_tokens  default, for requests that give none
    trust_engines   run engines built on another machine, which a container counts as (engines/bundle.py)
    """

    bundle: Path
    repository: Path
    name: str
    slots: int = 8
    idle_s: float = 60.0
    max_new_tokens: int = 64
    trust_engines: bool = False

    def __post_init__(self) -> None:
        """Raises SpecError for an invalid model name, and for numbers out of range."""
        if not NAME.fullmatch(self.name):
            raise SpecError(
                f"{self.name!r} is not a valid model name for a repository",
                expected="letters, digits, '_', '-' and '.', starting with a letter or digit",
                fix="choose another name with --name",
            )  # fmt: skip
        if self.slots < 1 or self.max_new_tokens < 1 or not 1e-3 <= self.idle_s <= YEAR_S:
            raise SpecError(
                f"invalid numbers: {self.slots} slots, {self.max_new_tokens} tokens per answer, "
                f"idle after {self.idle_s:g} s",
                expected="at least 1 slot and 1 token, and an idle time of 0.001 s to one year",
                fix="change --slots, --max-new-tokens or --idle",
            )

    @property
    def out(self) -> Path:
        return self.repository / self.name


@dataclass(frozen=True, kw_only=True, slots=True)
class Repository:
    """The repository that was made.

    state_bytes  minimum size of one stream's caches
    on_gpu       whether its instance runs on a GPU
    """

    folder: Path
    num_bytes: int
    state_bytes: int
    on_gpu: bool


def make_repository(request: TritonRequest, *, console: Console) -> Repository:
    """Write REPOSITORY/NAME completely or not at all, replacing an older one made here. Other models are not touched.

    Raises BundleError for a bundle that is damaged, has not passed its check or cannot stream, and for a folder that
    holds other things; BackendUnavailable if nothing can be written.
    """
    manifest = Manifest.load(request.bundle)
    with console.stage("verify the bundle"):
        engines = not lacks_engines(request.bundle, manifest)
        verify_files(request.bundle, manifest, engines=engines)
        _require_streams(request.bundle, manifest)
    on_gpu = load_target(manifest.target).runtime == "ort-cuda" or (engines and bool(manifest.engines))
    _refuse_other_things(request.out)
    require_room(request.out, sum(entry.num_bytes for entry in manifest.files.values()) + RUNTIME_ROOM)
    with console.stage("write the repository") as (stage, _), staging(request.out, _refuse_other_things) as folder:
        for name in (MANIFEST_NAME, *manifest.files):
            if (request.bundle / name).is_file():
                copy(request.bundle / name, folder / BUNDLE / name)
        verify_files(folder / BUNDLE, manifest, engines=engines)
        copy_runtime(folder / RUNTIME)
        (folder / VERSION).mkdir()
        (folder / VERSION / "model.py").write_text(MODEL.replace("APPS", APPS_NAME), encoding="utf-8")
        (folder / CONFIG).write_text(config_text(request, on_gpu=on_gpu), encoding="utf-8")
        (folder / README).write_text(_page(request, manifest, on_gpu=on_gpu), encoding="utf-8")
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        stage.note = size_text(size)
    return Repository(folder=request.out, num_bytes=size, state_bytes=_state_bytes(manifest), on_gpu=on_gpu)


def copy(source: Path, target: Path) -> None:
    """Copy a file. Not a hard link: ONNX's checker rejects linked weights, since they can change through the link."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)


def config_text(request: TritonRequest, *, on_gpu: bool) -> str:
    """config.pbtxt in the format of Triton's model_config.proto (`make triton` checks it against that schema)."""
    values = {
        "MARK": MARK, "NAME": json.dumps(request.name), "SLOTS": request.slots,
        "IDLE": round(1e6 * request.idle_s), "TOKENS": request.max_new_tokens,
        "TRUSTED": json.dumps(request.trust_engines), "INSTANCES": ON_GPU if on_gpu else ON_CPU,
    }  # fmt: skip
    return re.sub("|".join(rf"\b{name}\b" for name in values), lambda found: str(values[found[0]]), CONFIG_TEXT)


def _require_streams(folder: Path, manifest: Manifest) -> None:
    """Raise BundleError for a bundle that has not passed its check, or whose streams need a length fixed in advance."""
    if manifest.parity.get("passed") is not True:
        raise BundleError(
            f"{folder} has not passed its parity check, so no repository was made from it",
            expected="a bundle that has passed its check",
            fix=f"see what differs: pvc-export check {folder}",
        )
    if manifest.time_mode == "fixed":
        raise BundleError(
            f"the model of {folder} has time mode 'fixed', so it needs the number of frames in advance",
            expected="a model that can stream for as long as frames arrive",
            fix="export a model with time 'absolute'",
        )


def _refuse_other_things(out: Path) -> None:
    """Raise BundleError unless `out` is free, or a model that this command made and to which nothing was added."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    config = out / CONFIG
    is_ours = config.is_file() and config.read_text(encoding="utf-8", errors="replace").startswith(MARK)
    if not is_ours:
        raise BundleError(
            f"{out} exists but was not made by pvc-export triton, so it was not replaced",
            expected="a new name, or a model of an earlier run",
            fix="choose another --name, or another repository with -o",
        )
    known = {BUNDLE, CONFIG, RUNTIME, VERSION, README}
    strangers = sorted(path.name for path in out.iterdir() if path.name not in known)
    if strangers:
        raise BundleError(
            f"{out} holds other things too, so it was not replaced: {', '.join(strangers[:4])}",
            expected=f"{', '.join(sorted(known))} only",
            cause="a version or a server's cache was added",
            fix="move them, or choose another --name",
        )


def _state_bytes(manifest: Manifest) -> int:
    """Size of one stream's caches. A stream that can re-anchor has two sets: for the current episode and the next."""
    caches = sum(spec.state_bytes(manifest.limits) for spec in manifest.graphs.values())
    try:
        resolve_clock(manifest, "reanchor", None)
    except StreamError:
        return caches
    return 2 * caches


def _page(request: TritonRequest, manifest: Manifest, *, on_gpu: bool) -> str:
    target = load_target(manifest.target)
    package = target.runtime.replace("_", "-")
    if not on_gpu:
        needs = "'onnxruntime>=1.25'"
    elif target.runtime == "ort-cuda":
        needs = "'onnxruntime-gpu>=1.25'"
    else:
        first, beyond = target.builder_versions or ("", "")
        needs = f"'{package}>={first},<{beyond}'" if first else package
    facts: dict[str, Any] = {
        "name": request.name, "target": manifest.target, "needs": needs, "slots": request.slots,
        "idle": f"{request.idle_s:g}", "tokens": request.max_new_tokens, "gpus": " --gpus device=0" if on_gpu else "",
        "kind": "the first GPU" if on_gpu else "the CPU", "state": size_text(_state_bytes(manifest)),
        "all_state": size_text(request.slots * _state_bytes(manifest)), "made": now_utc(),
        "trust": _trust(request, on_gpu=on_gpu, has_engines=bool(manifest.engines)),
    }  # fmt: skip
    return PAGE.read_text(encoding="utf-8").format_map(facts)


def _trust(request: TritonRequest, *, on_gpu: bool, has_engines: bool) -> str:
    """The page's note on engines, which are executable code."""
    if not (on_gpu and has_engines):
        return ""
    state = "It is set" if request.trust_engines else 'It is "false": make the repository again with --trust-engines'
    return (
        "\n- A container counts as another machine than the one that built the engines, so it cannot verify them. With "
        f'`trust_engines` "true" it runs them anyway; use it only for engines that you built yourself. {state}.'
    )
