"""manifest.json: a complete description of a bundle, for the runtime and for bug reports."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from .errors import BundleError, PVCError
from .graph_specs import attention_of, graph_specs
from .prompt import PromptSpec
from .spec import (
    CalibrationMethod,
    Fusable,
    GraphSpec,
    ModelShape,
    Part,
    Precision,
    Quantization,
    Rounding,
    State,
    StreamLimits,
    is_calibrated,
)
from .target import load_target

FORMAT_VERSION = 7
MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """SHA-256 and size of one file of the bundle. The hash detects damage; it does not prove who wrote the file."""

    sha256: str
    num_bytes: int


Visible = Literal["all", "kernels", "nothing"]
"""Contents of the list of an engine's layers: kernels and their weights, only kernels, or a whole subgraph as one node;
then num_layers is 0 and nothing is counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineEntry:
    """One serialized engine: valid for exactly this runtime version and these GPUs.

    built_on    mark of the machine that built it (engines/machine.py): code from elsewhere is not loaded by default
    built_from  fingerprint of the graph it was built from (`fingerprint`); with another graph it is stale
    signature   the machine's signature of this build (engines/provenance.py); '' in older manifests
    visible     how much of it the compiler shows, and was therefore checked
    """

    path: str
    runtime: str
    runtime_version: str
    compute_capabilities: tuple[str, ...]
    num_layers: int
    fused_attention: dict[str, int]
    build_s: float
    built_on: str
    built_from: str
    signature: str = ""
    visible: Visible = "all"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSource:
    """Source of the weights: a preset drawn from a seed, or a checkpoint folder.

    random_weights  the model was never trained; its answers are meaningless
    weights_sha256  fingerprint of all weights in float32, so that a check can recognise its reference
    mapping         tensor names in the folder's files -> our names, where they differ
    """

    name: str
    random_weights: bool
    seed: int | None
    weights_sha256: str
    config: dict[str, Any]
    mapping: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Values found beforehand, by running the model.

    method  how a scale was chosen;  num_frames  frames it was run on
    clips   names of the files; empty if the program used its own frames
    scales  constant scales of matmul inputs, by the weight's name in the model; exact in the graphs' dtype
            (graphs/calibration.py)
    smoothing  powers of two by which channels of the LLM are reduced, one letter each, by the name of the module that
               produces them (graphs/smoothing.py)
    """

    method: CalibrationMethod
    clips: tuple[str, ...]
    num_frames: int
    scales: dict[str, float] = field(default_factory=dict)
    smoothing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSpec:
    """Encoding of an image: as a static video of `num_repeats` frames (PVC, images as static videos).

    layout         tile_streams: each tile is a separate stream; tiles_in_time: tiles follow one another in one stream
    max_tiles      most tiles per image, unless the caller sets another number; 1 leaves the image whole
    use_thumbnail  if there are several tiles, the whole image follows them; also true for older manifests
    """

    num_repeats: int
    layout: Literal["tile_streams", "tiles_in_time"]
    max_tiles: int
    use_thumbnail: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The content of manifest.json. `files` lists every other file of the bundle.

    islands       modules that are float32 in a narrower bundle, in addition to those that always are
    quantization  parts whose weights are quantised
    int8_states   parts of a stream's state that are int8
    calibration   values for these that were found by running the model
    needs         package -> first version that runs its ONNX files (needs.py); empty in older manifests
    unfused       graph -> attention in it that no compiler may fuse
    """

    format_version: int
    created_utc: str
    model: ModelSource
    shape: ModelShape
    limits: StreamLimits
    target: str
    precision: Precision
    islands: tuple[str, ...]
    time_mode: str
    trained_frames: int
    prompt: PromptSpec
    images: ImageSpec
    graphs: dict[str, GraphSpec]
    engines: dict[str, EngineEntry]
    versions: dict[str, str]
    files: dict[str, FileEntry]
    parity: dict[str, Any]
    quantization: dict[Part, Quantization] = field(default_factory=dict)
    calibration: Calibration | None = None
    int8_states: tuple[State, ...] = ()
    needs: dict[str, str] = field(default_factory=dict)
    unfused: dict[str, tuple[Fusable, ...]] = field(default_factory=dict)

    @property
    def has_codes(self) -> bool:
        """Whether it differs from its source model, because parts are quantised."""
        return bool(self.quantization or self.int8_states)

    @property
    def rounding(self) -> Rounding:
        """The coarsest rounding: of its precision, its matmul inputs or a stream's state."""
        is_coarse = self.int8_states or any(how.rounds_inputs for how in self.quantization.values())
        return "int8" if is_coarse else self.precision

    def specs(self, unfused: Mapping[str, tuple[Fusable, ...]]) -> dict[str, GraphSpec]:
        """The graphs of this bundle with the given attention unfused."""
        target = load_target(self.target)
        return graph_specs(
            self.shape, self.limits, self.precision, target.spelling, cache_update=target.update_of(self.int8_states),
            quantization=self.quantization, int8_states=self.int8_states, unfused=unfused,
        )  # fmt: skip

    def save(self, folder: Path) -> None:
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False)
        (folder / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")

    @staticmethod
    def load(folder: Path) -> Manifest:
        """Read a bundle's manifest. Raises BundleError if there is none, or if it has another format."""
        path = folder / MANIFEST_NAME
        if not folder.is_dir():
            raise BundleError(
                f"{folder} is not a folder",
                expected="a bundle",
                fix=f"make one: pvc-export trt -m tiny --fp16 -o {folder}",
            )
        if not path.is_file():
            raise BundleError(
                f"{folder} has no {MANIFEST_NAME}, so it is not a bundle", fix="name a folder made by pvc-export"
            )
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            found = data.get("format_version")
        except (UnicodeDecodeError, json.JSONDecodeError, AttributeError) as error:
            raise BundleError(
                f"{path} is not valid JSON: {error}",
                cause="it was truncated or edited",
                fix=f"copy the bundle again, or export it again: pvc-export trt -o {folder}",
            ) from error
        if found != FORMAT_VERSION:
            raise BundleError(
                f"{path} has format version {found}",
                expected=f"{FORMAT_VERSION}, which this program reads",
                cause="it was made by another version of pvc-export",
                fix=f"export the bundle again with this one: pvc-export trt -o {folder}",
            )
        try:
            manifest = _from_json(data)
            manifest.check()
        except (KeyError, TypeError, AttributeError, ValueError, PVCError) as error:
            said, expected = (error.what, error.expected) if isinstance(error, PVCError) else (repr(error), "")
            raise BundleError(
                f"{path} has a missing or invalid field: {said}",
                expected=expected,
                cause="it was edited, or written by another version of pvc-export",
                fix=f"export the bundle again: pvc-export trt -o {folder}",
            ) from error
        return manifest

    def check(self) -> None:
        """Raise BundleError for a field that is invalid or contradicts another, or whatever error that causes."""
        if self.time_mode not in ("absolute", "fixed"):
            raise BundleError(f"time_mode is {self.time_mode!r}", expected="'absolute' or 'fixed'")
        if not isinstance(self.model.seed, int | None) or not isinstance(self.parity, dict):
            raise BundleError(
                f"model.seed is {self.model.seed!r} and parity {self.parity!r}", expected="a number and a JSON object"
            )
        known = attention_of(self.shape)
        if wrong_graphs := [name for name, kinds in self.unfused.items() if not set(kinds) <= set(known.get(name, ()))]:
            raise BundleError(f"unfused has {self.unfused!r}", expected=f"only attention that '{wrong_graphs[0]}' has")
        if self.graphs != self.specs(self.unfused):
            raise BundleError("the graphs do not match its shape, limits, precision, quantization and target")
        if wrong := set(self.int8_states) - set(get_args(State)):
            raise BundleError(f"int8_states has {min(wrong)!r}", expected=f"only {', '.join(get_args(State))}")
        if not all(isinstance(first, str) and first[:1].isdigit() for first in self.needs.values()):
            raise BundleError(f"needs is {self.needs!r}", expected="a version for each package")
        if not all(isinstance(name, str) and name for name in self.islands):
            raise BundleError(f"islands is {self.islands!r}", expected="names of modules")
        if (self.calibration is not None) != is_calibrated(self.quantization):
            raise BundleError("the manifest has a calibration but no matmuls that need one, or the reverse")
        if self.calibration is not None and not all(0 < x < math.inf for x in self.calibration.scales.values()):
            raise BundleError("a scale of its calibration is not a finite number above zero")
        images = self.images
        if min(images.num_repeats, images.max_tiles) < 1 or images.layout not in ("tile_streams", "tiles_in_time"):
            raise BundleError(
                f"images is {images!r}",
                expected="num_repeats and max_tiles at least 1, layout tile_streams or tiles_in_time",
            )
        if not isinstance(images.use_thumbnail, bool):
            raise BundleError(f"images is {images!r}", expected="use_thumbnail true or false")
        self.prompt.before_frame(1)
        if not self.prompt.image_tag or not self.prompt.stop_tokens:
            raise BundleError(f"prompt is {self.prompt!r}", expected="an image tag and a token that ends an answer")
        self.prompt.around_images("", 2)


def _from_json(data: dict[str, Any]) -> Manifest:
    engines = {
        name: EngineEntry(**{**entry, "compute_capabilities": tuple(entry["compute_capabilities"])})
        for name, entry in data["engines"].items()
    }
    return Manifest(
        **{
            **data,
            "model": ModelSource(**data["model"]),
            "shape": ModelShape(**data["shape"]),
            "limits": StreamLimits(**data["limits"]),
            "islands": tuple(data["islands"]),
            "int8_states": tuple(data.get("int8_states", ())),
            "unfused": {name: tuple(kinds) for name, kinds in data.get("unfused", {}).items()},
            "prompt": PromptSpec(**{**data["prompt"], "stop_tokens": tuple(data["prompt"]["stop_tokens"])}),
            "images": ImageSpec(**data["images"]),
            "graphs": {name: GraphSpec.from_json(spec) for name, spec in data["graphs"].items()},
            "engines": engines,
            "quantization": {part: Quantization(**how) for part, how in data.get("quantization", {}).items()},
            "calibration": Calibration(**{**found, "clips": tuple(found["clips"])})
            if (found := data.get("calibration"))
            else None,
            "files": {name: FileEntry(**entry) for name, entry in data["files"].items()},
        }
    )


def listed_files(folder: Path) -> set[str] | None:
    """The files listed in a bundle's manifest, whatever its format version; None if this is not one of our bundles."""
    try:
        data = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(data, dict) and isinstance(data.get("format_version"), int) and "graphs" in data
    return set(data["files"]) if known and isinstance(data.get("files"), dict) else None


def hash_file(path: Path) -> FileEntry:
    """SHA-256 and size, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return FileEntry(sha256=digest.hexdigest(), num_bytes=path.stat().st_size)


def fingerprint(files: Mapping[str, FileEntry], graph: str) -> str:
    """One SHA-256 over a graph's file and the weights next to it; `graph` is the file's path in the bundle."""
    parts = [f"{name} {files[name].sha256}" for name in (graph, f"{graph}.data") if name in files]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def hash_folder(folder: Path) -> dict[str, FileEntry]:
    """Every file below `folder` except the manifest, by its path inside it."""
    return {name: hash_file(folder / name) for name in sorted(list_files(folder))}


def list_files(folder: Path) -> set[str]:
    """Paths inside `folder` of every file except the manifest."""
    paths = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return paths - {MANIFEST_NAME}
