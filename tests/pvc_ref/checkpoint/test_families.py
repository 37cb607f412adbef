"""Checkpoint folders of each family in their real layout: `pvc_ref` and an independent loader agree on the same files.

The files are written here with the names and config.json of the released models, only smaller. The loader uses
transformers' InternVL tower and projector and its Qwen2 or Llama. transformers has no InternLM2, so that is a Llama
whose packed `wqkv` is unpacked here. Prompts are written out.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Fast
from tokenizers import models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    InternVLVisionConfig,
    InternVLVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.models.internvl.modeling_internvl import InternVLModel

from pvc_export.graphs.models import LoadedModel, load_model

from .scripts import CORPUS

WIDTH, LAYERS, HEADS, MLP = 48, 3, 4, 80
LLM, LLM_LAYERS, LLM_HEADS, KV_HEADS, LLM_MLP = 64, 2, 4, 2, 96
SPECIAL = ("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")
INTERNVL2 = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
INTERNVL2_5 = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
QUESTION = "Which way does the ball roll?"
FAMILIES = {
    "InternVL2-1B": ("internvl3-1b", {"template": "Hermes-2"}),
    "InternVL2-8B": ("internvl2_5-2b", {"template": "internlm2-chat"}),
    "InternVL2.5-2B": ("internvl2_5-2b", {}),
    "InternVL3-1B": ("internvl3-1b", {}),
}
"""The file in released/ that a family's config.json is based on, and its changes."""

pytestmark = pytest.mark.usefixtures("no_grad")


class Original:
    """A folder's model, loaded with transformers' modules."""

    def __init__(self, folder: Path) -> None:
        weights, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
        self.vision, self.llm = tower(weights), causal_lm(weights, config["llm_config"])
        self.projector = nn.Sequential(
            nn.LayerNorm(4 * WIDTH), nn.Linear(4 * WIDTH, LLM), nn.GELU(), nn.Linear(LLM, LLM)
        ).eval()
        self.projector.load_state_dict(part(weights, "mlp1."))

    def image_tokens(self, frame: Tensor) -> Tensor:
        """(S, S, 3) uint8 RGB -> (tokens, E)."""
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        pixels = ((frame.float() / 255 - mean) / std).permute(2, 0, 1)[None]
        features = self.vision(pixels).last_hidden_state[:, 1:]
        shuffled = InternVLModel.pixel_shuffle(None, features.unflatten(1, (8, 8)), scale_factor=0.5)
        return self.projector(shuffled.flatten(1, 2))[0]

    def embeds(self, ids: list[int], image: Tensor, context_id: int) -> Tensor:
        embeds = self.llm.get_input_embeddings()(torch.tensor(ids))
        embeds[torch.tensor(ids) == context_id] = image
        return embeds[None]


