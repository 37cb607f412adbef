"""`-m MODEL` of a plan: any model that an export takes, even before its weights are here. No weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engines.errors import ModelError
from pvc_ref import PVC
from pvc_ref.bundled import SHAPES_FOLDER
from pvc_ref.checkpoint.folder import config_of, skeleton
from pvc_ref.checkpoint.mapping import read_mapping
from pvc_ref.checkpoint.tokenizer import load_tokenizer
from pvc_ref.config import PRESETS
from pvc_ref.prompt import byte_tokenizer

from ..graphs.machine import is_small
from ..graphs.models import BUILT_IN, RANDOM, checkpoint_errors, model_folder


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedModel:
    """A model on `meta`, and the size of its bundle's tokenizer.json, or None if there is no tokenizer yet."""

    name: str
    model: PVC
    tokenizer_bytes: int | None

    @property
    def stays_in_files(self) -> bool:
        """Whether an export leaves the weights in their files, as for a large model folder (graphs/models.py)."""
        return self.name not in BUILT_IN and not is_small(self.model)

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())


def planned_model(name: str, *, mapping: Path | None = None) -> PlannedModel:
    """The model of a preset or of a folder, which need not have weights. Raises ModelError, also for a mapping without
    a folder with weights."""
    folder = SHAPES_FOLDER if name == "shapes" else Path(name)
    has_weights = folder.is_dir() and any(folder.glob("*.safetensors"))
    if mapping is not None and (name in PRESETS or not has_weights):
        raise ModelError(
            f"--mapping maps the names of a checkpoint's tensors, but '{name}' has no tensors here",
            fix="name a folder with *.safetensors, or leave --mapping out",
        )
    if name in PRESETS and name != "shapes":
        tokenizer = byte_tokenizer() if name in RANDOM else None
        size = None if tokenizer is None else len(tokenizer.to_str(pretty=True).encode())
        return PlannedModel(name=name, model=PVC.empty(PRESETS[name]), tokenizer_bytes=size)
    if name != "shapes":
        model_folder(name, or_one_of=PRESETS)
    with checkpoint_errors():
        if not has_weights:
            return PlannedModel(name=name, model=PVC.empty(config_of(folder)), tokenizer_bytes=None)
        model = skeleton(folder, mapping=None if mapping is None else read_mapping(mapping))
        text = load_tokenizer(folder).to_str(pretty=True)
    return PlannedModel(name=name, model=model, tokenizer_bytes=len(text.encode()))
