"""One layer's running sums, float64 by channel."""

import torch
from torch import Tensor

from speedysnn.analysis.definition import added, rows_of, steps_of, summed_plainly
from speedysnn.analysis.fused import summed
from speedysnn.analysis.moments import compared, gram
from speedysnn.analysis.readings import events, mean_of
from speedysnn.analysis.rows import PARTS as PARTS
from speedysnn.analysis.rows import Found
from speedysnn.executor import Tap
from speedysnn.neurons import IFNeuron


class LayerSums:
    """What a layer's row needs, summed over all images; memory does not grow with them.

    a: source activation, z: source pre-activation, r: mean output over time, e = r - a, step = theta / T:

        e = [clamp(z, 0, N theta) - a] + [Q(z) - clamp(z, 0, N theta)] + [Q(z') - Q(z)] + [r - Q(z')]
               clip                         round                          propagated       temporal

    Args:
        name: the layer's.
        neuron: the layer itself.
        full: also sum the products of every two channels' errors, and of steps beside one another.
    """

    def __init__(self, name: str, neuron: IFNeuron, full: bool = False) -> None:
        self.name, self.neuron, self.full = name, neuron, full
        self.theta = neuron.threshold.detach().to(torch.float32)
        self.start = neuron.v_init.detach().to(torch.float32)
        self.most = neuron.timesteps * neuron.levels_per_step
        self.shape: tuple[int, ...] = ()
        self.sums: dict[str, Tensor] = {}

    def update(self, z: Tensor, source: IFNeuron, twin: Tensor, tap: Tap) -> int:
        """Add one pass; returns its spike events.

        Args:
            z: the source's pre-activation, (B, ...).
            source: the source's neuron, for its activation.
            twin: what the quantized reading emitted, (B, ...).
            tap: what the spiking reading received and emitted.
        """
        a = source.analog(z)
        found = self._at_once(z, a, twin, tap)
        if found is None:
            found = summed_plainly(z, source, twin, tap, self.theta, self.start)
        fired = events(tap) if tap.static_output else int(found["pulses"].sum())
        if tap.static_output:  # no trains were unrolled, so nothing is known of their steps
            del found["pulses"]
        found["events"] = torch.tensor([fired, z.numel(), len(z)])
        if self.full:
            found.update(self._products(a, tap))
        self.shape = tuple(z.shape[1:])
        self.sums = added(self.sums, {name: value.cpu() for name, value in found.items()})
        return fired

    def _at_once(self, z: Tensor, a: Tensor, twin: Tensor, tap: Tap) -> dict[str, Tensor] | None:
        """All sums in one read, or None where this cannot be done."""
        neuron, wide = self.neuron, z.ndim
        offset = None if neuron.offset is None else neuron.per_channel(neuron.offset, wide)
        theta, start = neuron.per_channel(self.theta, wide), neuron.per_channel(self.start, wide)
        least = -self.most if neuron.signed else 0
        return summed(
            z, a, twin, tap.drive, tap.output, theta, start, offset, neuron.timesteps, self.most, least,
            neuron.channel_dim, self.full,
        )  # fmt: skip

    def _products(self, a: Tensor, tap: Tap) -> dict[str, Tensor]:
        """Sums of the compared channels' errors, and of their products."""
        mean = mean_of(steps_of(tap.output, self.neuron.timesteps, tap.static_output))
        error = rows_of(mean - a, self.neuron.channel_dim)
        error = error[:, compared(error.shape[1]).to(error.device)]
        return {"gram": gram(error), "gram_sums": error.sum(0)}

    def merge(self, other: "LayerSums") -> None:
        """Add what another pass over other images has summed; see `state` for what another process has."""
        self.add_state(other.state())

    def state(self) -> dict[str, Tensor]:
        """All sums as tensors by name, to send to another process; counts are whole numbers, the rest float64."""
        return {**self.sums, "shape": torch.tensor(self.shape, dtype=torch.int64)} if self.sums else {}

    def add_state(self, state: dict[str, Tensor]) -> None:
        """Add the `state` of another process's sums over other images."""
        if state:
            self.shape = tuple(state["shape"].tolist())
            self.sums = added(self.sums, {name: value for name, value in state.items() if name != "shape"})

    def found(self) -> Found:
        """The figures' ingredients; `rows.row_of` and `details.detail_of` make a row and the details of them."""
        return Found(self.name, self.neuron, self.theta, self.start, self.sums, self.shape)