def part(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def tower(weights: dict[str, Tensor]) -> InternVLVisionModel:
    found = part(weights, "vision_model.")
    state = {
        "embeddings.cls_token": found["embeddings.class_embedding"],
        "embeddings.position_embeddings": found["embeddings.position_embedding"],
        "embeddings.patch_embeddings.projection.weight": found["embeddings.patch_embedding.weight"],
        "embeddings.patch_embeddings.projection.bias": found["embeddings.patch_embedding.bias"],
    }
    renamed = {
        "attn.proj": "attention.projection_layer", "norm1": "layernorm_before", "norm2": "layernorm_after",
        "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
    }  # fmt: skip
    for index in range(LAYERS):
        layer, to = part(found, f"encoder.layers.{index}."), f"encoder.layer.{index}"
        state |= {f"{to}.lambda_{i}": layer[f"ls{i}"] for i in (1, 2)}
        for leaf in ("weight", "bias"):
            state |= {f"{to}.{new}.{leaf}": layer[f"{old}.{leaf}"] for old, new in renamed.items()}
            for name, rows in zip("qkv", layer[f"attn.qkv.{leaf}"].chunk(3), strict=True):
                state[f"{to}.attention.{name}_proj.{leaf}"] = rows
    config = InternVLVisionConfig(
        image_size=112, patch_size=14, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=MLP, attention_bias=True, layer_norm_eps=1e-6, use_mean_pooling=True,
        attn_implementation="eager",
    )  # fmt: skip
    model = InternVLVisionModel(config).eval()
    model.load_state_dict(state)
    return model


def causal_lm(weights: dict[str, Tensor], config: dict[str, Any]) -> Qwen2ForCausalLM | LlamaForCausalLM:
    sizes = {
        "vocab_size": config["vocab_size"], "hidden_size": LLM, "num_hidden_layers": LLM_LAYERS,
        "num_attention_heads": LLM_HEADS, "num_key_value_heads": KV_HEADS, "intermediate_size": LLM_MLP,
        "rms_norm_eps": config["rms_norm_eps"], "tie_word_embeddings": False, "attn_implementation": "eager",
        "rope_parameters": {"rope_type": "default", "rope_theta": config["rope_theta"]},
    }  # fmt: skip
    state = part(weights, "language_model.")
    if config["model_type"] == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**sizes))
    else:
        model, state = LlamaForCausalLM(LlamaConfig(**sizes)), as_llama(state)
    model.eval().load_state_dict(state)
    return model


