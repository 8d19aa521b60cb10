"""Energy with memory: operations, addressing and accesses to buffers that grow with what they hold (Lemaire 2022).

E = sum over layers of operations + addressing + accesses. 32-bit integers: an addition 0.1 pJ, a multiplication 3.1 pJ.
An access of 32 bits costs 10 pJ in 8 kB, 20 pJ in 32 kB and 100 pJ in 1 MB, linear between them and beyond; inputs,
weights, potentials, biases and outputs of a layer lie in buffers of their own, each as large as what it holds. A
synaptic operation reads a weight, and reads and writes a potential; it arrives at an address computed for its event.

Reference: Lemaire et al., "An analytical estimation of spiking neural networks energy efficiency", 2022. The counts are
ours: exact fan-outs instead of ceil(k/S)^2 a spike, and the source's multiply-accumulates without padding.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

ADD, MUL = 0.1, 3.1
NAME = "INT32, 45 nm, with memory"
_SIZES, _COSTS, _BYTES = (8 * 1024, 32 * 1024, 1024 * 1024), (10.0, 20.0, 100.0), 4


def access(values: float) -> float:
    """Energy to read or write one 32-bit value of a buffer that holds so many, pJ; 10 pJ up to 8 kB."""
    size = float(values) * _BYTES
    if size > _SIZES[-1]:  # the last slope goes on
        slope = (_COSTS[-1] - _COSTS[-2]) / (_SIZES[-1] - _SIZES[-2])
        return _COSTS[-1] + slope * (size - _SIZES[-1])
    return float(np.interp(size, _SIZES, _COSTS))


def with_memory(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One row as of `energies`, nJ an image; rows are those of `CostReport.layers`."""
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
