"""The case: a random Qwen2 inside a PVC, as a folder that other programs can read, and our exported graphs' answers.

Note: our LLM graph returns only the last row's hidden state, because a stream needs no more. Logits of every position
therefore take one pass per row. Other runs feed a prompt as a stream would, and read the logits at the end of each
piece.
"""

from __future__ import annotations

import json
from itertools import accumulate, cycle, takewhile
from pathlib import Path

import numpy as np
from safetensors.torch import save_file
from tokenizers import Tokenizer

from engines.bundle import open_bundle
from engines.language import LanguageModel
from engines.spec import StreamLimits
from engines.target import load_target
from pvc_export.bundles.export import ExportRequest, export
from pvc_export.graphs.models import loaded_model
from pvc_ref import PVC, CompressorConfig, LLMConfig, PVCConfig, VisionConfig
from pvc_ref.checkpoint.config_json import config_to_json
from pvc_ref.checkpoint.tensor_names import checkpoint_tensors
from pvc_ref.prompt import STOP_TOKEN, byte_tokenizer, video_prompt

from .exchange import MODEL, NUM_GREEDY, PROMPTS, Answer, Answers, installed

SEED = 0
LLM = LLMConfig(
    family="qwen2",
    vocab_size=264,
    hidden_size=128,
    num_layers=4,
    num_heads=8,
    num_kv_heads=2,
    mlp_size=256,
    qkv_bias=True,
    rope_theta=1e6,
    rms_norm_eps=1e-6,
    max_positions=4096,
)
"""A small InternVL2-1B LLM: grouped queries, biases, an untied head. Its theta is no exporter's default."""
CONFIG = PVCConfig(
    vision=VisionConfig(image_size=56, hidden_size=64, num_layers=2, num_heads=4, mlp_size=64, num_temporal_layers=1),
    compressor=CompressorConfig(num_tokens=4),
    llm=LLM,
    template="tiny",
)
LIMITS = StreamLimits(window=4, context=1024)
WAYS: dict[str, tuple[int, ...]] = {
    "row by row": (1,),
    "a prefill, then rows": (LIMITS.chunk // 2, *[1] * LIMITS.context),
    "in pieces": (64, 7, 1, LIMITS.chunk + 44),
}
"""Ways to feed our graphs: the number of rows per append, in turn. The pieces are a frame, the text after it, one row,
and more rows than the graph takes in one pass."""


def write_case(folder: Path) -> None:
    """Write the model and prompts for the oracles, and our own bundle, into `folder`."""
    tokenizer, model = byte_tokenizer(), PVC.random(CONFIG, seed=SEED)
    write_causal_lm(model, tokenizer, folder / MODEL)
    np.savez(folder / PROMPTS, **make_prompts(tokenizer))
    request = ExportRequest(out=folder / "bundle", target=load_target("cpu"), precision="fp32", limits=LIMITS)
    report = export(loaded_model(model, tokenizer, name="random Qwen2"), request)
    assert report.passed, report.failure_text()


def write_causal_lm(model: PVC, tokenizer: Tokenizer, folder: Path) -> None:
    """Write only the LLM of `model`, with tensor names that transformers 4 and 5 both read."""
    folder.mkdir()
    prefix, parameters = "language_model.", dict(model.named_parameters())
    weights = {
        tensor.name.removeprefix(prefix): parameters[tensor.parameters[0]].detach()
        for tensor in checkpoint_tensors(model)
        if tensor.name.startswith(prefix)
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = config_to_json(model.config)["llm_config"] | {
        "model_type": "qwen2",
        "hidden_act": "silu",
        "torch_dtype": "float32",
        "bos_token_id": tokenizer.token_to_id("<s>"),
        "eos_token_id": tokenizer.token_to_id(STOP_TOKEN),
        "pad_token_id": tokenizer.token_to_id("<pad>"),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": STOP_TOKEN, "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def make_prompts(tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """Return token ids by prompt name: from one token to more than two passes of the LLM graph."""
    text = video_prompt(CONFIG, num_frames=2, question="What happens?")
    random = np.random.default_rng(SEED)
    return {
        "one token": np.array([LLM.vocab_size - 1]),
        "a conversation": np.array(tokenizer.encode(text, add_special_tokens=False).ids),
        "one pass and a row": random.integers(LLM.vocab_size, size=LIMITS.chunk + 1),
        "700 tokens": random.integers(LLM.vocab_size, size=700),
    }


def our_answers(folder: Path, prompts: dict[str, np.ndarray]) -> dict[str, Answers]:
    """Return the answers of the bundle in `folder` for each way of feeding it."""
    sessions, versions = open_bundle(folder / "bundle", runtime="cpu").sessions, installed(("torch", "onnxruntime"))
    return {
        way: Answers(
            versions=versions,
            by_prompt={
                name: _answer(LanguageModel(sessions), ids, cuts(len(ids), sizes)) for name, ids in prompts.items()
            },
        )
        for way, sizes in WAYS.items()
    }


def cuts(num_rows: int, sizes: tuple[int, ...]) -> list[int]:
    """Return where pieces of these sizes, taken in turn, end; the last piece is cut short."""
    return [*takewhile(lambda end: end < num_rows, accumulate(cycle(sizes))), num_rows]


def _answer(language: LanguageModel, ids: np.ndarray, ends: list[int]) -> Answer:
    """Feed a prompt in pieces and read the logits after each; then decode greedily, one row at a time."""
    embeds = language.embed(ids.tolist())
    logits = [language.logits(language.append(embeds[start:end])) for start, end in zip([0, *ends], ends, strict=False)]
    greedy = [int(logits[-1].argmax())]
    while len(greedy) < NUM_GREEDY:
        greedy.append(int(language.logits(language.append(language.embed(greedy[-1:]))).argmax()))
    return Answer(positions=np.array(ends) - 1, logits=np.stack(logits), greedy=np.array(greedy))
