"""Checkpoint folders in the Hugging Face layout: config.json, *.safetensors with their index, tokenizer.json.

Nothing is guessed: loading is strict about the name, shape and dtype of every tensor (fit.py), and pickle files are
never opened. Related modules: tensor_names.py (names of the tensors), detect.py (roles of tensors with other names),
config_json.py (contents of config.json), files.py (missing files, dangling links and git-lfs pointers).
"""

from __future__ import annotations

import json
import math
import shutil
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..compressor import PoolCompressor, pooling_matrix
from ..config import LLMConfig, PVCConfig
from ..errors import CheckpointError
from ..model import PVC, stored_matrices
from .config_json import config_from_json, config_to_json
from .config_keys import CONFIG_FILE
from .detect import Detection, added, detect, lacks_count, require_found, with_count
from .files import BROKEN, FETCH_AGAIN, INDEX_FILE, TOKENIZER_FILE, WEIGHTS_FILE, check_folder, listing, read_json
from .fit import check_names, check_tensors, harmless_names
from .mapping import apply_mapping
from .stored import Shard, StoredWeights, is_finite, not_finite, read_tensor, split
from .tensor_names import CheckpointTensor, checkpoint_tensors, pack_qkv

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MIXED, FETCH_TOGETHER = "the shards come from different checkpoints", "fetch the index and the shards together"


def load(
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    mapping: Mapping[str, str | None] | None = None,
    on_disk: bool = False,
) -> PVC:
    """Load the model of a checkpoint folder, every parameter in `dtype`, in eval mode. Raises CheckpointError.

    mapping  names in the files -> roles (mapping.py). Without one, the roles of unknown names are detected, and
             OpenNamesError is raised if any remain ambiguous
    on_disk  leave the matrices of linear layers and embeddings in the files, as parameters on `meta`. PVC.weight reads
             one and checks that it is finite. The files must stay in place
    Peak memory is the model plus one tensor; without on_disk, the files are not used afterwards.
    """
    with ExitStack() as stack:
        model, tensors, sources = _open(Path(folder), mapping, stack)
        pieces = {tensor.name: sources[tensor.name].pieces(tensor.name) for tensor in tensors}
    config = model.config
    left = stored_matrices(model) if on_disk else frozenset()
    broken: list[str] = []
    for tensor in tensors:
        if left.issuperset(tensor.parameters):
            continue
        value = read_tensor(pieces[tensor.name])
        if not is_finite(value):
            broken.append(tensor.name)
        for name, part in zip(tensor.parameters, split(tensor, value.to(dtype), config.llm), strict=True):
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, nn.Parameter(part))
    if broken:
        raise not_finite(Path(folder), broken)
    if on_disk:
        places = {name: (tensor, pieces[tensor.name]) for tensor in tensors for name in tensor.parameters}
        if config.llm.tie_embeddings:
            places["llm.lm_head.weight"] = places["llm.embed_tokens.weight"]
        model.stored = StoredWeights(Path(folder), places, config.llm, dtype)
    _fill_the_rest(model)
    empty = [name for name, value in (*model.named_parameters(), *model.named_buffers()) if value.is_meta]
    assert set(empty) == left, f"never filled: {set(empty) ^ left}"
    return model.eval()


def _fill_the_rest(model: PVC) -> None:
    """Set what no file stores: a tied head, and the matrix of a pooling compressor."""
    config = model.config
    if config.llm.tie_embeddings:
        model.llm.lm_head.weight = model.llm.embed_tokens.weight
    if isinstance(model.compressor, PoolCompressor):
        rows, columns = config.compressor.token_grid
        model.compressor.weights = pooling_matrix(config.vision.grid_size, rows=rows, columns=columns)


def skeleton(folder: str | Path, *, mapping: Mapping[str, str | None] | None = None) -> PVC:
    """The model that `load` would fill, on `meta`. Raises the same errors but reads almost no weights."""
    with ExitStack() as stack:
        return _open(Path(folder), mapping, stack)[0]


def config_of(folder: str | Path) -> PVCConfig:
    """Read the configuration of a folder that may have no weights yet.

    Raises CheckpointError, also if num_temporal_layers can only be counted from the weights and there are none.
    """
    return _read_config(Path(folder))[0]


def detect_names(folder: str | Path) -> Detection:
    """Find the roles that `load` gives to unknown names. Reads no weight. Raises CheckpointError for other faults."""
    folder = Path(folder)
    config, _ = _read_config(folder)
    tensors = checkpoint_tensors(PVC.empty(config))
    with ExitStack() as stack:
        return _detect(folder, tensors, _open_shards(folder, stack), config.llm)


