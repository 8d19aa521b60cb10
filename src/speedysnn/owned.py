"""The tensors that a network's nodes own, as modules of torch."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


def key_of(name: str) -> str:
    """A node name as a module key: torch forbids dots there."""
    return name.replace(".", "/")


def holder(tensors: Mapping[str, Tensor], buffers: Sequence[str], copy: bool) -> nn.Module:
    """A module with the tensors, weight first: a file's own order is by chance, and optimizers count parameters."""
    module = nn.Module()
    for name, value in sorted(tensors.items(), key=lambda item: (item[0] != "weight", item[0])):
        value = value.detach().clone() if copy else value.detach()
        if value.ndim == 4:
            value = value.contiguous(memory_format=torch.channels_last)
        if name in buffers or not value.is_floating_point():
            module.register_buffer(name, value)
        else:
            module.register_parameter(name, nn.Parameter(value))
    return module


def owned(modules: nn.ModuleDict, key: str) -> Mapping[str, Tensor]:
    """The tensors that a node owns, by name."""
    if key not in modules:
        return {}
    module = modules[key]
    own = {**module._parameters, **module._buffers}  # as named_parameters and named_buffers find them, at once
    return {name: value for name, value in own.items() if value is not None}
