"""A small InternVLChatModel and its PVC variant, written from publications and not from pvc_ref: other operations in
another order, under the original's names. It stands in for the released code, and like that code needs only torch.

The parts that PVC adds have the names used in pvc_ref, since the released names are not known.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class VisionEmbeddings(nn.Module):
    def __init__(self, facts: Any) -> None:
        super().__init__()
        width, grid = facts.hidden_size, facts.image_size // facts.patch_size
        self.class_embedding = nn.Parameter(torch.randn(1, 1, width))
        self.patch_embedding = nn.Conv2d(3, width, kernel_size=facts.patch_size, stride=facts.patch_size)
        self.position_embedding = nn.Parameter(torch.randn(1, grid * grid + 1, width))

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(patches), 1, -1), patches], dim=1)
        return x + self.position_embedding.to(x.dtype)


class Attention(nn.Module):
    """Attention over the rows of x (B, N, C), causal over time if the rows are frames."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, *, is_causal: bool = False) -> Tensor:
        batch, rows, width = x.shape
        qkv = self.qkv(x).reshape(batch, rows, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(*qkv.unbind(0), is_causal=is_causal)
        return self.proj(out.transpose(1, 2).reshape(batch, rows, width))


class VisionLayer(nn.Module):
    def __init__(self, facts: Any) -> None:
        super().__init__()
        width = facts.hidden_size
        self.attn = Attention(width, facts.num_attention_heads)
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, facts.intermediate_size), "fc2": nn.Linear(facts.intermediate_size, width)}
        )
        self.norm1 = nn.LayerNorm(width, eps=facts.layer_norm_eps)
        self.norm2 = nn.LayerNorm(width, eps=facts.layer_norm_eps)
        self.ls1 = nn.Parameter(torch.ones(width))
        self.ls2 = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x)) * self.ls1
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x)))) * self.ls2


class TimeEmbedding(nn.Module):
    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.size = size
        self.w1 = nn.Linear(size, width)
        self.w2 = nn.Linear(width, width)

    def forward(self, times: Tensor) -> Tensor:
        half = self.size // 2
        angles = times.float()[:, None] * torch.exp(-math.log(10000.0) * torch.arange(half).float() / half)
        return self.w2(F.silu(self.w1(torch.cat([angles.cos(), angles.sin()], dim=1).to(self.w1.weight.dtype))))


class AdaLN(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        for name in ("w3", "w4", "w5", "w6"):
            self.add_module(name, nn.Linear(width, width))

    def forward(self, x: Tensor, z: Tensor, eps: float) -> Tensor:
        scale = self.w4(F.silu(self.w3(z)))
        return torch.addcmul(self.w6(F.silu(self.w5(z))), F.layer_norm(x, x.shape[-1:], eps=eps), scale)


class TemporalVisionLayer(VisionLayer):
    """A layer for the frames of one video, (T, N, C), with attention over time between its two steps."""

    def __init__(self, facts: Any, sinusoid_size: int) -> None:
        super().__init__(facts)
        self.eps = facts.layer_norm_eps
        self.time_embedding = TimeEmbedding(sinusoid_size, facts.hidden_size)
        self.adaln = AdaLN(facts.hidden_size)
        self.temporal_attn = Attention(facts.hidden_size, facts.num_attention_heads)
        self.alpha = nn.Parameter(torch.ones(facts.hidden_size))

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x)) * self.ls1
        y = self.adaln(x, x + self.time_embedding(times)[:, None], self.eps).transpose(0, 1)  # (N, T, C)
        x = x + self.temporal_attn(y, is_causal=True).transpose(0, 1) * self.alpha
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x)))) * self.ls2


class VisionEncoder(nn.Module):
    def __init__(self, facts: Any, pvc: Any) -> None:
        super().__init__()
        first = facts.num_hidden_layers - (pvc.num_temporal_layers if pvc else 0)
        self.layers = nn.ModuleList(
            VisionLayer(facts) if index < first else TemporalVisionLayer(facts, pvc.sinusoid_size)
            for index in range(facts.num_hidden_layers)
        )


class VisionModel(nn.Module):
    def __init__(self, facts: Any, pvc: Any) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(facts)
        self.encoder = VisionEncoder(facts, pvc)

    def forward(self, pixel_values: Tensor, times: Tensor) -> Tensor:
        x = self.embeddings(pixel_values)
        for layer in self.encoder.layers:
            x = layer(x, times)
        return x


