"""Prompts fed in chunks give the token ids of the whole conversation, whatever the tokenizer merges."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

from engines.errors import BundleError
from engines.prompt import PromptTokenizer
from pvc_export.graphs.models import prompt_spec
from pvc_ref import PVCConfig
from pvc_ref.prompt import IMAGE_CONTEXT, IMAGE_END, IMAGE_START, STOP_TOKEN, next_turn, video_prompt

CONFIGS = {
    name: PVCConfig.preset(name)
    for name in ("tiny", "pvc-internvl2-1b", "pvc-internvl2-8b", "internvl2_5-8b", "internvl3-1b")
}


@pytest.fixture(scope="module")
def greedy_merges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-pair tokenizer trained to merge across every seam of the prompt that is not a special token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    seams = [
        "\nFrame1: ",
        "\nFrame12: ",
        "user\nFrame1: ",
        "\nWhat",
        "\nW",
        "\nuser\n",
        "system\nYou",
        "assistant\n",
    ] * 20
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(seams, trainer)
    specials = ["<s>", "<|im_start|>", STOP_TOKEN, IMAGE_START, IMAGE_END, IMAGE_CONTEXT]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.mark.parametrize("preset", CONFIGS)
@pytest.mark.parametrize("num_frames", [0, 1, 2, 12])
def test_pieces_equal_the_whole(greedy_merges: Path, preset: str, num_frames: int) -> None:
    config = CONFIGS[preset]
    spec = prompt_spec(config)
    tokenizer = PromptTokenizer(greedy_merges, spec)
    context_id = tokenizer.encode(IMAGE_CONTEXT)[0]
    ids: list[int] = []
    pending = spec.start
    for index in range(1, num_frames + 1):
        ids += tokenizer.encode(pending + spec.before_frame(index)) + [context_id] * config.compressor.num_tokens
        pending = spec.frame_end()
    ids += tokenizer.encode(pending + "What moves?" + spec.ask_suffix)
    assert ids == tokenizer.encode(video_prompt(config, num_frames=num_frames, question="What moves?"))


@pytest.mark.parametrize("preset", CONFIGS)
@pytest.mark.parametrize("num_frames", [0, 1, 2])
def test_pieces_of_a_next_turn_equal_the_whole(greedy_merges: Path, preset: str, num_frames: int) -> None:
    config = CONFIGS[preset]
    spec = prompt_spec(config)
    tokenizer = PromptTokenizer(greedy_merges, spec)
    context_id = tokenizer.encode(IMAGE_CONTEXT)[0]
    ids: list[int] = []
    pending = spec.next_turn
    for index in range(4, 4 + num_frames):
        ids += tokenizer.encode(pending + spec.before_frame(index)) + [context_id] * config.compressor.num_tokens
        pending = spec.frame_end()
    ids += tokenizer.encode(pending + "What moves?" + spec.ask_suffix)
    assert ids == tokenizer.encode(next_turn(config, num_frames=num_frames, first_frame=4, question="What moves?"))


def test_cutting_anywhere_else_would_not(greedy_merges: Path) -> None:
    """Why text waits for the next special token: this tokenizer merges across the newline after a frame."""
    tokenizer = PromptTokenizer(greedy_merges, prompt_spec(CONFIGS["tiny"]))
    assert tokenizer.encode("\n") + tokenizer.encode("What") != tokenizer.encode("\nWhat")


def test_a_tokenizer_of_another_model_is_refused(greedy_merges: Path, tmp_path: Path) -> None:
    spec = replace(prompt_spec(CONFIGS["tiny"]), stop_tokens=(STOP_TOKEN, "<|endoftext|>"))
    with pytest.raises(BundleError, match=r"has no token '<\|endoftext\|>'") as info:
        PromptTokenizer(greedy_merges, spec)
    assert info.value.cause == "it belongs to another model"
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match="is not a tokenizer file"):
        PromptTokenizer(tmp_path / "tokenizer.json", spec)
