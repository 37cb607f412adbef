"""Measure why each float32 island of a float16 graph is needed: python -m pvc_export.studies.islands

Every row computes one operation in three ways on the same float16 inputs: in float64 (the truth), with its island
(float32 inside, rounded to float16 at the end), and without (every step rounded to float16, as in a graph without the
island). The table in docs/numerics.md is this program's output.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pvc_ref.llm import rope_angles
from pvc_ref.temporal import TimeEmbedding, sinusoid

Operation = Callable[[torch.dtype], Tensor]
"""Computes everything in the given dtype, from inputs that are exact in float16."""


def islands() -> list[tuple[str, str, Operation]]:
    """List each island: its name, a case that needs it, and the operation in that case."""
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
        ("sinusoid and time MLP", "frame 95 (last of PVC's training)", embed_time(95.0)),
        ("sinusoid and time MLP", "frame 2049", embed_time(2049.0)),
        ("LayerNorm statistics", "one channel of 64 at 300", lambda dtype: _layer_norm(outlier.to(dtype))),
        ("RMSNorm statistics", "one channel of 64 at 300", lambda dtype: _rms_norm(outlier.to(dtype))),
        ("softmax", "1025 keys, then the values", lambda dtype: _softmax(scores.to(dtype)) @ values.to(dtype)),
        ("RoPE angles", "position 2049, theta 1e6", lambda dtype: _rope(2049, dtype)),
    ]


def _embed_time(time_mlp: TimeEmbedding, times: Tensor) -> Tensor:
    """TimeEmbedding without its upcast of the time."""
    embedded: Tensor = time_mlp.w2(torch.nn.functional.silu(time_mlp.w1(sinusoid(times, time_mlp.sinusoid_size))))
    return embedded


def _layer_norm(x: Tensor) -> Tensor:
    return _rms_norm(x - x.mean(-1, keepdim=True))


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
    """|got - truth| / |truth|; infinite if `got` is not finite."""
    if not bool(got.isfinite().all()):
        return float("inf")
    return float((got.double() - truth).norm() / truth.norm())


@torch.no_grad()
def main() -> None:
    print("| island | case | relative error with | without |")
    print("|---|---|---|---|")
    for name, case, compute in islands():
        truth = compute(torch.float64)
        kept = relative_error(compute(torch.float32).half(), truth)
        removed = relative_error(compute(torch.float16), truth)
        print(f"| {name} | {case} | {kept:.1e} | {removed:.1e} |")


if __name__ == "__main__":
    main()
