"""Checks of SmolLM2's checkpoint folder and of our answers, on a small random Llama without a download."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from engines.bundle import open_bundle
from pvc_export.graphs.models import LoadedModel, load_model, prompt_spec
from pvc_ref.prompt import STOP_TOKEN, byte_tokenizer

from .compare_steps import compare_steps, margin, relative_diff
from .exchange import Answer, Answers
from .questions import QUESTIONS
from .run_smollm2 import ask
from .smollm2 import (
    LIMITS,
    NEW_TOKENS,
    PLANTED,
    SYSTEM,
    WAYS,
    graph_answers,
    new_rows,
    reference_answers,
    write_checkpoint,
)

CONFIG = LlamaConfig(
    vocab_size=261,
    hidden_size=48,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=1024,
    rope_parameters={"rope_type": "default", "rope_theta": 1e5},
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
    initializer_range=0.3,
)
"""A small SmolLM2: three queries per key, a tied head, and its theta."""


@dataclass(frozen=True, kw_only=True)
class Case:
    folder: Path
    prompts: dict[str, np.ndarray]
    theirs: Answers


def tokenizer_of_261() -> Tokenizer:
    """The byte tokenizer without the image tokens, as a language model has it."""
    data = json.loads(byte_tokenizer().to_str())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] not in NEW_TOKENS]
    return Tokenizer.from_str(json.dumps(data))


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The output of run_smollm2.py for the small Llama, and our checkpoint folder of it."""
    folder = tmp_path_factory.mktemp("smollm2")
    torch.manual_seed(0)
    llama = LlamaForCausalLM(CONFIG).eval()
    llama.save_pretrained(folder / "model")
    tokenizer = tokenizer_of_261()
    tokenizer.save(str(folder / "model" / "tokenizer.json"))
    write_checkpoint(folder / "model", folder / "checkpoint")
    texts = {"short": "What is the capital of France?", "long": "The chain of my bicycle keeps falling off. " * 5}
    prompts = {name: np.array(tokenizer.encode(text, add_special_tokens=False).ids) for name, text in texts.items()}
    stop_id = tokenizer.token_to_id(STOP_TOKEN)
    answers = {name: ask(llama, ids.tolist(), stop_id) for name, ids in prompts.items()}
    return Case(folder=folder, prompts=prompts, theirs=Answers(versions={"transformers": "5"}, by_prompt=answers))


@pytest.fixture(scope="module")
def loaded(case: Case) -> LoadedModel:
    return load_model(str(case.folder / "checkpoint"))


def test_the_checkpoint_folder_is_a_model_of_ours_whose_llm_says_what_transformers_says(
    case: Case, loaded: LoadedModel
) -> None:
    found = compare_steps(reference_answers(loaded.model.llm, case.prompts, case.theirs), case.theirs, what="ours")
    assert not found.problems and found.num_steps > len(case.prompts)
    assert found.max_diff < 3e-6
    assert loaded.source.random_weights, "its vision side was never trained, so its bundles must declare random weights"


def test_as_a_plain_internvl_its_config_says_nothing_of_ours_and_its_prompt_is_its_own(
    case: Case, loaded: LoadedModel, tmp_path: Path
) -> None:
    write_checkpoint(case.folder / "model", tmp_path / "internvl", plain=True)
    plain = load_model(str(tmp_path / "internvl"))
    assert "pvc" not in json.loads((tmp_path / "internvl" / "config.json").read_text())
    assert plain.config.vision.num_temporal_layers == 0
    assert prompt_spec(plain.config).start == f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"
    for name, weight in loaded.model.llm.named_parameters():
        assert torch.equal(weight, plain.model.llm.get_parameter(name))


