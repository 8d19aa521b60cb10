"""Batch-norm while a network trains: statistics of the whole batch and all its steps, running ones kept beside."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from speedysnn.calls import accept
from speedysnn.executor import Execution
from speedysnn.fold import fold_batch_norm
from speedysnn.graph import Node, map_outputs
from speedysnn.network import SpikingNetwork
from speedysnn.neurons import Reading
from speedysnn.owned import own_tensors
from speedysnn.tap import Observer

MOMENTUM = 0.1


class TrainingExecution(Execution):
    """A pass in which batch-norm takes its statistics over all images and steps and updates the running ones.

    The operator itself stays as it is; only this pass, made for one call, reads batch-norm nodes in another way.
    """

    def affine(self, node: Node, args: Sequence[Tensor], sparse: bool) -> Tensor:
        """A node's result; batch-norm's with the statistics of what it is given."""
        module = self.layers(node.name)
        if node.op != "batch_norm" or module is None:
            return super().affine(node, args, sparse)
        tensors = own_tensors(module, node.op)
        return F.batch_norm(
            args[0], tensors["mean"], tensors["var"], tensors.get("weight"), tensors.get("bias"), True, MOMENTUM,
            node.attrs["eps"],
        )  # fmt: skip


def run_training(
    snn: SpikingNetwork, inputs: Sequence[Tensor], reading: Reading = "spiking", observer: Observer | None = None
) -> Any:
    """The output (mean over T) of a whole batch with batch statistics, in the spiking or the quantized reading."""
    run = TrainingExecution(snn.graph, snn.neurons, snn.layer, snn.timesteps, observer, wires=snn.wires)
    ready = [accept(snn, x, i) for i, x in enumerate(inputs)]
    if reading == "spiking":
        values = run.spiking(ready, per_step=False)
        outputs = {name: run.mean(values[name]) for name in snn.graph.output_names}
    else:
        outputs = run.static([run.mean(value) for value in ready], reading)
    return map_outputs(snn.graph.outputs, outputs)


def with_statistics(ann: nn.Module, inputs: Sequence[Tensor]) -> nn.Module:
    """A copy of a network whose batch-norm layers hold the statistics of these images where they never held any."""
    own = copy.deepcopy(ann).eval()
    for module in own.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None and not module.running_mean.any():
            module.momentum = None  # the plain average
            module.train()
    with torch.no_grad():
        own(*inputs)
    return own.eval()


def folded(snn: SpikingNetwork) -> SpikingNetwork:
    """The same network with its batch-norm in the layers before it; it takes over the neurons."""
    own = {
        node.name: {name: value.detach().clone() for name, value in snn.tensors(node.name).items()}
        for node in snn.graph.nodes
        if snn.tensors(node.name)
    }
    graph = fold_batch_norm(snn.graph, own)
    device = next(snn.parameters()).device
    return SpikingNetwork(
        graph, own, snn.neurons, snn.timesteps, snn.input_shapes, snn.calibration, snn.provenance, copy=False
    ).to(device)
