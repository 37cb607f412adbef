"""Export: from a model to a published bundle, in the steps graphs, engines, manifest, parity check, rename.

Everything is written to a temporary folder next to the output folder and checked there. The folder gets its final name
only if the check passes, so every bundle that exists has matched its reference.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from engines.builder import compute_capabilities, load_runtime
from engines.bundle import TOKENIZER_NAME, graph_path
from engines.clock import Clock
from engines.errors import BackendUnavailable, ModelError, ParityError
from engines.golden.recording import GOLDEN_NAME
from engines.golden.replay import replay
from engines.graph_specs import graph_specs, unfused_graphs
from engines.manifest import FORMAT_VERSION, Calibration, Manifest, hash_file, list_files
from engines.needs import needs_of, require_onnxruntime
from engines.provenance import sign_engines
from engines.spec import Fusable, GraphSpec, Part, Precision, Quantization, State, StreamLimits, is_calibrated
from engines.target import Target
from engines.wide_sums import require_wide_sums
from pvc_ref import PVC, PVCConfig

from ..graphs.clock_table import NAME as CLOCK
from ..graphs.clock_table import with_num_times
from ..graphs.facts import model_facts
from ..graphs.hollow import hollow
from ..graphs.lean import export_lean
from ..graphs.machine import is_small
from ..graphs.models import LoadedModel
from ..graphs.modules import graph_module, model_shape
from ..graphs.onnx_file import EXPORTER, export_graph
from ..graphs.operators import check_operators
from ..graphs.precision import TORCH_DTYPE, cast_model, kept_wide
from ..graphs.quantize import Quantizer, prepared
from ..parity.bfloat16_on_cpu import open_on_cpu
from ..parity.check import check_bundle, explain
from ..parity.golden import record_golden
from ..parity.report import PARITY_NAME, ParityReport
from ..report import PAGE_NAME, ReportInput, render
from ..terminal import interrupt
from ..terminal.console import Console, size_text
from ..terminal.facts import installed, now_utc
from ..terminal.quantization import calibration_text
from .calibrate import CalibrationRequest, calibrate
from .engines import asked_of, build_engines
from .publish import require_room, staging
from .resume import Resume

NUM_QUESTIONS = 200
"""Held-out questions for a model with known true answers; `check` asks a thousand."""
PACKAGES = (*EXPORTER, "onnxruntime", "numpy", "tokenizers", "tensorrt", "tensorrt_rtx")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportRequest:
    """The bundle to make: one value for every flag of `trt` and `onnx`.

    islands       modules that stay float32 in a narrower bundle (precision.py)
    quantization  parts whose weights become codes (quantize.py)
    int8_states   parts of a stream's state that are stored as int8 (eight_bit_rows.py)
    calibration   clips to calibrate on, for targets that need the scales of matmul inputs in advance
    golden        whether to add a golden recording, with which a device checks itself (engines/golden)
    unfused       attention that compilers must not fuse (graphs/unfused.py)
    clock         what its streams can do at the trained number of frames. 'run-on' streams can run on or re-anchor;
                  'reanchor' streams only re-anchor; their clock is a table of times, which is smaller (clock_table.py)
    """

    out: Path
    target: Target
    precision: Precision
    limits: StreamLimits = field(default_factory=StreamLimits)
    islands: tuple[str, ...] = ()
    clock: Clock = "run-on"
    quantization: Mapping[Part, Quantization] = field(default_factory=dict)
    int8_states: tuple[State, ...] = ()
    calibration: CalibrationRequest = CalibrationRequest()
    golden: bool = False
    unfused: tuple[Fusable, ...] = ()

    def graph_limits(self, config: PVCConfig) -> StreamLimits:
        """The limits that the graphs are made for, with the number of table rows if the clock is a table."""
        return with_num_times(self.limits, config) if self.clock == "reanchor" else self.limits

    def graph_specs(self, config: PVCConfig) -> dict[str, GraphSpec]:
        """Graph name -> spec."""
        shape, limits, target = model_shape(config), self.graph_limits(config), self.target
        return graph_specs(
            shape, limits, self.precision, target.spelling, cache_update=target.update_of(self.int8_states),
            quantization=self.quantization, int8_states=self.int8_states, unfused=unfused_graphs(shape, self.unfused),
        )  # fmt: skip


def export(loaded: LoadedModel, request: ExportRequest, *, console: Console | None = None) -> ParityReport:
    """Make, check and publish a bundle at request.out, replacing an older bundle there.

    A bundle that fails its check is not published: the report has `passed` False and names the culprit.
    Raises ModelError for a model that cannot be exported this way, BuildError, BackendUnavailable; then, too,
    request.out stays unchanged.
    """
    console = console or Console(quiet=True)
    require_exportable(loaded.config, request)
    request.calibration.require_files()
    _require_packages(loaded.config, request)
    require_room(request.out, num_weight_bytes(loaded.model, request))
    with suppress(_NotPublished), staging(request.out) as folder:
        manifest = write_graphs(loaded, request, folder, console, resume=_resume(loaded, request, folder.parent))
        with console.stage("check against the reference") as (stage, report):
            parity = check_bundle(folder, loaded, num_questions=NUM_QUESTIONS, scratch=folder.parent, progress=report)
            stage.note = parity.summary()
        if not parity.passed:
            parity = explain(parity, folder, loaded, console, scratch=folder.parent)
            raise _NotPublished
        if request.golden:
            _record(loaded, manifest, folder, console)
        interrupt.check()
        manifest = replace(manifest, parity=parity.receipt())
        (folder / PARITY_NAME).write_text(json.dumps(parity.to_json(), indent=1) + "\n", encoding="utf-8")
        page = render(ReportInput(parity=parity, manifest=manifest, bundle=str(request.out)))
        (folder / PAGE_NAME).write_text(page, encoding="utf-8")
        names = (PARITY_NAME, PAGE_NAME, *([GOLDEN_NAME] if request.golden else []))
        files = manifest.files | {name: hash_file(folder / name) for name in names}
        replace(manifest, files=files).save(folder)
    return parity


def _record(loaded: LoadedModel, manifest: Manifest, folder: Path, console: Console) -> None:
    """Record the golden values. The ONNX files must reproduce them here before a device is checked against them."""
    with console.stage("record golden values") as (stage, report):
        golden = record_golden(loaded, manifest, lambda x: report(0.8 * x))
        with open_on_cpu(folder) as bundle:
            found = replay(golden, bundle.sessions)
        if not found.passed:
            raise ParityError(
                f"the graphs do not reproduce their golden recording: {found.summary()}. Nothing was published",
                expected="differences within the limits of the check, which the graphs passed",
                fix="report this as an issue, with the command line",
            )
        golden.save(folder / GOLDEN_NAME)
        stage.note = f"{size_text((folder / GOLDEN_NAME).stat().st_size)}, {len(found.compared)} outputs"


class _NotPublished(Exception):
    """Ends the staging of a bundle that failed its check, so that it is removed. Never leaves `export`."""


def require_exportable(config: PVCConfig, request: ExportRequest) -> None:
    """Raise ModelError for requests that this model cannot meet."""
    limits = request.limits
    if config.time_mode == "relative":
        raise ModelError(
            "this model's time mode is 'relative' (t / T with T growing), so no streaming graph of it can be exact",
            expected="time mode 'absolute' or 'fixed'",
            cause="every new frame changes the keys of all earlier ones, so no temporal cache stays valid",
            fix="run it clip by clip with the reference: PVC.encode_clip",
        )
    if request.clock == "reanchor" and not can_reanchor(config):
        raise ModelError(
            f"--clock reanchor, but this model's time mode is '{config.time_mode}' and it was trained on "
            f"{config.trained_frames} frames",
            expected="time mode 'absolute' and at least 2 frames: a replay must leave a time for a new frame",
            fix="export with --clock run-on",
        )
    if limits.context > config.llm.max_positions:
        raise ModelError(
            f"--context {limits.context} exceeds the model's max_positions {config.llm.max_positions}",
            fix=f"choose --context {config.llm.max_positions // limits.bucket * limits.bucket} or less",
        )


def can_reanchor(config: PVCConfig) -> bool:
    """Whether streams of this model can restart with their last frames (engines/clock.py)."""
    return config.time_mode == "absolute" and config.trained_frames >= 2


def _require_packages(config: PVCConfig, request: ExportRequest) -> None:
    """Raise BackendUnavailable if this machine lacks something, before minutes of work."""
    if request.target.builder is not None:
        load_runtime(request.target)
        compute_capabilities(request.target)
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise BackendUnavailable(
            f"an export checks its graphs with the package onnxruntime, which cannot be imported here: {error}. "
            "Nothing was exported",
            fix="pip install -e '.[ort]'",
        ) from error
    require_onnxruntime("an export, which is checked here", request.graph_specs(config).values())
    if any(how.wide_codes for how in request.quantization.values()):
        require_wide_sums()


def num_weight_bytes(model: PVC, request: ExportRequest) -> int:
    """Size of the weights in this request's graphs and engines, in bytes. A tied head counts twice; a clock that is a
    table counts as zero. Raises ModelError for an invalid island."""
    wide, narrow = kept_wide(model, request.islands), TORCH_DTYPE[request.precision].itemsize
    num_bytes = sum(
        weight.numel() * (4 if id(weight) in wide else narrow)
        for name, weight in model.named_parameters(remove_duplicate=False)
        if request.clock == "run-on" or f".{CLOCK}." not in name
    )
    return num_bytes * (1 if request.target.builder is None else 2)


def _resume(loaded: LoadedModel, request: ExportRequest, holder: Path) -> Resume | None:
    """Resume data for a large model; a small model's graphs are written faster than they are looked up."""
    if is_small(loaded.model):
        return None
    facts = {
        "weights": loaded.source.weights_sha256,
        "precision": request.precision,
        "islands": request.islands,
        "quantization": {part: asdict(how) for part, how in request.quantization.items()},
        "int8_states": request.int8_states,
        "calibration": [request.calibration.method, *(hash_file(path).sha256 for path in request.calibration.clips)],
        "spelling": request.target.spelling,
        "versions": versions(),
    }
    return Resume(holder, facts)