@pytest.mark.parametrize("defect", PLANTED)
def test_a_planted_defect_fails_the_comparison_and_is_gone_afterwards(
    defect: str, case: Case, loaded: LoadedModel
) -> None:
    decoder = loaded.model.llm
    with PLANTED[defect](decoder):
        broken = reference_answers(decoder, case.prompts, case.theirs)
    assert compare_steps(broken, case.theirs, what=defect).problems
    sound = reference_answers(decoder, case.prompts, case.theirs)
    assert not compare_steps(sound, case.theirs, what="sound").problems


def test_a_checkpoint_takes_every_tensor_and_no_other(case: Case, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (model / name).write_bytes((case.folder / "model" / name).read_bytes())
    weights = load_file(case.folder / "model" / "model.safetensors")
    save_file(weights | {"model.layers.9.surplus": torch.zeros(1)}, model / "model.safetensors")
    with pytest.raises(AssertionError, match="surplus"):
        write_checkpoint(model, tmp_path / "one")
    weights.pop("model.norm.weight")
    save_file(weights, model / "model.safetensors")
    with pytest.raises(KeyError, match=r"model\.norm\.weight"):
        write_checkpoint(model, tmp_path / "two")


def test_new_tokens_differ_and_none_is_ever_the_likeliest(loaded: LoadedModel) -> None:
    embeddings = loaded.model.llm.embed_tokens.weight.detach()
    known, new = embeddings[: -len(NEW_TOKENS)], embeddings[-len(NEW_TOKENS) :]
    torch.testing.assert_close(new, new_rows(known), rtol=0, atol=0)
    assert len({tuple(row.tolist()) for row in new}) == len(NEW_TOKENS)
    hidden = torch.randn(500, CONFIG.hidden_size, generator=torch.Generator().manual_seed(0))
    assert int((hidden @ embeddings.T).argmax(dim=1).max()) < CONFIG.vocab_size
    assert [loaded.token_id(token) for token in NEW_TOKENS] == [261, 262, 263]


@pytest.mark.parametrize("way", WAYS)
def test_our_graphs_say_what_the_reference_says_and_a_lost_row_fails(
    way: str, tiny: LoadedModel, bundle_fp32: Path
) -> None:
    """On `tiny`, because its bundle exists. The oracle is its reference; SmolLM2's graphs are run by the same code."""
    random, decoder = np.random.default_rng(0), tiny.model.llm
    prompts = {"one token": np.array([7]), "over one pass": random.integers(256, size=LIMITS.chunk + 3)}
    theirs = Answers(versions={}, by_prompt={name: said_by(tiny, ids) for name, ids in prompts.items()})
    sessions = open_bundle(bundle_fp32, runtime="cpu").sessions
    assert not compare_steps(reference_answers(decoder, prompts, theirs), theirs, what="reference").problems
    assert not compare_steps(graph_answers(sessions, prompts, theirs, way=way), theirs, what=way).problems
    lost = {"one token": prompts["one token"], "over one pass": np.delete(prompts["over one pass"], 100)}
    found = graph_answers(sessions, lost, theirs, way=way).by_prompt["over one pass"]
    assert relative_diff(found, theirs.by_prompt["over one pass"]).max() > 1e-3


@torch.inference_mode()
def said_by(model: LoadedModel, ids: np.ndarray, num_steps: int = 4) -> Answer:
    """The reference's greedy answer; each step is computed from scratch."""
    decoder, said, logits = model.model.llm, ids.tolist(), []
    for _ in range(num_steps):
        hidden, _ = decoder(decoder.embed_tokens(torch.tensor([said])), torch.arange(len(said))[None])
        logits.append(decoder.logits(hidden[0, -1]).numpy())
        said.append(int(logits[-1].argmax()))
    return Answer(
        positions=np.arange(num_steps) + len(ids) - 1, logits=np.stack(logits), greedy=np.array(said[len(ids) :])
    )


def test_there_are_twenty_questions() -> None:
    assert len(QUESTIONS) == len(set(QUESTIONS.values())) == 20


def test_a_token_that_the_oracle_does_not_have_is_no_near_tie() -> None:
    assert margin(np.zeros(5, dtype=np.float32) + np.arange(5), 5) == np.inf
