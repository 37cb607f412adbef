"""RoPE's parameters in config.json, in two formats. A file may use both if they agree.

transformers 4   llm_config.rope_theta, and llm_config.rope_scaling {type or rope_type, factor} or null
transformers 5   llm_config.rope_parameters {rope_theta, rope_type, ...}
Source: the configs of transformers 4.37 to 5, and InternLM2's "dynamic".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import CheckpointError
from .config_keys import CONFIG_FILE, find, said

OBJECTS = ("llm_config.rope_scaling", "llm_config.rope_parameters")
KEYS = ("rope_theta", "rope_scaling", "rope_parameters")
"""Keys of llm_config that are read here."""
INNER = ("type", "rope_type", "factor", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
SAME_BELOW_MAX = ("default", "dynamic")
"""Types that change no position below max_position_embeddings, which generation never exceeds. yarn, linear, longrope
(su) and llama3 change every position."""


def rope_theta(data: Mapping[str, Any]) -> float:
    """Return RoPE's base.

    Raises CheckpointError if it is missing or contradictory, or if the angles are scaled in a way not implemented.
    """
    for path in OBJECTS:
        _check_object(path, find(data, path), find(data, "llm_config.max_position_embeddings"))
    _one_value(data, [f"{path}.{key}" for path in OBJECTS for key in ("type", "rope_type")])
    theta = _one_value(data, ["llm_config.rope_theta", *(f"{path}.rope_theta" for path in OBJECTS)])
    if type(theta) not in (int, float):
        raise CheckpointError(
            said("llm_config.rope_theta", theta),
            expected="a number, here or in llm_config.rope_parameters as transformers 5 writes it",
            fix="add the value from the LLM's code or model card",
        )
    return float(theta)


def _check_object(path: str, rope: Any, max_positions: object) -> None:
    if rope is None:
        return
    if not isinstance(rope, Mapping):
        raise _refused(path, rope)
    unknown = [key for key, value in rope.items() if key not in INNER and value is not None]
    types = [rope[key] for key in ("type", "rope_type") if rope.get(key) is not None]
    if unknown or any(type_ not in SAME_BELOW_MAX for type_ in types):
        raise _refused(path, rope)
    if rope.get("partial_rotary_factor") not in (1, None):
        raise _refused(
            f"{path}.partial_rotary_factor", rope["partial_rotary_factor"], expected="1: the whole head is rotated"
        )
    if rope.get("original_max_position_embeddings") not in (max_positions, None):
        where = f"{path}.original_max_position_embeddings"
        raise _refused(
            where, rope["original_max_position_embeddings"], expected=f"max_position_embeddings, {max_positions}"
        )


def _refused(path: str, value: object, *, expected: str = "") -> CheckpointError:
    return CheckpointError(
        said(path, value),
        expected=expected
        or 'null or the type "default" or "dynamic": other scalings change every position and are not implemented',
        cause="the LLM's context was extended after training",
        fix="choose another checkpoint",
    )


def _one_value(data: Mapping[str, Any], paths: list[str]) -> Any:
    """Return the value at the paths that exist, or None. Raises CheckpointError if their values differ."""
    found = {path: value for path in paths if (value := find(data, path)) is not None}
    values = list(found.values())
    if any(value != values[0] for value in values):
        told = " but ".join(f"{path} = {value!r}" for path, value in found.items())
        raise CheckpointError(
            f"{CONFIG_FILE} contradicts itself: {told}",
            expected="the same value in each place",
            cause="the file was converted from transformers 4 to 5 and edited since",
            fix="compare it with the file that was released with the checkpoint, and correct the wrong value",
        )
    return values[0] if values else None
