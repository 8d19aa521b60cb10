"""The parts of a network by name: its graph, the tensors that nodes own, and the neurons."""

from collections.abc import Mapping

from torch import Tensor, nn

from speedysnn.errors import InputError
from speedysnn.graph import Graph
from speedysnn.neurons import IFNeuron
from speedysnn.owned import holder, key_of, owned
from speedysnn.wiring import Wires


class Parts(nn.Module):
    """A graph with its tensors and neurons in execution order; see `SpikingNetwork`."""

    BUFFERS = ("mean", "var", "value", "index", "mask")

    def __init__(
        self,
        graph: Graph,
        tensors: Mapping[str, Mapping[str, Tensor]],
        neurons: Mapping[str, IFNeuron],
        *,
        copy: bool = True,
    ) -> None:
        super().__init__()
        self.graph, self.wires = graph, Wires.of(graph)
        place = {node.name: position for position, node in enumerate(graph.nodes)}
        owners = sorted(tensors, key=lambda name: place.get(name, len(place)))
        self.layers = nn.ModuleDict({key_of(name): holder(tensors[name], self.BUFFERS, copy) for name in owners})
        self._neurons = nn.ModuleDict({key_of(name): neuron for name, neuron in neurons.items()})

    @property
    def neurons(self) -> dict[str, IFNeuron]:
        """Neurons by name, in execution order."""
        return {node.name: self._neuron(node.name) for node in self.graph.neurons}

    def _neuron(self, name: str) -> IFNeuron:
        module = self._neurons[key_of(name)]
        assert isinstance(module, IFNeuron)
        return module

    def tensors(self, name: str) -> Mapping[str, Tensor]:
        """The tensors that the named node owns."""
        return owned(self.layers, key_of(name))

    @property
    def weight_bytes(self) -> int:
        """Bytes of the parameters that nodes own, without the neurons'."""
        own = (layer._parameters.values() for layer in self.layers.children())
        return sum(p.numel() * p.element_size() for some in own for p in some if p is not None)

    def _known(self, name: str) -> IFNeuron:
        if key_of(name) not in self._neurons:
            raise InputError(f"no neuron is called {name!r}; there are {', '.join(self.neurons)}")
        return self._neuron(name)
