"""CostReport: what was counted, and its energy under several named cost tables, never as one number.

Four tables are of compute only, in pJ an operation in 45 nm CMOS (Horowitz, ISSCC 2014). The fifth, `with_memory`, adds
addressing and accesses to buffers that are as large as what they hold, which can turn the verdict. Compare figures
within a row, never across rows: each row is another estimator.

Energy with memory: E = sum over layers of operations + addressing + accesses. 32-bit integers: an addition 0.1 pJ, a
multiplication 3.1 pJ. An access of 32 bits costs 10 pJ in 8 kB, 20 pJ in 32 kB and 100 pJ in 1 MB, linear between them
and beyond. Inputs, weights, potentials, biases and outputs of a layer lie in buffers of their own, each as large as
what it holds. A synaptic operation reads a weight, and reads and writes a potential; it arrives at an address that is
computed for its event.

Reference: Lemaire et al., "An analytical estimation of spiking neural networks energy efficiency", 2022. The counts are
ours: exact fan-outs instead of ceil(k/S)^2 a spike, and the source's multiply-accumulates without padding.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from speedysnn.display import plain

COUNTS = ("neurons", "spikes", "spike_bits", "events", "synops", "graded_synops", "macs", "macs_every_step",
          "analog_macs", "analog_adds", "rival_macs", "updates", "state_bytes")  # fmt: skip

SIZES = ("inputs", "outputs", "weights", "biases")


@dataclass(frozen=True)
class CostTable:
    """What one operation costs.

    Attributes:
        mac: one multiply-accumulate, pJ.
        ac: one accumulate, pJ.
    """

    mac: float
    ac: float


TABLES: dict[str, CostTable] = {
    "FP32, 45 nm": CostTable(4.6, 0.9),
    "FP16, 45 nm": CostTable(1.5, 0.4),
    "INT8, 45 nm": CostTable(0.23, 0.03),
    "INT32, 45 nm": CostTable(3.2, 0.1),
}
COLUMNS = ("table", "analog_nj", "rival_nj", "spiking_nj", "spiking_with_updates_nj")


def energies(total: Mapping[str, float], tables: Mapping[str, CostTable] = TABLES) -> pd.DataFrame:
    """Compute the energy under every table: E = MAC pJ * MACs + AC pJ * ACs.

    A synaptic operation is one AC, of a graded spike one MAC; one of a power of two only shifts the weight. The analog
    network and the rival pay one MAC a weight and one AC a shortcut; `spiking_with_updates_nj` adds one AC a membrane
    update.

    Args:
        total: `CostReport.total`.
        tables: name -> costs.

    Returns:
        One row a table with the columns `COLUMNS`, in nJ an image.

    Example:
        >>> from speedysnn.analysis.cost import CostTable, energies
        >>> total = {"macs": 0, "graded_synops": 0, "synops": 1000, "analog_macs": 1000, "analog_adds": 0,
        ...          "rival_macs": 500, "updates": 0}
        >>> row = energies(total, {"FP32": CostTable(mac=4.6, ac=0.9)}).iloc[0]
        >>> float(row["analog_nj"]), float(row["rival_nj"]), float(row["spiking_nj"])
        (4.6, 2.3, 0.9)
    """
    rows = []
    for name, cost in tables.items():
        spiking = cost.mac * (total["macs"] + total["graded_synops"])
        spiking += cost.ac * (total["synops"] - total["graded_synops"])
        analog = cost.mac * total["analog_macs"] + cost.ac * total["analog_adds"]
        rival = cost.mac * total["rival_macs"] + cost.ac * total["analog_adds"]
        updated = spiking + cost.ac * total["updates"]
        rows.append([name, *(pj / 1000 for pj in (analog, rival, spiking, updated))])
    return pd.DataFrame(rows, columns=list(COLUMNS))


@dataclass(frozen=True)
class CostReport:
    """What one inference costs: every count is summed over all T steps and averaged over the images.

    Columns of `layers`, one row a weight layer or neuron layer in execution order; `total` holds their sums:

    - layer, op: the node's name and operator.
    - receives: "constant", "events" or "analog", as the graph says; values are never asked.
    - inputs, outputs, weights, biases: values of one image, or of the layer, that its buffers hold.
    - neurons: neurons of the layer.
    - spikes: events that the layer emits, of whatever sign or grade.
    - spike_bits: what those events take on a link, `kernels.bits_per_spike` each, addresses not counted.
    - events: events that arrive at its inputs; one spike arrives once for every path and pooling window.
    - synops: events times the exact fan-out of the position they arrive at; a padded border counts nothing. On a
      neuron's row: events that come by a shortcut, past every weight.
    - graded_synops: those of `synops` whose event may carry a size, so that the weight is multiplied; the size of a
      "power2:N" spike shifts it, which the tables price as nothing beside the accumulate.
    - macs: multiply-accumulates; on constant current once an image, on analog values at every step.
    - macs_every_step: the same where nothing is kept from step to step.
    - analog_macs, analog_adds: the source network's, dense, without its padding; adds are its shortcuts'.
    - rival_macs: those of a network quantized to `bits` bits that skips its own zeros; analog inputs stay dense.
    - updates: membrane updates, T a neuron.
    - state_bytes: 4 bytes a membrane; as much again for the count that a look-ahead or signed spikes need.

    Zero weights count like others; biases, delay lines and the operators in `uncounted` are not counted.

    Attributes:
        layers: the table.
        total: sums of its counts.
        energy: nJ an image under each table of `TABLES`, for compute alone, and one row with memory (`memory_energy`).
        bits: of the rival's activations, ceil(log2(levels)), T + 1 levels for binary spikes.
        images: how many were run.
        settings: timesteps, delay, latency, depth and spikes.
        uncounted: operators on an analog unit, "name (operator)".
    """

    layers: pd.DataFrame
    total: dict[str, float]
    energy: pd.DataFrame
    bits: int
    images: int
    settings: dict[str, Any]
    uncounted: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Give everything as strict JSON data.

        Returns:
            Counts, energies and layers; None for what is undefined.
        """
        return {
            **{name: plain(value) for name, value in self.settings.items()},
            "images": self.images,
            "rival_bits": self.bits,
            "total": {name: plain(value) for name, value in self.total.items()},
            "energy": [{key: plain(value) for key, value in row.items()} for row in self.energy.to_dict("records")],
            "layers": [{key: plain(value) for key, value in row.items()} for row in self.layers.to_dict("records")],
            "uncounted": list(self.uncounted),
        }


