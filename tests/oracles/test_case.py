"""Checks of the case: a complete Qwen2 for other programs, with positions over one pass of our graph."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Qwen2ForCausalLM

from pvc_ref import PVC
from pvc_ref.prompt import byte_tokenizer

from .case import CONFIG, LIMITS, SEED, WAYS, cuts, make_prompts, write_causal_lm
from .exchange import NUM_GREEDY


def test_the_folder_is_a_qwen2_that_transformers_loads_whole_with_our_logits(tmp_path: Path) -> None:
    ours = PVC.random(CONFIG, seed=SEED)
    write_causal_lm(ours, byte_tokenizer(), tmp_path / "model")
    theirs, info = Qwen2ForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info.values())
    ids = torch.from_numpy(make_prompts(byte_tokenizer())["a conversation"])[None]
    with torch.no_grad():
        expected = theirs(input_ids=ids).logits
        hidden, _ = ours.llm(ours.llm.embed_tokens(ids), torch.arange(ids.shape[1])[None])
        torch.testing.assert_close(ours.llm.logits(hidden), expected, rtol=0, atol=1e-5)
    assert 1 < expected.abs().max() < 10  # here 1e-4 means five digits


def test_prompts_pass_the_limits_of_one_pass_and_leave_room_for_an_answer() -> None:
    lengths = [len(ids) for ids in make_prompts(byte_tokenizer()).values()]
    assert min(lengths) == 1 and LIMITS.chunk + 1 in lengths
    assert 2 * LIMITS.chunk < max(lengths) <= LIMITS.context - NUM_GREEDY
    assert max(WAYS["in pieces"]) > LIMITS.chunk


@pytest.mark.parametrize("num_rows", [1, 64, 65, 700])
@pytest.mark.parametrize("way", WAYS)
def test_pieces_cover_every_row_once(way: str, num_rows: int) -> None:
    ends = cuts(num_rows, WAYS[way])
    assert ends == sorted(set(ends)) and ends[0] > 0 and ends[-1] == num_rows
    assert len(ends) == num_rows or way != "row by row"
