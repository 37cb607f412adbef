"""Configuration of a PVC model, and the named presets.

A configuration is frozen, validated on creation, and independent of torch. Every error names both conflicting
values.
Source: PVC (arXiv 2412.09613) and the InternVL2 model cards; docs/model.md separates published from inferred values.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .errors import ConfigError

CompressorKind = Literal["pvc", "pixel_shuffle", "pool", "conv", "q_former"]
ShuffleOrder = Literal["v1", "v2"]
TimeMode = Literal["absolute", "fixed", "relative"]
ImageLayout = Literal["tile_streams", "tiles_in_time"]
LLMFamily = Literal["internlm2", "qwen2", "llama"]
TemplateName = Literal["internlm2-chat", "Hermes-2", "internvl2_5", "tiny"]


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionConfig:
    """InternViT whose last `num_temporal_layers` layers also attend over time."""

    image_size: int = 448
    patch_size: int = 14
    hidden_size: int = 1024
    num_layers: int = 24
    num_heads: int = 16
    mlp_size: int = 4096
    num_temporal_layers: int = 8
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-6
    sinusoid_size: int = 256

    def __post_init__(self) -> None:
        _check_fields(self, but="num_temporal_layers")
        _divides("patch_size", self.patch_size, "image_size", self.image_size)
        _divides("num_heads", self.num_heads, "hidden_size", self.hidden_size)
        _divides("two (cosines and sines)", 2, "sinusoid_size", self.sinusoid_size)
        if not 0 <= self.num_temporal_layers <= self.num_layers:
            raise ConfigError(
                f"num_temporal_layers = {self.num_temporal_layers} with num_layers = {self.num_layers}",
                expected=f"0 to {self.num_layers}: the last num_temporal_layers layers are temporal",
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def grid_size(self) -> int:
        """Patches along one side of a frame."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        return self.grid_size**2

    @property
    def num_positions(self) -> int:
        """N: the patches and the class token."""
        return self.num_patches + 1

    @property
    def num_trunk_layers(self) -> int:
        """Layers without temporal attention, which run once for a repeated frame."""
        return self.num_layers - self.num_temporal_layers


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressorConfig:
    """The module that turns one frame's patches into `num_tokens` LLM tokens.

    pvc            PixelShuffle + AdaLN on the time embedding + MLP (PVC)
    pixel_shuffle  PixelShuffle + LayerNorm + MLP (InternVL2's, without time)
    pool           adaptive average pooling + LayerNorm + MLP
    conv           strided convolution + LayerNorm + MLP
    q_former       learned queries that cross-attend to the patches + linear
    """

    kind: CompressorKind = "pvc"
    num_tokens: int = 64
    shuffle: ShuffleOrder = "v2"
    num_q_former_layers: int = 2

    def __post_init__(self) -> None:
        _check_fields(self, prefix="compressor.")

    @property
    def token_grid(self) -> tuple[int, int]:
        """(rows, columns) of the token grid: the factors of num_tokens closest to a square."""
        rows = next(r for r in range(math.isqrt(self.num_tokens), 0, -1) if self.num_tokens % r == 0)
        return rows, self.num_tokens // rows


@dataclass(frozen=True, kw_only=True, slots=True)
class LLMConfig:
    """A decoder: RMSNorm, RoPE, grouped-query attention, SwiGLU. `family` sets the tensor names in a checkpoint."""

    family: LLMFamily = "internlm2"
    vocab_size: int = 92553
    hidden_size: int = 4096
    num_layers: int = 32
    num_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int | None = None
    mlp_size: int = 14336
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-5
    qkv_bias: bool = False
    tie_embeddings: bool = False
    max_positions: int = 32768

    def __post_init__(self) -> None:
        _check_fields(self, prefix="llm.")
        _divides("num_kv_heads", self.num_kv_heads, "num_heads", self.num_heads)
        if self.head_dim is None:
            _divides("num_heads", self.num_heads, "hidden_size", self.hidden_size)
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_heads)
        _positive(self, "attention_head_dim")
        _divides("two (RoPE rotates pairs)", 2, "head_dim", self.attention_head_dim)
        if self.family == "internlm2" and self.qkv_bias:
            raise ConfigError(
                "llm.qkv_bias is True, but the internlm2 family has no qkv biases",
                expected="qkv_bias False, or family qwen2, which has qkv biases",
            )

    @property
    def attention_head_dim(self) -> int:
        assert self.head_dim is not None
        return self.head_dim