def as_llama(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename InternLM2's tensors to Llama's. Per key/value head, a wqkv holds its queries, one key and one value."""
    renamed = {
        "tok_embeddings": "embed_tokens", "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
        "attention.wo": "self_attn.o_proj", "feed_forward.w1": "mlp.gate_proj", "feed_forward.w3": "mlp.up_proj",
        "feed_forward.w2": "mlp.down_proj", "output.weight": "lm_head.weight",
    }  # fmt: skip
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.endswith("wqkv.weight"):
            groups = value.view(KV_HEADS, -1, LLM // LLM_HEADS, LLM)  # (kv head, q.. k v, row, column)
            rows = {"q": groups[:, :-2], "k": groups[:, -2], "v": groups[:, -1]}
            stem = name.replace("attention.wqkv.weight", "self_attn")
            found |= {f"{stem}.{kind}_proj.weight": part.reshape(-1, LLM) for kind, part in rows.items()}
            continue
        for old, new in renamed.items():
            name = name.replace(old, new)
        found[name] = value
    return found


# -- writing a folder ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder of the family that the parameter names."""
    path = tmp_path_factory.mktemp("family") / request.param
    path.mkdir()
    begin, changes = FAMILIES[request.param]
    config = json.loads((Path(__file__).parent / "released" / f"{begin}.json").read_text()) | changes
    is_qwen = config["llm_config"]["model_type"] == "qwen2"
    size = (write_qwen2_tokenizer if is_qwen else write_internlm2_tokenizer)(path)
    config["force_image_size"] = 112
    config["vision_config"] |= {
        "image_size": 112, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "intermediate_size": MLP,
    }  # fmt: skip
    config["llm_config"] |= {
        "hidden_size": LLM, "num_hidden_layers": LLM_LAYERS, "num_attention_heads": LLM_HEADS, "vocab_size": size,
        "num_key_value_heads": KV_HEADS, "intermediate_size": LLM_MLP,
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    save_file(drawn_weights(is_qwen=is_qwen, vocab_size=size), path / "model.safetensors", metadata={"format": "pt"})
    return path


def drawn_weights(*, is_qwen: bool, vocab_size: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def matrix(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5

    def pair(name: str, *shape: int) -> dict[str, Tensor]:
        return {f"{name}.weight": matrix(*shape), f"{name}.bias": 0.1 * matrix(shape[0])}

    def norm(name: str, size: int) -> dict[str, Tensor]:
        return {f"{name}.weight": 1 + 0.1 * matrix(size), f"{name}.bias": 0.1 * matrix(size)}

    vision = {
        "class_embedding": matrix(1, 1, WIDTH), "position_embedding": matrix(1, 65, WIDTH),
        "patch_embedding.weight": matrix(WIDTH, 3, 14, 14), "patch_embedding.bias": matrix(WIDTH),
    }  # fmt: skip
    weights = {f"vision_model.embeddings.{name}": value for name, value in vision.items()}
    for index in range(LAYERS):
        layer = {"ls1": matrix(WIDTH), "ls2": matrix(WIDTH)} | norm("norm1", WIDTH) | norm("norm2", WIDTH)
        layer |= pair("attn.qkv", 3 * WIDTH, WIDTH) | pair("attn.proj", WIDTH, WIDTH)
        layer |= pair("mlp.fc1", MLP, WIDTH) | pair("mlp.fc2", WIDTH, MLP)
        weights |= {f"vision_model.encoder.layers.{index}.{name}": value for name, value in layer.items()}
    weights |= norm("mlp1.0", 4 * WIDTH) | pair("mlp1.1", LLM, 4 * WIDTH) | pair("mlp1.3", LLM, LLM)
    ends = ("model.embed_tokens", "lm_head") if is_qwen else ("model.tok_embeddings", "output")
    weights |= {f"language_model.{name}.weight": 8 * matrix(vocab_size, LLM) for name in ends}
    weights["language_model.model.norm.weight"] = 1 + 0.1 * matrix(LLM)
    for index in range(LLM_LAYERS):
        layer = qwen2_layer(matrix) if is_qwen else internlm2_layer(matrix)
        weights |= {f"language_model.model.layers.{index}.{name}": value for name, value in layer.items()}
    return {name: value.contiguous() for name, value in weights.items()}


def qwen2_layer(matrix: Any) -> dict[str, Tensor]:
    kv = KV_HEADS * LLM // LLM_HEADS
    layer = {
        "self_attn.o_proj.weight": matrix(LLM, LLM), "mlp.gate_proj.weight": matrix(LLM_MLP, LLM),
        "mlp.up_proj.weight": matrix(LLM_MLP, LLM), "mlp.down_proj.weight": matrix(LLM, LLM_MLP),
        "input_layernorm.weight": 1 + 0.1 * matrix(LLM), "post_attention_layernorm.weight": 1 + 0.1 * matrix(LLM),
    }  # fmt: skip
    for name, rows in (("q", LLM), ("k", kv), ("v", kv)):
        layer |= {f"self_attn.{name}_proj.weight": matrix(rows, LLM), f"self_attn.{name}_proj.bias": matrix(rows)}
    return layer


def internlm2_layer(matrix: Any) -> dict[str, Tensor]:
    return {
        "attention.wqkv.weight": matrix((LLM_HEADS + 2 * KV_HEADS) * LLM // LLM_HEADS, LLM),
        "attention.wo.weight": matrix(LLM, LLM), "feed_forward.w1.weight": matrix(LLM_MLP, LLM),
        "feed_forward.w3.weight": matrix(LLM_MLP, LLM), "feed_forward.w2.weight": matrix(LLM, LLM_MLP),
        "attention_norm.weight": 1 + 0.1 * matrix(LLM), "ffn_norm.weight": 1 + 0.1 * matrix(LLM),
    }  # fmt: skip


def write_qwen2_tokenizer(path: Path) -> int:
    """Write vocab.json and merges.txt, followed by InternVL's tokens. Return the number of tokens."""
    tokenizer = Fast(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet))
    tokenizer.model.save(str(path))
    first = tokenizer.get_vocab_size()
    entries = {str(first + i): {"content": name, "special": True} for i, name in enumerate(SPECIAL)}
    config = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": entries}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return first + len(SPECIAL)


def write_internlm2_tokenizer(path: Path) -> int:
    """Write tokenizer.model, where two of InternVL's tokens replace spare words, and added_tokens.json for the rest."""
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 5), model_writer=file, model_type="bpe", vocab_size=700, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=False, minloglevel=2,
        user_defined_symbols=["[UNUSED_TOKEN_146]", "[UNUSED_TOKEN_145]"],
    )  # fmt: skip
    (path / "tokenizer.model").write_bytes(file.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=file.getvalue())
    spare = [processor.piece_to_id(f"[UNUSED_TOKEN_{i}]") for i in (146, 145)]
    ids = dict(zip(SPECIAL, [*spare, *range(700, 703)], strict=True))
    entries = {str(token_id): {"content": name, "special": True} for name, token_id in ids.items()}
    (path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": entries}))
    (path / "added_tokens.json").write_text(json.dumps({name: ids[name] for name in SPECIAL[2:]}))
    return 703


def prompt_of(family: str) -> str:
    """The prompt about one image of 16 tokens, written out."""
    system, newline = (INTERNVL2, "") if family.startswith("InternVL2-") else (INTERNVL2_5, "\n")
    start = "<s>" if family in ("InternVL2-8B", "InternVL2.5-2B") else ""
    image = f"<img>{'<IMG_CONTEXT>' * 16}</img>"
    user = f"<|im_start|>user\n{image}\n{QUESTION}<|im_end|>{newline}"
    return f"{start}<|im_start|>system\n{system}<|im_end|>{newline}{user}<|im_start|>assistant\n"


def ids_of(folder: Path, text: str) -> list[int]:
    """Encode `text` with the folder's own files, separately between special tokens."""
    known = {
        entry["content"]: int(key)
        for key, entry in json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"].items()
    }
    encode: Any
    if (folder / "tokenizer.model").exists():
        encode = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).encode
        known |= {"<s>": 1}
    else:
        from transformers import Qwen2Tokenizer

        slow = Qwen2Tokenizer.from_pretrained(folder)
        encode = lambda piece: slow.encode(piece, add_special_tokens=False)  # noqa: E731
    return [token for piece in split(text, known) for token in ([known[piece]] if piece in known else encode(piece))]


def split(text: str, tokens: Iterable[str]) -> list[str]:
    for token in tokens:
        text = text.replace(token, f"\0{token}\0")
    return [piece for piece in text.split("\0") if piece]


# -- what is equal ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return load_model(str(folder))


@pytest.fixture(scope="module")
def frame() -> Tensor:
    return torch.randint(0, 256, (112, 112, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_prompts_are_those_of_the_release_and_their_ids_those_of_the_folders_own_files(
    folder: Path, loaded: LoadedModel
) -> None:
    ids = loaded.image_prompt_ids(num_tiles=[1], question=QUESTION).tolist()
    assert ids == ids_of(folder, prompt_of(folder.name))
    assert ids.count(loaded.token_id("<IMG_CONTEXT>")) == 16


def test_logits_and_greedy_text_are_those_of_an_independent_loader(
    folder: Path, loaded: LoadedModel, frame: Tensor
) -> None:
    original, model = Original(folder), loaded.model
    ids = loaded.image_prompt_ids(num_tiles=[1], question=QUESTION)
    image, _ = model.encode_frame(frame[None])
    ours = loaded.prompt_embeds(ids, image)
    theirs = original.embeds(ids.tolist(), original.image_tokens(frame), loaded.token_id("<IMG_CONTEXT>"))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    wanted = original.llm(inputs_embeds=theirs).logits
    hidden, _ = model.llm(ours, torch.arange(len(ids))[None])
    spread = (wanted.max() - wanted.min()).item()
    torch.testing.assert_close(model.llm.lm_head(hidden), wanted, rtol=0, atol=1e-5 * spread)
    mask = torch.ones(1, len(ids), dtype=torch.int64)
    said = original.llm.generate(
        inputs_embeds=theirs, attention_mask=mask, max_new_tokens=24, min_new_tokens=24, do_sample=False, pad_token_id=0
    )
    answer = model.generate(ours, max_new_tokens=24)
    assert answer == said[0].tolist() and len(set(answer)) > 5
    assert loaded.tokenizer.decode(answer) == loaded.tokenizer.decode(said[0].tolist())
