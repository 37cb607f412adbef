"""Two optimizers, a schedule, and an average of the weights.

Muon updates the matrices. AdamW updates vectors, embeddings and heads, and, with a lower rate, the parts that would
diverge: the time embedding, AdaLN and the compressor's first layer. Under Muon, gamma(z) grew to 512 and tokens to a
standard deviation of 694, which harms the LLM and is close to float16's range (docs/log.md).
Source: Muon (Keller Jordan et al., 2024), in torch, scaled to AdamW's root mean square.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

PEAK_RATE = 2.5e-3
SLOW, MEDIUM = 0.15, 0.4  # of PEAK_RATE
SLOW_PARTS = ("time_embedding.", "adaln.", "compressor.mlp.fc1.")
BRANCH_ENDS = ("attn.proj.weight", "o_proj.weight", "down_proj.weight", "fc2.weight", "w2.weight")
WARM_UP_STEPS = 60
DECAY_SHARE = 0.5  # of all steps, at the end
AVERAGE_DECAY = 0.997
MAX_GRADIENT_NORM = 1.0


@dataclass(kw_only=True, slots=True)
class Optimizer:
    """Both optimizers of one model and its heads, stepped together."""

    muon: torch.optim.Muon
    adam: torch.optim.AdamW

    @staticmethod
    def of(*modules: nn.Module) -> Optimizer:
        matrices: list[Tensor] = []
        medium: list[Tensor] = []
        slow: list[Tensor] = []
        for module in modules:
            for name, parameter in module.named_parameters():  # lists a tied head once, as the embedding
                if any(part in name for part in SLOW_PARTS):
                    slow.append(parameter)
                elif parameter.ndim == 2 and name.endswith("weight") and _is_inner(name):
                    matrices.append(parameter)
                else:
                    medium.append(parameter)
        muon = torch.optim.Muon(matrices, lr=PEAK_RATE, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        adam = torch.optim.AdamW(
            [{"params": medium, "share": MEDIUM}, {"params": slow, "share": SLOW}], lr=PEAK_RATE, betas=(0.9, 0.98),
            weight_decay=0.0, foreach=True,
        )  # fmt: skip
        return Optimizer(muon=muon, adam=adam)

    def step(self, step: int, num_steps: int) -> None:
        """Apply the gradients."""
        rate = PEAK_RATE * schedule(step, num_steps)
        for group in self.muon.param_groups:
            group["lr"] = rate
        for group in self.adam.param_groups:
            group["lr"] = rate * group["share"]
        self.muon.step()
        self.adam.step()

    def zero_grad(self) -> None:
        self.muon.zero_grad(set_to_none=True)
        self.adam.zero_grad(set_to_none=True)


def _is_inner(name: str) -> bool:
    """Whether this is a matrix between two layers, not an embedding table or a head."""
    return not name.startswith(("llm.embed_tokens", "llm.lm_head", "patch.", "token."))


def schedule(step: int, num_steps: int) -> float:
    """Share of the peak rate: linear warm-up, plateau, and linear decay over the last DECAY_SHARE of all steps."""
    warm = min(1.0, (step + 1) / WARM_UP_STEPS)
    left = (num_steps - step) / max(1, math.ceil(DECAY_SHARE * num_steps))
    return warm * min(1.0, left)


class Average:
    """Exponential average of a model's weights; these are the weights that are saved."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        self.num_updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.num_updates += 1
        decay = min(AVERAGE_DECAY, self.num_updates / (self.num_updates + 10))
        parameters = dict(model.named_parameters())
        torch._foreach_lerp_(list(self.weights.values()), [parameters[name] for name in self.weights], 1 - decay)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            parameter.copy_(self.weights[name])


@torch.no_grad()
def initialize(model: nn.Module, *, seed: int) -> None:
    """Set initial weights: unit variance through every matrix, small residual branches, AdaLN as LN, alpha zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        leaf = name.rsplit(".", 1)[-1]
        noise = torch.randn(parameter.shape, generator=generator)
        if leaf in ("ls1", "ls2") or (leaf == "weight" and parameter.ndim == 1) or name.endswith("w4.bias"):
            parameter.fill_(1.0)
        elif leaf in ("alpha", "bias") or name.endswith(("w4.weight", "w6.weight")):
            parameter.zero_()
        elif "embed" in name and parameter.ndim != 4 and "time_embedding" not in name:
            parameter.copy_(0.1 * noise)
        elif leaf == "weight":
            soft = 0.35 if name.endswith(BRANCH_ENDS) else 1.0
            parameter.copy_(soft * noise * parameter[0].numel() ** -0.5)
        else:
            parameter.copy_(0.3 * noise)  # queries of the Q-Former
