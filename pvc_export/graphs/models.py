"""`-m MODEL`: the bundled model, a preset with random weights, or a checkpoint folder."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

import pvc_ref
from engines.errors import ModelError
from engines.manifest import Manifest, ModelSource
from engines.prompt import PromptSpec
from engines.terminal import did_you_mean
from pvc_ref import PVC, PVCConfig
from pvc_ref.bundled import SHAPES_FOLDER
from pvc_ref.checkpoint.files import HUB_NAME
from pvc_ref.checkpoint.folder import config_of
from pvc_ref.checkpoint.mapping import mapping_lines, read_mapping
from pvc_ref.checkpoint.tokenizer import load_tokenizer
from pvc_ref.prompt import (
    IMAGE_CONTEXT,
    IMAGE_END,
    IMAGE_START,
    IMAGE_TAG,
    STOP_TOKEN,
    byte_tokenizer,
    conversation_start,
    image_prompt,
    next_turn,
    turn_end,
    video_prompt,
)

from .machine import is_small

RANDOM = ("tiny", "vision-8b")
"""Presets that can be made from a seed. The weights of the others come from a checkpoint folder."""
BUILT_IN = ("shapes", *RANDOM)
"""Names that -m accepts besides folders: the bundled trained model, and the random ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """A reference model in float32, its tokenizer, and where both came from."""

    model: PVC
    tokenizer: Tokenizer
    source: ModelSource

    @property
    def config(self) -> PVCConfig:
        return self.model.config

    def renamed(self) -> Iterator[str]:
        """Yield a line for each tensor whose name in the checkpoint differs from ours: `its name -> ours`."""
        yield from mapping_lines(self.model.renamed, self.config.vision)

    def token_id(self, token: str) -> int:
        """Return the id of a special token. Raises ModelError if the tokenizer does not have it."""
        token_id = self.tokenizer.token_to_id(token)
        if token_id is None:
            raise ModelError(
                f"the tokenizer of '{self.source.name}' has no token {token!r}",
                cause="the tokenizer belongs to another model",
                fix="fetch the tokenizer that was released with the checkpoint",
            )
        return token_id

    def prompt_ids(self, *, num_frames: int, question: str) -> torch.Tensor:
        """Tokenize the whole conversation about a video: int64 (L,)."""
        return self._ids(video_prompt(self.config, num_frames=num_frames, question=question))

    def image_prompt_ids(self, *, num_tiles: Sequence[int], question: str) -> torch.Tensor:
        """Tokenize the conversation about images, with num_tiles tiles each."""
        return self._ids(image_prompt(self.config, num_tiles=num_tiles, question=question))

    def next_turn_ids(self, *, num_frames: int, first_frame: int, question: str) -> torch.Tensor:
        """Tokenize the text after a kept answer: the frames since then, numbered from first_frame, and a question."""
        return self._ids(next_turn(self.config, num_frames=num_frames, first_frame=first_frame, question=question))

    def _ids(self, prompt: str) -> torch.Tensor:
        return torch.tensor(self.tokenizer.encode(prompt, add_special_tokens=False).ids)

    def prompt_embeds(self, ids: torch.Tensor, frame_embeds: torch.Tensor) -> torch.Tensor:
        """Token ids (L,) and frame_embeds (T, M, E) -> (1, L, E)."""
        context_id = self.token_id(IMAGE_CONTEXT)
        return self.model.embed_prompt(ids, frame_embeds.flatten(0, 1), context_id=context_id)


def load_model(
    name: str,
    *,
    seed: int = 0,
    mapping: Path | None = None,
    known: Mapping[str, str] | None = None,
    on_disk: bool = False,
) -> LoadedModel:
    """Load a built-in model or a checkpoint folder. Raises ModelError that names the nearest built-in, or the fault.

    mapping  a JSON file with the roles of the folder's tensors (pvc_ref/checkpoint/mapping.py)
    known    such a mapping that was already read
    on_disk  leave a folder's matrices in its files (pvc_ref.load), unless the model is small
    """
    if mapping is not None and name in BUILT_IN:
        raise ModelError(
            f"--mapping is for the tensors of a folder, but '{name}' is a built-in model",
            fix="pass the folder with -m, or omit --mapping",
        )
    if name in RANDOM:
        model = PVC.random(PVCConfig.preset(name), seed=seed)
        return loaded_model(model, byte_tokenizer(), name=name)
    folder = SHAPES_FOLDER if name in BUILT_IN else model_folder(name, or_one_of=BUILT_IN)
    with checkpoint_errors():
        names = known if mapping is None else read_mapping(mapping)
        on_disk = on_disk and not is_small(PVC.empty(config_of(folder)))
        model = pvc_ref.load(folder, mapping=names, on_disk=on_disk)
        tokenizer = load_tokenizer(folder)
        return loaded_model(model, tokenizer, name=name if name in BUILT_IN else str(folder.resolve()))


