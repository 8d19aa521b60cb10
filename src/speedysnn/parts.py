"""What a network is made of and what a run of it needs to know: graph, layers, neurons, T, shapes and sizes."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from speedysnn import plan
from speedysnn.calibration import Calibration
from speedysnn.errors import InputError
from speedysnn.graph import Graph
from speedysnn.kernels.tables import Tables
from speedysnn.neurons import IFNeuron
from speedysnn.owned import effective_tensors, is_plain, is_watched, key_of, layer_module, own_tensors, refresh_weight
from speedysnn.wiring import Wires


class Parts(nn.Module):
    """A graph with its layers and neurons in execution order; see `SpikingNetwork`.

    `layers` holds one module a node that owns tensors, by the node's name with "/" for ".": torch's own classes where
    there is one. Each may be pruned, parametrized, hooked or replaced; a run calls it. Convolution weights have
    their channels innermost; torch's unstructured pruning wants `to(memory_format=torch.contiguous_format)` first.
    """

    BUFFERS = ("mean", "var", "value", "index", "mask")

    def __init__(
        self,
        graph: Graph,
        tensors: Mapping[str, Mapping[str, Tensor]],
        neurons: Mapping[str, IFNeuron],
        timesteps: int,
        input_shapes: Sequence[Sequence[int]],
        calibration: Calibration | None = None,
        provenance: dict[str, Any] | None = None,
        *,
        copy: bool = True,
    ) -> None:
        super().__init__()
        self.graph, self.wires = graph, Wires.of(graph)
        self._nodes = {node.name: node for node in graph.nodes}
        owners = [name for name in self._nodes if name in tensors]
        self.layers = nn.ModuleDict(
            {key_of(name): layer_module(self._nodes[name], tensors[name], self.BUFFERS, copy) for name in owners}
        )
        self._neurons = nn.ModuleDict({key_of(name): neuron for name, neuron in neurons.items()})
        for neuron in neurons.values():
            neuron.belongs_to_network = True
        self.input_shapes = tuple(tuple(int(size) for size in shape) for shape in input_shapes)
        self.calibration, self.provenance = calibration or Calibration(), provenance or {}
        self.tables = Tables()
        self.width = plan.widest(graph, self.input_shapes)
        self.multiplications = plan.multiplications(graph, self.tensors)
        self.images_per_pass: int | None = None
        self.timesteps = timesteps

    @property
    def timesteps(self) -> int:
        """T; setting it keeps every theta (see `SpikingNetwork.recalibrate`)."""
        return self._timesteps

    @timesteps.setter
    def timesteps(self, value: int) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"timesteps: expected a whole number of at least 1, got {value!r}")
        self._timesteps = value
        for neuron in self.neurons.values():
            neuron.timesteps = value
        self.reset()

    def reset(self) -> None:
        """Forget the neurons' streaming state."""
        for neuron in self.neurons.values():
            neuron.reset()

    @property
    def neurons(self) -> dict[str, IFNeuron]:
        """Neurons by name, in execution order."""
        return {node.name: self._neuron(node.name) for node in self.graph.neurons}

    def _neuron(self, name: str) -> IFNeuron:
        module = self._neurons[key_of(name)]
        assert isinstance(module, IFNeuron)
        return module

    def layer(self, name: str) -> nn.Module | None:
        """The module of the named node, None where it owns no tensors."""
        return self.layers._modules.get(key_of(name))

    def tensors(self, name: str) -> Mapping[str, Tensor]:
        """The tensors that the named node runs with: what pruning, a parametrization or a merged wrapper makes of them.

        Raises:
            InputError: the node's module is a wrapper whose result is no plain weight.
        """
        module = self.layer(name)
        return {} if module is None else effective_tensors(self._nodes[name], module)

    def plain_tensors(self, name: str) -> Mapping[str, Tensor]:
        """The tensors of a node that kernels may run in its module's stead; none where the module was changed."""
        module = self.layer(name)
        return {} if module is None or not is_plain(module) else own_tensors(module, self._nodes[name].op)

    @property
    def watched(self) -> bool:
        """Whether a hook of the user's is to see a layer or a neuron: its calls are then of whole batches."""
        return any(is_watched(module) for module in (*self.layers.modules(), *self._neurons.children()))

    @property
    def weight_bytes(self) -> int:
        """Bytes of the parameters that nodes own, without the neurons'."""
        return sum(p.numel() * p.element_size() for p in self.layers.parameters())

    def _known(self, name: str) -> IFNeuron:
        if key_of(name) not in self._neurons:
            raise InputError(f"no neuron is called {name!r}; there are {', '.join(self.neurons)}")
        return self._neuron(name)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Parts":
        """A copy; what pruning left behind as an attribute with a gradient is first computed again without one."""
        for module in self.layers.modules():
            refresh_weight(module)
        out = type(self).__new__(type(self))
        memo[id(self)] = out
        out.__dict__ = copy.deepcopy(self.__dict__, memo)
        return out