def save(
    model: PVC,
    folder: str | Path,
    *,
    max_shard_bytes: int = 5_000_000_000,
    dtype: torch.dtype | None = None,
    tokenizer: tokenizers.Tokenizer | None = None,
) -> None:
    """Write a complete checkpoint folder, or nothing on an error. `dtype` None keeps each parameter's dtype.

    If the model's weights are not in memory, it reads one shard at a time.
    Raises CheckpointError if the folder exists and is not empty, or if config.json cannot express the configuration.
    """
    folder = Path(folder).resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(
            f"{folder} already exists, and a checkpoint never overwrites anything",
            expected="a new or an empty folder",
            fix="choose another folder, or remove this one first",
        )
    config = config_to_json(model.config)
    ours = {"random_seed": model.random_seed, "trained_on": model.trained_on}
    config["pvc"] |= {name: fact for name, fact in ours.items() if fact is not None}
    config_text = json.dumps(config, indent=2) + "\n"
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.partial")
    partial.mkdir()
    try:
        (partial / CONFIG_FILE).write_text(config_text, encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save(str(partial / TOKENIZER_FILE))
        _write_shards(model, partial, max_shard_bytes=max_shard_bytes, dtype=dtype)
        if folder.exists():
            folder.rmdir()  # empty, see above; renaming onto a folder is not portable
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


# -- writing ---------------------------------------------------------------------------------------------------


def _write_shards(model: PVC, folder: Path, *, max_shard_bytes: int, dtype: torch.dtype | None) -> None:
    tensors = {tensor.name: tensor for tensor in checkpoint_tensors(model)}
    sizes = {
        name: math.prod(tensor.shape) * (dtype or model.get_parameter(tensor.parameters[0]).dtype).itemsize
        for name, tensor in tensors.items()
    }
    plan = plan_shards(sizes, max_shard_bytes=max_shard_bytes)
    weight_map: dict[str, str] = {}
    for shard_index, names in enumerate(plan, start=1):
        file = WEIGHTS_FILE if len(plan) == 1 else f"model-{shard_index:05}-of-{len(plan):05}.safetensors"
        shard = {name: _join(tensors[name], model, dtype) for name in names}
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(names, file))
    if len(plan) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def plan_shards(sizes: Mapping[str, int], *, max_shard_bytes: int) -> list[list[str]]:
    """Assign tensor names to shards, in order; a new shard starts when the next tensor would exceed the limit."""
    shards: list[list[str]] = []
    used = 0
    for name, size in sizes.items():
        if not shards or used + size > max_shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


def _join(tensor: CheckpointTensor, model: PVC, dtype: torch.dtype | None) -> Tensor:
    parts = [model.weight(name).to("cpu", dtype) for name in tensor.parameters]
    value = parts[0] if len(parts) == 1 else pack_qkv(*parts, head_dim=model.config.llm.attention_head_dim)
    return value.contiguous()


# -- reading ---------------------------------------------------------------------------------------------------


def _read_config(folder: Path) -> tuple[PVCConfig, Mapping[str, Any]]:
    """Read the configuration in `folder`/config.json, and its complete "pvc" object."""
    check_folder(folder)
    data = read_json(folder / CONFIG_FILE)
    try:
        if lacks_count(data):
            with ExitStack() as stack:
                data = with_count(data, _open_shards(folder, stack))
        return config_from_json(data), data.get("pvc", {})
    except CheckpointError as error:
        error.what = f"{folder}: {error.what}"
        raise


def _open(
    folder: Path, mapping: Mapping[str, str | None] | None, stack: ExitStack
) -> tuple[PVC, list[CheckpointTensor], Mapping[str, Any]]:
    """Return the model without weights, its tensors, and the source of each by name; checked to fit."""
    config, ours = _read_config(folder)
    model = PVC.empty(config)
    model.random_seed, model.trained_on = ours.get("random_seed"), ours.get("trained_on")
    tensors = checkpoint_tensors(model)
    opened = _open_shards(folder, stack)
    sources, model.renamed = _by_our_names(folder, tensors, opened, config.llm, mapping)
    check_tensors(folder, tensors, sources, config.llm)
    return model, tensors, sources


def _by_our_names(
    folder: Path,
    tensors: Sequence[CheckpointTensor],
    sources: Mapping[str, Any],
    llm: LLMConfig,
    mapping: Mapping[str, str | None] | None,
) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    """Return `sources` by our names, and the renamed ones. Without a mapping, detect one; it must be the only one."""
    if mapping is None:
        detection = _detect(folder, tensors, sources, llm)
        require_found(folder, detection)
        mapping = detection.mapping
        if not mapping:
            return sources, {}
    harmless = harmless_names(sources.keys() - {tensor.name for tensor in tensors} - mapping.keys(), llm)
    found = apply_mapping(folder, mapping, tensors, sources, harmless=harmless)
    return found, {name: role for name, role in mapping.items() if role is not None}


