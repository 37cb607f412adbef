"""Chat templates, and the byte tokenizer of the `tiny` preset.

The reference writes the whole conversation as one string and tokenizes it once. The runtime (engines/prompt.py) feeds
it in parts; a test checks that both give the same ids.
Source: the conversation templates of InternVL2 (internlm2-chat, Hermes-2) and of InternVL2.5 and InternVL3
(internvl2_5), by their names in config.json, and the frame prefix of PVC's README, 'Frame1: <image>'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from .config import LLMFamily, PVCConfig, TemplateName
from .errors import InputError

IMAGE_START, IMAGE_END, IMAGE_CONTEXT = "<img>", "</img>", "<IMG_CONTEXT>"
IMAGE_TAG = "<image>"
STOP_TOKEN = "<|im_end|>"
SPECIAL_TOKENS = ("<s>", "</s>", "<pad>", "<|im_start|>", STOP_TOKEN, IMAGE_START, IMAGE_END, IMAGE_CONTEXT)
"""The special tokens of the InternVL2 templates, in the order of their ids in our tokenizers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatTemplate:
    """The text around a question. `bos` is written once, at the start; None stands for that of the LLM's family.

    after_stop   text between the <|im_end|> of a turn and the next turn
    """

    bos: str | None
    system: str
    after_stop: str = ""


INTERNVL2_SYSTEM = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
INTERNVL2_5_SYSTEM = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
FAMILY_BOS: dict[LLMFamily, str] = {"internlm2": "<s>", "qwen2": "", "llama": ""}
"""The text that a family's tokenizer adds before a prompt."""
TEMPLATES: dict[TemplateName, ChatTemplate] = {
    "internlm2-chat": ChatTemplate(bos="<s>", system=INTERNVL2_SYSTEM),
    "Hermes-2": ChatTemplate(bos="", system=INTERNVL2_SYSTEM),
    "internvl2_5": ChatTemplate(bos=None, system=INTERNVL2_5_SYSTEM, after_stop="\n"),
    "tiny": ChatTemplate(bos="<s>", system="You watch a video."),
}


def conversation_start(config: PVCConfig) -> str:
    """Return everything before the first turn."""
    template = TEMPLATES[config.template]
    bos = FAMILY_BOS[config.llm.family] if template.bos is None else template.bos
    system = template.system if config.system_message is None else config.system_message
    return f"{bos}<|im_start|>system\n{system}{turn_end(config)}"


def turn_end(config: PVCConfig) -> str:
    """Return the text that ends a turn, the model's or the user's."""
    return STOP_TOKEN + TEMPLATES[config.template].after_stop


def video_prompt(config: PVCConfig, *, num_frames: int, question: str) -> str:
    """Return the conversation about a video of `num_frames` frames, up to the start of the answer."""
    return _conversation(config, _frames(config, first=1, count=num_frames) + question)


def next_turn(config: PVCConfig, *, question: str, num_frames: int = 0, first_frame: int = 1) -> str:
    """Return the text from the end of an answer to the start of the next: turn end, new frames and a question.

    Frame numbers continue: first_frame is one more than the conversation had.
    """
    return turn_end(config) + _turn(config, _frames(config, first=first_frame, count=num_frames) + question)


def image_prompt(config: PVCConfig, *, num_tiles: Sequence[int], question: str, num_repeats: int | None = None) -> str:
    """Return the conversation about images; num_tiles has one entry per image.

    The tokens of a tile occur `num_repeats` times. A question may mark the place of every image with `<image>`; without
    marks all images come first. Raises InputError if it marks only some.
    """
    per_tile = config.compressor.num_tokens * (config.num_image_repeats if num_repeats is None else num_repeats)
    images = [IMAGE_START + IMAGE_CONTEXT * per_tile * tiles + IMAGE_END for tiles in num_tiles]
    if IMAGE_TAG in question:
        if question.count(IMAGE_TAG) != len(images):
            raise InputError(
                f"the question has {question.count(IMAGE_TAG)} {IMAGE_TAG} for {len(images)} images",
                expected=f"one {IMAGE_TAG} per image, or none at all",
            )
        for image in images:
            question = question.replace(IMAGE_TAG, image, 1)
        return _conversation(config, question)
    if len(images) == 1:
        return _conversation(config, f"{images[0]}\n{question}")
    listed = "".join(f"Image-{index}: {image}\n" for index, image in enumerate(images, start=1))
    return _conversation(config, listed + question)


def _conversation(config: PVCConfig, user: str) -> str:
    return conversation_start(config) + _turn(config, user)


def _turn(config: PVCConfig, user: str) -> str:
    return f"<|im_start|>user\n{user}{turn_end(config)}<|im_start|>assistant\n"


def _frames(config: PVCConfig, *, first: int, count: int) -> str:
    image = IMAGE_START + IMAGE_CONTEXT * config.compressor.num_tokens + IMAGE_END
    return "".join(f"Frame{index}: {image}\n" for index in range(first, first + count))


def byte_tokenizer() -> Tokenizer:
    """Build a tokenizer of 264 tokens: the 256 bytes and SPECIAL_TOKENS. Needs no file and no training."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special_tokens())
    return tokenizer


def special_tokens() -> list[AddedToken]:
    """SPECIAL_TOKENS for `tokenizers`, matched in the text before it is normalised."""
    return [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
