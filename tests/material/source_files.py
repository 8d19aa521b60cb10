"""A file of networks, and weights, for the tests of networks and checkpoints."""

import os
import sys
import textwrap

import pytest
import torch

NETS = """
    import torch
    from torch import nn

    def small(num_classes=4):
        return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, num_classes))

    def fixed():
        return nn.Linear(3, 4)

    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = fixed()

        def forward(self, x):
            return self.model(x)

    def neighbour():
        from helper import net
        return net()

    def broken():
        return nn.Linear(3, 4)(torch.zeros(1, 7))

    def exits():
        raise SystemExit(2)

    def text():
        return "resnet"

    def needs(width):
        return nn.Linear(width, 4)

    WIDTH = 3
"""


@pytest.fixture
def nets(tmp_path):
    """A file of networks, as a path without its function."""
    (tmp_path / "nets.py").write_text(textwrap.dedent(NETS))
    (tmp_path / "helper.py").write_text("from torch import nn\n\ndef net():\n    return nn.Linear(1, 1)\n")
    yield str(tmp_path / "nets.py")
    sys.modules.pop("helper", None)


def some_weights(seed=0):
    torch.manual_seed(seed)
    return {"weight": torch.randn(4, 3), "bias": torch.randn(4)}


def prefixed(prefix, weights=None):
    return {prefix + key: value for key, value in (weights or some_weights()).items()}


class RunsCode:
    """Unpickling this would create a folder."""

    def __reduce__(self):
        return os.mkdir, ("ran-code",)
