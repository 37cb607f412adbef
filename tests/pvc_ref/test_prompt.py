"""Prompts, compared with strings written out in full, and the byte tokenizer that turns them into ids."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from pvc_ref import PVC, CompressorConfig, LLMConfig, PVCConfig, VisionConfig
from pvc_ref.errors import InputError
from pvc_ref.prompt import byte_tokenizer, image_prompt, next_turn, video_prompt

TINY = PVCConfig(
    vision=VisionConfig(
        image_size=28, patch_size=7, hidden_size=24, num_layers=2, num_heads=3, mlp_size=40, num_temporal_layers=1
    ),
    compressor=CompressorConfig(num_tokens=4),
    llm=LLMConfig(vocab_size=264, hidden_size=20, num_layers=1, num_heads=2, num_kv_heads=1, mlp_size=8),
    num_image_repeats=2,
    template="tiny",
)
INTERNLM2, HERMES_2 = (dataclasses.replace(TINY, template=name) for name in ("internlm2-chat", "Hermes-2"))
SPECIAL_TOKENS = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"]
CONTEXT_ID = 263


# -- the byte tokenizer ----------------------------------------------------------------------------------------------


def test_byte_tokenizer_has_256_bytes_and_8_special_tokens() -> None:
    vocab = byte_tokenizer().get_vocab()
    assert sorted(vocab.values()) == list(range(264))
    assert [vocab[token] for token in SPECIAL_TOKENS] == list(range(256, 264))
    assert PVCConfig.preset("tiny").llm.vocab_size == 264


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "What moves?",
        "  two spaces, a tab\t and\r\nlines \n\n",
        "naïve café",
        "书生多模态大模型",
        "🤖👩‍🚀",
        "\x00\x7f\u0080\uffff",
    ],
    ids=ascii,
)
def test_byte_tokenizer_gives_one_id_a_byte_and_the_text_back(text: str) -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode(text).ids
    assert len(ids) == len(text.encode()) and all(token_id < 256 for token_id in ids)
    assert tokenizer.decode(ids) == text


def test_every_byte_of_utf8_has_an_id_of_its_own() -> None:
    tokenizer = byte_tokenizer()
    texts = [chr(code) for code in (*range(0x800), *range(0x800, 0xD800, 64), *range(0xE000, 0x110000, 4096))]
    id_of_byte: dict[int, int] = {}
    for text in texts:
        for byte, token_id in zip(text.encode(), tokenizer.encode(text).ids, strict=True):
            assert id_of_byte.setdefault(byte, token_id) == token_id
    assert len(id_of_byte) == len(set(id_of_byte.values())) == 256 - 13  # C0, C1 and F5..FF occur in no text


@pytest.mark.parametrize("index", range(8), ids=SPECIAL_TOKENS.__getitem__)
def test_a_special_token_is_one_id_wherever_it_stands(index: int) -> None:
    tokenizer, token = byte_tokenizer(), SPECIAL_TOKENS[index]
    assert tokenizer.encode(token).ids == [256 + index]
    a, b = tokenizer.encode("a").ids[0], tokenizer.encode("b").ids[0]
    assert tokenizer.encode(f"a{token}{token}b").ids == [a, 256 + index, 256 + index, b]
    assert tokenizer.decode([a, 256 + index, b]) == "ab"  # an answer shows no special tokens
    assert tokenizer.decode([a, 256 + index, b], skip_special_tokens=False) == f"a{token}b"


# -- prompts ---------------------------------------------------------------------------------------------------------


def test_video_prompt_of_the_tiny_template_written_out() -> None:
    assert video_prompt(TINY, num_frames=2, question="What moves?") == (
        "<s><|im_start|>system\n"
        "You watch a video.<|im_end|>"
        "<|im_start|>user\n"
        "Frame1: <img><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT></img>\n"
        "Frame2: <img><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT></img>\n"
        "What moves?<|im_end|>"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(("config", "bos"), [(INTERNLM2, "<s>"), (HERMES_2, "")], ids=["internlm2-chat", "Hermes-2"])
def test_video_prompt_of_the_internvl2_templates_written_out(config: PVCConfig, bos: str) -> None:
    assert video_prompt(config, num_frames=1, question="发生了什么？") == (
        f"{bos}<|im_start|>system\n"
        "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，"
        "英文名叫InternVL, 是一个有用无害的人工智能助手。<|im_end|>"
        "<|im_start|>user\n"
        "Frame1: <img><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT></img>\n"
        "发生了什么？<|im_end|>"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(("preset", "bos"), [("internvl2_5-8b", "<s>"), ("internvl3-8b", "")])
def test_prompt_of_internvl2_5_has_a_newline_after_every_turn(preset: str, bos: str) -> None:
    config = dataclasses.replace(TINY, template="internvl2_5", llm=PVCConfig.preset(preset).llm)
    frame = "<img>" + "<IMG_CONTEXT>" * 4 + "</img>"
    said = video_prompt(config, num_frames=1, question="Who?")
    assert said == (
        f"{bos}<|im_start|>system\n"
        "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。<|im_end|>\n"
        f"<|im_start|>user\nFrame1: {frame}\nWho?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert next_turn(config, question="And?") == "<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n"


def test_a_system_message_of_the_checkpoint_is_written_in_place_of_the_templates() -> None:
    said = video_prompt(dataclasses.replace(TINY, system_message="See."), num_frames=0, question="Who?")
    assert said.startswith("<s><|im_start|>system\nSee.<|im_end|><|im_start|>user\n")


def test_image_prompt_of_one_image_is_not_numbered() -> None:
    tile = "<IMG_CONTEXT>" * 8  # 2 repeats of 4 tokens
    assert image_prompt(TINY, num_tiles=[3], question="What is it?") == (
        "<s><|im_start|>system\n"
        "You watch a video.<|im_end|>"
        "<|im_start|>user\n"
        f"<img>{tile}{tile}{tile}</img>\n"
        "What is it?<|im_end|>"
        "<|im_start|>assistant\n"
    )


def test_image_prompt_of_several_images_is_numbered() -> None:
    tile = "<IMG_CONTEXT>" * 4
    assert image_prompt(INTERNLM2, num_tiles=[1, 2], question="Which?", num_repeats=1) == (
        "<s><|im_start|>system\n"
        "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，"
        "英文名叫InternVL, 是一个有用无害的人工智能助手。<|im_end|>"
        "<|im_start|>user\n"
        f"Image-1: <img>{tile}</img>\n"
        f"Image-2: <img>{tile}{tile}</img>\n"
        "Which?<|im_end|>"
        "<|im_start|>assistant\n"
    )


def test_a_next_turn_written_out() -> None:
    """The next turn ends the answer and continues the frame count."""
    assert next_turn(TINY, question="And now?") == (
        "<|im_end|><|im_start|>user\nAnd now?<|im_end|><|im_start|>assistant\n"
    )
    assert next_turn(TINY, question="And now?", num_frames=2, first_frame=3) == (
        "<|im_end|>"
        "<|im_start|>user\n"
        "Frame3: <img><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT></img>\n"
        "Frame4: <img><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT></img>\n"
        "And now?<|im_end|>"
        "<|im_start|>assistant\n"
    )


def test_prompts_have_a_place_for_every_visual_token() -> None:
    model, tokenizer = PVC.random(TINY, seed=1), byte_tokenizer()
    frames = torch.zeros(1, 3, 28, 28, 3, dtype=torch.uint8)
    ids = tokenizer.encode(video_prompt(TINY, num_frames=3, question="?")).ids
    assert ids.count(CONTEXT_ID) == model.encode_clip(frames).flatten(0, 2).shape[0] == 12
    images = [frames[0, :2], frames[0]]
    ids = tokenizer.encode(image_prompt(TINY, num_tiles=[2, 3], question="?")).ids
    assert ids.count(CONTEXT_ID) == sum(len(tokens) for tokens in model.encode_images(images)) == 40


# -- embeddings of a prompt ------------------------------------------------------------------------------------------


def test_embed_prompt_replaces_the_context_tokens_in_order_and_nothing_else() -> None:
    model = PVC.random(TINY, seed=1)
    ids = torch.tensor([5, CONTEXT_ID, 6, 7, CONTEXT_ID, CONTEXT_ID, 8])
    visual = torch.arange(60.0).reshape(3, 20)
    embeds = model.embed_prompt(ids, visual, context_id=CONTEXT_ID)
    assert embeds.shape == (1, 7, 20)
    assert torch.equal(embeds[0, [1, 4, 5]], visual)
    assert torch.equal(embeds[0, [0, 2, 3, 6]], model.llm.embed_tokens.weight[[5, 6, 7, 8]])


def test_embed_prompt_without_images_is_the_embedding_table() -> None:
    model = PVC.random(TINY, seed=1)
    ids = torch.tensor([5, 6, 7])
    assert torch.equal(
        model.embed_prompt(ids, None, context_id=CONTEXT_ID)[0], model.llm.embed_tokens.weight[[5, 6, 7]]
    )


@pytest.mark.parametrize("num_rows", [None, 1, 3], ids=lambda n: f"rows={n}")
def test_embed_prompt_refuses_a_wrong_number_of_visual_embeddings(num_rows: int | None) -> None:
    model = PVC.random(TINY, seed=1)
    ids = torch.tensor([5, CONTEXT_ID, CONTEXT_ID])
    visual = None if num_rows is None else torch.zeros(num_rows, 20)
    with pytest.raises(InputError, match=f"has 2 image tokens but {num_rows or 0} visual embeddings were given"):
        model.embed_prompt(ids, visual, context_id=CONTEXT_ID)
