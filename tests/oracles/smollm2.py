"""SmolLM2 as the LLM of a PVC: its checkpoint folder, and the answers of our reference and graphs to its prompts.

python -m tests.oracles.smollm2 FOLDER   FOLDER/model, as run_smollm2.py writes it -> FOLDER/checkpoint and
                                         FOLDER/internvl for `-m`: a PVC, and a plain InternVL in the released layout

The vision side is that of `tiny`, with random weights: its answers about a video mean nothing, and its bundles say so.
Every answer is teacher-forced with the oracle's tokens. As long as our tokens are the same, this is our own greedy
answer; after a near tie exchanges two tokens, the later steps are still compared.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer

import pvc_ref
from engines.language import LanguageModel
from engines.session import Session
from engines.spec import StreamLimits
from engines.target import load_target
from pvc_export.bundles.export import ExportRequest, write_graphs
from pvc_export.graphs.models import LoadedModel
from pvc_export.terminal.console import Console
from pvc_ref import PVC, LLMConfig, PVCConfig
from pvc_ref.checkpoint.config_keys import CONFIG_FILE
from pvc_ref.checkpoint.files import TOKENIZER_FILE, WEIGHTS_FILE
from pvc_ref.checkpoint.tensor_names import checkpoint_tensors
from pvc_ref.llm import Decoder
from pvc_ref.prompt import IMAGE_CONTEXT, IMAGE_END, IMAGE_START

from .case import cuts
from .exchange import MODEL, Answer, Answers, installed

CHECKPOINT, INTERNVL, BUNDLE = "checkpoint", "internvl", "bundle"
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
"""The system message of SmolLM2's chat template; apart from it, the template is InternVL2.5's."""
SEED = 0
LIMITS = StreamLimits(window=4, context=1024)
NEW_TOKENS = (IMAGE_START, IMAGE_END, IMAGE_CONTEXT)
WAYS: dict[str, tuple[int, ...]] = {
    "a prefill, then rows": (LIMITS.context,),
    "pieces, then rows": (64, 7, 1, LIMITS.chunk + 44),
}
"""Ways to feed our graphs a prompt: rows per append, in turn. The answer follows row by row, as in decoding."""


def write_checkpoint(model_folder: Path, folder: Path, *, plain: bool = False) -> None:
    """Write a PVC in InternVL2's names, with a Hugging Face folder's Llama and its tokenizer plus three tokens.

    plain   instead write an InternVL without temporal attention, and without our keys in its config.json
    """
    config = _config(json.loads((model_folder / CONFIG_FILE).read_text(encoding="utf-8")))
    if plain:
        config = replace(
            config,
            vision=replace(config.vision, num_temporal_layers=0),
            compressor=replace(config.compressor, kind="pixel_shuffle"),
            num_image_repeats=1,
            template="internvl2_5",
            system_message=SYSTEM,
        )
    model = PVC.random(config, seed=SEED)
    _take_weights(model, load_file(model_folder / WEIGHTS_FILE))
    tokenizer = Tokenizer.from_file(str(model_folder / TOKENIZER_FILE))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in NEW_TOKENS])
    assert tokenizer.get_vocab_size() == model.config.llm.vocab_size, "new tokens must come after all others"
    pvc_ref.save(model, folder, tokenizer=tokenizer)
    if plain:
        facts = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        del facts["pvc"]
        (folder / CONFIG_FILE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _config(llama: dict[str, Any]) -> PVCConfig:
    """`tiny`'s vision with the LLM from a config.json of transformers' Llama."""
    assert llama["model_type"] == "llama" and llama["tie_word_embeddings"], "not SmolLM2's architecture"
    assert not llama["attention_bias"] and not llama["mlp_bias"] and llama["rope_parameters"]["rope_type"] == "default"
    llm = LLMConfig(
        family="llama",
        vocab_size=llama["vocab_size"] + len(NEW_TOKENS),
        hidden_size=llama["hidden_size"],
        num_layers=llama["num_hidden_layers"],
        num_heads=llama["num_attention_heads"],
        num_kv_heads=llama["num_key_value_heads"],
        mlp_size=llama["intermediate_size"],
        rope_theta=llama["rope_parameters"]["rope_theta"],
        rms_norm_eps=llama["rms_norm_eps"],
        tie_embeddings=True,
        max_positions=llama["max_position_embeddings"],
    )
    return replace(PVCConfig.preset("tiny"), llm=llm, template="Hermes-2")


@torch.no_grad()
def _take_weights(model: PVC, weights: dict[str, torch.Tensor]) -> None:
    """Copy every tensor of a Llama into the LLM of `model`; none may be left over or missing."""
    prefix, parameters = "language_model.", dict(model.named_parameters())
    for tensor in checkpoint_tensors(model):
        if tensor.name.startswith(prefix):
            value = weights.pop(tensor.name.removeprefix(prefix))
            if tensor.name.endswith("embed_tokens.weight"):
                value = torch.cat([value, new_rows(value)])
            assert tuple(value.shape) == tensor.shape, tensor.name
            parameters[tensor.parameters[0]].copy_(value)
    assert not weights, f"tensors left over: {sorted(weights)}"


def new_rows(embeddings: torch.Tensor) -> torch.Tensor:
    """Embeddings of the new tokens: each is the mean of every third old embedding, with a different start.

    Because the head is tied, the logit of a new token is the mean of as many others, so it is never the likeliest.
    """
    return torch.stack([embeddings[start :: len(NEW_TOKENS)].mean(dim=0) for start in range(len(NEW_TOKENS))])


def write_bundle(loaded: LoadedModel, folder: Path) -> None:
    """Write the graphs of `pvc-export onnx --fp32` without its check: here the oracle judges them."""
    request = ExportRequest(out=folder, target=load_target("cpu"), precision="fp32", limits=LIMITS)
    folder.mkdir()
    write_graphs(loaded, request, folder, Console(quiet=True))


def reference_answers(decoder: Decoder, prompts: Mapping[str, np.ndarray], theirs: Answers) -> Answers:
    """The reference's answers at every step of the oracle's answers, from one pass over prompt and answer."""

    @torch.inference_mode()
    def steps(ids: list[int], num_prompt: int) -> np.ndarray:
        embeds = decoder.embed_tokens(torch.tensor([ids]))
        hidden, _ = decoder(embeds, torch.arange(len(ids))[None])
        return decoder.logits(hidden[0, num_prompt - 1 :]).numpy()

    return _answers(steps, prompts, theirs, package="torch")


def graph_answers(
    sessions: Mapping[str, Session], prompts: Mapping[str, np.ndarray], theirs: Answers, *, way: str
) -> Answers:
    """The answers of a bundle's `embed`, `llm` and `head` at every step of the oracle's answers."""

    def steps(ids: list[int], num_prompt: int) -> np.ndarray:
        language = LanguageModel(sessions)
        embeds = language.embed(ids)
        ends = [*cuts(num_prompt, WAYS[way]), *range(num_prompt + 1, len(ids) + 1)]
        hidden = [language.append(embeds[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
        return np.stack([language.logits(row) for row in hidden[num_prompt - len(ids) - 1 :]])

    return _answers(steps, prompts, theirs, package="onnxruntime")


@contextmanager
def theta_one_percent_off(decoder: Decoder) -> Iterator[None]:
    sound = decoder.config
    decoder.config = replace(sound, rope_theta=1.01 * sound.rope_theta)
    try:
        yield
    finally:
        decoder.config = sound


@contextmanager
def gate_and_up_exchanged(decoder: Decoder) -> Iterator[None]:
    """Exchange the two in the middle layer: their shapes are equal, so only the values can reveal it."""
    mlp = decoder.layers[len(decoder.layers) // 2].mlp
    mlp.gate_proj, mlp.up_proj = mlp.up_proj, mlp.gate_proj
    try:
        yield
    finally:
        mlp.gate_proj, mlp.up_proj = mlp.up_proj, mlp.gate_proj


PLANTED = {"rope theta 1 % off": theta_one_percent_off, "gate and up exchanged in a layer": gate_and_up_exchanged}
"""Defects of the reference that the comparison must detect, on the real weights."""
NUM_PLANTED = 4
"""Number of prompts for a planted defect: on the real weights each of the twenty reveals both defects."""


def _answers(
    steps: Callable[[list[int], int], np.ndarray], prompts: Mapping[str, np.ndarray], theirs: Answers, *, package: str
) -> Answers:
    """steps: (ids of a prompt and all but the last of its answer, number of prompt ids) -> logits of each step.

    The likeliest token is chosen among all of ours; the logits are cut to the tokens that the oracle has.
    """
    answers = {}
    for name, prompt in prompts.items():
        forced = theirs.by_prompt[name]
        logits = steps([*prompt.tolist(), *forced.greedy[:-1].tolist()], len(prompt))
        assert len(logits) == len(forced.greedy), "one step per token"
        answers[name] = Answer(
            positions=np.arange(len(logits)) + len(prompt) - 1,
            logits=logits[:, : forced.logits.shape[1]],
            greedy=logits.argmax(axis=1),
        )
    return Answers(versions=installed((package,)), by_prompt=answers)


if __name__ == "__main__":
    root = Path(sys.argv[1])
    for name, plain in ((CHECKPOINT, False), (INTERNVL, True)):
        if not (root / name).exists():
            write_checkpoint(root / MODEL, root / name, plain=plain)
