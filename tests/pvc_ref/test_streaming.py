"""A stream fed frame by frame equals the whole clip; images are static videos; every compressor streams."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pvc_ref import PVC, CompressorConfig, ConfigError, LLMConfig, PVCConfig, VisionConfig, VisionState
from pvc_ref.compressor import build_compressor, pooling_matrix
from pvc_ref.config import CompressorKind
from pvc_ref.errors import InputError
from pvc_ref.init import randomize

W = 4
CONFIG = PVCConfig(
    vision=VisionConfig(
        image_size=28, patch_size=7, hidden_size=24, num_layers=4, num_heads=3, mlp_size=40, num_temporal_layers=2
    ),
    compressor=CompressorConfig(num_tokens=4),
    llm=LLMConfig(vocab_size=8, hidden_size=20, num_layers=1, num_heads=2, num_kv_heads=1, mlp_size=8),
)
FIXED, RELATIVE = (dataclasses.replace(CONFIG, time_mode=mode) for mode in ("fixed", "relative"))
TILES_IN_TIME = dataclasses.replace(CONFIG, image_layout="tiles_in_time")
COMPRESSORS = [
    *((kind, tokens) for kind in ("pvc", "pixel_shuffle", "conv") for tokens in (1, 2, 4, 16)),
    *(("pool", tokens) for tokens in (1, 2, 4, 9, 16)),  # 3 x 3 does not divide the 4 x 4 patches
    *(("q_former", tokens) for tokens in (1, 5, 16)),
]


pytestmark = pytest.mark.usefixtures("no_grad")


# -- streaming -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [W, None], ids=lambda w: f"window={w}")
@pytest.mark.parametrize("num_frames", [1, W - 1, W, W + 1, 2 * W, 3 * W + 1], ids=lambda n: f"T={n}")
def test_streaming_equals_the_whole_clip(num_frames: int, window: int | None) -> None:
    frames = random_frames(2, num_frames, seed=1)
    clip = PVC.random(CONFIG, seed=2).encode_clip(frames, window=window)
    streamed, _ = stream(PVC.random(CONFIG, seed=2), frames, window=window)
    assert streamed.shape == (2, num_frames, 4, 20)
    unit = clip.std()
    torch.testing.assert_close(streamed / unit, clip / unit, rtol=0, atol=1e-5)  # worst 1.6e-6

    clip = make_double(CONFIG).encode_clip(frames, window=window)
    streamed, _ = stream(make_double(CONFIG), frames, window=window)
    torch.testing.assert_close(streamed, clip, rtol=0, atol=1e-12)  # worst 1.3e-14


def test_a_window_of_one_frame_has_no_past() -> None:
    frames = random_frames(2, 3, seed=3)
    model = make_double(CONFIG)
    streamed, state = stream(model, frames, window=1)
    torch.testing.assert_close(streamed, model.encode_clip(frames, window=1), rtol=0, atol=1e-12)  # worst 1.4e-14
    assert state.num_bytes() == 0 and state.num_frames == 3


def test_a_window_that_the_clip_does_not_fill_changes_nothing_and_a_smaller_one_does() -> None:
    frames = random_frames(2, 5, seed=4)
    model = PVC.random(CONFIG, seed=2)
    whole = model.encode_clip(frames)
    for window in (5, 6, 100):
        assert torch.equal(model.encode_clip(frames, window=window), whole)
        assert torch.equal(stream(model, frames, window=window)[0], stream(model, frames, window=None)[0])
    differs = (model.encode_clip(frames, window=4) - whole).abs().amax(dim=(0, 2, 3))
    assert differs[:4].max() == 0 and differs[4] > 1e-2  # frame 4 is the first that cannot see frame 0


def test_no_frame_sees_a_later_one() -> None:
    frames = random_frames(1, 5, seed=5)
    model = PVC.random(CONFIG, seed=2)
    changed = frames.clone()
    changed[:, 3] = 255 - changed[:, 3]
    differs = (model.encode_clip(frames) - model.encode_clip(changed)).abs().amax(dim=(0, 2, 3))
    assert differs[:3].max() == 0 and differs[3:].min() > 1e-3


def test_two_interleaved_streams_do_not_mix() -> None:
    model = make_double(CONFIG)
    frames = random_frames(2, 2 * W, seed=6)
    states: list[VisionState | None] = [None, None]
    embeds: list[list[Tensor]] = [[], []]
    for t in range(2 * W):
        for index in (0, 1):
            out, states[index] = model.encode_frame(frames[index : index + 1, t], states[index], window=W)
            embeds[index].append(out)
    for index in (0, 1):
        alone = model.encode_clip(frames[index : index + 1], window=W)
        torch.testing.assert_close(torch.stack(embeds[index], dim=1), alone, rtol=0, atol=1e-12)  # worst 1.2e-14


def test_streams_of_one_batch_do_not_mix() -> None:
    model = PVC.random(CONFIG, seed=2)
    frames = random_frames(2, W + 1, seed=7)
    changed = frames.clone()
    changed[1] = 255 - changed[1]
    before, after = stream(model, frames, window=W)[0], stream(model, changed, window=W)[0]
    assert torch.equal(before[0], after[0])
    assert (before[1] - after[1]).abs().max() > 1e-2


@pytest.mark.parametrize("window", [W, None], ids=lambda w: f"window={w}")
def test_encoding_a_frame_leaves_the_given_state_as_it_was(window: int | None) -> None:
    model = PVC.random(CONFIG, seed=2)
    frames = random_frames(2, W + 2, seed=8)
    _, state = stream(model, frames[:, :-1], window=window)
    kept = [x.clone() for pair in state.past for x in pair]
    first, after = model.encode_frame(frames[:, -1], state, window=window)
    again, _ = model.encode_frame(frames[:, -1], state, window=window)
    assert torch.equal(first, again)
    assert state.num_frames == W + 1 and after.num_frames == W + 2
    assert all(torch.equal(x, y) for x, y in zip(kept, (x for pair in state.past for x in pair), strict=True))


def test_state_never_holds_more_than_the_window_less_the_current_frame() -> None:
    model = PVC.random(CONFIG, seed=2)
    frames = random_frames(2, 3 * W, seed=9)
    bytes_a_frame = 2 * 2 * 2 * 17 * 24 * 4  # layers, key and value, streams, positions, width, float32
    state = None
    for t in range(3 * W):
        _, state = model.encode_frame(frames[:, t], state, window=W)
        assert state.num_frames == t + 1
        assert {x.shape for pair in state.past for x in pair} == {(2, min(t + 1, W - 1), 17, 3, 8)}
        assert state.num_bytes() == min(t + 1, W - 1) * bytes_a_frame
    _, unbounded = stream(model, frames, window=None)
    assert unbounded.num_bytes() == 3 * W * bytes_a_frame


def test_state_holds_the_newest_frames_oldest_first() -> None:
    model = PVC.random(CONFIG, seed=2)
    frames = random_frames(1, W + 2, seed=10)
    state, rows = None, []
    for t in range(W + 2):
        outputs, state = model.frame_outputs(frames[:, t], state, window=W)
        rows.append(outputs.new)
    for layer, (key, value) in enumerate(state.past):
        assert torch.equal(key, torch.stack([row[layer][0] for row in rows[-(W - 1) :]], dim=1))
        assert torch.equal(value, torch.stack([row[layer][1] for row in rows[-(W - 1) :]], dim=1))


def test_a_model_without_temporal_layers_streams_too() -> None:
    vision = dataclasses.replace(CONFIG.vision, num_temporal_layers=0)
    model = make_double(dataclasses.replace(CONFIG, vision=vision))
    frames = random_frames(2, 3, seed=11)
    streamed, state = stream(model, frames, window=W)
    torch.testing.assert_close(streamed, model.encode_clip(frames), rtol=0, atol=1e-12)  # worst 7.1e-15
    assert state.past == () and state.num_frames == 3


# -- time ------------------------------------------------------------------------------------------------------------


# -- images are static videos ----------------------------------------------------------------------------------------


def test_every_tile_is_a_static_video_of_its_own() -> None:
    model = make_double(CONFIG)
    tiles = random_tiles(3, seed=16)
    (tokens,) = model.encode_images([tiles], num_repeats=2)
    assert tokens.shape == (3 * 2 * 4, 20)
    for index, tile in enumerate(tiles):
        video = model.encode_clip(torch.stack([tile, tile])[None])[0]  # (repeats, M, E)
        mine = tokens[index * 2 * 4 : (index + 1) * 2 * 4]
        torch.testing.assert_close(mine, video.flatten(0, 1), rtol=0, atol=1e-12)  # worst 8.9e-15


def test_image_tokens_are_ordered_image_tile_repeat_token() -> None:
    """Token 3 of repeat 1 of tile 2, when a tile has 2 repeats of 4 tokens, is row (2 * 2 + 1) * 4 + 3 = 23."""
    model = make_double(CONFIG)
    tiles = random_tiles(3, seed=17)
    (tokens,) = model.encode_images([tiles], num_repeats=2)
    _, state = model.encode_frame(tiles[2:])
    repeat_1, _ = model.encode_frame(tiles[2:], state)
    torch.testing.assert_close(tokens[23], repeat_1[0, 3], rtol=0, atol=1e-12)  # worst 5.3e-15
    others = torch.cat([tokens[:23], tokens[24:]])
    assert (others - repeat_1[0, 3]).abs().amax(dim=1).min() > 1e-2  # no other row would pass


def test_tiles_do_not_see_one_another() -> None:
    model = PVC.random(CONFIG, seed=2)
    tiles = random_tiles(2, seed=18)
    changed = torch.stack([tiles[0], 255 - tiles[1]])
    (before,), (after,) = model.encode_images([tiles]), model.encode_images([changed])
    per_tile = 4 * CONFIG.num_image_repeats
    assert torch.equal(before[:per_tile], after[:per_tile])
    assert (before[per_tile:] - after[per_tile:]).abs().max() > 1e-2


def test_tiles_in_time_are_one_stream_of_every_tile_repeated() -> None:
    model = make_double(TILES_IN_TIME)
    tiles = random_tiles(3, seed=19)
    (tokens,) = model.encode_images([tiles], num_repeats=2)
    streamed, _ = stream(model, tiles[[0, 0, 1, 1, 2, 2]][None], window=None)
    torch.testing.assert_close(tokens, streamed[0].flatten(0, 1), rtol=0, atol=1e-12)  # worst 9.8e-15


def test_tiles_in_time_see_the_tiles_before_them() -> None:
    model, streams = PVC.random(TILES_IN_TIME, seed=2), PVC.random(CONFIG, seed=2)
    tiles = random_tiles(2, seed=20)
    changed = torch.stack([255 - tiles[0], tiles[1]])
    per_tile = 4 * CONFIG.num_image_repeats
    (before,), (after,) = model.encode_images([tiles]), model.encode_images([changed])
    assert (before[per_tile:] - after[per_tile:]).abs().max() > 1e-2
    (in_streams,) = streams.encode_images([tiles])
    assert (before[:per_tile] - in_streams[:per_tile]).abs().max() < 1e-5  # the first tile: worst 0
    assert (before[per_tile:] - in_streams[per_tile:]).abs().max() > 1e-2


@pytest.mark.parametrize("config", [CONFIG, TILES_IN_TIME], ids=lambda c: c.image_layout)
def test_images_keep_their_order_and_do_not_see_one_another(config: PVCConfig) -> None:
    model = PVC.random(config, seed=2)
    images = [random_tiles(count, seed=21 + count) for count in (2, 1, 3)]
    encoded = model.encode_images(images, num_repeats=3)
    assert [tokens.shape for tokens in encoded] == [(tiles * 3 * 4, 20) for tiles in (2, 1, 3)]
    for image, tokens in zip(images, encoded, strict=True):
        assert torch.equal(model.encode_images([image], num_repeats=3)[0], tokens)


def test_the_length_of_an_image_is_known_so_relative_and_fixed_time_agree() -> None:
    tiles = random_tiles(2, seed=25)
    (fixed,), (relative,), (absolute,) = (
        PVC.random(config, seed=2).encode_images([tiles]) for config in (FIXED, RELATIVE, CONFIG)
    )
    assert torch.equal(fixed, relative)
    assert (fixed - absolute).abs().max() > 1e-2


# -- compressors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "num_tokens"), COMPRESSORS)
def test_every_compressor_streams(kind: CompressorKind, num_tokens: int) -> None:
    model = make_double(with_compressor(kind, num_tokens))
    frames = random_frames(2, W + 2, seed=26)
    streamed, _ = stream(model, frames, window=W)
    assert streamed.shape == (2, W + 2, num_tokens, 20)
    torch.testing.assert_close(streamed, model.encode_clip(frames, window=W), rtol=0, atol=1e-12)  # worst 1.6e-14


@pytest.mark.parametrize("kind", ["pvc", "pixel_shuffle", "conv"])
def test_compressors_that_cut_the_grid_refuse_tokens_that_do_not_divide_it(kind: CompressorKind) -> None:
    with pytest.raises(ConfigError, match="grid of 3 x 3 tokens, which does not divide the 4 x 4 patches"):
        with_compressor(kind, 9)


@pytest.mark.parametrize("kind", ["pvc", "pixel_shuffle", "conv", "pool", "q_former"])
def test_only_pvc_knows_the_time_of_its_frame(kind: CompressorKind) -> None:
    compressor = randomize(build_compressor(with_compressor(kind, 4)), seed=27)
    patches = torch.randn(2, 16, 24, generator=seeded(28))
    at_0, at_50 = (compressor(patches, torch.full((2,), time)) for time in (0.0, 50.0))
    assert torch.equal(at_0, at_50) == (kind != "pvc")


@pytest.mark.parametrize("num_tokens", [2, 4])
@pytest.mark.parametrize("kind", ["pvc", "pixel_shuffle", "conv", "pool"])
def test_a_token_sees_its_own_rectangle_of_patches_and_no_other(kind: CompressorKind, num_tokens: int) -> None:
    """2 tokens: left and right half. 4 tokens: quarters, row by row."""
    compressor = randomize(build_compressor(with_compressor(kind, num_tokens)), seed=29)
    patches = torch.randn(1, 16, 24, generator=seeded(30))
    tokens = compressor(patches, torch.zeros(1))
    for row in range(4):
        for column in range(4):
            changed = patches.clone()
            changed[0, row * 4 + column] += torch.randn(24, generator=seeded(31))
            differs = (compressor(changed, torch.zeros(1)) - tokens)[0].abs().amax(dim=1)
            own = column // 2 if num_tokens == 2 else row // 2 * 2 + column // 2
            assert [index for index, change in enumerate(differs) if change > 1e-6] == [own]


@pytest.mark.parametrize(
    ("grid", "rows", "columns"), [(4, 2, 2), (4, 3, 3), (8, 3, 3), (7, 2, 3), (5, 4, 5), (32, 6, 10)]
)
def test_pooling_equals_adaptive_average_pooling_of_torch(grid: int, rows: int, columns: int) -> None:
    patches = torch.randn(2, grid * grid, 5, generator=seeded(32), dtype=torch.float64)
    maps = patches.transpose(1, 2).unflatten(2, (grid, grid))
    expected = F.adaptive_avg_pool2d(maps, (rows, columns)).flatten(2).transpose(1, 2)
    actual = pooling_matrix(grid, rows=rows, columns=columns) @ patches
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)  # worst 2.2e-16


def test_pool_compressor_is_pooling_then_norm_then_mlp() -> None:
    compressor = randomize(build_compressor(with_compressor("pool", 9)).double(), seed=33)
    patches = torch.randn(2, 16, 24, generator=seeded(34), dtype=torch.float64)
    maps = patches.transpose(1, 2).unflatten(2, (4, 4))
    pooled = F.adaptive_avg_pool2d(maps, (3, 3)).flatten(2).transpose(1, 2)
    expected = compressor.mlp(F.layer_norm(pooled, (24,), compressor.norm.weight, compressor.norm.bias, 1e-5))
    torch.testing.assert_close(compressor(patches, torch.zeros(2)), expected, rtol=0, atol=1e-12)  # worst 0


# -- helpers ---------------------------------------------------------------------------------------------------------


def stream(
    model: PVC, frames: Tensor, *, window: int | None, total_frames: int | None = None
) -> tuple[Tensor, VisionState]:
    """Run encode_frame over all frames (B, T, S, S, 3) -> (B, T, M, E) and the last state."""
    state, embeds = None, []
    for t in range(frames.shape[1]):
        out, state = model.encode_frame(frames[:, t], state, window=window, total_frames=total_frames)
        embeds.append(out)
    assert state is not None
    return torch.stack(embeds, dim=1), state


def make_double(config: PVCConfig) -> PVC:
    return randomize(PVC(config).double(), seed=2).eval()


def with_compressor(kind: str, num_tokens: int) -> PVCConfig:
    return dataclasses.replace(CONFIG, compressor=CompressorConfig(kind=kind, num_tokens=num_tokens))


def random_frames(batch: int, num_frames: int, *, seed: int) -> Tensor:
    return torch.randint(0, 256, (batch, num_frames, 28, 28, 3), dtype=torch.uint8, generator=seeded(seed))


def random_tiles(count: int, *, seed: int) -> Tensor:
    return random_frames(1, count, seed=seed)[0]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- invalid arguments -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [0, -1])
def test_a_window_without_the_current_frame_is_refused(window: int) -> None:
    model = PVC.random(CONFIG, seed=1)
    clip = torch.zeros(1, 2, 28, 28, 3, dtype=torch.uint8)
    with pytest.raises(InputError, match=f"window is {window}\nexpected: at least 1"):
        model.encode_clip(clip, window=window)
    with pytest.raises(InputError, match=f"window is {window}\nexpected: at least 1"):
        model.encode_frame(clip[:, 0], window=window)


@pytest.mark.parametrize("total_frames", [0, 1])
def test_a_frame_beyond_the_clip_s_length_is_refused(total_frames: int) -> None:
    model = PVC.random(FIXED, seed=1)
    clip = torch.zeros(1, 2, 28, 28, 3, dtype=torch.uint8)
    with pytest.raises(InputError, match=f"frame 1 is outside the clip: total_frames = {total_frames}"):
        model.encode_clip(clip, total_frames=total_frames)


def test_an_image_that_is_repeated_zero_times_is_refused() -> None:
    model = PVC.random(CONFIG, seed=1)
    with pytest.raises(InputError, match="num_repeats is 0\nexpected: at least 1"):
        model.encode_images([torch.zeros(1, 28, 28, 3, dtype=torch.uint8)], num_repeats=0)