def write_graphs(
    loaded: LoadedModel, request: ExportRequest, folder: Path, console: Console, *, resume: Resume | None = None
) -> Manifest:
    """Write graphs, tokenizer and engines into `folder`, and a manifest without the check's result.

    resume  finished graphs of an interrupted export
    """
    specs, spelling = request.graph_specs(loaded.config), request.target.spelling
    quantizer = Quantizer.of(loaded.model, request.quantization, request.precision, request.islands)
    calibration = _found_ahead(loaded, quantizer, request, console)
    quantizer = quantizer.with_calibration(calibration)
    lean = is_lean(loaded.model, request)
    model = cast_for_graphs(loaded.model, request, calibration)
    (folder / "graphs").mkdir()
    for index, (name, spec) in enumerate(specs.items(), start=1):
        path = folder / graph_path(name)
        with console.stage(f"export {name} ({index}/{len(specs)})") as (stage, report):
            taken = resume is not None and resume.take_over(name, spec, folder)
            if not taken:
                module = graph_module(model, spec, spelling)
                if lean:
                    export_lean(module, spec, path, quantizer.stored, quantizer=quantizer, progress=report)
                else:
                    export_graph(module, spec, path)
                if resume is not None:
                    resume.finish(name, spec, folder)
            check_operators(path, request.target)
            size = size_text(sum(part.stat().st_size for part in path.parent.glob(f"{name}.onnx*")))
            stage.note = f"{size}, from an interrupted export" if taken else size
    asked = {name: asked_of(model, spec, request.islands) for name, spec in specs.items()}
    # Not tokenizer.save: on a full disk it raises a bare Exception instead of an OSError.
    (folder / TOKENIZER_NAME).write_text(loaded.tokenizer.to_str(pretty=True), encoding="utf-8")
    known = {} if resume is None else resume.hashes()
    files = {name: known.get(name) or hash_file(folder / name) for name in sorted(list_files(folder))}
    engines = build_engines(asked, files, request.target, folder, console)
    files |= {entry.path: hash_file(folder / entry.path) for entry in engines.values()}
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        created_utc=now_utc(),
        **model_facts(loaded),
        limits=request.graph_limits(loaded.config),
        target=request.target.name,
        precision=request.precision,
        islands=request.islands,
        graphs=specs,
        engines=engines,
        versions=versions(),
        files=files,
        parity={},
        quantization=dict(request.quantization),
        calibration=calibration,
        int8_states=request.int8_states,
        needs=needs_of(specs.values()),
        unfused={name: spec.unfused for name, spec in specs.items() if spec.unfused},
    )
    manifest = sign_engines(manifest)
    manifest.save(folder)
    return manifest


def is_lean(model: PVC, request: ExportRequest) -> bool:
    """Whether graphs are traced without weights: memory has no space for a second copy of a large model, and codes are
    written while the weights are read."""
    return model.stored is not None or not is_small(model) or bool(request.quantization)


def cast_for_graphs(model: PVC, request: ExportRequest, calibration: Calibration | None) -> PVC:
    """The model from which the graphs are traced."""
    source = hollow(model, keep_clock=request.clock == "reanchor") if is_lean(model, request) else model
    source = prepared(source, request.quantization, calibration, request.int8_states)
    return cast_model(source, request.precision, request.islands)


def _found_ahead(
    loaded: LoadedModel, quantizer: Quantizer, request: ExportRequest, console: Console
) -> Calibration | None:
    if not is_calibrated(request.quantization):
        return None
    with console.stage("calibrate") as (stage, report):
        found = calibrate(loaded, quantizer, request.calibration, request.graph_limits(loaded.config), report)
        stage.note = calibration_text(found)
    return found


def versions() -> dict[str, str]:
    """Versions of Python and of every package that affects the bundle."""
    own = {"python": platform.python_version(), "pvc-streaming-export": "source"}
    return own | installed(("pvc-streaming-export", *PACKAGES))