ADD, MUL = 0.1, 3.1  # pJ of a 32-bit integer addition and multiplication
NAME = "INT32, 45 nm, with memory"
_SIZES, _COSTS, _BYTES = (8 * 1024, 32 * 1024, 1024 * 1024), (10.0, 20.0, 100.0), 4


def access(values: float) -> float:
    """Compute the energy to read or write one 32-bit value of a buffer.

    Args:
        values: how many values the buffer holds.

    Returns:
        pJ: 10 up to 8 kB, then linear between the sizes that were published.

    Example:
        >>> from speedysnn.analysis.cost import access
        >>> access(2048), access(8192)  # 8 kB and 32 kB
        (10.0, 20.0)
    """
    size = float(values) * _BYTES
    if size > _SIZES[-1]:  # the last slope goes on
        slope = (_COSTS[-1] - _COSTS[-2]) / (_SIZES[-1] - _SIZES[-2])
        return _COSTS[-1] + slope * (size - _SIZES[-1])
    return float(np.interp(size, _SIZES, _COSTS))


def with_memory(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Compute the energy with memory accesses, from the rows of `CostReport.layers`.

    Returns:
        One row as `energies` has them, in nJ an image.
    """
    source = rival = spiking = updates = 0.0
    for row in rows:
        if row["op"] == "neuron":
            potential = 2 * access(row["outputs"])
            spiking += row["synops"] * (ADD + potential) + row["spikes"] * access(row["outputs"])
            source += row["analog_adds"] * ADD
            rival += row["analog_adds"] * ADD
            updates += row["updates"] * (ADD + potential)
            continue
        source += _dense(row, row["analog_macs"])
        rival += _dense(row, row["rival_macs"])
        spiking += _spiking(row)
    return {"table": NAME, "analog_nj": source / 1000, "rival_nj": rival / 1000, "spiking_nj": spiking / 1000,
            "spiking_with_updates_nj": (spiking + updates) / 1000}  # fmt: skip


def _dense(row: Mapping[str, Any], macs: float) -> float:
    """Each multiply-accumulate reads an input and a weight; each output adds a bias, is written and addressed."""
    reads = macs * (MUL + ADD + access(row["inputs"]) + access(row["weights"]))
    outputs = row["outputs"] * (ADD + access(row["biases"]) * bool(row["biases"]) + access(row["outputs"]))
    return float(reads + outputs + ADD * (row["inputs"] + row["outputs"]))


def _spiking(row: Mapping[str, Any]) -> float:
    """Each operation reads a weight and updates a potential; each event is read and addressed by two products."""
    weight, potential = access(row["weights"]), 2 * access(row["outputs"])
    synaptic = row["synops"] * (2 * ADD + weight + potential) + row["graded_synops"] * MUL
    events = row["events"] * (access(row["inputs"]) + 2 * (MUL + ADD))
    constant = row["macs"] * (MUL + ADD + access(row["inputs"]) + weight)
    return float(synaptic + events + constant)
