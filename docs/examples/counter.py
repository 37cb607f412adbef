"""A module with state, and its export: the example of docs/your-model.md.

python docs/examples/counter.py    writes counter.onnx
"""

import torch
from torch import Tensor, nn


class Counter(nn.Module):
    """A running mean of projected inputs. x (batch, 8), total (batch, 4) -> y (batch, 4), new_total (batch, 4)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.project = nn.Linear(8, 4)

    def forward(self, x: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        new_total = 0.9 * total + self.project(x)
        return torch.tanh(new_total), new_total


if __name__ == "__main__":
    batch = {0: torch.export.Dim("batch")}
    torch.onnx.export(
        Counter().eval(),
        (torch.zeros(2, 8), torch.zeros(2, 4)),
        "counter.onnx",
        input_names=["x", "total"],
        output_names=["y", "new_total"],
        dynamic_shapes=(batch, batch),
        dynamo=True,
    )