class TimedProjector(nn.ModuleDict):
    """PVC's mlp1: AdaLN instead of the LayerNorm."""

    def __init__(self, width: int, out_width: int, sinusoid_size: int) -> None:
        super().__init__(
            {
                "time_embedding": TimeEmbedding(sinusoid_size, width),
                "adaln": AdaLN(width),
                "1": nn.Linear(width, out_width),
                "3": nn.Linear(out_width, out_width),
            }
        )

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        y = self["adaln"](x, x + self["time_embedding"](times)[:, None], 1e-5)
        return self["3"](F.gelu(self["1"](y)))


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class SelfAttention(nn.Module):
    def __init__(self, facts: Any) -> None:
        super().__init__()
        self.facts = facts
        self.head_dim = facts.hidden_size // facts.num_attention_heads
        kv_size = facts.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(facts.hidden_size, facts.hidden_size)
        self.k_proj = nn.Linear(facts.hidden_size, kv_size)
        self.v_proj = nn.Linear(facts.hidden_size, kv_size)
        self.o_proj = nn.Linear(facts.hidden_size, facts.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = self.rotated(q), self.rotated(k)
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).flatten(2))

    def rotated(self, x: Tensor) -> Tensor:
        """Rotate the pairs (i, i + D/2) as complex numbers."""
        half = self.head_dim // 2
        frequencies = self.facts.rope_theta ** (-torch.arange(half).float() / half)
        turn = torch.polar(torch.tensor(1.0), torch.arange(x.shape[2]).float()[:, None] * frequencies)
        low, high = x.float().chunk(2, dim=-1)
        turned = torch.complex(low, high) * turn
        return torch.cat([turned.real, turned.imag], dim=-1).to(x.dtype)


class DecoderLayer(nn.Module):
    def __init__(self, facts: Any) -> None:
        super().__init__()
        width, hidden = facts.hidden_size, facts.intermediate_size
        self.self_attn = SelfAttention(facts)
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(width, hidden, bias=False),
                "up_proj": nn.Linear(width, hidden, bias=False),
                "down_proj": nn.Linear(hidden, width, bias=False),
            }
        )
        self.input_layernorm = RMSNorm(width, facts.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(width, facts.rms_norm_eps)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Return a tuple, as decoders of older transformers versions do."""
        x = x + self.self_attn(self.input_layernorm(x))
        y = self.post_attention_layernorm(x)
        return (x + self.mlp["down_proj"](F.silu(self.mlp["gate_proj"](y)) * self.mlp["up_proj"](y)),)


class LanguageModel(nn.Module):
    def __init__(self, facts: Any) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(facts.vocab_size, facts.hidden_size)
        self.model.layers = nn.ModuleList(DecoderLayer(facts) for _ in range(facts.num_hidden_layers))
        self.model.norm = RMSNorm(facts.hidden_size, facts.rms_norm_eps)
        self.lm_head = nn.Linear(facts.hidden_size, facts.vocab_size, bias=False)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def forward(self, inputs_embeds: Tensor, use_cache: bool) -> SimpleNamespace:
        x = inputs_embeds
        for layer in self.model.layers:
            (x,) = layer(x)
        return SimpleNamespace(logits=self.lm_head(self.model.norm(x)))


class Parts:
    """The parts of both models below, built from the content of a config.json."""

    def build(self, data: dict[str, Any]) -> None:
        vision, llm = SimpleNamespace(**data["vision_config"]), SimpleNamespace(**data["llm_config"])
        pvc = SimpleNamespace(**data["pvc"]) if "pvc" in data else None
        self.data, self.pvc = data, pvc
        self.vision_model = VisionModel(vision, pvc)
        self.language_model = LanguageModel(llm)
        width = vision.hidden_size * round(1 / data["downsample_ratio"]) ** 2
        self.mlp1 = (
            TimedProjector(width, llm.hidden_size, pvc.sinusoid_size)
            if pvc
            else nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, llm.hidden_size),
                nn.GELU(),
                nn.Linear(llm.hidden_size, llm.hidden_size),
            )
        )

    def pixel_shuffle(self, x: Tensor) -> Tensor:
        """(T, W, H, C) -> (T, W * r, H * r, C / r^2), in the original's two steps."""
        ratio = self.data["downsample_ratio"]
        count, width, height, channels = x.shape
        x = x.view(count, width, int(height * ratio), int(channels / ratio))
        x = x.permute(0, 2, 1, 3).contiguous()
        x = x.view(count, int(height * ratio), int(width * ratio), int(channels / ratio**2))
        return x if self.data["ps_version"] == "v1" else x.permute(0, 2, 1, 3).contiguous()

    def projected(self, pixel_values: Tensor) -> Tensor:
        count = len(pixel_values)
        times = torch.arange(count)
        if self.pvc and self.pvc.time_mode != "absolute":
            times = times / count
        x = self.vision_model(pixel_values, times)[:, 1:]
        side = int(x.shape[1] ** 0.5)
        x = self.pixel_shuffle(x.reshape(count, side, side, -1)).flatten(1, 2)
        return self.mlp1(x, times) if self.pvc else self.mlp1(x)


class ChatModel(Parts, nn.Module):
    """InternVL2's chat model."""

    def __init__(self, data: dict[str, Any]) -> None:
        nn.Module.__init__(self)
        self.build(data)

    def extract_feature(self, pixel_values: Tensor) -> Tensor:
        return self.projected(pixel_values)


class PVCChatModel(ChatModel):
    """PVC's chat model, which must be told that its frames belong to one video."""

    def extract_feature(self, pixel_values: Tensor, data_flag: Tensor, split_sizes: Tensor) -> Tensor:
        assert data_flag.tolist() == [3] and split_sizes.tolist() == [len(pixel_values)]
        return self.projected(pixel_values)[None]