def model_folder(name: str, *, or_one_of: Collection[str]) -> Path:
    """Return the folder called `name`. Its loader reports missing files, or a hub name that is not a local folder.

    Raises ModelError for any other name.
    """
    folder = Path(name)
    if not folder.is_dir() and not HUB_NAME.fullmatch(name):
        raise ModelError(
            f"there is no model '{name}'",
            expected=f"a built-in name ({', '.join(or_one_of)}), or a folder with config.json and *.safetensors",
            fix=did_you_mean(name, or_one_of, cutoff=0.5) or "pass one of these with -m",
        )
    return folder


def load_weights(folder: Path, mapping: Mapping[str, str | None] | None = None) -> PVC:
    """Load the model of a checkpoint folder, in float32, without a tokenizer. Raises ModelError."""
    with checkpoint_errors():
        return pvc_ref.load(folder, mapping=mapping)


@contextmanager
def checkpoint_errors() -> Iterator[None]:
    """Convert the reference's checkpoint errors to the runtime's ModelError: neither package imports the other."""
    try:
        yield
    except pvc_ref.CheckpointError as error:
        raise ModelError(error.what, expected=error.expected, cause=error.cause, fix=error.fix) from error


def loaded_model(model: PVC, tokenizer: Tokenizer, *, name: str) -> LoadedModel:
    """Combine a model with its tokenizer and source.

    Raises ModelError if the tokenizer does not fit: too many tokens, or special tokens of the template missing.
    """
    if tokenizer.get_vocab_size() > model.config.llm.vocab_size:
        raise ModelError(
            f"the tokenizer of '{name}' has {tokenizer.get_vocab_size()} tokens, but the model's vocabulary has "
            f"{model.config.llm.vocab_size}",
            cause="the tokenizer belongs to another model",
            fix="fetch the tokenizer that was released with the checkpoint",
        )
    source = ModelSource(
        name=name,
        random_weights=model.random_seed is not None,
        seed=model.random_seed,
        weights_sha256=fingerprint(model),
        config=asdict(model.config),
        mapping=dict(model.renamed),
    )
    loaded = LoadedModel(model=model, tokenizer=tokenizer, source=source)
    for token in (IMAGE_START, IMAGE_END, IMAGE_CONTEXT, "<|im_start|>", STOP_TOKEN):
        loaded.token_id(token)
    return loaded


def fingerprint(model: PVC) -> str:
    """SHA-256 over every parameter's name, shape and float32 value, in order of names."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(model.weight(name).to(torch.float32).contiguous().numpy().data)
    return digest.hexdigest()


def prompt_spec(config: PVCConfig) -> PromptSpec:
    """Return the strings for engines/prompt.py. A test checks that their ids equal those of pvc_ref/prompt.py."""
    user, end = "<|im_start|>user\n", turn_end(config)
    return PromptSpec(
        start=conversation_start(config) + user,
        frame_prefix="Frame{index}: ",
        image_prefix="Image-{index}: ",
        image_tag=IMAGE_TAG,
        image_start=IMAGE_START,
        image_end=IMAGE_END,
        after_frame="\n",
        ask_suffix=f"{end}<|im_start|>assistant\n",
        next_turn=end + user,
        stop_tokens=(STOP_TOKEN,),
    )


def load_reference(
    manifest: Manifest, name: str | None = None, mapping: Path | None = None, *, on_disk: bool = False
) -> LoadedModel:
    """Load the model from which a bundle was made, or the one called `name`. Raises ModelError if its weights differ.

    Without a mapping file, the checkpoint is read with the mapping of the export. `on_disk` is as in load_model.
    """
    source = manifest.model
    known = source.mapping if mapping is None and name is None else None
    loaded = load_model(
        name or source.name, seed=source.seed or 0, mapping=mapping, known=known or None, on_disk=on_disk
    )
    require_same_weights(manifest, loaded)
    return loaded


def require_same_weights(manifest: Manifest, loaded: LoadedModel) -> None:
    """Raise ModelError unless `loaded` is the model from which the bundle was made."""
    if loaded.source.weights_sha256 != manifest.model.weights_sha256:
        raise ModelError(
            f"the weights of the reference '{loaded.source.name}' have the hash {loaded.source.weights_sha256[:12]}",
            expected=f"{manifest.model.weights_sha256[:12]}, that of '{manifest.model.name}', from which the bundle "
            "was made",
            fix="pass the original model with -m, or export the bundle again",
        )
