"""Networks that several tests share."""

import torch
from torch import Tensor, nn


class Small(nn.Module):
    """Batch-norm, ReLU6, max-pool, addition, concatenation, slices and flatten in one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.pool = nn.Conv2d(8, 8, 3, padding=1), nn.MaxPool2d(2)
        self.head = nn.Linear(16 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        a = self.pool(torch.relu(self.norm(self.first(x))))
        b = torch.clamp(self.second(a), 0, 6)
        return self.head(torch.flatten(self.pool(torch.cat([a, b + a], 1))[:, :, :4, :4], 1))


def randomise(model: nn.Module) -> nn.Module:
    """Batch-norm statistics that do something, evaluation mode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval()