def _detect(folder: Path, tensors: Sequence[CheckpointTensor], sources: Mapping[str, Any], llm: LLMConfig) -> Detection:
    """Detect a mapping. Raises CheckpointError (from check_tensors) if a tensor that every InternVL2 has is missing."""
    wanted = {tensor.name for tensor in tensors}
    left = sources.keys() - wanted - harmless_names(sources.keys() - wanted, llm)
    may = {tensor.name for tensor in added(tensors)}
    if not left or not (may - sources.keys()):
        return Detection(mapping={})
    if wanted - may - sources.keys():
        rest = {name: file for name, file in sources.items() if name not in may}
        check_tensors(folder, [tensor for tensor in tensors if tensor.name not in may], rest, llm)
    shapes = {name: tuple(sources[name].get_slice(name).get_shape()) for name in left | (may & sources.keys())}
    return detect(tensors, shapes)


def _open_shards(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Map every tensor name in the folder's weight files to the open file that contains it."""
    weight_map = None if (folder / WEIGHTS_FILE).is_file() else _read_weight_map(folder)
    files = [WEIGHTS_FILE] if weight_map is None else sorted(set(weight_map.values()))
    absent = [file for file in files if not (folder / file).is_file()]
    if absent:
        raise CheckpointError(
            f"{folder} lacks {listing(absent)} of the {len(files)} shards named in {INDEX_FILE}",
            cause="the download was interrupted",
            fix="fetch the missing files",
        )
    sources: dict[str, Any] = {}
    file_of: dict[str, str] = {}
    for file in files:
        shard = _open_shard(folder / file, stack)
        for name in shard.file.keys():  # noqa: SIM118  (safe_open cannot be iterated)
            if name in sources:
                raise CheckpointError(
                    f"{folder}: {name} is in both {file_of[name]} and {file}",
                    expected="each tensor once",
                    cause=MIXED,
                    fix=FETCH_TOGETHER,
                )
            sources[name], file_of[name] = shard, file
    if weight_map is not None and weight_map != file_of:
        wrong = {name for name in weight_map.keys() | file_of.keys() if weight_map.get(name) != file_of.get(name)}
        raise CheckpointError(
            f"{folder}: {INDEX_FILE} and the shards disagree on the file of {listing(wrong)}",
            cause=MIXED,
            fix=FETCH_TOGETHER,
        )
    check_names(folder, sources)
    return sources


def _read_weight_map(folder: Path) -> dict[str, str]:
    path = folder / INDEX_FILE
    if not path.is_file():
        raise _no_weights(folder)
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{path} has no weight_map", expected="a weight_map of tensor names to shard files", fix=FETCH_AGAIN
        )
    for file in weight_map.values():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise CheckpointError(
                f"{path} names the shard {file!r}", expected="a *.safetensors file in the same folder", fix=FETCH_AGAIN
            )
    return weight_map


def _no_weights(folder: Path) -> CheckpointError:
    names = [path.name for path in folder.iterdir()]
    if pickled := [name for name in names if name.endswith(PICKLES)]:
        return CheckpointError(
            f"{folder} stores its weights as pickle ({listing(pickled)}), which is refused: opening it runs code",
            expected="*.safetensors",
            fix="convert it once, where you trust the files, with transformers: AutoModel.from_pretrained(OLD, "
            "trust_remote_code=True).save_pretrained(NEW, safe_serialization=True)",
        )
    return CheckpointError(
        f"{folder} has a {CONFIG_FILE} but no weights: it contains {listing(names)}",
        expected=f"{WEIGHTS_FILE} or {INDEX_FILE}",
        fix="fetch the *.safetensors files",
    )


def _open_shard(path: Path, stack: ExitStack) -> Shard:
    try:
        return Shard(path, stack.enter_context(safe_open(path, framework="pt")))
    except SafetensorError as error:
        raise _damage(path, f"{path} cannot be read ({error})") from error


def _damage(path: Path, what: str) -> CheckpointError:
    """Make the error `what` with the fault of the safetensors file, from its size and the offsets in its header."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        header_size = int.from_bytes(start, "little")
        if len(start) < 8 or header_size > size - 8:
            what += f": its {size} bytes do not contain a complete header"
            return CheckpointError(what, expected="a safetensors header", cause=BROKEN, fix=FETCH_AGAIN)
        try:
            header = json.loads(file.read(header_size))
            end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            what += f": the header of its {size} bytes is corrupt"
            return CheckpointError(what, cause=BROKEN, fix=FETCH_AGAIN)
    expected = f"{8 + header_size + end} bytes"
    return CheckpointError(
        f"{what}: it has {size} bytes", expected=expected, cause="an interrupted download", fix=FETCH_AGAIN
    )
