"""The digits network with QCFS activations: the one whose clip is learned, for the rule "clip"."""

from typing import Any

import torch
from torch import Tensor, nn

from speedysnn import data

LEVELS = 4


class Floor(torch.autograd.Function):
    """floor with the straight-through gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Whole numbers."""
        return x.floor()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """The gradient as it came."""
        return grads[0]


class QCFS(nn.Module):
    """thresh/L clip(floor(L x/thresh + 1/2), 0, L), thresh trained."""

    def __init__(self) -> None:
        super().__init__()
        self.thresh, self.L = nn.Parameter(torch.tensor(2.0)), LEVELS

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, ...)."""
        level: Tensor = Floor.apply(torch.clamp(x / self.thresh, 0, 1) * self.L + 0.5)
        return level / self.L * self.thresh


def trained_with_qcfs(net: nn.Module, train: data.ImageData, epochs: int) -> nn.Module:
    """`net` with QCFS in place of ReLU, trained on from its weights, seed 0."""
    torch.manual_seed(0)
    for name, module in net.named_children():
        if isinstance(module, nn.ReLU):
            setattr(net, name, QCFS())
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    net.train()
    for epoch in range(epochs):
        for images, labels in data.loader(train, 64, shuffle=True, seed=epoch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images), labels).backward()
            optimizer.step()
    return net.eval()
