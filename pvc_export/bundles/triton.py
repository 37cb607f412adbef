"""A model repository of Triton Inference Server around a bundle: its Python backend runs the streams themselves.

REPOSITORY/NAME/  config.pbtxt  1/model.py  bundle/  runtime/  README.md

A server takes a folder with a number for a version, and leaves the others alone.
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
"""Bytes, for the runtime's source and what is written beside it."""

PAGE = Path(__file__).with_name("triton.md")
MARK = "# Made by pvc-export triton."
BUNDLE, CONFIG, RUNTIME, VERSION, README = "bundle", "config.pbtxt", "runtime", "1", "README.md"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
MODEL = '''"""PVC streams behind Triton's Python backend. Made by pvc-export triton; its code is in ../runtime."""

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(FOLDER / "runtime"))

import triton_python_backend_utils as pb_utils  # noqa: E402 only a server has it
from APPS.triton.model import Instance  # noqa: E402


class TritonPythonModel:
    def initialize(self, args):
        self._instance = Instance(FOLDER, args, pb_utils)

    def execute(self, requests):
        return self._instance.execute(requests)

    def finalize(self):
        self._instance.close()
'''
CONFIG_TEXT = """MARK README.md says how it is used.
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
# Each sequence has a slot of the batch from START to END, or until it was idle for so long.
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
"""The runtime takes the first GPU that it sees, so more GPUs are more servers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TritonRequest:
    """What is asked for.

    slots           sequences at once, each with a stream of its own
    idle_s          a sequence that is not used for so long is freed
    max_new_tokens  where a request says nothing
    trust_engines   a container counts as another machine than the one that built them (engines/bundle.py)
    """

    bundle: Path
    repository: Path
    name: str
    slots: int = 8
    idle_s: float = 60.0
    max_new_tokens: int = 64
    trust_engines: bool = False

    def __post_init__(self) -> None:
        """Raises SpecError for a name that cannot be a model's, and for numbers that are too small."""
        if not NAME.fullmatch(self.name):
            raise SpecError(
                f"{self.name!r} cannot be a model's name in a repository",
                expected="letters, digits, '_', '-' and '.', the first a letter or a digit", fix="choose one: --name",
            )  # fmt: skip
        if self.slots < 1 or self.max_new_tokens < 1 or not 1e-3 <= self.idle_s <= YEAR_S:
            raise SpecError(
                f"{self.slots} slots, {self.max_new_tokens} tokens of an answer, idle after {self.idle_s:g} s",
                expected="all above zero, and no more than a year",
            )

    @property
    def out(self) -> Path:
        return self.repository / self.name


@dataclass(frozen=True, kw_only=True, slots=True)
class Repository:
    """What was made. state_bytes: of one stream's caches, at least; on_gpu: whether its instance is a GPU's."""

    folder: Path
    num_bytes: int
    state_bytes: int
    on_gpu: bool


def make_repository(request: TritonRequest, *, console: Console) -> Repository:
    """Write REPOSITORY/NAME whole or not at all, where an older one of ours may be. Other models are left alone.

    Raises BundleError for a bundle that is damaged, was not proven or cannot stream, and for a folder that holds other
    things; BackendUnavailable where nothing can be written.
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
    """And no second name for it: ONNX's checker refuses weights that have one, as they may change under it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)


def config_text(request: TritonRequest, *, on_gpu: bool) -> str:
    """config.pbtxt, as Triton's model_config.proto has it (`make triton` holds it against the published schema)."""
    values = {
        "MARK": MARK, "NAME": json.dumps(request.name), "SLOTS": request.slots,
        "IDLE": round(1e6 * request.idle_s), "TOKENS": request.max_new_tokens,
        "TRUSTED": json.dumps(request.trust_engines), "INSTANCES": ON_GPU if on_gpu else ON_CPU,
    }  # fmt: skip
    return re.sub("|".join(rf"\b{name}\b" for name in values), lambda found: str(values[found[0]]), CONFIG_TEXT)


def _require_streams(folder: Path, manifest: Manifest) -> None:
    """Raise BundleError for a bundle that did not pass its check, or whose streams must know their length ahead."""
    if manifest.parity.get("passed") is not True:
        raise BundleError(
            f"{folder} has not passed its parity check, so no repository is made of it",
            expected="a bundle that is proven",
            fix=f"see what differs: pvc-export check {folder}",
        )
    if manifest.time_mode == "fixed":
        raise BundleError(
            f"{folder} is of a model whose time is 'fixed': it must know ahead how many frames a stream has",
            expected="one that streams for as long as frames come",
            fix="export a model with time 'absolute'",
        )


def _refuse_other_things(out: Path) -> None:
    """Raise BundleError unless `out` is free, or a model that this command made and nobody added to."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    config = out / CONFIG
    is_ours = config.is_file() and config.read_text(encoding="utf-8", errors="replace").startswith(MARK)
    if not is_ours:
        raise BundleError(
            f"{out} exists and is no model that pvc-export triton made, so it is not replaced",
            expected="a new name, or a model of an earlier run",
            fix="choose another --name, or another repository with -o",
        )
    known = {BUNDLE, CONFIG, RUNTIME, VERSION, README}
    strangers = sorted(path.name for path in out.iterdir() if path.name not in known)
    if strangers:
        raise BundleError(
            f"{out} holds other things too, so it is not replaced: {', '.join(strangers[:4])}",
            expected=f"{', '.join(sorted(known))} alone",
            cause="a version or a cache of the server was added",
            fix="move them, or choose another --name",
        )


def _state_bytes(manifest: Manifest) -> int:
    """Of one stream. One that can re-anchor does, and prepares its next episode beside the current one."""
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
    """What the page says of engines, which are executable code."""
    if not (on_gpu and has_engines):
        return ""
    state = "It is set" if request.trust_engines else 'It is "false": make the repository again with --trust-engines'
    return (
        "\n- A container is another machine than the one that built the engines, and cannot verify them. With the "
        f'parameter `trust_engines` "true" it runs them all the same: for engines that you built yourself. {state}.'
    )
