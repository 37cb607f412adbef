"""Why each float32 island of a float16 graph exists, measured: python -m pvc_export.studies.islands

Every row computes one operation three ways on the same float16 inputs: in float64 (the truth), with its island (float32
inside, rounded to float16 at the end), and without (every step rounded to float16, as a graph without the island would
do it). The table of docs/numerics.md is this program's output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pvc_ref.llm import rope_angles
from pvc_ref.temporal import TimeEmbedding, sinusoid

Operation = Callable[[torch.dtype], Tensor]
"""Computes everything in the given dtype, from inputs that are exact in float16."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Island:
    name: str
    case: str
    compute: Operation


def islands() -> list[Island]:
    """Each island with the inputs that show why it is there."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator)).half()

    time_mlp = TimeEmbedding(256, 64)
    with torch.no_grad():
        for parameter in time_mlp.parameters():
            parameter.copy_(draw(*parameter.shape, scale=parameter[0].numel() ** -0.5))
    outlier = draw(65, 64)
    outlier[:, 7] = 300.0  # trained vision transformers have such channels
    scores, values = draw(16, 1025, scale=4.0), draw(1025, 64)

    def embed_time(time: float) -> Operation:
        return lambda dtype: _embed_time(time_mlp.to(dtype), torch.tensor([time], dtype=dtype))

    return [
        Island(name="sinusoid and time MLP", case="frame 95 (last of PVC's training)", compute=embed_time(95.0)),
        Island(name="sinusoid and time MLP", case="frame 2049", compute=embed_time(2049.0)),
        Island(
            name="LayerNorm statistics", case="one channel of 64 at 300", compute=lambda d: _layer_norm(outlier.to(d))
        ),
        Island(name="RMSNorm statistics", case="one channel of 64 at 300", compute=lambda d: _rms_norm(outlier.to(d))),
        Island(
            name="softmax", case="1025 keys, then the values", compute=lambda d: _softmax(scores.to(d)) @ values.to(d)
        ),
        Island(name="RoPE angles", case="position 2049, theta 1e6", compute=lambda d: _rope(2049, d)),
    ]


def _embed_time(time_mlp: TimeEmbedding, times: Tensor) -> Tensor:
    """What TimeEmbedding does, without its own upcast of the time."""
    embedded: Tensor = time_mlp.w2(torch.nn.functional.silu(time_mlp.w1(sinusoid(times, time_mlp.sinusoid_size))))
    return embedded


def _layer_norm(x: Tensor) -> Tensor:
    centered = x - x.mean(-1, keepdim=True)
    return centered / (centered.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def _rms_norm(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def _softmax(x: Tensor) -> Tensor:
    powers = (x - x.amax(-1, keepdim=True)).exp()
    return powers / powers.sum(-1, keepdim=True)


def _rope(position: int, dtype: torch.dtype) -> Tensor:
    if dtype != torch.float16:
        return torch.cat(rope_angles(torch.tensor([[position]]), 128, 1e6, dtype))
    exponents = torch.arange(0, 128, 2, dtype=dtype) / 128
    angles = torch.tensor(position, dtype=dtype) * torch.tensor(1e6, dtype=dtype).clamp(max=65504) ** -exponents
    angles = torch.cat([angles, angles])[None, None, None]
    return torch.cat([angles.cos(), angles.sin()])


def relative_error(got: Tensor, truth: Tensor) -> float:
    """|got - truth| / |truth|, infinite where got is not finite."""
    if not bool(got.isfinite().all()):
        return float("inf")
    return float((got.double() - truth).norm() / truth.norm())


@torch.no_grad()
def measure() -> list[tuple[Island, float, float]]:
    """(island, error with it, error without it) for every row."""
    rows = []
    for island in islands():
        truth = island.compute(torch.float64)
        kept = island.compute(torch.float32).half()
        rows.append((island, relative_error(kept, truth), relative_error(island.compute(torch.float16), truth)))
    return rows


def main() -> None:
    print("| island | case | relative error with | without |")
    print("|---|---|---|---|")
    for island, kept, removed in measure():
        print(f"| {island.name} | {island.case} | {kept:.1e} | {removed:.1e} |")


if __name__ == "__main__":
    main()
