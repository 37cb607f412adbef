"""Data exchanged between the environments: prompts one way, answers the other, as .npz files. Needs only numpy.

Dimension key:  L tokens of a prompt   R positions asked for   V vocabulary
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

MODEL, PROMPTS = "model", "prompts.npz"
"""In the case's folder: the LLM as a Hugging Face folder, and int64 token ids (L,) by prompt name."""
CONVERSATIONS = "conversations.json"
"""In the same folder, if an oracle writes the case: {"prompt": ..., "answer": ...}, both as text, by prompt name."""
NUM_GREEDY = 32
"""Largest number of tokens in an answer. An oracle ends at a stop token; with the random Qwen2's seed none occurs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A model's answer to one prompt.

    positions  int64 (R,), ascending: the token after which the logits were read
    logits     float32 (R, V)
    greedy     int64 (at most NUM_GREEDY,): the tokens of the answer
    """

    positions: np.ndarray
    logits: np.ndarray
    greedy: np.ndarray


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """One model's answers by prompt name, and the package versions used, the oracle's first."""

    versions: dict[str, str]
    by_prompt: dict[str, Answer]

    def save(self, path: Path) -> None:
        arrays = {
            f"{name}/{field.name}": getattr(answer, field.name)
            for name, answer in self.by_prompt.items()
            for field in fields(Answer)
        }
        np.savez(path, versions=json.dumps(self.versions), **arrays)

    @staticmethod
    def load(path: Path) -> Answers:
        with np.load(path) as file:
            names = dict.fromkeys(key.rpartition("/")[0] for key in file.files if "/" in key)
            by_prompt = {
                name: Answer(**{field.name: file[f"{name}/{field.name}"] for field in fields(Answer)}) for name in names
            }
            return Answers(versions=json.loads(str(file["versions"])), by_prompt=by_prompt)


def load_prompts(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / PROMPTS) as file:
        return {name: file[name] for name in file.files}


def installed(packages: Sequence[str]) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in packages}
