"""Batch-norm while a network trains: statistics of the batch over all steps, running ones kept beside them."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from speedysnn.calls import accept
from speedysnn.executor import Execution, Value
from speedysnn.fold import fold_batch_norm
from speedysnn.graph import Node, map_outputs
from speedysnn.network import SpikingNetwork

MOMENTUM = 0.1


class TrainingExecution(Execution):
    """A pass in which batch-norm takes its statistics over (T*B, ...) and updates the network's running ones.

    The operator itself stays as it is; only this pass, made for one call, reads batch-norm nodes in another way.
    """

    def _node(self, node: Node, args: list[Value]) -> Value:
        if node.op != "batch_norm":
            return super()._node(node, args)
        own = self.tensors(node.name)
        out = F.batch_norm(
            args[0].tensor, own["mean"], own["var"], own.get("weight"), own.get("bias"), True, MOMENTUM,
            node.attrs["eps"],
        )  # fmt: skip
        return Value(out, args[0].dynamic)


def run_training(snn: SpikingNetwork, inputs: Sequence[Tensor]) -> Any:
    """The spiking reading's output, mean over T, of a whole batch with batch statistics."""
    run = TrainingExecution(snn.graph, snn.neurons, snn.tensors, snn.timesteps)
    values = run.spiking([accept(snn, x, i) for i, x in enumerate(inputs)], per_step=False)
    return map_outputs(snn.graph.outputs, {name: run.mean(values[name]) for name in snn.graph.output_names})


def with_statistics(ann: nn.Module, inputs: Sequence[Tensor]) -> nn.Module:
    """A copy of an untrained network whose batch-norm layers hold the statistics of these images."""
    own = copy.deepcopy(ann).eval()
    for module in own.modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            module.reset_running_stats()
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