@dataclass(frozen=True, kw_only=True, slots=True)
class PVCConfig:
    """A complete model. `PVCConfig.preset(name)` returns a named one."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    compressor: CompressorConfig = field(default_factory=CompressorConfig)
    llm: LLMConfig = field(default_factory=LLMConfig)
    time_mode: TimeMode = "absolute"
    trained_frames: int = 96
    num_image_repeats: int = 4
    max_image_tiles: int = 6
    use_thumbnail: bool = True
    image_layout: ImageLayout = "tile_streams"
    template: TemplateName = "internlm2-chat"
    system_message: str | None = None
    """Replaces the template's system message."""

    def __post_init__(self) -> None:
        _check_fields(self)
        rows, columns = self.compressor.token_grid
        grid = self.vision.grid_size
        if self.compressor.kind in ("pvc", "pixel_shuffle", "conv") and (grid % rows or grid % columns):
            raise ConfigError(
                f"compressor {self.compressor.kind!r} with num_tokens = {self.compressor.num_tokens} needs a grid of "
                f"{rows} x {columns} tokens, which does not divide the {grid} x {grid} patches",
                expected=f"rows and columns that divide {grid}",
                fix="choose another num_tokens, or kind 'pool' or 'q_former'",
            )
        if self.compressor.kind == "pool" and (rows > grid or columns > grid):
            raise ConfigError(
                f"compressor 'pool' cannot make {rows} x {columns} tokens from {grid} x {grid} patches",
                expected=f"at most {grid} rows and {grid} columns",
                fix="choose another num_tokens, or kind 'q_former'",
            )

    @staticmethod
    def preset(name: str) -> PVCConfig:
        """Return the named configuration. Raises ConfigError that suggests the closest name."""
        _one_of(PRESETS, name, f"there is no model named {name!r}")
        return PRESETS[name]


def _one_of(choices: Collection[str], value: str, what: str) -> None:
    if value not in choices:
        near = get_close_matches(str(value), choices, n=1)
        fix = f"did you mean {near[0]!r}?" if near else ""
        raise ConfigError(what, expected=f"one of {', '.join(choices)}", fix=fix)


def _check_fields(owner: object, *, prefix: str = "", but: str = "") -> None:
    """Check that every Literal has an allowed value and every int but one is positive. `prefix`: path in a file."""
    for name, kind in get_type_hints(type(owner)).items():
        if get_origin(kind) is Literal:
            value = getattr(owner, name)
            _one_of(get_args(kind), value, f"{prefix}{name} is {value!r}")
        elif kind is int and name != but:
            _positive(owner, name)


def _positive(owner: object, name: str) -> None:
    if getattr(owner, name) <= 0:
        raise ConfigError(f"{type(owner).__name__}.{name} is {getattr(owner, name)}", expected="a positive number")


