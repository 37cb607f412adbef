"""The decoder LLM of InternVL2: Qwen2 and InternLM2 (a Llama with fused weights) in one class.

    x := x + MHA(RMSNorm(x));   x := x + SwiGLU(RMSNorm(x));   logits = head(RMSNorm(x))

The module does not own its cache: it takes past keys and values and returns only the new rows' keys and values, which
the caller stores. Keys are cached after rotation.
Source: Qwen2 (arXiv 2407.10671), InternLM2 (arXiv 2403.17297); RoPE in the rotate-half convention of both.
Dimension key:  B streams   L new rows   P past rows   S = P + L   H heads   K key/value heads   D head dim   E width
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import LLMConfig
from .layers import Attention, RMSNorm, attention, upcast, visible_to_bias, wave_frequencies

KeyValue = tuple[Tensor, Tensor]
"""Keys and values of one layer, each (B, rows, K, D)."""


class Decoder(nn.Module):
    """Embedding table, layers, final norm and head. `forward` runs the layers on embeddings."""

    def __init__(self, config: LLMConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(
        self,
        inputs_embeds: Tensor,
        position_ids: Tensor,
        past: Sequence[KeyValue] | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, list[KeyValue]]:
        """Run L new rows after P past ones.

        inputs_embeds (B, L, E); position_ids int64 (B, L): they set the rotation, never the causal mask
        past          keys and values of every layer, each (B, P, K, D); None when P is 0
        attention_mask (B, P + L), 0 = padding, never attended to; None = all visible
        Returns the normalised hidden (B, L, E), and every layer's new keys and values, each (B, L, K, D).
        """
        num_past = 0 if past is None else past[0][0].shape[1]
        bias = causal_bias(inputs_embeds, num_past, attention_mask)
        rope = self.angles(position_ids, inputs_embeds.dtype)
        x, new = inputs_embeds, []
        for layer_index, layer in enumerate(self.layers):
            x, rows = layer(x, rope, None if past is None else past[layer_index], bias)
            new.append(rows)
        return self.norm(x), new

    def angles(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """RoPE's cosines and sines for positions (B, L), each (B, L, 1, D)."""
        return rope_angles(position_ids, self.config.attention_head_dim, self.config.rope_theta, dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """Normalised hidden (..., E) -> logits (..., V) in at least float32."""
        return upcast(self.lm_head(hidden))


class DecoderLayer(nn.Module):
    def __init__(self, config: LLMConfig) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.attn = CausalAttention(config)
        self.mlp_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = SwiGLU(config.hidden_size, config.mlp_size)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], past: KeyValue | None, bias: Tensor
    ) -> tuple[Tensor, KeyValue]:
        attended, new = self.attn(self.attn_norm(x), rope, past, bias)
        x = x + attended
        return x + self.mlp(self.mlp_norm(x)), new


class CausalAttention(nn.Module):
    mix = staticmethod(attention)

    def __init__(self, config: LLMConfig) -> None:
        super().__init__()
        self.head_dim = config.attention_head_dim
        q_size, kv_size = config.num_heads * self.head_dim, config.num_kv_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, q_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(q_size, config.hidden_size, bias=False)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, L, E) -> queries (B, L, H, D), keys and values (B, L, K, D)."""
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return q, k, v

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], past: KeyValue | None, bias: Tensor
    ) -> tuple[Tensor, KeyValue]:
        q, k, v = self.rows(x, rope)
        return self.attend(q, (k, v), past, bias), (k, v)

    def rows(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Run `project` and rotate the queries and keys."""
        q, k, v = self.project(x)
        return rotate(q, *rope), rotate(k, *rope), v

    def attend(self, q: Tensor, new: KeyValue, past: KeyValue | None, bias: Tensor) -> Tensor:
        """q (B, L, H, D), new (B, L, K, D), past (B, P, K, D), bias (B, 1, L, P + L) -> (B, L, E)."""
        k, v = new
        if past is not None:
            k, v = torch.cat([past[0], k], dim=1), torch.cat([past[1], v], dim=1)
        out: Tensor = self.o_proj(grouped_attention(q, k, v, bias, self.mix).flatten(2))
        return out


class SwiGLU(nn.Module):
    def __init__(self, size: int, hidden_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(size, hidden_size, bias=False)
        self.up_proj = nn.Linear(size, hidden_size, bias=False)
        self.down_proj = nn.Linear(hidden_size, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def grouped_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mix: Attention = attention) -> Tensor:
    """q (B, L, H, D), k and v (B, S, K, D), bias (B, 1, L, S) -> (B, L, H, D).

    The H / K query heads that share a key/value head become rows of one query, so that keys and values are not copied.
    """
    batch, rows, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[2]
    group = num_heads // num_kv_heads
    q = q.unflatten(2, (num_kv_heads, group)).permute(0, 2, 3, 1, 4).flatten(2, 3)  # (B, K, group * L, D)
    k, v = k.transpose(1, 2), v.transpose(1, 2)  # (B, K, S, D)
    out = mix(q, k, v, bias.repeat(1, 1, group, 1))  # (B, K, group * L, D)
    return out.unflatten(2, (group, rows)).permute(0, 3, 1, 2, 4).flatten(2, 3)


def rope_angles(position_ids: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines (B, L, 1, D) of position * theta^(-2i/D), computed in at least float32, returned in `dtype`."""
    wide = torch.promote_types(dtype, torch.float32)
    positions = position_ids.to(wide)[..., None]
    angles = positions * wave_frequencies(head_dim // 2, theta, positions)
    angles = torch.cat([angles, angles], dim=-1)[:, :, None]
    return torch.cos(angles).to(dtype), torch.sin(angles).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, L, heads, D): the pair (x_i, x_{i + D/2}) is rotated by its angle."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-high, low], dim=-1) * sin


def causal_bias(inputs_embeds: Tensor, num_past: int, attention_mask: Tensor | None) -> Tensor:
    """(B or 1, 1, L, P + L): new row i sees every past row and the new rows 0..i, except padding."""
    rows = inputs_embeds.shape[1]
    query = torch.arange(rows, device=inputs_embeds.device)[:, None] + num_past
    key = torch.arange(num_past + rows, device=inputs_embeds.device)[None, :]
    visible = (key <= query)[None, None]
    if attention_mask is not None:
        visible = visible & (attention_mask[:, None, None] != 0)
    return visible_to_bias(visible, inputs_embeds.dtype)