def _divides(small_name: str, small: int, large_name: str, large: int) -> None:
    if large % small:
        nearest = small * max(1, large // small)
        raise ConfigError(
            f"{large_name} = {large} is not a multiple of {small_name} = {small}",
            expected=f"a multiple, for example {nearest}",
        )


def _qwen2(**sizes: Any) -> LLMConfig:
    return LLMConfig(family="qwen2", rms_norm_eps=1e-6, qkv_bias=True, **sizes)


def _internvl(llm: LLMConfig, template: TemplateName) -> PVCConfig:
    """InternVL with the 300M tower: no layer attends over time, and an image is encoded once."""
    return PVCConfig(
        vision=VisionConfig(num_temporal_layers=0),
        compressor=CompressorConfig(kind="pixel_shuffle", num_tokens=256),
        llm=llm,
        num_image_repeats=1,
        max_image_tiles=12,
        template=template,
    )


QWEN2_0_5B = _qwen2(vocab_size=151655, hidden_size=896, num_layers=24, num_heads=14, num_kv_heads=2, mlp_size=4864)
QWEN2_5_0_5B = replace(QWEN2_0_5B, vocab_size=151674)
INTERNLM2_1_8B = LLMConfig(hidden_size=2048, num_layers=24, num_heads=16, num_kv_heads=8, mlp_size=8192)
INTERNLM2_5_7B = LLMConfig()

# LLM widths: from each model's config.json. Temporal layers: inferred from the sizes of PVC's published shards.
PRESETS: dict[str, PVCConfig] = {
    "tiny": PVCConfig(
        vision=VisionConfig(
            image_size=112, hidden_size=64, num_layers=4, num_heads=4, mlp_size=128, num_temporal_layers=2
        ),
        compressor=CompressorConfig(num_tokens=4),
        llm=LLMConfig(
            family="qwen2",
            vocab_size=264,
            hidden_size=64,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            mlp_size=128,
            qkv_bias=True,
            rope_theta=1e4,
        ),
        template="tiny",
    ),
    # The bundled model, trained on pvc_ref/shapes by `python -m pvc_ref.train`.
    "shapes": PVCConfig(
        vision=VisionConfig(
            image_size=112, hidden_size=96, num_layers=4, num_heads=3, mlp_size=288, num_temporal_layers=2
        ),
        compressor=CompressorConfig(num_tokens=16),
        llm=LLMConfig(
            family="qwen2",
            vocab_size=512,
            hidden_size=128,
            num_layers=3,
            num_heads=4,
            num_kv_heads=2,
            mlp_size=352,
            rope_theta=1e4,
            qkv_bias=True,
            tie_embeddings=True,
            max_positions=4096,
        ),
        trained_frames=16,
        max_image_tiles=1,
        template="tiny",
    ),
    "pvc-internvl2-1b": PVCConfig(llm=QWEN2_0_5B, template="Hermes-2"),
    "pvc-internvl2-2b": PVCConfig(llm=INTERNLM2_1_8B),
    "pvc-internvl2-8b": PVCConfig(llm=INTERNLM2_5_7B),
    "internvl2-1b": _internvl(QWEN2_0_5B, "Hermes-2"),
    "internvl2-2b": _internvl(INTERNLM2_1_8B, "internlm2-chat"),
    "internvl2-8b": _internvl(INTERNLM2_5_7B, "internlm2-chat"),
    "internvl2_5-1b": _internvl(QWEN2_5_0_5B, "internvl2_5"),
    "internvl2_5-2b": _internvl(INTERNLM2_1_8B, "internvl2_5"),
    "internvl2_5-4b": _internvl(
        _qwen2(vocab_size=151674, hidden_size=2048, num_layers=36, num_heads=16, num_kv_heads=2, mlp_size=11008),
        "internvl2_5",
    ),
    "internvl2_5-8b": _internvl(INTERNLM2_5_7B, "internvl2_5"),
    "internvl3-1b": _internvl(QWEN2_5_0_5B, "internvl2_5"),
    "internvl3-2b": _internvl(
        _qwen2(vocab_size=151674, hidden_size=1536, num_layers=28, num_heads=12, num_kv_heads=2, mlp_size=8960),
        "internvl2_5",
    ),
    "internvl3-8b": _internvl(
        _qwen2(vocab_size=151674, hidden_size=3584, num_layers=28, num_heads=28, num_kv_heads=4, mlp_size=18944),
        "internvl2_5",
    ),
    # The full vision side of the 8B model with one narrow LLM layer: the largest that two cores and 24 GB can export.
    "vision-8b": PVCConfig(
        llm=LLMConfig(vocab_size=264, num_layers=1, mlp_size=1024, max_positions=4096),
        template="tiny",
    ),
}
